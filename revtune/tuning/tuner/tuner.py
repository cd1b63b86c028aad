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
from revtune.tuning.hypers.hyperparameters import Hyperparameters
from revtune.tuning.random_states import random_states, set_random_states
from revtune.tuning.trees import mapped
from revtune.tuning.tuner import bilevel
from revtune.tuning.tuner.batches import Streams
from revtune.tuning.tuner.bilevel import Problem, TrainLoss, ValidLoss
from revtune.tuning.tuner.carried_state import Carried
from revtune.tuning.tuner.history import History
from revtune.tuning.tuner.optimizer_checks import check_decay, check_hyper_decay, checked, checked_hyper
from revtune.tuning.tuner.state_checks import check_loaded, check_state
from revtune.tuning.tuner.tuner_checks import (
    batch_size,
    check_devices,
    check_dtypes,
    check_method,
    check_predict,
    check_settings,
    of_first,
)

Factory = Callable[[list[dict[str, Any]]], Optimizer]


GRADIENTS = {"stn": bilevel.stn, "delta": bilevel.delta}


class Tuner:
    """Trains a self-tuning network and tunes its hyperparameters on held-out data, step by step of the user's own loop.

    Args:
        model: as `self_tuning` gives it.
        train_loss: `train_loss(out, batch, h)` gives losses (B,); `h.name` are the examples' own values in user units.
        valid_loss: `valid_loss(out, batch)` gives losses (B,), or their mean; it cannot see hyperparameters.
        optimizer: makes the optimizer of weights and responses from parameter groups, such as
            `lambda params: torch.optim.SGD(params, 0.1)`. A factory, as parameters that a conversion replaced would be
            dead; responses are a group of their own, without weight decay.
        method: "delta" (Bae and Grosse 2020) or "stn" (MacKay et al. 2019).
        predict: `predict(model, batch)` gives the prediction; `model(batch[0])` by default. With `carry`,
            `predict(model, batch, state)` gives the prediction and the next state.
        hyper_optimizer: likewise of hyperparameters and scales; Adam at 0.01 by default.
        warmup: training batches before the first validation step.
        ratio: training batches to each validation step.
        entropy: weight of the perturbations' entropy in the validation loss, which tunes scales.
        clip: largest norm of the gradients of weights, and of those of responses; None for no limit.
        accumulate: training batches whose gradients are added up for one update.
        autocast: makes the context of forward passes, such as `lambda: torch.autocast("cpu", torch.bfloat16)`.
        scaler: a `torch.amp.GradScaler`, for float16.
        carry: whether a recurrent state goes from batch to batch; detached, one for each level.
        size: B of a batch; by default the first dimension of its first tensor, or the one that `batch_dim` says.
        seed: of the perturbations.

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
        train_loss: TrainLoss,
        valid_loss: ValidLoss,
        *,
        optimizer: Factory,
        method: Literal["delta", "stn"] = "delta",
        predict: Callable[..., Any] | None = None,
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
    ) -> None:
        hypers = getattr(model, "hypers", None)
        if not isinstance(hypers, Hyperparameters):
            raise ValueError(f"Tuner wants a network that self_tuning converted, got {type(model).__name__}")
        if method not in GRADIENTS:
            raise ValueError(f'method must be "delta" or "stn", got {method!r}')
        check_settings({
            "train_loss": train_loss, "valid_loss": valid_loss, "optimizer": optimizer, "predict": predict,
            "hyper_optimizer": hyper_optimizer, "warmup": warmup, "ratio": ratio, "entropy": entropy, "clip": clip,
            "accumulate": accumulate, "autocast": autocast, "size": size, "seed": seed,
        })  # fmt: skip
        check_predict(predict, model, carry)
        check_devices(model, hypers)
        check_dtypes(model, hypers)
        check_method(model, hypers, method)
        hypers.centred = method == "delta"
        self.model, self.hypers, self.method = model, hypers, method
        self.warmup, self.ratio, self.entropy, self.clip = warmup, ratio, entropy, clip
        self.accumulate, self.scaler = accumulate, scaler
        self.generator = torch.Generator(hypers.raw.device).manual_seed(seed)
        predict = predict or of_first
        self._carried = Carried(predict, hypers) if carry else None
        self.problem = Problem(
            model, hypers, self._carried or predict, train_loss, valid_loss, size or batch_size(model), self.generator,
            autocast,
        )  # fmt: skip
        base, added = self.problem.parameters()
        self.groups = [base, added]
        groups: list[dict[str, Any]] = [{"params": base}, {"params": added, "weight_decay": 0.0}]
        self.optimizer = checked(optimizer(groups), base, added, hypers)
        own = [hypers.raw, hypers.spread]
        self.hyper_optimizer = checked_hyper(hyper_optimizer([{"params": [one]} for one in own]), own)
        self.history, self.streams = History(), Streams()
        self.steps = self.valid_steps = 0
        hypers.read.clear()
        self._started = time.perf_counter()

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
        """Weights and responses one step on; the loss. As `step`."""
        self._begin("train")
        waiting = mapped(Tensor.clone, self._added_up())
        if not waiting:
            self.optimizer.zero_grad()  # of what is no step of this tuner's
        try:
            with bilevel.statistics_kept(self.model):
                loss = GRADIENTS[self.method](self.problem, batch, self._scaled)
                if (self.steps + 1) % self.accumulate == 0:
                    self._update()
        except Exception:
            self._put_back(waiting)
            raise
        self.steps += 1
        self._go_on()
        self._warn_unread()
        return loss.item()

    def valid_step(self, batch: Any) -> float:
        """Hyperparameters and scales one step on; the loss. As `step`."""
        self._begin("valid")
        loss, grads = bilevel.held_out(self.problem, batch, self.entropy)
        for parameter, grad in grads.items():
            if not torch.isfinite(grad).all():
                raise NonFiniteError("the gradient of hyperparameters is not finite; they are as before this step")
            parameter.grad = grad
        self._update_hypers()
        self.valid_steps += 1
        self._go_on()
        facts = {"step": self.steps, "seconds": round(time.perf_counter() - self._started, 3), "valid": loss.item()}
        self.history.add(facts | {"values": self.values(), "scales": self.hypers.scales()})
        return loss.item()

    def _begin(self, level: str) -> None:
        if torch.is_autocast_enabled(self.hypers.raw.device.type):
            raise RuntimeError(
                "a step must not run inside torch.autocast, which would keep cast weights past their update; give "
                "Tuner autocast="
            )
        if self.hypers.centred != (self.method == "delta"):
            raise ValueError(f"the network now holds responses of the other method than this tuner's, {self.method!r}")
        if level == "train":
            check_decay(self.optimizer, self.groups[1])
        else:
            check_hyper_decay(self.hyper_optimizer)
        if self._carried is not None:
            self._carried.level = level
        self.model.train()  # a module that is to stay in evaluation mode sees to that in its own `train`

    def _update(self) -> None:
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        for group, name in zip(self.groups, ("weights", "responses"), strict=True):
            norm = bilevel.clipped(group, self.clip)
            if self.scaler is None and not torch.isfinite(norm):
                raise NonFiniteError(f"the gradient of the {name} is not finite; they are as before this step")
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad()

    def _update_hypers(self) -> None:
        before = [p.detach().clone() for p in (self.hypers.raw, self.hypers.spread)]
        state = mapped(Tensor.clone, self.hyper_optimizer.state_dict())
        self.hyper_optimizer.step()
        self.hyper_optimizer.zero_grad()
        self.hypers.cap()
        fine = self.hypers.raw.isfinite() & self.hypers.spread.isfinite()
        if fine.all():
            return
        with torch.no_grad():
            self.hypers.raw.copy_(before[0])
            self.hypers.spread.copy_(before[1])
        self.hyper_optimizer.load_state_dict(state)
        name = self.hypers.names[int((~fine).nonzero()[0])]
        raise NonFiniteError(
            f"hyperparameter {name!r} left the range of numbers in one step of its optimizer; it is as before the step"
        )

    def _scaled(self, loss: Tensor) -> Tensor:
        loss = loss / self.accumulate if self.accumulate > 1 else loss
        return loss if self.scaler is None else self.scaler.scale(loss)

    @property
    def states(self) -> dict[str, Any]:
        """The carried state of each level."""
        return {} if self._carried is None else self._carried.states

    def _go_on(self) -> None:
        if self._carried is not None:
            self._carried.go_on()

    def _warn_unread(self) -> None:
        unread = [name for name in self.hypers.names if name not in self.hypers.read]
        if self.steps == 1 and unread:
            names = ", ".join(map(repr, unread))
            warnings.warn(
                f"nobody read hyperparameter {names} in a training step, so nothing tunes it: a module or the training "
                "loss must use its value, which no optimizer and no evaluation can do for it",
                stacklevel=3,
            )

    def values(self) -> dict[str, float]:
        """Current values of the hyperparameters, in user units."""
        return self.hypers.values()

    def batches(self, train: Iterable[Any], valid: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        """One pass over training batches, each with a held-out batch where a validation step is due, else None.

        Held-out data are gone through again and again, from one call on to the next. After `load_state_dict` the pass
        goes on where it was saved.

        Raises:
            ValueError: there are no training batches, or no held-out batches, as from a generator gone through before.
        """
        self.streams.check(train, valid)
        for batch in self.streams.once(train):
            yield batch, self.streams.again(valid) if self.due else None

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on, in tensors, numbers and words, for `torch.load(weights_only=True)`.

        Of random numbers these are torch's; a data pipeline that draws by `random` or NumPy keeps its own.
        """
        scaler = {} if self.scaler is None else {"scaler": self.scaler.state_dict()}
        optimizers = [one.state_dict() for one in (self.optimizer, self.hyper_optimizer)]
        return scaler | {
            "model": self.model.state_dict(), "optimizer": optimizers[0], "hyper_optimizer": optimizers[1],
            "held": [len(one["state"]) for one in optimizers], "generator": self.generator.get_state(),
            "random": random_states(self.hypers.raw.device), "states": dict(self.states),
            "streams": self.streams.state_dict(), "history": list(self.history.records), "method": self.method,
            "optimizers": self._kinds(), "accumulate": self.accumulate, "gradients": self._added_up(),
            "steps": self.steps, "valid_steps": self.valid_steps, "seconds": time.perf_counter() - self._started,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Stand where the tuner stood whose `state_dict` this is.

        Raises:
            ValueError: it is of another method or network, or damaged; nothing has been loaded then.
        """
        before = copy.deepcopy(self.state_dict())
        check_state(state, before)
        try:
            self._load(copy.deepcopy(state))  # optimizers would go on in the tensors of the one that it is from
            check_loaded(self.hypers, self.optimizer, self.hyper_optimizer)
        except Exception as error:
            self._load(before)
            raise ValueError(f"the saved state does not fit, or is damaged: {error}") from error

    def _load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.hyper_optimizer.load_state_dict(state["hyper_optimizer"])
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])
        self.generator.set_state(state["generator"])
        set_random_states(state["random"], self.hypers.raw.device)
        if self._carried is not None:
            self._carried.stand(state["states"])
        self.history.records = list(state["history"])
        self.streams.load_state_dict(state["streams"])
        self._put_back(state["gradients"])
        self.steps, self.valid_steps = state["steps"], state["valid_steps"]
        self._started = time.perf_counter() - state["seconds"]

    def _kinds(self) -> list[str]:
        """What the optimizers of both levels are."""
        return [type(one).__name__ for one in (self.optimizer, self.hyper_optimizer)]

    def _put_back(self, gradients: list[Tensor | None]) -> None:
        """Gradients as `_added_up` gave them."""
        self.optimizer.zero_grad()
        for parameter, grad in zip([p for group in self.groups for p in group], gradients, strict=False):
            parameter.grad = None if grad is None else grad.to(parameter)

    def _added_up(self) -> list[Tensor | None]:
        """Gradients that wait for more batches before the next update."""
        if self.steps % self.accumulate == 0:
            return []
        return [p.grad for group in self.groups for p in group]
