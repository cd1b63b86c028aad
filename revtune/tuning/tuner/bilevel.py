"""The gradients of both levels: weights and responses on training data, hyperparameters on held-out data.

`stn` (MacKay et al. 2019): all weights on the loss at perturbed hyperparameters. `delta` (Bae and Grosse 2020): weights
on the loss at the current ones, responses on the loss of a prediction that is linear in them (`linearized`), at
perturbed ones. `held_out`, for both: hyperparameters, and the scales of their perturbations, through the responses.

Shapes: B examples, n hyperparameters.
"""

from __future__ import annotations

import contextlib
import functools
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from revtune.errors import NonFiniteError
from revtune.tuning.hypers.hyperparameters import Hyperparameters, Pass, Values
from revtune.tuning.random_states import random_states, set_random_states
from revtune.tuning.regularizers.sampler import Drawn
from revtune.tuning.responses.linearized import Recorded, second_pass, tangent_of, without_formula
from revtune.tuning.responses.normalisation import ResponseBatchNorm
from revtune.tuning.responses.responding import ADDED
from revtune.tuning.trees import mapped, tensors

Predict = Callable[[nn.Module, Any], Any]


TrainLoss = Callable[[Any, Any, Values], Tensor]


ValidLoss = Callable[[Any, Any], Tensor]


UNSEEN = (
    "the training loss reads tensors of the network that are not in its prediction, but in an attribute or a hook, by "
    'which Delta-STN teaches responses nothing: let predict return them too, or use method="stn"'
)


@dataclass(frozen=True)
class Problem:
    """What is learnt: a converted model, its hyperparameters, the losses of both levels, and how predictions are made.

    Attributes:
        model: as `self_tuning` gives it.
        predict: a prediction from the model and a batch.
        train_loss: losses (B,) of a prediction, a batch and the hyperparameters' values.
        valid_loss: losses (B,) or their mean, of a prediction and a batch.
        size: B of a batch.
        generator: of the perturbations.
        autocast: makes the context that forward passes run in.
    """

    model: nn.Module
    hypers: Hyperparameters
    predict: Predict
    train_loss: TrainLoss
    valid_loss: ValidLoss
    size: Callable[[Any], int]
    generator: torch.Generator | None = None
    autocast: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext

    def parameters(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The network's own parameters and those of its responses, each once, as they are when first asked for."""
        return self._parameters

    @functools.cached_property
    def _parameters(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        mine = {id(parameter) for parameter in self.hypers.parameters()}
        named = [(name, p) for name, p in self.model.named_parameters() if id(p) not in mine]
        added = {id(p) for name, p in named if name.rpartition(".")[2].startswith(ADDED)}
        return [p for _, p in named if id(p) not in added], [p for _, p in named if id(p) in added]

    def perturbed(self, batch: Any) -> tuple[Any, Any, Tensor]:
        """A batch for the current hyperparameters, one for perturbed ones, and those, (B, n).

        The two are one batch, unless a loader drew its examples' hyperparameters and augmented them accordingly.
        """
        if isinstance(batch, Drawn):
            raw = batch.raw.to(self.hypers.raw)
            return batch.batch if batch.still is None else batch.still, batch.batch, raw
        with torch.no_grad():
            return batch, batch, self.hypers.perturbed(self.size(batch), self.generator)

    def loss(self, out: Any, batch: Any, raw: Tensor) -> Tensor:
        """The mean training loss of a prediction at hyperparameters (B, n)."""
        return mean_of(self.train_loss(out, batch, Values(self.hypers, raw)), "training", raw.shape[0])


def stn(problem: Problem, batch: Any, scale: Callable[[Tensor], Tensor]) -> Tensor:
    """Add the gradients of a training step to `.grad` of all weights; the loss.

    Args:
        problem: what is learnt.
        batch: of training data, perhaps `Drawn`, whose hyperparameters are taken then.
        scale: what is done to a loss before it is differentiated, such as a GradScaler's scaling.

    Raises:
        NonFiniteError: the loss is NaN or infinite.
    """
    _, batch, raw = problem.perturbed(batch)
    d = problem.hypers.departure(raw)
    with problem.hypers.bound(Pass(raw.shape[0], d, raw, statistics=True)):
        with problem.autocast():
            loss = problem.loss(problem.predict(problem.model, batch), batch, raw)
        scale(finite(loss, "training")).backward()  # in the pass, as what is checkpointed runs again
    return loss.detach()


def delta(problem: Problem, batch: Any, scale: Callable[[Tensor], Tensor]) -> Tensor:
    """As `stn`, by the steps of Delta-STN; the loss at the current hyperparameters."""
    (still, batch, raw), (base, added) = problem.perturbed(batch), problem.parameters()
    now = problem.hypers.raw.detach().expand(raw.shape[0], -1)
    with frozen(added), problem.hypers.bound(Pass(raw.shape[0], None, now, statistics=True)):
        with problem.autocast():
            loss = problem.loss(problem.predict(problem.model, still), still, now)
        scale(finite(loss, "training")).backward()
    with frozen(base), statistics_kept(problem.model, always=True):
        _responses(problem, batch, raw, problem.hypers.departure(raw), scale)
    return loss.detach()


def _responses(problem: Problem, batch: Any, raw: Tensor, d: Tensor, scale: Callable[[Tensor], Tensor]) -> None:
    with sdpa_kernel(SDPBackend.MATH):  # the one with a forward-mode formula, and with one mask in both passes
        with second_pass():
            out, linear = linearized(problem, batch, raw, d)
            with problem.hypers.bound(Pass(raw.shape[0], d, raw)), problem.autocast():
                loss = problem.loss(linear, batch, raw)
            if tangent_of(loss) is not None:
                warnings.warn(UNSEEN, stacklevel=2)
        scale(finite(loss, "responses' training")).backward()
        pairs = [(y, at.grad) for y, at in zip(tensors(out), tensors(linear), strict=True) if y.requires_grad]
        told = [(y, grad) for y, grad in pairs if grad is not None]
        if told:
            with problem.hypers.bound(Pass(raw.shape[0], d, raw, tape=Recorded(0))):
                torch.autograd.backward([y for y, _ in told], [grad for _, grad in told])


def linearized(problem: Problem, batch: Any, raw: Tensor, d: Tensor) -> tuple[Any, Any]:
    """A prediction at d = 0, with its graph, and the prediction linear in d, a leaf that wants its gradient.

    Random masks are the same in both passes: torch's generators are put back between them. It is to be called inside
    `second_pass()`.

    Raises:
        TypeError: the prediction holds no tensor of floating-point numbers that could be found.
        ValueError: the passes took different layers.
        NotImplementedError: an operation has no forward-mode formula.
    """
    tape, device = Recorded(), problem.hypers.raw.device
    bound, states = Pass(raw.shape[0], d, raw, tape=tape), random_states(device)
    with problem.hypers.bound(bound), problem.autocast():
        out = problem.predict(problem.model, batch)
    if not tensors(out):
        kinds = "a tensor, or tuples, lists, dictionaries or dataclasses that hold some"
        raise TypeError(f"a prediction must be {kinds} of floating-point numbers, got {type(out).__name__}")
    set_random_states(states, device)
    try:
        with tape.carried(), problem.hypers.bound(bound), problem.autocast():
            linear = mapped(_linear, problem.predict(problem.model, batch))
    except NotImplementedError as error:
        raise without_formula(error, problem.model) from error
    return out, mapped(lambda y: y.requires_grad_() if y.is_floating_point() else y, linear)


def _linear(y: Tensor) -> Tensor:
    if not y.is_floating_point():
        return y
    primal, tangent = forward_ad.unpack_dual(y)
    return primal.clone() if tangent is None else primal + tangent


def held_out(problem: Problem, batch: Any, entropy: float) -> tuple[Tensor, dict[nn.Parameter, Tensor]]:
    """The loss of a validation step, and its gradients for hyperparameters and scales.

    No weight, running statistic or `.grad` moves; regularizers are off.

    Args:
        problem: what is learnt.
        batch: of held-out data.
        entropy: weight of the perturbations' entropy in the loss.

    Raises:
        NonFiniteError: the loss is NaN or infinite.
        HyperparameterError: something read a hyperparameter.
    """
    hypers, size = problem.hypers, problem.size(batch)
    raw = hypers.perturbed(size, problem.generator, tuned_only=True)
    d = hypers.departure(raw)
    base, added = problem.parameters()
    with frozen([*base, *added]), resting(problem.model), hypers.bound(Pass(size, d, None, training=False)):
        with problem.autocast():
            loss = mean_of(problem.valid_loss(problem.predict(problem.model, batch), batch), "validation")
        finite(loss, "validation")
        wanted = [hypers.raw, hypers.spread]
        found = torch.autograd.grad(loss - entropy * hypers.entropy(), wanted, allow_unused=True)
    return loss.detach(), {p: torch.zeros_like(p) if g is None else g for p, g in zip(wanted, found, strict=True)}


def mean_of(losses: Tensor, level: str, size: int | None = None) -> Tensor:
    """The mean of a loss function's result, of B = `size` examples where that is to be checked.

    Raises:
        TypeError: it is no tensor of floating-point numbers.
        ValueError: it is neither (B,) nor 0-d, or nothing has a gradient of it.
    """
    if not isinstance(losses, Tensor) or not losses.is_floating_point():
        kind = losses.dtype if isinstance(losses, Tensor) else type(losses).__name__
        raise TypeError(f"the {level} loss must be a tensor of floating-point numbers, got {kind}")
    if size is not None and losses.shape not in ((), (size,)):
        wanted = f"(B,) = ({size},), one an example, or their mean"
        raise ValueError(f"the {level} loss must be {wanted}, got shape {tuple(losses.shape)}")
    if not losses.requires_grad:
        raise ValueError(f"the {level} loss has no gradient: what it is made of was detached, or made without one")
    return losses.mean()


def finite(loss: Tensor, level: str) -> Tensor:
    """The loss, if it is a finite number.

    Raises:
        NonFiniteError: it is not.
    """
    if not math.isfinite(value := loss.item()):
        raise NonFiniteError(f"the {level} loss is {value}; no weight and no hyperparameter has been changed by it")
    return loss


def clipped(parameters: list[nn.Parameter], most: float | None) -> Tensor:
    """The norm of gradients, which are scaled down to `most` where it is greater, as nn.utils.clip_grad_norm_ does."""
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if most is not None and norm + 1e-6 > most:
        nn.utils.clip_grads_with_norm_(parameters, most, norm)
    return norm


@contextlib.contextmanager
def frozen(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Parameters want no gradient until the block ends."""
    before = [p for p in parameters if p.requires_grad]
    for parameter in before:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in before:
            parameter.requires_grad_(True)


@contextlib.contextmanager
def statistics_kept(model: nn.Module, *, always: bool = False) -> Iterator[None]:
    """Running statistics are as before if the block fails, or always."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._NormBase)]
    held = [(b, b.clone()) for module in norms for b in module._buffers.values() if b is not None]
    failed = True
    try:
        yield
        failed = False
    finally:
        if failed or always:
            for statistic, before in held:
                statistic.copy_(before)


@contextlib.contextmanager
def resting(model: nn.Module) -> Iterator[None]:
    """All modules are in evaluation mode until the block ends, but batch normalisations that respond stay as they are.

    They go by the batch where they do in training: responses were learnt so.
    """
    before = [module for module in model.modules() if module.training and not isinstance(module, ResponseBatchNorm)]
    for module in before:
        module.training = False
    try:
        yield
    finally:
        for module in before:
            module.training = True
