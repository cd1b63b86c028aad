"""Optuna's journal: it is opened whatever a process that died left, and refused where it is damaged."""

import time
from pathlib import Path

import optuna
import pytest
from optuna.pruners import NopPruner
from optuna.trial import TrialState

from revtune.program.errors import Problem
from revtune.program.studies.compare.storage import Kept, kept, opened


def study(path: Path) -> optuna.Study:
    return opened(Kept(path.parent, "random"), NopPruner())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal of two trials."""
    one = study(tmp_path / "journal.log")
    for number in range(2):
        one.tell(one.ask(), number)
    return tmp_path / "journal.log"


def test_a_line_without_an_end_is_cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])
    one = study(path)
    assert [trial.state for trial in one.get_trials()] == [TrialState.COMPLETE, TrialState.RUNNING]
    one.tell(1, 1.0)
    assert [trial.value for trial in study(path).get_trials()] == [0.0, 1.0]


def test_a_dead_processs_lock_is_taken_away(path: Path) -> None:
    path.with_name("journal.log.lock").symlink_to(path)
    since = time.monotonic()
    one = study(path)
    one.tell(one.ask(), 2.0)
    assert time.monotonic() - since < 10


@pytest.mark.parametrize("content", [b"\0\0\0", b"7", b"{}", b'{"op_code": 0}', b'{"op_code": 4, "worker_id": "a"}'])
def test_a_damaged_line_is_told(content: bytes, path: Path) -> None:
    path.write_bytes(content + b"\n" + path.read_bytes())
    with pytest.raises(Problem, match=r"journal.log is damaged"):
        study(path)


def test_a_search_keeps_to_where_it_was_begun(path: Path, tmp_path: Path) -> None:
    folder = path.parent
    with pytest.raises(Problem, match=r"keeps its trials in journal.log; leave --storage out"):
        kept(folder, "random", "sqlite://")
    other = tmp_path / "contest" / "seed-1" / "tpe"
    other.mkdir(parents=True)
    one, again = (kept(other, "tpe", "sqlite://") for _ in range(2))
    assert one == again and one.name.startswith("revtune contest seed-1 tpe ")
    with pytest.raises(Problem, match="keeps its trials in a storage of Optuna's; give its URL by --storage"):
        kept(other, "tpe", None)
