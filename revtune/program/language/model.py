"""Recurrent language models: an embedding, a recurrent stack and a softmax, reversible or torch's own."""

from __future__ import annotations

import os
from functools import partial

import torch
from torch import Tensor, nn

import revtune as rt
from revtune.program.errors import Problem
from revtune.program.language.config import Net
from revtune.program.layers import REVERSIBLE
from revtune.program.runs.checkpoint import RecurrentState
from revtune.reversible.layers.masks import drop_mask

TIED_INIT = 0.1  # as Merity et al. 2018; an embedding's usual N(0, 1) is far too large for a softmax

LAYER_BYTES = 4096  # of Python's objects around a layer's weights, at least

WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")  # in the order that torch.gru and torch.lstm take them


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

    def loss(self, inputs: Tensor, targets: Tensor, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        """Mean loss in nats a token of inputs and targets (T, B), and the state after them, detached."""
        return rt.rewind_loss(self.rnn, inputs, targets, encode=self.encode, readout=self.readout, state=state)


class StoringLanguageModel(LanguageModel):
    """Layers of nn.GRU or nn.LSTM, trained by ordinary backpropagation, for comparison."""

    def __init__(self, net: Net, tokens: int) -> None:
        super().__init__(StoringStack(net), net, tokens)

    def loss(self, inputs: Tensor, targets: Tensor, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        """Mean loss in nats a token of inputs and targets (T, B), and the state after them, detached."""
        y, state = self.rnn(self.encode(inputs), state)
        detached = state.detach() if isinstance(state, Tensor) else tuple(part.detach() for part in state or ())
        return self.readout(y, targets) / targets.numel(), detached


class StoringStack(nn.Module):
    """Layers of nn.GRU or nn.LSTM with locked dropout on their inputs and outputs and dropped recurrent weights."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        kind = nn.GRU if net.model == "gru" else nn.LSTM
        self.layers = nn.ModuleList(
            kind(net.hidden if layer else net.embedding, net.hidden) for layer in range(net.layers)
        )
        self.rates = net

    def forward(self, x: Tensor, state: RecurrentState = None) -> tuple[Tensor, RecurrentState]:
        """Outputs (T, B, H) and the state, (L, B, H) or a pair of it."""
        after = []
        for number, layer in enumerate(self.layers):
            if number:
                x = nn.functional.dropout(x, self.rates.dropout, self.training)
            x, part = self._layer(layer, locked(x, self.rates.input_dropout, self.training), of_layer(state, number))
            x = locked(x, self.rates.output_dropout, self.training)
            after.append(part)
        return x, of_layers(after)

    def _layer(self, layer: nn.Module, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        if not state:
            parts = 2 if isinstance(layer, nn.LSTM) else 1
            state = (x.new_zeros(1, x.shape[1], self.rates.hidden),) * parts
        w_ih, w_hh, *biases = (layer.get_parameter(f"{name}_l0") for name in WEIGHTS)
        flat = [w_ih, nn.functional.dropout(w_hh, self.rates.weight_drop, self.training), *biases]
        settings = (True, 1, 0.0, self.training, False, False)  # biases, layers, dropout, train, both ways, batch first
        if isinstance(layer, nn.LSTM):
            y, h, c = torch.lstm(x, state, flat, *settings)
            return y, (h, c)
        y, h = torch.gru(x, state[0], flat, *settings)
        return y, (h,)


def of_layer(state: RecurrentState, number: int) -> tuple[Tensor, ...]:
    """The parts of one layer's state, (1, B, H) each; none where there is no state."""
    parts = () if state is None else (state,) if isinstance(state, Tensor) else state
    return tuple(part[number : number + 1].contiguous() for part in parts)


def of_layers(after: list[tuple[Tensor, ...]]) -> RecurrentState:
    """The state of all layers from the parts of each one's."""
    parts = tuple(torch.cat(part) for part in zip(*after, strict=True))
    return parts if len(parts) > 1 else parts[0]


def locked(x: Tensor, rate: float, training: bool) -> Tensor:
    """Dropout on x (T, B, I) by one mask (1, B, I) for all its steps (Gal and Ghahramani, 2016)."""
    if not training or not rate:
        return x
    return x * drop_mask((1, *x.shape[1:]), rate, x)


def build(net: Net, tokens: int) -> LanguageModel:
    """The model that a configuration asks for.

    Raises:
        Problem: when this machine has no memory for it.
    """
    refuse_larger_than_memory(net, tokens)
    kind = RewindingLanguageModel if net.model in REVERSIBLE else StoringLanguageModel
    try:
        return kind(net, tokens)
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
