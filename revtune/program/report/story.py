"""What a report tells of one folder, whatever it is of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Section = Literal["losses", "hyperparameters", "bits", "costs", "beside", "samples"]

Look = Literal["line", "dots", "steps", "dash", "dot", "faint"]
"""Of a line: plain, with its points, in steps, broken or dotted; faint is what lies behind a smoothed one."""

STEP = "step"
"""The title of an axis of updates, which a page can exchange for time where the lines know it."""


@dataclass(frozen=True)
class Axes:
    """What a chart shows; lines with equal axes, of all folders, share a chart.

    Attributes:
        section: of the page.
        title, x, y: of the chart and its axes.
        second: title of an axis on the right, for the lines that say so.
        log_x: whether x begins logarithmic.
        clip: whether y begins with its lower part, where first values are far above the others.
    """

    section: Section
    title: str
    y: str
    x: str = STEP
    second: str = ""
    log_x: bool = False
    clip: bool = False


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
        label: what the legend calls it.
        points: x and y.
        seconds: of training at each point, where they are known.
        group: lines of a group have a colour and are shown or hidden together; by default a line is its own.
        on_second: whether it belongs to the axis on the right.
    """

    label: str
    points: Sequence[tuple[float, float]]
    seconds: Sequence[float] = ()
    look: Look = "line"
    group: str = ""
    on_second: bool = False


@dataclass(frozen=True)
class Table:
    """A table of a section."""

    section: Section
    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Sample:
    """Text that a model wrote."""

    title: str
    text: str


@dataclass(frozen=True)
class Attended:
    """A translation, and how much each of its tokens attended to each source token, (T, S)."""

    source: str
    text: str
    across: Sequence[str]
    down: Sequence[str]
    weights: Sequence[Sequence[float]]


@dataclass
class Story:
    """What is told of one folder.

    Attributes:
        folder, name: where it is, and what the page calls it.
        kind: what it is, in a few words.
        many: whether its lines are of contestants, each in a colour of its own, and not of one run.
        facts: what it came to, by heading.
        lines: by chart.
        notes: sentences by section, above all on what is missing.
        settings, environment: values by name.
        commands: that repeat it, go on with it, or use it.
    """

    folder: Path
    name: str
    kind: str
    many: bool = False
    facts: dict[str, str] = field(default_factory=dict)
    lines: list[tuple[Axes, Line]] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    translations: list[Attended] = field(default_factory=list)
    notes: list[tuple[Section, str]] = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)

    def draw(self, axes: Axes, line: Line) -> None:
        """Add a line to a chart, if it has a point."""
        if line.points:
            self.lines.append((axes, line))

    def note(self, section: Section, sentence: str) -> None:
        """Say something in a section."""
        self.notes.append((section, sentence))

    def has(self, section: Section) -> bool:
        """Whether a section has anything of this folder to show."""
        return any(axes.section == section for axes, _ in self.lines) or any(
            table.section == section for table in self.tables
        )
