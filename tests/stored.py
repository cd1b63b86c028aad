"""The reference of every gradient test: the same rounded forward, with every state stored, by plain autograd.

`stored_scan` uses the information buffer and the cell's own equations and nothing else of the library. Rounding is
straight through: dh = dy * z and dz = dy * h with the rounded z. `float_scan` is the float net of the same equations,
written from the paper.

Shapes: T time, B batch, I input, N units of a part, H hidden, G gates.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from examples.min_gru import min_gru
from revtune import Buffer, Cell, Step, default_share, rev_gru, rev_lstm
from revtune.reversible.cells import fixed
from revtune.reversible.cells.information_buffer import HEAD_START

State = tuple[Tensor, ...]
Weights = dict[str, Tensor]
Pairs = dict[str, tuple[Tensor, Tensor]]

KINDS = ("RevGRU", "RevLSTM", "unbounded RevLSTM", "NF-RevGRU", "NF-RevLSTM", "minGRU")


class Problem(NamedTuple):
    """A cell with something to run it on."""

    cell: Cell
    x: Tensor
    state: State
    weights: Weights


def make_cell(kind: str, bits: float | None = 3.0) -> Cell:
    """The cell of this name."""
    if kind == "minGRU":
        return min_gru(bits)
    forgetting = not kind.startswith("NF")
    if kind.endswith("GRU"):
        return rev_gru(bits, forgetting=forgetting)
    return rev_lstm(bits, forgetting=forgetting, bounded=not kind.startswith("unbounded"))


def problem(
    kind: str,
    steps: int,
    *,
    bits: float | None = 3.0,
    rows: int = 3,
    inputs: int = 5,
    hidden: int = 8,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    spread: float = 0.6,
) -> Problem:
    """A random problem: normal inputs, normal weights of this spread, first states in float64."""
    generator = torch.Generator().manual_seed(seed)
    cell = make_cell(kind, bits)
    units = hidden // len(cell.states[0])

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x = normal(steps, rows, inputs).to(dtype)
    state = tuple(0.5 * normal(rows, units * len(group)) for group in cell.states)
    weights = {"ih": normal(cell.blocks * units, inputs), "bias": normal(cell.blocks * units)}
    if len(cell.parts) > 1:
        weights["hh"] = normal(cell.blocks * units, units)
    return Problem(cell, x, state, {name: (spread * weight).to(dtype) for name, weight in weights.items()})


def response_pairs(of: Problem, *, names: tuple[str, ...] = ("hh", "ih"), seed: int = 1) -> Pairs:
    """Random pairs (V, s) for these weights."""
    generator, pairs = torch.Generator().manual_seed(seed), Pairs()
    for name in names:
        weight = of.weights[name]
        extra = 0.3 * torch.randn(weight.shape, generator=generator)
        scale = 0.3 * torch.randn(of.x.shape[1], weight.shape[0], generator=generator)
        pairs[name] = (extra.to(weight.dtype), scale.to(weight.dtype))
    return pairs


class _Straight(torch.autograd.Function):
    """The rounded value forward, the gradient of the smooth one backward."""

    @staticmethod
    def forward(ctx: Any, rounded: Tensor, smooth: Tensor) -> Tensor:
        return rounded.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, grad


def _straight(rounded: Tensor, smooth: Tensor) -> Tensor:
    result: Tensor = _Straight.apply(rounded, smooth)
    return result


def stored_scan(
    cell: Cell,
    x: Tensor,
    state: State,
    *,
    weights: Mapping[str, Tensor],
    responses: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    masks: Mapping[str, Tensor] | None = None,
    lengths: Tensor | None = None,
    chunk: int | None = None,
    resets: Tensor | None = None,
    reset_state: State | None = None,
) -> tuple[Tensor, State]:
    """`revtune.scan` with stored states. `chunk`: steps projected at once, which can decide a last bit."""
    responses, masks = responses or {}, masks or {}
    anew = reset_state or tuple(torch.zeros_like(tensor) for tensor in state)
    counts: dict[str, Tensor] = {}
    smooth: dict[str, Tensor] = {}
    reads: dict[str, Tensor] = {}

    def put(part: str, count: Tensor, value: Tensor) -> None:
        counts[part] = count
        smooth[part] = _straight(fixed.from_counts(count, x.dtype), value)
        reads[part] = smooth[part] * masks[part] if part in masks else smooth[part]

    def by_part(states: State) -> list[tuple[str, Tensor]]:
        groups = zip(cell.states, states, strict=True)
        return [pair for group, one in groups for pair in zip(group, one.chunk(len(group), -1), strict=True)]

    for part, value in by_part(state):
        put(part, fixed.to_counts(value.detach()), value.to(x.dtype))
    rows, units = smooth[cell.parts[0]].shape
    buffer = Buffer(rows, units, parts=len(cell.parts), share=default_share(x.shape[0], len(cell.parts)))
    outputs = []
    for t, row in enumerate(_project(x, weights, responses, chunk or x.shape[0])):
        if resets is not None:
            begins = resets[t].unsqueeze(-1)
            buffer.heads[resets[t]] = HEAD_START
            for part, value in by_part(anew):
                count = torch.where(begins, fixed.to_counts(value.detach()), counts[part])
                put(part, count, torch.where(begins, value.to(x.dtype), smooth[part]))
        live = torch.ones(rows, 1, dtype=torch.bool) if lengths is None else (lengths > t).unsqueeze(-1)
        first = 0
        for stage in cell.stages:
            step = Step(row[:, first * units : (first + stage.blocks) * units], reads, weights, responses)
            first += stage.blocks
            gates = stage.gates(step)
            for coupling in stage.couplings:
                z, u = coupling.update(step, *gates)
                u = torch.where(live, u, 0.0)
                z = torch.where(live, torch.ones_like(u) if z is None else z, 1.0)
                count = buffer.multiply(counts[coupling.part], fixed.forget_integer(z)) + fixed.to_counts(u.detach())
                put(coupling.part, count, z * smooth[coupling.part] + u)
        outputs.append(torch.cat([smooth[part] for part in cell.states[0]], -1))
    finals = []
    for group, tensor in zip(cell.states, state, strict=True):
        exact = fixed.from_counts(torch.cat([counts[part] for part in group], -1), tensor.dtype)
        finals.append(_straight(exact, torch.cat([smooth[part] for part in group], -1).to(tensor.dtype)))
    return torch.stack(outputs), tuple(finals)


def _project(
    x: Tensor, weights: Mapping[str, Tensor], responses: Mapping[str, tuple[Tensor, Tensor]], chunk: int
) -> Tensor:
    if "ih" not in weights:
        return x
    pieces = []
    for part in x.split(chunk):
        bias = weights.get("bias")
        by_row = bias is not None and bias.dim() == 2
        piece = F.linear(part, weights["ih"], None if by_row else bias)
        piece = piece + bias if bias is not None and by_row else piece
        if "ih" in responses:
            extra, scale = responses["ih"]
            piece = piece + scale * F.linear(part, extra)
        pieces.append(piece)
    return torch.cat(pieces)


def float_scan(kind: str, bits: float | None, x: Tensor, state: State, weights: Weights) -> tuple[Tensor, State]:
    """The float net of this name, from the paper's equations: gates are linear maps of [x; other half]."""
    if kind == "minGRU":
        return _float_min_gru(bits, x, state, weights)
    bounded = not kind.startswith("unbounded")
    step = _float_gru_half if kind.endswith("GRU") else partial(_float_lstm_half, bounded=bounded)
    rows = weights["ih"].shape[0] // 2
    halves = [
        (torch.cat([weights["ih"][which], weights["hh"][which]], -1), weights["bias"][which])
        for which in (slice(0, rows), slice(rows, 2 * rows))
    ]
    first, second = (list(pair) for pair in zip(*(tensor.chunk(2, -1) for tensor in state), strict=True))
    outputs = []
    for row in x:
        first = step(first, torch.cat([row, second[0]], -1), *halves[0], bits, kind.startswith("NF"))
        second = step(second, torch.cat([row, first[0]], -1), *halves[1], bits, kind.startswith("NF"))
        outputs.append(torch.cat([first[0], second[0]], -1))
    return torch.stack(outputs), tuple(torch.cat(pair, -1) for pair in zip(first, second, strict=True))


def _limited(z: Tensor, bits: float | None) -> Tensor:
    m = 1.0 if bits is None else 1.0 - 2.0**-bits
    return m * z + 1.0 - m


def _float_gru_half(
    own: list[Tensor], seen: Tensor, weight: Tensor, bias: Tensor, bits: float | None, forgetless: bool
) -> list[Tensor]:
    (h,) = own
    n = h.shape[-1]
    a, b, other = weight[: 2 * n], weight[2 * n :], seen[:, -n:]
    z, r = torch.sigmoid(seen @ a.t() + bias[: 2 * n]).split(n, -1)
    z = _limited(z, bits)
    g = torch.tanh(torch.cat([seen[:, :-n], r * other], -1) @ b.t() + bias[2 * n :])
    return [(h if forgetless else z * h) + (1 - z) * g]


def _float_lstm_half(
    own: list[Tensor],
    seen: Tensor,
    weight: Tensor,
    bias: Tensor,
    bits: float | None,
    forgetless: bool,
    *,
    bounded: bool,
) -> list[Tensor]:
    h, c = own
    f, p, i, o, g = (seen @ weight.t() + bias).split(h.shape[-1], -1)
    f, p = _limited(torch.sigmoid(f), bits), _limited(torch.sigmoid(p), bits)
    c = (c if forgetless else f * c) + torch.sigmoid(i) * torch.tanh(g)
    taken = (1 - p if bounded else 1) * torch.sigmoid(o)
    return [(h if forgetless else p * h) + taken * torch.tanh(c), c]


def _float_min_gru(bits: float | None, x: Tensor, state: State, weights: Weights) -> tuple[Tensor, State]:
    (h,) = state
    outputs = []
    for row in x:
        a, g = (row @ weights["ih"].t() + weights["bias"]).chunk(2, -1)
        z = _limited(torch.sigmoid(a), bits)
        h = z * h + (1 - z) * g
        outputs.append(h)
    return torch.stack(outputs), (h,)


def relative(given: Tensor, wanted: Tensor) -> float:
    """The relative error of a tensor, in the Euclidean norm."""
    assert given.shape == wanted.shape
    return float((given.double() - wanted.double()).norm() / wanted.double().norm().clamp_min(1e-30))


class Result(NamedTuple):
    """What a pass over a problem gave: outputs, final state, and the gradient of every tensor by name."""

    y: Tensor
    finals: State
    grads: dict[str, Tensor]


def differentiate(
    run: Callable[..., tuple[Tensor, State]], of: Problem, *, responses: Pairs | None = None,
    reset_state: State | None = None, **options: Any,
) -> Result:  # fmt: skip
    """Run a problem and take the gradient of a random linear function of all outputs and final states.

    Gradients are named x, state.0, state.1, by weight, `name.V`, `name.s` for responses, and reset_state.0 and .1.
    """
    leaves = Leaves(of, responses, reset_state)
    if leaves.anew:
        options["reset_state"] = leaves.anew
    y, finals = run(of.cell, leaves.x, leaves.state, weights=leaves.weights, responses=leaves.responses, **options)
    loss = random_loss(y, finals)
    return Result(y.detach(), tuple(f.detach() for f in finals), leaves.gradients(loss))


class Leaves:
    """A problem's tensors as fresh leaves that want gradients."""

    def __init__(self, of: Problem, responses: Pairs | None = None, anew: State | None = None) -> None:
        def leaf(tensor: Tensor) -> Tensor:
            return tensor.detach().clone().requires_grad_()

        self.x, self.state = leaf(of.x), tuple(leaf(tensor) for tensor in of.state)
        self.weights = {name: leaf(weight) for name, weight in of.weights.items()}
        self.responses = {name: (leaf(extra), leaf(scale)) for name, (extra, scale) in (responses or {}).items()}
        self.anew = tuple(leaf(tensor) for tensor in anew or ())

    def named(self) -> dict[str, Tensor]:
        """All of them by name."""
        named = {"x": self.x, **{f"state.{i}": t for i, t in enumerate(self.state)}, **self.weights}
        for name, (extra, scale) in self.responses.items():
            named |= {f"{name}.V": extra, f"{name}.s": scale}
        return named | {f"reset_state.{i}": t for i, t in enumerate(self.anew)}

    def gradients(self, loss: Tensor) -> dict[str, Tensor]:
        """The gradient of the loss with respect to each."""
        named = self.named()
        return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


def random_loss(y: Tensor, finals: State, seed: int = 2) -> Tensor:
    """A fixed random linear function of outputs and final states."""
    generator = torch.Generator().manual_seed(seed)
    terms = [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype) * t for t in (y, *finals)]
    return torch.stack([term.sum().double() for term in terms]).sum()
