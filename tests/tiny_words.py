"""A Penn Treebank of a few words in its standard layout, and the smallest study of it."""

import dataclasses
import random
from pathlib import Path
from typing import Any

from revtune.program.recipes import ptb_lstm
from revtune.program.recipes.ptb_lstm import WordStudy
from revtune.program.tasks.task import Learning
from revtune.program.tuning import Tuning

LEARNING = Learning(steps=6, batch=4, valid_every=2, lr=0.5, momentum=0.0, clip=0.25)
TUNING = Tuning(warmup=1, ratio=1, hyper_lr=0.1, tune_scales=False)


def write_words(folder: Path, seed: int = 0) -> None:
    """Lines of 11 words, their ends counted, of nine words: 40 to train, 20 held out, 10 to test."""
    (folder / "ptb").mkdir(parents=True, exist_ok=True)
    draw = random.Random(seed)
    for split, lines in {"train": 40, "valid": 20, "test": 10}.items():
        words = [draw.choices("a b c d e f g h <unk>".split(), k=10) for _ in range(lines)]
        (folder / f"ptb/ptb.{split}.txt").write_text("".join(f" {' '.join(line)} \n" for line in words))


def tiny(folder: Path, **changes: Any) -> WordStudy:
    """The recipe's settings but for sizes."""
    settings = {"data": folder, "words": None, "width": 6, "length": 5, "learning": LEARNING}
    tuning = {"stn": TUNING, "delta": TUNING}
    return dataclasses.replace(ptb_lstm.study(), **{**settings, **tuning, **changes})
