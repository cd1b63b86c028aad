"""`revtune train` for a text: a run from its first step to its last, or the rest of one, and what it came to."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from revtune.program.errors import Problem
from revtune.program.files import absolute
from revtune.program.language import sample, trainer
from revtune.program.language.config import Config, Size, check
from revtune.program.language.live import Report, measure
from revtune.program.language.run import Run
from revtune.program.runs import tracking
from revtune.program.runs.folder import command_line
from revtune.program.runs.tracking import Tracked


@dataclass(frozen=True, kw_only=True)
class Options:
    """Learn a text."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    out: Path | None = None
    """Folder of the run; by default the next free runs/<recipe>-<n>."""
    size: Size = "small"
    """small is made for two cores; paper has the settings of the paper that the recipe is from."""
    track: Tracked = "none"
    """Which tracker is told of losses, bits, memory, rates and hyperparameters besides metrics.jsonl."""
    resume: Path | None = None
    """Go on with the run in this folder with its own settings; only --file, --data, --track and --accept-edits go
    with it."""


def start(name: str, options: Options) -> Path:
    """A new run of a recipe, from its first step to its last; its folder."""
    assert options.config.recipe == name
    check(options.config)
    tracking.check(options.track)
    with Report(options.config).shown() as report:
        run = trainer.start(with_absolute_paths(options.config), options.out, report, options.track)
    finish(run)
    return run.folder


def resume(
    folder: Path, *, accept_edits: bool = False, file: Path | None = None, data: Path | None = None,
    track: Tracked = "none",
) -> None:  # fmt: skip
    """Go on with the run in a folder; `file` is its text, or `data` the data sets, where these have been moved.

    Raises:
        Problem: it holds none, or nothing is left to do.
    """
    run = Run(folder, file, data, accept_edits)
    with Report(run.config()).shown() as report:
        trainer.resume(run, report, track)
    finish(run)


def with_absolute_paths(config: Config) -> Config:
    """The configuration with its paths made absolute, to be found from any folder later.

    Raises:
        Problem: it names a file, and its recipe reads none.
    """
    text = config.text
    if text.file is not None and text.source != "file":
        raise Problem(
            f"recipe {config.recipe} reads no file; {command_line('train', 'text', '--file', text.file)} does", code=2
        )
    file, data = absolute(text.file), absolute(text.data)
    return dataclasses.replace(config, text=dataclasses.replace(text, file=file, data=data))


def finish(run: Run) -> None:
    """Say what a finished run came to, show a sample, and what to do next."""
    config = run.config()
    best, unit = run.best(), config.text.unit
    words = unit == "word"
    tuned = ", ".join(f"{name} {value:.3g}" for name, value in best.get("values", {}).items())
    print(f"\nvalidation {measure(unit, best['valid_loss'])}, its best, at step {best['step']}; a sample:\n")
    print(sample.shown(run.model(), run.vocabulary()) + "\n")
    if tuned:
        print(f"tuned by {config.tune}, at that step: {tuned}; all steps are in {run.schedule}")
    print(f"the run is in {run.folder}; next:")
    prompt = "def " if config.text.source == "stdlib" else "the market" if words else "The "
    print(f"  {command_line('generate', run.folder, '--prompt', prompt)}")
    print(f"  {command_line('evaluate', run.folder)}")
