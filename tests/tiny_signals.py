"""Data sets of a few signals in their own formats, written by the libraries that read them."""

import math
import warnings
from pathlib import Path

import numpy as np
import pytest

from tests.tiny_images import write_images

SPEAKERS = ("ann", "bob")


def write_signals(folder: Path) -> None:
    """Images, an ECG of 2,000 samples, recordings of two speakers, and the smallest set of music."""
    write_images(folder)
    write_heart(folder)
    for digit in range(10):
        for speaker in SPEAKERS:
            for take in (5, 7, 10):
                write_digit(folder, digit, speaker, take)
    write_rolls(folder)


def write_heart(folder: Path, samples: int = 2_000, every: int = 300) -> None:
    """A record "100" that beats every so many samples."""
    wfdb = pytest.importorskip("wfdb", reason="wfdb is not installed")
    (where := folder / "ecg").mkdir(parents=True, exist_ok=True)
    beats = np.arange(100, samples, every)
    lead = np.zeros(samples, dtype=np.int64)
    lead[beats] = 200
    kept = {"fs": 360, "units": ["mV"], "sig_name": ["MLII"], "fmt": ["16"], "adc_gain": [200.0], "baseline": [0]}
    with warnings.catch_warnings(action="ignore"):  # pandas 3 warns of how wfdb calls it
        wfdb.wrsamp("100", d_signal=lead[:, None], write_dir=str(where), **kept)
        # a note on the rhythm first, which is no beat
        wfdb.wrann("100", "atr", np.r_[5, beats], ["+"] + ["N"] * len(beats), write_dir=str(where))


def write_digit(folder: Path, digit: int, speaker: str, take: int, *, rate: int = 8_000, channels: int = 1) -> Path:
    """A tone for a digit, longer for a higher one."""
    soundfile = pytest.importorskip("soundfile", reason="soundfile is not installed")
    (where := folder / "spoken-digits" / "recordings").mkdir(parents=True, exist_ok=True)
    tone = np.sin(np.arange(200 + 10 * digit + take) * math.pi / (digit + 2))
    path: Path = where / f"{digit}_{speaker}_{take}.wav"
    soundfile.write(path, np.repeat(tone[:, None] / 2, channels, 1), rate, subtype="PCM_16")
    return path


def write_rolls(folder: Path, notes: int = 88) -> None:
    """Pieces of 8 to 12 steps as "jsb"."""
    io = pytest.importorskip("scipy.io", reason="scipy is not installed")
    (where := folder / "polyphonic-music").mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    content = {}
    for name, count in {"traindata": 10, "validdata": 3, "testdata": 4}.items():
        content[name] = np.empty((1, count), dtype=object)
        for number in range(count):
            content[name][0, number] = (draw.random((8 + number % 5, notes)) < 0.1).astype("uint8")
    io.savemat(where / "JSB_Chorales.mat", content)
