"""RevGRU and RevLSTM one step at a time, with the manners of nn.GRUCell and nn.LSTMCell.

Shapes: B batch, I input, H hidden.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from revtune.reversible.arguments import check_flag, check_size, check_tensor
from revtune.reversible.cells.cell import Cell, State
from revtune.reversible.cells.gru import rev_gru
from revtune.reversible.cells.lstm import rev_lstm
from revtune.reversible.cells.plain_step import plain_step
from revtune.reversible.kernel.backend import check_backend, chosen
from revtune.reversible.kernel.step import stepped
from revtune.reversible.kernel.step_gradient import kept_step
from revtune.reversible.kernel.tape import LayerTensors
from revtune.reversible.layers.layer import LayerSettings, run_layer
from revtune.reversible.layers.masks import BatchSpec
from revtune.reversible.layers.rnn_arguments import Hx, check_input, check_parameter, check_states
from revtune.reversible.layers.single_step import first_states
from revtune.reversible.transforms import wants_gradient

_PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class RevCell(nn.Module):
    """What RevGRUCell and RevLSTMCell share; use those."""

    cell: Cell
    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None
    gates: int
    """Blocks of H rows of a weight."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        max_forget_bits: float | None,
        forgetting: bool,
        backend: str,
    ) -> None:
        super().__init__()
        self.input_size, self.hidden_size = check_size("input_size", input_size), check_size("hidden_size", hidden_size)
        if hidden_size % 2:
            raise ValueError(f"hidden_size must be even to split it in halves, got {hidden_size}")
        self.bias, self.forgetting = check_flag("bias", bias), check_flag("forgetting", forgetting)
        self.max_forget_bits = max_forget_bits
        self.cell = self.cell_of()
        check_backend(backend)
        self.backend = backend
        dtype = dtype or torch.get_default_dtype()
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
        for name, shape in self._shapes().items():
            made = nn.Parameter(torch.empty(shape, device=device, dtype=dtype)) if bias or len(shape) > 1 else None
            self.register_parameter(name, made)
        self.reset_parameters()

    def cell_of(self) -> Cell:
        """The cell that the settings describe."""
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        """What a pickle holds: as of RevGRU, plain values, unless somebody put a cell in the place of the own one."""
        state = dict(self.__dict__)
        if self.cell.native == self.cell_of().native:
            del state["cell"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take up what `__getstate__` gave."""
        super().__setstate__(state)
        self.cell = state.get("cell") or self.cell_of()

    def reset_parameters(self) -> None:
        """Uniform in +-1/sqrt(H), as nn.GRUCell and nn.LSTMCell."""
        bound = 1.0 / math.sqrt(self.hidden_size)
        for weight in self.parameters():
            nn.init.uniform_(weight, -bound, bound)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        rows = self.gates * self.hidden_size
        shapes = ((rows, self.input_size), (rows, self.hidden_size // 2), (rows,), (rows,))
        return dict(zip(_PARAMETERS, shapes, strict=True))

    def _advance(self, x: Tensor, hx: Hx | None) -> State:
        """The state after a step, each tensor (B, H), or (H,) without a batch."""
        if not (torch.is_grad_enabled() or torch.compiler.is_compiling()):
            after = self._at_once(x, hx)
            if after is not None:
                return after
        if check_tensor(f"{self._name}: input", x).dim() not in (1, 2):
            raise ValueError(f"{self._name}: input must be (B, I), or (I,) unbatched, got {x.dim()} dimensions")
        batched = x.dim() == 2
        x = self._checked_input(x if batched else x.unsqueeze(0))
        states = self._first_states(x, hx, batched=batched)
        after = self._checked_step(x, states)
        return after if batched else tuple(tensor.squeeze(0) for tensor in after)

    def _at_once(self, x: object, hx: Hx | None) -> State | None:
        """The same in one call of the kernel; None where arguments or settings are not made for that."""
        if type(x) is not Tensor:
            return None
        if x.dim() not in (1, 2) or x.shape[-1] != self.input_size:
            return None
        cell, shape = self.cell, (*x.shape[:-1], self.hidden_size)
        states = first_states(cell, x, hx, shape)
        weights = [self._parameters.get(name) for name in _PARAMETERS[: 4 if self.bias else 2]]
        results = states and stepped(cell, x, states, shape, weights, bias=self.bias, backend=self.backend)
        return tuple(results[1:]) if results else None

    def _checked_step(self, x: Tensor, states: State) -> State:
        """The state after a step, from inputs and a state that fit."""
        batch = BatchSpec(x.shape[0], x.dtype, x.device)
        parameters = [
            check_parameter(f"{self._name}: {name}", getattr(self, name), shape, batch)
            for name, shape in list(self._shapes().items())[: 4 if self.bias else 2]
        ]
        weights = dict(zip(("ih", "hh"), parameters, strict=False))  # the biases, if any, come after them
        engine = chosen(self.backend, self.cell, x, weights, {})
        with torch.autocast(x.device.type, enabled=False):
            trains = torch.is_grad_enabled() and any(map(wants_gradient, (x, *states, *parameters)))
            if trains and engine == "native" and not torch.compiler.is_compiling():
                after = kept_step(self.cell, x, states, parameters, backend=self.backend)
                if after is not None:
                    return after
            if self.bias:
                weights["bias"] = parameters[2] + parameters[3]
            if trains or not engine or not x.shape[0]:
                return plain_step(self.cell, x, states, weights, self._name)
            settings = LayerSettings(self._name, engine)
            return run_layer(self.cell, x.unsqueeze(0), LayerTensors(states, weights, {}), settings)[1]

    def _checked_input(self, x: Tensor) -> Tensor:
        """Inputs (B, I) that fit; there may be no row, as nn.GRUCell allows."""
        weight = check_tensor(f"{self._name}: weight_ih", self.weight_ih)
        if x.shape[0]:
            return check_input(self._name, x.unsqueeze(0), weight, self.input_size)[0]
        check_input(self._name, x.new_zeros(1, 1, x.shape[1]), weight, self.input_size)
        return x

    def _first_states(self, x: Tensor, hx: Hx | None, *, batched: bool) -> State:
        """The state before the step, (B, H) each: zeros, or `hx` checked."""
        count, shape = len(self.cell.states), (x.shape[0], self.hidden_size)
        if hx is None:
            return tuple(x.new_zeros(shape) for _ in range(count))
        return check_states(self._name, hx, count, shape, BatchSpec(x.shape[0], x.dtype, x.device), batched=batched)

    @property
    def _name(self) -> str:
        return type(self).__name__

    def extra_repr(self) -> str:
        shown = [f"{self.input_size}, {self.hidden_size}"] + ["bias=False"] * (not self.bias)
        shown.append(f"max_forget_bits={self.max_forget_bits!r}")
        defaults = {"forgetting": True, "bounded": True, "backend": "auto"}
        given = {key: getattr(self, key, default) for key, default in defaults.items()}
        shown += [f"{key}={value!r}" for key, value in given.items() if value != defaults[key]]
        return ", ".join(shown)


class RevGRUCell(RevCell):
    """One step of a RevGRU: nn.GRUCell's arguments, shapes and manners.

    The equations are `RevGRU`'s, and so are parameters, under nn.GRUCell's names: weight_ih (3H, I), weight_hh
    (3H, H/2), bias_ih, bias_hh (3H,).

    A cell does not rewind. In a loop of one's own autograd keeps each step, as it does for nn.GRUCell: on the native
    kernel its input and states, in plain torch its gates as well. `RevGRU` trains sequences that are known beforehand
    in less memory. On the native kernel a loop that starts from a float64 state returns, bit for bit, what `RevGRU`
    returns for the whole sequence from that state without gradients. In `RevGRU`'s training the low bits differ, as
    its information buffer steers them.

    Args:
        input_size, hidden_size, bias, device, dtype: as in nn.GRUCell; hidden_size even, dtype float32 or float64.
        max_forget_bits, forgetting, backend: as in `RevGRU`.

    Shape:
        `h = cell(x, h)` with x (B, I) and h (B, H), or (I,) and (H,); zeros by default. h comes back in the dtype in
        which it was given; one of float64 is an exact state, and `h.float()` is what a cell above it takes for x.

    Raises:
        ValueError: arguments, shapes, dtypes or devices do not fit.
        NonFiniteError, StateRangeError: a number is not finite, or a state reaches 2^20.

    Example:
        >>> cell, h = RevGRUCell(8, 16), torch.zeros(3, 16, dtype=torch.float64)
        >>> for x in torch.randn(5, 3, 8):
        ...     h = cell(x, h)
        >>> h.shape
        torch.Size([3, 16])
    """

    gates = 3

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        max_forget_bits: float | None = 3.0,
        forgetting: bool = True,
        backend: str = "auto",
    ) -> None:
        super().__init__(input_size, hidden_size, bias, device, dtype, max_forget_bits, forgetting, backend)

    def cell_of(self) -> Cell:
        """The cell that the settings describe."""
        return rev_gru(self.max_forget_bits, forgetting=self.forgetting)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """h after a step; arguments and results as in the class's description."""
        return self._advance(input, hx)[0]


class RevLSTMCell(RevCell):
    """One step of a RevLSTM: nn.LSTMCell's arguments, shapes and manners.

    The equations and parameters are `RevLSTM`'s: weight_ih (5H, I), weight_hh (5H, H/2), bias_ih, bias_hh (5H,). What
    `RevGRUCell` says of loops, exact states and memory holds here too.

    Args:
        bounded: as in `RevLSTM`.
        All others as in `RevGRUCell`.

    Shape:
        `h, c = cell(x, (h, c))`, shapes as in `RevGRUCell`.

    Raises:
        As `RevGRUCell`.

    Example:
        >>> h, c = RevLSTMCell(8, 16)(torch.randn(3, 8))
        >>> h.shape, c.shape
        (torch.Size([3, 16]), torch.Size([3, 16]))
    """

    gates = 5

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        max_forget_bits: float | None = 3.0,
        forgetting: bool = True,
        bounded: bool = True,
        backend: str = "auto",
    ) -> None:
        self.bounded = bounded  # before all else, as the cell is built from it
        super().__init__(input_size, hidden_size, bias, device, dtype, max_forget_bits, forgetting, backend)

    def cell_of(self) -> Cell:
        """The cell that the settings describe."""
        return rev_lstm(self.max_forget_bits, forgetting=self.forgetting, bounded=self.bounded)

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """h and c after a step; arguments and results as in the class's description."""
        h, c = self._advance(input, hx)
        return h, c
