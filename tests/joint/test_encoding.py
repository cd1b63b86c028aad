"""An encoder and a decoder that tune themselves, streamed, have the gradients of the same net with all its outputs.

STN's training step and its validation step, for every parameter, hyperparameter and scale: through the encoder's final
state and the units that are kept, through embeddings that both sides read, attention, and the readout. The unstreamed
net is made of the same modules, called as layers.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import revtune as rt
from revtune.attention import Attention, AttentionReadout, numbered
from revtune.reversible.streams import attention
from revtune.tuning.responses.responding import Responding
from revtune.tuning.tuner import bilevel
from tests.chunking import set_chunk_steps, set_stack_chunk_steps
from tests.joint.test_linear_stream import make_masks_alike
from tests.stored import relative

S, T, ROWS, WIDTH, UNITS = 9, 7, 5, 6, 8
WORDS = (9, 11)
CLOSE = {0: 1e-9, 3: 2e-6}
"""How near streamed and unstreamed gradients are, by how many units are kept: in layers these are rounded to 2^-32."""

nets = pytest.mark.parametrize("rev", [rt.RevGRU, rt.RevLSTM])


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


def gradients(net: Any, level: str, batch: Pairs, **asked: Any) -> tuple[float, dict[str, Tensor | None]]:
    """The loss and the gradients of a step."""
    tuner = rt.Tuner(net, method="stn", optimizer=lambda p: torch.optim.SGD(p, 0.1), **asked)
    net.zero_grad()
    net.train()
    if level == "valid":
        loss, grads = bilevel.hypergradients(tuner.problem, batch, 1e-3)
        names = {id(p): name for name, p in net.named_parameters()}
        return float(loss), {names[id(p)]: grad for p, grad in grads.items()}
    return float(bilevel.stn(tuner.problem, batch, lambda loss: loss)), {n: p.grad for n, p in net.named_parameters()}


@pytest.fixture(autouse=True)
def alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks that depend on units and rates alone; chunks of a few steps, and parts of a few rows."""

    def drop_mask(shape: Any, rate: Any, like: Tensor, generator: Any = None) -> Tensor:
        drawn = torch.rand(shape[-1], generator=torch.Generator().manual_seed(5)).to(like).expand(shape)
        return (drawn >= torch.as_tensor(rate)).to(like) / (1 - torch.as_tensor(rate).to(like))

    make_masks_alike(monkeypatch)
    monkeypatch.setattr("revtune.tuning.regularizers.dropouts.drop_mask", drop_mask)
    set_stack_chunk_steps(monkeypatch, 3)
    set_chunk_steps(monkeypatch, 3)
    monkeypatch.setattr(attention, "PART_ROWS", 2)


@nets
@pytest.mark.parametrize(
    ("ragged", "kept", "bridged", "reduction"),
    [(False, 3, False, "mean"), (True, 0, True, "mean"), (True, 3, False, "rows")],
)
@pytest.mark.parametrize("level", ["train", "valid"])
def test_gradients_are_those_of_layers(
    rev: Any, ragged: bool, kept: int, bridged: bool, reduction: str, level: str
) -> None:
    net, batch = tuned(rev, kept=kept, bridged=bridged), pairs(ragged)
    streamed = {"stream": lambda net, batch, h: {**stream(net, batch, h), "reduction": reduction}}
    found, wanted = (run_of(net, level, batch, given) for given in (streamed, LAYERED))
    assert found[0] == pytest.approx(wanted[0], rel=CLOSE[kept])
    for name, grad in found[1].items():
        other = wanted[1][name]
        if grad is None or other is None:
            assert not any(bool(one.any()) for one in (grad, other) if one is not None), name
        else:
            assert relative(grad, other) < CLOSE[kept], name
    own = {id(p) for layer in net.modules() if isinstance(layer, Responding) for p in layer._parameters.values()}
    learnt = [name for name, p in net.named_parameters() if id(p) in own and "hyper" not in name]
    missed = [name for name in learnt if found[1].get(name) is None or not found[1][name].any()]  # type: ignore[union-attr]
    assert level == "valid" or not missed
    assert level == "train" or all(bool(grad.all()) for grad in found[1].values() if grad is not None)


def run_of(net: Any, level: str, batch: Pairs, given: dict[str, Any]) -> tuple[float, dict[str, Tensor | None]]:
    """A step with the same perturbations each time."""
    torch.manual_seed(3)
    return gradients(net, level, batch, **given)


def small(method: str, how: Any = stream, **options: Any) -> rt.Tuner:
    """A tuner of a net in float32."""
    net = tuned(rt.RevGRU, torch.float32, **options)
    net.hypers.centred = method == "delta"
    settings: dict[str, Any] = {"method": method, "optimizer": lambda p: torch.optim.SGD(p, 0.3, momentum=0.5)}
    return rt.Tuner(net, stream=how, **settings)


def test_a_run_goes_on_to_the_last_bit() -> None:
    """Over batches of several sizes, the held-out ones among them."""
    data = [pairs(rows=rows, seed=rows) for rows in (5, 3, 4, 6)]

    def run(tuner: rt.Tuner, first: int, last: int) -> list[Any]:
        return [tuner.step(data[step % 2], data[2 + step % 2]) for step in range(first, last)]

    tuner = small("stn")
    run(tuner, 0, 3)
    saved = copy.deepcopy(tuner.state_dict())
    wanted = run(tuner, 3, 6)
    torch.manual_seed(99)
    other = small("stn")
    other.load_state_dict(saved)
    assert run(other, 3, 6) == wanted and wanted[0][1] is not None
    for one, two in zip(tuner.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(one, two)
    assert other.values() == tuner.values() and len(tuner.unread) == 0


def test_it_evaluates_as_its_frozen_net() -> None:
    net, batch = tuned(rt.RevLSTM).eval(), pairs()
    with torch.no_grad():
        found, wanted = (rt.rewind_loss(**stream(one, batch, None))[0] for one in (net, rt.frozen(net)))
    assert float(found) == pytest.approx(float(wanted), rel=1e-7)


def test_delta_stn_refuses_an_encoder_in_its_first_step() -> None:
    tuner = small("delta")
    before = [p.detach().clone() for p in tuner.model.parameters()]
    with pytest.raises(ValueError, match='what encoder encodes moves with hyperparameters, .*; use method="stn"'):
        tuner.train_step(pairs())
    assert all(torch.equal(p, was) for p, was in zip(tuner.model.parameters(), before, strict=True))


def test_rows_in_another_order_are_refused() -> None:
    """Whose departures they had would be another's."""

    def ordered(net: Any, batch: Pairs, h: Any) -> dict[str, Any]:
        order = torch.tensor([1, 0, 2, 3, 4])
        kept, _ = rt.rewind_encode(net.encoder, batch.source[:, order], encode=net.encode, units=3)
        return {**stream(net, batch, h), "context": [kept]}

    with pytest.raises(
        ValueError, match="rows of inputs must be the batch's examples in their order, but those of enc"
    ):
        small("stn", ordered).train_step(pairs())


@pytest.mark.parametrize("rows", [ROWS, S])
def test_keys_have_their_rows_in_dimension_1(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many rows as positions are no excuse."""
    monkeypatch.setattr(attention, "PART_ROWS", rows)

    def turned(net: Any, batch: Pairs, h: Any) -> dict[str, Any]:
        def keys(rows: slice, kept: Tensor) -> Tensor:
            return torch.cat([net.words(batch.source[:, rows].t()), kept[:, rows].transpose(0, 1)], -1)

        readout = AttentionReadout(net.attention, keys, batch.source_lengths, net.head, net.drop)
        return {**stream(net, batch, h), "readout": readout}

    with pytest.raises(ValueError, match="words: in a stream's readout rows must stay in dimension 1"):
        small("stn", turned).train_step(pairs(False, rows))


def test_keys_of_some_rows_have_no_masks_of_their_own() -> None:
    def dropped(net: Any, batch: Pairs, h: Any) -> dict[str, Any]:
        def keys(rows: slice, kept: Tensor) -> Tensor:
            return net.kept(net.keys(batch.source, rows, kept).transpose(0, 1)).transpose(0, 1)

        readout = AttentionReadout(net.attention, keys, batch.source_lengths, net.head, net.drop)
        return {**stream(net, batch, h), "readout": readout}

    with pytest.raises(ValueError, match="has one mask for all rows of a batch, and is handed some: drop out what"):
        small("stn", dropped).train_step(pairs())


def test_a_rate_of_outputs_that_nothing_reads_is_refused() -> None:
    net: Any = rt.self_tuning(Translator(rt.RevGRU, torch.float32), batch_dim=1).eval()
    with (
        torch.no_grad(),
        pytest.raises(ValueError, match="so encoder.output_dropout must not be tuned: take it out of"),
    ):
        stream(net, pairs(), None)
