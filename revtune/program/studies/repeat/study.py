"""A study of the repeat task as it runs: cells in parallel, each written down as it ends, then a table and a plot.

    config.json     the study
    cells.jsonl     a line for each cell that is done
    results.json    the table's figures and what they depend on
    table.md        the table to read
    repeat.png      the plot

Started again in its folder, a study learns the cells that are missing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import multiprocessing
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from revtune.program.errors import Problem
from revtune.program.files import read_bytes, read_text, write
from revtune.program.machine import processors, versions
from revtune.program.runs.arithmetic import Arithmetic
from revtune.program.runs.folder import made_folder
from revtune.program.runs.metrics import Metrics
from revtune.program.runs.seals import digest, edited, sealed
from revtune.program.studies.json_files import parsed
from revtune.program.studies.repeat.results import markdown, plot, summary, table, title
from revtune.program.tasks.repeat import Cell, RepeatStudy, check, from_json, learn, to_json

Figures = dict[str, Any]

SEALS = "seals"
"""What a line calls the digests of the configuration and of its own figures."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compare reversible nets with and without forgetting, and torch's own, on repeating the previous token."""

    study: tyro.conf.OmitArgPrefixes[RepeatStudy]
    out: Path | None = None
    """Folder of the study; one that holds this study is resumed. By default the next free runs/repeat-<n>."""
    full: bool = False
    """Longer sequences, more updates and seeds: hours instead of minutes."""
    workers: int | None = None
    """Models learning at a time; by default as many as there are processors."""


def start(name: str, options: Options) -> Path:
    """Run a study, or what is left of it in the folder that the options name; its folder."""
    assert name == "repeat"
    return run(options.study, options.out, workers=options.workers)


def run(
    study: RepeatStudy, out: Path | None, *, workers: int | None = None, accept_edits: bool = False
) -> Path:  # fmt: skip
    """Learn every cell that `out` does not hold yet, then write table and plot there.

    Args:
        study: what to compare.
        out: folder of the study; by default the next free `runs/repeat-<n>`.
        workers: processes; by default one for each processor.
        accept_edits: whether cells are taken as they are, though they or the configuration were edited.

    Returns:
        The folder.

    Raises:
        Problem: when the folder holds something else, a file of it was edited, its cells were learned by another
            backend or instruction set that the environment does not name, a process died, or the disk refuses.
        BackendError, SettingError: when the environment asks for a backend that cannot be had.
    """
    check(study)
    if workers is not None and workers < 1:
        raise Problem(f"--workers must be at least 1, got {workers}", code=2)
    here = Arithmetic.here(torch.device("cpu"))
    folder, console = folder_of(study, out), Console(highlight=False)
    path = folder / "cells.jsonl"
    lines = whole_lines(path)
    with contextlib.closing(Metrics(path, sum(map(len, lines)))) as metrics:
        config = sealed(folder / "config.json")
        cells = [read_cell(line, number, path, config, accept_edits) for number, line in enumerate(lines, 1)]
        done = {(figures["model"], figures["steps"], figures["seed"]) for figures in cells}
        missing = [cell for cell in study.cells() if dataclasses.astuple(cell) not in done]
        if missing:
            check_arithmetic(here, cells, path)
        for figures in watched(console, len(cells), len(missing), learned(study, missing, workers)):
            figures["arithmetic"] = here.to_json()
            metrics.add({**figures, SEALS: {"config.json": config, "line": digest(json.dumps(figures).encode())}})
            metrics.sync()
            cells.append(figures)
        finish(study, cells, folder)
    console.print(f"\n{title(study)}", markup=False, soft_wrap=True)
    console.print(table(study, cells))
    console.print(f"\nTable, figures and plot are in {folder}", markup=False, soft_wrap=True)
    return folder


def resume(folder: Path, *, accept_edits: bool = False) -> Path:
    """Learn what is left of the study in a folder."""
    return run(stored(folder), folder, accept_edits=accept_edits)


def stored(folder: Path) -> RepeatStudy:
    """The study that a folder holds.

    Raises:
        Problem: when it holds none.
    """
    path = folder / "config.json"
    return from_json(read_text(path), path)


def folder_of(study: RepeatStudy, out: Path | None) -> Path:
    """The study's folder, with its configuration in it; one that holds the same study already is resumed."""
    if out is not None and (out / "config.json").exists():
        if stored(out) != study:
            raise Problem(f"{out} holds a study with other settings; give another --out")
        return out
    folder = made_folder("repeat", out)
    write(folder / "config.json", to_json(study).encode())
    return folder


def whole_lines(path: Path) -> list[bytes]:
    """The lines of a file that were written to their end; none when it is not there."""
    if not path.exists():
        return []
    return [line for line in read_bytes(path).splitlines(keepends=True) if line.endswith(b"\n")]


def read_cell(line: bytes, number: int, path: Path, config: str, accept_edits: bool) -> Figures:
    """The figures of a cell, of a line that knows its own digest and that of the configuration.

    Raises:
        Problem: the line is damaged, or it or the configuration was edited; earlier versions sealed neither.
    """
    figures: Figures = parsed(line, {"model": str, "steps": int, "seed": int}, path, number)
    seals = figures.pop(SEALS, {})
    if not accept_edits and seals:
        if seals.get("config.json") != config:
            raise edited(path.with_name("config.json"), path)
        if seals.get("line") != digest(json.dumps(figures).encode()):
            raise Problem(f"{path} has been edited in line {number}; put it back, or --accept-edits takes it as it is")
    return figures


def check_arithmetic(here: Arithmetic, cells: list[Figures], path: Path) -> None:
    """Compare what the cells in a file were computed by with what is here, as a run that is resumed does.

    Raises:
        Problem: it is another, and not asked for by name.
    """
    earlier = {Arithmetic.of(figures["arithmetic"], path) for figures in cells if "arithmetic" in figures}
    for arithmetic in sorted(earlier, key=str):
        here.go_on(arithmetic, path.parent)


def learned(study: RepeatStudy, cells: list[Cell], workers: int | None) -> Iterator[Figures]:
    """The figures of each cell, in the order in which they finish."""
    if not cells:
        return
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    pool = ProcessPoolExecutor(workers or processors(), context, initializer=leave_with_parent)
    try:
        for future in as_completed([pool.submit(learn, study, cell) for cell in cells]):
            yield future.result()
    except BrokenProcessPool as error:
        raise Problem("a process of the study died; the cells that are done are kept, start again to go on") from error
    finally:
        pool.shutdown(cancel_futures=True)


def leave_with_parent() -> None:
    """End this process when the one that started it has ended, even if it was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)  # sys.exit would end this thread alone

    threading.Thread(target=wait, daemon=True).start()


def watched(console: Console, done: int, left: int, cells: Iterator[Figures]) -> Iterator[Figures]:
    """The cells as they come, shown on the way: a bar on a terminal, lines elsewhere."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("repeat", total=done + left, completed=done)
        for figures in cells:
            yield figures
            bar.advance(task)
            if not console.is_terminal:
                cell = f"{figures['model']}, length {figures['steps']}, seed {figures['seed']}"
                result = f"{figures['right']:.1%} right after {figures['updates']} updates"
                console.print(f"{cell}: {result}", markup=False, soft_wrap=True)


def finish(study: RepeatStudy, cells: list[Figures], folder: Path) -> None:
    """Write figures, table and plot."""
    figures = {**versions(), "study": dataclasses.asdict(study), "table": summary(study, cells)}
    write(folder / "results.json", json.dumps(figures, indent=1).encode() + b"\n")
    write(folder / "table.md", markdown(study, cells).encode())
    write(folder / "repeat.png", plot(study, cells))
