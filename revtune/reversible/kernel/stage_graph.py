"""One stage at one step, recorded for its gradient.

A moment holds a small autograd graph from what a stage reads to the z and u of its couplings. Reads are leaves, so
that the graph ends at the step; results of products with weights are noted, so that the weights' gradients can be
taken for a whole chunk at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from revtune.reversible.cells.cell import Response, Rows, Stage, Step


@dataclass
class _Move:
    """One coupling: the part's value before it, its multiplier, and where z and u hang in the graph."""

    part: str
    before: Tensor
    z: Tensor | None
    edges: list[GradientEdge]
    wants_z: bool
    wants_u: bool
    early: list[str] = field(default_factory=list)


class RecordingStep(Step):
    """A step whose reads are leaves of a graph."""

    def __init__(
        self, x: Tensor, parts: Mapping[str, Tensor], weights: Mapping[str, Tensor], responses: Mapping[str, Response]
    ) -> None:
        super().__init__(x.detach().requires_grad_(), parts, weights, responses)
        self.leaves: dict[tuple[str, bool], Tensor] = {}
        self.read_weights: dict[str, Tensor] = {}
        self.products: list[tuple[str, Rows, Tensor, GradientEdge]] = []
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
        self.products.append((name, rows, value.detach(), get_gradient_edge(result)))
        return result


class Moment:
    """A stage's gates at one step, evaluated with a graph.

    Args:
        stage: which stage.
        step: what it reads.
        live: rows that run at this step, (B, 1), or None for all.
    """

    def __init__(self, stage: Stage, step: RecordingStep, live: Tensor | None) -> None:
        self._stage, self._step, self._live = stage, step, live
        step.forbidden = stage.changes
        with torch.enable_grad():
            self._gates: tuple[Tensor, ...] = stage.gates(step)
        self._moves: dict[int, _Move] = {}

    def update(self, place: int) -> tuple[Tensor | None, Tensor]:
        """z and u of a coupling."""
        earlier = self._stage.changes[:place]
        self._step.changed, self._step.forbidden = earlier, (self._stage.changes[place],)
        with torch.enable_grad():
            z, u = self._stage.couplings[place].update(self._step, *self._gates)
        wants_z, wants_u = z is not None and z.requires_grad, u.requires_grad
        edges = [get_gradient_edge(t) for t, wanted in ((z, wants_z), (u, wants_u)) if wanted and t is not None]
        early = [part for part in earlier if (part, True) in self._step.leaves]
        before = torch.empty(())
        multiplier = None if z is None else z.detach()
        self._moves[place] = _Move(self._stage.changes[place], before, multiplier, edges, wants_z, wants_u, early)
        return multiplier, u.detach()

    def check_closed(self) -> None:
        """Refuse a stage that uses tensors which require a gradient but were not read through its step.

        Raises:
            ValueError: their gradient would be lost.
        """
        step = self._step
        known = {id(leaf) for leaf in (step.x, *step.leaves.values(), *step.read_weights.values())}
        ends = {product[3].node for product in step.products}
        waiting = [edge.node for move in self._moves.values() for edge in move.edges]
        seen = set(waiting)
        while waiting:
            node = waiting.pop()
            if hasattr(node, "variable") and id(node.variable) not in known and node not in ends:
                shape = tuple(node.variable.shape)
                raise ValueError(
                    f"gates and updates use a tensor {shape} that requires a gradient but is not read through the "
                    "step, which would lose its gradient; pass it in weights and use step.weight or step.product"
                )
            following = {found for found, _ in node.next_functions if found is not None} - seen
            seen |= following
            waiting += following

    def moved(self, place: int, before: Tensor) -> None:
        """Note what the part was before a coupling, (B, N)."""
        self._moves[place].before = before
        if len(self._moves) == len(self._stage.couplings):
            self._gates = ()

    def gradient(
        self, direction: dict[str, Tensor], masks: Mapping[str, Tensor], *, keep: bool
    ) -> tuple[Tensor | None, dict[str, Tensor], list[tuple[str, Rows, Tensor, Tensor]]]:
        """Carry the gradients of the parts, (B, N) each, from after the stage to before it, in place of `direction`.

        Args:
            direction: gradients by part.
            masks: the locked masks that the reads were under.
            keep: whether the graph will be asked again.

        Returns:
            The gradient of the stage's input, those of weights read as they are, and for each product its weight's
            name, rows, value and the gradient of its result.
        """
        outputs: list[GradientEdge] = []
        cotangents: list[Tensor] = []
        for place in reversed(range(len(self._moves))):
            move = self._moves[place]
            grads = self._through(move, direction)
            self._early(move, grads, direction, masks)
            outputs += move.edges
            cotangents += grads
        step = self._step
        late = {part: leaf for (part, new), leaf in step.leaves.items() if not new}
        inputs: list[Tensor | GradientEdge] = [
            step.x,
            *late.values(),
            *step.read_weights.values(),
            *(product[3] for product in step.products),
        ]
        found = _grad(outputs, inputs, cotangents, keep)
        dx = found.pop(0)
        for part in late:
            _add_read(direction, masks, part, found.pop(0))
        read = {name: grad for name in step.read_weights if (grad := found.pop(0)) is not None}
        products = [
            (name, rows, value, grad)
            for (name, rows, value, _), grad in zip(step.products, found, strict=True)
            if grad is not None
        ]
        return dx, read, products

    def _through(self, move: _Move, direction: dict[str, Tensor]) -> list[Tensor]:
        """Turn the part's gradient after the coupling into that before it; returns those of z and u."""
        d = direction[move.part]
        if move.z is not None:
            z = move.z if self._live is None else torch.where(self._live, move.z, 1.0)
            direction[move.part] = d * z
        d = d if self._live is None else torch.where(self._live, d, 0.0)
        return [d * move.before] * move.wants_z + [d] * move.wants_u

    def _early(
        self, move: _Move, grads: list[Tensor], direction: dict[str, Tensor], masks: Mapping[str, Tensor]
    ) -> None:
        """What a coupling read of a part that the stage had changed before it must reach that part's gradient first."""
        if not (move.early and move.edges):
            return
        leaves: list[Tensor | GradientEdge] = [self._step.leaves[part, True] for part in move.early]
        for part, grad in zip(move.early, _grad(move.edges, leaves, grads, True), strict=True):
            _add_read(direction, masks, part, grad)


def _grad(
    outputs: list[GradientEdge], inputs: list[Tensor | GradientEdge], cotangents: list[Tensor], keep: bool
) -> list[Tensor | None]:
    if not outputs:
        return [None] * len(inputs)
    return list(torch.autograd.grad(outputs, inputs, cotangents, retain_graph=keep, allow_unused=True))  # type: ignore


def _add_read(direction: dict[str, Tensor], masks: Mapping[str, Tensor], part: str, grad: Tensor | None) -> None:
    if grad is not None:
        direction[part] = direction[part] + (grad * masks[part] if part in masks else grad)
