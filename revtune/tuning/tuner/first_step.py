"""What only a running network shows, found out in a tuner's first training step and said then, not in the middle of a
run. A few later steps are watched too, as a network may go by another branch then.

Random numbers that a module draws at a strength of its own, a rate that is read as a number, a layer whose weight is
read past its forward, predictions that the training loss does not take as Delta-STN changes them (`predictions`), and
rows at the hyperparameters of one example that move another one's loss (`rows_check`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from revtune.tuning.hypers.hyperparameters import Hyperparameters, Values
from revtune.tuning.regularizers.dropouts import ConvertedDropout
from revtune.tuning.regularizers.regularizer import TunedRegularizer
from revtune.tuning.responses.responding import Responding
from revtune.tuning.tuner import bilevel
from revtune.tuning.tuner.bilevel import BilevelProblem
from revtune.tuning.tuner.predictions import GradientsRefused, check_range
from revtune.tuning.tuner.rows_check import check_rows

DRAWING = {
    torch.rand, torch.rand_like, torch.randn, torch.randn_like, torch.normal, torch.bernoulli, Tensor.bernoulli,
    Tensor.bernoulli_, Tensor.uniform_, Tensor.normal_,
}  # fmt: skip
DROPPING = {
    torch.dropout: "p", F.dropout: "p", F.dropout1d: "p", F.dropout2d: "p", F.dropout3d: "p", F.alpha_dropout: "p",
    F.feature_alpha_dropout: "p", F.scaled_dot_product_attention: "dropout_p",
}  # fmt: skip
"""Functions that drop, each with the name of its rate."""


LATER = (10, 100, 1000)
"""Steps, counted from 1, that are watched besides the first, for what is drawn and read there alone."""


class FirstStep:
    """Watches the first training step, and some later ones.

    Args:
        problem: what is learnt; `watched` gives another in its place for that step.
        linear: whether the method is Delta-STN.
    """

    def __init__(self, problem: BilevelProblem, linear: bool) -> None:
        self._problem, self._linear, self._losses = problem, linear, 0
        self._draws, self._told, self._first = DrawsWatched(problem.model), set[tuple[str, str]](), True
        self._per_example = True

    def is_due(self, step: int) -> bool:
        """Whether a step, counted from 1, is to be watched."""
        return self._first or step in LATER

    @contextlib.contextmanager
    def watched(self) -> Iterator[BilevelProblem]:
        """The step's passes run in here, of the problem that this gives."""
        hypers, self._losses = self._problem.hypers, 0
        hypers.read, before = ReadsWatched(hypers.read, self._draws), hypers.read
        try:
            yield dataclasses.replace(self._problem, predict=self._predict, train_loss=self._loss)
        finally:
            before.update(hypers.read)
            hypers.read = before

    def _predict(self, model: nn.Module, batch: Any) -> Any:
        """A prediction, its draws watched; not those of a compiled network, as the watching would be compiled."""
        if _is_compiled(model):
            return self._problem.predict(model, batch)
        with bilevel.uncompiled(), self._draws:
            return self._problem.predict(model, batch)

    def _loss(self, out: Any, batch: Any, h: Values) -> Tensor:
        """The training loss, its predictions checked: Delta-STN's first are the network's own, its second are linear.

        Raises:
            ValueError: it takes predictions in their range alone, or differentiates them for the network's inputs.
        """
        self._losses += 1
        linear = self._linear and self._first
        if linear and self._losses == 1:
            with bilevel.uncompiled():
                check_range(self._problem.train_loss, out, batch, h)
        with GradientsRefused() if linear and self._losses > 1 else contextlib.nullcontext():
            losses = self._problem.train_loss(out, batch, h)
        self._per_example = isinstance(losses, Tensor) and losses.dim() == 1
        return losses

    def findings(self, batch: Any) -> Iterator[str]:
        """Sentences for the user, once the step's gradients are there; `net.conversion` is brought up to date.

        Raises:
            ValueError: rows are at the hyperparameters of one example and move another one's loss.
        """
        conversion: Any = self._problem.model.conversion
        found = [*self._numbers(), *self._passed_by(), *self._draws.untold(conversion.left)]
        for name, why in found:
            if (name, why) in self._told:
                continue
            self._told.add((name, why))
            conversion.replaced.pop(name, None)
            conversion.left[name] = "; ".join(filter(None, [conversion.left.get(name), why]))
            yield f"{name}: {why}"
        if self._first:  # and it stays the first until rows are right
            yield from check_rows(self._problem, batch, self._per_example)
        self._first = False

    def _numbers(self) -> Iterator[tuple[str, str]]:
        for name, module in self._problem.model.named_modules():
            if isinstance(module, ConvertedDropout) and module.read_as_number and module.per == "example":
                yield (
                    name or "the network itself",
                    (
                        "it is never called and its rate is read as a number, where each example would have one of its "
                        f'own; the number is {module.p}, and Rate({module.p}, per="batch") would be tuned'
                    ),
                )

    def _passed_by(self) -> Iterator[tuple[str, str]]:
        for name, module in self._problem.model.named_modules():
            if isinstance(module, Responding) and not module.__dict__.get("_warned") and _learns_alone(module):
                yield (
                    name or "the network itself",
                    (
                        "its weight has a gradient and its response has none, as the weight is read past the layer's "
                        "forward; call the layer, or leave it out by self_tuning(leave=)"
                    ),
                )


def _learns_alone(module: Responding) -> bool:
    """Whether a layer's weights have a gradient, and nothing of its response, which could have one."""
    parts = list(module.responding_parameters())
    added = [q for _, second, q in parts if q.requires_grad]
    return bool(added) and any(w.grad is not None for w, *_ in parts) and all(q.grad is None for q in added)


class DrawsWatched(TorchFunctionMode):
    """Notes which modules of a network draw random numbers, and which read hyperparameters."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model, self._names = (
            model,
            {id(module): name for name, module in model.named_modules() if not isinstance(module, Hyperparameters)},
        )
        self._drawn = dict[int, tuple[str, list[nn.Module]]]()  # by module: by what, and the modules that run it
        self.reads: set[int] = set()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What the function gives."""
        kwargs = kwargs or {}
        if _draws(function, args, kwargs) and (owners := self.owners()):
            self._drawn.setdefault(id(owners[0]), (function.__name__, owners))
        return function(*args, **kwargs)

    def owners(self) -> list[nn.Module]:
        """The modules of the network that run now, the innermost first."""
        found, frame = [], inspect.currentframe()
        # no generator walks the frames: it would hold them, and they the tuner, until the garbage collector runs
        while (frame := frame.f_back if frame else None) and frame.f_globals.get("__name__") != bilevel.__name__:
            first = _first_argument(frame)
            if isinstance(first, nn.Module) and id(first) in self._names:
                found.append(first)
        return found

    def untold(self, left: dict[str, str]) -> Iterator[tuple[str, str]]:
        """Modules that draw, which neither the conversion has told of nor a hyperparameter acts in."""
        for function, (owner, *above) in self._drawn.values():
            name = self._names[id(owner)] or "the network itself"
            told = any(name == outer or name.startswith(f"{outer}.") for outer in left)
            if not (told or _is_known(owner) or self.reads & {id(owner), *map(id, above)}):
                draws = f"{type(owner).__name__} draws random numbers by {function} in training"
                yield name, f"{draws}, at a strength that nothing tunes; an nn.Dropout, or what reads hypers, would be"


def _is_known(module: nn.Module) -> bool:
    """Whether a module may draw: those of this library and torch's own, and those that hand a tuned rate on."""
    own = isinstance(module, TunedRegularizer | Responding)
    hands_on = any(isinstance(child, ConvertedDropout) and child.read_as_number for child in module.children())
    return own or hands_on or type(module).__module__.startswith("torch.nn.")


def _is_compiled(model: nn.Module) -> bool:
    return any(
        getattr(module, "_compiled_call_impl", None) or hasattr(module, "_orig_mod") for module in model.modules()
    )


def _first_argument(frame: FrameType) -> Any:
    names = frame.f_code.co_varnames[: frame.f_code.co_argcount]
    return frame.f_locals.get(names[0]) if names else None


def _draws(function: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether a call of a function draws random numbers; dropouts do not in evaluation, nor at a rate of 0."""
    if function not in DROPPING:
        return function in DRAWING
    place = 4 if DROPPING[function] == "dropout_p" else 1
    rate = args[place] if len(args) > place else kwargs.get(DROPPING[function], 0.0 if place == 4 else 0.5)
    return bool(rate) and bool(kwargs.get("training", args[2] if place == 1 and len(args) > 2 else True))


class ReadsWatched(set[str]):
    """The names of hyperparameters that have been read; it has the modules noted that read them."""

    def __init__(self, names: set[str], draws: DrawsWatched) -> None:
        super().__init__(names)
        self._draws = draws

    def add(self, name: str) -> None:
        """One more is read."""
        super().add(name)
        self._draws.reads.update(map(id, self._draws.owners()[:1]))
