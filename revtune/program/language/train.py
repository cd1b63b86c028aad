"""`revtune train` for a text: a run from its first step to its last, or the rest of one, and what it came to."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from revtune.program.errors import Problem
from revtune.program.language import sample, trainer
from revtune.program.language.config import Config, check
from revtune.program.language.live import Report, measure
from revtune.program.language.regularizers import rates_of
from revtune.program.language.run import Run
from revtune.program.runs import tracking
from revtune.program.runs.folder import REPLAYED, SCHEDULE, command_line
from revtune.program.runs.followed import Followed, whose
from revtune.program.runs.together import together
from revtune.program.runs.tracking import Tracked
from revtune.program.tasks.task import Size


@dataclass(frozen=True, kw_only=True)
class Options:
    """Learn a text."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    followed: Annotated[Followed, tyro.conf.arg(name="")] = field(default_factory=Followed)
    out: Path | None = None
    """Folder of the run; by default the next free runs/<recipe>-<n>."""
    size: Size = "small"
    """small is made for two cores; paper has the settings of the paper that the recipe is from."""
    track: Tracked = "none"
    """Which tracker is told of losses, bits, memory, rates and hyperparameters besides metrics.jsonl."""
    resume: Path | None = None
    """Go on with the run in this folder with its own settings; only --file, --data, --track and --accept-edits go
    with it."""


def check_rates(options: Options, usual: Config) -> None:
    """Raise `Problem` for a rate that is not the usual one, and so was given, beside a schedule that sets it."""
    followed, net = options.followed, options.config.net
    for name in rates_of(net) if followed.option else []:
        if (rate := getattr(net, name)) != getattr(usual.net, name):
            left = f"--{name.replace('_', '-')} must be left out beside {followed.option}, which sets that rate"
            raise Problem(f"{left}, got {rate}", code=2)


def start(name: str, options: Options) -> Path:
    """A new run of a recipe, from its first step to its last; its folder."""
    assert options.config.recipe == name
    config = options.config
    check(config)
    tracking.check(options.track)
    options.followed.check_untuned(None if config.tune == "off" else f"--tune {config.tune}")
    schedule = options.followed.schedule()
    config = dataclasses.replace(config, replays=schedule is not None).with_absolute_paths()
    with together(config.learning.device, config.learning.threads) as processes:
        if schedule is not None and processes.rank == 0:
            print(f"the hyperparameters follow {whose(schedule)}")
        with Report(config).shown() as report:
            run = trainer.start(config, options.out, report, schedule, options.track, processes)
        if processes.rank == 0:
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
    learning = run.config().learning
    with together(learning.device, learning.threads) as processes:
        with Report(run.config()).shown() as report:
            trainer.resume(run, report, track, processes)
        if processes.rank == 0:
            finish(run)


def finish(run: Run) -> None:
    """Say what a finished run came to, show a sample, and what to do next."""
    config = run.config()
    best, unit = run.best(), config.text.unit
    words = unit == "word"
    tuned = ", ".join(f"{name} {value:.3g}" for name, value in best.get("values", {}).items())
    print(f"\nvalidation {measure(unit, best['valid_loss'])}, its best, at step {best['step']}; a sample:\n")
    print(sample.shown(run.model(), run.vocabulary()) + "\n")
    if tuned:
        how, where = ("replayed", REPLAYED) if config.replays else (f"tuned by {config.tune}", SCHEDULE)
        print(f"{how}, at that step: {tuned}; all steps are in {run.folder / where}")
    print(f"the run is in {run.folder}; next:")
    prompt = "def " if config.text.source == "stdlib" else "the market" if words else "The "
    print(f"  {command_line('generate', run.folder, '--prompt', prompt)}")
    print(f"  {command_line('evaluate', run.folder)}")
