"""RevGRU and RevLSTM whose weights respond to hyperparameters, and whose dropouts act at each row's own rate.

Each direction of each layer has a response in both of its products and in its bias (MacKay et al. 2019, section 3.1)::

    W_ih x + b + (Q_ih d) * (V_ih x) + Q_b d          W_hh h + (Q_hh d) * (V_hh h)

with V_ih as `response_weight_ih_l0`, Q_ih as `response_scale_ih_l0`, Q_b as `response_shift_l0`, and so on. Masks,
scales and shifts stay the same from step to step, so that rewinding is exact at perturbed values too.

Shapes: T time, B batch, I input, H hidden, G rows of a weight (3 H or 5 H), n hyperparameters.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from revtune.joint.encoding import encoded
from revtune.joint.linear_layer import linear_layer, shifted
from revtune.reversible.cells.cell import Response, State
from revtune.reversible.kernel.engine import Engine
from revtune.reversible.kernel.tape import LayerTensors
from revtune.reversible.layers.both_ways import reversed_rows
from revtune.reversible.layers.layer import LayerSettings
from revtune.reversible.layers.masks import BatchSpec, DrawMask
from revtune.reversible.layers.modules import RevGRU, RevLSTM
from revtune.reversible.layers.resets import NO_RESETS, GivenResets, Resets, both_ways, of_layer
from revtune.reversible.layers.rnn import RevRNN
from revtune.reversible.layers.rnn_arguments import Hx, Options
from revtune.reversible.own_pages import in_own_pages
from revtune.reversible.streams.leaf_weights import linear_in_order
from revtune.sequences import setting
from revtune.tuning.hypers.hyperparameters import Hyperparameters
from revtune.tuning.hypers.ranges import Range
from revtune.tuning.noise import BATCH_RATE, RATE, drop_mask
from revtune.tuning.responses.linearized import ResponseRecord
from revtune.tuning.responses.recurrent_rows import refuse_unbatched, run_in_pass
from revtune.tuning.responses.responding import ADVICE, Responding
from revtune.tuning.responses.rows import Laid

_laid: ContextVar[Laid | None] = ContextVar("revtune_laid", default=None)
"""How examples lie among the rows of the layer that runs; None where rows are the batch, as in streams."""


class ResponseRev(Responding, RevRNN):
    """What RevGRU and RevLSTM with a response share.

    Attributes:
        tuned: what gives the rates that are tuned, by argument: numbers, 0-d or (B,).
        batch_dim: which dimension of other layers' inputs is examples; here it is by `batch_first`.
    """

    RATES: dict[str, Range] = {
        "input_dropout": RATE, "hidden_dropout": RATE, "output_dropout": RATE, "dropout": RATE,
        "weight_drop": BATCH_RATE,
    }  # fmt: skip
    """The arguments that may be tuned, and what their rates may be."""

    tuned: dict[str, Callable[[], Tensor | float]]
    _name: str = ""  # a name of its own in the network, in the place of RevRNN's property

    @classmethod
    def refuses(cls, module: nn.Module) -> str | None:
        """Why a layer cannot respond; None if it can."""
        assert isinstance(module, RevRNN)
        missing = [name for name in module._flat_weights_names if name not in module._parameters]
        return f"its {missing[0]} is no parameter of its own" if missing else None

    @classmethod
    def told_batch_dim(cls, module: nn.Module) -> int:
        """Which dimension of its network's inputs is examples: streams have the layout of their net."""
        assert isinstance(module, RevRNN)
        return 0 if module.batch_first else 1

    @classmethod
    def rates(cls, module: nn.Module, *, named: bool) -> dict[str, float]:
        """The rates of a plain layer that can be tuned, as they are; all of them, whether `named` or not."""
        assert isinstance(module, RevRNN)
        rates: dict[str, float] = {"dropout": module.dropout} if module.num_layers > 1 else {}
        return rates | {name: getattr(module.options, name) for name in cls.RATES if name != "dropout"}

    @classmethod
    def put_rate(cls, module: nn.Module, rate: str, value: float) -> None:
        """Set a rate of a plain layer."""
        assert isinstance(module, RevRNN)
        if rate == "dropout":
            module.dropout = value
        else:
            module.options = Options(**module.options._asdict() | {rate: value})

    def rates_tuned(self) -> dict[str, str]:
        """The hyperparameters that rates are read from, by rate."""
        return {rate: read.args[0] for rate, read in self.tuned.items() if isinstance(read, partial)}

    def adopt(self, hypers: Hyperparameters, name: str, batch_dim: int) -> None:
        """Take up the parameters of the response, for each direction of each layer."""
        self._hypers, self._name, self.batch_dim = (hypers,), name, batch_dim  # a tuple, as in `Responding.adopt`
        self.tuned = {}
        for suffix in self._all_suffixes():
            for side in ("ih", "hh"):
                weight: Tensor = getattr(self, f"weight_{side}{suffix}")
                self._add(f"response_weight_{side}{suffix}", self.initial_response_weight(weight))
                self._add(f"response_scale_{side}{suffix}", weight.new_zeros(len(weight), len(hypers.names)))
            shift = weight.new_zeros(len(weight), len(hypers.names)) if self.bias else None
            self._add(f"response_shift{suffix}", shift)

    def tune(self, rate: str, hyper: str) -> None:
        """Have an argument's rate read from a hyperparameter."""
        self.tuned[rate] = partial(self.hypers.__getitem__, hyper)

    def become_plain(self) -> None:
        """Become the plain layer again, with its dropouts at the rates that they have now."""
        for name, read in self.tuned.items():
            self.put_rate(self, name, float(read()))
        del self.tuned
        self.__dict__.pop("_told", None)
        super().become_plain()

    def __getstate__(self) -> dict[str, Any]:
        """What a pickle holds: rates by the names of their hyperparameters."""
        state = super().__getstate__()
        state.pop("_told", None)  # a copy has told nobody yet
        return {**state, "tuned": self.rates_tuned()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take up what `__getstate__` gave."""
        (hypers,) = state["_hypers"]
        tuned = {name: partial(hypers.__getitem__, hyper) for name, hyper in state["tuned"].items()}
        super().__setstate__({**state, "tuned": tuned})

    forward = RevRNN.forward  # type: ignore[assignment]  # streams know by it that nobody has changed what a net does

    @property
    def answers(self) -> bool:
        """Whether it computes anything else now than its weights say."""
        return bool(
            self.hypers.current is not None
            or self.hypers.current_departure() is not None
            or (self.training and self.tuned)
        )

    def refuse_plain_training(self, what: str) -> None:
        """Refuse gradients of a loss outside of a tuner's passes, where no response learns.

        Raises:
            ValueError: says what to do.
        """
        if self.hypers.current is None and any(parameter.requires_grad for parameter in self.parameters()):
            raise ValueError(
                f"{what}: {self._name} tunes itself, and responses learn in a tuner's passes alone, so that it must be "
                "trained by Tuner(stream=), or as rt.frozen(net) by a loop of your own, and evaluated under "
                "torch.no_grad(); got a call with gradients outside of a pass"
            )

    def _tell_plain_training(self) -> None:
        """Warn once that a loop of one's own trains no response, if it looks as if one ran."""
        if not self.training or not torch.is_grad_enabled() or "_told" in self.__dict__:
            return
        if any(parameter.requires_grad for parameter in self.parameters()):
            self.__dict__["_told"] = True
            warnings.warn(
                f"{self._name} tunes itself and was called with gradients outside of a tuner's passes, where neither "
                "responses nor hyperparameters learn: train it by Tuner, or rt.frozen(net) by a loop of your own",
                stacklevel=2,
            )

    def refuse_linear(self, what: str) -> None:
        """Refuse Delta-STN's pass for responses.

        Raises:
            ValueError: says what to do.
        """
        if self._record is not None:
            raise ValueError(
                f"{what}: {self._name} tunes itself by Delta-STN, which does not follow how outputs that are streamed "
                'answer to hyperparameters; use method="stn", or call the net as a layer'
            )

    def encoding(self, what: str, inputs: Tensor, run: Callable[[], tuple[Tensor, Hx]]) -> tuple[Tensor, Hx]:
        """What `run` gives, at each example's hyperparameters, as `encoded` tells."""
        return encoded(self, what, inputs, run)

    def _run(
        self, input: Tensor | PackedSequence, hx: Any, given: GivenResets = NO_RESETS, *, engine: Engine | None = None
    ) -> tuple[Any, Any]:
        """The plain layer's outputs, at each example's hyperparameters.

        Raises:
            ValueError: in a pass, an input without a batch.
        """
        bound = self.hypers.current
        if bound is None:
            self._tell_plain_training()
            return RevRNN._run(self, input, hx, given, engine=engine)
        if isinstance(input, Tensor) and input.dim() == 2:
            refuse_unbatched(self, input)

        def run(laid: Laid) -> tuple[Any, Any]:
            with setting(_laid, laid):
                return RevRNN._run(self, input, hx, given, engine=engine)

        return run_in_pass(self, input, bound, ADVICE, run)

    def _layers(
        self, x: Tensor, states: State, lengths: Tensor | None, engine: Engine, resets: Resets | None = None
    ) -> tuple[Tensor, State]:
        """Outputs and last states of all layers; in Delta-STN's two passes one after another, with all outputs."""
        record = self._record
        if record is None:
            return RevRNN._layers(self, x, states, lengths, engine, resets)
        finals: list[State] = []
        ways = both_ways(resets, lengths)
        for layer in range(self.num_layers):
            x = self._dropped(x, layer)
            outputs = []
            for way, suffix in enumerate(self._suffixes(layer)):
                first, spec = tuple(state[len(finals)] for state in states), BatchSpec.of(x)
                anew = of_layer(ways[way], len(finals))
                inputs, settings = self._layer(layer, suffix, spec, first, lengths, engine, anew)
                y, final = linear_layer(self, record, reversed_rows(x, lengths) if way else x, inputs, settings)
                outputs.append(reversed_rows(y, lengths) if way else y)
                finals.append(final)
            x = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
        if self.options.output == "last":
            x = torch.cat([final[0] for final in finals[-self.directions :]], -1).to(x.dtype)
        return self._masked(x, "output_dropout"), tuple(torch.stack(group) for group in zip(*finals, strict=True))

    def _layer(
        self, layer: int, suffix: str, batch: BatchSpec, state: State, lengths: Tensor | None, engine: Engine,
        resets: Resets | None = None, *, tape: bool = False,
    ) -> tuple[LayerTensors, LayerSettings]:  # fmt: skip
        """What one layer in one direction runs with."""
        tensors, settings = RevRNN._layer(self, layer, suffix, batch, state, lengths, engine, resets, tape=tape)
        return tensors, settings if self._record is None else settings._replace(answering=False)

    @property
    def _record(self) -> ResponseRecord | None:
        """What Delta-STN's two passes keep; None in others."""
        return None if self.hypers.current is None else self.hypers.current.record

    def _products(self, layer: int, suffix: str, batch: BatchSpec) -> tuple[dict[str, Tensor], dict[str, Response]]:
        """A layer's weights by name, and their responses."""
        weights, responses = self._weights(layer, suffix, batch), dict[str, Response]()
        departure = self.hypers.current_departure()
        if departure is not None:
            d = self._by_row(departure, batch.rows)
            for side in ("ih", "hh"):
                scale = _product(d, getattr(self, f"response_scale_{side}{suffix}"))
                responses[side] = getattr(self, f"response_weight_{side}{suffix}"), scale
            if self.bias:
                shift = _product(d, getattr(self, f"response_shift{suffix}"))
                weights["bias"] = shifted(weights["bias"], shift, self._record)
        return weights, responses

    def _drop_weights(self, weights: dict[str, Tensor], responses: dict[str, Response]) -> None:
        """Drop recurrent weights and those of their responses, under one mask."""
        if (mask := self._weight_mask(weights["hh"])) is None:
            return
        weights["hh"] = weights["hh"] * mask
        if "hh" in responses:
            extra, scale = responses["hh"]
            responses["hh"] = extra * mask, scale

    def _weight_mask(self, weight: Tensor) -> Tensor | None:
        """The mask of a recurrent weight (G, N), at a tuned rate; None where nothing is dropped."""
        rate = self._rate("weight_drop")
        if rate is None:
            return None
        return drop_mask(weight.shape, rate, weight, room=in_own_pages(weight.detach(), tuple(weight.shape)))

    def shifts(self, rows: int) -> list[Tensor | None]:
        """How far the bias of each layer moves with the departures of a pass, (B, G); None for not at all."""
        departure = self.hypers.current_departure()
        if departure is None or not self.bias:
            return [None] * self.num_layers
        d = self._by_row(departure.detach(), rows)
        return [_product(d, getattr(self, f"response_shift_l{layer}").detach()) for layer in range(self.num_layers)]

    def mask(self, name: str, shape: tuple[int, ...], like: Tensor | BatchSpec) -> Tensor | None:
        """The mask of a locked dropout, (B, F), each row's at its own rate; None where it drops nothing."""
        rate = self._rate(name)
        if rate is None:
            return None
        empty = torch.empty(0, dtype=like.dtype, device=like.device)
        return drop_mask(shape, self._of_rows(rate, shape[0]), empty, rows=0)

    def draw_between(self) -> DrawMask | None:
        """What draws the masks of the dropout between layers, each row's at its own rate."""
        rate = self._rate("dropout")
        if rate is None:
            return None

        def draw(shape: tuple[int, ...], *, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
            return drop_mask(shape, self._of_rows(rate, shape[1]), like, generator, rows=1)

        return draw

    def drop_between(self, x: Tensor) -> Tensor:
        """A layer's outputs (T, B, H) as the next layer reads them."""
        rate = self._rate("dropout")
        return x if rate is None else x * drop_mask(x.shape, self._of_rows(rate, x.shape[1]), x, rows=1)

    def _rate(self, name: str) -> Tensor | float | None:
        """The rate of a dropout as it is now, a number, 0-d or (B,); None where it drops nothing."""
        if not self.training:
            return None
        if name in self.tuned:
            return self.tuned[name]()
        return (self.dropout if name == "dropout" else getattr(self.options, name)) or None

    def _of_rows(self, rate: Tensor | float, rows: int) -> Tensor | float:
        """A rate for each of so many rows, (rows, 1), or the one of all."""
        return self._by_row(rate[:, None], rows) if isinstance(rate, Tensor) and rate.dim() else rate

    def _by_row(self, scalars: Tensor, rows: int) -> Tensor:
        """Scalars of examples (B, k), or of all (1, k), for each row."""
        laid = _laid.get() or Laid()
        if laid.way == "batch" and len(scalars) not in (1, rows):
            raise ValueError(
                f"{self._name}: the batch must have {len(scalars)} rows, as many as examples have hyperparameters, "
                f"got {rows}; {ADVICE.format(name=self._name)}"
            )
        return laid.each(scalars, rows)

    def _all_suffixes(self) -> Iterator[str]:
        """How the names of parameters end, for each direction of each layer."""
        return (suffix for layer in range(self.num_layers) for suffix in self._suffixes(layer))


def _product(d: Tensor, scale: Tensor) -> Tensor:
    """d Q^T in the parameters' own numbers, in which layers run, also where a step casts others."""
    with torch.autocast(d.device.type, enabled=False):
        return linear_in_order(d, scale)


class ResponseRevGRU(ResponseRev, RevGRU):
    """RevGRU with a response."""

    plain = RevGRU


class ResponseRevLSTM(ResponseRev, RevLSTM):
    """RevLSTM with a response."""

    plain = RevLSTM
