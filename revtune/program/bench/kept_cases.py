"""Cases that are measured one after another and kept in a file as soon as they are, so that a stopped run goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from revtune.program.bench.worker import Record
from revtune.program.errors import Problem
from revtune.program.files import check_output, read_text, write
from revtune.program.machine import versions

if TYPE_CHECKING:
    from revtune.program.bench.display import Display  # workers import this module too, and must not load rich


class Case(Protocol):
    """What is measured in one go."""

    @property
    def key(self) -> str:
        """What tells it from the other cases."""


C = TypeVar("C", bound=Case)
K = TypeVar("K")


def measured(
    display: Display, out: Path, cases: Sequence[C], measure: Callable[[C], Record], what: str, **facts: Any
) -> dict[str, Record]:  # fmt: skip
    """The records of all cases by their keys; those that the file has already are not measured again.

    Args:
        display: counts them.
        out: the file.
        cases: in their order.
        measure: the record of one; one with an "error" is measured again by the next run.
        what: the file holds, for messages.
        facts: that the file tells beside versions, such as how long each case ran; a file of other facts or versions is
            not continued.

    Raises:
        Problem: the file cannot be written, or is another's.
    """
    check_output(out)
    now = {**versions(), **facts}
    wanted = {name: value for name, value in now.items() if name != "python"}  # which no figure here hangs on
    records = kept(out, f"{what} with {told(wanted)}", partial(by_key, facts=wanted))
    missing = [case for case in cases if "error" in records.get(case.key, {"error": ""})]
    with display.measuring(len(missing)):
        for case in missing:
            with display.waiting(case.key):
                records[case.key] = measure(case)
            write(out, json.dumps({**now, "records": records}, indent=1).encode())
    return records


def told(facts: Mapping[str, Any]) -> str:
    """Facts in words."""
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def by_key(content: Any, facts: Mapping[str, Any]) -> dict[str, Record]:
    """The records of a file that `measured` has written with these facts and versions, or without some of them."""
    if any(content.get(name, value) != value for name, value in facts.items()):
        raise ValueError("the file is of other facts")
    return dict(content["records"].items())


def kept(out: Path, what: str, read: Callable[[Any], dict[K, Record]]) -> dict[K, Record]:
    """What was measured before and is in the file.

    Args:
        out: the file.
        what: it should hold, for messages.
        read: gives the records of its content, by case. It raises ValueError, TypeError or KeyError if the content is
            another's.

    Raises:
        Problem: the file is another's.
    """
    if not out.exists():
        return {}
    with suppress(ValueError, TypeError, KeyError):
        return read(json.loads(read_text(out)))
    raise Problem(f"{out} holds no {what}; name another file by --out, or delete it")
