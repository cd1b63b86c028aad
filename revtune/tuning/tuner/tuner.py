"""The alternation of both levels: training steps for weights and responses, validation steps for hyperparameters."""

from __future__ import annotations

import contextlib
import copy
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from revtune.errors import NonFiniteError
from revtune.processes import Processes
from revtune.tuning.hypers.hyperparameters import Hyperparameters, initial_values
from revtune.tuning.random_states import random_states, set_random_states
from revtune.tuning.trees import mapped
from revtune.tuning.tuner import bilevel, schedule
from revtune.tuning.tuner.batches import BatchIterators
from revtune.tuning.tuner.between_steps import BetweenSteps
from revtune.tuning.tuner.bilevel import BilevelProblem, TrainLoss, ValidLoss
from revtune.tuning.tuner.carried_state import CarriedState
from revtune.tuning.tuner.first_step import FirstStep
from revtune.tuning.tuner.history import History
from revtune.tuning.tuner.modes import Modes
from revtune.tuning.tuner.optimizer_checks import check_decay, check_hyper_decay, checked, checked_hyper
from revtune.tuning.tuner.schedule import Schedule
from revtune.tuning.tuner.state_checks import check_loaded, check_state
from revtune.tuning.tuner.steps_together import StepsTogether
from revtune.tuning.tuner.streamed import Stream, StreamedLoss, check_alone, itself
from revtune.tuning.tuner.tuner_checks import (
    LEARNT,
    batch_size,
    centring,
    check_frozen,
    check_network,
    clip_norm,
    context_factory,
    entropy_weight,
    factory,
    given,
    integer,
    prediction,
    streaming,
)

Factory = Callable[[list[dict[str, Any]]], Optimizer]

GRADIENTS = {"stn": bilevel.stn, "delta": bilevel.delta}


class Tuner:
    """Trains a self-tuning network and tunes its hyperparameters on held-out data, step by step of the user's own loop.

    Args:
        model: as `self_tuning` gives it.
        train_loss: `train_loss(out, batch, h)` gives losses (B,); `h.name` are the examples' own values in user units.
            With `stream`, `out` is the streamed loss, to which a penalty on weights may be added.
        valid_loss: `valid_loss(out, batch)` gives losses (B,), or their mean; it cannot see hyperparameters. None with
            `stream`.
        optimizer: makes the optimizer of weights and responses from parameter groups, such as
            `lambda params: torch.optim.SGD(params, 0.1)`. It is a factory because an optimizer made before the
            conversion would lack the responses. They are a group of their own, without weight decay.
        method: "delta" (Bae and Grosse 2020) or "stn" (MacKay et al. 2019).
        centred: whether responses count from the current hyperparameters. Delta-STN's always do. STN's count from 0 by
            default, as published; from there they also learn what training asks of the weights anyway, and at a high
            learning rate of theirs all hyperparameters may drift together. Centring alone is a step of the way from
            STN to Delta-STN, at STN's cost.
        predict: `predict(model, batch)` gives the prediction; `model(batch[0])` by default. With `carry`,
            `predict(model, batch, state)` gives the prediction and the next state.
        stream: for a reversible net whose loss is streamed, in the place of `predict` and `valid_loss`:
            `stream(model, batch, h)` gives the arguments of `rewind_loss`, a dict. On held-out data h is None, as no
            regularizer counts there. With `carry` the tuner adds `state`, but where that is given as None, to begin
            anew.
        hyper_optimizer: makes the optimizer of hyperparameters and scales; Adam at 0.01 by default.
        warmup: training batches before the first validation step.
        ratio: training batches to each validation step.
        entropy: weight of the perturbations' entropy in the validation loss, which tunes scales.
        clip: largest norm of the gradients of weights, and of those of responses; None for no limit.
        accumulate: training batches whose gradients are added up for one update.
        autocast: makes the context of forward passes, such as `lambda: torch.autocast("cpu", torch.bfloat16)`.
        scaler: a `torch.amp.GradScaler`, for float16.
        carry: whether a recurrent state goes from batch to batch; detached, one for each level.
        size: `size(batch)` gives B; by default that of the first tensor, in `self_tuning`'s `batch_dim`.
        seed: of the perturbations.
        processes: those that take each step together, every one with its own rows of both batches: steps are those of
            one process on the whole batches. Losses are then means of all rows. None for one process.

    Attributes:
        optimizer, hyper_optimizer: for schedulers.
        history: every validation step's losses, values and scales.

    Raises:
        ValueError: the model is not self-tuning, or has learnt by the other method; an optimizer holds other
            parameters, decays responses or hyperparameters, or needs a closure; `predict` does not take what it will be
            given; the network is of low precision; a number is out of its range.

    Example:
        >>> net = self_tuning(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3)))
        >>> def train_loss(out, batch, h): return F.cross_entropy(out, batch[1], reduction="none")
        >>> def valid_loss(out, batch): return F.cross_entropy(out, batch[1])
        >>> tuner = Tuner(net, train_loss, valid_loss, optimizer=lambda params: torch.optim.SGD(params, 0.1))
        >>> data = [(torch.randn(16, 4), torch.randint(3, (16,))) for _ in range(8)]
        >>> for batch, held_out in tuner.batches(data[:6], data[6:]): _ = tuner.step(batch, held_out)
        >>> list(tuner.values())
        ['2']
    """

    def __init__(
        self,
        model: nn.Module,
        train_loss: TrainLoss | None = None,
        valid_loss: ValidLoss | None = None,
        *,
        optimizer: Factory,
        method: Literal["delta", "stn"] = "delta",
        centred: bool | None = None,
        predict: Callable[..., Any] | None = None,
        stream: Stream | None = None,
        hyper_optimizer: Factory = lambda params: torch.optim.Adam(params, 0.01),
        warmup: int = 0,
        ratio: int = 2,
        entropy: float = 1e-3,
        clip: float | None = None,
        accumulate: int = 1,
        autocast: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
        scaler: torch.amp.GradScaler | None = None,
        carry: bool = False,
        size: Callable[[Any], int] | None = None,
        seed: int = 0,
        processes: Processes | None = None,
    ) -> None:
        hypers = getattr(model, "hypers", None)
        if not isinstance(hypers, Hyperparameters):
            raise ValueError(f"Tuner wants a network that self_tuning converted, got {type(model).__name__}")
        if method not in GRADIENTS:
            raise ValueError(f'method must be "delta" or "stn", got {method!r}')
        self.centred = centring(method, centred)
        check_network(model, hypers, self.centred)
        self.model, self.hypers, self.method, self.scaler = model, hypers, method, scaler
        self.warmup, self.ratio = integer("warmup", warmup, 0), integer("ratio", ratio, 1)
        self.accumulate = integer("accumulate", accumulate, 1)
        self.entropy, self.clip = entropy_weight(entropy), clip_norm(clip)
        self.generator = torch.Generator(hypers.raw.device).manual_seed(integer("seed", seed))
        if stream is not None:
            check_alone(valid_loss=valid_loss, predict=predict)
            predict, valid_loss = StreamedLoss(streaming(stream), hypers, carry), itself
            train_loss = itself if train_loss is None else train_loss
        predict = prediction(predict, model, carry)
        self._carried_state = CarriedState(predict, hypers) if carry else None
        self.problem = BilevelProblem(
            model, hypers, self._carried_state or predict, given("train_loss", train_loss),
            given("valid_loss", valid_loss), batch_size(size, model), self.generator,
            context_factory(autocast), stream is not None,
        )  # fmt: skip
        self._together = StepsTogether(processes, model, self.problem.size, self.generator)
        make, make_hyper = factory("optimizer", optimizer), factory("hyper_optimizer", hyper_optimizer)
        hypers.centred = self.centred  # from here on the network is this tuner's
        self.groups = self.problem.parameters()
        base, added = self.groups
        self.optimizer = checked(make([{"params": base}, {"params": added, "weight_decay": 0.0}]), base, added, hypers)
        own = [hypers.raw, hypers.spread]
        self.hyper_optimizer = checked_hyper(make_hyper([{"params": [parameter]} for parameter in own]), own)
        self._between, self._modes = BetweenSteps(model, hypers), Modes(model)
        self.history, self.batch_iterators = History(), BatchIterators()
        self.steps = self.valid_steps = 0
        hypers.read.clear()
        self._first = FirstStep(self.problem, method == "delta")
        self._started, self._start = time.perf_counter(), self.values()

    def step(self, batch: Any, held_out: Any = None) -> tuple[float, float | None]:
        """A training step, and a validation step if one is due; the losses of both, None where there was none.

        Raises:
            NonFiniteError: a loss or a gradient is NaN or infinite; what that level moves is as before, and so is all
                else, but for generators of random numbers, and the training step that comes before a validation step.
            ValueError: a validation step is due and `held_out` is None.
        """
        if self.due and held_out is None:
            raise ValueError("a validation step is due, so held_out must be a batch, got None")
        due, trained = self.due, self.train_step(batch)
        return trained, self.valid_step(held_out) if due else None

    @property
    def due(self) -> bool:
        """Whether the next step has a validation step."""
        after = self.steps + 1
        return after > self.warmup and (after - self.warmup) % self.ratio == 0

    def train_step(self, batch: Any) -> float:
        """A step of weights and responses, with `accumulate` one batch of a step; the loss. Errors are as in `step`."""
        self._begin("train")
        waiting = mapped(Tensor.clone, self._waiting_gradients())
        if not waiting:
            self.optimizer.zero_grad()  # gradients left by the user's own backward are none of this step's
        try:
            with self.problem.buffers.kept(), self._together.taking(batch):
                loss = self._together.mean(self._gradients(batch))
                if (self.steps + 1) % self.accumulate == 0:
                    self._update()
                else:
                    self._check_waiting()
        except Exception:
            self._set_gradients(waiting)
            raise
        self.steps += 1
        self._advance_state()
        self._warn_unread()
        return loss.item()

    def _gradients(self, batch: Any) -> Tensor:
        """Add a training step's gradients; the first one is watched, and some others."""
        if not self._first.is_due(self.steps + 1):
            return GRADIENTS[self.method](self.problem, batch, self._scaled)
        with self._first.watched() as watched:
            loss = GRADIENTS[self.method](watched, batch, self._scaled)
        for finding in self._first.findings(batch):
            warnings.warn(finding, stacklevel=4)
        return loss

    def valid_step(self, batch: Any) -> float:
        """A step of hyperparameters and scales; the loss. Errors are as in `step`."""
        self._begin("valid")
        with self._together.taking(batch):
            loss, grads = bilevel.hypergradients(self.problem, batch, self.entropy)
            loss = self._together.mean(loss)
        self._together.add_weighted(grads.values())
        resting = [self.hypers.column(name) for name in self.unread]
        for parameter, grad in grads.items():
            grad[resting] = 0.0
            if not torch.isfinite(grad).all():
                raise NonFiniteError("the gradient of hyperparameters is not finite; they are as before this step")
            parameter.grad = grad
        self._update_hypers()
        self.valid_steps += 1
        self._advance_state()
        self.history.add({
            "step": self.steps, "seconds": round(time.perf_counter() - self._started, 3), "valid": loss.item(),
            "values": self.values(), "scales": self.hypers.scales(),
        })  # fmt: skip
        return loss.item()

    def _begin(self, level: str) -> None:
        if torch.is_autocast_enabled(self.hypers.raw.device.type):
            raise RuntimeError(
                "a step must not run inside torch.autocast, which would keep cast weights past their update; give "
                "Tuner autocast="
            )
        if self.hypers.centred != self.centred:
            own, other = LEARNT[self.centred], LEARNT[self.hypers.centred]
            raise ValueError(f"the network now holds responses that were learnt by {other}; this tuner's are by {own}")
        if level == "train":
            check_decay(self.optimizer, self.groups[1])
        else:
            check_frozen(self.hypers)
            check_hyper_decay(self.hyper_optimizer)
        if self._carried_state is not None:
            self._carried_state.level = level
        self._between.check()
        if alone := self._modes.train():
            warnings.warn(
                f"{', '.join(alone)}: in training mode while the network as a whole is in evaluation mode, so all else "
                "rests from now on; net.train() puts all modules into training mode",
                stacklevel=4,
            )
        if (resting := self._modes.tuned_at_rest()) and self.steps:  # in the first step they are told as unread
            warnings.warn(
                f"{', '.join(resting)}: in evaluation mode while the network trains, so nothing is dropped there and "
                "nothing learns how strong to be; net.train() puts all modules into training mode",
                stacklevel=4,
            )

    def _update(self) -> None:
        self._together.add_gradients([parameter for group in self.groups for parameter in group])
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        norms = [bilevel.clip_gradients(group, self.clip) for group in self.groups]
        if not self._skips:
            _refuse([bool(torch.isfinite(norm)) for norm in norms])
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad()
        self._between.note()

    @property
    def _skips(self) -> bool:
        """Whether a scaler skips updates by gradients that are not finite."""
        return self.scaler is not None and self.scaler.is_enabled()

    def _check_waiting(self) -> None:
        """Refuse a batch whose gradients would spoil the update that they wait for, in all processes alike."""
        if self._skips:
            return
        norms = [bilevel.clip_gradients(group, None) for group in self.groups]  # with no limit, these are asked alone
        _refuse(self._together.all_of([bool(torch.isfinite(norm)) for norm in norms]))

    def _update_hypers(self) -> None:
        before = [p.detach().clone() for p in (self.hypers.raw, self.hypers.spread)]
        state = mapped(Tensor.clone, self.hyper_optimizer.state_dict())
        self.hyper_optimizer.step()
        self.hyper_optimizer.zero_grad()
        self.hypers.cap()
        finite = self.hypers.raw.isfinite() & self.hypers.spread.isfinite()
        if finite.all():
            return
        with torch.no_grad():
            self.hypers.raw.copy_(before[0])
            self.hypers.spread.copy_(before[1])
        self.hyper_optimizer.load_state_dict(state)
        name = self.hypers.names[int((~finite).nonzero()[0])]
        raise NonFiniteError(
            f"hyperparameter {name!r} left the range of numbers in one step of its optimizer; it is as before the step"
        )

    def _scaled(self, loss: Tensor) -> Tensor:
        loss = self._together.weighted(loss / self.accumulate if self.accumulate > 1 else loss)
        return loss if self.scaler is None else self.scaler.scale(loss)

    @property
    def states(self) -> dict[str, Any]:
        """The carried state of each level."""
        return {} if self._carried_state is None else self._carried_state.states

    def _advance_state(self) -> None:
        if self._carried_state is not None:
            self._carried_state.advance()

    def _warn_unread(self) -> None:
        if self.steps == 1 and self.unread:
            names = ", ".join(map(repr, self.unread))
            warnings.warn(
                f"nobody read hyperparameter {names} in a training step, so nothing tunes it and it stays: a module or "
                "the training loss must use its value, which no optimizer and no evaluation can do for it",
                stacklevel=3,
            )

    @property
    def unread(self) -> list[str]:
        """Names of hyperparameters that no training step has read so far, which stay as they are; none before one."""
        return [name for name in self.hypers.names if name not in self.hypers.read] if self.steps else []

    def values(self) -> dict[str, float]:
        """Current values of the hyperparameters, in user units; those that nobody reads, `unread`, stay."""
        return self.hypers.values()

    def schedule(self) -> Schedule:
        """All values that the hyperparameters have had, by training step, as data that `json.dump` takes.

        A dictionary of "steps", the training steps from which values hold, the first being 0; "values", a list as long
        for each hyperparameter, in user units, of which the first is where it began; and "rates", for each
        hyperparameter the names of what it sets, such as "2.p" or "rnn.dropout", none where only the loss reads it.
        Values are the current ones, without perturbations. `revtune.replay` applies it to a plain network.

        Raises:
            ValueError: the history lacks records of validation steps.
        """
        if len(self.history) != self.valid_steps:
            has = f"{len(self.history)} records of {self.valid_steps} validation steps"
            raise ValueError(f"the history has {has}, so that a schedule would lack values")
        return schedule.schedule(self.model, self._start, self.history.records)

    def batches(self, train: Iterable[Any], valid: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        """One pass over training batches, each with a held-out batch where a validation step is due, else None.

        Held-out data are gone through again and again, and the next call goes on where this one stopped. After
        `load_state_dict` the pass goes on where it was saved.

        Raises:
            ValueError: there are no training batches or no held-out ones, as from a generator gone through before.
        """
        self.batch_iterators.check(train, valid)
        for batch in self.batch_iterators.train_pass(train):
            yield batch, self.batch_iterators.next_valid(valid) if self.due else None

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on, in tensors, numbers and words, for `torch.load(weights_only=True)`.

        It holds the states of torch's random generators; a data pipeline that draws by `random` or NumPy saves its own.
        """
        scaler = {} if self.scaler is None else {"scaler": self.scaler.state_dict()}
        optimizers = [optimizer.state_dict() for optimizer in (self.optimizer, self.hyper_optimizer)]
        return scaler | {
            "model": self.model.state_dict(), "optimizer": optimizers[0], "hyper_optimizer": optimizers[1],
            "held": [len(state["state"]) for state in optimizers], "generator": self.generator.get_state(),
            "random": random_states(self.hypers.raw.device), "states": dict(self.states),
            "streams": self.batch_iterators.state_dict(), "history": list(self.history.records), "method": self.method,
            "optimizers": self._optimizer_kinds(), "accumulate": self.accumulate,
            "gradients": self._waiting_gradients(), "steps": self.steps, "valid_steps": self.valid_steps,
            "read": sorted(self.hypers.read), "seconds": time.perf_counter() - self._started, "start": self._start,
            "sizes": {} if self._carried_state is None else self._carried_state.sizes,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where a tuner was when it gave this `state_dict`.

        Raises:
            ValueError: it is of another method or network, or damaged; nothing has been loaded then.
        """
        before = copy.deepcopy(self.state_dict())
        check_state(state, before)
        try:
            self._load(copy.deepcopy(state))  # optimizers take tensors as they are, and would step in the caller's
            check_loaded(self.hypers, self.optimizer, self.hyper_optimizer)
        except Exception as error:
            self._load(before)
            raise ValueError(f"the saved state does not fit, or is damaged: {error}") from error

    def _load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        if self.hypers.centred != self.centred:
            raise ValueError(f"it was learnt by {LEARNT[self.hypers.centred]}, this tuner's is {LEARNT[self.centred]}")
        self.optimizer.load_state_dict(state["optimizer"])
        self.hyper_optimizer.load_state_dict(state["hyper_optimizer"])
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])
        self.generator.set_state(state["generator"])
        set_random_states(state["random"], self.hypers.raw.device)
        if self._carried_state is not None:
            self._carried_state.restore(state["states"], state.get("sizes", {}))
        self.history.records = list(state["history"])
        self.batch_iterators.load_state_dict(state["streams"])
        self._set_gradients(state["gradients"])
        self.steps, self.valid_steps = state["steps"], state["valid_steps"]
        self.hypers.read = set(state.get("read", self.hypers.names))
        # saved by an earlier version, a tuner began where hyperparameters do, which their units tell
        self._start = dict(state.get("start") or initial_values(self.hypers))
        self._started = time.perf_counter() - state["seconds"]

    def _optimizer_kinds(self) -> list[str]:
        return [type(optimizer).__name__ for optimizer in (self.optimizer, self.hyper_optimizer)]

    def __deepcopy__(self, memo: dict[int, Any]) -> Tuner:
        """Another tuner with the gradients that wait, which torch leaves out.

        Functions are shared: a loss that names the network itself reads the first one's weights.
        """
        made = memo[id(self)] = type(self).__new__(type(self))
        made.__dict__.update(copy.deepcopy(self.__dict__, memo))
        made._set_gradients(self._waiting_gradients())
        return made

    def _set_gradients(self, gradients: list[Tensor | None]) -> None:
        """Put back what `_waiting_gradients` gave."""
        self.optimizer.zero_grad()
        # not strict: the list is empty where no gradient waits
        for parameter, grad in zip([p for group in self.groups for p in group], gradients, strict=False):
            parameter.grad = None if grad is None else grad.to(parameter, copy=True)

    def _waiting_gradients(self) -> list[Tensor | None]:
        """Gradients that wait for more batches before the next update."""
        if self.steps % self.accumulate == 0:
            return []
        return [p.grad for group in self.groups for p in group]


def _refuse(finite: list[bool]) -> None:
    """Raise `NonFiniteError` unless the gradients of weights and of responses are finite."""
    for name, each in zip(("weights", "responses"), finite, strict=True):
        if not each:
            raise NonFiniteError(f"the gradient of the {name} is not finite; they are as before this step")
