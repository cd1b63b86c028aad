"""`revtune translate RUN`: the sentences of a file, or lines typed in; the attention of one as a plot."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, BinaryIO, cast

import tyro
from rich.console import Console

from revtune.program.data.lines import MARK, split_lines
from revtune.program.data.pair_sources import text_lines
from revtune.program.data.pairs import Lexicon
from revtune.program.data.subwords import Subwords
from revtune.program.errors import Problem
from revtune.program.files import Taken, check_distinct, check_output, write
from revtune.program.progress import Parts
from revtune.program.runs.folder import OWN
from revtune.program.runs.stopping import STOPPED
from revtune.program.translation import attention_plot
from revtune.program.translation.interpreter import Decoding, Interpreter, Translated
from revtune.program.translation.run import Learned, opened

MOST_TOLD = 500
"""Characters of a line's unknown words that are printed."""

AT_ONCE = 640
"""Lines of a file that are translated together."""

MOST_DRAWN = 200
"""Words of a sentence, or of its translation, beyond which a picture of its attention shows nothing."""

MOST_READ = 1_000
"""Words, or sub-words, of a line that are translated at least; those of a whole book would fill the memory."""


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
    accept_edits: bool = False
    """Take the run's settings and vocabulary as they are, though they were edited since it learnt."""
    plot: Path | None = None
    """PNG that the attention of the first sentence goes to."""


def translate(options: Options) -> None:
    """Translate, line by line; empty lines stay empty.

    Raises:
        Problem: an option is impossible, the file is no text, or a path cannot be written to.
    """
    check(options.decoding)
    check_places(options)
    learned = opened(options.run, accept_edits=options.accept_edits)
    reader = Reader(learned, options.decoding, tokenized=options.tokenized)
    lines = text_lines(options.file) if options.file else None
    if lines is None and sys.stdin is None:
        raise Problem("nothing to translate: standard input is closed; give --file", code=2)
    plot, typed = options.plot, lines is None and sys.stdin.isatty()
    with Output(options.out, printed=options.out is None or typed) as output, progress(lines, output) as parts:
        for group in groups(lines, typed):
            translations = reader(group, output.count)
            output.add([translated.text for translated in translations])
            parts.add(len(group))
            if plot is not None and (first := next((one for one in translations if one.target), None)):
                draw(first, plot)
                plot = None
    if plot is not None:
        print("revtune: no plot: no sentence was translated to any words", file=sys.stderr)


def check(decoding: Decoding) -> None:
    """Raise `Problem` for the first setting that no translation can have."""
    for name, least, most in (("beam", 1, 1_000), ("penalty", 0, 10), ("batch", 1, 100_000)):
        value = getattr(decoding, name)
        if not least <= value <= most:
            raise Problem(f"--{name} must be from {least} to {most}, got {value}", code=2)


def check_places(options: Options) -> None:
    """Raise `Problem` when an output would replace the input, the run's files or the other output, or has no folder."""
    taken: list[Taken] = [(options.run / name, f"is {name} of the run") for name in OWN]
    taken += [(options.file, "is what --file reads")] if options.file else []
    with contextlib.suppress(AttributeError, OSError, ValueError):  # a replaced stdin may have no file descriptor
        taken += [(sys.stdin.fileno(), "is what is read")] if not options.file else []
    check_distinct({"out": options.out, "plot": options.plot}, taken)
    if (plot := options.plot) is not None:
        check_output(plot)
        if not plot.parent.is_dir():
            raise Problem(f"cannot write {plot}: there is no folder {plot.parent}")


def progress(lines: list[str] | None, output: Output) -> AbstractContextManager[Parts]:
    """A bar on stderr while a file is translated, unless translations themselves come to the terminal."""
    seen = lines is None or (output.printed and sys.stdout is not None and sys.stdout.isatty())
    console = Console(file=io.StringIO()) if seen else Console(stderr=True)
    return Parts(console, lines=False).of(len(lines or ()))


def groups(lines: list[str] | None, typed: bool) -> Iterator[list[str]]:
    """Lines that are translated together: `AT_ONCE` of a file, or each that is typed or piped in as it comes."""
    if lines is not None:
        yield from (lines[first : first + AT_ONCE] for first in range(0, len(lines), AT_ONCE))
        return
    if typed:
        print("a sentence a line; end with Ctrl-D", file=sys.stderr)
    with contextlib.suppress(AttributeError, ValueError):
        cast(Any, sys.stdin).reconfigure(errors="replace", newline="\n")  # `split_lines` knows the other ends
    for number, line in enumerate(sys.stdin):
        for part in split_lines(line if number else line.removeprefix(MARK)):
            yield [part.strip()]


class Output:
    """Prints translations as they come, or writes them to a file; a context that closes the file.

    Args:
        path: of the file; None for none. When translating is stopped, it holds the translations so far.
        printed: whether to print them.

    Attributes:
        count: how many there are.
    """

    def __init__(self, path: Path | None, *, printed: bool) -> None:
        self.path, self.printed, self.count = path, printed, 0
        self._file: BinaryIO | None = None

    def __enter__(self) -> Output:
        if self.path is not None:
            self._file = self._ask(self.path.open, "wb")
        return self

    def add(self, texts: list[str]) -> None:
        """Print or write some more."""
        for text in texts if self.printed else []:
            print(text, flush=True)
        if self._file is not None:
            self._ask(self._file.write, "".join(text + "\n" for text in texts).encode())
            self._ask(self._file.flush)
        self.count += len(texts)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._file is not None:
            self._ask(self._file.close)
            if isinstance(error, KeyboardInterrupt):
                raise Problem(f"stopped; {self.path} has the first {self.count} translations", code=STOPPED) from error

    def _ask(self, action: Any, *arguments: Any) -> Any:
        try:
            return action(*arguments)
        except OSError as error:
            raise Problem(f"cannot write {self.path}: {error.strerror}; it has {self.count} translations") from error


class Reader:
    """Translates lines, and prints a note on each that is unlike those that were learnt.

    Args:
        learned: a run.
        decoding: beam, penalty and batch.
        tokenized: whether lines have the form of those that were learnt already, or are raw.
    """

    def __init__(self, learned: Learned, decoding: Decoding, *, tokenized: bool = False) -> None:
        self.learned, self.tokenized, self.longest = learned, tokenized, learned.study.text.longest
        sides = learned.vocabulary.source, learned.vocabulary.target
        self.interpreter = Interpreter(learned.model, *sides, decoding, most_read(self.longest))

    def __call__(self, lines: list[str], before: int = 0) -> list[Translated]:
        """The translations of lines; notes count them from `before` on."""
        read = lines if self.tokenized else [self.learned.shaped(line) for line in lines]
        for number, line in enumerate(read, before + 1):
            if note := unlike(self.learned.vocabulary.source, line, self.longest):
                print(f"revtune: line {number}: {note}", file=sys.stderr)
        return self.interpreter(read)


def most_read(longest: int) -> int:
    """Words of a line that are translated, where the longest sentence learnt has so many: enough for any sentence."""
    return max(MOST_READ, longest)


def unlike(lexicon: Lexicon, line: str, longest: int) -> str | None:
    """What sets a line apart from those that were learnt, in words; None for nothing."""
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
    if (words := max(len(translated.source), len(translated.target))) > MOST_DRAWN:
        print(f"revtune: no plot: {words} words are more than the {MOST_DRAWN} that can be read", file=sys.stderr)
        return
    write(path, attention_plot.plot(translated.source, translated.target, translated.attention))
