"""The program `revtune`.

    revtune train [RECIPE] [options]    learn a text; without a recipe, Python's standard library
    revtune train --resume RUN          go on with a run that was stopped
    revtune generate RUN                write text with what a run has learned
    revtune translate RUN               sentences of a file, or typed in, with a translator that has been learnt
    revtune evaluate RUN                its loss on held-out data, and BLEU if it translates
    revtune compare RECIPE              ways of tuning hyperparameters, each with the same time
    revtune report RUN [RUN ...]        a page that shows runs, contests and studies side by side
    revtune bench memory | speed        memory and time against torch's own layers
    revtune bench steps                 time of single steps, of layers and cells, against torch's own
    revtune bench tuning                time and memory of tuning against not tuning
    revtune bench joint                 reversible nets that tune themselves against torch's own that do
    revtune bench imports               time of importing revtune against importing torch
    revtune doctor                      what this machine and installation offer

`revtune train --help` lists recipes and options, and so for each command.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from typing import Any, cast

import revtune as rt
from revtune.errors import BackendError, NonFiniteError, ProcessError, ReversalError, SettingError, StateRangeError
from revtune.program.errors import Problem
from revtune.program.launcher import first_to_tell, refuse_launched

EXTRAS = {
    "optuna": "search", "kornia": "augment", "sacrebleu": "translate", "tokenizers": "translate", "plotly": "report",
    "scipy": "signals", "soundfile": "signals", "wfdb": "signals",
}  # fmt: skip
"""Packages of the extras that are named for what they are for."""

PROGRAM_NEEDS = {"tyro", "rich", "safetensors", "datasets", "matplotlib", "numpy", "shtab", "docstring_parser"}
"""Packages of the extra `program`, and those that these need."""

NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
"""In the messages of torch's RuntimeErrors, which have no class of their own for it on a CPU."""


def main(arguments: list[str] | None = None) -> int:
    """Run a command line and give its exit code: 0, 1 for a problem, 2 for a wrong command line, 130 when stopped."""
    arguments = sys.argv[1:] if arguments is None else arguments
    with contextlib.suppress(AttributeError, ValueError):  # whatever stands in for stdout may be closed or lack this
        cast(Any, sys.stdout).reconfigure(errors="replace")
    try:
        dispatch(arguments)
        if sys.stdout is not None:
            sys.stdout.flush()
    except KeyboardInterrupt:
        print("revtune: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        discard_output()
    except Exception as error:
        if (message := sentence(error)) is None:
            raise
        discard_output()
        with contextlib.suppress(OSError):  # of a terminal that has gone away
            if first_to_tell():
                print(f"revtune: {message}", file=sys.stderr)
        return error.code if isinstance(error, Problem) else 1
    return 0


def sentence(error: Exception) -> str | None:
    """What a person is told of an error; None for a mistake of this program's, which shows its traceback."""
    first = (str(error).splitlines() or [type(error).__name__])[0]
    if isinstance(error, Problem | NonFiniteError | ReversalError | StateRangeError | ProcessError):
        return str(error)
    if isinstance(error, BackendError | SettingError):
        return first
    if isinstance(error, OSError):
        path = f"{error.filename}: " if error.filename else ""
        return f"cannot read or write: {path}{error.strerror or first}"
    if isinstance(error, ImportError):
        return missing_package(error, first)
    if isinstance(error, RecursionError):
        return f"what was read is nested too deeply: {first}"
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(word in first for word in NO_MEMORY)):
        return f"the memory does not suffice: {first}"
    return None


def missing_package(error: ImportError, reason: str) -> str | None:
    """What a person is told of a package that is missing or broken; None when it is revtune itself."""
    package = (error.name or "").partition(".")[0]
    if package in ("", "revtune"):
        return None
    if isinstance(error, ModuleNotFoundError) and (package in PROGRAM_NEEDS or package in EXTRAS):
        extra = EXTRAS.get(package, "program")
        return f"{error.name} is missing; pip install 'revtune[{extra}]' installs it"
    return f"{package} cannot be imported: {reason}"


def discard_output() -> None:
    """Drop what could not be written to stdout, or Python would print a second error when it ends."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def dispatch(arguments: list[str]) -> None:
    """Hand the rest of a command line to the command that it begins with."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print((__doc__ or "").strip())
        return
    if arguments[0] == "--version":
        print(f"revtune {rt.__version__}")
        return
    if arguments[0] not in COMMANDS:
        raise Problem(f"there is no command {arguments[0]!r}; there are {', '.join(COMMANDS)}", code=2)
    if arguments[0] != "train":
        refuse_launched(f"revtune {arguments[0]}")
    command = importlib.import_module(f"revtune.program.cli.{arguments[0]}")
    getattr(command, arguments[0])(arguments[1:])


COMMANDS = ("train", "generate", "translate", "evaluate", "compare", "report", "bench", "doctor")
"""Each is a function in the module of its name in this room, imported when asked for: none needs another's packages."""
