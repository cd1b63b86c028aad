"""One stage at one step as a small autograd graph, from which its gradient is taken.

The graph leads from what the stage reads to the z and u of its couplings. Reads are leaves, so that the graph ends at
the step. Products with weights are noted with their results, so that the weights' gradients can be taken for a whole
chunk at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from revtune.reversible.cells.cell import Response, Rows, Stage, Step
from revtune.reversible.kernel.inner_graph import inner_graph


class Product(NamedTuple):
    """A product of a weight's rows with a value (B, columns), and where its result hangs in the graph."""

    name: str
    rows: Rows
    value: Tensor
    result: GradientEdge


class ProductGradient(NamedTuple):
    """A product of a weight's rows with a value (B, columns), and the gradient of its result, (B, rows)."""

    name: str
    rows: Rows
    value: Tensor
    grad: Tensor


class StageGradients(NamedTuple):
    """Gradients of what a stage reads besides the state.

    Attributes:
        x: of its projected input, or None if the stage does not use it.
        weights: of weights that it reads as they are, by name.
        products: of its products with weights.
    """

    x: Tensor | None
    weights: dict[str, Tensor]
    products: list[ProductGradient]


@dataclass
class _CouplingGraph:
    """One coupling in the graph.

    Attributes:
        part: the part that it changes.
        before: the part's value before it, (B, N).
        z: its multiplier.
        edges: where z and u hang in the graph, those that have a gradient.
        wants_z, wants_u: whether z and u have one.
        early: the parts it read that earlier couplings of the stage had changed.
    """

    part: str
    before: Tensor
    z: Tensor | None
    edges: list[GradientEdge]
    wants_z: bool
    wants_u: bool
    early: list[str] = field(default_factory=list)


class RecordingStep(Step):
    """A step whose reads are leaves of a graph.

    Attributes:
        leaves: parts as they were read, by name and whether the stage had changed them before.
        read_weights: weights that were read as they are.
        products: products with weights.
        changed: the parts that the stage has changed so far.
    """

    def __init__(
        self, x: Tensor, parts: Mapping[str, Tensor], weights: Mapping[str, Tensor], responses: Mapping[str, Response]
    ) -> None:
        super().__init__(x.detach().requires_grad_(), parts, weights, responses)
        self.leaves: dict[tuple[str, bool], Tensor] = {}
        self.read_weights: dict[str, Tensor] = {}
        self.products: list[Product] = []
        self.changed: tuple[str, ...] = ()

    def part(self, name: str) -> Tensor:
        key, value = (name, name in self.changed), super().part(name)
        if key not in self.leaves:
            self.leaves[key] = value.detach().requires_grad_()
        return self.leaves[key]

    def weight(self, name: str) -> Tensor:
        if name not in self.read_weights:
            self.read_weights[name] = super().weight(name).detach().requires_grad_()
        return self.read_weights[name]

    def product(self, name: str, value: Tensor, rows: Rows = None) -> Tensor:
        result = super().product(name, value, rows)
        result = result if result.requires_grad else result.requires_grad_()
        self.products.append(Product(name, rows, value.detach(), get_gradient_edge(result)))
        return result


class StageGraph:
    """A stage at one step, its gates evaluated with a graph.

    Args:
        stage: which stage.
        step: what it reads.
        live: rows that run at this step, (B, 1), or None for all.
    """

    def __init__(self, stage: Stage, step: RecordingStep, live: Tensor | None) -> None:
        self._stage, self._step, self._live = stage, step, live
        step.forbidden = stage.changes
        with torch.enable_grad(), inner_graph():
            self._gates: tuple[Tensor, ...] = stage.gates(step)
        self._couplings: dict[int, _CouplingGraph] = {}

    def update(
        self, index: int, check: Callable[[str, Tensor | None, Tensor], None] | None = None
    ) -> tuple[Tensor | None, Tensor]:
        """z and u of the coupling of this index, after `check(part, z, u)` of what its function gave."""
        part, earlier = self._stage.changes[index], self._stage.changes[:index]
        self._step.changed, self._step.forbidden = earlier, (part,)
        with torch.enable_grad(), inner_graph():
            z, u = self._stage.couplings[index].update(self._step, *self._gates)
        if check is not None:
            check(part, z, u)
        wants_z, wants_u = z is not None and z.requires_grad, u.requires_grad
        edges = [get_gradient_edge(t) for t, wanted in ((z, wants_z), (u, wants_u)) if wanted and t is not None]
        early = [part for part in earlier if (part, True) in self._step.leaves]
        before = torch.empty(())  # until `note_before`
        multiplier = None if z is None else z.detach()
        self._couplings[index] = _CouplingGraph(part, before, multiplier, edges, wants_z, wants_u, early)
        return multiplier, u.detach()

    def check_closed(self) -> None:
        """Refuse a stage that uses tensors which require a gradient but were not read through its step.

        Raises:
            ValueError: their gradient would be lost.
        """
        step = self._step
        read = {id(leaf) for leaf in (step.x, *step.leaves.values(), *step.read_weights.values())}
        results = {product.result.node for product in step.products}
        waiting = [edge.node for coupling in self._couplings.values() for edge in coupling.edges]
        seen = set(waiting)
        while waiting:
            node = waiting.pop()
            # A node with a variable accumulates the gradient of a leaf.
            if hasattr(node, "variable") and id(node.variable) not in read and node not in results:
                shape = tuple(node.variable.shape)
                raise ValueError(
                    f"gates and updates use a tensor {shape} that requires a gradient but is not read through the "
                    "step, which would lose its gradient; pass it in weights and use step.weight or step.product"
                )
            following = {below for below, _ in node.next_functions if below is not None} - seen
            seen |= following
            waiting += following

    def note_before(self, index: int, before: Tensor) -> None:
        """Note what the part was before a coupling, (B, N)."""
        self._couplings[index].before = before
        if len(self._couplings) == len(self._stage.couplings):
            self._gates = ()  # all couplings have used them

    def gradient(self, direction: dict[str, Tensor], masks: Mapping[str, Tensor], *, keep: bool) -> StageGradients:
        """Carry the gradients of the parts, (B, N) each, from after the stage to before it, in place of `direction`.

        Args:
            direction: gradients by part.
            masks: the locked masks that the reads were under.
            keep: whether the gradient will be taken again.
        """
        outputs: list[GradientEdge] = []
        cotangents: list[Tensor] = []
        for index in reversed(range(len(self._couplings))):
            coupling = self._couplings[index]
            grads = self._undo_coupling(coupling, direction)
            self._add_early_reads(coupling, grads, direction, masks)
            outputs += coupling.edges
            cotangents += grads
        step = self._step
        late = {part: leaf for (part, changed), leaf in step.leaves.items() if not changed}
        inputs: list[Tensor | GradientEdge] = [
            step.x,
            *late.values(),
            *step.read_weights.values(),
            *(product.result for product in step.products),
        ]
        grads_of_inputs = iter(_grad(outputs, inputs, cotangents, keep))
        dx = next(grads_of_inputs)
        for part in late:
            _add_read(direction, masks, part, next(grads_of_inputs))
        weights = {name: grad for name in step.read_weights if (grad := next(grads_of_inputs)) is not None}
        products = [
            ProductGradient(product.name, product.rows, product.value, grad)
            for product, grad in zip(step.products, grads_of_inputs, strict=True)
            if grad is not None
        ]
        return StageGradients(dx, weights, products)

    def _undo_coupling(self, coupling: _CouplingGraph, direction: dict[str, Tensor]) -> list[Tensor]:
        """Turn the part's gradient after the coupling into that before it. Returns the gradients of z and u."""
        d = direction[coupling.part]
        if coupling.z is not None:
            z = coupling.z if self._live is None else torch.where(self._live, coupling.z, 1.0)
            direction[coupling.part] = d * z
        d = d if self._live is None else torch.where(self._live, d, 0.0)
        return [d * coupling.before] * coupling.wants_z + [d] * coupling.wants_u

    def _add_early_reads(
        self,
        coupling: _CouplingGraph,
        grads: list[Tensor],
        direction: dict[str, Tensor],
        masks: Mapping[str, Tensor],
    ) -> None:
        """Add what a coupling read of parts that the stage had changed before it.

        Those parts' gradients must be whole before their own couplings are undone.
        """
        if not (coupling.early and coupling.edges):
            return
        leaves: list[Tensor | GradientEdge] = [self._step.leaves[part, True] for part in coupling.early]
        found = _grad(coupling.edges, leaves, grads, keep=True)  # the graph is asked again, for the whole stage
        for part, grad in zip(coupling.early, found, strict=True):
            _add_read(direction, masks, part, grad)


def _grad(
    outputs: list[GradientEdge], inputs: list[Tensor | GradientEdge], cotangents: list[Tensor], keep: bool
) -> list[Tensor | None]:
    """Gradients of inputs; those that no output depends on are None."""
    if not outputs:
        return [None] * len(inputs)
    return list(torch.autograd.grad(outputs, inputs, cotangents, retain_graph=keep, allow_unused=True))  # type: ignore


def _add_read(direction: dict[str, Tensor], masks: Mapping[str, Tensor], part: str, grad: Tensor | None) -> None:
    """Add the gradient of a part as it was read, under its mask."""
    if grad is not None:
        direction[part] = direction[part] + (grad * masks[part] if part in masks else grad)
