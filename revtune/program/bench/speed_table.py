"""The figures of `revtune bench speed` as tables: ratios of turns of one round, and how they stand to the goals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from revtune.program.bench.contestants import Contestant
from revtune.program.bench.matmul_floor import alone
from revtune.program.bench.speed_cases import GOALS, KINDS, PAIRS, Case, Goal, Kind, sizes_of
from revtune.program.bench.speed_lines import Line, lines
from revtune.program.bench.tables import Page

Record = dict[str, Any]


HEADINGS = ("cell", "ratio", "range", "goal", "ckpt", "mm", "own mm")


NOTE = (
    "Ratio: time of RevGRU over nn.GRU's, or of RevLSTM over nn.LSTM's, median over rounds; range: of a round's, least "
    "to largest. Goal: the ratio that will do, behind it the one within reach. Ckpt: torch's layer under "
    "torch.utils.checkpoint in sqrt(T) segments, over torch's layer as it is; mm: the matrix products of torch's layer "
    "alone by aten::mm, likewise. Own mm: the reversible layer over those it would need if it stored its gates."
)


@dataclass(frozen=True)
class Pair:
    """A reversible layer beside torch's at one case.

    Attributes:
        record: as `revtune.speed.timed` gave it.
        ours, theirs: the two cells.
    """

    record: Record
    ours: str
    theirs: str

    @property
    def case(self) -> Case:
        """What was measured."""
        return Case.of(self.record)

    @property
    def goal(self) -> Goal | None:
        """What we have set ourselves."""
        return GOALS.get((self.case.kind, self.case.shape, self.ours))

    @property
    def verdict(self) -> str:
        """How it stands to the goal; empty without one."""
        return self.goal.verdict(median(self.ratios())) if self.goal else ""

    def ratios(self, one: str = "", other: str = "") -> list[float]:
        """One's time over another's, round by round (none if one is missing); ours over theirs by default."""
        return ratios(self.record["seconds"], one or self.ours, other or self.theirs)


def ratios(seconds: dict[str, list[float]], one: str, other: str) -> list[float]:
    """One's time over another's, round by round; none if one is missing."""
    if one not in seconds or other not in seconds:
        return []
    return [a / b for a, b in zip(seconds[one], seconds[other], strict=True)]


def pairs(records: list[Record]) -> Iterator[Pair]:
    """The two pairs of each record."""
    return (Pair(record, ours, theirs) for record in records for ours, theirs in PAIRS)


def row(pair: Pair) -> tuple[str, ...]:
    """The cells of a pair."""
    found, theirs = pair.ratios(), pair.theirs
    beside = (
        pair.ratios(Contestant(cell=theirs, segments=True).name, theirs),
        pair.ratios(alone(theirs), theirs),
        pair.ratios(pair.ours, alone(pair.ours)),
    )
    ratio = (f"{median(found):.2f}", f"{min(found):.2f}-{max(found):.2f}")
    goal = f"{pair.goal} {pair.verdict}" if pair.goal else ""
    cell = theirs.removeprefix("nn.")
    return pair.case.sizes, cell, *ratio, goal, *(f"{median(ratios):.2f}" if ratios else "" for ratios in beside)


def on(threads: int) -> str:
    """A number of threads in words."""
    return f"{threads} thread" + "s" * (threads > 1)


def show(page: Page, kind: Kind, threads: int, records: list[Record]) -> None:
    """The table of a kind; columns that would be empty are left out."""
    cells = [row(pair) for pair in pairs(records)]
    kept = [i for i in range(len(HEADINGS)) if any(one[1 + i] for one in cells)]
    page.table(
        "Reversible over torch's",
        f"{KINDS[kind]}, {on(threads)}; {sizes_of(kind)}",
        [HEADINGS[i] for i in kept],
        [(one[0], *(one[1 + i] for i in kept)) for one in cells],
    )


def show_lines(page: Page, records: list[Record]) -> None:
    """How straight cost is in length, and how steep beside nn.GRU's."""
    found = list(lines(records))
    plain = {(one.kind, one.threads, one.layers): one.slope for one in found if one.name == "nn.GRU"}
    cells = [
        (_label(one), f"{one.slope / plain[one.kind, one.threads, one.layers]:.2f}", f"{one.off:.0%}") for one in found
    ]
    page.table("Time against length as a straight line", "slope of nn.GRU = 1", ("slope", "off at most"), cells)


def _label(one: Line) -> str:
    layers = ", 2 layers" if one.layers == 2 else ""
    return f"{one.kind}, {on(one.threads)}{layers}: {one.name}"


def conclude(page: Page, records: list[Record], places: list[Path]) -> None:
    """What the columns are, how many goals are met, which backend ran, and where the figures went."""
    page.say(NOTE)
    if goals := [(pair.goal, pair.verdict) for pair in pairs(records) if pair.goal]:
        met = sum(verdict != "missed" for _, verdict in goals)
        reached = [verdict == "both" for goal, verdict in goals if goal.reach]
        more = f"{sum(reached)} of {len(reached)} where more is within reach attain it"
        page.say(f"Goals: {met} of {len(goals)} met; {more}.")
    page.say(f"{backends(records)}.")
    page.tell("Figures and plots: " + ", ".join(map(str, places)))


def backends(records: list[Record]) -> str:
    """Which backend each reversible layer ran on."""
    ran = {cell: name for record in records for cell, name in record["backend"].items()}
    return ", ".join(f"{cell} ran on the {name} backend" for cell, name in ran.items())
