"""Where text comes from: this Python's standard library, a file, or a data set by name in a folder or on the hub."""

from __future__ import annotations

import sysconfig
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro

from revtune.program.data.lines import decode, read
from revtune.program.data.named_sets import SPLITS, TEXT_FILES, ask_hub, data_folder, no_answer, not_in
from revtune.program.data.readings import BY_LINES, Parts, Reading, as_learnt
from revtune.program.data.text import Corpus, byte_corpus, word_corpus
from revtune.program.data.vocabulary import TextUnit
from revtune.program.errors import Problem

TextSource = Literal["stdlib", "ptb", "wikitext2", "file"]


@dataclass(frozen=True, kw_only=True)
class Text:
    """Which text is read, and as what tokens."""

    source: Annotated[TextSource, tyro.conf.Suppress] = "stdlib"
    unit: TextUnit = "byte"
    """What one token is; bytes are the text's own, its line ends among them."""
    file: Path | None = None
    """The text of recipe `text`: 90% of it is for training, 5% for validation, 5% for the test, in whole lines."""
    data: Path | None = None
    """Folder with data sets by name, as in ptb/ptb.train.txt; default: the environment's REVTUNE_DATA, then the hub."""
    words: int | None = None
    """Words of the training text to use, from its beginning, and a fifth as many of the held-out text, or fewer up to
    the end of a line; None for all."""
    max_words: int = 50_000
    """Word level: keep this many of the most frequent words of the training text; the others become <unk>."""


HUB = {
    "ptb": ("ptb-text-only/ptb_text_only", None, "refs/convert/parquet", "sentence"),
    "wikitext2": ("Salesforce/wikitext", "wikitext-2-v1", None, "text"),
}
"""Path, subset, revision and column on the hub; PTB's own revision is a script, which `datasets` no longer runs."""

SKIPPED = {
    "__pycache__", "dist-packages", "encodings", "ensurepip", "idle_test", "idlelib", "lib2to3", "pydoc_data",
    "site-packages", "test", "tests", "turtledemo",
}  # fmt: skip
"""Folders of the standard library that hold tests, tables, or packages that not every machine has."""

HELD_OUT = 5
"""How many times fewer words are held out than learnt from, where a part of the text is used."""

FEWEST_BYTES = 1_000
"""Of a text; the loss on a twentieth of fewer would tell nothing."""


def load(text: Text, digest: str | None = None) -> Corpus:
    """The corpus that a configuration asks for.

    Args:
        text: the configuration.
        digest: of the corpus that a run learned from; where earlier versions read the text as that one, so it is read.

    Raises:
        Problem: a text is missing, unreadable, too short or no text.
    """
    return as_learnt(digest, partial(_read, text))


def _read(text: Text, reading: Reading) -> Corpus:
    if text.source == "stdlib":
        parts = stdlib()
    elif text.source == "file":
        parts = file_parts(text.file, reading)
    else:
        parts = named(text.source, text.data, reading)
    if text.unit == "byte":
        return byte_corpus(*parts)
    name = str(text.file or text.source)
    if text.source == "file":
        decode(b"".join(parts), name)  # an error tells the place in the file, not in a part
    train, valid, test = (reading.words(decode(part, name)) for part in parts)
    if text.words is not None:
        if text.words > len(train):
            raise Problem(f"--words must be at most {len(train)} for {name}, got {text.words}", code=2)
        train, valid = reading.first(train, text.words), reading.first(valid, text.words // HELD_OUT)
    return word_corpus(train, valid, test, most=text.max_words)


def stdlib(folder: Path | None = None) -> Parts:
    """The Python source of the standard library; a fortieth of its files is for validation, another for the test.

    A checksum of a file's path decides where it goes, so that all machines with the same library have the same parts.
    """
    folder = folder or Path(sysconfig.get_path("stdlib"))
    parts: list[list[bytes]] = [[], [], []]
    for path in sorted(folder.rglob("*.py")):
        name = path.relative_to(folder)
        if SKIPPED.isdisjoint(name.parts) and not path.name.startswith("_sysconfigdata"):  # made when Python was built
            parts[{0: 1, 1: 2}.get(zlib.crc32(name.as_posix().encode()) % 40, 0)].append(read(path))
    train, valid, test = (b"".join(part) for part in parts)
    if min(len(train), len(valid), len(test)) < FEWEST_BYTES:
        raise Problem(f"{folder} holds too little Python source to learn from: {len(train)} bytes for training")
    return train, valid, test


def file_parts(path: Path | None, reading: Reading = BY_LINES) -> Parts:
    """A file's text in three, about 90% for training, 5% for validation and 5% for the test, by a reading's cuts.

    Raises:
        Problem: there is no file, or it is unreadable or too short.
    """
    if path is None:
        raise Problem("recipe text learns a file of yours: give it by --file", code=2)
    content = reading.read(path)
    if len(content) < FEWEST_BYTES:
        raise Problem(f"{path} is too short to learn from: {len(content)} bytes, at least {FEWEST_BYTES} are needed")
    return reading.parts(content)


def named(name: str, folder: Path | None, reading: Reading = BY_LINES) -> Parts:
    """A data set's three texts, from the folder in its standard layout, else from the hub.

    Raises:
        Problem: the folder has some of the three files, not all; the hub does not give them.
    """
    folder = data_folder(folder)
    if folder is not None:
        paths = [folder / TEXT_FILES[name].format(split) for split in SPLITS]
        lacking = [path for path in paths if not path.exists()]
        if lacking and len(lacking) < len(paths):
            raise Problem(f"{lacking[0]} is not there, though files beside it are")
        if not lacking:
            train, valid, test = (reading.read(path) for path in paths)
            return train, valid, test
    return from_hub(name, folder)


def from_hub(name: str, folder: Path | None) -> Parts:
    """A data set's three texts from the hub.

    Raises:
        Problem: the hub does not give it, or it is not what it was.
    """
    path, subset, revision, column = HUB[name]
    looked = not_in(folder, TEXT_FILES[name].format("train"))
    splits = ask_hub(name, path, subset, revision, looked)
    try:
        train, valid, test = (_lines(splits[split][column]) for split in ("train", "validation", "test"))
    except Exception as error:
        raise no_answer(name, looked, error) from error
    return train, valid, test


def _lines(rows: list[str]) -> bytes:
    """Rows of the hub, some of which end in a line break, as the lines of a file."""
    return "".join(row.rstrip("\n") + "\n" for row in rows).encode()
