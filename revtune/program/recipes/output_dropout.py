"""Output dropout of a language model: tuned from five starts, against fixed and moving rates; --full for 650 units."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from revtune.program.studies.output_dropout import contestants as output_dropout
from revtune.program.studies.output_dropout import experiment as output_dropout_run
from revtune.program.studies.output_dropout.contestants import Study

tunes = True


@dataclass(frozen=True, kw_only=True)
class Options:
    """Tune the output dropout of a language model from five starts, and compare fixed rates and schedules with it."""

    study: Annotated[Study, tyro.conf.arg(name="")]
    out: Path | None = None
    """Folder of the experiment; one that holds it is gone on with. By default the next free runs/output_dropout-<n>."""
    full: bool = False
    """The settings of the paper: days instead of half an hour."""


def recipe(*, full: bool = False) -> Study:
    """The settings of `ptb_lstm`, with nothing but its output dropped."""
    return output_dropout.study("paper" if full else "small")


def run(options: Options) -> None:
    """Run the experiment, or what is left of it."""
    output_dropout_run.run(options.study, options.out)


def resume(folder: Path) -> None:
    """Go on with the experiment in a folder."""
    output_dropout_run.resume(folder)
