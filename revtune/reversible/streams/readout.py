"""A linear readout with cross entropy that never holds all logits.

Positions go through in blocks: logits, softmax in place, and the gradient by hand from the same buffer.

Shapes: N positions, E features, V classes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from revtune.reversible.arguments import check_flag, check_fraction, check_size, check_tensor
from revtune.reversible.kernel.chunks import budget_on, spans
from revtune.reversible.kernel.lowered_matmuls import LoweredProducts, Precision, check_precision
from revtune.reversible.kernel.matmuls import Products, products_for
from revtune.reversible.streams.gradient_sinks import Sinks, any_open, sink_of
from revtune.reversible.streams.hooks import called_as_written
from revtune.reversible.streams.known_gradients import with_gradients
from revtune.reversible.streams.mean import note_classes
from revtune.reversible.streams.once import check_once
from revtune.reversible.transforms import refuse_batches, refuse_double_backward, refuse_transforms
from revtune.sequences import handing_part

BLOCK_BYTES = 3 * 2**20
"""Bytes of a block's logits, of the order of a CPU's cache: they are read and written over several times."""

FEWEST_POSITIONS = 16
"""Positions of a block at least, however many classes there are, since every block reads the whole weight."""


class LinearCrossEntropy(nn.Module):
    """`F.cross_entropy(y @ W.T + b, targets, reduction="sum")` in blocks of positions.

    With label smoothing e and class weights w, a position of logits a and target t loses::

        (1 - e) w_t (lse - a_t) + e / V * sum_c w_c (lse - a_c)         lse = log sum_c exp a_c

    which is `-(1 - e) w_t log p_t - e / V * sum_c w_c log p_c` for the softmax p.

    Args:
        in_features: E.
        num_classes: V.
        bias: whether to add a bias.
        tie: an nn.Embedding(V, E), or a weight (V, E), whose weight this layer uses as its own.
        ignore_index: target of positions that do not count.
        label_smoothing: e, 0..1.
        class_weights: w, shape (V,), not negative.
        precision: how the factors of its products are read: None for float32, "bfloat16", "float16", or "tf32" on an
            NVIDIA GPU. Sums, softmax and loss stay float32. It saves time on a GPU alone.
        device, dtype: as in nn.Linear; with `tie` none but the tied weight's.

    Shape:
        `head(y, targets)` with y (..., E) and targets (...) of integers in 0..V-1 or `ignore_index` gives a 0-d summed
        loss in nats; `head.logits(y)` gives (..., V).

    Raises:
        ValueError: sizes that are not positive, shapes that do not fit, targets outside the classes, a smoothing
            outside 0..1, class weights that require a gradient, a device or dtype that a tied weight has not, a
            precision of other tensors than float32 ones, or of a device that does not have it.

    Example:
        >>> head = LinearCrossEntropy(4, 10)
        >>> head(torch.randn(6, 4), torch.arange(6)).shape
        torch.Size([])
    """

    bias: nn.Parameter | None
    class_weights: Tensor | None
    precision: Precision | None = None  # of those, too, that were pickled before there was a choice

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        bias: bool = True,
        *,
        tie: nn.Embedding | Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        class_weights: Tensor | None = None,
        precision: Precision | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.precision = check_precision(precision)
        check_size("in_features", in_features)
        check_size("num_classes", num_classes)
        check_flag("bias", bias)
        check_fraction("label_smoothing", label_smoothing)
        if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
            raise ValueError(f"ignore_index must be an integer, the target that does not count, got {ignore_index!r}")
        if not isinstance(tie, nn.Embedding | Tensor | None):
            raise ValueError(f"tie must be an nn.Embedding or its weight, got {type(tie).__name__}")
        self.in_features, self.num_classes = in_features, num_classes
        self.ignore_index, self.label_smoothing = ignore_index, label_smoothing
        weight = tie.weight if isinstance(tie, nn.Embedding) else tie
        if weight is None:
            weight = nn.Parameter(torch.empty(num_classes, in_features, device=device, dtype=dtype))
        elif weight.shape != (num_classes, in_features):
            raise ValueError(
                f"a tied weight must be ({num_classes}, {in_features}), classes by features, got {tuple(weight.shape)}"
            )
        else:
            _check_tied(weight, device, dtype)
        self.weight = weight
        zeros = torch.zeros(num_classes, device=weight.device, dtype=weight.dtype)
        self.register_parameter("bias", nn.Parameter(zeros) if bias else None)
        if class_weights is not None and not isinstance(class_weights, Tensor):
            raise ValueError(f"class_weights must be a tensor ({num_classes},), got {type(class_weights).__name__}")
        if class_weights is not None and class_weights.shape != (num_classes,):
            raise ValueError(f"class_weights must be ({num_classes},), one a class, got {tuple(class_weights.shape)}")
        if class_weights is not None and class_weights.requires_grad:
            raise ValueError(
                "class_weights must require no gradient, as they would get none, got a tensor that requires one; "
                "pass class_weights.detach()"
            )
        if class_weights is not None:
            wrong = ~((class_weights >= 0) & class_weights.isfinite())
            if bool(wrong.any()):
                given = float(class_weights[wrong][0])
                raise ValueError(f"class_weights must not be negative, infinite or NaN, got {given}")
            class_weights = class_weights.to(weight)
        self.register_buffer("class_weights", class_weights)
        if tie is None:
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform in +-1/sqrt(E), as nn.Linear; the bias is zero."""
        bound = 1 / math.sqrt(max(self.in_features, 1))
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, y: Tensor, targets: Tensor) -> Tensor:
        """The summed loss. Its gradients are computed with it, but inside `rewind_loss` in backward, into sinks."""
        y, targets = self._positions(self.cast(y), targets)
        note_classes(targets, self.ignore_index, self.class_weights)
        with torch.autocast(self.weight.device.type, enabled=False):
            if not torch.is_grad_enabled():
                return self._blocks(y, targets, None, None, None)[0].to(y.dtype)
            if not any_open():
                return self._with_gradients(y, targets)
            loss: Tensor = _LaterGradients.apply(self, y, targets, self.weight, self.bias)
        return loss

    def _with_gradients(self, y: Tensor, targets: Tensor) -> Tensor:
        """The summed loss and its gradients in one pass over the logits; backward only scales them."""
        tensors = [tensor for tensor in (y, self.weight, self.bias) if tensor is not None and tensor.requires_grad]
        with torch.no_grad():
            dy = torch.empty_like(y) if y.requires_grad else None
            dweight, dbias = (_zeros(tensor) for tensor in (self.weight, self.bias))
            loss = self._blocks(y, targets, dweight, dbias, dy)[0].to(y.dtype)
        grads = [grad for grad in (dy, dweight, dbias) if grad is not None]
        return with_gradients("LinearCrossEntropy", loss, tensors, grads)

    def logits(self, y: Tensor) -> Tensor:
        """Scores of all classes, (..., V)."""
        return F.linear(y, self.weight, self.bias)

    def total_weight(self, targets: Tensor) -> float:
        """What a mean divides by: the sum of class weights of the targets that count, or their number."""
        self._check_targets(targets)
        counted = targets[targets != self.ignore_index]
        return float(counted.numel() if self.class_weights is None else self.class_weights[counted].sum())

    def cast(self, y: Tensor) -> Tensor:
        """y in the weight's dtype under autocast, which does not lower the precision of logits."""
        return y.to(self.weight.dtype) if torch.is_autocast_enabled(self.weight.device.type) else y

    def loss_and_gradient(
        self, y: Tensor, targets: Tensor, into: Sinks | None, *, want_dy: bool = True, block_bytes: int | None = None,
        losses: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """The summed loss and its gradient in one pass over the logits.

        Args:
            y: (N, E).
            targets: (N,).
            into: where the gradients of weight and bias are added, if they are wanted.
            want_dy: whether the gradient of y is wanted.
            block_bytes: bytes of the logits that are there at once; `BLOCK_BYTES` for None.
            losses: where each position's loss is written, (N,) float64, if it is wanted.

        Returns:
            The loss, 0-d float64, and the gradient of y, (N, E).
        """
        y, targets = self._positions(y.detach(), targets)
        weight = into.of(self.weight) if into is not None and self.weight.requires_grad else None
        bias = into.of(self.bias) if into is not None and self.bias is not None and self.bias.requires_grad else None
        dy = torch.empty_like(y) if want_dy else None
        return self._blocks(y, targets, weight, bias, dy, block_bytes=block_bytes, losses=losses)

    def losses(self, y: Tensor, targets: Tensor) -> Tensor:
        """The loss of each position of y (N, E) with these targets (N,), (N,) float64, with no gradient."""
        y, targets = self._positions(self.cast(y.detach()), targets)
        losses = y.new_empty(len(y), dtype=torch.float64)
        with torch.autocast(self.weight.device.type, enabled=False):
            self._blocks(y, targets, None, None, None, losses=losses)
        return losses

    def _blocks(
        self,
        y: Tensor,
        targets: Tensor,
        dweight: Tensor | None,
        dbias: Tensor | None,
        dy: Tensor | None,
        scale: float = 1.0,
        block_bytes: int | None = None,
        losses: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The summed loss, 0-d float64, and dy. Of the gradients only those are computed that have a tensor here.

        They are scaled, unlike the loss; `dweight` and `dbias` are added to, `dy` and `losses` are written over.
        """
        loss, products = torch.zeros((), dtype=torch.float64, device=y.device), self._products(y)
        want_gradient = any(into is not None for into in (dweight, dbias, dy))
        most = max(FEWEST_POSITIONS, (block_bytes or budget_on(y.device, BLOCK_BYTES)) // (4 * self.num_classes))
        for block in spans(0, y.shape[0], most):
            block_losses, grad = self._block(self._scores(y[block]), targets[block], want_gradient)
            loss += block_losses.sum()
            if losses is not None:
                losses[block] = block_losses
            if grad is None:
                continue
            grad = grad.mul_(scale) if scale != 1.0 else grad
            if dweight is not None:
                products.add_outer(dweight, grad, y[block])
            if dbias is not None:
                dbias.add_(grad.sum(0))
            if dy is not None:
                dy[block] = products.back(grad, self.weight.detach())
            del grad  # before the next block makes its logits
        return loss, dy

    def _scores(self, y: Tensor) -> Tensor:
        """Logits (N, V) in a tensor of their own."""
        bias = None if self.bias is None else self.bias.detach()
        return self._products(y).linear(y, self.weight.detach(), bias)

    def _products(self, y: Tensor) -> Products:
        """The matmuls of its blocks."""
        return products_for(y) if self.precision is None else LoweredProducts(self.precision, y)

    def _block(self, logits: Tensor, targets: Tensor, want_gradient: bool) -> tuple[Tensor, Tensor | None]:
        """Losses (N,) of a block and the gradient of their sum to its logits, which takes the place of the logits.

        In the terms of the class's description, with W = sum_c w_c and 1[c = t] one at the target::

            loss      on_target (lse - a_t) + on_every (W lse - sum_c w_c a_c)
            d / d a_c (on_target + on_every W) p_c - on_target 1[c = t] - on_every w_c

        with on_target = (1 - e) w_t and on_every = e / V, both 0 where the target does not count.
        """
        counted = targets != self.ignore_index
        target = torch.where(counted, targets, 0).unsqueeze(-1)
        weight = counted.to(logits.dtype) if self.class_weights is None else self.class_weights[target[:, 0]] * counted
        on_target = weight * (1.0 - self.label_smoothing)
        on_every = counted.to(logits.dtype) * (self.label_smoothing / self.num_classes)
        # Read as differences from the largest, as the loss is small beside large logits, whose rounding would drown it
        logits.sub_(logits.amax(-1, keepdim=True))
        target_logit = logits.gather(-1, target)  # a_t
        weighted_logits = self._weighted_sum(logits) if self.label_smoothing else None  # sum_c w_c a_c
        exp_sum = logits.exp_().sum(-1, keepdim=True)  # sum_c exp a_c; exp takes the place of the logits
        lse = exp_sum.double().log()
        losses = on_target * (lse - target_logit.double())[:, 0]
        if weighted_logits is not None:
            losses = losses + on_every * (lse[:, 0] * self._weight_sum() - weighted_logits)
        losses = torch.where(counted, losses, 0.0)
        if not want_gradient:
            return losses, None
        grad = logits.mul_((on_target + on_every * self._weight_sum()).unsqueeze(-1) / exp_sum)  # p_c = exp_c / exp_sum
        grad.scatter_add_(-1, target, -on_target.unsqueeze(-1))
        if self.label_smoothing:
            grad.sub_(on_every.unsqueeze(-1) * (1.0 if self.class_weights is None else self.class_weights))
        return losses, grad

    def _weighted_sum(self, logits: Tensor) -> Tensor:
        return (logits if self.class_weights is None else logits * self.class_weights).double().sum(-1)

    def _weight_sum(self) -> float:
        return float(self.num_classes if self.class_weights is None else self.class_weights.sum())

    def _positions(self, y: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        check_tensor("LinearCrossEntropy: y", y)
        check_tensor("LinearCrossEntropy: targets", targets)
        refuse_transforms([y, targets, self.weight])
        if y.shape[-1] != self.in_features or y.shape[:-1] != targets.shape:
            raise ValueError(
                f"LinearCrossEntropy wants y (..., {self.in_features}) and targets (...), "
                f"got {tuple(y.shape)} and {tuple(targets.shape)}"
            )
        if y.dtype != self.weight.dtype:
            raise ValueError(f"LinearCrossEntropy wants y of {self.weight.dtype} like its weight, got {y.dtype}")
        if y.device != self.weight.device:
            raise ValueError(f"LinearCrossEntropy: y is on {y.device}, the weight on {self.weight.device}")
        self._check_targets(targets)
        return y.reshape(-1, self.in_features), targets.reshape(-1).long()

    def _check_targets(self, targets: Tensor) -> None:
        if targets.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"targets must be int64 or int32, got {targets.dtype}")
        if targets.device != self.weight.device:
            raise ValueError(f"LinearCrossEntropy: targets are on {targets.device}, the weight on {self.weight.device}")
        check_once(targets, self._check_range, ("targets", self.num_classes, self.ignore_index))

    def _check_range(self, targets: Tensor) -> None:
        wrong = (targets != self.ignore_index) & ((targets < 0) | (targets >= self.num_classes))
        if bool(wrong.any()):
            raise ValueError(
                f"targets must lie in 0..{self.num_classes - 1} or be {self.ignore_index}, got {int(targets[wrong][0])}"
            )

    def extra_repr(self) -> str:
        lowered = "" if self.precision is None else f", precision={self.precision!r}"
        return f"in_features={self.in_features}, num_classes={self.num_classes}, bias={self.bias is not None}{lowered}"


def _check_tied(weight: Tensor, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
    """Refuse a device and a dtype that a tied weight has not.

    Raises:
        ValueError: names the one that differs.
    """
    if dtype not in (None, weight.dtype):
        raise ValueError(f"dtype must be None or {weight.dtype}, that of the tied weight, got {dtype}")
    given, wanted = weight.device if device is None else torch.device(device), weight.device
    if given.type != wanted.type or (given.index != wanted.index and None not in (given.index, wanted.index)):
        raise ValueError(f"device must be None or {wanted}, that of the tied weight, got {given}")


HEADS: dict[type[LinearCrossEntropy], Any] = {LinearCrossEntropy: LinearCrossEntropy.forward}
"""Classes whose `loss_and_gradient` a stream asks in the place of their forward, which is noted here."""


def known_head(readout: Any) -> LinearCrossEntropy | None:
    """A readout whose gradient is taken by hand, past its forward: nobody's subclass, and no hook watches it."""
    if not isinstance(readout, LinearCrossEntropy) or type(readout) not in HEADS:
        return None
    return readout if called_as_written(readout, HEADS[type(readout)]) else None


class FeatureReadout(ABC):
    """A readout that computes features of its positions, then their loss by a `LinearCrossEntropy`.

    `rewind_loss` knows such readouts, and computes features and loss of a chunk once.

    Args:
        head: from features to classes.
    """

    def __init__(self, head: LinearCrossEntropy) -> None:
        self.head = head

    @abstractmethod
    def features(self, y: Tensor, targets: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        """Features (N, E) and classes (N,) of outputs (N, H), their targets (N, ...) and the context."""

    def classes(self, targets: Tensor) -> Tensor:
        """The classes (...) among what targets tell; by default targets are classes."""
        return targets

    def total_weight(self, targets: Tensor) -> float:
        """What a mean divides by, as the head counts it."""
        return self.head.total_weight(self.classes(targets))

    def parts(self, targets: Tensor) -> list[Tensor]:
        """Which positions' features are computed together, part by part; by default those of all."""
        return [torch.arange(len(targets), device=targets.device)]

    def __call__(self, y: Tensor, targets: Tensor, *context: Tensor) -> Tensor:
        """The summed loss of these positions."""
        losses = []
        for part in self.parts(targets):
            with handing_part(part):
                losses.append(self.head(*self.features(y[part], targets[part], *context)))
        return torch.stack(losses).sum()


class _LaterGradients(torch.autograd.Function):
    """The summed loss, whose backward computes the blocks anew and adds weight gradients to open sinks."""

    @staticmethod
    def forward(
        ctx: Any, head: LinearCrossEntropy, y: Tensor, targets: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        ctx.head = head
        ctx.save_for_backward(y, targets, weight, bias)
        with torch.enable_grad():  # without which no weight seems to want a gradient
            ctx.sinks = (sink_of(head.weight), None if head.bias is None else sink_of(head.bias))
        return head._blocks(y, targets, None, None, None)[0].to(y.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_double_backward("LinearCrossEntropy")
        refuse_batches([grad])
        y, targets, weight, bias = ctx.saved_tensors
        _, want_y, _, want_weight, want_bias = ctx.needs_input_grad
        sinks = [sink if sink is not None and sink.takes else None for sink in ctx.sinks]
        dweight, dbias = (
            (_zeros(tensor) if sink is None else sink.grad) if want else None
            for sink, tensor, want in zip(sinks, (weight, bias), (want_weight, want_bias), strict=True)
        )
        dy = torch.empty_like(y) if want_y else None
        ctx.head._blocks(y, targets, dweight, dbias, dy, float(grad))
        return (
            None,
            dy,
            None,
            dweight if sinks[0] is None else None,
            dbias if sinks[1] is None else None,
        )


def _zeros(tensor: Tensor | None) -> Tensor | None:
    """An accumulator for a tensor's gradient, dense whatever the tensor's own layout; None where none is wanted."""
    if tensor is None or not tensor.requires_grad:
        return None
    return torch.zeros_like(tensor, memory_format=torch.contiguous_format)
