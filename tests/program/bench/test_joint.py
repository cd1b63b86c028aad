"""`revtune bench joint`, at a shape that takes seconds."""

import json
from pathlib import Path
from typing import Any

import pytest

from revtune.program.bench import joint
from revtune.program.cli.main import main
from revtune.program.errors import Problem

SECONDS = {f"{number} {step}": [1.0 + number, 2.0 + number] for number in (0, 1) for step in joint.STEPS}


@pytest.mark.slow
def test_it_measures_both_nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(joint, "SHAPES", {"words": (5, 3, 4, 7)})
    monkeypatch.setattr(joint, "PROCESSES", 1)
    out = tmp_path / "joint.json"
    assert main(["bench", "joint", "--shapes", "words", "--nets", "GRU", "--markdown", "--out", str(out)]) == 0
    (record,) = json.loads(out.read_text())["records"]
    assert record["seconds"].keys() == SECONDS.keys() and all(map(all, record["seconds"].values()))
    assert [one.keys() for one in record["bytes"]] == [set(joint.STEPS)] * 2
    assert "| Delta-STN validation |" in capsys.readouterr().out


def test_a_line_holds_medians_of_the_same_rounds() -> None:
    needed = [dict.fromkeys(joint.STEPS, 2_000_000), dict.fromkeys(joint.STEPS, 5_000_000)]
    seconds = {**SECONDS, "0 STN": [3.0, 4.0]}
    plain, stn, *_ = joint.rows({"seconds": seconds, "bytes": needed})
    assert plain == ("plain", "1.00", "1.00-1.00", "0.58", "2.0", "5.0", "2.5")
    assert stn == ("STN", "2.50", "2.00-3.00", "1.42", "2.0", "5.0", "2.5")
    assert [*joint.rows({})][0] == ("plain", *[""] * 6)


def test_an_unknown_shape_is_named() -> None:
    with pytest.raises(Problem, match="--shapes must be some of words characters long, got sentences"):
        joint.joint(shapes=("sentences",))


@pytest.mark.parametrize(
    ("options", "told"),
    [({"rounds": 0}, "--rounds must be at least 1, got 0"), ({"threads": 0}, "--threads must be from 1 to .*, got 0")],
)
def test_what_cannot_be_measured_is_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(Problem, match=told):
        joint.joint(**options)
