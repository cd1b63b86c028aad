"""Sentence pairs of a made-up language, in the layout of Multi30K: a translation is the words upside down."""

from __future__ import annotations

import random
from pathlib import Path

NOUNS, VERBS = ("man", "dog", "girl", "ball", "bike", "tree"), ("sees", "has", "likes", "kicks")


def sentence(draw: random.Random) -> str:
    """Something to say."""
    said = ["the", draw.choice(NOUNS), draw.choice(VERBS), "a", draw.choice(NOUNS)]
    return " ".join([*said, *(["and", "a", draw.choice(NOUNS)] if draw.random() < 0.3 else []), "."])


def translated(text: str) -> str:
    """Word for word: each spelt backwards."""
    return " ".join(word[::-1] for word in text.split())


def write_pairs(folder: Path, train: int = 200, held_out: int = 20) -> Path:
    """The files, of so many sentences; the folder."""
    draw, place = random.Random(1), folder / "multi30k" / "tok"
    place.mkdir(parents=True)
    for name, size in (("train", train), ("val", held_out), ("test_2016_flickr", held_out)):
        lines = [sentence(draw) for _ in range(size)]
        (place / f"{name}.lc.norm.tok.en").write_text("".join(line + "\n" for line in lines))
        (place / f"{name}.lc.norm.tok.de").write_text("".join(translated(line) + "\n" for line in lines))
    return folder


def write_raw(folder: Path) -> Path:
    """The same sentences as people write them, beside the tokenized ones; the folder."""
    (folder / "multi30k" / "raw").mkdir()
    for path in (folder / "multi30k" / "tok").iterdir():
        lines = [line.replace(" .", ".").capitalize() for line in path.read_text().splitlines()]
        name = path.name.replace(".lc.norm.tok", "")
        (folder / "multi30k" / "raw" / name).write_text("".join(line + "\n" for line in lines))
    return folder
