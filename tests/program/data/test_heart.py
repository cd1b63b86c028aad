"""ECG records: what is read of them, and what is no record."""

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from revtune.program.data.heart import heart
from revtune.program.errors import Problem
from tests.tiny_signals import write_heart

wfdb = pytest.importorskip("wfdb", reason="wfdb is not installed")
DATA = Path(os.environ.get("REVTUNE_DATA") or ".")


def test_samples_and_beats_are_read(tmp_path: Path) -> None:
    write_heart(tmp_path)
    found = heart("100", tmp_path)
    assert found.samples.shape == (2_000,) and (found.rate, found.gain) == (360, 200.0)
    assert found.beats.tolist() == list(range(100, 2_000, 300))
    assert found.samples[found.beats].tolist() == [200] * 7 and found.samples.sum() == 1_400


@pytest.mark.parametrize("ending", ["hea", "dat", "atr"])
def test_a_missing_file_is_named(ending: str, tmp_path: Path) -> None:
    write_heart(tmp_path)
    (tmp_path / "ecg" / f"100.{ending}").unlink()
    with pytest.raises(Problem, match=rf"^ecg/100.{ending} was not found: ecg/100.{ending} is not in "):
        heart("100", tmp_path)


@pytest.mark.parametrize(
    "ending, content, told",
    [
        ("hea", b"no header", "100 is no record with annotations"),
        ("dat", b"\0" * 100, r"100\.dat must have the [\d,]+ bytes that .*100\.hea states, it has 100$"),
        ("atr", b"\0\0", "100 must have beats within"),
    ],
)
def test_a_damaged_file_is_a_sentence(ending: str, content: bytes, told: str, tmp_path: Path) -> None:
    write_heart(tmp_path)
    (tmp_path / "ecg" / f"100.{ending}").write_bytes(content)
    with pytest.raises(Problem, match=told):
        heart("100", tmp_path)


@pytest.mark.parametrize("more", [-3, 3])
def test_samples_of_another_size_than_the_header_says_are_refused(more: int, tmp_path: Path) -> None:
    write_heart(tmp_path)
    samples = tmp_path / "ecg" / "100.dat"
    content = samples.read_bytes()
    samples.write_bytes(content[:more] if more < 0 else content + b"\0" * more)
    told = f"100.dat must have the {len(content):,} bytes that .*100.hea states, it has {len(content) + more:,}$"
    with pytest.raises(Problem, match=told):
        heart("100", tmp_path)


@pytest.mark.skipif(not (DATA / "ecg" / "100.dat").is_file(), reason="REVTUNE_DATA has no ecg")
def test_the_published_record_has_its_beats() -> None:
    found = heart("100", DATA)
    assert (len(found.samples), len(found.beats), found.rate) == (650_000, 2_273, 360)


@pytest.mark.parametrize("kept", [-2, -4, -3])
def test_annotations_that_were_cut_off_are_refused(kept: int, tmp_path: Path) -> None:
    write_heart(tmp_path)
    notes = tmp_path / "ecg" / "100.atr"
    notes.write_bytes(content := notes.read_bytes()[:kept])
    with pytest.raises(Problem, match=rf"100.atr must end in two zero bytes, .* cut off: {len(content)} bytes"):
        heart("100", tmp_path)


def test_samples_beyond_16_bits_are_whole(tmp_path: Path) -> None:
    write_heart(tmp_path)
    signal = np.full((2_000, 1), 20_000, dtype="int64")
    with warnings.catch_warnings(action="ignore"):  # pandas 3 warns of how wfdb calls it
        wfdb.wrsamp(
        "100", fs=360, units=["mV"], sig_name=["I"], d_signal=signal, fmt=["16"], adc_gain=[200.0], baseline=[-20_000],
        write_dir=str(tmp_path / "ecg"),
    )  # fmt: skip
    found = heart("100", tmp_path)
    assert found.samples.dtype == torch.int32 and bool((found.samples == 40_000).all())
