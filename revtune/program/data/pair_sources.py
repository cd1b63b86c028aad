"""Where sentence pairs come from: the files of a data set in a standard layout, or the hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from revtune.program.data.lines import ENDS, LINE_END, decode, read_packed, split_lines
from revtune.program.data.moses import Language, TextForm, shaped
from revtune.program.data.named_sets import SPLITS, Split, ask_hub, data_folder, not_in
from revtune.program.data.readings import BY_LINES, Reading
from revtune.program.errors import Problem

PairSource = Literal["multi30k", "iwslt14"]

PairUnit = Literal["word", "subword"]


class Layout(NamedTuple):
    """Where the files of a data set are, what their text looks like, and what a reader of its scores should know.

    Attributes:
        files: of a split and a language, with placeholders for what the data sets call these.
        form: what the text looks like.
        note: for readers of scores, with a placeholder for the number of training pairs.
    """

    files: str
    form: TextForm
    note: str = ""


MULTI30K = {"train": "train", "valid": "val", "test": "test_2016_flickr"}
"""What its files call the splits."""

SAMPLE = (
    "the training text is the sample in iwslt14-de-en-small, {pairs:,} pairs where IWSLT 2014 has about 160,000; "
    "its scores do not compare with those of the whole"
)

IWSLT14 = (
    Layout("iwslt14.tokenized.de-en/{split}.{language}", "iwslt14"),
    Layout("iwslt14-de-en-small/{small}.{language}", "iwslt14", SAMPLE),
)

FILES: dict[PairSource, dict[PairUnit, tuple[Layout, ...]]] = {
    "multi30k": {
        "word": (Layout("multi30k/tok/{tok}.lc.norm.tok.{language}", "multi30k"),),
        "subword": (
            Layout("multi30k/raw/{tok}.{language}.gz", "plain"), Layout("multi30k/raw/{tok}.{language}", "plain")
        ),
    },
    "iwslt14": {"word": IWSLT14, "subword": IWSLT14},
}  # fmt: skip
"""The layouts that are looked for, in order. Multi30K is published in words and raw, IWSLT 2014 in words alone."""

HUB = {"multi30k": "bentrevett/multi30k", "iwslt14": "bbaaaa/iwslt14-de-en"}

HUB_NOTES = {"iwslt14": "the text is the hub's, which is raw; BLEU may not compare with that of the published files"}


@dataclass(frozen=True)
class Lines:
    """A split's sentences in both languages, as text; line k of one is a translation of line k of the other."""

    source: list[str]
    target: list[str]


@dataclass(frozen=True)
class Texts:
    """The text of all splits as it was found.

    Attributes:
        splits: the text, by split.
        form: what it looks like, and so how sentences from elsewhere are to be shaped.
        note: what a reader of its scores should know, if anything.
    """

    splits: dict[Split, Lines]
    form: TextForm
    note: str = ""


def texts(
    name: PairSource, unit: PairUnit, source: Language, target: Language, folder: Path | None,
    reading: Reading = BY_LINES,
) -> Texts:  # fmt: skip
    """The text of all splits, from the folder in a standard layout, else from the hub.

    Raises:
        Problem: it is in neither, or there in part; it is no text; or the languages have different numbers of lines.
    """
    folder = data_folder(folder)
    partly: list[list[Path]] = []
    for layout in FILES[name][unit] if folder is not None else ():
        assert folder is not None
        sides = [(split, language) for split in SPLITS for language in (source, target)]
        paths = {side: folder / layout.files.format(**_placeholders(*side)) for side in sides}
        lacking = [path for path in paths.values() if not path.exists()]
        if not lacking and not (partly and layout.note):  # a sample does not stand in for a set that is there in part
            splits = {split: together(paths[split, source], paths[split, target], reading) for split in SPLITS}
            return Texts(splits, layout.form, layout.note.format(pairs=len(splits["train"].source)))
        if 0 < len(lacking) < len(paths):
            partly.append(lacking)
    if partly:
        raise Problem(f"{min(partly, key=len)[0]} is not there, though files beside it are")
    return from_hub(name, unit, source, target, folder)


def _placeholders(split: Split, language: Language) -> dict[str, str]:
    """What the placeholders of `Layout.files` stand for."""
    small = "train-sample" if split == "train" else split
    return {"split": split, "tok": MULTI30K[split], "small": small, "language": language}


def together(source: Path, target: Path, reading: Reading = BY_LINES) -> Lines:
    """Two files of one sentence a line.

    Raises:
        Problem: they have different numbers of lines, one breaks a line where the other does not, or one is no text.
    """
    texts = _text(source), _text(target)
    if reading is BY_LINES:
        _check_breaks((source, target), texts)
    sides = [_stripped(reading.lines(text)) for text in texts]
    if len(sides[0]) != len(sides[1]):
        given = f"{len(sides[0])} and {len(sides[1])}"
        raise Problem(f"{source} and {target} must have as many lines, each other's translations, got {given}")
    return Lines(*sides)


def _check_breaks(paths: tuple[Path, Path], texts: tuple[str, str]) -> None:
    """Raise `Problem` for the first line up to an LF that other ends break up in one file and not in the other.

    Sentences after it would be taken for translations of their neighbours; as many lines do not tell.
    """
    rows = [re.split("\r?\n", text.rstrip("".join(ENDS))) for text in texts]
    if len(rows[0]) != len(rows[1]) or len(rows[0]) == 1:
        return
    for number, row in enumerate(zip(*rows, strict=True), 1):
        ends = [LINE_END.findall(line) for line in row]
        if len(ends[0]) != len(ends[1]):
            more = len(ends[1]) > len(ends[0])
            found = f"U+{ord(ends[more][0]):04X} ends a line inside line {number}, where {paths[not more]} has one line"
            raise Problem(f"{paths[more]}: {found}; they must have as many, each other's translations")


def text_lines(path: Path) -> list[str]:
    """The lines of a file, packed by gzip or not.

    Raises:
        Problem: it cannot be read or is no UTF-8 text.
    """
    return _stripped(split_lines(_text(path)))


def _text(path: Path) -> str:
    return decode(read_packed(path), str(path), advice="")


def _stripped(lines: list[str]) -> list[str]:
    return [line.strip() for line in lines]


def from_hub(name: PairSource, unit: PairUnit, source: Language, target: Language, folder: Path | None) -> Texts:
    """The text of all splits from the hub, for words shaped like that of the files."""
    first = FILES[name][unit][0].files.format(**_placeholders("train", source))
    asked = ask_hub(name, HUB[name], None, None, not_in(folder, first))
    form: TextForm = name if unit == "word" else "plain"
    splits: dict[Split, Lines] = {}
    for split, hub_split in zip(SPLITS, ("train", "validation", "test"), strict=True):
        rows = [row.get("translation", row) for row in asked[hub_split]]  # some sets have a column for each language
        splits[split] = Lines(*([shaped(row[side], form, side) for row in rows] for side in (source, target)))
    return Texts(splits, form, HUB_NOTES.get(name, ""))
