"""`revtune report`: folders read, and the page that shows them written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from revtune.program.errors import Problem
from revtune.program.files import Taken, check_distinct, check_output, read_bytes, write
from revtune.program.report import beside, contest, output_dropout, repeat, task, text, translation
from revtune.program.report.page import MARK, page
from revtune.program.report.story import Story
from revtune.program.runs.folder import OWN

PAGE = "report.html"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Write a page of HTML that shows runs, contests and studies side by side; it needs no network."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Their folders."""
    out: Path | None = None
    """Where the page goes; by default report.html, in the folder of a single run, else here."""
    measure: bool = False
    """Measure a training step's memory and time beside torch's own layer at each run's shape, a minute a run."""
    accept_edits: bool = False
    """Take samples from runs whose settings or vocabulary were edited since they learnt."""


TOLD: dict[str, Callable[[Path, str, bool], Story]] = {
    "text": lambda folder, name, edits: text.story(folder, name, accept_edits=edits),
    "translation": lambda folder, name, edits: translation.story(folder, name, accept_edits=edits),
    "tuned": lambda folder, name, _: task.story(folder, name),
    "signal": lambda folder, name, _: task.story(folder, name),
    "contest": lambda folder, name, _: contest.story(folder, name),
    "repeat": lambda folder, name, _: repeat.story(folder, name),
    "output_dropout": lambda folder, name, _: output_dropout.story(folder, name),
}
"""What tells of a folder, by its kind."""


def report(options: Options, kinds: Sequence[str]) -> Path:
    """Write a page; its path.

    Args:
        options: folders, and what else was asked for.
        kinds: of the folders, as keys of `TOLD`.

    Raises:
        Problem: a folder's settings are not of this version, its results are damaged, or the page cannot be written.
    """
    out = place(options)
    stories = []
    for folder, kind, name in zip(options.runs, kinds, names(options.runs), strict=True):
        stories.append(told := TOLD[kind](folder, name, options.accept_edits))
        beside.add(told, kind, measure=options.measure)
    write(out, page(stories).encode("utf-8", "replace"))
    return out


def place(options: Options) -> Path:
    """Where the page goes.

    Raises:
        Problem: there is no folder for it, or what is there is no report.
    """
    single = len(options.runs) == 1
    out = options.out or (options.runs[0] / PAGE if single else Path(PAGE))
    if not out.parent.is_dir():
        raise Problem(f"cannot write {out}: there is no folder {out.parent}")
    check_output(out)
    taken: list[Taken] = [(run / name, f"is {name} of a run") for run in options.runs for name in OWN]
    check_distinct({"out": out}, taken)
    if out.exists() and MARK.encode() not in read_bytes(out)[:2000]:
        raise Problem(f"{out} is there already and is no report of revtune's; give another --out")
    return out


def names(folders: Sequence[Path]) -> list[str]:
    """What a page calls folders: by their own names, or by their paths where two have the same."""
    own = [folder.resolve().name for folder in folders]
    return [str(folder) if own.count(name) > 1 else name for folder, name in zip(folders, own, strict=True)]
