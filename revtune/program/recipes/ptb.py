"""Penn Treebank, word level (Mikolov's preprocessing); --size paper for MacKay et al. 2018, section 5.1."""

from __future__ import annotations

from dataclasses import replace

from revtune.program.data.text_sources import Text, TextSource
from revtune.program.language.config import Config, Net
from revtune.program.language.learning import Learning
from revtune.program.language.task import LanguageTask
from revtune.program.tasks.task import Size
from revtune.program.tuning import CENTRED, DELTA, STN

kind = "text"

task = LanguageTask


def recipe(size: Size = "small") -> Config:
    """One RevGRU layer over 10,000 words, whose softmax shares the embedding's weights.

    The paper's size learns by SGD, its rate quartered on plateaus, at the paper's own dropout rates. The small one
    learns by Adam for two epochs, and tunes its rates by STN meanwhile.
    """
    return paper("ptb", "ptb", epoch=664) if size == "paper" else small("ptb", "ptb", epoch=664)


def paper(recipe: str, source: TextSource, *, epoch: int) -> Config:
    """The published settings: 650 units, heavy dropout, segments of about 70 words, 20 streams; `epoch` in steps."""
    net = Net(
        embedding=650, hidden=650, tie=True, bounded=False, input_dropout=0.4, hidden_dropout=0.3, output_dropout=0.4,
        embedding_dropout=0.1, weight_drop=0.5,
    )  # fmt: skip
    learning = Learning(
        steps=150 * epoch, batch=20, length=70, length_spread=5.0, optimizer="sgd", lr=20.0, schedule="plateau",
        warmup=0, patience=5, clip=0.1, weight_decay=1.2e-6, valid_every=epoch, valid_batch=10, save_every=200,
    )  # fmt: skip
    text = Text(source=source, unit="word")
    return Config(
        recipe=recipe, size="paper", text=text, net=net, learning=learning,
        stn=replace(STN, warmup=epoch), delta=replace(DELTA, warmup=epoch),
    )  # fmt: skip


def small(recipe: str, source: TextSource, *, epoch: int) -> Config:
    """The same kind of study on two cores: 256 units, light dropout to begin with, two epochs; `epoch` in steps."""
    net = Net(embedding=256, hidden=256, tie=True, input_dropout=0.1, output_dropout=0.1)
    learning = Learning(
        steps=2 * epoch, batch=20, length=70, lr=4e-3, warmup=50, clip=0.25, valid_every=epoch // 2, valid_batch=20,
        save_every=50,
    )  # fmt: skip
    text = Text(source=source, unit="word")
    return Config(recipe=recipe, text=text, net=net, learning=learning, tune="stn", stn=CENTRED)
