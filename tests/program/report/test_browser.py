"""Pages in a browser: their charts are there, the console stays quiet, and nothing is asked of the network."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from revtune.program.cli.main import main
from revtune.program.report import page
from tests import chromium
from tests.chromium import Browser
from tests.program.report.test_page import EVIL, story

KEPT = Path(__file__).parents[3] / "benchmarks" / "results"

pytestmark = [pytest.mark.slow, pytest.mark.skipif(chromium.CHROMIUM is None, reason=chromium.MISSING)]

CURVES = "[...document.querySelectorAll('.plot')].map((plot) => plot.querySelectorAll('.trace, .hm').length)"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium.browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs and a contest side by side."""
    out = tmp_path_factory.mktemp("several") / "page.html"
    folders = [KEPT / "joint/lstm-seed-1", KEPT / "joint/revlstm-seed-1", KEPT / "compare/fashion"]
    assert main(["report", *map(str, folders), "--out", str(out)]) == 0
    return out


def is_quiet(browser: Browser) -> bool:
    assert browser.complaints == []
    assert browser.requests == []
    return True


@pytest.mark.parametrize("kept", ["joint/revlstm-seed-1", "compare/cifar10", "repeat", "output_dropout"])
def test_charts_are_drawn(kept: str, browser: Browser, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    assert main(["report", str(KEPT / kept), "--out", str(out)]) == 0
    browser.open(out)
    curves = browser.run(CURVES)
    assert curves and all(curves) and is_quiet(browser)


def test_nothing_of_a_run_runs(browser: Browser, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    out.write_text(page.page([story(EVIL), story("b")]))
    browser.open(out)
    assert all(browser.run(CURVES)) and is_quiet(browser)
    assert browser.run("document.querySelectorAll('img, script').length") == 3
    titles = browser.run("[...document.querySelectorAll('.ytitle')].map((text) => text.textContent)")
    assert any(EVIL in title for title in titles)


def test_axes_switch(browser: Browser, several: Path) -> None:
    browser.open(several)
    kinds = """(({ layout, data }) => [
        layout.xaxis.type, layout.yaxis.type, layout.xaxis.title.text, data[0].x.at(-1),
    ])(document.getElementById("plot-0"))"""
    before = browser.run(kinds)
    assert before[:3] == ["linear", "linear", "step"]
    for axis in ("y", "x", "time"):
        browser.run(f"document.querySelector('button[data-plot=plot-0][data-axis={axis}]').click()")
    after = browser.run(kinds)
    assert after[:3] == ["log", "log", "seconds of training"] and after[3] != before[3]
    for axis in ("y", "x", "time"):
        browser.run(f"document.querySelector('button[data-plot=plot-0][data-axis={axis}]').click()")
    assert browser.run(kinds) == before and is_quiet(browser)


def test_a_curve_can_be_hidden(browser: Browser, several: Path) -> None:
    browser.open(several)
    shown = "document.querySelectorAll('#plot-0 .trace').length"
    before = browser.run(shown)
    toggle = "document.querySelector('#plot-0 .legendtoggle')"
    at = browser.run(
        f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])({toggle}.getBoundingClientRect())"
    )
    for kind in ("mousePressed", "mouseReleased"):
        browser.call("Input.dispatchMouseEvent", type=kind, x=at[0], y=at[1], button="left", clickCount=1)
    browser.run("new Promise((done) => setTimeout(done, 600))")  # Plotly waits for a second click
    assert browser.run(shown) == before - 1 and is_quiet(browser)


def test_values_are_told_where_the_pointer_is(browser: Browser, several: Path) -> None:
    browser.open(several)
    at = browser.run("(({x, y, width, height}) => [x + width / 2, y + height / 2])"
                     "(document.querySelector('#plot-0 .nsewdrag').getBoundingClientRect())")  # fmt: skip
    for away in (3, 0):
        browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=at[0] - away, y=at[1])
        browser.run("new Promise((done) => setTimeout(done, 500))")
    told = browser.run("document.querySelector('#plot-0 .hoverlayer').textContent")
    assert told.count("held-out") == 2 and is_quiet(browser)


@pytest.mark.parametrize("width", [320, 390, 1200])
def test_a_page_is_as_wide_as_its_window(width: int, browser: Browser, several: Path) -> None:
    browser.open(several, width=width)
    assert browser.run("document.documentElement.scrollWidth") <= width
    columns = browser.run("getComputedStyle(document.querySelector('.charts')).gridTemplateColumns.split(' ').length")
    assert columns == (1 if width < 700 else 2) and is_quiet(browser)


@pytest.mark.parametrize("dark", [False, True])
def test_charts_have_the_pages_colours(dark: bool, browser: Browser, several: Path) -> None:
    browser.open(several, dark=dark)
    text = browser.run("getComputedStyle(document.querySelector('.xtick text')).fill")
    page_of, ink = browser.run(
        "(({backgroundColor, color}) => [backgroundColor, color])(getComputedStyle(document.body))"
    )
    assert text == ink and lightness(ink) > lightness(page_of) if dark else lightness(ink) < lightness(page_of)


def lightness(colour: str) -> float:
    """Of rgb(r, g, b)."""
    return sum(float(part) for part in colour.strip("rgb()").split(",")[:3])


def test_paper_is_light_and_its_charts_fit(browser: Browser, several: Path) -> None:
    browser.open(several, dark=True)
    assert browser.printed().startswith(b"%PDF")
    browser.call("Emulation.setEmulatedMedia", media="print")
    assert lightness(browser.run("getComputedStyle(document.body).color")) < 300
    browser.run("dispatchEvent(new Event('beforeprint'))")
    widths = browser.run("[...document.querySelectorAll('.main-svg')].map((one) => one.getBoundingClientRect().width)")
    assert max(widths) <= 660 and browser.run("[...document.querySelectorAll('details')].every((one) => one.open)")
    browser.run("dispatchEvent(new Event('afterprint'))")
    browser.call("Emulation.setEmulatedMedia", media="")
    assert is_quiet(browser)
