"""Sentence pairs: standard files, vocabularies of words or sub-words, and what becomes of lines that cannot be used."""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from revtune.program.data.hub import ask_hub, decode, read
from revtune.program.data.moses import Form, Language, shaped
from revtune.program.data.subwords import Subwords
from revtune.program.data.text import END, UNKNOWN, Words, vocabulary
from revtune.program.errors import Problem

Unit = Literal["word", "subword"]


Split = Literal["train", "valid", "test"]


Name = Literal["multi30k", "iwslt14"]


SPLITS: tuple[Split, ...] = ("train", "valid", "test")


class Layout(NamedTuple):
    """Where the files of a data set are, what their text looks like, and what to know of it."""

    files: str
    form: Form
    note: str = ""


TOK = {"train": "train", "valid": "val", "test": "test_2016_flickr"}


SAMPLE = (
    "the training text is the sample in iwslt14-de-en-small, {pairs:,} pairs where IWSLT 2014 has about 160,000; "
    "its scores do not compare with those of the whole"
)


IWSLT14 = (
    Layout("iwslt14.tokenized.de-en/{split}.{language}", "iwslt14"),
    Layout("iwslt14-de-en-small/{small}.{language}", "iwslt14", SAMPLE),
)


FILES: dict[Name, dict[Unit, tuple[Layout, ...]]] = {
    "multi30k": {
        "word": (Layout("multi30k/tok/{tok}.lc.norm.tok.{language}", "multi30k"),),
        "subword": (
            Layout("multi30k/raw/{tok}.{language}.gz", "plain"), Layout("multi30k/raw/{tok}.{language}", "plain")
        ),
    },
    "iwslt14": {"word": IWSLT14, "subword": IWSLT14},
}  # fmt: skip


HUB = {"multi30k": "bentrevett/multi30k", "iwslt14": "bbaaaa/iwslt14-de-en"}


HUB_NOTES = {"iwslt14": "the text is the hub's, which is raw; BLEU may not compare with that of the published files"}


MARK = "\ufeff"


Lexicon = Words | Subwords


@dataclass(frozen=True)
class Lines:
    """A split's sentences in both languages, as text; line k of one is a translation of line k of the other."""

    source: list[str]
    target: list[str]


@dataclass(frozen=True)
class Texts:
    """The text of all splits as it was found.

    Attributes:
        splits: it.
        form: what it looks like, and so what is to be done to sentences of others.
        note: what whoever reads its scores should know, if anything.
    """

    splits: dict[Split, Lines]
    form: Form
    note: str = ""


@dataclass(frozen=True)
class Sentences:
    """A split as token ids, the target's ended, and what was left out.

    Attributes:
        pairs: (source ids, target ids) of each sentence.
        lines: the sentences as text, of those that are here.
        empty, long: how many had an empty side, or one beyond the limit.
    """

    pairs: list[tuple[list[int], list[int]]]
    lines: Lines
    empty: int = 0
    long: int = 0


@dataclass(frozen=True)
class Pairs:
    """A study's vocabularies and splits."""

    source: Lexicon
    target: Lexicon
    splits: dict[Split, Sentences] = field(repr=False)

    def digest(self) -> str:
        """A fingerprint of all of it, by which a run knows its data again."""
        sha = hashlib.sha256(repr((self.source.facts(), self.target.facts())).encode())
        for split in SPLITS:
            sha.update(repr(self.splits[split].pairs).encode())
        return sha.hexdigest()

    def test_digest(self) -> str:
        """A fingerprint of the test's text, whose words count in BLEU also where the vocabularies lack them."""
        return hashlib.sha256(repr(self.splits["test"].lines).encode()).hexdigest()


def texts(name: Name, unit: Unit, source: Language, target: Language, folder: Path | None) -> Texts:
    """The text of all splits, from the folder in a standard layout, else from the hub.

    Raises:
        Problem: it is in neither place, or in part, is no text, or the languages have different numbers of lines.
    """
    folder = folder or (Path(os.environ["REVTUNE_DATA"]) if os.environ.get("REVTUNE_DATA") else None)
    partly: list[list[Path]] = []
    for layout in FILES[name][unit] if folder is not None else ():
        assert folder is not None
        paths = {
            (split, language): folder / layout.files.format(
                split=split, tok=TOK[split], small="train-sample" if split == "train" else split, language=language
            )
            for split in SPLITS
            for language in (source, target)
        }  # fmt: skip
        lacking = [path for path in paths.values() if not path.exists()]
        if not lacking and not (partly and layout.note):  # what has a note stands in for nothing there in part
            splits = {split: together(paths[split, source], paths[split, target]) for split in SPLITS}
            return Texts(splits, layout.form, layout.note.format(pairs=len(splits["train"].source)))
        if 0 < len(lacking) < len(paths):
            partly.append(lacking)
    if partly:
        raise Problem(f"{min(partly, key=len)[0]} is not there, though files beside it are")
    return from_hub(name, unit, source, target, folder)


def together(source: Path, target: Path) -> Lines:
    """Two files of one sentence a line.

    Raises:
        Problem: they have different numbers of lines, or one is no text.
    """
    sides = [text_lines(path) for path in (source, target)]
    if len(sides[0]) != len(sides[1]):
        given = f"{len(sides[0])} and {len(sides[1])}"
        raise Problem(f"{source} and {target} must have as many lines, each other's translations, got {given}")
    return Lines(*sides)


def text_lines(path: Path) -> list[str]:
    """The lines of a file, packed by gzip or not.

    Raises:
        Problem: it cannot be read or is no UTF-8 text.
    """
    content = read(path)
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise Problem(f"{path} is damaged or no gzip file: {error}") from error
    lines = decode(content, str(path), advice="").removeprefix(MARK).split("\n")
    return [line.strip() for line in (lines[:-1] if lines[-1] == "" else lines)]


def from_hub(name: Name, unit: Unit, source: Language, target: Language, folder: Path | None) -> Texts:
    """The text of all splits through the `datasets` library, shaped like that of the files where words are learnt."""
    first = FILES[name][unit][0].files.format(split="train", tok="train", small="train-sample", language=source)
    looked = f"{first} is not in {folder}" if folder else "no --data or REVTUNE_DATA is given"
    found = ask_hub(name, HUB[name], None, None, looked)
    form: Form = name if unit == "word" else "plain"
    splits: dict[Split, Lines] = {}
    for split, there in zip(SPLITS, ("train", "validation", "test"), strict=True):
        rows = [row.get("translation", row) for row in found[there]]
        splits[split] = Lines(*([shaped(row[side], form, side) for row in rows] for side in (source, target)))
    return Texts(splits, form, HUB_NOTES.get(name, ""))


def words_of(text: Iterable[str], *, most: int, fewest: int) -> Words:
    """The words of a training text that come up `fewest` times at least, the `most` frequent ones, and the two marks.

    Raises:
        Problem: there is none.
    """
    counts = Counter(word for line in text for word in line.split())
    words = [word for word, count in counts.most_common(most) if count >= fewest]
    if not set(words) - {END, UNKNOWN}:
        raise Problem(f"the vocabulary is empty: no word of the training text comes up {fewest} times")
    return Words(words + [mark for mark in (END, UNKNOWN) if mark not in words])


def sentences(lines: Lines, source: Lexicon, target: Lexicon, longest: int | None) -> Sentences:
    """A split as token ids; with a limit, pairs with an empty side or one of more words are left out."""
    pairs, kept, empty, long = [], [], 0, 0
    for pair in zip(lines.source, lines.target, strict=True):
        ids = (source.encode(pair[0]), [*target.encode(pair[1]), target.start])
        if longest is not None and not (ids[0] and len(ids[1]) > 1):
            empty += 1
        elif longest is not None and max(len(ids[0]), len(ids[1]) - 1) > longest:
            long += 1
        else:
            pairs.append(ids)
            kept.append(pair)
    return Sentences(pairs, Lines([a for a, _ in kept], [b for _, b in kept]), empty, long)


def vocabularies(train: Lines, unit: Unit, *, most: int, fewest: int) -> tuple[Lexicon, Lexicon]:
    """The vocabularies of a training text.

    Raises:
        Problem: one would be empty, or `most` is too few.
    """
    learn, found = words_of if unit == "word" else Subwords.of, list[Lexicon]()
    for side, text in (("source", train.source), ("target", train.target)):
        try:
            found.append(learn(text, most=most, fewest=fewest))
        except Problem as problem:
            raise Problem(f"{side} language: {problem}", code=problem.code) from problem
    return found[0], found[1]


def pairs(splits: dict[Split, Lines], lexicons: tuple[Lexicon, Lexicon], *, longest: int) -> Pairs:
    """All splits in two vocabularies; of the test nothing is left out.

    Raises:
        Problem: no pair is left to train, validate or test on.
    """
    found = {split: sentences(splits[split], *lexicons, None if split == "test" else longest) for split in SPLITS}
    for split in SPLITS:
        if not found[split].pairs:
            gone = f"{found[split].empty} have an empty side, {found[split].long} are beyond {longest} words"
            raise Problem(f"no sentence pair of the {split} text can be used: {gone}")
    return Pairs(*lexicons, found)


def lexicon(facts: dict[str, Any]) -> Lexicon:
    """The vocabulary whose `facts()` these are.

    Raises:
        ValueError: they are those of none.
    """
    if facts["unit"] == "subword":
        return Subwords(facts["tokenizer"])
    if facts["unit"] != "word" or not isinstance(words := vocabulary(facts), Words):
        raise ValueError(f"unit must be word or subword, got {facts['unit']!r}")
    return words
