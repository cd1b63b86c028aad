"""The tangent of a chunk whose gates are known: how its states would move, were its inputs and products moved a little.

With a gate's pre-activation moved by `a'`, a RevGRU's half, with the other half's h as `v` and its own as `h`::

    z' = m s (1 - s) a_z'     r' = r (1 - r) a_r'     g' = (1 - g^2) a_g'     h' <- z h' + (h - g) z' + (1 - z) g'

and a RevLSTM's::

    c' <- f c' + c f' + g i' + i g'        h' <- p h' + (h - e o t) p' + (1 - e p) (t o' + o (1 - t^2) c')

where s is the unrounded z, m the slope of its limit, t = tanh(c) after the step and e 1, or 0 for the paper's own LSTM.
Rounding passes straight through, as on the way back. What moves the pre-activations are their inputs, the responses of
products, which add `s * (V v)` though they add nothing to values, and h' itself by the recurrent weight.

Shapes: K steps of a chunk, B batch, N units of a part, H = 2 N, G gates.
"""

from __future__ import annotations

import torch
from torch import Tensor

from revtune.reversible.arguments import running
from revtune.reversible.cells.fixed import FORGET_ONE
from revtune.reversible.kernel.kernel import GRU_BLOCKS, LSTM_BLOCKS, PARTS, ChunkBuffers, Kernel

LSTM_TOP = FORGET_ONE - 1
"""The largest forget integer of a RevLSTM."""


def chunk_tangent(kernel: Kernel, chunk: ChunkBuffers, da: Tensor, state: Tensor, first: int) -> Tensor:
    """The tangent of a chunk's outputs.

    Args:
        kernel: of the layer.
        chunk: with its gates and states.
        da: the tangent of its projected inputs, (K, B, G); it is written over.
        state: the tangent of the state before it, (S, 2, B, N); after it in the end.
        first: its first step.

    Returns:
        (K, B, H).
    """
    loop = _GruLoop(kernel, chunk, da) if kernel.is_gru else _LstmLoop(kernel, chunk, da)
    dy = torch.empty_like(chunk.y)
    live = None if kernel.lengths is None else running(kernel.lengths, first, first + len(da)).unsqueeze(-1)
    for t in range(len(da)):
        for half in range(PARTS):
            before = state[:, half].clone() if live is not None else state
            loop.step(t, half, state)
            if live is not None:
                state[:, half] = torch.where(live[t], state[:, half], before)
        torch.cat([state[0, 0], state[0, 1]], -1, out=dy[t])
    return dy


class _Loop:
    """What both cells share: what their gates read, and what responses of the recurrent product add."""

    def __init__(self, kernel: Kernel, chunk: ChunkBuffers, da: Tensor) -> None:
        self.units, self.blocks, self.masks = kernel.units, kernel.blocks, kernel.masks
        self.slope, self.forgetting, self.bounded = kernel.limit
        self.weight = kernel.hh.t()
        self.gates = chunk.gates.unflatten(-1, (PARTS, self.blocks, self.units)).unbind(3)  # (K, B, 2, N) each
        self.before = torch.cat([chunk.y_start[None], chunk.y[:-1]]).unflatten(-1, (PARTS, self.units))
        read = torch.stack([self.before[:, :, 1], chunk.y[:, :, : self.units]], 2)
        read = torch.stack([self._masked(read[:, :, half], half) for half in range(PARTS)], 2)
        self.read, self.da = read, da.unflatten(-1, (PARTS, self.blocks, self.units))

    def respond(self, kernel: Kernel, blocks: slice, read: Tensor) -> None:
        """Add what a response gives for these blocks of each half's gates, which read (K, B, 2, N)."""
        if "hh" not in kernel.weights.responses:
            return
        extra, scale = kernel.weights.responses["hh"]
        for half in range(PARTS):
            first, last = half * self.blocks + blocks.start, half * self.blocks + blocks.stop
            rows = slice(first * self.units, last * self.units)
            added = scale[:, rows] * kernel.weights.linear(read[:, :, half], extra[rows])
            self.da[:, :, half, blocks] += added.unflatten(-1, (-1, self.units))

    def other(self, state: Tensor, half: int) -> Tensor:
        """The tangent of what a half's gates read."""
        return self._masked(state[0, 1 - half], half)

    def carried(self, t: int, half: int, blocks: slice, read: Tensor) -> Tensor:
        """The tangent of the pre-activations of some blocks at a step, (B, blocks * N), from that of what they read."""
        rows = slice((half * self.blocks + blocks.start) * self.units, (half * self.blocks + blocks.stop) * self.units)
        return torch.addmm(self.da[t, :, half, blocks].flatten(1), read, self.weight[:, rows])

    def used(self, gate: Tensor, top: int = FORGET_ONE) -> Tensor:
        """A forget gate as couplings use it."""
        limited = self.slope * gate + (1.0 - self.slope)
        return (limited * FORGET_ONE).round().clamp(1, top) / FORGET_ONE if self.forgetting else limited

    def _masked(self, read: Tensor, half: int) -> Tensor:
        mask = self.masks[1 - half]
        return read if mask is None else read * mask


class _GruLoop(_Loop):
    def __init__(self, kernel: Kernel, chunk: ChunkBuffers, da: Tensor) -> None:
        super().__init__(kernel, chunk, da)
        s, self.r, g = self.gates
        kept = self.before if self.forgetting else torch.zeros_like(g)
        self.respond(kernel, slice(0, 2), self.read)
        self.respond(kernel, slice(2, GRU_BLOCKS), self.r * self.read)
        z = self.used(s)
        self.z = z if self.forgetting else torch.ones_like(z)
        self.of_z, self.of_r = self.slope * s * (1 - s) * (kept - g), self.r * (1 - self.r) * self.read
        self.of_g = (1 - z) * (1 - g * g)

    def step(self, t: int, half: int, state: Tensor) -> None:
        """Move a half's tangent (S, 2, B, N) one step on."""
        n, read = self.units, self.other(state, half)
        da = self.carried(t, half, slice(0, 2), read)
        reset = torch.addcmul(self.of_r[t, :, half] * da[:, n:], self.r[t, :, half], read)
        dg = self.carried(t, half, slice(2, GRU_BLOCKS), reset)
        h = state[0, half].mul_(self.z[t, :, half])
        h.addcmul_(self.of_z[t, :, half], da[:, :n]).addcmul_(self.of_g[t, :, half], dg)


class _LstmLoop(_Loop):
    def __init__(self, kernel: Kernel, chunk: ChunkBuffers, da: Tensor) -> None:
        super().__init__(kernel, chunk, da)
        assert chunk.c is not None and chunk.c_start is not None
        self.respond(kernel, slice(0, LSTM_BLOCKS), self.read)
        f, p, i, o, g = self.gates
        c_before = torch.cat([chunk.c_start[None], chunk.c[:-1]]).unflatten(-1, (PARTS, self.units))
        t, share = chunk.c.unflatten(-1, (PARTS, self.units)).tanh(), float(self.bounded)
        used, forgets = self.used(p, LSTM_TOP), float(self.forgetting)
        taken = 1 - share * used
        self.f = self.used(f, LSTM_TOP) if self.forgetting else torch.ones_like(f)
        self.p = used if self.forgetting else torch.ones_like(p)
        self.of_f, self.of_i, self.of_g = (
            forgets * self.slope * f * (1 - f) * c_before,
            i * (1 - i) * g,
            i * (1 - g * g),
        )
        self.of_p = self.slope * p * (1 - p) * (forgets * self.before - share * o * t)
        self.of_o, self.of_c = taken * t * o * (1 - o), taken * o * (1 - t * t)

    def step(self, t: int, half: int, state: Tensor) -> None:
        """Move a half's tangents (S, 2, B, N) one step on."""
        da = self.carried(t, half, slice(0, LSTM_BLOCKS), self.other(state, half))
        f, p, i, o, g = da.unflatten(-1, (LSTM_BLOCKS, self.units)).unbind(1)
        h, c = state[0, half], state[1, half]
        c.mul_(self.f[t, :, half]).addcmul_(self.of_f[t, :, half], f)
        c.addcmul_(self.of_i[t, :, half], i).addcmul_(self.of_g[t, :, half], g)
        h.mul_(self.p[t, :, half]).addcmul_(self.of_p[t, :, half], p)
        h.addcmul_(self.of_o[t, :, half], o).addcmul_(self.of_c[t, :, half], c)
