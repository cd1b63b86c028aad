"""The time loop of a recurrent layer that responds to hyperparameters, with its gradient and its tangent by hand.

With `a` what the input gives, and s the examples' own scalars::

    m_t = W h_{t-1} + b + s * (V h_{t-1})          then the equations of `recurrent_gates`

A step, forward or backward, has one product, with [W; V]; each weight gets its gradient in one product for all steps.

Shapes: T steps, N rows of all steps, R rows of one step, B examples, H hidden, G gates (4 H, 3 H or H).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from revtune.tuning.responses.recurrent_gates import GRU, LSTM, TanhRNN
from revtune.tuning.responses.recurrent_steps import Steps

Equations = type[LSTM] | type[GRU] | type[TanhRNN]

LoopRecord = tuple[Tensor, ...]
"""What the tangent of a loop needs of it, for each row: what the response would add to m, slopes, carry, and the
last slope that `recurrent_gates` gives."""


def run_loop(
    equations: Equations,
    steps: Steps,
    a: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    response: tuple[Tensor, Tensor] | None,
    states: Sequence[Tensor],
    record: list[Tensor] | None = None,
) -> tuple[Tensor, ...]:
    """`Loop`, the response as V and s: y, shaped as a is, and the last states."""
    second, scale = response or (None, None)
    arguments: tuple[Any, ...] = (equations, steps, record, a, weight, bias, second, scale, *states)
    y, *finals = Loop.apply(*arguments)
    return steps.shaped(y), *finals


class Loop(torch.autograd.Function):
    """One direction of one layer over all steps.

    Args of `apply`:
        equations: those of a step.
        steps: how rows stand.
        record: None, or a list to be filled with a `LoopRecord`. Then responses add nothing to values, though they get
            the gradient of doing so, taken to be linear in V and s: h is a constant in them.
        a: what the input gives, shape (T, B, G) or (N, G).
        weight, bias: W (G, H) and b (G,), or None.
        second, scale: V (G, H) and s (B, G), or None.
        states: h, and c of an LSTM, shape (B, H).

    Returns of `apply`:
        y of all rows (N, H), and the last states.
    """

    @staticmethod
    def forward(ctx, equations, steps, record, a, weight, bias, second, scale, *states):  # type: ignore[no-untyped-def]
        adds_response = second is not None and record is None
        flat, width = a.flatten(0, -2), len(weight)
        products = flat.new_zeros(len(flat), 2 * width if adds_response else width)
        gates, v_h = products[:, :width], products[:, width:]  # side by side, so that one product writes both
        saved = equations.prepare(gates, flat, bias)
        h_before, states = torch.empty_like(saved[0]), tuple(state.clone() for state in states)
        weights = torch.cat([weight, second]).T if adds_response else weight.T
        parts = steps.split(products, gates, v_h, h_before, *saved)
        for t in steps.times():
            products_t, gates_t, v_h_t, h_before_t, *saved_t = parts[t]
            now = [state[: len(products_t)] for state in states]  # sequences that have ended keep their last states
            h_before_t.copy_(now[0])
            products_t.addmm_(now[0], weights)
            if adds_response:
                gates_t.addcmul_(scale[: len(products_t)], v_h_t)
            equations.step(gates_t, *saved_t, *now)
        if any(ctx.needs_input_grad) or record is not None:
            slopes = equations.slopes(gates, h_before, *saved)
            if record is not None:
                v_h = h_before @ second.T
                record += [steps.shaped(v_h).mul(steps.per_row(scale)).flatten(0, -2), *slopes]
            ctx.save_for_backward(weight, second, scale, h_before, v_h, *slopes)
        ctx.equations, ctx.steps, ctx.adds_response = equations, steps, adds_response
        ctx.set_materialize_grads(False)
        return saved[0], *states

    @staticmethod
    def backward(ctx, dy, *dstates):  # type: ignore[no-untyped-def]
        if torch.is_grad_enabled():
            raise RuntimeError("the gradient of a responding recurrent layer has none itself: no create_graph=True")
        weight, second, scale, h_before, v_h, *slopes = ctx.saved_tensors
        equations, steps, adds_response, width = ctx.equations, ctx.steps, ctx.adds_response, len(weight)
        grads = h_before.new_empty(len(h_before), 2 * width if adds_response else width)
        m_grad, v_h_grad, input_room = grads[:, :width], grads[:, width:], equations.input_room(h_before)
        weights = torch.cat([weight, second]) if adds_response else weight
        states = [h_before.new_zeros(steps.sizes[0], h_before.shape[1]) if d is None else d.clone() for d in dstates]
        dy = torch.zeros_like(h_before) if dy is None else dy
        parts = steps.split(grads, v_h_grad, dy, m_grad, *input_room, *slopes)
        for t in steps.times(back=True):
            grads_t, v_h_grad_t, dy_t, m_grad_t, *slopes_t = parts[t]
            now = [state[: len(grads_t)] for state in states]
            now[0].add_(dy_t)
            equations.carry_gradient(m_grad_t, *slopes_t, *now)
            if adds_response:
                torch.mul(m_grad_t, scale[: len(grads_t)], out=v_h_grad_t)
            now[0].addmm_(grads_t, weights, beta=equations.h_carries)  # beta=0 lets go of the gradient of h
        if second is not None and not adds_response:
            v_h_grad = steps.shaped(m_grad).mul(steps.per_row(scale)).flatten(0, -2)
        wants_a, wants_weight, wants_bias, wants_second, wants_scale, *_ = ctx.needs_input_grad[3:]
        return (
            None,
            None,
            None,
            steps.shaped(equations.input_gradient(m_grad, *input_room)) if wants_a else None,
            m_grad.T @ h_before if wants_weight else None,
            m_grad.sum(0) if wants_bias else None,
            v_h_grad.T @ h_before if wants_second else None,
            steps.summed_by_example(m_grad * v_h) if wants_scale else None,
            *states,
        )


def loop_tangents(
    equations: Equations, steps: Steps, record: LoopRecord, da: Tensor, weight: Tensor, states: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """The tangents of y and the last states, from those of a and of the first states, and from a recorded loop."""
    dm, slopes, carry, last_slope = record
    dy, states = torch.empty_like(carry), [state.clone() for state in states]
    change, *added = equations.input_tangent(da.flatten(0, -2), dm, last_slope)
    parts = steps.split(change, *added, dy, slopes, carry, last_slope)
    for t in steps.times():
        change_t = parts[t][0]
        now = [state[: len(change_t)] for state in states]
        change_t.addmm_(now[0], weight.T)
        equations.carry_tangent(*parts[t], *now)
    return steps.shaped(dy), *states
