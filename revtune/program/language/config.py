"""The configuration of a run: the text that it reads, the net that it trains, and how that learns."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Self, get_args

import tyro

from revtune.program.data.text_sources import Text, TextSource
from revtune.program.data.vocabulary import TextUnit
from revtune.program.errors import Problem
from revtune.program.files import absolute
from revtune.program.language.learning import Learning
from revtune.program.layers import REVERSIBLE, Model
from revtune.program.runs.folder import command_line
from revtune.program.runs.seals import NEAR
from revtune.program.tasks.task import Rule, Schedule, Size
from revtune.program.tuning import (
    DELTA,
    STN,
    TUNED,
    OfBothMethods,
    Tune,
    Tuning,
    check_methods,
    check_starts,
    check_tunes,
)
from revtune.program.typed import (
    LARGEST,
    MOST_THREADS,
    SEEDS,
    TOO_MANY,
    check_each,
    json_object,
    reason,
    told_of,
    typed,
)

RATES = "dropout input_dropout hidden_dropout output_dropout embedding_dropout weight_drop"
"""The settings of a net that are dropout rates."""


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
    follow_quickly: bool = False
    """Begin with gates by which h and c forget fast. RevLSTM only."""
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
class LanguageStudy(OfBothMethods):
    """The settings of a language model, whatever its hyperparameters do."""

    recipe: Annotated[str, tyro.conf.Suppress]
    size: Annotated[Size, tyro.conf.Suppress] = "small"
    text: tyro.conf.OmitArgPrefixes[Text] = field(default_factory=Text)
    net: tyro.conf.OmitArgPrefixes[Net] = field(default_factory=Net)
    learning: tyro.conf.OmitArgPrefixes[Learning] = field(default_factory=Learning)
    tuned_from: float = 0.05
    """Where tuned rates start that are 0, as no gradient reaches them there, and both penalties."""
    stn: Tuning = STN
    delta: Tuning = DELTA

    @property
    def seed(self) -> int:
        """Seed of weights, masks and segment lengths."""
        return self.learning.seed

    @property
    def threads(self) -> int:
        """Threads of torch."""
        return self.learning.threads

    @property
    def length(self) -> int:
        """Tokens of a stream in a segment of held-out text."""
        return self.learning.length

    def length_of(self, step: int) -> int:
        """Tokens of a stream in a training step."""
        return self.learning.length_of(step)

    def checked(self) -> Self:
        """Settings that a contest can have, with absolute paths.

        Raises:
            Problem: for the first that no contest can have.
        """
        check_study(self)
        check_starts(self.net, RATES)
        if self.learning.lr_too:
            raise Problem("--lr-too tunes the rate of one run; in a contest leave it out", code=2)
        if self.learning.device != "cpu":
            raise Problem(f"--device must be cpu in a contest, got {self.learning.device}", code=2)
        return self.with_absolute_paths()

    def with_absolute_paths(self) -> Self:
        """The settings with their paths made absolute, to be found from any folder later.

        Raises:
            Problem: they name a file, and their recipe reads none.
        """
        text = self.text
        if text.file is not None and text.source != "file":
            does = f"{command_line('train', 'text', '--file', text.file)} does"
            raise Problem(f"recipe {self.recipe} reads no file; {does}", code=2)
        text = dataclasses.replace(text, file=absolute(text.file), data=absolute(text.data))
        return dataclasses.replace(self, text=text)

    def at_seed(self, seed: int) -> Self:
        """The settings with another seed."""
        return dataclasses.replace(self, learning=dataclasses.replace(self.learning, seed=seed))

    def at_places(self, other: Self) -> Self:
        """The settings with the text where others have it."""
        text = dataclasses.replace(self.text, data=other.text.data, file=other.text.file)
        return dataclasses.replace(self, text=text)


@dataclass(frozen=True, kw_only=True)
class Config(LanguageStudy):
    """All settings of a run: with the same ones on the same machine the same numbers come out."""

    tune: Tune = "off"
    """How dropout rates and penalties on activations (AR, TAR) are tuned on validation text while weights learn:
    Delta-STN, STN, or not at all, which leaves rates where they are and has no penalties."""
    replays: Annotated[bool, tyro.conf.Suppress] = False
    """Whether rates and penalties follow the run's replayed.json, which was another run's, and neither stay as the
    settings of the net have them nor are tuned."""

    def json(self, **more: Any) -> str:
        """The configuration as indented JSON, paths as strings, with more beside it."""
        return json.dumps({**dataclasses.asdict(self), **more}, indent=2, default=str) + "\n"


def from_json(text: str, where: Path) -> Config:
    """The configuration that `Config.json` wrote.

    Raises:
        Problem: the text, read from `where`, is no configuration of this version.
    """
    try:
        parts = json_object(json.loads(text), "it")
        parts.pop(NEAR, None)  # of use to `place`
        groups = {"text": Text, "net": Net, "learning": Learning}
        groups |= {name: Tuning for name in TUNED if name in parts}  # earlier versions tuned nothing
        for name in groups:
            json_object(parts[name], name)
        for name in ("file", "data"):  # both must be there, unlike other settings, which have defaults
            parts["text"][name] = None if parts["text"][name] is None else Path(parts["text"][name])
        config = typed(Config, {**parts, **{name: typed(kind, parts[name]) for name, kind in groups.items()}})
        with told_of(where):
            check(config)
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise Problem(f"{where} is no configuration of this revtune: {reason(error)}") from error
    return config


def check(config: Config) -> None:
    """Raise `Problem` for the first value that no run can have."""
    check_study(config)
    check_tunes(config, config.learning.steps, config.net, RATES)


def check_study(study: LanguageStudy) -> None:
    """Raise `Problem` for the first value that no language model's settings can have."""
    text, net, learning = study.text, study.net, study.learning
    for group, name, kind in (
        (text, "source", TextSource), (text, "unit", TextUnit), (net, "model", Model), (learning, "optimizer", Rule),
        (learning, "schedule", Schedule),
    ):  # fmt: skip
        check_each(group, name, get_args(kind).__contains__, f"one of {', '.join(get_args(kind))}")
    check_each(text, "max_words", lambda value: value >= 1, "at least 1")
    check_each(text, "words", lambda value: value is None or value >= 1, "at least 1, or None for all")
    if text.words is not None and text.unit != "word":
        raise Problem(f"--words counts words, which --unit {text.unit} does not learn; --unit word does", code=2)
    check_each(net, "embedding hidden layers", lambda value: value >= 1, "at least 1")
    counts = "steps batch length patience valid_every valid_batch save_every threads"
    check_each(learning, counts, lambda value: value >= 1, "at least 1")
    check_each(learning, "lr clip", lambda value: value > 0, "above 0")
    check_each(learning, "warmup length_spread weight_decay momentum", lambda value: value >= 0, "at least 0")
    check_each(net, RATES, lambda value: 0 <= value < 1, "a rate from 0 to below 1")
    _check_largest(text, net, learning)
    _check_net(net)
    check_methods(study)


def _check_largest(text: Text, net: Net, learning: Learning) -> None:
    check_each(learning, "seed", SEEDS.__contains__, "from -2^63 to 2^63 - 1")
    check_each(learning, "threads", lambda value: value <= MOST_THREADS, f"at most {MOST_THREADS}")
    counts = "steps batch length patience valid_every valid_batch save_every warmup"
    for group, names in ((text, "max_words"), (net, "embedding hidden layers"), (learning, counts)):
        check_each(group, names, lambda value: value < TOO_MANY, "below 2^31")
    check_each(learning, "lr clip weight_decay momentum", lambda value: value <= LARGEST, f"at most {LARGEST:g}")
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
