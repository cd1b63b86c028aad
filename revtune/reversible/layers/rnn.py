"""What RevGRU and RevLSTM share: nn.GRU's manners around a stack of tapes.

Shapes: T time, B batch, I input, H hidden, L layers, D directions.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from revtune.reversible.arguments import check_flag, check_rate, check_size, check_tensor, running
from revtune.reversible.cells.cell import Cell, Response, State
from revtune.reversible.kernel.backend import chosen
from revtune.reversible.kernel.engine import Engine
from revtune.reversible.kernel.tape import LayerTensors
from revtune.reversible.kernel.traced import is_traced
from revtune.reversible.kernel.untraced import untraced
from revtune.reversible.kernel.weight_mask import WeightMask
from revtune.reversible.layers.both_ways import joined, layers_both_ways
from revtune.reversible.layers.flat_weights import FlatWeights
from revtune.reversible.layers.layer import LayerSettings, build_tape, run_layer
from revtune.reversible.layers.masks import BatchSpec, DrawMask, drop_mask, dropped, new_seed
from revtune.reversible.layers.resets import NO_RESETS, GivenResets, Resets, of_layer
from revtune.reversible.layers.rewind import run_stack
from revtune.reversible.layers.rnn_arguments import Hx, Options, check_input, check_parameter, check_states
from revtune.reversible.layers.single_step import single_step
from revtune.reversible.layers.stack import Link, LockedMask, Stack, StepDropout
from revtune.reversible.layers.tracing import called_as_leaf, refuse_script, run_as_operator
from revtune.reversible.own_pages import in_own_pages, zeros
from revtune.reversible.transforms import active


class Assembled(NamedTuple):
    """A stack that stands at its first state, and the tensors of each tape that gradients flow to."""

    stack: Stack
    inputs: list[LayerTensors]


class RevRNN(FlatWeights):
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
        nn.Module.__init__(self)  # torch's recurrent base would make weights of other shapes
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
        nn.Module.__setstate__(self, {"cell": self.cell_of(options), **state, "options": options})

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

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Hx | None = None,
        *,
        resets: Tensor | None = None,
        reset_state: Hx | None = None,
        offsets: Tensor | None = None,
    ) -> tuple[Any, Any]:
        """Run the layers; arguments and results as in the class's description."""
        given = GivenResets(resets, reset_state, offsets)
        if isinstance(input, Proxy):
            return called_as_leaf(self, input, hx=hx, **given._asdict())  # type: ignore[unreachable]
        if not given.nothing:
            return self._uncompiled(input, hx, given)
        if torch.compiler.is_compiling():
            if isinstance(input, Tensor):
                return self._run(input, hx, engine=self.engine_for(self.first_weight))
        elif not torch.is_grad_enabled() and (step := single_step(self, input, hx)):
            return step
        return self._uncompiled(input, hx)

    def __prepare_scriptable__(self) -> None:
        """Called by torch.jit.script, of this layer and of modules around it."""
        refuse_script(self)

    @untraced
    def _uncompiled(
        self, input: Tensor | PackedSequence, hx: Hx | None, given: GivenResets = NO_RESETS
    ) -> tuple[Any, Any]:
        return self._run(input, hx, given)

    def engine_for(self, like: Tensor) -> Engine:
        """Which kernel, if any, runs this net, all its layers and directions, on inputs like this tensor.

        Raises:
            BackendError, ValueError: its options ask for the kernel, which cannot be had or cannot run it.
        """
        return chosen(self.options.backend, self.cell, like, dict.fromkeys(("ih", "hh"), like), {})

    def _run(
        self,
        input: Tensor | PackedSequence,
        hx: Hx | None,
        given: GivenResets = NO_RESETS,
        *,
        engine: Engine | None = None,
    ) -> tuple[Any, Any]:
        """Run the layers, on the backend that is chosen already or else here, once the input is known to fit."""
        if isinstance(input, PackedSequence):
            return self._packed(input, hx, given)
        if check_tensor(f"{self._name}: input", input).dim() not in (2, 3):
            raise ValueError(
                f"{self._name}: input must be (T, B, I), or (T, I) unbatched, got {input.dim()} dimensions"
            )
        batched = input.dim() == 3
        x = input if batched else input.unsqueeze(1)
        if batched and self.batch_first:
            x = x.transpose(0, 1)
        x = self.fitting(x)
        states = self.first_states(BatchSpec.of(x), hx, batched=batched)
        resets = self.resets(x, given, None, carried=hx is not None, batched=batched)
        y, finals = self._layers(x, states, None, self.engine_for(x) if engine is None else engine, resets)
        if not batched:
            last = self.options.output == "last"
            return y.squeeze(0 if last else 1), _form(tuple(final.squeeze(1) for final in finals))
        return (y.transpose(0, 1) if self.batch_first and self.options.output == "all" else y), _form(finals)

    def _packed(self, packed: PackedSequence, hx: Hx | None, given: GivenResets) -> tuple[Any, Any]:
        if packed.data.dim() != 2:
            shape = tuple(packed.data.shape)
            raise ValueError(f"{self._name}: a PackedSequence must hold data (N, I), a row a step, got {shape}")
        x, lengths = pad_packed_sequence(packed)
        x, lengths = self.fitting(x), lengths.to(x.device)
        states = self.first_states(BatchSpec.of(x), hx, batched=True)
        resets = self.resets(x, given, lengths, carried=hx is not None)
        y, finals = self._layers(x, states, lengths, self.engine_for(x), resets)
        if self.options.output == "last":
            return y, _form(finals)
        order = (
            packed.sorted_indices if packed.sorted_indices is not None else torch.arange(x.shape[1], device=x.device)
        )
        live = running(lengths[order], 0, x.shape[0])
        data = y.index_select(1, order)[live]
        return PackedSequence(data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices), _form(finals)

    def fitting(self, x: Tensor) -> Tensor:
        """A time-first input that fits, in the parameters' dtype.

        Raises:
            ValueError: names what is wrong, what was expected and what was given.
        """
        return check_input(self._name, x, self.first_weight, self.input_size)

    def first_states(self, batch: BatchSpec, hx: Hx | None, *, batched: bool) -> State:
        """The first states, (L * D, B, H) each: zeros, or `hx` checked."""
        shape = (self.num_layers * self.directions, batch.rows, self.hidden_size)
        if hx is None:
            like = torch.empty(0, dtype=batch.dtype, device=batch.device)
            return tuple(like.new_zeros(shape) if is_traced(like) else zeros(like, shape) for _ in self.cell.states)
        return check_states(self._name, hx, len(self.cell.states), shape, batch, batched=batched)

    def resets(
        self, x: Tensor, given: GivenResets, lengths: Tensor | None, *, carried: bool, batched: bool = True,
        what: str = "",
    ) -> Resets | None:  # fmt: skip
        """Where rows of a time-first batch begin anew, and from what; None for nowhere.

        Args:
            x: any tensor (T, B, ...) on the input's device.
            given: what the user says.
            lengths: steps of each row, or None.
            carried: whether a first state is given.
            batched: whether what is given has the dimension B.
            what: whose messages are; by default this layer's.

        Raises:
            ValueError: names what does not fit.
        """
        if given.nothing:
            return None
        weight = self.first_weight
        batch = BatchSpec(x.shape[1], weight.dtype, weight.device)
        shape = (self.num_layers * self.directions, x.shape[1], self.hidden_size)
        return given.of_net(
            what or self._name, x, lengths, batch, len(self.cell.states), shape, carried=carried, batched=batched,
            batch_first=batched and self.batch_first,
        )  # fmt: skip

    def assemble(
        self,
        steps: int,
        batch: BatchSpec,
        states: State,
        lengths: Tensor | None,
        *,
        engine: Engine,
        sliced: int = 0,
        resets: Resets | None = None,
    ) -> Assembled:
        """All layers of a unidirectional net as one stack, with masks drawn for this sequence.

        Args:
            steps: how many steps the buffer is for, T.
            batch: rows, dtype and device.
            states: first states, (L, B, H) each.
            lengths: steps of each row, or None.
            engine: the kernel that runs it, if any, as `engine_for` tells.
            sliced: how many first units of the top layer's h are sliced, as in `Tape`.
            resets: where rows begin anew, and from what.
        """
        links: list[Link] = []
        inputs: list[LayerTensors] = []
        links += self._locked("input_dropout", batch, self.input_size)
        for layer in range(self.num_layers):
            if layer and (draw := self.draw_between()):
                links.append(StepDropout(draw, new_seed()))
            first = tuple(state[layer] for state in states)
            anew = of_layer(resets, layer)
            tensors, settings = self._layer(layer, "", batch, first, lengths, engine, anew, tape=True)
            settings = settings._replace(sliced=sliced if layer + 1 == self.num_layers else 0)
            links.append(build_tape(self.cell, tensors, settings, steps, batch.dtype))
            inputs.append(tensors)
        links += self._locked("output_dropout", batch, self.hidden_size)
        return Assembled(Stack(links), inputs)

    def _layers(
        self, x: Tensor, states: State, lengths: Tensor | None, engine: Engine, resets: Resets | None = None
    ) -> tuple[Tensor, State]:
        every = self.options.output == "all"
        if not is_traced(x) and x.shape[1] == 0:
            return self._no_rows(x, states)
        if self.bidirectional:
            return self._both_ways(x, states, lengths, engine, resets)
        if every and engine:
            return self._one_by_one(x, states, lengths, engine, resets)
        if is_traced(x):
            return self._as_operator(x, states, lengths, engine)
        stack, inputs = self.assemble(x.shape[0], BatchSpec.of(x), states, lengths, engine=engine, resets=resets)
        y, finals = run_stack(stack, x, inputs, every=every)
        stacked = _stacked(finals)
        if y is None:
            y = stacked[0][-1].to(x.dtype, copy=True)  # h_n is the caller's too, to write to
            top = stack.links[-1]
            y = top.apply(y, 0) if isinstance(top, LockedMask) else y
        return y, stacked

    def _no_rows(self, x: Tensor, states: State) -> tuple[Tensor, State]:
        """What a batch without rows gives; gradients of parameters are zeros, as nn.GRU's are."""
        nothing = 0.0 * torch.stack([one.sum() for one in (x, *states, *self.parameters())]).sum()
        width = self.directions * self.hidden_size
        y = x.new_empty((*x.shape[:2], width) if self.options.output == "all" else (0, width))
        return y + nothing, tuple(state + nothing.to(state.dtype) for state in states)

    def _as_operator(self, x: Tensor, states: State, lengths: Tensor | None, engine: Engine) -> tuple[Tensor, State]:
        """All layers of a unidirectional net as one node of a graph."""
        x, spec = self._dropped(x, 0), BatchSpec.of(x)
        layers = [
            self._layer(layer, "", spec, tuple(state[layer] for state in states), lengths, engine)
            for layer in range(self.num_layers)
        ]
        y, finals = self._operator(layers, x, self.options.output == "all")
        y = finals[0][-1].to(x.dtype, copy=True) if y is None else y
        return self._masked(y, "output_dropout"), finals

    def _operator(
        self, layers: list[tuple[LayerTensors, LayerSettings]], x: Tensor, every: bool
    ) -> tuple[Tensor | None, State]:
        dropout = self.dropout if self.training else 0.0
        return run_as_operator(self.cell, layers, x, dropout=dropout, backend=self.options.backend, every=every)

    def _one_by_one(
        self, x: Tensor, states: State, lengths: Tensor | None, engine: Engine, resets: Resets | None
    ) -> tuple[Tensor, State]:
        """Layers after one another, each with all its outputs: the kernel needs nothing else to go back."""
        finals: list[State] = []
        for layer in range(self.num_layers):
            x = self._dropped(x, layer)
            first = tuple(state[layer] for state in states)
            anew = of_layer(resets, layer)
            x, final = run_layer(self.cell, x, *self._layer(layer, "", BatchSpec.of(x), first, lengths, engine, anew))
            finals.append(final)
        return self._masked(x, "output_dropout"), _stacked(finals)

    def _both_ways(
        self, x: Tensor, states: State, lengths: Tensor | None, engine: Engine, resets: Resets | None
    ) -> tuple[Tensor, State]:
        outputs, finals = layers_both_ways(self, x, states, lengths, engine, resets, self.num_layers)
        y = joined(outputs, lengths) if self.options.output == "all" else torch.cat(outputs, -1)
        return self._masked(y, "output_dropout"), _stacked(finals)

    def _layer(
        self, layer: int, suffix: str, batch: BatchSpec, state: State, lengths: Tensor | None, engine: Engine,
        resets: Resets | None = None, *, tape: bool = False,
    ) -> tuple[LayerTensors, LayerSettings]:  # fmt: skip
        """What one layer in one direction runs with: its tensors, and its settings with the masks drawn for it.

        For a `tape` of the native kernel, recurrent weights that are dropped stand as they are beside their mask.
        """
        suffix, kept = suffix or self._suffixes(layer)[0], None
        weights, responses = self._products(layer, suffix, batch)
        if tape and engine == "native" and not active():
            kept = self._dropped_later(weights, responses)
        else:
            self._drop_weights(weights, responses)
        shape = (batch.rows, self.hidden_size // 2)
        drawn = {part: self.mask("hidden_dropout", shape, batch) for part in self.cell.states[0]}
        masks = {part: mask for part, mask in drawn.items() if mask is not None}
        name = f"{self._name} layer {layer}" + (", reverse" if suffix.endswith("_reverse") else "")
        at, anew = (None, ()) if resets is None else (resets.at, resets.state)
        settings = LayerSettings(name, engine, masks, lengths, resets=at, weight_mask=kept)
        return LayerTensors(state, weights, responses, anew), settings

    def _products(self, layer: int, suffix: str, batch: BatchSpec) -> tuple[dict[str, Tensor], dict[str, Response]]:
        """A layer's weights by name, and their responses, of which there are none."""
        return self._weights(layer, suffix, batch), {}

    def _drop_weights(self, weights: dict[str, Tensor], responses: dict[str, Response]) -> None:
        """Drop recurrent weights, if they are to be."""
        if self.training and self.options.weight_drop:
            weights["hh"] = F.dropout(weights["hh"], self.options.weight_drop)

    def _weight_mask(self, weight: Tensor) -> Tensor | None:
        """The mask of a recurrent weight (G, N), as `_drop_weights` draws it; None where nothing is dropped."""
        if not (self.training and self.options.weight_drop):
            return None
        keep, room = 1.0 - self.options.weight_drop, in_own_pages(weight, tuple(weight.shape))
        return room.bernoulli_(keep).div_(keep) if keep else room.zero_()

    def _dropped_later(self, weights: dict[str, Tensor], responses: dict[str, Response]) -> WeightMask | None:
        """The mask under which a tape reads recurrent weights, which stay as they are; None for no mask."""
        if (factors := self._weight_mask(weights["hh"])) is None:
            return None
        mask = WeightMask.of(factors)
        weights["hh"] = mask.later(weights["hh"])
        if "hh" in responses:
            extra, scale = responses["hh"]
            responses["hh"] = mask.later(extra), scale
        return mask

    def _weights(self, layer: int, suffix: str, batch: BatchSpec) -> dict[str, Tensor]:
        """A layer's weights by name, `ih`, `hh` and `bias`, once they are known to fit."""
        parameters = [
            check_parameter(f"{self._name}: {name + suffix}", getattr(self, name + suffix), shape, batch)
            for name, shape in self._shapes(layer).items()
        ]
        weights = dict(zip(("ih", "hh"), parameters, strict=False))  # the biases, if any, come after them
        return {**weights, "bias": parameters[2] + parameters[3]} if self.bias else weights

    @property
    def answers(self) -> bool:
        """Whether it computes anything else now than its weights say, as a layer that responds may."""
        return False

    def refuse_plain_training(self, what: str) -> None:
        """Refuse gradients that nothing asks for, as a layer that responds may; a plain one may always be trained.

        Args:
            what: the function that would compute them, for messages.
        """

    def refuse_linear(self, what: str) -> None:
        """Refuse a pass whose prediction is to be linear in responses; a plain layer has none.

        Args:
            what: the function that would not follow them, for messages.
        """

    def encoding(self, what: str, inputs: Tensor, run: Callable[[], tuple[Tensor, Hx]]) -> tuple[Tensor, Hx]:
        """What `run` gives, annotations and final states of inputs; a layer that responds says whose they are.

        Args:
            what: the function that encodes, for messages.
            inputs: as they were given to it.
            run: encodes them.
        """
        return run()

    @property
    def first_weight(self) -> Tensor:
        """`weight_ih_l0`, whose dtype and device are the net's; a parametrization computes it anew at each look."""
        return check_tensor(f"{self._name}: weight_ih_l0", self.weight_ih_l0)

    def mask(self, name: str, shape: tuple[int, ...], like: Tensor | BatchSpec) -> Tensor | None:
        """The mask of a locked dropout, (B, F), drawn for a sequence; None where it drops nothing."""
        p = getattr(self.options, name)
        return drop_mask(shape, p, like, rows=0) if p and self.training else None

    def draw_between(self) -> DrawMask | None:
        """What draws the masks of the dropout between layers, chunk by chunk; None where it drops nothing."""
        return partial(drop_mask, p=self.dropout, rows=1) if self.dropout and self.training else None

    def drop_between(self, x: Tensor) -> Tensor:
        """A layer's outputs (T, B, H) as the next layer reads them."""
        return dropped(x, self.dropout) if self.dropout and self.training else x

    def _dropped(self, x: Tensor, layer: int) -> Tensor:
        """A layer's input (T, B, F) under the dropout in front of it."""
        return self.drop_between(x) if layer else self._masked(x, "input_dropout")

    def _masked(self, x: Tensor, name: str) -> Tensor:
        """Outputs (T, B, F), or the last (B, F), under a locked mask."""
        mask = self.mask(name, tuple(x.shape[-2:]), x)
        return x if mask is None else x * mask

    def _locked(self, name: str, batch: BatchSpec, width: int) -> list[Link]:
        mask = self.mask(name, (batch.rows, width), batch)
        return [] if mask is None else [LockedMask(mask)]

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


def _stacked(finals: list[State]) -> State:
    """Final states of all layers and directions, (L * D, B, H) each."""
    return tuple(torch.stack(group) for group in zip(*finals, strict=True))
