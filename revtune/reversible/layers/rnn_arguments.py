"""What RevGRU and RevLSTM accept: options, inputs and first states, each refused with a sentence of its own.

Shapes: T time, B batch, I input, H hidden, L layers, D directions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from revtune.reversible.arguments import check_like, check_materialized, check_rate, check_tensor
from revtune.reversible.cells.cell import State
from revtune.reversible.kernel.backend import check_backend
from revtune.reversible.layers.masks import BatchSpec

Hx = Tensor | tuple[Tensor, ...]


class Options(NamedTuple):
    """What the reversible layers take beyond nn.GRU's arguments."""

    max_forget_bits: float | None = 3.0
    forgetting: bool = True
    output: str = "all"
    backend: str = "auto"
    input_dropout: float = 0.0
    hidden_dropout: float = 0.0
    output_dropout: float = 0.0
    weight_drop: float = 0.0
    bounded: bool = True

    def checked(self) -> Options:
        """These options, if each is in its range; the cell checks those on forgetting.

        Raises:
            ValueError: names the option and its value.
        """
        if self.output not in ("all", "last"):
            raise ValueError(f'output must be "all" or "last", got {self.output!r}')
        check_backend(self.backend)
        for name in ("input_dropout", "hidden_dropout", "output_dropout", "weight_drop"):
            check_rate(name, getattr(self, name))
        return self


def check_input(net: str, x: Tensor, weight: Tensor, input_size: int) -> Tensor:
    """A time-first input (T, B, I) that fits, in the weight's dtype again where autocast has lowered it.

    Args:
        net: what errors call the net.
        x: the input.
        weight: one of the net's, whose dtype and device are those of all.
        input_size: I.

    Raises:
        ValueError: names what is wrong, what was expected and what was given.
    """
    if weight.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{net}: parameters must be float32 or float64 to rewind exactly, got {weight.dtype}")
    if x.shape[-1] != input_size:
        raise ValueError(f"{net}: input must have input_size={input_size} features, got {x.shape[-1]}")
    if x.shape[0] == 0:
        raise ValueError(f"{net}: input must have at least one step, got (T, B, I) = {tuple(x.shape)}")
    if weight.device.type == "mps":
        raise ValueError(f"{net}: MPS devices have no float64, which exact states need; use the CPU or CUDA")
    if x.device != weight.device:
        raise ValueError(f"{net}: input is on {x.device}, parameters on {weight.device}")
    # A FakeTensor may pass here, as torch.compile traces with them; one that must hold numbers is refused by its tape
    if x.device.type == "meta":
        check_materialized(f"{net}: input", x)
    if x.dtype != weight.dtype:
        if not (torch.is_autocast_enabled(x.device.type) and x.is_floating_point()):
            raise ValueError(f"{net}: input must be {weight.dtype} like the parameters, got {x.dtype}")
        x = x.to(weight.dtype)
    return x


def check_parameter(what: str, given: object, shape: tuple[int, ...], batch: BatchSpec) -> Tensor:
    """A parameter as it is now, which need not be the one that was made, if it fits.

    Raises:
        ValueError: names it, what was expected and what was given.
    """
    parameter = check_tensor(what, given)
    if parameter.shape != shape:
        raise ValueError(f"{what} must be {shape}, got {tuple(parameter.shape)}")
    check_like(what, parameter, batch.dtype, batch.device, "the input")
    return parameter


def check_states(
    net: str, hx: Hx, groups: int, shape: tuple[int, ...], batch: BatchSpec, *, batched: bool, what: str = "hx",
    shared: bool = False,
) -> State:  # fmt: skip
    """States that fit. float64 ones stay as they are, exact; autocast may have lowered others.

    Args:
        net: what errors call the net.
        hx: one tensor, or a tuple of them.
        groups: how many states the cell has.
        shape: (L * D, B, H), or (B, H) of a cell.
        batch: the input's, in whose dtype the net computes.
        batched: whether `hx` has the dimension B.
        what: what messages call them.
        shared: whether they may have one row for all.

    Raises:
        ValueError: names what is wrong, what was expected and what was given.
    """
    given = hx if isinstance(hx, tuple | list) else (hx,)
    if len(given) != groups or not all(isinstance(state, Tensor) for state in given):
        expected = "(h_0, c_0)" if groups == 2 else "the tensor h_0"
        kinds = ", ".join(type(state).__name__ for state in given)
        raise ValueError(f"{net}: {what} must be {expected}, got {f'({kinds})' if given is hx else kinds}")
    for state in given:
        check_tensor(f"{net}: each of {what}", state)
    states = tuple(state if batched or not state.dim() else state.unsqueeze(-2) for state in given)
    if torch.is_autocast_enabled(batch.device.type):
        states = tuple(state if state.dtype == torch.float64 else state.to(batch.dtype) for state in states)
    for one, state in zip(given, states, strict=True):
        if state.shape != shape and not (shared and state.shape == (*shape[:-2], 1, shape[-1])):
            wanted = shape if batched else (*shape[:-2], shape[-1])
            alone = f", or one row for all, {(*shape[:-2], 1, shape[-1])}," if shared and batched else ","
            raise ValueError(f"{net}: each tensor of {what} must be {wanted}{alone} got {tuple(one.shape)}")
        if state.device != batch.device:
            raise ValueError(f"{net}: {what} is on {state.device}, input on {batch.device}")
        if state.dtype not in (batch.dtype, torch.float64):
            raise ValueError(f"{net}: {what} must be {batch.dtype}, or float64 for exact states, got {state.dtype}")
    return states
