"""Recurrent language models: an embedding, a recurrent stack and a softmax, reversible or torch's own."""

from __future__ import annotations

import os
from functools import partial
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

import revtune as rt
from revtune.program.errors import Problem
from revtune.program.language.config import Net
from revtune.program.layers import REVERSIBLE
from revtune.program.runs.checkpoint import RecurrentState
from revtune.reversible.layers.masks import drop_mask, dropped
from revtune.tuning.conversion.plain import GRUWithRates, LSTMWithRates, RecurrentWithRates
from revtune.tuning.hypers.hyperparameters import Hyperparameters
from revtune.tuning.noise import RATE
from revtune.tuning.regularizers.dropouts import TunedLockedDropout

TIED_INIT = 0.1  # as Merity et al. 2018; an embedding's usual N(0, 1) is far too large for a softmax

LAYER_BYTES = 4096  # of Python's objects around a layer's weights, at least


FORGET_BIAS, OUTPUT_FORGET_BIAS = -1.0, -4.0
"""What biases of a RevLSTM's gates f and p begin with beside their random part."""


class Out(NamedTuple):
    """Logits (T, B, V), and outputs (T, B, H) of the last layer before and after dropout."""

    logits: Tensor
    outputs: Tensor
    dropped: Tensor


class LanguageModel(nn.Module):
    """p(next token | tokens so far): what reversible and storing models share.

    Args:
        rnn: the recurrent stack.
        net: sizes and dropout rates.
        tokens: size of the vocabulary.
    """

    def __init__(self, rnn: nn.Module, net: Net, tokens: int) -> None:
        super().__init__()
        self.encode = rt.Embedding(tokens, net.embedding, dropout=net.embedding_dropout)
        self.rnn = rnn
        self.readout = rt.LinearCrossEntropy(net.hidden, tokens, tie=self.encode if net.tie else None)
        if net.tie:
            nn.init.uniform_(self.encode.weight, -TIED_INIT, TIED_INIT)

    def loss(self, inputs: Tensor, targets: Tensor, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        """Mean loss in nats a token of inputs and targets (T, B), and the state after them, detached."""
        raise NotImplementedError

    def forward(self, tokens: Tensor, state: RecurrentState = None) -> tuple[Tensor, RecurrentState]:
        """Logits (T, B, V) after each of the tokens (T, B), and the state."""
        y, state = self.rnn(self.encode(tokens), state)
        return self.readout.logits(y), state


class RewindingLanguageModel(LanguageModel):
    """A reversible stack, trained by rewinding."""

    rnn: rt.RevGRU | rt.RevLSTM

    def __init__(self, net: Net, tokens: int) -> None:
        kind = rt.RevGRU if net.model == "revgru" else partial(rt.RevLSTM, bounded=net.bounded)
        rnn = kind(
            net.embedding, net.hidden, num_layers=net.layers, dropout=net.dropout, forgetting=net.forgetting,
            max_forget_bits=net.max_forget_bits, input_dropout=net.input_dropout, hidden_dropout=net.hidden_dropout,
            output_dropout=net.output_dropout, weight_drop=net.weight_drop,
        )  # fmt: skip
        super().__init__(rnn, net, tokens)
        if net.follow_quickly and isinstance(rnn, rt.RevLSTM):
            follow_quickly(rnn)

    def loss(self, inputs: Tensor, targets: Tensor, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        """Mean loss in nats a token of inputs and targets (T, B), and the state after them, detached."""
        return rt.rewind_loss(self.rnn, inputs, targets, encode=self.encode, readout=self.readout, state=state)


@torch.no_grad()
def follow_quickly(rnn: rt.RevLSTM) -> None:
    """Let h and c of a fresh net forget fast.

    The gates f and p begin around 1/2, so that h lags behind the word that was read. After 200 updates at learning rate
    10 (200,000 words, two layers of 200, plain) the held-out perplexity is 361 so, and 403 at best without; nn.LSTM's
    is 367 at its best rate, 5.
    """
    for layer in range(rnn.num_layers):
        bias = rnn.get_parameter(f"bias_ih_l{layer}").view(2, -1, rnn.hidden_size // 2)  # halves, gates f p i o g
        bias[:, 0] += FORGET_BIAS
        bias[:, 1] += OUTPUT_FORGET_BIAS


class StoringLanguageModel(LanguageModel):
    """Layers of nn.GRU or nn.LSTM, trained by ordinary backpropagation, for comparison.

    Args:
        net: sizes and dropout rates.
        tokens: size of the vocabulary.
        hypers: what its dropouts read where they are tuned; by default their rates stay.
    """

    rnn: StoringStack

    def __init__(self, net: Net, tokens: int, hypers: Hyperparameters | None = None) -> None:
        super().__init__(StoringStack.fixed(net) if hypers is None else StoringStack.tuned(net, hypers), net, tokens)

    def loss(self, inputs: Tensor, targets: Tensor, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        """Mean loss in nats a token of inputs and targets (T, B), and the state after them, detached."""
        y, state = self.rnn(self.encode(inputs), state)
        detached = state.detach() if isinstance(state, Tensor) else tuple(part.detach() for part in state or ())
        return self.readout(y, targets) / targets.numel(), detached

    def outputs(self, tokens: Tensor, state: RecurrentState) -> tuple[Out, RecurrentState]:
        """What a training loss with penalties reads after the tokens (T, B), and the state."""
        raw, dropped, state = self.rnn.outputs(self.encode(tokens), state)
        return Out(self.readout.logits(dropped), raw, dropped), state


class StoringStack(nn.Module):
    """Layers of nn.GRU or nn.LSTM with locked dropout on their inputs and outputs and dropped recurrent weights.

    Args:
        layers: they drop their recurrent weights themselves.
        input_drop, output_drop: of each layer's input and output.
        dropout: between layers, of single numbers.
    """

    def __init__(
        self, layers: list[nn.Module], input_drop: nn.Module, output_drop: nn.Module, dropout: nn.Module
    ) -> None:  # fmt: skip
        super().__init__()
        self.layers, self.dropout = nn.ModuleList(layers), dropout
        self.input_drop, self.output_drop = input_drop, output_drop

    @classmethod
    def fixed(cls, net: Net) -> Self:
        """At rates that stay, or that `rt.replay` sets."""
        drops = FixedLockedDropout(net.input_dropout), FixedLockedDropout(net.output_dropout)
        layers = layers_of(net, FixedGRU if net.model == "gru" else FixedLSTM)
        for layer in layers:
            layer.rates = {"weight_drop": partial(float, net.weight_drop)}
        return cls(layers, *drops, FixedDropout(net.dropout))

    @classmethod
    def tuned(cls, net: Net, hypers: Hyperparameters) -> Self:
        """At rates that are hyperparameters, to be converted by `self_tuning`, or by `plain` where they are numbers."""
        inputs, outputs = (TunedLockedDropout(hypers, f"{what}_dropout", batch_dim=1) for what in ("input", "output"))
        return cls(layers_of(net, nn.GRU if net.model == "gru" else nn.LSTM), inputs, outputs, nn.Dropout(0.0))

    def forward(self, x: Tensor, state: RecurrentState = None) -> tuple[Tensor, RecurrentState]:
        """Outputs (T, B, H) and the state, (L, B, H) or a pair of it."""
        _, x, after = self.outputs(x, state)
        return x, after

    def outputs(self, x: Tensor, state: RecurrentState) -> tuple[Tensor, Tensor, RecurrentState]:
        """Outputs of the last layer before and after dropout, and the state."""
        after, raw = list[tuple[Tensor, ...]](), x
        for number, layer in enumerate(self.layers):
            x = self.dropout(x) if number else x
            parts = of_layer(state, number)
            raw, part = layer(self.input_drop(x), parts if len(parts) > 1 else parts[0] if parts else None)
            x = self.output_drop(raw)
            after.append(part if isinstance(part, tuple) else (part,))
        return raw, x, of_layers(after)


class FixedLockedDropout(nn.Module):
    """Dropout on x (T, B, I) by one mask (1, B, I) for all its steps (Gal and Ghahramani, 2016).

    Its masks are those of runs before there was tuning: `TunedLockedDropout` draws others.

    Args:
        p: the rate, which `rt.replay` can set.
    """

    RATES: ClassVar = {"p": RATE}

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """x, in training with units dropped from whole sequences."""
        return x * drop_mask((1, *x.shape[1:]), self.p, x, rows=1) if self.training and self.p else x

    def extra_repr(self) -> str:
        """The rate."""
        return f"p={self.p}"


class FixedDropout(nn.Dropout):
    """nn.Dropout on x (T, B, F), by the same masks; of several processes each has those of its streams.

    Its rate is one that `rt.replay` can set.
    """

    RATES: ClassVar = {"p": RATE}

    def forward(self, x: Tensor) -> Tensor:
        """x, in training with single numbers dropped."""
        return dropped(x, self.p) if self.training else x


class FixedWeightDrop(RecurrentWithRates):
    """A layer of torch's that drops its recurrent weights by torch's own masks, as before there was tuning."""

    def drop(self, weight: Tensor, rate: float) -> Tensor:
        """A weight with a share of it dropped."""
        return nn.functional.dropout(weight, rate)


class FixedLSTM(FixedWeightDrop, LSTMWithRates):
    """nn.LSTM, its recurrent weights dropped."""


class FixedGRU(FixedWeightDrop, GRUWithRates):
    """nn.GRU, its recurrent weights dropped."""


def layers_of(net: Net, kind: Any) -> list[Any]:
    """The recurrent layers of a net, one module each."""
    return [kind(net.hidden if layer else net.embedding, net.hidden) for layer in range(net.layers)]


def of_layer(state: RecurrentState, number: int) -> tuple[Tensor, ...]:
    """The parts of one layer's state, (1, B, H) each; none where there is no state."""
    parts = () if state is None else (state,) if isinstance(state, Tensor) else state
    return tuple(part[number : number + 1].contiguous() for part in parts)


def of_layers(after: list[tuple[Tensor, ...]]) -> RecurrentState:
    """The state of all layers from the parts of each one's."""
    parts = tuple(torch.cat(part) for part in zip(*after, strict=True))
    return parts if len(parts) > 1 else parts[0]


def build(net: Net, tokens: int, hypers: Hyperparameters | None = None) -> LanguageModel:
    """The model that a configuration asks for.

    Args:
        net: sizes and dropout rates.
        tokens: size of the vocabulary.
        hypers: by which it is going to be tuned, if it is.

    Raises:
        Problem: when this machine has no memory for it.
    """
    refuse_larger_than_memory(net, tokens)
    try:
        return (
            RewindingLanguageModel(net, tokens)
            if net.model in REVERSIBLE
            else StoringLanguageModel(net, tokens, hypers)
        )
    except (MemoryError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise Problem(f"the model cannot be built: {reason}") from error


def refuse_larger_than_memory(net: Net, tokens: int) -> None:
    """Raise `Problem` when the weights alone, counted low, are more than this machine's memory holds."""
    largest = max(net.embedding, net.hidden)
    least = net.layers * (4 * net.hidden**2 + LAYER_BYTES) + 4 * tokens * largest  # one float32 matrix of each
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if least > memory:
        sizes = f"{least >> 20:,} MiB for its weights, and this machine has {memory >> 20:,} MiB"
        raise Problem(f"the model cannot be built: it needs at least {sizes}")
