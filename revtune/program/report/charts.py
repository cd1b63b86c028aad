"""Charts as Plotly draws them: plain data, whose colours of text and grid are the page's."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from revtune.program.report.metrics import is_number, thinned
from revtune.program.report.story import STEP, Attended, Axes, Line, Section, Story

COLOURS = (
    "#2f84c6", "#d9772b", "#25a07a", "#c2559d", "#b08d1e", "#7d6fd0", "#3fa9c9", "#cf4f5b", "#7f9a2f", "#8d8d8d",
    "#a8683f", "#5b8f8a",
)  # fmt: skip
"""Of middling lightness, to be told from a white page as from a dark one."""

LOOKS: dict[str, dict[str, Any]] = {
    "line": {}, "dots": {"mode": "lines+markers"}, "steps": {"line": {"shape": "hv"}},
    "dash": {"line": {"dash": "dash"}}, "dot": {"line": {"dash": "dot"}},
    "faint": {"line": {"width": 1}, "opacity": 0.3, "showlegend": False, "hoverinfo": "skip"},
}  # fmt: skip

UNIFIED = 8
"""Lines that are told of together where the pointer is, at most; of more, the nearest."""

SHARE = 0.15
"""Of the points of clipped lines, the highest, which are above what is shown at first."""

WORD = 22
"""Pixels of a row of an attention picture."""


@dataclass(frozen=True)
class Chart:
    """A chart of a page.

    Attributes:
        section, title: where it stands, and under which heading.
        figure: "data" and "layout" as Plotly takes them.
        timed: whether each line's "customdata" are seconds, to be shown in place of steps.
        switches: whether axes may be logarithmic.
    """

    section: Section
    title: str
    figure: dict[str, Any]
    timed: bool = False
    switches: bool = True


def charts(stories: Sequence[Story], most: int) -> list[Chart]:
    """The charts of some folders, lines with equal axes together, each line of at most so many points."""
    together: dict[Axes, list[tuple[Story, Line]]] = {}
    for story in stories:
        for axes, line in story.lines:
            together.setdefault(axes, []).append((story, line))
    several = len(stories) > 1
    # a run that stands beside others has a colour in all charts
    known = {story.name: COLOURS[number % len(COLOURS)] for number, story in enumerate(stories)} if several else {}
    drawn = [chart(axes, lines, dict(known), several=several, most=most) for axes, lines in together.items()]
    pictures = [(story, one) for story in stories for one in story.translations]
    return [*drawn, *(attention(story.name, one, several=several) for story, one in pictures)]


def chart(
    axes: Axes, lines: Sequence[tuple[Story, Line]], colours: dict[str, str], *, several: bool, most: int
) -> Chart:  # fmt: skip
    """A chart of lines; `colours` by group, to which others are added."""
    timed = axes.x == STEP and all(line.seconds for _, line in lines)
    data: list[dict[str, Any]] = []
    for story, line in lines:
        group = group_of(story, line, several=several)
        colour = colours.setdefault(group, COLOURS[len(colours) % len(COLOURS)])
        whose = f"{story.name}: " if several else ""
        data.append(trace(whose + line.label, line, colour, most, timed=timed))
        if line.group and story.many:  # shown and hidden with the others of its group, named once
            first = all(other.get("legendgroup") != group for other in data[:-1])
            data[-1] |= {"legendgroup": group, "showlegend": first, "name": escaped(whose + line.group)}
    return Chart(axes.section, axes.title, {"data": data, "layout": layout(axes, data)}, timed=timed)


def group_of(story: Story, line: Line, *, several: bool) -> str:
    """What has a colour of its own: a contestant or a line; where several runs are side by side, each run."""
    if several and not story.many:
        return story.name
    return f"{story.name}: {line.group or line.label}" if several else line.group or line.label


def trace(name: str, line: Line, colour: str, most: int, *, timed: bool) -> dict[str, Any]:
    """A line as Plotly takes it."""
    kept = thinned(line.points, most)
    look = LOOKS[line.look]
    found: dict[str, Any] = {
        "type": "scatter", "mode": "lines", "name": escaped(name),
        "x": [rounded(line.points[at][0], 9) for at in kept], "y": [rounded(line.points[at][1]) for at in kept],
        "hovertemplate": f"%{{y:.5~g}}<extra>{escaped(name)}</extra>", **look,
        "line": {"color": colour, "width": 1.8, **look.get("line", {})}, "marker": {"color": colour, "size": 5},
    }  # fmt: skip
    if timed:
        found["customdata"] = [rounded(line.seconds[at]) for at in kept]
    if line.on_second:
        found["yaxis"] = "y2"
    if "hoverinfo" in found:
        del found["hovertemplate"]
    return found


def escaped(text: str) -> str:
    """Text in which Plotly, which reads some markup, finds none."""
    return html.escape(text, quote=False)


def rounded(value: float, digits: int = 5) -> float | None:
    """A number in few digits; nothing for what is none, as JSON has no name for it."""
    return float(f"{value:.{digits}g}") if is_number(value) else None


def layout(axes: Axes, data: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Axes, legend and hovering; colours are the page's."""
    across: dict[str, Any] = {"title": {"text": axes.x}, "type": "log" if axes.log_x else "linear"}
    up: dict[str, Any] = {"title": {"text": escaped(axes.y)}}
    if axes.clip and (shown := lower_part(data)):
        up["range"] = shown
    found = {"xaxis": across, "yaxis": up, "hovermode": "x unified" if len(data) <= UNIFIED else "closest"}
    found["showlegend"] = sum(line.get("showlegend", True) for line in data) > 1
    if any(line.get("yaxis") == "y2" for line in data):
        second: dict[str, Any] = {"title": {"text": axes.second}, "overlaying": "y", "side": "right"}
        found["yaxis2"] = {**second, "showgrid": False, "rangemode": "tozero", "tickmode": "auto"}
    return found


def lower_part(data: Sequence[dict[str, Any]]) -> list[float]:
    """The range of y without the highest values; none where there are too few."""
    values = sorted(value for line in data for value in line["y"] if value is not None)
    if len(values) < 10:
        return []
    low, high = values[0], values[int((1 - SHARE) * len(values))]
    return [low - 0.05 * (high - low), high]


def attention(name: str, one: Attended, *, several: bool) -> Chart:
    """Where a translation looked: its tokens down, the source's across."""
    across, down = ([escaped(word) for word in words] for words in (one.across, one.down))
    told = [[f"{word} from {source}" for source in across] for word in down]
    data = {
        "type": "heatmap", "z": [[rounded(weight, 3) for weight in row] for row in one.weights], "text": told,
        "hovertemplate": "%{text}: %{z:.2f}<extra></extra>", "showscale": False, "zmin": 0, "zmax": 1,
        "xgap": 1, "ygap": 1, "colorscale": [[0, "rgba(47,132,198,0.06)"], [1, "rgba(47,132,198,1)"]],
    }  # fmt: skip
    named: dict[str, Any] = {"showgrid": False, "zeroline": False, "ticks": ""}
    shape = {
        "xaxis": {**named, "tickvals": list(range(len(across))), "ticktext": across, "side": "top", "tickangle": -50},
        "yaxis": {**named, "tickvals": list(range(len(down))), "ticktext": down, "autorange": "reversed"},
        "height": 130 + WORD * len(down), "margin": {"l": 90, "r": 20, "t": 90, "b": 10}, "hovermode": "closest",
    }  # fmt: skip
    title = f"{one.source} → {one.text}"
    title = f"{name}: {title}" if several else title
    return Chart("samples", title, {"data": [data], "layout": shape}, switches=False)
