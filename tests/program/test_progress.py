"""A long command's bar, and the lines in its place."""

import io

import pytest
from rich.console import Console

from revtune.program.bench.display import Markdown, Terminal
from revtune.program.progress import Parts

SIZES = ("T=100", "T=1,000", "[T=10,000]")


def shown(*, terminal: bool, lines: bool = True) -> str:
    """What three parts write."""
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
    with (parts := Parts(console, lines=lines)).of(len(SIZES)):
        for size in SIZES:
            with parts.part(size):
                parts._bar.refresh()
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_terminal_shows_a_bar_that_goes_away() -> None:
    text = shown(terminal=True)
    assert all(f"{done}/3" in text for done in range(3)) and "[T=10,000]" not in text.splitlines()[-1]
    assert text.index("T=100") < text.index("T=1,000") < text.index("2/3")


def test_elsewhere_a_line_names_each_part() -> None:
    assert shown(terminal=False).splitlines() == [f"{size}, {n} of 3" for n, size in enumerate(SIZES, 1)]
    assert shown(terminal=False, lines=False) == ""


def test_parts_are_counted_together_too() -> None:
    with Parts(Console(file=io.StringIO())).of(1000) as parts:
        parts.add(640)
        parts.add(360)
    assert parts.done == parts.total == 1000


@pytest.mark.parametrize("display, line", [(Terminal, "measuring a step, 1 of 1\n"), (Markdown, "")])
def test_benchmarks_show_what_they_measure(
    display: type[Terminal] | type[Markdown], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A page for a README has tables alone."""
    place = display()
    with place.measuring(1), place.waiting("a step"):
        pass
    captured = capsys.readouterr()
    assert captured.out == line and captured.err == ""
