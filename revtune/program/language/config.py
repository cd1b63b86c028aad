"""The configuration of a run: the text that it reads, the net that it trains, and how that learns."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tyro

from revtune.program.data.text_sources import Text, TextSource
from revtune.program.data.vocabulary import TextUnit
from revtune.program.errors import Problem
from revtune.program.layers import REVERSIBLE, Model
from revtune.program.runs.seals import NEAR
from revtune.program.tuning import TUNED, Tuned, Tuning, check_reached, check_tuning
from revtune.program.typed import LARGEST, MOST_THREADS, SEEDS, TOO_MANY, check_each, reason, told_of, typed
from revtune.tuning.hypers.kinds import NEAREST

Rule = Literal["adam", "sgd"]

Schedule = Literal["cosine", "plateau"]

Size = Literal["small", "paper"]

Tune = Literal["delta", "stn", "off"]

RATES = "dropout input_dropout hidden_dropout output_dropout embedding_dropout weight_drop"
"""The settings of a net that are dropout rates."""

LEAST = NEAREST
"""The rate that a tuned one may start from at least, and as far from 1 at most."""


@dataclass(frozen=True, kw_only=True)
class Net:
    """The language model."""

    model: Model = "revgru"
    """Recurrent layer; gru and lstm are torch's own, which store every state."""
    embedding: int = 64
    """Units of a token's embedding."""
    hidden: int = 512
    """Units of each recurrent layer."""
    layers: int = 1
    """Recurrent layers."""
    max_forget_bits: float | None = 3.0
    """Most bits that a unit may forget in one step; None for no limit. Reversible models only."""
    forgetting: bool = True
    """Without it nothing is forgotten and nothing stored. Reversible models only."""
    bounded: bool = True
    """Whether h takes up (1 - p) of its update, which keeps it below 1, or all of it, as in the paper. RevLSTM only."""
    tie: bool = False
    """Use the embedding's weights in the softmax as well; embedding and hidden are then equal."""
    dropout: float = 0.0
    """Rate of ordinary dropout between layers."""
    input_dropout: float = 0.0
    """Rate of locked dropout on each layer's input: one mask a segment."""
    hidden_dropout: float = 0.0
    """Rate of locked dropout on the state that the gates read. Reversible models only."""
    output_dropout: float = 0.0
    """Rate of locked dropout on each layer's output."""
    embedding_dropout: float = 0.0
    """Rate at which whole words of the vocabulary are left out of a segment."""
    weight_drop: float = 0.0
    """Rate of dropout on the recurrent weights, one mask a segment."""


@dataclass(frozen=True, kw_only=True)
class Learning:
    """How it learns."""

    steps: int = 1600
    """Weight updates in all; the run's length is counted in these, never in time."""
    batch: int = 32
    """Streams of text read side by side."""
    length: int = 64
    """Tokens of a stream in one step, the span of truncated backpropagation."""
    length_spread: float = 0.0
    """Standard deviation of that length in tokens; then one step in 20 is half as long and lr follows the length."""
    optimizer: Rule = "adam"
    """Update rule."""
    lr: float = 8e-3
    """Learning rate at its highest."""
    lr_too: bool = False
    """Tune that rate in the same run, from lr on, by Mechanic (Cutkosky et al. 2023); the schedule acts on top."""
    schedule: Schedule = "cosine"
    """cosine falls to a twentieth over the run; plateau divides by 4 when validation stops improving."""
    warmup: int = 30
    """Steps over which the learning rate rises from nothing."""
    patience: int = 5
    """Validations in a row without a better one before the learning rate falls. Schedule plateau only."""
    clip: float = 1.0
    """Largest norm of the gradient, all parameters together."""
    weight_decay: float = 0.0
    """L2 penalty of the optimizer."""
    valid_every: int = 320
    """Steps between validations; the best one's weights are kept."""
    valid_batch: int = 64
    """Streams that validation and test text are cut into; a short text into fewer."""
    save_every: int = 25
    """Steps between checkpoints, from which a run that was stopped or killed goes on."""
    threads: int = 1
    """Threads of torch; small nets gain little from more, and lose much on busy cores."""
    device: str = "cpu"
    """Where to compute: cpu, cuda, cuda:1 ..."""
    seed: int = 1
    """Seed of weights, masks and segment lengths."""


DELTA = Tuning(hyper_lr=0.02, tune_scales=False)
"""As the task `ptb_lstm` has them: scales that stay do not shrink until responses have nothing to learn from."""

STN = Tuning(tune_scales=False)


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings of a run: with the same ones on the same machine the same numbers come out."""

    recipe: Annotated[str, tyro.conf.Suppress]
    size: Annotated[Size, tyro.conf.Suppress] = "small"
    text: tyro.conf.OmitArgPrefixes[Text] = field(default_factory=Text)
    net: tyro.conf.OmitArgPrefixes[Net] = field(default_factory=Net)
    learning: tyro.conf.OmitArgPrefixes[Learning] = field(default_factory=Learning)
    tune: Tune = "off"
    """How dropout rates and penalties on activations (AR, TAR) are tuned on validation text while weights learn:
    Delta-STN, STN, or not at all, which leaves rates where they are and has no penalties."""
    tuned_from: float = 0.05
    """Where tuned rates start that are 0, as no gradient reaches them there, and both penalties."""
    stn: Tuning = STN
    delta: Tuning = DELTA

    def tuning(self, method: Tuned) -> Tuning:
        """The settings of a method that tunes."""
        return self.stn if method == "stn" else self.delta

    def json(self, **more: Any) -> str:
        """The configuration as indented JSON, paths as strings, with more beside it."""
        return json.dumps({**dataclasses.asdict(self), **more}, indent=2, default=str) + "\n"


def from_json(text: str, where: Path) -> Config:
    """The configuration that `Config.json` wrote.

    Raises:
        Problem: the text, read from `where`, is no configuration of this version.
    """
    try:
        parts: dict[str, Any] = json.loads(text)
        parts.pop(NEAR, None)  # of use to `place`
        for name in ("file", "data"):  # both must be there, unlike other settings, which have defaults
            parts["text"][name] = None if parts["text"][name] is None else Path(parts["text"][name])
        groups = {"text": Text, "net": Net, "learning": Learning}
        groups |= {name: Tuning for name in TUNED if name in parts}  # earlier versions tuned nothing
        config = typed(Config, {**parts, **{name: typed(kind, parts[name]) for name, kind in groups.items()}})
        with told_of(where):
            check(config)
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise Problem(f"{where} is no configuration of this revtune: {reason(error)}") from error
    return config


def check(config: Config) -> None:
    """Raise `Problem` for the first value that no run can have."""
    text, net, learning = config.text, config.net, config.learning
    for group, name, kind in (
        (text, "source", TextSource), (text, "unit", TextUnit), (net, "model", Model), (learning, "optimizer", Rule),
        (learning, "schedule", Schedule),
    ):  # fmt: skip
        check_each(group, name, get_args(kind).__contains__, f"one of {', '.join(get_args(kind))}")
    check_each(text, "max_words", lambda value: value >= 1, "at least 1")
    check_each(net, "embedding hidden layers", lambda value: value >= 1, "at least 1")
    counts = "steps batch length patience valid_every valid_batch save_every threads"
    check_each(learning, counts, lambda value: value >= 1, "at least 1")
    check_each(learning, "lr clip", lambda value: value > 0, "above 0")
    check_each(learning, "warmup length_spread weight_decay", lambda value: value >= 0, "at least 0")
    check_each(net, RATES, lambda value: 0 <= value < 1, "a rate from 0 to below 1")
    _check_largest(text, net, learning)
    _check_net(net)
    _check_tuned(config)


def _check_largest(text: Text, net: Net, learning: Learning) -> None:
    check_each(learning, "seed", SEEDS.__contains__, "from -2^63 to 2^63 - 1")
    check_each(learning, "threads", lambda value: value <= MOST_THREADS, f"at most {MOST_THREADS}")
    counts = "steps batch length patience valid_every valid_batch save_every warmup"
    for group, names in ((text, "max_words"), (net, "embedding hidden layers"), (learning, counts)):
        check_each(group, names, lambda value: value < TOO_MANY, "below 2^31")
    check_each(learning, "lr clip weight_decay", lambda value: value <= LARGEST, f"at most {LARGEST:g}")
    check_each(learning, "length_spread", lambda value: value <= learning.length, f"at most --length {learning.length}")


def _check_net(net: Net) -> None:
    limit = "above 0, or None for no limit"
    check_each(net, "max_forget_bits", lambda value: value is None or 0 < value < math.inf, limit)
    if net.tie and net.embedding != net.hidden:
        raise Problem(f"--tie needs --embedding equal to --hidden, got {net.embedding} and {net.hidden}", code=2)
    if net.model in REVERSIBLE:
        check_each(net, "hidden", lambda value: value % 2 == 0, "even, to be split in halves")
    elif net.hidden_dropout:
        raise Problem(f"--hidden-dropout acts inside the recurrence, which torch's {net.model} keeps closed", code=2)


def _check_tuned(config: Config) -> None:
    check_each(config, "tune", get_args(Tune).__contains__, f"one of {', '.join(get_args(Tune))}")
    within = f"from {LEAST:g} to 1 - {LEAST:g}"
    check_each(config, "tuned_from", lambda value: LEAST <= value <= 1 - LEAST, within)
    for method in TUNED:
        check_tuning(config.tuning(method), method)
    if config.tune == "off":
        return
    check_reached(config.learning.steps, config.tuning(config.tune), config.tune)
    starts = f"0, to start from --tuned-from, or {within} where it is tuned"
    check_each(config.net, RATES, lambda value: not value or LEAST <= value <= 1 - LEAST, starts)
