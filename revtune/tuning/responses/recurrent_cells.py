"""nn.LSTMCell, nn.GRUCell and nn.RNNCell whose weights respond to hyperparameters.

A cell has the responses of one direction of one layer of `recurrent`, in a, what its input gives, and in m, what its
state gives::

    a = W_ih x + b_ih + (Q_ih d) * (V_ih x) + Q_b d          m = W_hh h + b_hh + (Q_hh d) * (V_hh h)

They are named `response_weight_ih`, `response_scale_ih`, `response_shift`, and so on. What follows is elementwise::

    LSTM   i, f, o = sigmoid(a + m)   g = tanh(a_g + m_g)         c = f c' + i g     h = o tanh(c)
    GRU    r, z    = sigmoid(a + m)   n = tanh(a_n + r m_n)       h = n + z (h' - n)
    RNN    h = tanh(a + m), or relu

Shapes: B examples, n hyperparameters, I input, H hidden, G gates (4 H, 3 H or H).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from revtune.tuning.hypers.hyperparameters import Hyperparameters
from revtune.tuning.responses.linearized import Change, tangent_of
from revtune.tuning.responses.responding import Responding
from revtune.tuning.trees import mapped

WEIGHTS = ("weight_ih", "weight_hh")


class ResponseCell(Responding, nn.RNNCellBase):
    """What cells with a response share."""

    @classmethod
    def refuses(cls, module: nn.Module) -> str | None:
        """Why a cell cannot respond; None if it can."""
        missing = [name for name in (*WEIGHTS, "bias_ih", "bias_hh") if name not in module._parameters]
        return f"its {missing[0]} is no parameter of its own" if missing else None

    def adopt(self, hypers: Hyperparameters, name: str, batch_dim: int) -> None:
        """Take up the parameters of the response."""
        self._hypers, self._name, self.batch_dim = (hypers,), name, 0  # a tuple, as in `Responding.adopt`
        n = len(hypers.names)
        for weight in WEIGHTS:
            own = getattr(self, weight)
            self._add(f"response_{weight}", self.initial_response_weight(own))
            self._add(f"response_scale{weight.removeprefix('weight')}", own.new_zeros(len(own), n))
        self._add("response_shift", own.new_zeros(len(own), n) if self.bias else None)

    def step(self, a: Tensor, m: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The next states, h first."""
        raise NotImplementedError

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        """The next state, at each example's hyperparameters.

        Raises:
            ValueError: in a pass, an input without a batch; shapes that do not fit.
        """
        bound, d = self.hypers.current, self.hypers.current_departure()
        if d is None:
            return self.plain.forward(self, input, hx)
        if input.dim() == 1:
            return self._unbatched(input, hx)
        states = self._states(input, hx)
        a, m = F.linear(input, self.weight_ih, self.bias_ih), F.linear(states[0], self.weight_hh, self.bias_hh)
        rows = a if bound is None or bound.rows is None or bound.rows.following is None else a.detach() + m.detach()
        if bound is None or not self.shared(rows, bound.size):
            a = self._responding("_ih", input, a, d, rows, self.response_shift)
            m = self._responding("_hh", states[0], m, d, rows, None)
        return self._returned(self.step(a, m, states))

    def _unbatched(self, input: Tensor, hx: Any) -> Any:
        """The next state for an input (I,), run as a batch of one."""
        if self.hypers.current is not None:
            raise ValueError(
                f"{self._name}: in a pass every example has hyperparameters of its own, so that the input must have a "
                f"batch and two dimensions, got {tuple(input.shape)}"
            )
        return mapped(lambda state: state.squeeze(0), self.forward(input[None], mapped(lambda state: state[None], hx)))

    def _states(self, input: Tensor, hx: Any) -> list[Tensor]:
        """The first states, zeros if none are given."""
        expected = (len(input), self.hidden_size)
        if hx is None:
            zeros = input.new_zeros(expected)
            return [zeros, zeros]
        states = [hx] if isinstance(hx, Tensor) else list(hx)
        shapes = [tuple(state.shape) for state in states]
        if input.dim() != 2 or any(shape != expected for shape in shapes):
            wanted = f"an input (B, {self.input_size}) and states (B, {self.hidden_size})"
            raise ValueError(f"{self._name}: a cell takes {wanted}, got {tuple(input.shape)} and {shapes}")
        return states

    def _responding(self, side: str, x: Tensor, y: Tensor, d: Tensor, rows: Tensor, shift: Tensor | None) -> Tensor:
        """The plain product y of x and one of the weights, and the response; `rows` tell whose they are."""
        record = None if self.hypers.current is None else self.hypers.current.record
        if record is not None and not record.recording:
            kept, change = record.recall_change(self)
            tangent = tangent_of(x)
            change = change if tangent is None else change + F.linear(tangent, getattr(self, f"weight{side}"))
            return forward_ad.make_dual(forward_ad.unpack_dual(y).primal if kept is None else kept, change)
        scale = self.along(F.linear(d, getattr(self, f"response_scale{side}")), y, rows)
        shift = None if shift is None else self.along(F.linear(d, shift), y, rows)
        given = x if record is None else x.detach()
        added = Change(scale, F.linear(given, getattr(self, f"response_weight{side}")), shift)
        return y + added.value() if record is None else record.keep_change(self, y, added)

    def _returned(self, states: tuple[Tensor, ...]) -> Any:
        return states[0]


class ResponseLSTMCell(ResponseCell, nn.LSTMCell):
    """nn.LSTMCell with a response."""

    plain = nn.LSTMCell

    def step(self, a: Tensor, m: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The next h and c."""
        i, f, g, o = (a + m).chunk(4, -1)
        c = f.sigmoid() * states[1] + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c

    def _returned(self, states: tuple[Tensor, ...]) -> Any:
        return states


class ResponseGRUCell(ResponseCell, nn.GRUCell):
    """nn.GRUCell with a response."""

    plain = nn.GRUCell

    def step(self, a: Tensor, m: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The next h."""
        (a_r, a_z, a_n), (m_r, m_z, m_n) = a.chunk(3, -1), m.chunk(3, -1)
        z, n = (a_z + m_z).sigmoid(), torch.tanh(a_n + (a_r + m_r).sigmoid() * m_n)
        return (n + z * (states[0] - n),)


class ResponseRNNCell(ResponseCell, nn.RNNCell):
    """nn.RNNCell with a response."""

    plain = nn.RNNCell

    def step(self, a: Tensor, m: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The next h."""
        return ((a + m).tanh() if self.nonlinearity == "tanh" else (a + m).relu(),)
