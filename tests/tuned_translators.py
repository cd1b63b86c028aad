"""An encoder and a decoder that attends, which tune themselves: streamed, and by the same modules called as layers."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import revtune as rt
from revtune.attention import Attention, AttentionReadout, numbered

S, T, ROWS, WIDTH, UNITS = 9, 7, 5, 6, 8
WORDS = (9, 11)


class Pairs(NamedTuple):
    """Source (S, B) and target (T + 1, B) words, and how many are each row's own, (B,), or None for all."""

    source: Tensor
    target: Tensor
    source_lengths: Tensor
    lengths: Tensor | None


def pairs(ragged: bool = True, rows: int = ROWS, seed: int = 2) -> Pairs:
    """A batch."""
    generator = torch.Generator().manual_seed(seed)
    source, target = (
        torch.randint(words, (steps, rows), generator=generator) for words, steps in zip(WORDS, (S, T + 1), strict=True)
    )
    if not ragged:
        return Pairs(source, target, torch.full((rows,), S), None)
    most, second = torch.tensor([S, T]), torch.tensor([1])  # a row of each side is as long as can be
    own = [torch.randint(1, steps + 1, (rows,), generator=generator) for steps in (S, T)]
    return Pairs(source, target, *(one.index_copy(0, second, last[None]) for one, last in zip(own, most, strict=True)))


class Translator(nn.Module):
    """Encoder and decoder; what stands between them, if anything, is a layer that responds too."""

    def __init__(self, rev: Any, dtype: torch.dtype, kept: int = 3, bridged: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.targets = (rt.Embedding(words, WIDTH, dropout=0.1) for words in WORDS)
        self.locked, self.locked_too = rt.LockedDropout(0.2), rt.LockedDropout(0.3)
        dropped = {"num_layers": 2, "dropout": 0.1, "input_dropout": 0.2, "hidden_dropout": 0.3, "weight_drop": 0.1}
        self.encoder = rev(WIDTH, UNITS, **dropped)
        self.decoder = rev(WIDTH, UNITS, output_dropout=0.2, **dropped)
        self.bridge = nn.Linear(UNITS, UNITS) if bridged else None
        self.attention, self.drop = Attention(UNITS, WIDTH + kept), nn.Dropout(0.3)
        self.units, self.kept = kept, rt.LockedDropout(0.4) if kept else nn.Identity()
        self.head = rt.LinearCrossEntropy(UNITS, WORDS[1])
        self.to(dtype)

    def encode(self, words: Tensor) -> Tensor:
        """Source words as the encoder reads them."""
        return self.locked(self.words(words))

    def decode(self, words: Tensor) -> Tensor:
        """Target words as the decoder reads them."""
        return self.locked_too(self.targets(words))

    def between(self, state: Any) -> Any:
        """The decoder's first state of the encoder's last."""
        if self.bridge is None:
            return state
        states = state if isinstance(state, tuple) else (state,)
        made = tuple(torch.tanh(self.bridge(one.to(self.bridge.weight))) for one in states)
        return made if len(made) > 1 else made[0]

    def keys(self, source: Tensor, rows: slice, *kept: Tensor) -> Tensor:
        """What some rows attend to."""
        return torch.cat([self.words(source[:, rows]), *(one[:, rows] for one in kept)], -1).transpose(0, 1)

    def logits(self, batch: Pairs) -> Tensor:
        """Scores of all positions, by the modules as layers."""
        packed = pack_padded_sequence(self.encode(batch.source), batch.source_lengths, enforce_sorted=False)
        y, state = self.encoder(packed)
        kept = self.kept(pad_packed_sequence(y, total_length=S)[0][:, :, : self.units])
        z, _ = self.decoder(self.decode(batch.target[:-1]), self.between(state))
        keys = self.keys(batch.source, slice(None), kept)
        out, _ = self.attention(z.transpose(0, 1), keys, batch.source_lengths)
        return self.head.logits(self.drop(out).transpose(0, 1))


def stream(net: Any, batch: Pairs, h: Any) -> dict[str, Any]:
    """The same, streamed."""
    lengths = batch.source_lengths
    kept, state = rt.rewind_encode(net.encoder, batch.source, encode=net.encode, units=net.units, lengths=lengths)

    def keys(rows: slice, *kept: Tensor) -> Tensor:
        return net.keys(batch.source, rows, *kept)

    return {
        "rnn": net.decoder, "inputs": batch.target[:-1], "targets": numbered(batch.target[1:]), "encode": net.decode,
        "readout": AttentionReadout(net.attention, keys, lengths, net.head, net.drop),
        "state": net.between(state), "lengths": batch.lengths, "context": [net.kept(kept)] if net.units else [],
    }  # fmt: skip


def losses(out: Tensor, batch: Pairs, h: Any = None) -> Tensor:
    """The mean loss of a word."""
    each = F.cross_entropy(out.movedim(-1, 1), batch.target[1:], reduction="none")
    live = torch.ones_like(each) if batch.lengths is None else (torch.arange(T)[:, None] < batch.lengths).to(each)
    return (each * live).sum() / live.sum()


LAYERED: dict[str, Any] = {"predict": lambda net, batch: net.logits(batch), "train_loss": losses, "valid_loss": losses}


def rates(net: nn.Module) -> rt.Hyperparameters:
    """All rates but that of units that are kept, which nothing drops."""
    found = rt.dropout_rates(net)
    del found["encoder.output_dropout"]
    return rt.Hyperparameters(**found)


def tuned(rev: Any, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    """A self-tuning net whose responses are not zero."""
    model = Translator(rev, dtype, **options)
    net: Any = rt.self_tuning(model, rates(model), batch_dim=1)
    net.hypers.centred = False
    torch.manual_seed(1)
    for name, parameter in net.named_parameters():
        if "response_s" in name:
            nn.init.normal_(parameter, std=0.1)
    return net
