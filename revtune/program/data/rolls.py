"""Polyphonic music as piano rolls (Boulanger-Lewandowski et al. 2012), from MATLAB files in a folder.

polyphonic-music/JSB_Chorales.mat ...       traindata, validdata, testdata: a row of pieces, each (T, 88), 0 or 1
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from revtune.program.data.named_sets import data_folder, missing
from revtune.program.errors import Problem

Pieces = Literal["jsb", "nottingham", "piano", "muse"]

FILES: dict[Pieces, str] = {
    "jsb": "JSB_Chorales.mat", "nottingham": "Nottingham.mat", "piano": "Piano_midi.mat", "muse": "MuseData.mat"
}  # fmt: skip
"""Bach's chorales, folk tunes, classical piano and orchestral music: pieces of up to 160, 1,793, 3,857, 4,273 steps."""

FOLDER = "polyphonic-music"

NOTES = 88


class Rolls(NamedTuple):
    """Pieces (T, 88) of each split, as bytes."""

    train: list[Tensor]
    valid: list[Tensor]
    test: list[Tensor]


def rolls(which: Pieces, folder: Path | None = None) -> Rolls:
    """The pieces of a set, from a folder with data sets, by default the environment's REVTUNE_DATA.

    Raises:
        Problem: it is not there, or holds no piano rolls.
    """
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    folder = data_folder(folder)
    path = folder / FOLDER / FILES[which] if folder else None
    if path is None or not path.exists():
        raise missing(f"{FOLDER}/{FILES[which]}", folder)
    try:
        content: dict[str, Any] = loadmat(path)
        return Rolls(*([piece(found) for found in content[f"{name}data"][0]] for name in Rolls._fields))
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        NotImplementedError,
        zlib.error,
        MatReadError,
    ) as error:
        raise Problem(f"{path} holds no piano rolls in traindata, validdata and testdata: {error}") from error


def piece(found: Any) -> Tensor:
    """A piece (T, 88) as bytes.

    Raises:
        ValueError: it is another shape, shorter than two steps, or no roll of zeros and ones.
    """
    if found.ndim != 2 or found.shape[1] != NOTES or len(found) < 2:
        raise ValueError(f"a piece must be two or more steps of {NOTES} notes, got {tuple(found.shape)}")
    if not ((found == 0) | (found == 1)).all():
        raise ValueError("notes must be 0 or 1")
    return torch.from_numpy(found.astype("uint8"))
