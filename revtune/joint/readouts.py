"""LinearCrossEntropy whose weight and bias respond, each position by its own row's departure.

With b the row of a position, V and Q the response's weights and scales, and g the gradient of a position's logits a::

    a = W y + w + s_b * (V y) + t_b       s = d Q^T    t = d R^T
    dy = W^T g + V^T (s_b * g)    dW = sum g y^T    dV = sum (s_b * g) y^T    ds_b = sum g * (V y)    dt_b = sum g
    dQ = ds^T d    dR = dt^T d    dd = ds Q + dt R

Shapes: B rows, N positions, E features, C classes, n hyperparameters.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from revtune.reversible.kernel.chunks import spans
from revtune.reversible.kernel.matmuls import products_for
from revtune.reversible.streams.gradient_sinks import Sinks
from revtune.reversible.streams.known_gradients import with_gradients
from revtune.reversible.streams.mean import note_classes
from revtune.reversible.streams.readout import BLOCK_BYTES, FEWEST_POSITIONS, LinearCrossEntropy
from revtune.tuning.responses.responding import Responding

TENSORS = 2
"""Tensors as large as a block's logits that stand beside one another: they and V y."""


@dataclass
class Answer:
    """A readout's response in one pass, and its gradients where they are wanted.

    Attributes:
        scale, shift: s and t, (B, C); there is no shift without a bias.
        rows: the row of each position, (N,).
        dscale, dshift: gradients of s and t, added up.
    """

    scale: Tensor
    shift: Tensor | None
    rows: Tensor
    dscale: Tensor
    dshift: Tensor


class ResponseLinearCrossEntropy(Responding, LinearCrossEntropy):
    """LinearCrossEntropy with a response."""

    plain = LinearCrossEntropy

    @classmethod
    def refuses(cls, module: nn.Module) -> str | None:
        """Why a plain readout cannot respond; None if it can."""
        assert isinstance(module, LinearCrossEntropy)
        if module.precision is not None:
            return f"its products are read in {module.precision}, and a response's are float32's"
        return super().refuses(module)

    def forward(self, y: Tensor, targets: Tensor) -> Tensor:  # type: ignore[override]
        """The summed loss, each position's at its own row's hyperparameters. Its gradients are computed with it.

        Raises:
            ValueError: whose positions these are cannot be told.
        """
        if self._departure() is None:
            return LinearCrossEntropy.forward(self, y, targets)
        rows = self._rows(y)
        y, targets = self._positions(self.cast(y), targets)
        note_classes(targets, self.ignore_index, self.class_weights)
        with torch.autocast(self.weight.device.type, enabled=False):
            if not torch.is_grad_enabled():
                return self._loss_alone(y, targets, rows).to(y.dtype)
            sinks = Sinks()
            loss, dy = self._loss_and_gradient(y, targets, rows, sinks, want_dy=y.requires_grad)
            tensors, grads = sinks.drain()
            if dy is not None:
                tensors, grads = [*tensors, y], [*grads, dy]
            loss = loss.to(y.dtype)
            return with_gradients("LinearCrossEntropy", loss, tensors, grads) if tensors else loss

    def loss_and_gradient(
        self, y: Tensor, targets: Tensor, into: Sinks | None, *, want_dy: bool = True, block_bytes: int | None = None,
        losses: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """As the plain readout's; gradients of the response, and of departures, go into the sinks too."""
        if self._departure() is None:
            return LinearCrossEntropy.loss_and_gradient(
                self, y, targets, into, want_dy=want_dy, block_bytes=block_bytes, losses=losses
            )
        return self._loss_and_gradient(
            y, targets, self._rows(y), into or Sinks(), want_dy=want_dy, block_bytes=block_bytes, losses=losses
        )

    def losses(self, y: Tensor, targets: Tensor) -> Tensor:
        """As the plain readout's."""
        if self._departure() is None:
            return LinearCrossEntropy.losses(self, y, targets)
        rows = self._rows(y)
        y, targets = self._positions(self.cast(y.detach()), targets)
        losses = y.new_empty(len(y), dtype=torch.float64)
        with torch.autocast(self.weight.device.type, enabled=False):
            self._loss_alone(y, targets, rows, losses)
        return losses

    def linear_loss_and_gradient(
        self, y: Tensor, moved: Tensor, targets: Tensor, into: Sinks, *, block_bytes: int | None = None,
        losses: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The summed loss of logits that are linear in responses, and the gradient of y where none responds.

        With `y'` the tangent of y, the logits are `W (y + y') + w + s_b * (V y) + t_b`. Their gradient g goes back as
        if responses added nothing: `dy = W^T g`, while those of V, s and t are as at the head of this file.

        Args:
            y: (N, E).
            moved: y', (N, E).
            targets, into, block_bytes, losses: as in `loss_and_gradient`.
        """
        loss, dy = self._loss_and_gradient(
            y, targets, self._rows(y), into, want_dy=True, block_bytes=block_bytes, losses=losses, moved=moved
        )
        assert dy is not None
        return loss, dy

    def _loss_and_gradient(
        self, y: Tensor, targets: Tensor, rows: Tensor, into: Sinks, *, want_dy: bool, block_bytes: int | None = None,
        losses: Tensor | None = None, moved: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """As `loss_and_gradient`, or with the tangent of y as `linear_loss_and_gradient`."""
        departure = self.hypers.current_departure()
        assert departure is not None
        y, targets = self._positions(y.detach(), targets)
        answer, dy = self._answer(departure, rows), torch.empty_like(y) if want_dy else None
        loss = torch.zeros((), dtype=torch.float64, device=y.device)
        for block in self._spans(len(y), block_bytes):
            tangent = None if moved is None else moved[block]
            block_losses, grad = self._answered(y[block], targets[block], answer, block, into, tangent)
            loss += block_losses.sum()
            if losses is not None:
                losses[block] = block_losses
            if dy is not None:
                dy[block] = grad
        self._add_responses(departure, answer, into)
        return loss, dy

    def _loss_alone(self, y: Tensor, targets: Tensor, rows: Tensor, losses: Tensor | None = None) -> Tensor:
        """The summed loss, 0-d float64, where no gradient is wanted; each position's is written into `losses`."""
        departure = self._departure()
        assert departure is not None
        answer, loss = self._answer(departure, rows), torch.zeros((), dtype=torch.float64, device=y.device)
        for block in self._spans(len(y), None):
            logits, _ = self._answering_scores(y[block], answer, rows[block], y[block])
            block_losses, _ = self._block(logits, targets[block], want_gradient=False)
            loss += block_losses.sum()
            if losses is not None:
                losses[block] = block_losses
        return loss

    def _spans(self, positions: int, block_bytes: int | None) -> list[slice]:
        """The positions of each block: as many as the plain readout's, unless memory is limited."""
        most = (block_bytes or TENSORS * BLOCK_BYTES) // (4 * TENSORS * self.num_classes)
        return spans(0, positions, max(FEWEST_POSITIONS, most))

    def logits(self, y: Tensor) -> Tensor:
        """Scores of all classes, (..., C), at the present hyperparameters.

        Raises:
            ValueError: in a pass, whose positions these are cannot be told.
        """
        return Responding.forward(self, y)

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The linear map."""
        return F.linear(x, weight, bias)

    def _departure(self) -> Tensor | None:
        bound = self.hypers.current
        if bound is not None and bound.record is not None:
            raise NotImplementedError(
                f"{self._name} gives a loss, which Delta-STN cannot linearize: let predict return its logits(y), or "
                'stream the loss by Tuner(stream=); or use method="stn"'
            )
        return self.hypers.current_departure()

    def _rows(self, y: Tensor) -> Tensor:
        """The row of each position of y (..., E), (N,)."""
        departure, shape = self.hypers.current_departure(), (*y.shape[:-1], 1)
        assert departure is not None
        numbers = torch.arange(len(departure), device=y.device)[:, None]
        laid = self.laid(y, (*y.shape[:-1], self.num_classes), len(departure))
        return laid.spread(numbers, shape, -1).expand(shape).reshape(-1).contiguous()

    def _answer(self, departure: Tensor, rows: Tensor) -> Answer:
        departure, products = departure.detach(), products_for(departure)
        scale = products.linear(departure, self.response_scale.detach())
        own = self.response_shift
        shift = None if own is None else products.linear(departure, own.detach())
        return Answer(scale, shift, rows, torch.zeros_like(scale), torch.zeros_like(scale))

    def _answered(
        self, y: Tensor, targets: Tensor, answer: Answer, block: slice, into: Sinks, moved: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Losses of a block, the gradient of its y; those of weights go into the sinks, those of s and t are added."""
        products, rows = products_for(y), answer.rows[block]
        logits, product = self._answering_scores(y, answer, rows, y if moved is None else y + moved)
        losses, grad = self._block(logits, targets, want_gradient=True)
        assert grad is not None
        if self.weight.requires_grad:
            products.add_outer(into.of(self.weight), grad, y)
        learns, carried = self.response_weight.requires_grad, moved is None
        products.answer_back(product, grad, answer.scale, rows, answer.dscale, answer.dshift, scaled=learns or carried)
        dy = products.back(grad, self.weight.detach())
        if learns:
            products.add_outer(into.of(self.response_weight), product, y)
        if carried:
            products.add_back(dy, product, self.response_weight.detach())
        return losses, dy

    def _answering_scores(self, y: Tensor, answer: Answer, rows: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of a block's positions, and V y; W is applied to what is seen of y."""
        products, logits = products_for(y), self._scores(seen)
        product = products.linear(y, self.response_weight.detach())
        products.add_answer(logits, product, answer.scale, answer.shift, rows)
        return logits, product

    def _add_responses(self, departure: Tensor, answer: Answer, into: Sinks) -> None:
        """Carry the gradients of s and t on to the bias, Q, R and the departures."""
        if self.bias is not None and self.bias.requires_grad:
            into.of(self.bias).add_(answer.dshift.sum(0))
        pairs = [(self.response_scale, answer.dscale)]
        pairs += [(self.response_shift, answer.dshift)] if self.response_shift is not None else []
        products = products_for(departure)
        for parameter, grad in pairs:
            if parameter.requires_grad:
                products.add_outer(into.of(parameter), grad, departure.detach())
            if departure.requires_grad:
                products.add_back(into.of(departure), grad, parameter.detach())
