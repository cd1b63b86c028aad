"""Lines to translate, typed or piped in."""

import io
import sys
from pathlib import Path

import pytest

from revtune.program.data.pair_sources import text_lines
from revtune.program.translation.translate import groups


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\x85", "\u2028"])
def test_piped_lines_end_where_those_of_files_do(end: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    content = f"\ufeffa b {end}{end}c{end}".encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))
    (tmp_path / "a").write_bytes(content)
    assert list(groups(None, typed=False)) == [["a b"], [""], ["c"]]
    assert text_lines(tmp_path / "a") == ["a b", "", "c"]
