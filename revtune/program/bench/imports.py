"""`revtune bench imports`: what it costs to import revtune, or to ask the program for help, beside importing torch.

Each is a fresh process, and they take turns. Seconds are those that the processor gave these processes, on whatever
other programs it was busy besides. A round that does not count leaves everything on disk as bytecode.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from statistics import median

from revtune.program.bench.display import Display, Markdown, Terminal
from revtune.program.bench.goals import Goal
from revtune.program.bench.measuring import check_turns, turns
from revtune.program.errors import Problem
from revtune.program.files import check_output, drafts, write
from revtune.program.machine import processor, processors, versions

BASE = "import torch"
"""What the others are measured against."""

CONTESTANTS = {
    BASE: ("-c", "import torch"),
    "import revtune": ("-c", "import revtune"),
    "revtune --help": ("-m", "revtune", "--help"),
}
"""What Python is called with."""

GOALS = {"import revtune": Goal(1.1), "revtune --help": Goal(1.3)}


def imports(*, rounds: int = 9, markdown: bool = False, out: Path = Path("runs/imports.json")) -> None:
    """Processor time of importing revtune, and of its help, over that of importing torch: about a minute.

    Args:
        rounds: of which the median is taken, at least 7.
        markdown: print a table for a README.
        out: file that the figures go to as JSON.
    """
    if not hasattr(os, "wait4"):
        raise Problem(
            "revtune bench imports reads the processor time of other processes, which this system does not tell"
        )
    check_turns((1,), rounds)
    check_output(out)
    display = Markdown() if markdown else Terminal()
    with drafts(out) as (figures,), display.measuring((1 + rounds) * len(CONTESTANTS)):
        seconds = measured(rounds, display)
        facts = {**versions(), "processor": processor(), "processors": processors(), "rounds": rounds}
        write(figures, json.dumps({**facts, "seconds": seconds}, indent=1).encode())
    rows = [row_of(name, seconds) for name in CONTESTANTS]
    display.table("Imports", "fresh processes", ("seconds", f"over {BASE}", "range", "goal"), rows)
    display.say("Seconds and ratio: medians over rounds; range: of a round's ratio, least to largest.")
    display.tell(f"Figures: {out}")


def measured(rounds: int, display: Display) -> dict[str, list[float]]:
    """Seconds by contestant and round."""

    def shown(name: str) -> None:
        with display.waiting(name):
            start(CONTESTANTS[name])

    steps = {name: partial(shown, name) for name in CONTESTANTS}
    for step in steps.values():
        step()
    return turns(steps, rounds, clock=children_time)


def start(arguments: tuple[str, ...]) -> None:
    """Run a fresh Python that may write bytecode, and wait for its end."""
    surroundings = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run([sys.executable, *arguments], env=surroundings, stdout=subprocess.DEVNULL, check=True)


def children_time() -> float:
    """Seconds of the processor that processes have had that this one waited for."""
    times = os.times()
    return times.children_user + times.children_system


def row_of(name: str, seconds: dict[str, list[float]]) -> tuple[str, ...]:
    """The table's row of a contestant."""
    ratios = [own / base for own, base in zip(seconds[name], seconds[BASE], strict=True)]
    middle, goal = median(ratios), GOALS.get(name)
    compared = f"{goal} {goal.verdict(middle)}" if goal else ""
    return name, f"{median(seconds[name]):.2f}", f"{middle:.2f}", f"{min(ratios):.2f}-{max(ratios):.2f}", compared
