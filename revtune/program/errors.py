"""What the program says when it cannot go on."""

from __future__ import annotations


class Problem(Exception):
    """What keeps a command from its work, told in one sentence to the person at the keyboard.

    Args:
        message: the sentence; it names the thing, what was expected and what was given.
        code: exit code of the program, 2 for a command line that can never work.
    """

    def __init__(self, message: str, *, code: int = 1) -> None:
        super().__init__(message)
        self.code = code
