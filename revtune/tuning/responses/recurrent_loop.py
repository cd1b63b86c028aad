"""The time loop of a recurrent layer whose weights answer to hyperparameters, its gradient and its tangent, by hand.

With `a` what the input gives, and s the examples' own scalars::

    m_t = W h_{t-1} + b + s * (V h_{t-1})          then the equations of `response_gates`

A step, forward or backward, has one product, with [W; V]; each weight gets its gradient in one product for all steps.

Shapes: T steps, N rows of all steps, R rows of one step, B examples, H hidden, G gates (4 H or 3 H).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from revtune.tuning.responses.recurrent_gates import GRU, LSTM
from revtune.tuning.responses.recurrent_steps import Steps

Cell = type[LSTM] | type[GRU]


Run = tuple[Tensor, ...]
"""Of each row what the response would add to m, then the slopes as `response_gates` gives them."""


class Loop(torch.autograd.Function):
    """One direction of one layer over all steps.

    Args of `apply`:
        cell: whose equations.
        steps: how rows stand.
        record: None, or a list that a `Run` is put into. Then responses add nothing to values, though they get the
            gradient of doing so, taken to be linear in V and s: h is a constant in them.
        fed: a, shape (T, B, G) or (N, G).
        weight, bias: W (G, H) and b (G,), or None.
        second, scale: V (G, H) and s (B, G), or None.
        states: h, and c of an LSTM, shape (B, H).

    Returns of `apply`:
        y of all rows (N, H), and the last states.
    """

    @staticmethod
    def forward(ctx, cell, steps, record, fed, weight, bias, second, scale, *states):  # type: ignore[no-untyped-def]
        live = second is not None and record is None
        flat, wide = fed.flatten(0, -2), len(weight)
        room = flat.new_zeros(len(flat), 2 * wide if live else wide)
        gates, answers = room[:, :wide], room[:, wide:]
        made = cell.ready(gates, flat, bias)
        before, states = torch.empty_like(made[0]), tuple(state.clone() for state in states)
        product = torch.cat([weight, second]).T if live else weight.T
        parts = steps.split(room, gates, answers, before, *made)
        for t in steps.times():
            all_t, gates_t, answers_t, before_t, *made_t = parts[t]
            now = [state[: len(all_t)] for state in states]
            before_t.copy_(now[0])
            all_t.addmm_(now[0], product)
            if live:
                gates_t.addcmul_(scale[: len(all_t)], answers_t)
            cell.step(gates_t, *made_t, *now)
        if any(ctx.needs_input_grad) or record is not None:
            slopes = cell.slopes(gates, before, *made)
            if record is not None:
                answers = before @ second.T
                record += [steps.shaped(answers).mul(steps.spread(scale)).flatten(0, -2), *slopes]
            ctx.save_for_backward(weight, second, scale, before, answers, *slopes)
        ctx.cell, ctx.steps, ctx.live = cell, steps, live
        ctx.set_materialize_grads(False)
        return made[0], *states

    @staticmethod
    def backward(ctx, dy, *dstates):  # type: ignore[no-untyped-def]
        if torch.is_grad_enabled():
            raise RuntimeError("the gradient of a responding recurrent layer has none itself: no create_graph=True")
        weight, second, scale, before, answers, *slopes = ctx.saved_tensors
        cell, steps, live, wide = ctx.cell, ctx.steps, ctx.live, len(weight)
        room = before.new_empty(len(before), 2 * wide if live else wide)
        grads, answered, aside = room[:, :wide], room[:, wide:], cell.aside(before)
        product = torch.cat([weight, second]) if live else weight
        states = [before.new_zeros(steps.sizes[0], before.shape[1]) if d is None else d.clone() for d in dstates]
        dy = torch.zeros_like(before) if dy is None else dy
        parts = steps.split(room, answered, dy, grads, *aside, *slopes)
        for t in steps.times(back=True):
            all_t, answered_t, dy_t, *parts_t = parts[t]
            now = [state[: len(all_t)] for state in states]
            now[0].add_(dy_t)
            cell.pull(*parts_t, *now)
            if live:
                torch.mul(parts_t[0], scale[: len(all_t)], out=answered_t)
            now[0].addmm_(all_t, product, beta=cell.direct)
        if second is not None and not live:
            answered = steps.shaped(grads).mul(steps.spread(scale)).flatten(0, -2)
        wanted = ctx.needs_input_grad[3:]
        return (
            None,
            None,
            None,
            steps.shaped(cell.fed(grads, *aside)) if wanted[0] else None,
            grads.T @ before if wanted[1] else None,
            grads.sum(0) if wanted[2] else None,
            answered.T @ before if wanted[3] else None,
            steps.gathered(grads * answers) if wanted[4] else None,
            *states,
        )


def looped(
    cell: Cell,
    steps: Steps,
    fed: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    response: tuple[Tensor, Tensor] | None,
    states: Sequence[Tensor],
    record: list[Tensor] | None = None,
) -> tuple[Tensor, ...]:
    """`Loop`, the response as V and s: y, shaped as a is, and the last states."""
    second, scale = response or (None, None)
    arguments: tuple[Any, ...] = (cell, steps, record, fed, weight, bias, second, scale, *states)
    y, *finals = Loop.apply(*arguments)
    return steps.shaped(y), *finals


def tangents(
    cell: Cell, steps: Steps, run: Run, fed: Tensor, weight: Tensor, states: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """The tangents of y and the last states, from those of a and of the first states, and from a recorded run."""
    product, slopes, kept, through = run
    y, states = torch.empty_like(kept), [state.clone() for state in states]
    change, *past = cell.driven(fed.flatten(0, -2), product, through)
    parts = steps.split(change, *past, y, slopes, kept, through)
    for t in steps.times():
        now = [state[: len(parts[t][0])] for state in states]
        parts[t][0].addmm_(now[0], weight.T)
        cell.push(*parts[t], *now)
    return steps.shaped(y), *states
