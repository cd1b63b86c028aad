"""nn.LSTM, nn.GRU and nn.RNN whose weights respond to hyperparameters.

Each direction of each layer has a response in a, what its input gives, and in m, what its state gives::

    a = W_ih x + b_ih + (Q_ih d) * (V_ih x) + Q_b d          m = W_hh h + b_hh + (Q_hh d) * (V_hh h)

so that a GRU's candidate is tanh(a_n + r * m_n), as nn.GRU has it. With V_ih as `response_weight_ih_l0`, Q_ih as
`response_scale_ih_l0`, Q_b as `response_shift_l0`, and so on, the layer's own parameters keep their names.

Shapes: T steps, N rows of all steps, B examples, n hyperparameters, I input, H hidden, G gates (4 H, 3 H or H).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from revtune.tuning.hypers.hyperparameters import Hyperparameters
from revtune.tuning.hypers.ranges import Range
from revtune.tuning.noise import BATCH_RATE, RATE, drop_mask
from revtune.tuning.responses.linearized import ResponseRecord, straight_through
from revtune.tuning.responses.recurrent_gates import GRU, LSTM, ReluRNN, TanhRNN
from revtune.tuning.responses.recurrent_loop import Equations, loop_tangents, run_loop
from revtune.tuning.responses.recurrent_rows import refuse_unbatched, run_in_pass
from revtune.tuning.responses.recurrent_steps import Steps, from_rows, to_rows
from revtune.tuning.responses.responding import ADVICE, Responding
from revtune.tuning.responses.rows import Laid
from revtune.tuning.trees import mapped

Direction = Callable[[str, Any, Sequence[Tensor], Steps], tuple[Tensor, ...]]
"""Computes one direction of one layer: y and last states, from its parameters' suffix, its input and first states."""

READERS = {"dropout": "_tuned_rate", "weight_drop": "_tuned_weight_drop"}
"""The attributes by which a layer reads its rates."""


class ResponseRecurrent(Responding, nn.RNNBase):
    """What nn.LSTM, nn.GRU and nn.RNN with a response share.

    Attributes:
        equations: those of a step.
        batch_dim: which dimension of other layers' inputs is examples; here it is by `batch_first`.
        _tuned_rate: gives the rate of the dropout between layers, a number, 0-d or (B,); None where it is `dropout`.
        _tuned_weight_drop: gives the rate at which recurrent weights are dropped, a number or 0-d; None for never.
    """

    RATES: dict[str, Range] = {"dropout": RATE, "weight_drop": BATCH_RATE}
    """The rates that may be tuned: between layers, and of recurrent weights."""

    equations: Equations
    _tuned_rate: Callable[[], Tensor | float] | None = None
    _tuned_weight_drop: Callable[[], Tensor | float] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """What a pickle holds: rates by the names of their hyperparameters."""
        state: dict[str, Any] = super().__getstate__()
        rates = {key: state[key].args[0] for key in READERS.values() if isinstance(state.get(key), partial)}
        return {**state, **rates}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take up what `__getstate__` gave."""
        (hypers,) = state["_hypers"]
        rates = {
            key: partial(hypers.__getitem__, name)
            for key in READERS.values()
            if isinstance(name := state.get(key), str)
        }
        super().__setstate__({**state, **rates})

    @classmethod
    def refuses(cls, module: nn.Module) -> str | None:
        """Why a layer cannot respond; None if it can."""
        assert isinstance(module, nn.RNNBase)
        if module.proj_size:
            return "its states are projected (proj_size), which has no response"
        missing = [name for name in module._flat_weights_names if name not in module._parameters]
        return f"its {missing[0]} is no parameter of its own" if missing else None

    @classmethod
    def rates(cls, module: nn.Module, *, named: bool) -> dict[str, float]:
        """The rates of a plain layer that can be tuned, as they are; those that it has no argument for where `named`.

        `named` tells that they are tuned where a hyperparameter has their name.
        """
        assert isinstance(module, nn.RNNBase)
        return ({"dropout": module.dropout} if module.num_layers > 1 else {}) | ({"weight_drop": 0.0} if named else {})

    @classmethod
    def put_rate(cls, module: nn.Module, rate: str, value: float) -> None:
        """Set a rate of a plain layer that has an argument for it."""
        assert isinstance(module, nn.RNNBase) and rate == "dropout"
        module.dropout = value

    def rates_tuned(self) -> dict[str, str]:
        """The hyperparameters that rates are read from, by rate."""
        read = {rate: getattr(self, name) for rate, name in READERS.items()}
        return {rate: one.args[0] for rate, one in read.items() if isinstance(one, partial)}

    def tune(self, rate: str, hyper: str) -> None:
        """Have a rate read from a hyperparameter."""
        setattr(self, READERS[rate], partial(self.hypers.__getitem__, hyper))

    def adopt(self, hypers: Hyperparameters, name: str, batch_dim: int) -> None:
        """Take up the parameters of the response, for each direction of each layer."""
        self._hypers, self._name, self.batch_dim = (hypers,), name, batch_dim  # a tuple, as in `Responding.adopt`
        for suffix in self._suffixes(*range(self.num_layers)):
            for side in ("ih", "hh"):
                weight = self._own(f"weight_{side}", suffix)
                self._add(f"response_weight_{side}{suffix}", self.initial_response_weight(weight))
                self._add(f"response_scale_{side}{suffix}", weight.new_zeros(len(weight), len(hypers.names)))
            shift = weight.new_zeros(len(weight), len(hypers.names)) if self.bias else None
            self._add(f"response_shift{suffix}", shift)

    def become_plain(self) -> None:
        """Become the plain layer again, with the dropout between layers at the rate that it has now."""
        if self._tuned_rate is not None:
            self.dropout = float(self._tuned_rate())
        for name in READERS.values():
            self.__dict__.pop(name, None)
        super().become_plain()

    def forward(self, input: Tensor | PackedSequence, hx: Any = None) -> tuple[Any, Any]:  # type: ignore[override]
        """The plain layer's outputs, at each example's hyperparameters.

        Raises:
            ValueError: sequences without steps; in a pass, an input without a batch.
        """
        bound, d, rate = self.hypers.current, self.hypers.current_departure(), self._dropout_rate()
        if bound is None or (isinstance(input, Tensor) and input.dim() == 2):
            return self._run(input, hx, d, None, rate, Laid())
        run = partial(self._run, input, hx, d, bound.record, rate)
        return run_in_pass(self, input, bound, ADVICE, run)

    def _run(
        self, input: Any, hx: Any, d: Tensor | None, record: ResponseRecord | None, rate: Any, laid: Laid
    ) -> tuple[Any, Any]:
        tuned = (self._tuned_rate is not None and rate is not None) or self._weight_drop_rate() is not None
        if d is None and record is None and not tuned:
            plain: tuple[Any, Any] = self.plain.forward(self, input, hx)
            return plain
        if isinstance(input, Tensor) and input.dim() == 2:
            return self._unbatched(input, hx)
        x, steps, states = self._rows(input, hx)
        with torch.autocast(x.device.type, enabled=False):  # the loop works in place, in the dtype of the weights
            if isinstance(rate, Tensor) and rate.dim():
                rate = steps.per_row(self._by_sequence(rate[:, None], steps, laid))
            if d is not None:
                d = self._by_sequence(d, steps, laid)
            if record is None:
                y, finals = self._stacked(partial(self._direction, d, None), x, states, steps, rate)
            else:
                y, finals = self._linearized_in(d, record, x, states, steps, rate)
        if isinstance(input, PackedSequence) and input.unsorted_indices is not None:
            finals = [state.index_select(1, input.unsorted_indices) for state in finals]
        return from_rows(y, input, self.batch_first), tuple(finals) if self.equations is LSTM else finals[0]

    def _unbatched(self, input: Tensor, hx: Any) -> tuple[Any, Any]:
        """The outputs for an input (T, I), run as a batch of one."""
        if self.hypers.current is not None:
            refuse_unbatched(self, input)
        batch = 0 if self.batch_first else 1
        y, finals = self.forward(input.unsqueeze(batch), mapped(lambda state: state.unsqueeze(1), hx))
        return y.squeeze(batch), mapped(lambda state: state.squeeze(1), finals)

    def _rows(self, input: Tensor | PackedSequence, hx: Any) -> tuple[Tensor, Steps, list[Tensor]]:
        """The input's rows, how they stand, and first states (directions of layers, B, H)."""
        x, sizes = (input.data, input.batch_sizes) if isinstance(input, PackedSequence) else (input, None)
        self.check_input(x, sizes)
        rows, steps = to_rows(input, self.batch_first)
        if not steps.sizes:
            raise ValueError(f"{self._name}: sequences must have at least one step, got {tuple(x.shape)}")
        rows = rows.to(self._own("weight_ih_l0").dtype)
        if hx is None:
            zeros = rows.new_zeros(self.num_layers * (1 + self.bidirectional), steps.sizes[0], self.hidden_size)
            return rows, steps, [zeros, zeros][: self.equations.states]
        self.check_forward_args(x, hx, sizes)
        states = [hx] if isinstance(hx, Tensor) else list(hx)
        return rows, steps, [steps.ordered(state.to(rows.dtype), 1) for state in states]

    def _by_sequence(self, scalars: Tensor, steps: Steps, laid: Laid) -> Tensor:
        """Scalars of examples (B, k), or of all (1, k), one row for each sequence, in the order of steps."""
        return steps.ordered(laid.each(scalars, steps.sizes[0]))

    def _stacked(
        self, direction: Direction, x: Any, states: Sequence[Tensor], steps: Steps, rate: Tensor | float | None
    ) -> tuple[Tensor, list[Tensor]]:
        """y and last states of all layers and directions, with dropout between layers."""
        finals: list[list[Tensor]] = []
        for layer in range(self.num_layers):
            if layer and rate is not None:
                x = x * drop_mask(x.shape, rate, x, rows=1 if steps.examples is None else 0)
            outputs = []
            for suffix in self._suffixes(layer):
                own_steps = replace(steps, reverse=suffix.endswith("_reverse"))
                y, *last = direction(suffix, x, [state[len(finals)] for state in states], own_steps)
                outputs.append(y)
                finals.append(last)
            x = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
        return x, [torch.stack(last) for last in zip(*finals, strict=True)]

    def _direction(
        self,
        d: Tensor | None,
        record: ResponseRecord | None,
        suffix: str,
        x: Tensor,
        states: Sequence[Tensor],
        steps: Steps,
    ) -> tuple[Tensor, ...]:
        a = F.linear(x, self._own("weight_ih", suffix), self._own("bias_ih", suffix) if self.bias else None)
        weight, second = self._recurrent_weights(suffix)
        plain = weight, self._own("bias_hh", suffix) if self.bias else None
        if d is None:
            return run_loop(self.equations, steps, a, *plain, None, states)
        response = second, d @ self._own("response_scale_hh", suffix).T
        change = self._input_change(d, suffix, x if record is None else x.detach(), steps)
        if record is None:
            return run_loop(self.equations, steps, a.add_(change), *plain, response, states)
        loop_record: list[Tensor] = []
        out = run_loop(self.equations, steps, straight_through(a, change), *plain, response, states, loop_record)
        record.keep(self, change.detach(), loop_record)
        return out

    def _input_change(self, d: Tensor, suffix: str, x: Tensor, steps: Steps) -> Tensor:
        """What the response adds to a."""
        product = F.linear(x, self._own("response_weight_ih", suffix))
        scale = steps.per_row(d @ self._own("response_scale_ih", suffix).T)
        if not self.bias:
            return scale * product
        return torch.addcmul(steps.per_row(d @ self._own("response_shift", suffix).T), scale, product)

    def _linearized_in(
        self,
        d: Any,
        record: ResponseRecord,
        x: Tensor,
        states: Sequence[Tensor],
        steps: Steps,
        rate: Tensor | float | None,
    ) -> tuple[Tensor, list[Tensor]]:
        """y and last states at d = 0: recorded in the first pass, with their tangents in the second (`linearized`)."""
        if record.recording:
            y, finals = self._stacked(partial(self._direction, d, record), x, states, steps, rate)
            record.keep(self, *(primal.detach().clone() for primal in (y, *finals)))
            return y, finals
        firsts = [forward_ad.unpack_dual(state) for state in states]
        dstates = [torch.zeros_like(first.primal) if first.tangent is None else first.tangent for first in firsts]
        dx = forward_ad.unpack_dual(x).tangent
        with torch.no_grad():  # tangents go by themselves here, and the loop writes in place
            dy, dfinals = self._stacked(partial(self._direction_tangents, record), dx, dstates, steps, rate)
        pairs = zip(record.recall(self), (dy, *dfinals), strict=True)
        y, *finals = (forward_ad.make_dual(primal, tangent) for primal, tangent in pairs)
        return y, finals

    def _direction_tangents(
        self, record: ResponseRecord, suffix: str, dx: Tensor | None, dstates: Sequence[Tensor], steps: Steps
    ) -> tuple[Tensor, ...]:
        change, loop_record = record.recall(self)
        da = change if dx is None else change + F.linear(dx, self._own("weight_ih", suffix))
        return loop_tangents(self.equations, steps, loop_record, da, self._recurrent_weights(suffix)[0], dstates)

    def _recurrent_weights(self, suffix: str) -> tuple[Tensor, Tensor]:
        """W_hh and V_hh; where they are dropped, by one mask."""
        weight, second = self._own("weight_hh", suffix), self._own("response_weight_hh", suffix)
        rate = self._weight_drop_rate()
        if rate is None:
            return weight, second
        mask = drop_mask(weight.shape, rate, weight)
        return weight * mask, second * mask

    def _own(self, name: str, suffix: str = "") -> Tensor:
        parameter: Tensor = getattr(self, name + suffix)
        return parameter

    def _suffixes(self, *layers: int) -> list[str]:
        """How the names of parameters end, for each direction of these layers."""
        return [f"_l{layer}{end}" for layer in layers for end in ("", "_reverse")[: 1 + self.bidirectional]]

    def _dropout_rate(self) -> Tensor | float | None:
        """The rate of the dropout between layers; None where there is none."""
        if not self.training or self.num_layers == 1:
            return None
        return (self.dropout or None) if self._tuned_rate is None else self._tuned_rate()

    def _weight_drop_rate(self) -> Tensor | float | None:
        """The rate at which recurrent weights are dropped; None where they are not."""
        return self._tuned_weight_drop() if self.training and self._tuned_weight_drop is not None else None


class ResponseLSTM(ResponseRecurrent, nn.LSTM):
    """nn.LSTM with a response."""

    plain, equations = nn.LSTM, LSTM


class ResponseGRU(ResponseRecurrent, nn.GRU):
    """nn.GRU with a response."""

    plain, equations = nn.GRU, GRU


class ResponseRNN(ResponseRecurrent, nn.RNN):
    """nn.RNN with a response."""

    plain = nn.RNN

    @property
    def equations(self) -> Equations:  # type: ignore[override]
        """Those of a step, by its nonlinearity."""
        return TanhRNN if self.nonlinearity == "tanh" else ReluRNN
