"""Where translations go as they come: a file that keeps what it has when the program is stopped, or what is printed."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from revtune.problem import Problem
from revtune.train import STOPPED


class Answers:
    """Where translations go as they come; a context that closes the file.

    Args:
        path: of a file, which has what was given before if it is stopped; None for none.
        printed: whether they are printed.

    Attributes:
        given: how many there are.
    """

    def __init__(self, path: Path | None, *, printed: bool) -> None:
        self.path, self.printed, self.given = path, printed, 0
        self._file: BinaryIO | None = None

    def __enter__(self) -> Answers:
        if self.path is not None:
            self._file = self._ask(self.path.open, "wb")
        return self

    def add(self, texts: list[str]) -> None:
        """Give some more."""
        for text in texts if self.printed else []:
            print(text, flush=True)
        if self._file is not None:
            self._ask(self._file.write, "".join(text + "\n" for text in texts).encode())
            self._ask(self._file.flush)
        self.given += len(texts)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._file is not None:
            self._ask(self._file.close)
            if isinstance(error, KeyboardInterrupt):
                raise Problem(f"stopped; {self.path} has the first {self.given} translations", code=STOPPED) from error

    def _ask(self, action: Any, *given: Any) -> Any:
        try:
            return action(*given)
        except OSError as error:
            raise Problem(f"cannot write {self.path}: {error.strerror}; it has {self.given} translations") from error
