"""The gradients of both levels: weights and responses on training data, hyperparameters on held-out data.

`stn` (MacKay et al. 2019) trains weights and responses on the loss at perturbed hyperparameters. `delta` (Bae and
Grosse 2020) trains weights on the loss at the current ones, and responses on the loss, at perturbed ones, of a
prediction that is linear in the responses (`linearized`). `hypergradients`, for both, differentiates the held-out loss,
through the responses, for hyperparameters and the scales of their perturbations.

Shapes: B examples, n hyperparameters.
"""

from __future__ import annotations

import contextlib
import functools
import math
import sys
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
from revtune.tuning.regularizers.sampler import AugmentedBatch
from revtune.tuning.responses.linearized import ResponseRecord, second_pass, tangent_of, without_formula
from revtune.tuning.responses.normalisation import ResponseBatchNorm
from revtune.tuning.responses.responding import ADDED, Responding
from revtune.tuning.responses.rows import RowsMemory
from revtune.tuning.trees import is_continuous, mapped, tensors
from revtune.tuning.tuner.followed import predicted
from revtune.tuning.tuner.moving_buffers import MovingBuffers

Predict = Callable[[nn.Module, Any], Any]
TrainLoss = Callable[[Any, Any, Values], Tensor]
ValidLoss = Callable[[Any, Any], Tensor]

UNSEEN = (
    "the training loss reads tensors of the network that are not in its prediction, but in an attribute or a hook, by "
    'which Delta-STN teaches responses nothing: let predict return them too, or use method="stn"'
)

LINEAR = (
    "the training loss fails on Delta-STN's linear prediction, which can leave the range that the network's last "
    "operation keeps, as sigmoid does, and has no graph that leads back to inputs or weights: let the network return "
    'what that operation is given, such as logits, and what the loss differentiates; or use method="stn".'
)


NO_GRADIENT = "the {} loss has no gradient"

INFINITE = (
    "the derivative of the network's prediction for its responses is not finite, as that of a root is at 0, where an "
    'operation after it hides that from backward; use method="stn"'
)


UNBOUNDED = (
    "how a recurrent net's states move with hyperparameters has no bound, and in a chaotic net it grows with every "
    'step; shorter sequences, smaller recurrent weights or method="stn" help'
)


class LossRefused(ValueError):
    """What a training loss does, refused in a sentence of its own."""


@dataclass(frozen=True)
class BilevelProblem:
    """What is learnt: a converted model, its hyperparameters, the losses of both levels, and how predictions are made.

    Attributes:
        model: as `self_tuning` gives it.
        hypers: the model's hyperparameters.
        predict: gives a prediction, from the model and a batch.
        train_loss: gives losses (B,), from a prediction, a batch and the hyperparameters' values.
        valid_loss: gives losses (B,) or their mean, from a prediction and a batch.
        size: gives B of a batch.
        generator: draws the perturbations.
        autocast: makes the context that forward passes run in.
        streamed: whether predictions are losses that are streamed.
    """

    model: nn.Module
    hypers: Hyperparameters
    predict: Predict
    train_loss: TrainLoss
    valid_loss: ValidLoss
    size: Callable[[Any], int]
    generator: torch.Generator | None = None
    autocast: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext
    streamed: bool = False

    def parameters(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The network's own parameters and those of its responses, each once, as they were when first asked for."""
        return self._parameters

    @functools.cached_property
    def _parameters(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        of_hypers = {id(parameter) for parameter in self.hypers.parameters()}
        named = [(name, p) for name, p in self.model.named_parameters() if id(p) not in of_hypers]
        added = {id(p) for name, p in named if name.rpartition(".")[2].startswith(ADDED)}
        return [p for _, p in named if id(p) not in added], [p for _, p in named if id(p) in added]

    def resting(self) -> list[nn.Parameter]:
        """Parameters of responses to be left as they are now, as the weights that they belong to are frozen."""
        return [p for first, added in self._answering if not first.requires_grad for p in added]

    @functools.cached_property
    def _answering(self) -> list[tuple[Tensor, list[Any]]]:
        """Each weight that responds, with the parameters of its response."""
        layers = [module for module in self.model.modules() if isinstance(module, Responding)]
        parts = [parts for layer in layers for parts in layer.responding_parameters()]
        return [(first, [p for p in added if p is not None]) for first, *added in parts]

    @functools.cached_property
    def rows(self) -> RowsMemory:
        """What is known of whose the rows of layers' inputs are."""
        return RowsMemory()

    @functools.cached_property
    def buffers(self) -> MovingBuffers:
        """What is known of which buffers passes change."""
        return MovingBuffers(self.model)

    def predicted(self, batch: Any) -> Any:
        """The prediction of the model, in the pass that is bound; rows that are not known yet are followed."""
        run = functools.partial(self.predict, self.model, batch)
        return predicted(run, self.model, batch, self.hypers, self.rows, self.buffers, self.batch_dim)

    @property
    def batch_dim(self) -> int:
        """Which dimension is examples."""
        return int(getattr(getattr(self.model, "conversion", None), "batch_dim", 0))

    def perturbed(self, batch: Any) -> tuple[Any, Any, Tensor]:
        """A batch for the current hyperparameters, one for perturbed ones, and the perturbed ones, (B, n).

        Both are the same batch, unless a loader has drawn perturbed values and augmented the examples by them.
        """
        if isinstance(batch, AugmentedBatch):
            raw = batch.raw.to(self.hypers.raw)
            return batch.batch if batch.still is None else batch.still, batch.batch, raw
        with torch.no_grad():
            return batch, batch, self.hypers.perturbed(self.size(batch), self.generator)

    def loss(self, out: Any, batch: Any, raw: Tensor) -> Tensor:
        """The mean training loss of a prediction at hyperparameters (B, n)."""
        return mean_of(self.train_loss(out, batch, Values(self.hypers, raw)), "training", raw.shape[0])


def stn(problem: BilevelProblem, batch: Any, scale_loss: Callable[[Tensor], Tensor]) -> Tensor:
    """Add the gradients of a training step to `.grad` of all weights; the loss.

    Args:
        problem: what is learnt.
        batch: of training data; an `AugmentedBatch` brings its perturbed hyperparameters along.
        scale_loss: what is done to a loss before it is differentiated, such as a GradScaler's scaling.

    Raises:
        NonFiniteError: the loss is NaN or infinite.
    """
    _, batch, raw = problem.perturbed(batch)
    d = problem.hypers.departure(raw)
    bound = Pass(raw.shape[0], d, raw, statistics=True, rows=problem.rows)
    with without_grad(problem.resting()), problem.hypers.bound(bound):
        with problem.autocast(), problem.buffers.watched():
            loss = problem.loss(problem.predicted(batch), batch, raw)
        scale_loss(finite(loss, "training")).backward()  # in the pass, as checkpointed code runs again
    return loss.detach()


def delta(problem: BilevelProblem, batch: Any, scale_loss: Callable[[Tensor], Tensor]) -> Tensor:
    """Add the gradients of a training step of Delta-STN to `.grad`; the loss at the current hyperparameters.

    Arguments and errors are those of `stn`.
    """
    (still, batch, raw), (base, added) = problem.perturbed(batch), problem.parameters()
    now = problem.hypers.raw.detach().expand(raw.shape[0], -1)
    resting = problem.resting()
    with without_grad(added), problem.hypers.bound(Pass(raw.shape[0], None, now, statistics=True, rows=problem.rows)):
        with problem.autocast(), problem.buffers.watched():
            loss = problem.loss(problem.predicted(still), still, now)
        scale_loss(finite(loss, "training")).backward()
    with without_grad([*base, *resting]), uncompiled():
        _add_response_gradients(problem, batch, raw, problem.hypers.departure(raw), scale_loss)
    return loss.detach()


def _add_response_gradients(
    problem: BilevelProblem, batch: Any, raw: Tensor, d: Tensor, scale_loss: Callable[[Tensor], Tensor]
) -> None:
    if problem.streamed:
        _add_streamed_gradients(problem, batch, raw, d, scale_loss)
        return
    # of attentions the one with a forward-mode formula, and with one mask in both passes
    with sdpa_kernel(SDPBackend.MATH), problem.buffers.standing() as begin:
        with second_pass():
            out, linear = linearized_prediction(problem, batch, raw, d, begin)
            with problem.hypers.bound(Pass(raw.shape[0], d, raw)), problem.autocast():
                loss = _loss_of_linear(problem, linear, batch, raw)
            if tangent_of(loss) is not None:
                warnings.warn(UNSEEN, stacklevel=2)
        scale_loss(_finite_of_linear(loss, linear)).backward()
        pairs = [(y, at.grad) for y, at in zip(tensors(out), tensors(linear), strict=True) if y.requires_grad]
        reached = [(y, grad) for y, grad in pairs if grad is not None]
        if reached:
            begin()
            # checkpointed code runs again here: as in the first pass, but nothing is to be kept of it
            with problem.hypers.bound(Pass(raw.shape[0], d, raw, record=ResponseRecord(0), rows=problem.rows)):
                torch.autograd.backward([y for y, _ in reached], [grad for _, grad in reached])


def _add_streamed_gradients(
    problem: BilevelProblem, batch: Any, raw: Tensor, d: Tensor, scale_loss: Callable[[Tensor], Tensor]
) -> None:
    """As `_add_response_gradients`, where chunk by chunk the linear prediction's loss is taken with it."""
    bound = Pass(raw.shape[0], d, raw, record=ResponseRecord(0), rows=problem.rows)
    with sdpa_kernel(SDPBackend.MATH), problem.buffers.standing(), problem.hypers.bound(bound):
        with problem.autocast():
            streamed = problem.predicted(batch)
            # what is added to it is of weights at d, and no part of the linear prediction
            with problem.hypers.bound(Pass(raw.shape[0], d, raw)):
                loss = problem.loss(streamed, batch, raw)
        try:
            finite(loss, "responses' training")
        except NonFiniteError as error:
            raise NonFiniteError(f"{error}: {UNBOUNDED}") from None
        scale_loss(loss).backward()


def _loss_of_linear(problem: BilevelProblem, linear: Any, batch: Any, raw: Tensor) -> Tensor:
    """The loss of a linear prediction, whose failure is told with what sets that prediction apart."""
    try:
        return problem.loss(linear, batch, raw)
    except (RuntimeError, ValueError) as error:
        if "Nested forward mode" in str(error) or isinstance(error, LossRefused):
            raise
        if str(error).startswith(NO_GRADIENT.format("training")):
            raise ValueError(UNSEEN) from error
        kind = ValueError if isinstance(error, ValueError) else RuntimeError
        raise kind(f"{LINEAR} The training loss's own words: {error}") from error


def _finite_of_linear(loss: Tensor, linear: Any) -> Tensor:
    """The loss of a linear prediction, if it is a finite number; else what sets that prediction apart is told."""
    try:
        return finite(loss, "responses' training")
    except NonFiniteError as error:
        reason = LINEAR if all(bool(y.isfinite().all()) for y in tensors(linear)) else INFINITE
        raise NonFiniteError(f"{error}: {reason}") from None


def linearized_prediction(
    problem: BilevelProblem, batch: Any, raw: Tensor, d: Tensor, begin: Callable[[], None] = lambda: None
) -> tuple[Any, Any]:
    """A prediction at d = 0, with its graph, and the prediction linear in d, a leaf that wants its gradient.

    It must be called inside `second_pass()`. Random masks are the same in both passes, as torch's generators are put
    back between them, and so are buffers, by `begin`.

    Raises:
        TypeError: no tensor of floating-point numbers was found in the prediction.
        ValueError: the passes took different layers.
        NotImplementedError: an operation has no forward-mode formula.
    """
    record, device = ResponseRecord(), problem.hypers.raw.device
    bound, states = Pass(raw.shape[0], d, raw, record=record, rows=problem.rows), random_states(device)
    with problem.hypers.bound(bound), problem.autocast():
        out = problem.predicted(batch)
    if not tensors(out):
        kinds = "a tensor, or tuples, lists, dictionaries or dataclasses that hold some"
        raise TypeError(f"a prediction must be {kinds} of floating-point numbers, got {type(out).__name__}")
    set_random_states(states, device)
    begin()
    try:
        with record.replay(), problem.hypers.bound(bound), problem.autocast():
            second = problem.predicted(batch)
    except RuntimeError as error:  # NotImplementedError is one; code of others says it in its own words
        if not isinstance(error, NotImplementedError) and "forward-mode" not in str(error):
            raise
        raise without_formula(error, problem.model) from error
    with torch.no_grad():
        linear = mapped(_primal_plus_tangent, second)
    return out, mapped(lambda y: y.requires_grad_() if is_continuous(y) else y, linear)


def _primal_plus_tangent(y: Tensor) -> Tensor:
    if not is_continuous(y):
        return y
    primal, tangent = forward_ad.unpack_dual(y)
    return primal.clone() if tangent is None else primal + tangent  # in either case a tensor of its own


def hypergradients(problem: BilevelProblem, batch: Any, entropy: float) -> tuple[Tensor, dict[nn.Parameter, Tensor]]:
    """The loss of a validation step, and its gradients for hyperparameters and scales.

    No weight, running statistic or `.grad` changes; regularizers are off.

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
    validation = Pass(size, d, None, training=False, rows=problem.rows)
    with without_grad([*base, *added]), in_evaluation_mode(problem.model), hypers.bound(validation):
        with problem.autocast():
            loss = mean_of(problem.valid_loss(problem.predicted(batch), batch), "validation")
        finite(loss, "validation")
        moved = [hypers.raw, hypers.spread]
        grads = torch.autograd.grad(loss - entropy * hypers.entropy(), moved, allow_unused=True)
    return loss.detach(), {p: torch.zeros_like(p) if g is None else g for p, g in zip(moved, grads, strict=True)}


def mean_of(losses: Tensor, level: str, size: int | None = None) -> Tensor:
    """The mean of what a loss function gave, checked; `size` is B where it must be (B,) or 0-d.

    Raises:
        TypeError: it is no tensor of floating-point numbers.
        ValueError: it is neither (B,) nor 0-d, or it has no gradient.
    """
    if not isinstance(losses, Tensor) or not losses.is_floating_point():
        kind = losses.dtype if isinstance(losses, Tensor) else type(losses).__name__
        raise TypeError(f"the {level} loss must be a tensor of floating-point numbers, got {kind}")
    if size is not None and losses.shape not in ((), (size,)):
        expected = f"(B,) = ({size},), one an example, or their mean"
        raise ValueError(f"the {level} loss must be {expected}, got shape {tuple(losses.shape)}")
    if not losses.requires_grad:
        raise ValueError(f"{NO_GRADIENT.format(level)}: what it is made of was detached, or made without one")
    return losses.mean()


def finite(loss: Tensor, level: str) -> Tensor:
    """The loss, if it is a finite number.

    Raises:
        NonFiniteError: it is not.
    """
    if not math.isfinite(value := loss.item()):
        raise NonFiniteError(f"the {level} loss is {value}; no weight and no hyperparameter has been changed by it")
    return loss


def clip_gradients(parameters: list[nn.Parameter], max_norm: float | None) -> Tensor:
    """Scale gradients down to a largest norm, as nn.utils.clip_grad_norm_ does; the norm that they had.

    Of a sparse gradient the rows that were looked up count, each with all that came to it.
    """
    given = [p.grad for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm([grad.coalesce().values() if grad.is_sparse else grad for grad in given])
    if max_norm is not None and norm + 1e-6 > max_norm:  # 1e-6 as in torch, which multiplies smaller gradients by 1
        dense = [p for p in parameters if p.grad is not None and not p.grad.is_sparse]
        nn.utils.clip_grads_with_norm_(dense, max_norm, norm)
        for grad in given:
            if grad.is_sparse:
                grad.mul_(max_norm / (norm + 1e-6))
    return norm


@contextlib.contextmanager
def without_grad(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Parameters require no gradient until the block ends."""
    before = [p for p in parameters if p.requires_grad]
    for parameter in before:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in before:
            parameter.requires_grad_(True)


def uncompiled() -> AbstractContextManager[Any]:
    """What torch.compile has compiled runs as it was written until the block ends: compiled code drops tangents."""
    if "torch._dynamo" not in sys.modules:
        return contextlib.nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


@contextlib.contextmanager
def in_evaluation_mode(model: nn.Module) -> Iterator[None]:
    """All modules are in evaluation mode until the block ends, except batch normalisations with a response.

    Those go by the batch in validation too if they do in training, as their responses were learnt that way.
    """
    before = [module for module in model.modules() if module.training and not isinstance(module, ResponseBatchNorm)]
    for module in before:
        module.training = False
    try:
        yield
    finally:
        for module in before:
            module.training = True
