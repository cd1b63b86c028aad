"""What the tests of several processes launch: `torchrun tests/program/language/launched.py TASK FOLDER`."""

import dataclasses
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from revtune.processes import Processes
from revtune.program.cli.main import main
from revtune.program.errors import Problem
from revtune.program.language import live, trainer
from revtune.program.language.config import Config
from revtune.program.language.task import LanguageTask
from revtune.program.runs.together import together
from tests.tiny_runs import Silent, config

RATES = {"input_dropout": 0.1, "output_dropout": 0.2, "embedding_dropout": 0.1, "weight_drop": 0.2, "dropout": 0.2}
STEPS, ODD = 50, {"batch": 5, "valid_batch": 3}
"""Streams that two processes cannot share evenly."""

DIES_AT = 7


def runs(folder: Path) -> dict[str, Config]:
    """Kinds of language models by name: rewinding and storing ones, plain and tuned."""
    text, every = folder / "text", {"steps": STEPS, "valid_every": 20, "save_every": 20, "length": 24}
    plain = config(text, "revgru", {**RATES, "layers": 2, "hidden_dropout": 0.1}, **every, **ODD)
    stored = config(text, "lstm", {**RATES, "layers": 2}, **every)
    rewinding = config(text, "revlstm", {**RATES, "layers": 2}, **every, lr_too=True)
    return {
        "plain": dataclasses.replace(plain, tune="off"),
        "stored": dataclasses.replace(stored, tune="off"),
        "delta": dataclasses.replace(rewinding, tune="delta"),
        "stn": dataclasses.replace(stored, tune="stn"),
    }


def learn(folder: Path, processes: Processes) -> None:
    for name, each in runs(folder).items():
        trainer.start(each, folder / "two" / name, Silent(), processes=processes)


def refuse(folder: Path, processes: Processes) -> None:
    each = runs(folder)["plain"]
    with pytest.raises(Problem, match="must be at least 2, the number of processes, got 1"):
        LanguageTask(dataclasses.replace(each, learning=dataclasses.replace(each.learning, batch=1)),
                     processes=processes)  # fmt: skip
    other = dataclasses.replace(each, learning=dataclasses.replace(each.learning, lr=0.1 + processes.rank))
    with pytest.raises(Problem, match=r"learning.lr must be the same .* got 0.1 in process 0 and 1.1 in process 1"):
        trainer.start(other, folder / "other", Silent(), processes=processes)


def dying(arguments: list[str]) -> int:
    """The program, whose second process is killed after a step."""
    step = live.Report.step

    def fatal(report: live.Report, facts: dict[str, Any]) -> None:
        if facts["step"] == DIES_AT and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        step(report, facts)

    pytest.MonkeyPatch().setattr(live.Report, "step", fatal)
    return main(arguments)


if __name__ == "__main__":
    task, *rest = sys.argv[1:]
    if task == "dying":
        sys.exit(dying(rest))
    with together("cpu", 1) as processes:
        {"learn": learn, "refuse": refuse}[task](Path(rest[0]), processes)
