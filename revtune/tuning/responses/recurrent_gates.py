"""A step of nn.LSTM and nn.GRU, forward, backward and of a tangent: in place, and all but the products with weights.

With `a` what the input gives and `m` what the state before gives, by gate::

    LSTM   i, f, o = sigmoid(a + m)   g = tanh(a_g + m_g)         c <- f c + i g     h <- o tanh(c)
    GRU    r, z    = sigmoid(a + m)   n = tanh(a_n + r m_n)       h <- (1 - z) n + z h

Once all steps are done, gates are replaced by their slopes: what a change of each `m` does to c (`i`, `f`, `g`) or to h
(the others). Backward and tangents need nothing else of the gates.

Shapes: N rows of all steps, R rows of one step, H hidden, G gates (4 H or 3 H). Gates stand in PyTorch's order.
"""

from __future__ import annotations

import torch
from torch import Tensor


class LSTM:
    """The equations of nn.LSTM; its state is h, c.

    Attributes:
        states: parts of its state.
        direct: how often h goes into the next h other than through gates.
    """

    states, direct = 2, 0

    @staticmethod
    def ready(gates: Tensor, fed: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
        """Put into gates (N, G) what products are added to; room for what steps write: y, c before, tanh c."""
        gates.copy_(fed)
        if bias is not None:
            gates += bias
        y = fed.new_empty(len(fed), fed.shape[1] // 4)
        return y, torch.empty_like(y), torch.empty_like(y)

    @staticmethod
    def step(gates: Tensor, y: Tensor, before: Tensor, bent: Tensor, h: Tensor, c: Tensor) -> None:
        """Gates from pre-activations (R, G); y, h and c as they become."""
        i, f, g, o = gates.chunk(4, 1)
        gates[:, : 2 * i.shape[1]].sigmoid_()
        g.tanh_()
        o.sigmoid_()
        before.copy_(c)
        c.mul_(f).addcmul_(i, g)
        torch.tanh(c, out=bent)
        torch.mul(o, bent, out=y)
        h.copy_(y)

    @staticmethod
    def slopes(gates: Tensor, h: Tensor, y: Tensor, before: Tensor, bent: Tensor) -> tuple[Tensor, ...]:
        """Slopes (N, G) in the place of gates, the share of c that is kept, and the slope of h by c."""
        i, f, g, o = gates.chunk(4, 1)
        kept, through = f.clone(), o - y * bent
        o.neg_().add_(1).mul_(y)
        f.mul_(1 - f).mul_(before)
        both = i * g
        g.mul_(both).neg_().add_(i)
        i.neg_().add_(1).mul_(both)
        return gates, kept, through

    @staticmethod
    def aside(kept: Tensor) -> tuple[Tensor, ...]:
        """Room for what `pull` writes besides, (N, H) each."""
        return ()

    @staticmethod
    def pull(grads: Tensor, slopes: Tensor, kept: Tensor, through: Tensor, dh: Tensor, dc: Tensor) -> None:
        """Gradients (R, G) of m; dc as it is one step before."""
        dc.addcmul_(dh, through)
        by_gate, slopes = grads.unflatten(1, (4, -1)), slopes.unflatten(1, (4, -1))
        torch.mul(dc.unsqueeze(1), slopes[:, :3], out=by_gate[:, :3])
        torch.mul(dh, slopes[:, 3], out=by_gate[:, 3])
        dc.mul_(kept)

    @staticmethod
    def fed(grads: Tensor) -> Tensor:
        """Gradient (N, G) of a, from that of m and what `pull` wrote besides."""
        return grads

    @staticmethod
    def driven(fed: Tensor, product: Tensor, through: Tensor) -> tuple[Tensor, ...]:
        """Of tangents (N, G) of a and of m, the latter but for W h, what W h is added to and what else `push` adds."""
        return (fed + product,)

    @staticmethod
    def push(change: Tensor, y: Tensor, slopes: Tensor, kept: Tensor, through: Tensor, h: Tensor, c: Tensor) -> None:
        """Tangents of y, h and c as they become, from those of m (R, G)."""
        by_gate = change.mul_(slopes).unflatten(1, (4, -1))
        c.mul_(kept).add_(by_gate[:, :3].sum(1))
        torch.addcmul(by_gate[:, 3], through, c, out=y)
        h.copy_(y)


class GRU:
    """The equations of nn.GRU; its state is h. Members are as those of `LSTM`."""

    states, direct = 1, 1

    @staticmethod
    def ready(gates: Tensor, fed: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
        """Room for y, n, and what the input gives to n, which no product is added to."""
        inner = fed.shape[1] // 3 * 2
        gates.zero_() if bias is None else gates.copy_(bias.expand_as(fed))
        gates[:, :inner] += fed[:, :inner]
        y = torch.empty_like(fed[:, inner:])
        return y, torch.empty_like(y), fed[:, inner:]

    @staticmethod
    def step(gates: Tensor, y: Tensor, n: Tensor, fed: Tensor, h: Tensor) -> None:
        """As in `LSTM`; the last block of gates stays m_n."""
        r, z, m = gates.chunk(3, 1)
        gates[:, : 2 * r.shape[1]].sigmoid_()
        torch.addcmul(fed, r, m, out=n).tanh_()
        torch.lerp(n, h, z, out=y)
        h.copy_(y)

    @staticmethod
    def slopes(gates: Tensor, h: Tensor, y: Tensor, n: Tensor, fed: Tensor) -> tuple[Tensor, ...]:
        """Slopes, the share of h that is kept, and the slope by what the input gives to n; h is the one before."""
        r, z, m = gates.chunk(3, 1)
        kept, through = z.clone(), (1 - n * n).mul_(1 - z)
        z.mul_(1 - z).mul_(h - n)
        inner = through * r
        r.neg_().add_(1).mul_(m).mul_(inner)
        m.copy_(inner)
        return gates, kept, through

    @staticmethod
    def aside(kept: Tensor) -> tuple[Tensor, ...]:
        """Room for the gradient of what the input gives to n."""
        return (torch.empty_like(kept),)

    @staticmethod
    def pull(grads: Tensor, fed: Tensor, slopes: Tensor, kept: Tensor, through: Tensor, dh: Tensor) -> None:
        """As in `LSTM`; dh as it is one step before, but for products."""
        torch.mul(dh.unsqueeze(1), slopes.unflatten(1, (3, -1)), out=grads.unflatten(1, (3, -1)))
        torch.mul(dh, through, out=fed)
        dh.mul_(kept)

    @staticmethod
    def fed(grads: Tensor, inner: Tensor) -> Tensor:
        """As in `LSTM`."""
        return torch.cat([grads[:, : -inner.shape[1]], inner], 1)

    @staticmethod
    def driven(fed: Tensor, product: Tensor, through: Tensor) -> tuple[Tensor, ...]:
        """As in `LSTM`."""
        inner = through.shape[1] * 2
        change = product.clone()
        change[:, :inner] += fed[:, :inner]
        return change, through * fed[:, inner:]

    @staticmethod
    def push(change: Tensor, past: Tensor, y: Tensor, slopes: Tensor, kept: Tensor, through: Tensor, h: Tensor) -> None:
        """As in `LSTM`."""
        torch.sum(change.mul_(slopes).unflatten(1, (3, -1)), 1, out=y)
        h.mul_(kept).add_(past).add_(y)
        y.copy_(h)
