"""The benchmark of imports: what is started, and what the table makes of it."""

import json
import os
import sys
from pathlib import Path

import pytest

from revtune.program.bench import imports
from revtune.program.bench.display import Markdown
from revtune.program.bench.imports import BASE, CONTESTANTS, GOALS, children_time, measured, row_of
from revtune.program.cli.main import main

QUICK = {name: ("-c", "sum(range(3_000_000))" if name == BASE else "pass") for name in CONTESTANTS}


def test_the_goals_are_those_agreed() -> None:
    assert {name: str(goal) for name, goal in GOALS.items()} == {"import revtune": "1.10", "revtune --help": "1.30"}
    assert CONTESTANTS == {
        BASE: ("-c", "import torch"),
        "import revtune": ("-c", "import revtune"),
        "revtune --help": ("-m", "revtune", "--help"),
    }


def test_only_the_time_of_what_is_started_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imports, "CONTESTANTS", QUICK)
    before = children_time()
    sum(range(3_000_000))
    assert children_time() == before
    seconds = measured(3, Markdown())
    assert all(len(taken) == 3 for taken in seconds.values())
    assert min(seconds[BASE]) > max(min(taken) for name, taken in seconds.items() if name != BASE)


def test_what_is_started_may_write_bytecode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    imports.start(("-c", "import os; assert 'PYTHONDONTWRITEBYTECODE' not in os.environ"))
    assert os.environ["PYTHONDONTWRITEBYTECODE"] == "1"


def test_ratios_are_taken_round_by_round() -> None:
    seconds = {BASE: [1.0, 2.0, 4.0], "import revtune": [1.1, 2.1, 4.8], "revtune --help": [1.4, 2.0, 5.6]}
    assert row_of(BASE, seconds) == (BASE, "2.00", "1.00", "1.00-1.00", "")
    assert row_of("import revtune", seconds) == ("import revtune", "2.10", "1.10", "1.05-1.20", "1.10 met")
    assert row_of("revtune --help", seconds) == ("revtune --help", "2.00", "1.40", "1.00-1.40", "1.30 missed")


def test_the_command_prints_a_table_and_keeps_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(imports, "CONTESTANTS", QUICK)
    out = tmp_path / "imports.json"
    assert main(["bench", "imports", "--rounds", "7", "--markdown", "--out", str(out)]) == 0
    assert "| revtune --help |" in capsys.readouterr().out
    kept = json.loads(out.read_text())
    assert kept["rounds"] == 7 and list(kept["seconds"]) == list(CONTESTANTS)
    assert main(["bench", "imports", "--rounds", "3"]) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="what is missing there is there missing already")
def test_a_system_that_does_not_tell_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr(os, "wait4")
    assert main(["bench", "imports"]) == 1
    assert "processor time of other processes" in capsys.readouterr().err
