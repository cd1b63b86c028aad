"""The page: one file of HTML with its style, its script and Plotly's inside, which fetches nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from functools import cache
from importlib import resources
from typing import get_args

import revtune as rt
from revtune.program.report.charts import Chart, charts
from revtune.program.report.story import Section, Story, Table

MARK = '<meta name="generator" content="revtune report">'
"""By which a report knows another, which it may be written over."""

LARGEST = 6_000_000
"""Bytes of a page: lines have fewer points where it would be larger."""

POINTS = (800, 400, 200, 100, 50, 20)
"""Of a line, at most; the first number with which a page is no larger."""

HEADINGS: dict[Section, str] = {
    "losses": "Losses", "hyperparameters": "Hyperparameters", "bits": "Bits stored",
    "costs": "Speed, memory and learning rate", "beside": "Beside torch's own layer",
    "samples": "Samples and translations",
}  # fmt: skip


def page(stories: Sequence[Story]) -> str:
    """The page of some folders.

    Raises:
        ImportError: Plotly is not installed.
    """
    for most in POINTS:
        written = written_with(stories, charts(stories, most))
        if len(written.encode("utf-8", "replace")) < LARGEST:
            break
    return written


def written_with(stories: Sequence[Story], drawn: Sequence[Chart]) -> str:
    """The page with these charts."""
    scripts = (plotly(), _file("page.js"))
    title = "revtune: " + ", ".join(story.name for story in stories)
    figures = {f"plot-{number}": chart.figure for number, chart in enumerate(drawn)}
    # no "<" can end the element early, whatever a run is called
    data = json.dumps(figures, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    body = "\n".join(sections(stories, drawn))
    written = (
        f"by revtune {rt.__version__} on {date.today().isoformat()}; nothing on this page is fetched from elsewhere"
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy(scripts)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
{MARK}
<link rel="icon" href="data:,">
<title>{escaped(title)}</title>
<style>
{_file("page.css")}</style>
</head>
<body>
{body}
<footer>Written {escaped(written)}.</footer>
<script type="application/json" id="figures">{data}</script>
{"".join(f"<script>{script}</script>" for script in scripts)}
</body>
</html>
"""


def policy(scripts: Iterable[str]) -> str:
    """What a browser may do: run these scripts and no other, and fetch nothing."""
    known = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in scripts
    )
    return f"default-src 'none'; script-src {known}; style-src 'unsafe-inline'; img-src data: blob:"


@cache
def plotly() -> str:
    """Plotly's script."""
    from plotly.offline import get_plotlyjs  # an extra

    return str(get_plotlyjs()).replace("\r\n", "\n")  # as a browser reads it, or its digest would be another


@cache
def _file(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")


def escaped(text: object) -> str:
    """Text in which nothing is markup."""
    return html.escape(str(text))


def sections(stories: Sequence[Story], drawn: Sequence[Chart]) -> Iterator[str]:
    """The page's parts from top to bottom."""
    yield f"<h1>{escaped(', '.join(story.name for story in stories))}</h1>"
    yield "<noscript><p>The charts of this page need JavaScript; tables and text do not.</p></noscript>"
    links = [*((key, HEADINGS[key]) for key in get_args(Section)), ("settings", "Configuration")]
    links += [("environment", "Environment"), ("commands", "Commands")]
    yield "<nav>" + "".join(f'<a href="#{key}">{escaped(text)}</a>' for key, text in links) + "</nav>"
    yield by_name({story.name: {"kind": story.kind, **story.facts} for story in stories})
    for section in get_args(Section):
        yield f'<h2 id="{section}">{escaped(HEADINGS[section])}</h2>'
        yield from list(of_section(section, stories, drawn)) or ['<p class="note">Nothing is recorded.</p>']
    yield '<h2 id="settings">Configuration</h2>'
    yield from configuration(stories)
    yield '<h2 id="environment">Environment</h2>'
    yield by_name({story.name: story.environment for story in stories})
    yield '<h2 id="commands">Commands</h2>'
    for story in stories:
        yield from [f"<h3>{escaped(story.name)}</h3>"] if len(stories) > 1 else []
        yield f"<pre>{escaped(chr(10).join(story.commands))}</pre>"


def of_section(section: Section, stories: Sequence[Story], drawn: Sequence[Chart]) -> Iterator[str]:
    """Charts, tables and texts of a section, and what is said of those that are missing."""
    if own := [(number, chart) for number, chart in enumerate(drawn) if chart.section == section]:
        yield f'<div class="charts">{"".join(figure(f"plot-{number}", chart) for number, chart in own)}</div>'
    several = len(stories) > 1
    for story in stories:
        for one in story.tables:
            if one.section == section:
                yield table(caption(story, one, several=several), one.headings, one.rows, "figures")
        for sample in story.samples if section == "samples" else []:
            yield f"<h3>{escaped(f'{story.name}: {sample.title}' if several else sample.title)}</h3>"
            yield f"<pre>{escaped(sample.text)}</pre>"
    yield from notes(section, stories)


def caption(story: Story, one: Table, *, several: bool) -> str:
    """A table's caption, with whose it is."""
    return f"{story.name}: {one.caption}" if several else one.caption


def notes(section: Section, stories: Sequence[Story]) -> Iterator[str]:
    """The sentences of a section, each once, with whose they are unless all say them."""
    said: dict[str, list[str]] = {}
    for story in stories:
        for where, sentence in story.notes:
            if where == section:
                said.setdefault(sentence, []).append(story.name)
    for sentence, names in said.items():
        whose = "" if len(names) == len(stories) else f"{', '.join(names)}: "
        yield f'<p class="note">{escaped(whose + sentence)}</p>'


def figure(name: str, chart: Chart) -> str:
    """A chart's place, with its switches."""
    kinds = [("y", "log y"), ("x", "log x")] if chart.switches else []
    kinds += [("time", "time")] if chart.timed else []
    pressed = {"x": chart.figure["layout"]["xaxis"].get("type") == "log"}
    buttons = "".join(
        f'<button type="button" data-plot="{name}" data-axis="{axis}" '
        f'aria-pressed="{"true" if pressed.get(axis) else "false"}">{text}</button>'
        for axis, text in kinds
    )
    head = f'<figcaption><h3>{escaped(chart.title)}</h3><span class="switches">{buttons}</span></figcaption>'
    return f'<figure>{head}<div class="plot" id="{name}" role="img" aria-label="{escaped(chart.title)}"></div></figure>'


def configuration(stories: Sequence[Story]) -> Iterator[str]:
    """All settings; of several folders, those first that differ."""
    columns = {story.name: story.settings for story in stories}
    names = dict.fromkeys(name for settings in columns.values() for name in settings)
    differing = [name for name in names if len({settings.get(name) for settings in columns.values()}) > 1]
    if len(stories) > 1:
        yield by_name(columns, differing) if differing else '<p class="note">No setting differs.</p>'
    yield f"<details><summary>All {len(names)} settings</summary>{by_name(columns)}</details>"


def by_name(columns: dict[str, dict[str, str]], names: Iterable[str] | None = None) -> str:
    """A table of values by name, a column for each folder."""
    names = names or dict.fromkeys(name for column in columns.values() for name in column)
    rows = [[name, *(column.get(name, "") for column in columns.values())] for name in names]
    return table("", ["", *columns] if len(columns) > 1 else [], rows, "named")


def table(caption: str, headings: Sequence[str], rows: Iterable[Sequence[str]], kind: str) -> str:
    """A table that scrolls by itself where the page is too narrow for it."""
    over = f"<caption>{escaped(caption)}</caption>" if caption else ""
    head = f"<thead><tr>{cells('th', headings)}</tr></thead>" if headings else ""
    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f'<div class="table"><table class="{kind}">{over}{head}<tbody>{body}</tbody></table></div>'


def cells(tag: str, texts: Iterable[str]) -> str:
    """The cells of a row."""
    return "".join(f"<{tag}>{escaped(text)}</{tag}>" for text in texts)
