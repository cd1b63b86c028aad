"""A recording of a heart with its beats, in PhysioNet's format: RECORD.hea, RECORD.dat and RECORD.atr in ecg/."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from revtune.program.data.named_sets import data_folder, missing
from revtune.program.errors import Problem
from revtune.program.files import read_bytes

FOLDER = "ecg"

BEATS = frozenset("NLRBAaJSVrFejnE/fQ?")
"""PhysioNet's annotations that are beats; others are of rhythm and noise."""


HALF_BYTES = {"80": 2, "212": 3, "16": 4, "24": 6, "32": 8}
"""Of a sample, by PhysioNet's names of formats."""

END = b"\0\0"
"""What a file of annotations ends in; wfdb takes one without it, and fewer beats."""


class Heart(NamedTuple):
    """A recording.

    Attributes:
        samples: of its first lead above its baseline, (T,), int16, or int32 where they need it.
        beats: at which samples it beats, in their order.
        rate: samples a second.
        gain: steps of the converter in a millivolt.
    """

    samples: Tensor
    beats: Tensor
    rate: int
    gain: float


def heart(record: str, folder: Path | None = None) -> Heart:
    """The recording of a name, from a folder with data sets, by default the environment's REVTUNE_DATA.

    Raises:
        Problem: a file of it is not there or damaged, or it has no beats.
    """
    import wfdb

    folder = data_folder(folder)
    for ending in ("hea", "dat", "atr"):
        if folder is None or not (folder / FOLDER / f"{record}.{ending}").is_file():
            raise missing(f"{FOLDER}/{record}.{ending}", folder)
    assert folder is not None
    path = folder / FOLDER / record
    if len(notes := read_bytes(folder / FOLDER / f"{record}.atr")) % 2 or notes[-2:] != END:
        raise Problem(f"{path}.atr must end in two zero bytes, it has been cut off: {len(notes):,} bytes are there")
    try:
        _check_size(str(path), wfdb.rdheader(str(path)))
        with warnings.catch_warnings(action="ignore"):  # pandas 3 warns of how wfdb calls it
            signal, told = wfdb.rdrecord(str(path), channels=[0], physical=False), wfdb.rdann(str(path), "atr")
        steps = signal.d_signal[:, 0].astype("int64") - signal.baseline[0]
        kind = "int16" if -(2**15) <= steps.min() and steps.max() < 2**15 else "int32"
        samples = torch.from_numpy(steps.astype(kind))
        rate, gain = round(signal.fs), float(signal.adc_gain[0])
    except Problem:
        raise
    except Exception as error:  # wfdb raises errors of any kind for damaged files
        raise Problem(f"{path} is no record with annotations that can be read: {error}") from error
    beats = torch.tensor([at for at, kind in zip(told.sample, told.symbol, strict=True) if kind in BEATS])
    if not len(beats) or beats.max() >= len(samples):
        raise Problem(f"{path} must have beats within its {len(samples):,} samples, it has {len(beats)} beats")
    return Heart(samples, beats, rate, gain)


def _check_size(path: str, header: Any) -> None:
    """Refuse a file of samples of another size than the header says, which wfdb reads in part, or not at all.

    Raises:
        Problem: tells both sizes.
    """
    widths = [HALF_BYTES.get(kind, 0) for kind in header.fmt or ()]
    plain = not any(header.byte_offset or ()) and all(each in (None, 1) for each in header.samps_per_frame or ())
    alone = set(header.file_name or ()) == {Path(path).name + ".dat"} and len(set(widths)) == 1
    if not header.sig_len or not all(widths) or not plain or not alone:
        return  # of a size that these do not tell
    wanted, there = math.ceil(header.sig_len * sum(widths) / 2), Path(f"{path}.dat").stat().st_size
    if there != wanted:
        raise Problem(f"{path}.dat must have the {wanted:,} bytes that {path}.hea states, it has {there:,}")
