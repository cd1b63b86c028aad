"""The weights of one layer: the input projection, and the gradients of all products, each one matmul a chunk.

Shapes: K steps of a chunk, B batch, I input, G gates, N units of a part.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from revtune.reversible.cells.cell import Response, Rows, block_rows
from revtune.reversible.cells.state_range import check_finite
from revtune.reversible.kernel.checksum import chained, dense_pieces, fingerprint
from revtune.reversible.kernel.matmuls import NativeProducts, Products


class WeightRows(NamedTuple):
    """The rows of a weight that a product used, as in `Step.product`."""

    name: str
    rows: Rows


class ProductSteps(NamedTuple):
    """A product at the steps of a chunk: the values given, (B, columns) each, and its results' gradients, (B, rows)."""

    values: list[Tensor]
    grads: list[Tensor]


class Weights:
    """Weights, response pairs, and what has been added up of their gradients.

    Args:
        weights: by name; `ih` (G, I) and `bias`, (G,) or a row's own (B, G), make up the input projection and are
            optional.
        responses: pairs (V, s) by the name of the weight they respond for.
        wanted: names of weights, and `name.V`, `name.s` of responses, whose gradients are wanted.
        units: N.
        owner: the layer's name, for errors.
        check: whether to look for NaN and infinities.
        native: whether the native kernel does the products.
        answering: whether responses add to products. If not, they learn as if they did, from gradients at values that
            they do not move: what is linear in them is the prediction (Bae and Grosse 2020).
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        responses: Mapping[str, Response],
        wanted: frozenset[str],
        units: int,
        owner: str,
        *,
        check: bool = True,
        native: bool = False,
        answering: bool = True,
    ) -> None:
        self._native, self._products = native, NativeProducts() if native else Products()
        self._answering = answering
        self.tensors = {name: weight.detach() for name, weight in weights.items()}
        self.responses = {name: (v.detach(), s.detach()) for name, (v, s) in responses.items()}
        self.wanted, self._units = wanted, units
        self.gradients: dict[str, Tensor] = {}
        self._packed: Tensor | None = None
        if native:
            self.tensors = {name: weight.contiguous() for name, weight in self.tensors.items()}
            self.responses = {name: (v.contiguous(), s.contiguous()) for name, (v, s) in self.responses.items()}
        for name, tensor in self.named() if check else ():
            check_finite(tensor, f"{owner}: weight {name!r}")

    def fresh(self) -> Weights:
        """The same weights with no gradients yet."""
        other = copy.copy(self)
        other.gradients = {}
        return other

    def fingerprint(self, tensor: Tensor) -> int:
        """A number that a change of any of the tensor's bits almost surely changes. The kernel computes it faster."""
        if self._native and tensor.device.type == "cpu":
            return chained(torch.ops.revtune.digest([piece]) for piece in dense_pieces(tensor))
        return fingerprint(tensor)

    def project(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """The input projection (K, B, G) of a chunk (K, B, I); without `ih` the input itself. `out` may be used."""
        if "ih" not in self.tensors:
            return x
        weight, bias = self.tensors["ih"], self.tensors.get("bias")
        shared = None if self.bias_by_row else bias
        projected = self._products.linear(x, weight, shared, out=out, packed=self._packed)
        if bias is not None and self.bias_by_row:
            projected.add_(bias)
        if "ih" in self.added():
            extra, scale = self.responses["ih"]
            projected = projected + scale * self._products.linear(x, extra)
        return projected

    def projection_tangent(self, x: Tensor, dx: Tensor | None, shift: Tensor | None) -> Tensor:
        """The tangent (K, B, G) of a chunk's projected inputs, from that of its inputs (K, B, I) and of the bias.

        Args:
            x: the inputs.
            dx: their tangent, or None for zero.
            shift: the tangent of the bias, (B, G), or None for zero.
        """
        if "ih" not in self.tensors:
            return torch.zeros_like(x) if dx is None else dx.clone()
        weight = self.tensors["ih"]
        da = x.new_zeros(*x.shape[:-1], len(weight)) if dx is None else self.linear(dx, weight)
        if "ih" in self.responses:
            extra, scale = self.responses["ih"]
            da += scale * self.linear(x, extra)
        return da if shift is None else da.add_(shift)

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """`x W^T` for x (..., I) and W (G, I)."""
        return self._products.linear(x, weight)

    def added(self) -> dict[str, Response]:
        """The responses that add to products."""
        return self.responses if self._answering else {}

    @property
    def bias_by_row(self) -> bool:
        """Whether each row has a bias of its own."""
        return "bias" in self.tensors and self.tensors["bias"].dim() == 2

    def pack_projection(self) -> None:
        """Pack `ih` for a sequence of many chunks, if that is worth the memory."""
        if "ih" in self.tensors:
            self._packed = self._products.pack(self.tensors["ih"])

    def packed_bytes(self) -> int:
        """Bytes of what the kernel packs of the recurrent weight and its response, once a sequence."""
        if not self._native:
            return 0
        return self.tensors["hh"].nbytes + (self.responses["hh"][0].nbytes if "hh" in self.responses else 0)

    def add_projection(self, x: Tensor, dx: Tensor) -> None:
        """Add the gradients of `ih` and `bias` from that of the projection, (K, B, G)."""
        if "ih" not in self.tensors:
            return
        self.add_product("ih", slice(0, dx.shape[-1]), x.flatten(0, 1), dx.flatten(0, 1), x.shape[0])
        if "bias" in self.wanted:
            self._sink("bias", self.tensors["bias"]).add_(dx.sum(0) if self.bias_by_row else dx.sum((0, 1)))

    def project_back(self, dx: Tensor) -> Tensor:
        """The gradient (K, B, I) of the input, from that of the projection, (K, B, G)."""
        if "ih" not in self.tensors:
            return dx
        back = self._products.back(dx, self.tensors["ih"])
        if "ih" in self.added():
            extra, scale = self.responses["ih"]
            back = back + self._products.back(dx * scale, extra)
        return back

    def add(self, name: str, grad: Tensor) -> None:
        """Add the gradient of a weight that was read as it is, by `Step.weight`."""
        if name in self.wanted:
            self._sink(name, self.tensors[name]).add_(grad)

    def add_products(self, products: dict[WeightRows, ProductSteps]) -> None:
        """Add the gradients of a chunk's products, which are used up."""
        while products:
            (name, rows), (values, grads) = products.popitem()  # so that each is freed once it is added
            used = block_rows(self.tensors[name], rows, self._units)
            self.add_product(name, used, torch.cat(values), torch.cat(grads), len(values))

    def add_product(self, name: str, rows: slice, value: Tensor, grad: Tensor, steps: int) -> None:
        """Add the gradients of a product over a chunk, from its values (K B, columns) and its results' (K B, rows)."""
        if name in self.wanted:
            self._products.add_outer(self._sink(name, self.tensors[name])[rows], grad, value)
        if name not in self.responses:
            return
        extra, scale = self.responses[name]
        scale = scale[:, rows]
        if f"{name}.V" in self.wanted:
            self._products.add_outer(self._sink(f"{name}.V", extra)[rows], grad * scale.repeat(steps, 1), value)
        if f"{name}.s" in self.wanted:
            by_step = (grad * self._products.linear(value, extra[rows])).view(steps, *scale.shape)
            self._sink(f"{name}.s", self.responses[name][1])[:, rows].add_(by_step.sum(0))

    def _sink(self, name: str, like: Tensor) -> Tensor:
        """The tensor in which a gradient is added up."""
        if name not in self.gradients:
            self.gradients[name] = torch.zeros_like(like, memory_format=torch.contiguous_format)
        return self.gradients[name]

    def named(self) -> Iterable[tuple[str, Tensor]]:
        """Every weight and response tensor, by name."""
        yield from self.tensors.items()
        for name, (extra, scale) in self.responses.items():
            yield f"{name}.V", extra
            yield f"{name}.s", scale
