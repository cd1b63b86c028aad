"""Encoder, decoder and attention: reversible, or of torch's own layers for comparison.

The decoder starts from the encoder's final state and attends, at each step, to something of every source position:

    emb             the words' embeddings, which are made anew: nothing is stored
    slice:k         the first k units of the encoder's top layer, kept as floats
    emb+slice:k     both
    full            all units of it

Shapes: S source steps, T target steps, B sentences, E embedding, H hidden, V target words.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, NamedTuple

import torch
import tyro
from torch import Tensor, nn
from torch.nn import functional as F

import revtune as rt
from revtune.program.data.buckets import Batch
from revtune.program.errors import Problem
from revtune.program.layers import REVERSIBLE, Model
from revtune.reversible.arguments import running
from revtune.reversible.streams.attention import Attention, AttentionReadout, numbered
from revtune.sequences import Along, handing

State = Tensor | tuple[Tensor, ...]

INIT = 0.1
"""Weights start uniform up to this, as in MacKay et al. 2018."""


@dataclass(frozen=True, kw_only=True)
class Net:
    """Sizes and dropout rates of a translator."""

    model: Model = "revgru"
    """Recurrent layers, ours or torch's own."""
    embedding: int = 300
    """Features of a word."""
    hidden: int = 300
    """Units of a layer."""
    layers: int = 1
    """Layers of encoder and decoder each."""
    attend: str = "emb+slice:20"
    """What the decoder attends to: emb, slice:K, emb+slice:K or full."""
    max_forget_bits: Annotated[float | None, tyro.conf.arg(metavar="FLOAT|None")] = 3.0
    """Most bits that a unit of a reversible layer may forget in one step."""
    dropout: float = 0.4
    """Of embeddings (one mask a sentence), between layers, and of what the softmax reads."""
    slice_dropout: float = 0.4
    """Of what is attended to, one mask a sentence."""
    loss_in_blocks: bool = False
    """Whether torch's layers have logits and loss made block by block, as reversible ones always have."""


def rates_of(net: Net) -> dict[str, float]:
    """The dropout rates of a translator, by the modules that have them."""
    between = ("encoder.dropout", "decoder.dropout") if net.layers > 1 else ()
    rates = dict.fromkeys(("source_dropout", "target_dropout", *between, "softmax_dropout"), net.dropout)
    return {**rates, "slice_dropout": net.slice_dropout}


class Attended(NamedTuple):
    """What a decoder attends to: whether to embeddings, and to how many of the encoder's units; None for all."""

    embedding: bool
    units: int | None

    @classmethod
    def of(cls, text: str, hidden: int) -> Attended:
        """What the setting `attend` says.

        Raises:
            Problem: it is unknown, or slices more than half of the units.
        """
        if text in ("full", "emb"):
            return cls(text == "emb", 0 if text == "emb" else None)
        words, sliced = text.startswith("emb+"), text.removeprefix("emb+")
        kind, _, number = sliced.partition(":")
        units = int(number) if number.isdecimal() and len(number) < 10 else 0
        if kind != "slice" or not 1 <= units <= hidden // 2:
            known = f"emb, slice:K, emb+slice:K (K from 1 to {hidden // 2}) or full"
            raise Problem(f"--attend must be {known}, got {text}", code=2)
        return cls(words, units)

    def width(self, net: Net) -> int:
        """Features of a key."""
        return net.embedding * self.embedding + (net.hidden if self.units is None else self.units)


class Memory(NamedTuple):
    """What a decoder attends to when it translates: keys (B, S, D) of all positions, and lengths (B,)."""

    keys: Tensor
    lengths: Tensor


class Translator(nn.Module):
    """p(target sentence | source sentence).

    Args:
        net: sizes and dropout rates.
        source_words, target_words: sizes of the vocabularies.
    """

    encoder: nn.Module
    decoder: nn.Module

    def __init__(self, net: Net, source_words: int, target_words: int) -> None:
        super().__init__()
        self.net, self.attended = net, Attended.of(net.attend, net.hidden)
        self.source, self.target = rt.Embedding(source_words, net.embedding), rt.Embedding(target_words, net.embedding)
        self.source_dropout, self.target_dropout = (rt.LockedDropout(net.dropout) for _ in range(2))
        self.softmax_dropout, self.slice_dropout = nn.Dropout(net.dropout), rt.LockedDropout(net.slice_dropout)
        self.encode = nn.Sequential(self.source, self.source_dropout)
        self.decode = nn.Sequential(self.target, self.target_dropout)
        self.encoder, self.decoder = self.layers(), self.layers()
        self.attention = Attention(net.hidden, self.attended.width(net))
        self.readout = rt.LinearCrossEntropy(net.hidden, target_words)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -INIT, INIT)

    def layers(self) -> nn.Module:
        """A recurrent stack, for encoder or decoder."""
        raise NotImplementedError

    def sizes(self) -> tuple[int, int, int, bool, bool, float]:
        """What any recurrent stack is made with, in nn.GRU's order up to the dropout between layers."""
        net = self.net
        return net.embedding, net.hidden, net.layers, True, False, net.dropout if net.layers > 1 else 0.0

    def loss(self, batch: Batch) -> Tensor:
        """Summed loss in nats of a batch's targets."""
        return self.decoded(batch, *self.encoded(batch.source, batch.source_lengths))

    def encoded(self, source: Tensor, lengths: Tensor) -> tuple[Tensor, State]:
        """Annotations (S, B, k) and the final state."""
        raise NotImplementedError

    def decoded(self, batch: Batch, annotations: Tensor, state: State) -> Tensor:
        """Summed loss in nats of a batch's targets, of what `encoded` gave."""
        raise NotImplementedError

    def keys(self, source: Tensor, rows: slice, annotations: Tensor) -> Tensor:
        """What some rows attend to, (R, S, D), of all sources (S, B) and annotations (S, B, k)."""
        parts = [self.source(source[:, rows])] if self.attended.embedding else []
        parts += [annotations[:, rows]] if self.attended.units != 0 else []
        return torch.cat(parts, -1).transpose(0, 1)

    def mask(self, source: Tensor) -> Tensor | None:
        """What is dropped of what each row attends to, (B, D), at all positions alike; None for nothing."""
        drop = self.slice_dropout
        if not (drop.training and drop.p):
            return None
        with handing(Along(1)):  # of nobody by themselves, these ones are the rows'
            mask: Tensor = drop(self.readout.weight.new_ones(1, source.shape[1], self.attention.key_size))[0]
        return mask

    def remembered(self, source: Tensor, lengths: Tensor) -> tuple[Memory, State]:
        """What the decoder attends to, and the state that it starts from."""
        annotations, state = self.encoded(source, lengths)
        keys, mask = self.keys(source, slice(None), annotations), self.mask(source)
        return Memory(keys if mask is None else keys * mask.unsqueeze(1), lengths), state

    def step(self, words: Tensor, state: State, memory: Memory) -> tuple[Tensor, Tensor, State]:
        """Log-probabilities (B, V) of the next words, attention (B, S) and the state, after these words (B,)."""
        y, state = self.decoder(self.decode(words[None]), state)
        out, weights = self.attention(y.transpose(0, 1), memory.keys, memory.lengths)
        return self.readout.logits(out[:, 0]).log_softmax(-1), weights[:, 0], state


class RewindingTranslator(Translator):
    """Reversible layers, trained by rewinding; the decoder's attention and softmax stream."""

    encoder: rt.RevGRU | rt.RevLSTM
    decoder: rt.RevGRU | rt.RevLSTM

    def layers(self) -> nn.Module:
        """A recurrent stack."""
        kind = rt.RevGRU if self.net.model == "revgru" else rt.RevLSTM
        return kind(*self.sizes(), max_forget_bits=self.net.max_forget_bits)

    def encoded(self, source: Tensor, lengths: Tensor) -> tuple[Tensor, State]:
        """Annotations (S, B, k) and the final state."""
        if self.attended.units is None:
            return every_output(self.encoder, self.encode(source), lengths)
        return rt.rewind_encode(self.encoder, source, encode=self.encode, units=self.attended.units, lengths=lengths)

    def decoded(self, batch: Batch, annotations: Tensor, state: State) -> Tensor:
        """Summed loss in nats of a batch's targets, of what `encoded` gave."""
        loss, _ = rt.rewind_loss(**self.streamed(batch, annotations, state), reduction="sum")
        return loss

    def streamed(self, batch: Batch, annotations: Tensor, state: State) -> dict[str, Any]:
        """What the loss of a batch is streamed from, of what `encoded` gave."""
        readout = AttentionReadout(
            self.attention, partial(self.keys, batch.source), batch.source_lengths, self.readout, self.softmax_dropout,
            self.mask(batch.source),
        )  # fmt: skip
        return {
            "rnn": self.decoder, "inputs": batch.inputs, "targets": numbered(batch.targets), "encode": self.decode,
            "readout": readout, "state": state, "lengths": batch.lengths, "context": [annotations],
        }  # fmt: skip


class StoringTranslator(Translator):
    """Layers of nn.GRU or nn.LSTM, trained by ordinary backpropagation, for comparison."""

    def layers(self) -> nn.Module:
        """A recurrent stack."""
        kind = nn.GRU if self.net.model == "gru" else nn.LSTM
        return kind(*self.sizes())

    def encoded(self, source: Tensor, lengths: Tensor) -> tuple[Tensor, State]:
        """Annotations (S, B, k) and the final state."""
        y, state = every_output(self.encoder, self.encode(source), lengths)
        return y[:, :, : self.attended.units], state

    def decoded(self, batch: Batch, annotations: Tensor, state: State) -> Tensor:
        """Summed loss in nats of a batch's targets, of what `encoded` gave."""
        live = running(batch.lengths, 0, len(batch.inputs))
        out, targets = self.attended_to(batch, annotations, state)[live], batch.targets[live]
        features = self.softmax_dropout(out)
        if self.net.loss_in_blocks:
            loss: Tensor = self.readout(features, targets)
            return loss
        return F.cross_entropy(self.readout.logits(features), targets, reduction="sum")

    def attended_to(self, batch: Batch, annotations: Tensor, state: State) -> Tensor:
        """What attention gives at all positions, (T, B, H), of what `encoded` gave."""
        keys, mask = self.keys(batch.source, slice(None), annotations), self.mask(batch.source)
        y, _ = self.decoder(self.decode(batch.inputs), state)
        out, _ = self.attention(y.transpose(0, 1), keys, batch.source_lengths, mask)
        return out.transpose(0, 1)

    def logits(self, batch: Batch) -> Tensor:
        """Scores of all words at all positions, (T, B, V), those of padding too."""
        out = self.attended_to(batch, *self.encoded(batch.source, batch.source_lengths))
        return self.readout.logits(self.softmax_dropout(out))


def every_output(layers: nn.Module, x: Tensor, lengths: Tensor) -> tuple[Tensor, State]:
    """All outputs (S, B, H) of padded rows, and their final state."""
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths.cpu(), enforce_sorted=False)
    rows, state = layers(packed)
    y, _ = nn.utils.rnn.pad_packed_sequence(rows, total_length=len(x))
    return y, state


def build(net: Net, source_words: int, target_words: int) -> Translator:
    """The translator that a configuration asks for."""
    kind = RewindingTranslator if net.model in REVERSIBLE else StoringTranslator
    return kind(net, source_words, target_words)
