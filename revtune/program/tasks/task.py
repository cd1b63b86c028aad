"""A task whose hyperparameters are tuned, described once for every way of tuning them.

STN, Delta-STN, a plain run at fixed values and a searcher's trial all learn a `Task` by these calls::

    hypers = Hyperparameters(**task.hypers())             tuned: what `net` reads changes, from example to example
    hypers = Constants(task.hypers(), values)             plain: numbers; layers are torch's own (`plain`)
    net = task.net(hypers)                                not converted; `self_tuning(net, hypers)` is the tuner's part
    batch = task.train_batch(step)                        a function of its number, so a run goes on from any step
    out = task.predict(model, batch)                      or (out, state) = task.predict(model, batch, state)
    losses = task.train_loss(model, out, batch, h)        (B,); h.name is a number, 0-d or (B,)
    loss = task.valid_loss(out, task.valid_batch(number))
    given = task.stream(model, batch, h)                  instead, of a task that streams its loss
    task.evaluate(model, "valid")["loss"]                 what is compared, nats over all of a split

A recipe with a task has two functions: `study(size)` gives the typed settings, a `Study` or what else has all of
`Settings`, and `task(study)` loads the data. Learners read `learning`, `stn` and `delta`; the task does not.

Shapes: B examples.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol, Self, TypeVar, get_args

import tyro
from torch import Tensor, nn

from revtune.program.files import absolute
from revtune.program.runs.places import place
from revtune.program.runs.schedule import FALL, scheduled
from revtune.program.tuning import TUNED, OfBothMethods, Tuned, Tuning, check_reached, check_tuning
from revtune.program.typed import check_numbers
from revtune.reversible.streams.loss import rewind_loss
from revtune.tuning.hypers.hyperparameters import Hyperparameters
from revtune.tuning.hypers.kinds import Hyper
from revtune.tuning.trees import mapped

Method = Literal["delta", "stn", "plain"]

Searcher = Literal["random", "grid", "tpe", "hyperband", "asha", "gp", "cmaes"]

Rule = Literal["sgd", "adam"]

Schedule = Literal["constant", "cosine", "plateau"]

Split = Literal["valid", "test"]

Size = Literal["small", "paper", "full"]

METHODS: tuple[Method, ...] = ("delta", "stn", "plain")

SEARCHERS: tuple[Searcher, ...] = get_args(Searcher)


@dataclass(frozen=True, kw_only=True)
class Learning:
    """How weights learn, whatever tunes their hyperparameters."""

    steps: int = 2000
    """Updates of the weights in all."""
    batch: int = 64
    """Examples of an update, or streams read side by side."""
    optimizer: Rule = "sgd"
    """Update rule of the weights."""
    lr: float = 0.1
    """Their learning rate at its highest."""
    momentum: float = 0.9
    """Momentum of sgd."""
    schedule: Schedule = "constant"
    """cosine falls to a twentieth over the run; plateau divides by 4 when validation stops improving."""
    patience: int = 5
    """Validations in a row without a better one before a plateau, and before a plain run counts as finished; with
    plateaus that takes twice as many, half of them at the lower rate."""
    clip: float | None = None
    """Largest norm of the weights' gradient, and of the responses'."""
    valid_every: int = 100
    """Updates between validations on all held-out examples."""

    def rate(self, step: int, falls: int, fall: float = FALL) -> float:
        """The learning rate of an update, from 0 on, after `falls` plateaus that each divide it by `fall`."""
        done = min(1.0, step / self.steps)
        return scheduled(self.lr, self.schedule, done=done, falls=falls, fall=fall)

    def of_rule(self) -> dict[str, float]:
        """The settings of the update rule, by argument of torch's."""
        return {"lr": self.lr, "momentum": self.momentum} if self.optimizer == "sgd" else {"lr": self.lr}


MOST_NATS = 99.0
"""A perplexity is at most e to this, as `math.exp` overflows beyond 709."""


def perplexity(nats: float) -> float:
    """The perplexity of a mean loss of a token."""
    return math.exp(min(nats, MOST_NATS))


class Settings(Protocol):
    """What learners and contests read of a task's settings."""

    @property
    def seed(self) -> int:
        """Seed of weights, order, masks and perturbations."""

    @property
    def threads(self) -> int:
        """Threads of torch."""

    @property
    def learning(self) -> Learning:
        """How weights learn."""

    def tuning(self, method: Tuned) -> Tuning:
        """The settings of a method that tunes."""

    def checked(self) -> Self:
        """Settings that a contest can have, with absolute paths; a `Problem` for the first that none can."""

    def at_seed(self, seed: int) -> Self:
        """The settings with another seed."""

    def at_places(self, other: Self) -> Self:
        """The settings with the data where others have them."""


@dataclass(frozen=True, kw_only=True)
class Study(OfBothMethods):
    """The settings of a recipe with a task; the recipe's `study(size)` gives them, from the paper or for two cores."""

    data: Path | None = None
    """Folder with data sets by name; default: the environment's REVTUNE_DATA, then the hub."""
    seed: int = 1
    """Seed of weights, order, masks and perturbations."""
    threads: int = 1
    """Threads of torch; small nets gain little from more, and lose much on busy cores."""
    learning: Annotated[Learning, tyro.conf.arg(name="")] = field(default_factory=Learning)
    stn: Tuning = field(default_factory=Tuning)
    delta: Tuning = field(default_factory=Tuning)

    def checked(self) -> Self:
        """Settings that a contest can have, with absolute paths.

        Raises:
            Problem: for the first that no run can have.
        """
        check(self)
        return with_absolute_paths(self)

    def at_seed(self, seed: int) -> Self:
        """The settings with another seed."""
        return dataclasses.replace(self, seed=seed)

    def at_places(self, other: Self) -> Self:
        """The settings with the data where others have them."""
        return dataclasses.replace(self, data=other.data)


@dataclass(frozen=True)
class Space:
    """Where searchers look for a hyperparameter, in user units.

    Args:
        low, high: the bounds, themselves allowed.
        log: whether factors count, not differences.
        whole: whether it is an integer.
    """

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def at(self, share: float) -> float:
        """The value that has a share of the space below it, from 0 to less than 1."""
        if self.whole:
            return int(self.low + share * (self.high + 1 - self.low))
        if self.log:
            return math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
        return self.low + share * (self.high - self.low)


class PlainTask(ABC):
    """Data and network of a study that a plain run learns; data are loaded when it is made.

    Attributes:
        study: its settings.
        measure: the name of the figure that people quote, one of those that `evaluate` gives.
    """

    measure: ClassVar[str] = "loss"

    study: Settings

    def __init__(self, study: Any) -> None:
        self.study = study

    @classmethod
    def as_learnt(cls, study: Any, digest: str | None) -> Self:
        """The task of a run that learnt from data of a digest, which earlier versions may have read otherwise."""
        return cls(study)

    def digest(self) -> str:
        """What tells the data from others; a run does not go on with other data than its own."""
        return ""

    def hypers(self) -> dict[str, Hyper]:
        """What is tuned, by name, from its starting value on; here nothing."""
        return {}

    @abstractmethod
    def net(self, hypers: Hyperparameters) -> nn.Module:
        """A fresh network of plain layers, its weights by the study's seed.

        An nn.Dropout is tuned by the hyperparameter of its name, as in `self_tuning`; other regularizers are `Tuned`
        ones that read `hypers`. In a plain run `hypers` are `Constants`, so that reading them costs nothing.
        """

    @abstractmethod
    def parts(self, model: nn.Module, batch: Any, state: Any, h: Any) -> Iterator[tuple[Tensor, Any]]:
        """Losses whose sum is the mean training loss of a batch, and the next state, detached, if the task carries.

        Each goes backward before the next is asked for.
        """

    @abstractmethod
    def train_batch(self, step: int) -> Any:
        """The batch of an update, from 0 on: it depends on this number and the study's seed alone."""

    @abstractmethod
    def evaluate(self, model: nn.Module, split: Split) -> dict[str, float]:
        """Figures over all of a split by a model in evaluation mode: "loss" in nats, and `measure`."""


class Task(PlainTask):
    """A task with hyperparameters that all methods tune.

    Attributes:
        carry: whether a recurrent state goes from batch to batch, as `Tuner(carry=)`; `predict` then takes and gives
            it, and starts anew, whatever it is handed, where a batch says that a pass over the data begins.
        batch_dim: which dimension of the layers' inputs is examples, as `self_tuning(batch_dim=)`.
    """

    carry: ClassVar[bool] = False
    batch_dim: ClassVar[int] = 0

    @abstractmethod
    def hypers(self) -> dict[str, Hyper]:
        """What is tuned, by name, from its starting value on."""

    @abstractmethod
    def spaces(self) -> dict[str, Space]:
        """Where searchers look for each hyperparameter."""

    @abstractmethod
    def predict(self, model: nn.Module, batch: Any, *state: Any) -> Any:
        """The prediction; of a task that carries, the prediction and the next state (`state` is one, None at first)."""

    @property
    def streams(self) -> bool:
        """Whether the loss is streamed: `stream` then stands in the place of `predict` and of both losses."""
        return False

    def stream(self, model: nn.Module, batch: Any, h: Any) -> dict[str, Any]:
        """The arguments of the streamed loss, but for the state, as `Tuner(stream=)` asks for them; h may be None."""
        raise NotImplementedError

    def streamed_loss(self, model: nn.Module, batch: Any, state: Any, h: Any) -> tuple[Tensor, Any]:
        """The streamed loss of a batch, from a carried state on, and the next state."""
        given = self.stream(model, batch, h)
        return rewind_loss(**({"state": state, **given} if self.carry else given))

    @abstractmethod
    def train_loss(self, model: nn.Module, out: Any, batch: Any, h: Any) -> Tensor:
        """Losses (B,) of a training step at hyperparameters h, penalties included; their mean is learnt."""

    @abstractmethod
    def valid_loss(self, out: Any, batch: Any) -> Tensor:
        """Losses (B,), or their mean, of a step on held-out data: no penalties."""

    def mean_loss(self, model: nn.Module, batch: Any, state: Any, h: Any) -> tuple[Tensor, Any]:
        """The mean training loss of a batch at hyperparameters h, and the next state, detached, if the task carries."""
        if self.streams:
            return self.streamed_loss(model, batch, state, h)
        out = self.predict(model, batch, *([state] if self.carry else []))
        if self.carry:
            out, state = out
            state = mapped(Tensor.detach, state)
        return self.train_loss(model, out, batch, h).mean(), state

    def parts(self, model: nn.Module, batch: Any, state: Any, h: Any) -> Iterator[tuple[Tensor, Any]]:
        """The mean training loss, whole."""
        yield self.mean_loss(model, batch, state, h)

    @abstractmethod
    def valid_batch(self, number: int) -> Any:
        """The batch of a step on held-out data, likewise."""


S = TypeVar("S", bound=Study)

AnySettings = TypeVar("AnySettings", bound=Settings)


def with_absolute_paths(study: S) -> S:
    """A study with its path made absolute, to be found from any folder later."""
    return dataclasses.replace(study, data=absolute(study.data))


def with_place(study: S, folder: Path, data: Path | None = None) -> S:
    """The study of the run in a folder with the path that its data have now, `data` for whoever says so."""
    return dataclasses.replace(study, data=place("data", study.data, folder, data))


def check(study: Study) -> None:
    """Raise `Problem` for the first setting that no run can have."""
    check_numbers(study, study.learning)
    for name in TUNED:
        check_tuning(getattr(study, name), name)


def check_tuned(study: Study, method: Method) -> None:
    """Raise `Problem` for a study with so few updates that the method would never tune."""
    if method == "plain":
        return
    check_reached(study.learning.steps, study.tuning(method), method, untuned="--method plain")
