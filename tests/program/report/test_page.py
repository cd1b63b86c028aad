"""The page as text: nothing of a run is markup, nothing is fetched, and however much there is, it stays small."""

import json
import math
import re
from pathlib import Path

from revtune.program.report import page
from revtune.program.report.page import LARGEST
from revtune.program.report.story import Attended, Axes, Line, Sample, Story, Table

EVIL = "</script><script>alert('&')</script><img src=x onerror=alert(1)>"


def story(name: str, points: int = 9) -> Story:
    told = Story(Path("runs") / name, name, f"kind {name}", facts={"best": name}, settings={"lr": name, "same": "1"})
    line = Line(name, [(x, math.sin(x)) for x in range(points)], [float(x) for x in range(points)])
    told.draw(Axes("losses", "Loss", name), line)
    told.draw(Axes("hyperparameters", name, name, second="scale"), Line("scale", [(0, 1.0)], on_second=True))
    told.tables.append(Table("losses", name, ["", name], [[name, "1"]]))
    told.samples.append(Sample(name, name))
    told.translations.append(Attended(name, name, [name, "b"], [name], [[0.5, 0.5]]))
    told.note("bits", f"{name}.")
    told.environment, told.commands = {"torch": name}, [f"revtune train {name}"]
    return told


def own(written: str) -> str:
    """The page without Plotly's script."""
    assert page.plotly() in written
    return written.replace(page.plotly(), "")


def test_nothing_of_a_run_is_markup() -> None:
    written = own(page.page([story(EVIL), story("b")]))
    assert "alert(" in written and "<img" not in written and "<script>alert" not in written
    assert len(re.findall("<script", written)) == 3 == len(re.findall("</script>", written))
    data = re.search(r'<script type="application/json" id="figures">(.*?)</script>', written, re.S)
    assert data
    figures = json.loads(data[1])
    names = [line["name"] for figure in figures.values() for line in figure["data"] if "name" in line]
    assert names and not any("<" in name for name in names)  # Plotly reads markup in them
    titles = json.dumps([figure["layout"] for figure in figures.values()])
    assert "<script" not in titles and "<img" not in titles


def test_a_page_lets_no_script_but_its_own_run_and_fetches_nothing() -> None:
    written = page.page([story("a")])
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', written)
    assert policy and policy[1].startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-inline" not in policy[1].partition("style-src")[0] and "http" not in policy[1]
    assert not re.findall(r"""(?:src|href)=["'](?!#|data:)""", own(written)) and "http" not in own(written).replace(
        "http-equiv", ""
    )


def test_a_page_stays_below_its_size_however_much_there_is() -> None:
    stories = [story(f"run-{number}", points=3000) for number in range(30)]
    for told in stories:
        for number in range(5):
            line = Line(f"more {number}", [(x, math.cos(x * number)) for x in range(3000)])
            told.draw(Axes("losses", f"more {number}", "y"), line)
    written = page.page(stories)
    assert len(written.encode()) < LARGEST and written.count("more 4") >= 1


def test_what_is_no_number_is_a_gap() -> None:
    told = Story(Path("a"), "a", "")
    told.draw(Axes("losses", "Loss", "nats"), Line("a", [(0, math.nan), (1, math.inf), (2, 1.0)]))
    assert '"y":[null,null,1.0]' in page.page([told])


def test_settings_that_differ_come_first() -> None:
    written = page.page([story("a"), story("b")])
    settings = written[written.index('id="settings"') :]
    assert settings.index("<td>lr</td>") < settings.index("<details>") < settings.index("<td>same</td>")
    one = page.page([story("a")])
    assert "No setting differs" not in one and "<details>" in one


def test_a_sentence_that_all_say_is_said_once() -> None:
    stories = [story("a"), story("b")]
    for told in stories:
        told.note("costs", "Memory is missing.")
    stories[0].note("costs", "Speed too.")
    written = page.page(stories)
    assert written.count("Memory is missing.") == 1 and "a: Speed too." in written and "b: b." in written
