"""A study of the repeat task as it runs: cells in parallel, each kept as soon as it is done, then a table and a plot.

    config.json     the study
    cells.jsonl     a line for each cell that is done
    results.json    command, versions and the table
    table.md        the table to read
    repeat.png      the plot

Started again in its folder, a study learns the cells that are not there yet.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import multiprocessing
import os
import platform
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import revtune as rt
from revtune.problem import Problem
from revtune.repeat import Cell, Study, check, from_json, learn
from revtune.repeat_report import plot, summary, table
from revtune.run import RUNS, Metrics, write


def run(study: Study, out: Path | None, *, workers: int | None = None) -> Path:
    """Learn every cell that `out` does not hold yet, then write table and plot there.

    Args:
        study: what to compare.
        out: folder of the study; by default the next free `runs/repeat-<n>`.
        workers: processes; by default one for each processor.

    Returns:
        The folder.

    Raises:
        Problem: when the folder holds something else, a process died, or the disk refuses.
    """
    check(study)
    folder = folder_of(study, out)
    path = folder / "cells.jsonl"
    done = list(cells_of(path))
    console = Console(highlight=False)
    with contextlib.closing(Metrics(path, sum(len(line) + 1 for line in done))) as kept:
        cells = [json.loads(line) for line in done]
        missing = [cell for cell in study.cells() if not any(same(cell, one) for one in cells)]
        with console.status("") as status:
            for one in learned(study, missing, workers or len(os.sched_getaffinity(0))):
                kept.add(one)
                kept.sync()
                cells.append(one)
                status.update(f"{len(cells)} of {len(cells) + len(missing) - len(cells) + len(done)} cells")
                if not console.is_terminal:
                    print(progress(one), flush=True)
        finish(study, cells, folder)
    console.print(table(study, cells), markup=False)
    console.print(f"\nTable, figures and plot: {folder}", markup=False, soft_wrap=True)
    return folder
