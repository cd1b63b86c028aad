"""One step of nn.LSTM, nn.GRU and nn.RNN: forward, gradient and tangent, in place, all but the products with weights.

With `a` what the input gives and `m` what the state before gives, by gate, and h' and c' the state before::

    LSTM   i, f, o = sigmoid(a + m)   g = tanh(a_g + m_g)         c = f c' + i g     h = o tanh(c)
    GRU    r, z    = sigmoid(a + m)   n = tanh(a_n + r m_n)       h = (1 - z) n + z h'

Once all steps are done, slopes take the place of the gates::

    slopes          what a change of each m does: dc/dm for i, f, g of an LSTM, dh/dm for the other gates
    carry           dc/dc' = f of an LSTM, dh/dh' = z of a GRU, but for what goes through gates
    h_by_c          dh/dc of an LSTM
    h_by_a_n        dh/da_n of a GRU, whose m_n enters times r, so that a_n has a slope of its own

The gradient and the tangent of a step need nothing else of the gates.

Shapes: N rows of all steps, R rows of one step, H hidden, G gates (4 H, 3 H or H). Gates stand in PyTorch's order.
"""

from __future__ import annotations

import torch
from torch import Tensor


class LSTM:
    """The equations of nn.LSTM; its state is h, c.

    Attributes:
        states: how many tensors its state is.
        h_carries: whether h goes into the next h other than through gates, as 0 or 1.
    """

    states, h_carries = 2, 0

    @staticmethod
    def prepare(gates: Tensor, a: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
        """Put a + b into gates (N, G), to which steps add W h; room for what steps save: y, c', tanh(c)."""
        gates.copy_(a)
        if bias is not None:
            gates += bias
        y = a.new_empty(len(a), a.shape[1] // 4)
        return y, torch.empty_like(y), torch.empty_like(y)

    @staticmethod
    def step(gates: Tensor, y: Tensor, c_before: Tensor, tanh_c: Tensor, h: Tensor, c: Tensor) -> None:
        """Pre-activations (R, G) become gates; h and c become the next ones, of which y and tanh_c are kept."""
        i, f, g, o = gates.chunk(4, 1)
        gates[:, : 2 * i.shape[1]].sigmoid_()  # i and f
        g.tanh_()
        o.sigmoid_()
        c_before.copy_(c)
        c.mul_(f).addcmul_(i, g)
        torch.tanh(c, out=tanh_c)
        torch.mul(o, tanh_c, out=y)
        h.copy_(y)

    @staticmethod
    def slopes(gates: Tensor, h_before: Tensor, y: Tensor, c_before: Tensor, tanh_c: Tensor) -> tuple[Tensor, ...]:
        """Slopes (N, G), in the place of gates, carry and h_by_c (N, H)."""
        i, f, g, o = gates.chunk(4, 1)  # each gate is overwritten after the last line that reads it
        carry = f.clone()  # dc/dc' = f
        h_by_c = o - y * tanh_c  # dh/dc = o (1 - tanh(c)^2)
        o.neg_().add_(1).mul_(y)  # dh/do o (1 - o) = (1 - o) h
        f.mul_(1 - f).mul_(c_before)  # dc/df f (1 - f) = c' f (1 - f)
        i_g = i * g
        g.mul_(i_g).neg_().add_(i)  # dc/dg (1 - g^2) = i (1 - g^2)
        i.neg_().add_(1).mul_(i_g)  # dc/di i (1 - i) = g i (1 - i)
        return gates, carry, h_by_c

    @staticmethod
    def input_room(carry: Tensor) -> tuple[Tensor, ...]:
        """Room for gradients of a that differ from those of m: none."""
        return ()

    @staticmethod
    def carry_gradient(m_grad: Tensor, slopes: Tensor, carry: Tensor, h_by_c: Tensor, dh: Tensor, dc: Tensor) -> None:
        """Gradients (R, G) of m, from those of h and c; dc becomes that of c'."""
        dc.addcmul_(dh, h_by_c)  # all that reaches c: through the next step, and through h
        by_gate, slopes = m_grad.unflatten(1, (4, -1)), slopes.unflatten(1, (4, -1))
        torch.mul(dc.unsqueeze(1), slopes[:, :3], out=by_gate[:, :3])  # i, f, g act through c
        torch.mul(dh, slopes[:, 3], out=by_gate[:, 3])  # o acts on h
        dc.mul_(carry)

    @staticmethod
    def input_gradient(m_grad: Tensor) -> Tensor:
        """Gradient (N, G) of a, which is that of m."""
        return m_grad

    @staticmethod
    def input_tangent(da: Tensor, dm: Tensor, h_by_c: Tensor) -> tuple[Tensor, ...]:
        """From tangents (N, G) of a, and of m without W dh: what W dh is added to, and what else a step adds."""
        return (da + dm,)

    @staticmethod
    def carry_tangent(
        dm: Tensor, dy: Tensor, slopes: Tensor, carry: Tensor, h_by_c: Tensor, dh: Tensor, dc: Tensor
    ) -> None:
        """Tangents of y, h and c after the step, in the place of those before, from those of a + m (R, G)."""
        by_gate = dm.mul_(slopes).unflatten(1, (4, -1))
        dc.mul_(carry).add_(by_gate[:, :3].sum(1))  # before dh, which reads the new dc
        torch.addcmul(by_gate[:, 3], h_by_c, dc, out=dy)
        dh.copy_(dy)


class GRU:
    """The equations of nn.GRU; its state is h. Members are as those of `LSTM`."""

    states, h_carries = 1, 1

    @staticmethod
    def prepare(gates: Tensor, a: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
        """Put a + b into the gates r and z, b into n's; room for y and n, and a_n, which no product is added to."""
        two_gates = a.shape[1] // 3 * 2
        gates.zero_() if bias is None else gates.copy_(bias.expand_as(a))
        gates[:, :two_gates] += a[:, :two_gates]
        y = torch.empty_like(a[:, two_gates:])
        return y, torch.empty_like(y), a[:, two_gates:]

    @staticmethod
    def step(gates: Tensor, y: Tensor, n: Tensor, a_n: Tensor, h: Tensor) -> None:
        """Pre-activations (R, G) become the gates r and z, and m_n, which stays; h becomes the next one, kept as y."""
        r, z, m_n = gates.chunk(3, 1)
        gates[:, : 2 * r.shape[1]].sigmoid_()  # r and z
        torch.addcmul(a_n, r, m_n, out=n).tanh_()
        torch.lerp(n, h, z, out=y)
        h.copy_(y)

    @staticmethod
    def slopes(gates: Tensor, h_before: Tensor, y: Tensor, n: Tensor, a_n: Tensor) -> tuple[Tensor, ...]:
        """Slopes (N, G), in the place of gates, carry and h_by_a_n (N, H)."""
        r, z, m_n = gates.chunk(3, 1)  # each is overwritten after the last line that reads it
        carry = z.clone()  # dh/dh' = z
        h_by_a_n = (1 - n * n).mul_(1 - z)  # dh/dn (1 - n^2) = (1 - z) (1 - n^2)
        z.mul_(1 - z).mul_(h_before - n)  # dh/dz z (1 - z) = (h' - n) z (1 - z)
        h_by_m_n = h_by_a_n * r  # dh/da_n r
        r.neg_().add_(1).mul_(m_n).mul_(h_by_m_n)  # dh/da_n m_n r (1 - r)
        m_n.copy_(h_by_m_n)
        return gates, carry, h_by_a_n

    @staticmethod
    def input_room(carry: Tensor) -> tuple[Tensor, ...]:
        """Room for the gradient of a_n."""
        return (torch.empty_like(carry),)

    @staticmethod
    def carry_gradient(
        m_grad: Tensor, a_n_grad: Tensor, slopes: Tensor, carry: Tensor, h_by_a_n: Tensor, dh: Tensor
    ) -> None:
        """Gradients (R, G) of m and of a_n, from that of h; dh becomes that of h', but for what W h passes back."""
        torch.mul(dh.unsqueeze(1), slopes.unflatten(1, (3, -1)), out=m_grad.unflatten(1, (3, -1)))
        torch.mul(dh, h_by_a_n, out=a_n_grad)
        dh.mul_(carry)

    @staticmethod
    def input_gradient(m_grad: Tensor, a_n_grad: Tensor) -> Tensor:
        """Gradient (N, G) of a: that of m, but for n."""
        return torch.cat([m_grad[:, : -a_n_grad.shape[1]], a_n_grad], 1)

    @staticmethod
    def input_tangent(da: Tensor, dm: Tensor, h_by_a_n: Tensor) -> tuple[Tensor, ...]:
        """What W dh is added to, and what a_n adds to h."""
        two_gates = h_by_a_n.shape[1] * 2
        change = dm.clone()
        change[:, :two_gates] += da[:, :two_gates]
        return change, h_by_a_n * da[:, two_gates:]

    @staticmethod
    def carry_tangent(
        dm: Tensor, by_a_n: Tensor, dy: Tensor, slopes: Tensor, carry: Tensor, h_by_a_n: Tensor, dh: Tensor
    ) -> None:
        """Tangents of y and h after the step, from those of a + m (R, G) and what a_n adds to h."""
        torch.sum(dm.mul_(slopes).unflatten(1, (3, -1)), 1, out=dy)
        dh.mul_(carry).add_(by_a_n).add_(dy)
        dy.copy_(dh)


class TanhRNN:
    """The equation of nn.RNN, whose one gate is h before its nonlinearity. Members are as those of `LSTM`."""

    states, h_carries = 1, 0

    @staticmethod
    def prepare(gates: Tensor, a: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
        """Put a + b into gates (N, G), to which steps add W h; room for y."""
        gates.copy_(a)
        if bias is not None:
            gates += bias
        return (torch.empty_like(a),)

    @staticmethod
    def step(gates: Tensor, y: Tensor, h: Tensor) -> None:
        """h becomes the next one, kept as y."""
        torch.tanh(gates, out=y)
        h.copy_(y)

    @staticmethod
    def slopes(gates: Tensor, h_before: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """dh/dm = 1 - h^2 (N, G), in the place of gates; it is all that there is."""
        torch.mul(y, y, out=gates).neg_().add_(1)
        return gates, gates, gates

    @staticmethod
    def input_room(carry: Tensor) -> tuple[Tensor, ...]:
        """Room for gradients of a that differ from those of m: none."""
        return ()

    @staticmethod
    def carry_gradient(m_grad: Tensor, slopes: Tensor, carry: Tensor, last_slope: Tensor, dh: Tensor) -> None:
        """Gradient (R, G) of m, from that of h."""
        torch.mul(dh, slopes, out=m_grad)

    @staticmethod
    def input_gradient(m_grad: Tensor) -> Tensor:
        """Gradient (N, G) of a, which is that of m."""
        return m_grad

    @staticmethod
    def input_tangent(da: Tensor, dm: Tensor, last_slope: Tensor) -> tuple[Tensor, ...]:
        """What W dh is added to."""
        return (da + dm,)

    @staticmethod
    def carry_tangent(dm: Tensor, dy: Tensor, slopes: Tensor, carry: Tensor, last_slope: Tensor, dh: Tensor) -> None:
        """Tangents of y and h after the step, from that of a + m (R, G)."""
        torch.mul(dm, slopes, out=dy)
        dh.copy_(dy)


class ReluRNN(TanhRNN):
    """The equation of nn.RNN with nonlinearity="relu"."""

    @staticmethod
    def step(gates: Tensor, y: Tensor, h: Tensor) -> None:
        """h becomes the next one, kept as y."""
        torch.clamp_min(gates, 0, out=y)
        h.copy_(y)

    @staticmethod
    def slopes(gates: Tensor, h_before: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """dh/dm (N, G), 1 where h is above 0, in the place of gates."""
        gates.copy_(y > 0)
        return gates, gates, gates
