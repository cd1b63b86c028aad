"""An encoder and a decoder that tune themselves, streamed, have the gradients of the same net with all its outputs.

STN's training step and its validation step, for every parameter, hyperparameter and scale: through the encoder's final
state and the units that are kept, through embeddings that both sides read, attention, and the readout. The unstreamed
net is made of the same modules, called as layers.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence

import revtune as rt
from revtune.attention import AttentionReadout
from revtune.reversible.streams import attention
from revtune.tuning.responses.responding import Responding
from tests.chunking import set_chunk_steps, set_stack_chunk_steps
from tests.joint.test_linear_stream import gradients, make_masks_alike
from tests.stored import relative
from tests.tuned_translators import LAYERED, ROWS, Pairs, S, Translator, pairs, stream, tuned

CLOSE = {0: 1e-9, 3: 2e-6}
"""How near streamed and unstreamed gradients are, by how many units are kept: in layers these are rounded to 2^-32."""

nets = pytest.mark.parametrize("rev", [rt.RevGRU, rt.RevLSTM])


@pytest.fixture
def alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks that depend on units and rates alone; chunks of a few steps, and parts of a few rows."""

    def drop_mask(shape: Any, rate: Any, like: Tensor, generator: Any = None, *, rows: Any = None) -> Tensor:
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
@pytest.mark.usefixtures("alike")
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
    return gradients(net, "stn", level, batch, **given)


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


@pytest.mark.parametrize("level", ["train", "valid"])
@pytest.mark.usefixtures("alike")
def test_a_prediction_is_made_of_what_is_encoded(level: str) -> None:
    """Without a decoder, as a sentence is classified."""
    net, batch = tuned(rt.RevGRU), pairs()

    def encoded(net: Any, batch: Pairs) -> Tensor:
        lengths = batch.source_lengths
        return net.head.logits(rt.rewind_encode(net.encoder, batch.source, encode=net.encode, lengths=lengths)[1][-1])

    def layered(net: Any, batch: Pairs) -> Tensor:
        packed = pack_padded_sequence(net.encode(batch.source), batch.source_lengths, enforce_sorted=False)
        return net.head.logits(net.encoder(packed)[1][-1])

    def losses(out: Tensor, batch: Pairs, h: Any = None) -> Tensor:
        return F.cross_entropy(out, batch.target[0], reduction="none")

    given: dict[str, Any] = {"train_loss": losses, "valid_loss": losses}
    found, wanted = (run_of(net, level, batch, {**given, "predict": predict}) for predict in (encoded, layered))
    assert found[0] == pytest.approx(wanted[0], rel=CLOSE[0])
    for name, grad in found[1].items():
        other = wanted[1][name]
        assert (grad is None and other is None) or relative(grad, other) < CLOSE[0], name  # type: ignore[arg-type]
    net.hypers.centred = True
    tuner = rt.Tuner(net, method="delta", predict=encoded, optimizer=lambda p: torch.optim.SGD(p, 0.1), **given)
    with pytest.raises(ValueError, match='into a decoder or a loss; use method="stn"'):
        tuner.train_step(batch)


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


def attending(made: Any) -> Any:
    """A stream whose keys are made by a function of the net, the batch, rows and what is kept of them."""

    def streamed(net: Any, batch: Pairs, h: Any) -> dict[str, Any]:
        def keys(rows: slice, kept: Tensor) -> Tensor:
            return made(net, batch, rows, kept)

        readout = AttentionReadout(net.attention, keys, batch.source_lengths, net.head, net.drop)
        return {**stream(net, batch, h), "readout": readout}

    return streamed


@pytest.mark.parametrize("rows", [ROWS, S])
def test_keys_have_their_rows_in_dimension_1(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many rows as positions are no excuse."""
    monkeypatch.setattr(attention, "PART_ROWS", rows)

    def turned(net: Any, batch: Pairs, part: slice, kept: Tensor) -> Tensor:
        return torch.cat([net.words(batch.source[:, part].t()), kept[:, part].transpose(0, 1)], -1)

    with pytest.raises(ValueError, match="words: in a stream's readout rows must stay in dimension 1"):
        small("stn", attending(turned)).train_step(pairs(False, rows))


def test_keys_of_some_rows_have_no_masks_of_their_own() -> None:
    def dropped(net: Any, batch: Pairs, part: slice, kept: Tensor) -> Tensor:
        return net.kept(net.keys(batch.source, part, kept).transpose(0, 1)).transpose(0, 1)

    with pytest.raises(ValueError, match="has one mask for all rows of a batch, and is handed some: drop out what"):
        small("stn", attending(dropped)).train_step(pairs())


def test_a_rate_of_outputs_that_nothing_reads_is_refused() -> None:
    net: Any = rt.self_tuning(Translator(rt.RevGRU, torch.float32), batch_dim=1).eval()
    with (
        torch.no_grad(),
        pytest.raises(ValueError, match="so encoder.output_dropout must not be tuned: take it out of"),
    ):
        stream(net, pairs(), None)
