"""Files that commands write: where they may lie, and drafts that replace them when all are there."""

import ast
import os
import resource
from pathlib import Path

import pytest

from revtune.program import files
from revtune.program.errors import Problem
from revtune.program.files import (
    absolute,
    check_distinct,
    check_output,
    check_spelling,
    drafts,
    read_bytes,
    read_text,
    same_file,
    write,
)


def test_drafts_replace_their_files_together_at_the_end(tmp_path: Path) -> None:
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


def test_files_that_cannot_be_written_are_told_first(tmp_path: Path) -> None:
    (tmp_path / "link.json").symlink_to(tmp_path / "a.json")
    for paths, sentence in (
        (
            (tmp_path / "a.json", tmp_path / "b/../a.json"),
            "figures and plots would all go to .*; give --out and --plot",
        ),
        ((tmp_path / "a.json", tmp_path / "link.json"), "figures and plots would all go to .*; give --out and --plot"),
        ((tmp_path, tmp_path / "a.png"), "cannot write .*: it is no regular file"),
        ((Path("/proc/a.json"), tmp_path / "a.png"), "cannot write /proc/a.json: No such file or directory"),
    ):
        with pytest.raises(Problem, match=sentence), drafts(*paths):
            raise AssertionError
    assert [path.name for path in tmp_path.iterdir()] == ["link.json"]


def test_the_same_file_is_known_by_any_of_its_names(tmp_path: Path) -> None:
    one, other, link, hard = (tmp_path / name for name in ("one", "other", "link", "hard"))
    one.touch()
    other.touch()
    link.symlink_to(one)
    hard.hardlink_to(one)
    assert same_file(link, one) and same_file(hard, one) and same_file(tmp_path / "new", tmp_path / "x" / ".." / "new")
    assert not same_file(other, one) and not same_file(tmp_path / "new", one)
    with one.open() as file:
        assert same_file(hard, file.fileno()) and not same_file(other, file.fileno())
    with open("/dev/null") as nothing:
        assert not same_file(Path("/dev/null"), nothing.fileno()), "what is written there is not kept"


def test_what_is_taken_is_told_by_the_option_s_name(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    check_distinct({"out": one, "plot": other, "more": None}, [(tmp_path / "read", "is read")])
    with pytest.raises(Problem, match=f"--plot must be a file of its own, but {one} is what --out goes to"):
        check_distinct({"out": one, "plot": one}, [])
    with pytest.raises(Problem, match=f"--out must be a file of its own, but {one} is read"):
        check_distinct({"out": one}, [(one, "is read")])


def test_only_files_are_written_over(tmp_path: Path) -> None:
    check_output(tmp_path / "new")
    for path in (tmp_path, Path("/dev/null")):
        with pytest.raises(Problem, match=f"cannot write {path}: it is no regular file"):
            check_output(path)


def test_what_would_never_end_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    for path in (tmp_path / "pipe", tmp_path / "link", Path("/dev/zero"), Path("/dev/tty")):
        for read in (read_bytes, read_text):
            with pytest.raises(Problem, match=f"cannot read {path}: "):
                read(path)


def test_a_file_that_grows_while_it_is_read_comes_to_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, look = tmp_path / "log", os.fstat
    path.write_bytes(b"abc")

    def grow(descriptor: int) -> os.stat_result:
        status = look(descriptor)
        path.write_bytes(b"abcdef")
        return status

    monkeypatch.setattr(os, "fstat", grow)
    assert read_bytes(path) == b"abc"


def test_a_file_larger_than_memory_is_named(tmp_path: Path) -> None:
    (tmp_path / "log").touch()
    os.truncate(tmp_path / "log", 2**42)
    with pytest.raises(Problem, match="log: it has more bytes than there is memory"):
        read_bytes(tmp_path / "log")


def test_what_became_a_pipe_meanwhile_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr("revtune.program.files.regular", lambda path: path)
    with pytest.raises(Problem, match="it is no regular file"):
        read_bytes(tmp_path / "pipe")


def test_paths_are_utf_8(tmp_path: Path) -> None:
    check_spelling(tmp_path / "ä b")
    assert absolute(None) is None and absolute(Path("x")) == Path.cwd() / "x"
    with pytest.raises(Problem, match=r"\\xff is no path that revtune can use: it must be UTF-8; rename it"):
        check_spelling(Path(os.fsdecode(b"/x/\xff")))


AROUND = {"read_text", "read_bytes", "open"}
"""What reads a file without looking what it is."""


OTHERS = {
    "files.py": "the reader", "machine.py": "/proc", "report/page.py": "own files",
    "runs/metrics.py": "after `regular`",
    "cli/main.py": "/dev/null", "runs/together.py": "/dev/null", "translation/translate.py": "an output",
}  # fmt: skip
"""Who may, and why."""


def test_nothing_reads_around_the_one_reader() -> None:
    room = Path(files.__file__).parent
    found = set()
    for path in room.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Attribute)
                and node.attr in AROUND
                or isinstance(node, ast.Name)
                and node.id == "open"
            ):
                found.add(path.relative_to(room).as_posix())
    assert found == set(OTHERS)


def test_nothing_saved_is_called_intact_where_there_was_nothing(tmp_path: Path) -> None:
    with pytest.raises(Problem, match=r"cannot write /proc/new: No such file or directory$"):
        write(Path("/proc/new"), b"x")


def test_what_cannot_be_written_is_told_before_anything_is_measured(tmp_path: Path) -> None:
    limits, out = resource.getrlimit(resource.RLIMIT_FSIZE), tmp_path / "out"
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, limits[1]))  # as a disk with little space
    try:
        with pytest.raises(Problem, match=r"cannot write .*out: File too large$"), drafts(out):
            raise AssertionError("measured all the same")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with drafts(out) as (draft,):
        assert draft.stat().st_size == 0
    with pytest.raises(Problem, match="it must be UTF-8"), drafts(tmp_path / os.fsdecode(b"o\xff")):
        raise AssertionError("measured all the same")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
