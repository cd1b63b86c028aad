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
from revtune.reversible.kernel.asked_once import Number, numbers
from revtune.reversible.kernel.checksum import chained, chained_there, dense_pieces, fingerprint, fingerprint_there
from revtune.reversible.kernel.engine import Engine, operators, triton_takes
from revtune.reversible.kernel.matmuls import KernelProducts, Products
from revtune.reversible.kernel.weight_mask import WeightMask
from revtune.reversible.own_pages import zeros


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
        engine: the kernel that does the products, if any.
        answering: whether responses add to products. If not, they learn as if they did, from gradients at values that
            they do not move: what is linear in them is the prediction (Bae and Grosse 2020).
        mask: under which `hh` and its response's weight are read, of the native kernel alone; None for as they are.
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
        engine: Engine = "",
        answering: bool = True,
        mask: WeightMask | None = None,
    ) -> None:
        self.engine: Engine = engine
        self._products = KernelProducts(engine) if engine else Products()
        self._answering, self.mask = answering, mask
        self.tensors = {name: weight.detach() for name, weight in weights.items()}
        self.responses = {name: (v.detach(), s.detach()) for name, (v, s) in responses.items()}
        self.wanted, self._units = wanted, units
        self.gradients: dict[str, Tensor] = {}
        self._packed: Tensor | None = None
        if engine:
            self.tensors = {name: weight.contiguous() for name, weight in self.tensors.items()}
            self.responses = {name: (v.contiguous(), s.contiguous()) for name, (v, s) in self.responses.items()}
        for name, tensor in self.named() if check else ():
            check_finite(tensor, f"{owner}: weight {name!r}")

    def fresh(self) -> Weights:
        """The same weights with no gradients yet."""
        other = copy.copy(self)
        other.gradients = {}
        return other

    def dropped(self) -> Weights:
        """The same with weights written out under their mask, as plain torch reads them."""
        other = self.fresh()
        if self.mask is not None:
            other.mask, other.tensors = None, {**self.tensors, "hh": self.mask.applied(self.tensors["hh"])}
            other.responses = {
                name: (self.mask.applied(extra) if name == "hh" else extra, scale)
                for name, (extra, scale) in self.responses.items()
            }
        return other

    @property
    def waits(self) -> bool:
        """Whether a host that asks the kernel for a number waits for a device."""
        return self.engine == "triton"

    def fingerprints(self, tensors: Iterable[Tensor]) -> list[int]:
        """The fingerprint of each of these, for which a device is asked once."""
        return [number % 2**64 for number in numbers(map(self.fingerprint, tensors))]

    def fingerprint(self, tensor: Tensor) -> Number:
        """A number that a change of any of the tensor's bits almost surely changes; the kernel computes it faster."""
        pieces, on_cpu = dense_pieces(tensor), tensor.device.type == "cpu"
        if self.engine == "triton" and triton_takes(tensor.device):
            return chained_there(operators(self.engine).digest([piece]) for piece in pieces)
        if self.engine == "native" and on_cpu:
            return chained(operators(self.engine).digest([piece]) for piece in pieces)
        return fingerprint(tensor) if on_cpu else fingerprint_there(tensor)

    def project(self, x: Tensor, out: Tensor | None = None, products: Tensor | None = None) -> Tensor:
        """The input projection (K, B, G) of a chunk (K, B, I); without `ih` the input itself.

        `out` may be used, and `products` for what V gives, before its scale.
        """
        if "ih" not in self.tensors:
            return x
        weight, bias = self.tensors["ih"], self.tensors.get("bias")
        if "ih" in self.added():
            response = self.responses["ih"]
            return self._products.answering(x, weight, bias, response, out=out, packed=self._packed, products=products)
        shared = None if self.bias_by_row else bias
        projected = self._products.linear(x, weight, shared, out=out, packed=self._packed)
        if bias is not None and self.bias_by_row:
            projected.add_(bias)
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

    def linear(self, x: Tensor, weight: Tensor, out: Tensor | None = None) -> Tensor:
        """`x W^T` for x (..., I) and W (G, I); `out` may be used."""
        return self._products.linear(x, weight, out=out)

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
        if not self.engine:
            return 0
        return self.tensors["hh"].nbytes + (self.responses["hh"][0].nbytes if "hh" in self.responses else 0)

    def add_projection(self, x: Tensor, dx: Tensor) -> None:
        """Add the gradients of `ih` and `bias` from that of the projection, (K, B, G)."""
        if "ih" not in self.tensors:
            return
        self.add_product("ih", slice(0, dx.shape[-1]), x.flatten(0, 1), dx.flatten(0, 1), x.shape[0])
        self.add_bias(dx)

    def add_bias(self, dx: Tensor) -> None:
        """Add the gradient of `bias` from that of the projection, (K, B, G)."""
        if "bias" in self.wanted:
            self._sink("bias").add_(dx.sum(0) if self.bias_by_row else dx.sum((0, 1)))

    def project_back(self, dx: Tensor, scaled: Tensor | None = None) -> Tensor:
        """The gradient (K, B, I) of the input, from that of the projection, (K, B, G), and from s times it if known."""
        if "ih" not in self.tensors:
            return dx
        back = self._products.back(dx, self.tensors["ih"])
        if "ih" in self.added():
            extra, scale = self.responses["ih"]
            if scaled is None:
                return back + self._products.back(dx * scale, extra)
            self._products.add_back(back, scaled, extra)
        return back

    def add(self, name: str, grad: Tensor) -> None:
        """Add the gradient of a weight that was read as it is, by `Step.weight`."""
        if name in self.wanted:
            self._sink(name).add_(grad)

    def add_products(self, products: dict[WeightRows, ProductSteps]) -> None:
        """Add the gradients of a chunk's products, which are used up."""
        while products:
            (name, rows), (values, grads) = products.popitem()  # so that each is freed once it is added
            used = block_rows(self.tensors[name], rows, self._units)
            self.add_product(name, used, torch.cat(values), torch.cat(grads), len(values))

    def add_product(self, name: str, rows: slice, value: Tensor, grad: Tensor, steps: int) -> None:
        """Add the gradients of a product over a chunk, from its values (K B, columns) and its results' (K B, rows)."""
        self.add_outer(name, rows, value, grad)
        if name not in self.responses:
            return
        extra, scale = self.responses[name]
        scale = scale[:, rows]
        if f"{name}.V" in self.wanted:
            self.add_outer(f"{name}.V", rows, value, grad * scale.repeat(steps, 1))
        if f"{name}.s" in self.wanted:
            by_step = (grad * self._products.linear(value, extra[rows])).view(steps, *scale.shape)
            self._sink(f"{name}.s")[:, rows].add_(by_step.sum(0))

    def add_outer(self, name: str, rows: slice, value: Tensor, grad: Tensor) -> None:
        """Add the gradient of rows of a weight or of `name.V`, if it is wanted.

        Args:
            name: of the weight.
            rows: which ones.
            value: what the product read, (..., columns).
            grad: the gradient of what it gave, (..., rows).
        """
        if name in self.wanted:
            self._products.add_outer(self._sink(name)[rows], grad.flatten(0, -2), value.flatten(0, -2))

    def learns(self, name: str) -> bool:
        """Whether a weight's response wants any gradient."""
        return f"{name}.V" in self.wanted or f"{name}.s" in self.wanted

    def scale_back(self, name: str, grad: Tensor, products: Tensor, *, scaled: bool) -> None:
        """Add the gradient of `name.s`, if it is wanted, from that of a product (K, B, G) and what V gave of it.

        If `scaled`, s times the gradient takes the place of what V gave.
        """
        assert isinstance(self._products, KernelProducts)
        into = self._sink(f"{name}.s") if f"{name}.s" in self.wanted else None
        if into is not None or scaled:
            self._products.scale_back(products, grad, self.responses[name][1], into, scaled=scaled)

    def _sink(self, name: str) -> Tensor:
        """The tensor in which a gradient is added up."""
        if name not in self.gradients:
            weight, _, kind = name.partition(".")
            like = self.responses[weight]["Vs".index(kind)] if kind else self.tensors[name]
            self.gradients[name] = zeros(like, tuple(like.shape))
        return self.gradients[name]

    def named(self) -> Iterable[tuple[str, Tensor]]:
        """Every weight and response tensor, by name."""
        yield from self.tensors.items()
        for name, (extra, scale) in self.responses.items():
            yield f"{name}.V", extra
            yield f"{name}.s", scale
