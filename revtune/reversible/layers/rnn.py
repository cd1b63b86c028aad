"""What RevGRU and RevLSTM share: nn.GRU's manners around a stack of tapes.

Shapes: T time, B batch, I input, H hidden, L layers, D directions.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from revtune.reversible.arguments import (
    check_flag,
    check_like,
    check_numbers,
    check_rate,
    check_size,
    check_tensor,
    running,
)
from revtune.reversible.cells.cell import Cell, State
from revtune.reversible.kernel.backend import chosen
from revtune.reversible.kernel.tape import LayerTensors
from revtune.reversible.layers.layer import build_tape, run_layer
from revtune.reversible.layers.masks import drop_mask, new_seed
from revtune.reversible.layers.rewind import run
from revtune.reversible.layers.stack import Link, Locked, Noise, Stack

Hx = Tensor | tuple[Tensor, ...]


class Assembled(NamedTuple):
    """A stack that stands at its first state, and the tensors of each tape that gradients flow to."""

    stack: Stack
    inputs: list[LayerTensors]


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
        """These options, if each is in its range.

        Raises:
            ValueError: names the option and its value.
        """
        if self.output not in ("all", "last"):
            raise ValueError(f'output must be "all" or "last", got {self.output!r}')
        if self.backend not in ("auto", "native", "reference"):
            raise ValueError(f'backend must be "auto", "native" or "reference", got {self.backend!r}')
        for name in ("input_dropout", "hidden_dropout", "output_dropout", "weight_drop"):
            check_rate(name, getattr(self, name))
        return self


class RevRNN(nn.Module):
    """What RevGRU and RevLSTM share; use those."""

    cell: Cell
    weight_ih_l0: Tensor
    weight_hh_l0: Tensor

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        *,
        options: Options,
    ) -> None:
        super().__init__()
        for name, size in (("input_size", input_size), ("hidden_size", hidden_size), ("num_layers", num_layers)):
            check_size(name, size)
        for name, flag in (("bias", bias), ("batch_first", batch_first), ("bidirectional", bidirectional)):
            check_flag(name, flag)
        if hidden_size % 2:
            raise ValueError(f"hidden_size must be even to split it in halves, got {hidden_size}")
        self.dropout = check_rate("dropout", dropout)
        if dropout and num_layers == 1:
            warnings.warn(f"dropout={dropout} acts between layers and does nothing with num_layers=1", stacklevel=3)
        dtype = dtype or torch.get_default_dtype()
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
        self.cell = self.cell_of(options)
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.bidirectional = bias, batch_first, bidirectional
        self.options = options
        self.directions = 2 if bidirectional else 1
        for layer in range(num_layers):
            for suffix in self._suffixes(layer):
                for name, shape in self._shapes(layer).items():
                    setattr(self, name + suffix, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self.reset_parameters()

    @staticmethod
    def cell_of(options: Options) -> Cell:
        """The cell that the options describe."""
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        """What a pickle holds: plain values, so that `torch.load(weights_only=True)` needs no name but the layer's.

        The cell is built anew from the options. One that somebody put in its place is pickled as it is.
        """
        state = {**self.__dict__, "options": self.options._asdict()}
        if self.cell.native == self.cell_of(self.options).native:
            del state["cell"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take up what `__getstate__` gave."""
        options = Options(**state["options"])
        super().__setstate__({"cell": self.cell_of(options), **state, "options": options})

    def _shapes(self, layer: int) -> dict[str, tuple[int, ...]]:
        """The shapes of a layer's parameters, alike in both directions."""
        rows, half = self.cell.blocks * self.hidden_size // 2, self.hidden_size // 2
        width = self.input_size if layer == 0 else self.hidden_size * self.directions
        weights: dict[str, tuple[int, ...]] = {"weight_ih": (rows, width), "weight_hh": (rows, half)}
        return weights | {"bias_ih": (rows,), "bias_hh": (rows,)} if self.bias else weights

    def reset_parameters(self) -> None:
        """Uniform in +-1/sqrt(H), as nn.GRU and nn.LSTM."""
        bound = 1.0 / math.sqrt(self.hidden_size)
        for weight in self.parameters():
            nn.init.uniform_(weight, -bound, bound)

    def flatten_parameters(self) -> None:
        """There is nothing to flatten; here so that code written for nn.GRU runs."""

    @property
    def all_weights(self) -> list[list[nn.Parameter]]:
        """The parameters of each layer and direction, in nn.GRU's order."""
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")[: 4 if self.bias else 2]
        suffixes = (suffix for layer in range(self.num_layers) for suffix in self._suffixes(layer))
        return [[getattr(self, name + suffix) for name in names] for suffix in suffixes]

    def forward(self, input: Tensor | PackedSequence, hx: Hx | None = None) -> tuple[Any, Any]:
        """Run the layers; arguments and results as in the class's description."""
        if torch.compiler.is_compiling() and self.options.output == "all" and self._native(input):
            return self._run(input, hx)
        return self._uncompiled(input, hx)

    @torch.compiler.disable
    def _uncompiled(self, input: Tensor | PackedSequence, hx: Hx | None) -> tuple[Any, Any]:
        return self._run(input, hx)

    def _native(self, input: Tensor | PackedSequence) -> bool:
        """Whether this input goes through the kernel, whose one operator torch.compile can take in."""
        weights = {"ih": self.weight_ih_l0, "hh": self.weight_hh_l0}
        return isinstance(input, Tensor) and chosen(self.options.backend, self.cell, self.weight_ih_l0, weights, {})

    def _run(self, input: Tensor | PackedSequence, hx: Hx | None) -> tuple[Any, Any]:
        if isinstance(input, PackedSequence):
            return self._packed(input, hx)
        if check_tensor(f"{self._name}: input", input).dim() not in (2, 3):
            raise ValueError(
                f"{self._name}: input must be (T, B, I), or (T, I) unbatched, got {input.dim()} dimensions"
            )
        batched = input.dim() == 3
        x = input if batched else input.unsqueeze(1)
        if batched and self.batch_first:
            x = x.transpose(0, 1)
        x = self.check_input(x)
        states = self.first_states(x, hx, batched=batched)
        y, finals = self._layers(x, states, None)
        if not batched:
            last = self.options.output == "last"
            return y.squeeze(0 if last else 1), _form(tuple(final.squeeze(1) for final in finals))
        return (y.transpose(0, 1) if self.batch_first and self.options.output == "all" else y), _form(finals)

    def _packed(self, packed: PackedSequence, hx: Hx | None) -> tuple[Any, Any]:
        if packed.data.dim() != 2:
            given = tuple(packed.data.shape)
            raise ValueError(f"{self._name}: a PackedSequence must hold data (N, I), a row a step, got {given}")
        x, lengths = pad_packed_sequence(packed)
        x = self.check_input(x)
        y, finals = self._layers(x, self.first_states(x, hx, batched=True), lengths.to(x.device))
        if self.options.output == "last":
            return y, _form(finals)
        order = (
            packed.sorted_indices if packed.sorted_indices is not None else torch.arange(x.shape[1], device=x.device)
        )
        y = y.index_select(1, order)
        live = running(lengths.to(x.device)[order], 0, x.shape[0])
        data = y[live]
        return PackedSequence(data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices), _form(finals)

    def check_input(self, x: Tensor) -> Tensor:
        """A time-first input of the right shape, dtype and device, float32 again under autocast.

        Raises:
            ValueError: names what is wrong, what was expected and what was given.
        """
        weight = self.first_weight
        if weight.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"{self._name}: parameters must be float32 or float64 to rewind exactly, got {weight.dtype}"
            )
        if x.shape[-1] != self.input_size:
            raise ValueError(f"{self._name}: input must have input_size={self.input_size} features, got {x.shape[-1]}")
        if 0 in x.shape:
            raise ValueError(
                f"{self._name}: input must have at least one step and one row, got (T, B, I) = {tuple(x.shape)}"
            )
        if weight.device.type == "mps":
            raise ValueError(f"{self._name}: MPS devices have no float64, which exact states need; use the CPU or CUDA")
        if x.device != weight.device:
            raise ValueError(f"{self._name}: input is on {x.device}, parameters on {weight.device}")
        if x.device.type == "meta":
            check_numbers(f"{self._name}: input", x)
        if x.dtype != weight.dtype:
            if not (torch.is_autocast_enabled(x.device.type) and x.is_floating_point()):
                raise ValueError(f"{self._name}: input must be {weight.dtype} like the parameters, got {x.dtype}")
            x = x.to(weight.dtype)
        return x

    def first_states(self, x: Tensor, hx: Hx | None, *, batched: bool) -> State:
        """The first states as (L * D, B, H) tensors: zeros, or `hx` checked. float64 states stay exact."""
        groups = len(self.cell.states)
        wanted = (self.num_layers * self.directions, x.shape[1], self.hidden_size)
        if hx is None:
            return tuple(x.new_zeros(wanted) for _ in range(groups))
        given = hx if isinstance(hx, tuple | list) else (hx,)
        if len(given) != groups or not all(isinstance(state, Tensor) for state in given):
            raise ValueError(
                f"{self._name}: hx must be {'(h_0, c_0)' if groups == 2 else 'the tensor h_0'}, got {hx!r:.60}"
            )
        for state in given:
            check_tensor(f"{self._name}: each of hx", state)
        states = tuple(state if batched else state.unsqueeze(1) for state in given)
        if torch.is_autocast_enabled(x.device.type):
            states = tuple(state if state.dtype == torch.float64 else state.to(x.dtype) for state in states)
        for state in states:
            if state.shape != wanted:
                expected = wanted if batched else (wanted[0], wanted[2])
                got = tuple(state.shape) if batched else tuple(state.squeeze(1).shape)
                raise ValueError(f"{self._name}: each tensor of hx must be {expected}, got {got}")
            if state.device != x.device:
                raise ValueError(f"{self._name}: hx is on {state.device}, input on {x.device}")
            if state.dtype not in (x.dtype, torch.float64):
                raise ValueError(f"{self._name}: hx must be {x.dtype}, or float64 for exact states, got {state.dtype}")
        return states

    def assemble(
        self, x: Tensor, states: State, lengths: Tensor | None, *, steps: int | None = None, sliced: int = 0
    ) -> Assembled:
        """All layers of a unidirectional net as one stack, with masks drawn for this sequence.

        Args:
            x: anything with the batch size, dtype and device of the input, (..., B, F).
            states: first states, (L, B, H) each.
            lengths: steps of each row, or None.
            steps: how many steps the buffer is for; by default those of x.
            sliced: how many first units of the top layer's h are sliced, as in `Tape`.
        """
        links: list[Link] = []
        inputs: list[LayerTensors] = []
        for layer in range(self.num_layers):
            drop = self.options.input_dropout if layer == 0 else 0.0
            links += self._locked(drop, x, self.input_size)
            if layer and self.dropout and self.training:
                links.append(Noise(self.dropout, new_seed()))
            first = tuple(s[layer] for s in states)
            top = sliced if layer + 1 == self.num_layers else 0
            link, tensors = self._tape(layer, "", x, first, lengths, steps or x.shape[0], top)
            links.append(link)
            inputs.append(tensors)
        links += self._locked(self.options.output_dropout, x, self.hidden_size)
        return Assembled(Stack(links), inputs)

    def _layers(self, x: Tensor, states: State, lengths: Tensor | None) -> tuple[Tensor, State]:
        every = self.options.output == "all"
        if self.bidirectional:
            return self._both_ways(x, states, lengths)
        if every and self._native(x):
            return self._one_by_one(x, states, lengths)
        stack, inputs = self.assemble(x, states, lengths)
        y, finals = run(stack, x, inputs, every=every)
        stacked = tuple(torch.stack(group) for group in zip(*finals, strict=True))
        if y is None:
            y = stacked[0][-1].to(x.dtype)
            top = stack.links[-1]
            y = top.apply(y, 0) if isinstance(top, Locked) else y
        return y, stacked

    def _one_by_one(self, x: Tensor, states: State, lengths: Tensor | None) -> tuple[Tensor, State]:
        """Layers after one another, each with all its outputs: the kernel needs nothing else to go back."""
        finals: list[State] = []
        for layer in range(self.num_layers):
            x = self._dropped(x, layer)
            x, final = self._layer(layer, "", x, tuple(s[layer] for s in states), lengths)
            finals.append(final)
        return self._masked(x, self.options.output_dropout), tuple(
            torch.stack(group) for group in zip(*finals, strict=True)
        )

    def _both_ways(self, x: Tensor, states: State, lengths: Tensor | None) -> tuple[Tensor, State]:
        finals: list[State] = []
        every = self.options.output == "all"
        for layer in range(self.num_layers):
            x = self._dropped(x, layer)
            outputs = []
            for way, suffix in enumerate(self._suffixes(layer)):
                first = tuple(s[2 * layer + way] for s in states)
                keep = every or layer + 1 < self.num_layers
                y, final = self._direction(layer, suffix, _reversed(x, lengths) if way else x, first, lengths, keep)
                finals.append(final)
                outputs.append(_reversed(y, lengths) if way and keep else y)
            x = torch.cat(outputs, -1)
        x = self._masked(x, self.options.output_dropout)
        return x, tuple(torch.stack(group) for group in zip(*finals, strict=True))

    def _direction(
        self, layer: int, suffix: str, x: Tensor, state: State, lengths: Tensor | None, every: bool
    ) -> tuple[Tensor, State]:
        """One layer in one direction: all outputs or the last h, and the final state."""
        if every:
            return self._layer(layer, suffix, x, state, lengths)
        link, tensors = self._tape(layer, suffix, x, state, lengths, x.shape[0])
        _, (final,) = run(Stack([link]), x, [tensors], every=False)
        return final[0].to(x.dtype), final

    def _layer(self, layer: int, suffix: str, x: Tensor, state: State, lengths: Tensor | None) -> tuple[Tensor, State]:
        inputs, masks, name = self._parts(layer, suffix, x, state)
        return run_layer(self.cell, x, inputs, masks=masks, lengths=lengths, name=name, backend=self.options.backend)

    def _tape(
        self, layer: int, suffix: str, x: Tensor, state: State, lengths: Tensor | None, steps: int, sliced: int = 0
    ) -> tuple[Link, LayerTensors]:
        inputs, masks, name = self._parts(layer, suffix, x, state)
        tape = build_tape(
            self.cell, inputs, steps, x.dtype, masks=masks, lengths=lengths, name=name, backend=self.options.backend,
            sliced=sliced,
        )  # fmt: skip
        return tape, inputs

    def _parts(self, layer: int, suffix: str, x: Tensor, state: State) -> tuple[LayerTensors, dict[str, Tensor], str]:
        """What one layer in one direction runs with: its tensors, the masks drawn for it, and its name."""
        suffix = suffix or self._suffixes(layer)[0]
        found = [self._parameter(name + suffix, shape, x) for name, shape in self._shapes(layer).items()]
        weights = dict(zip(("ih", "hh"), found, strict=False))
        if self.bias:
            weights["bias"] = found[2] + found[3]
        if self.training and self.options.weight_drop:
            weights["hh"] = F.dropout(weights["hh"], self.options.weight_drop)
        masks = {}
        if self.training and self.options.hidden_dropout:
            shape = (x.shape[-2], self.hidden_size // 2)
            masks = {part: drop_mask(shape, self.options.hidden_dropout, x) for part in self.cell.states[0]}
        name = f"{self._name} layer {layer}" + (", reverse" if suffix.endswith("_reverse") else "")
        return LayerTensors(state, weights, {}), masks, name

    @property
    def first_weight(self) -> Tensor:
        """`weight_ih_l0`, whose dtype and device are the net's."""
        return check_tensor(f"{self._name}: weight_ih_l0", self.weight_ih_l0)

    def _parameter(self, name: str, shape: tuple[int, ...], x: Tensor) -> Tensor:
        """A parameter as it is now, perhaps another than was made."""
        what = f"{self._name}: {name}"
        parameter = check_tensor(what, getattr(self, name))
        if parameter.shape != shape:
            raise ValueError(f"{what} must be {shape}, got {tuple(parameter.shape)}")
        check_like(what, parameter, x.dtype, x.device, "the input")
        return parameter

    def _dropped(self, x: Tensor, layer: int) -> Tensor:
        """A layer's input (T, B, F) with what is dropped in front of it."""
        if layer == 0:
            return self._masked(x, self.options.input_dropout)
        return F.dropout(x, self.dropout) if self.dropout and self.training else x

    def _masked(self, x: Tensor, p: float) -> Tensor:
        """Outputs (T, B, F), or the last (B, F), under a locked mask."""
        return x * drop_mask(tuple(x.shape[-2:]), p, x) if p and self.training else x

    def _locked(self, p: float, x: Tensor, width: int) -> list[Link]:
        return [Locked(drop_mask((x.shape[-2], width), p, x))] if p and self.training else []

    def _suffixes(self, layer: int) -> list[str]:
        return [f"_l{layer}", f"_l{layer}_reverse"][: self.directions]

    @property
    def _name(self) -> str:
        return type(self).__name__

    def extra_repr(self) -> str:
        shown = [f"{self.input_size}, {self.hidden_size}"]
        defaults = {"num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0, "bidirectional": False}
        shown += [f"{key}={getattr(self, key)}" for key, default in defaults.items() if getattr(self, key) != default]
        shown += [
            f"{k}={v!r}"
            for k, v in self.options._asdict().items()
            if v != Options._field_defaults[k] or k == "max_forget_bits"
        ]
        return ", ".join(shown)


def _form(states: State) -> Hx:
    """nn.GRU's lone tensor or nn.LSTM's pair."""
    return states[0] if len(states) == 1 else states


def _reversed(x: Tensor, lengths: Tensor | None) -> Tensor:
    """(T, B, F) with each row's own steps in the opposite order; padding stays where it is."""
    if lengths is None:
        return x.flip(0)
    steps = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
    order = torch.where(steps < lengths, lengths - 1 - steps, steps)
    return x.gather(0, order.unsqueeze(-1).expand_as(x))
