"""JSON in files: what is whole is read, what is not is told."""

from pathlib import Path

import pytest

from revtune.program.errors import Problem
from revtune.program.studies.json_files import as_written, read_lines, read_object

LIKE = {"step": int, "valid": {"loss": float}}


def test_what_is_whole_is_read(tmp_path: Path) -> None:
    (tmp_path / "one").write_text('{"step": 1, "valid": {"loss": 2}}\n{"step": 2, "valid": {"loss": 1.5}}\n')
    assert [found["step"] for found in read_lines(tmp_path / "one", LIKE)] == [1, 2]
    (tmp_path / "two").write_text('{"step": 1,\n "valid": {"loss": 2}}')
    assert read_object(tmp_path / "two", LIKE) == {"step": 1, "valid": {"loss": 2}}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"step": 1, "val', r"one is damaged: expected a JSON object, got .*step.* \(Unterminated string"),
        (b"[1]", r"one is damaged: expected a JSON object, got \[1\]"),
        (b"\xff", "one is damaged: expected a JSON object, got "),
        (b'{"step": 1}', r"one is damaged: expected valid \(an object\), got {'step': 1}"),
        (b'{"step": 1, "valid": {}}', r"one is damaged: expected valid.loss \(a number\)"),
        (b'{"step": 1, "valid": {"loss": "low"}}', r"expected valid.loss \(a number\)"),
        (b'{"step": 1.5, "valid": {"loss": 1}}', r"expected step \(int\)"),
    ],
)
def test_what_is_not_is_told(content: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(content)
    with pytest.raises(Problem, match=told):
        read_object(tmp_path / "one", LIKE)
    (tmp_path / "one").write_bytes(b'{"step": 1, "valid": {"loss": 2}}\n' + content + b"\n")
    with pytest.raises(Problem, match=told.replace("damaged:", "damaged in line 2:")):
        read_lines(tmp_path / "one", LIKE)


@pytest.mark.parametrize(
    ("content", "told"), [("", "it is empty"), ("{", "line 1 has no end"), ('{"a": 1}\n{', "line 2 has no end")]
)
def test_lines_that_are_not_all_there_are_told(content: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "one").write_text(content)
    with pytest.raises(Problem, match=f"one is damaged: {told}, expected a JSON object a line"):
        read_lines(tmp_path / "one", {})


def test_settings_that_an_earlier_version_lacks_are_left_out_at_their_defaults() -> None:
    before = {"width": 4, "learning": {"lr": 0.1}}
    filled = {"width": 4, "model": "lstm", "learning": {"lr": 0.1, "momentum": 0.9}}
    assert as_written(filled, before, filled) == before
    now = {"width": 5, "model": "gru", "learning": {"lr": 0.1, "momentum": 0.0}}
    assert as_written(now, before, filled) == now
