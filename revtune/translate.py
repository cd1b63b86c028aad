"""`revtune translate RUN`: a file, or lines typed in; the attention of a sentence as a plot."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from revtune.pairs import Lexicon, text_lines
from revtune.problem import Problem
from revtune.run import write
from revtune.subwords import Subwords
from revtune.translating import Decoding, Interpreter, Translated
from revtune.translation_run import opened

AT_ONCE = 640
"""Lines of a file that are translated together."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Translate sentences, one a line, with the best weights of a run."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    file: Path | None = None
    """Sentences to translate; without it, lines typed or piped in."""
    out: Path | None = None
    """File for the translations; without it they are printed."""
    decoding: Annotated[Decoding, tyro.conf.arg(name="")] = field(default_factory=Decoding)
    plot: Path | None = None
    """PNG that the attention of the first sentence goes to."""


def translate(options: Options) -> None:
    """Translate, line by line; empty lines stay empty.

    Raises:
        Problem: options that cannot be, a file that is no text, or a place that cannot be written to.
    """
    how = options.decoding
    for name, value, right in (
        ("beam", how.beam, how.beam >= 1), ("penalty", how.penalty, 0 <= how.penalty < 100),
        ("batch", how.batch, how.batch >= 1),
    ):  # fmt: skip
        if not right:
            wanted = "from 0 to below 100" if name == "penalty" else "at least 1"
            raise Problem(f"--{name} must be {wanted}, got {value}", code=2)
    learned = opened(options.run)
    interpreter = Interpreter(learned.model, learned.source, learned.target, how)
    longest, told = learned.study.text.longest, list[str]()
    plot = options.plot
    for translated in found(interpreter, options.file, longest):
        if plot is not None and translated.target:
            draw(translated, plot)
            plot = None
        if options.out is None:
            print(translated.text, flush=True)
        told.append(translated.text)
    if options.out is not None:
        write(options.out, "".join(line + "\n" for line in told).encode())


def found(interpreter: Interpreter, file: Path | None, longest: int) -> Iterator[Translated]:
    """Translations of a file's lines, some at once, or of lines as they come."""
    if file is None:
        typed = sys.stdin.isatty()
        if typed:
            print("a sentence a line; end with Ctrl-D", file=sys.stderr)
        for before, line in enumerate(sys.stdin):
            yield from told_of(interpreter, [line.strip()], longest, before)
        return
    lines = text_lines(file)
    for first in range(0, len(lines), AT_ONCE):
        yield from told_of(interpreter, lines[first : first + AT_ONCE], longest, first)


def told_of(interpreter: Interpreter, lines: list[str], longest: int, before: int = 0) -> list[Translated]:
    """Translations of lines, with a word on each that is unlike what was learnt."""
    for number, line in enumerate(lines, before + 1):
        if note := unlike(interpreter.source, line, longest):
            print(f"revtune: line {number}: {note}", file=sys.stderr)
    return interpreter(lines)


def unlike(lexicon: Lexicon, line: str, longest: int) -> str | None:
    """What sets a line apart from those that were learnt."""
    if not line:
        return "it is empty and stays so"
    notes = []
    if (size := len(lexicon.encode(line))) > longest:
        notes.append(f"its {size} words are more than the {longest} of the longest sentence learnt")
    if unknown := lexicon.unknown(line):
        kind = "characters" if isinstance(lexicon, Subwords) else "words"
        notes.append(f"unknown {kind}: {' '.join(unknown)}")
    return "; ".join(notes) or None


def draw(translated: Translated, path: Path) -> None:
    """The attention of a sentence as a picture."""
    from revtune.attention_plot import plot

    write(path, plot(translated.source, translated.target, translated.attention))
