"""`revtune translate RUN`: a file, or lines typed in; the attention of a sentence as a plot."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, cast

import tyro

from revtune.answers import Answers
from revtune.pairs import MARK, Lexicon, text_lines
from revtune.places import Taken, check_apart, check_place
from revtune.problem import Problem
from revtune.run import OWN, write
from revtune.subwords import Subwords
from revtune.translating import Decoding, Interpreter, Translated
from revtune.translation_run import Learned, opened

MOST_TOLD = 500
"""Characters of a line's unknown words that are told."""
AT_ONCE = 640
"""Lines of a file that are translated together."""
MOST_DRAWN = 200
"""Words of a sentence, or of its translation, beyond which a picture of its attention shows nothing."""
MOST_READ = 1_000
"""Words, or sub-words, of a line that are translated at least."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Translate sentences, one a line, with the best weights of a run."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    file: Path | None = None
    """Sentences to translate; without it, lines typed or piped in."""
    out: Path | None = None
    """File for the translations, written over, as they come; without it they are printed."""
    tokenized: bool = False
    """The sentences are lower-cased and tokenized already, as in the files that were learnt from."""
    decoding: Annotated[Decoding, tyro.conf.arg(name="")] = field(default_factory=Decoding)
    plot: Path | None = None
    """PNG that the attention of the first sentence goes to."""


def translate(options: Options) -> None:
    """Translate, line by line; empty lines stay empty.

    Raises:
        Problem: options that cannot be, a file that is no text, or a place that cannot be written to.
    """
    check(options.decoding)
    check_places(options)
    learned = opened(options.run)
    reader = Reader(learned, options.decoding, tokenized=options.tokenized)
    lines = text_lines(options.file) if options.file else None
    if lines is None and sys.stdin is None:
        raise Problem("nothing to translate: standard input is closed; give --file", code=2)
    plot, typed = options.plot, lines is None and sys.stdin.isatty()
    with Answers(options.out, printed=options.out is None or typed) as answers:
        for some in groups(lines, typed):
            found = reader(some, answers.given)
            answers.add([one.text for one in found])
            if plot is not None and (first := next((one for one in found if one.target), None)):
                draw(first, plot)
                plot = None
    if plot is not None:
        print("revtune: no plot: no sentence was translated to any words", file=sys.stderr)


def check(how: Decoding) -> None:
    """Raise `Problem` for the first setting that cannot be."""
    for name, value, least, most in (
        ("beam", how.beam, 1, 1_000), ("penalty", how.penalty, 0, 10), ("batch", how.batch, 1, 100_000)
    ):  # fmt: skip
        if not least <= value <= most:
            raise Problem(f"--{name} must be from {least} to {most}, got {value}", code=2)


def check_places(options: Options) -> None:
    """Raise `Problem` when something would be written over what is read, learnt or written besides, or is no place."""
    taken: list[Taken] = [(options.run / name, f"is {name} of the run") for name in OWN]
    taken += [(options.file, "is what --file reads")] if options.file else []
    with contextlib.suppress(AttributeError, OSError, ValueError):  # not all that stands in for it has a number
        taken += [(sys.stdin.fileno(), "is what is read")] if not options.file else []
    check_apart({"out": options.out, "plot": options.plot}, taken)
    if (plot := options.plot) is not None:
        check_place(plot)
        if not plot.parent.is_dir():
            raise Problem(f"cannot write {plot}: there is no folder {plot.parent}")


def groups(lines: list[str] | None, typed: bool) -> Iterator[list[str]]:
    """Lines that are translated together: some of a file's, or each as it comes."""
    if lines is not None:
        yield from (lines[first : first + AT_ONCE] for first in range(0, len(lines), AT_ONCE))
        return
    if typed:
        print("a sentence a line; end with Ctrl-D", file=sys.stderr)
    with contextlib.suppress(AttributeError, ValueError):
        cast(Any, sys.stdin).reconfigure(errors="replace", newline="\n")  # lines end as in files
    for number, line in enumerate(sys.stdin):
        yield [(line if number else line.removeprefix(MARK)).strip()]


class Reader:
    """Translates lines, with a word on each that is unlike what was learnt.

    Args:
        learned: a run.
        how: as in `Interpreter`.
        tokenized: whether lines are as those that were learnt, or raw.
    """

    def __init__(self, learned: Learned, how: Decoding, *, tokenized: bool = False) -> None:
        self.learned, self.tokenized, self.longest = learned, tokenized, learned.study.text.longest
        sides = learned.known.source, learned.known.target
        self.interpreter = Interpreter(learned.model, *sides, how, most_read(self.longest))

    def __call__(self, lines: list[str], before: int = 0) -> list[Translated]:
        """The translations of lines that come after so many others."""
        read = lines if self.tokenized else [self.learned.shaped(line) for line in lines]
        for number, line in enumerate(read, before + 1):
            if note := unlike(self.learned.known.source, line, self.longest):
                print(f"revtune: line {number}: {note}", file=sys.stderr)
        return self.interpreter(read)


def most_read(longest: int) -> int:
    """How many words of a line are translated, where so many were learnt: enough for any sentence."""
    return max(MOST_READ, longest)


def unlike(lexicon: Lexicon, line: str, longest: int) -> str | None:
    """What sets a line apart from those that were learnt."""
    if not (size := len(lexicon.encode(line))):
        return "it is empty and stays so"
    notes, subwords = [], isinstance(lexicon, Subwords)
    if size > longest:
        kind = "sub-words" if subwords else "words"
        notes.append(f"its {size} {kind} are more than the {longest} of the longest sentence learnt")
        if size > (most := most_read(longest)):
            notes.append(f"only its first {most} are translated")
    if unknown := lexicon.unknown(line):
        notes.append(f"unknown {'characters' if subwords else 'words'}: {shortened(' '.join(unknown))}")
    return "; ".join(notes) or None


def shortened(text: str) -> str:
    """The start of a text that would flood a terminal."""
    return text if len(text) <= MOST_TOLD else f"{text[:MOST_TOLD]}... ({len(text):,} characters)"


def draw(translated: Translated, path: Path) -> None:
    """The attention of a sentence as a picture."""
    from revtune.attention_plot import plot

    if (words := max(len(translated.source), len(translated.target))) > MOST_DRAWN:
        print(f"revtune: no plot: {words} words are more than the {MOST_DRAWN} that can be read", file=sys.stderr)
        return
    write(path, plot(translated.source, translated.target, translated.attention))
