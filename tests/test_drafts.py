"""Drafts: figures take their places when all are there, and neither older ones nor neighbours suffer before."""

from pathlib import Path

import pytest

from revtune.drafts import drafts
from revtune.problem import Problem


def test_drafts_take_their_places_together_at_the_end(tmp_path: Path) -> None:
    out, plot, neighbour = tmp_path / "a.json", tmp_path / "new/a.png", tmp_path / "a.json.partial"
    out.write_text("old")
    neighbour.write_text("somebody's")
    with drafts(out, plot) as (figures, drawn):
        figures.write_text("figures")
        drawn.write_text("plot")
        assert out.read_text() == "old" and not plot.exists()
    assert (out.read_text(), plot.read_text(), neighbour.read_text()) == ("figures", "plot", "somebody's")
    assert {*tmp_path.rglob("*.*")} == {out, plot, neighbour}


@pytest.mark.parametrize("error", [KeyboardInterrupt, Problem])
def test_a_failure_keeps_what_was_there_and_what_was_measured(
    error: type[BaseException], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, plot = tmp_path / "a.json", tmp_path / "a.png"
    out.write_text("old")
    with pytest.raises(error), drafts(out, plot) as (figures, _):
        figures.write_text("figures")
        raise error("stopped")
    assert out.read_text() == "old"
    assert {*tmp_path.iterdir()} == {out, figures}
    assert capsys.readouterr().err == f"revtune: what was measured so far is in {figures}\n"


def test_places_that_cannot_be_written_are_told_first(tmp_path: Path) -> None:
    (tmp_path / "link.json").symlink_to(tmp_path / "a.json")
    for places, sentence in (
        (
            (tmp_path / "a.json", tmp_path / "b/../a.json"),
            "figures and plots would all go to .*; give --out and --plot",
        ),
        ((tmp_path / "a.json", tmp_path / "link.json"), "figures and plots would all go to .*; give --out and --plot"),
        ((tmp_path, tmp_path / "a.png"), "cannot write .*: it is no regular file"),
        ((Path("/proc/a.json"), tmp_path / "a.png"), "cannot write /proc/a.json: No such file or directory"),
    ):
        with pytest.raises(Problem, match=sentence), drafts(*places):
            raise AssertionError
    assert [path.name for path in tmp_path.iterdir()] == ["link.json"]
