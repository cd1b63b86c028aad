"""Spoken digits of the Free Spoken Digit Dataset: WAV files of 16 bits at 8 kHz, in a folder or in its zip.

spoken-digits/recordings.zip        recordings/{digit}_{speaker}_{take}.wav
spoken-digits/recordings/           the same, unpacked
"""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from revtune.program.data.named_sets import data_folder, missing
from revtune.program.errors import Problem
from revtune.program.files import read_bytes

FOLDER, RATE = "spoken-digits", 8_000

UNKNOWN = 2**32 - 1
"""From this size on a WAV file does not say how long it is, as one that was written to a pipe."""

NAME = re.compile(r"(\d)_(\w+)_(\d+)\.wav")


class Recording(NamedTuple):
    """A digit as it was said, its samples (T,) as int16."""

    digit: int
    speaker: str
    take: int
    samples: Tensor


def recordings(folder: Path | None = None) -> list[Recording]:
    """All recordings by name, from a folder with data sets, by default the environment's REVTUNE_DATA.

    Raises:
        Problem: there are none, or one is unreadable, of another rate, or of several channels.
    """
    folder = data_folder(folder)
    where = folder / FOLDER if folder else None
    if where is None or not where.is_dir():
        raise missing(FOLDER, folder)
    found = []
    for path, content in files(where):
        if match := NAME.fullmatch(path.name):
            digit, speaker, take = match.groups()
            found.append(Recording(int(digit), speaker, int(take), samples(path, content)))
    if not found:
        raise Problem(f"{where} holds no recordings, in recordings.zip or in recordings/, named like 7_jackson_12.wav")
    return found


def files(where: Path) -> Iterator[tuple[Path, bytes]]:
    """Files, those of a zip as if it were a folder, and their contents, in the order of their names."""
    packed = where / "recordings.zip"
    if not packed.exists():
        for path in sorted((where / "recordings").glob("*.wav")):
            yield path, read_bytes(path)
        return
    try:
        with zipfile.ZipFile(io.BytesIO(read_bytes(packed))) as archive:
            for name in sorted(name for name in archive.namelist() if name.endswith(".wav")):
                yield packed / name, archive.read(name)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise Problem(f"{packed} is no whole zip file: {error}") from error


def samples(path: Path, content: bytes) -> Tensor:
    """The samples (T,) of a WAV file as int16.

    Raises:
        Problem: it cannot be read, is empty, of another rate, or has several channels.
    """
    import soundfile

    stated = int.from_bytes(content[4:8], "little") + 8  # of all of a RIFF file, whose first eight bytes do not count
    if content[:4] == b"RIFF" and len(content) < stated < UNKNOWN:
        there = f"it has been cut off: {len(content):,} are there"
        raise Problem(f"{path} must have the {stated:,} bytes that it states, {there}")
    try:
        sound, rate = soundfile.read(io.BytesIO(content), dtype="int16", always_2d=True)
    except (soundfile.SoundFileError, TypeError, ValueError) as error:
        why = getattr(error, "error_string", error)  # the whole sentence of libsndfile's names an object, and no file
        raise Problem(f"{path} is no WAV file that can be read: {why}") from error
    if rate != RATE:
        raise Problem(f"{path} must have {RATE:,} samples a second, it has {rate:,}; resample it, or take it away")
    if sound.shape[1] != 1 or not len(sound):
        raise Problem(f"{path} must have samples of one channel, it has {len(sound)} of {sound.shape[1]}")
    return torch.from_numpy(sound[:, 0].copy())
