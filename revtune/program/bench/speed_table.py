"""The figures of `revtune bench speed` as tables: ratios of turns of one round, beside their goals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from revtune.program.bench.contestants import Contestant
from revtune.program.bench.display import Display, thread_count
from revtune.program.bench.goals import Goal
from revtune.program.bench.matmul_floor import products_of
from revtune.program.bench.speed_cases import GOALS, KINDS, PAIRS, CaseKind, SpeedCase, sizes_of
from revtune.program.bench.speed_lines import Line, lines
from revtune.program.bench.worker import Record

HEADINGS = ("cell", "ratio", "range", "goal", "ckpt", "mm", "own mm")

NOTE = (
    "Ratio: time of RevGRU over nn.GRU's, or of RevLSTM over nn.LSTM's, median over rounds; range: of a round's, least "
    "to largest. Goal: the ratio that will do, behind it the one within reach. Ckpt: torch's layer under "
    "torch.utils.checkpoint in sqrt(T) segments, over torch's layer as it is; mm: the matrix products of torch's layer "
    "alone by aten::mm, likewise. Own mm: the reversible layer over those it would need if it stored its gates."
)


@dataclass(frozen=True)
class Comparison:
    """A reversible layer beside torch's at one case.

    Attributes:
        record: of the case, as `speed.timed` gives it.
        ours, theirs: the two cells.
    """

    record: Record
    ours: str
    theirs: str

    @property
    def case(self) -> SpeedCase:
        """What was measured."""
        return SpeedCase.of(self.record)

    @property
    def goal(self) -> Goal | None:
        """The largest ratio that will do, if a goal is set."""
        return GOALS.get((self.case.kind, self.case.shape, self.ours))

    @property
    def verdict(self) -> str:
        """How the median ratio compares with the goal; empty without one."""
        return self.goal.verdict(median(self.ratios())) if self.goal else ""

    def ratios(self, above: str = "", below: str = "") -> list[float]:
        """`ratios` of two contestants of the record; by default ours over theirs."""
        return ratios(self.record["seconds"], above or self.ours, below or self.theirs)


def ratios(seconds: dict[str, list[float]], above: str, below: str) -> list[float]:
    """The time of one contestant over another's, round by round; none if one of them did not take part."""
    if above not in seconds or below not in seconds:
        return []
    return [a / b for a, b in zip(seconds[above], seconds[below], strict=True)]


def comparisons(records: list[Record]) -> Iterator[Comparison]:
    """The comparisons of each record, one for each reversible cell."""
    return (Comparison(record, ours, theirs) for record in records for ours, theirs in PAIRS)


def row(pair: Comparison) -> tuple[str, ...]:
    """The table's cells of a comparison."""
    ratios, theirs = pair.ratios(), pair.theirs
    beside = (
        pair.ratios(Contestant(cell=theirs, segments=True).name, theirs),
        pair.ratios(products_of(theirs), theirs),
        pair.ratios(pair.ours, products_of(pair.ours)),
    )
    ratio = (f"{median(ratios):.2f}", f"{min(ratios):.2f}-{max(ratios):.2f}")
    goal = f"{pair.goal} {pair.verdict}" if pair.goal else ""
    cell = theirs.removeprefix("nn.")
    return pair.case.sizes, cell, *ratio, goal, *(f"{median(other):.2f}" if other else "" for other in beside)


def show(display: Display, kind: CaseKind, threads: int, records: list[Record]) -> None:
    """Show the table of a kind; columns that would be empty are left out."""
    cells = [row(pair) for pair in comparisons(records)]
    kept = [i for i in range(len(HEADINGS)) if any(line[1 + i] for line in cells)]
    display.table(
        "Reversible over torch's",
        f"{KINDS[kind]}, {thread_count(threads)}; {sizes_of(kind)}",
        [HEADINGS[i] for i in kept],
        [(line[0], *(line[1 + i] for i in kept)) for line in cells],
    )


def show_lines(display: Display, records: list[Record]) -> None:
    """Show how straight cost is in length, and how steep beside nn.GRU's."""
    fitted = list(lines(records))
    plain = {(line.kind, line.threads, line.layers): line.slope for line in fitted if line.name == "nn.GRU"}
    slopes = [line.slope / plain[line.kind, line.threads, line.layers] for line in fitted]
    cells = [
        (_label(line), f"{slope:.2f}", f"{line.deviation:.0%}") for line, slope in zip(fitted, slopes, strict=True)
    ]
    display.table("Time against length as a straight line", "slope of nn.GRU = 1", ("slope", "off at most"), cells)


def _label(line: Line) -> str:
    layers = ", 2 layers" if line.layers == 2 else ""
    return f"{line.kind}, {thread_count(line.threads)}{layers}: {line.name}"


def conclude(display: Display, records: list[Record], paths: list[Path]) -> None:
    """Say what the columns are, how many goals are met, which backend ran, and where the figures went."""
    display.say(NOTE)
    if goals := [(pair.goal, pair.verdict) for pair in comparisons(records) if pair.goal]:
        met = sum(verdict != "missed" for _, verdict in goals)
        reached = [verdict == "both" for goal, verdict in goals if goal.reach]
        more = f"{sum(reached)} of {len(reached)} where more is within reach attain it"
        display.say(f"Goals: {met} of {len(goals)} met; {more}.")
    display.say(f"{backends(records)}.")
    display.tell("Figures and plots: " + ", ".join(map(str, paths)))


def backends(records: list[Record]) -> str:
    """Which backend each reversible layer ran on."""
    ran = {cell: name for record in records for cell, name in record["backend"].items()}
    return ", ".join(f"{cell} ran on the {name} backend" for cell, name in ran.items())
