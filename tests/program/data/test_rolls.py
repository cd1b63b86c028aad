"""Piano rolls: what is read of them, and what are none."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from revtune.program.data.rolls import FILES, piece, rolls
from revtune.program.errors import Problem
from tests.tiny_signals import write_rolls

io = pytest.importorskip("scipy.io", reason="scipy is not installed")
DATA = Path(os.environ.get("REVTUNE_DATA") or ".")


def test_pieces_are_read_by_split(tmp_path: Path) -> None:
    write_rolls(tmp_path)
    found = rolls("jsb", tmp_path)
    assert [len(part) for part in found] == [10, 3, 4]
    assert [len(each) for each in found.valid] == [8, 9, 10]
    assert all(each.shape[1] == 88 and each.dtype == torch.uint8 for part in found for each in part)


def test_what_is_missing_or_no_roll_is_named(tmp_path: Path) -> None:
    with pytest.raises(Problem, match="^polyphonic-music/JSB_Chorales.mat was not found: "):
        rolls("jsb", tmp_path)
    write_rolls(tmp_path, notes=87)
    with pytest.raises(Problem, match=r"holds no piano rolls .*: a piece must be .* steps of 88 notes, got \(8, 87\)"):
        rolls("jsb", tmp_path)
    (tmp_path / "polyphonic-music" / "JSB_Chorales.mat").write_bytes(b"MATLAB 5.0 and no more")
    with pytest.raises(Problem, match="JSB_Chorales.mat holds no piano rolls in traindata, validdata and testdata"):
        rolls("jsb", tmp_path)


@pytest.mark.parametrize("found", [np.full((5, 88), 2), np.zeros((1, 88)), np.zeros((5, 3)), np.zeros(88)])
def test_what_is_no_piece(found: Any) -> None:
    with pytest.raises(ValueError):
        piece(found)


@pytest.mark.skipif(not (DATA / "polyphonic-music").is_dir(), reason="REVTUNE_DATA has no polyphonic-music")
def test_the_published_sets_have_their_lengths() -> None:
    longest = {name: max(len(each) for part in rolls(name, DATA) for each in part) for name in FILES}
    assert longest == {"jsb": 160, "nottingham": 1_793, "piano": 3_857, "muse": 4_273}


@pytest.mark.parametrize("damage", [lambda content: b"", lambda content: content[:200] + b"\xff" * 8 + content[208:]])
def test_a_damaged_file_is_a_sentence(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    write_rolls(tmp_path)
    path = tmp_path / "polyphonic-music" / "JSB_Chorales.mat"
    content = {name: value for name, value in io.loadmat(path).items() if name[0] != "_"}
    io.savemat(path, content, do_compression=True)  # as the published files are
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(Problem, match="JSB_Chorales.mat holds no piano rolls"):
        rolls("jsb", tmp_path)
