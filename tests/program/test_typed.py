"""Typed settings: what comes back from JSON, and what is refused."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from revtune.program.typed import read_typed, reason


@dataclass(frozen=True)
class Inner:
    name: str
    every: int | Literal["auto"] | None = None


@dataclass(frozen=True)
class Outer:
    rate: float
    inner: Inner
    all: tuple[Inner, ...] = ()
    folder: Path | None = None


@pytest.mark.parametrize("every", [None, 3, "auto"])
def test_dataclasses_tuples_and_paths_come_back(every: Any) -> None:
    settings = Outer(0.5, Inner("a", every), (Inner("b"), Inner("c", every)), Path("x"))
    assert read_typed(Outer, json.loads(json.dumps(dataclasses.asdict(settings), default=str))) == settings


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"rate": "fast"}, "rate must be float, got 'fast'"),
        ({"rate": True}, "rate must be float, got True"),
        ({"inner": {"name": 1}}, "name must be str, got 1"),
        ({"all": [{"name": "b", "every": "often"}]}, "every must be .*, got 'often'"),
        ({"folder": "\0"}, "folder must be .*"),
        ({"more": 1}, "Outer has no setting 'more'"),
    ],
)
def test_other_values_are_refused_by_name(changed: dict[str, Any], sentence: str) -> None:
    with pytest.raises(TypeError, match=sentence):
        read_typed(Outer, {"rate": 1, "inner": {"name": "a"}, **changed})


def test_what_is_missing_is_said_in_words() -> None:
    assert reason(KeyError("text")) == "text is missing" and reason(ValueError("no number")) == "no number"
