"""Translators: reversible ones compute what storing ones would, whatever is attended to, in ragged batches."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from revtune.program.data.buckets import Batch
from revtune.program.errors import Problem
from revtune.program.translation.translator import Attended, Net, RewindingTranslator, Translator, build, every_output
from revtune.reversible.arguments import running
from tests.chunking import set_chunk_steps

BACKENDS = ("reference", "native")
S, T, B, WORDS = 9, 7, 5, (13, 11)
ATTENDED = ["emb", "slice:3", "emb+slice:3", "full"]
ragged = torch.tensor([9, 1, 4, 8, 2]), torch.tensor([2, 7, 1, 5, 6])


def made(model: str, attend: str, **options: float) -> tuple[Translator, Batch]:
    """A translator without dropout, and a ragged batch."""
    torch.manual_seed(4)
    net = Net(model=model, embedding=6, hidden=8, attend=attend, dropout=0.0, slice_dropout=0.0, **options)  # type: ignore[arg-type]
    source, targets = torch.randint(WORDS[0], (S, B)), torch.randint(WORDS[1], (T, B))
    inputs = torch.cat([torch.zeros_like(targets[:1]), targets[:-1]])
    return build(net, *WORDS), Batch(source, ragged[0], inputs, targets, ragged[1])


def plain_loss(model: Translator, given: Batch) -> Tensor:
    """The loss of a reversible translator, its layers returning all their outputs."""
    y, state = every_output(model.encoder, model.encode(given.source), given.source_lengths)
    keys = model.keys(given.source, slice(None), y[:, :, : model.attended.units])
    z, _ = model.decoder(model.decode(given.inputs), state)
    out, _ = model.attention(z.transpose(0, 1), keys, given.source_lengths)
    live = running(given.lengths, 0, T)
    logits = model.readout.logits(out.transpose(0, 1)[live])
    return F.cross_entropy(logits, given.targets[live], reduction="sum")


@pytest.mark.parametrize("model", ["revgru", "revlstm"])
@pytest.mark.parametrize("attend", ATTENDED)
@pytest.mark.parametrize("layers", [1, 2])
def test_rewinding_is_the_same_computation(
    model: str, attend: str, layers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_chunk_steps(monkeypatch, 3)
    translator, given = made(model, attend, layers=layers)
    loss, wanted = translator.loss(given), plain_loss(translator, given)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    parameters = list(translator.parameters())
    mine, theirs = torch.autograd.grad(loss, parameters), torch.autograd.grad(wanted, parameters)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("model", ["revgru", "lstm"])
@pytest.mark.parametrize("attend", ATTENDED)
def test_step_by_step_it_gives_the_loss(model: str, attend: str) -> None:
    """What a search adds up is what training minimises."""
    translator, given = made(model, attend)
    translator.eval()
    with torch.no_grad():
        wanted = translator.loss(given).item()
        memory, state = translator.remembered(given.source, given.source_lengths)
        total = 0.0
        for t in range(T):
            logp, weights, state = translator.step(given.inputs[t], state, memory)
            total -= logp[torch.arange(B), given.targets[t]][given.lengths > t].sum().item()
            torch.testing.assert_close(weights.sum(1), torch.ones(B))
    assert total == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("model", ["gru", "lstm"])
def test_loss_in_blocks_is_the_loss(model: str) -> None:
    translator, given = made(model, "full")
    translator.eval()
    found = []
    for blocks in (False, True):
        translator.net = replace(translator.net, loss_in_blocks=blocks)
        loss = translator.loss(given)
        found.append([loss.detach(), *torch.autograd.grad(loss, list(translator.parameters()))])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_padding_does_not_matter() -> None:
    translator, given = made("revgru", "emb+slice:3")
    other = [one.clone() for one in given]
    other[0][~running(given.source_lengths, 0, S)] = 12
    other[2][~running(given.lengths, 0, T)] = 7
    other[3][~running(given.lengths, 0, T)] = 7
    assert translator.loss(given).item() == translator.loss(Batch(*other)).item()


def test_dropout_acts_in_training_alone() -> None:
    net = Net(embedding=6, hidden=8, attend="emb+slice:3")
    _, given = made("revgru", "emb")
    translator = build(net, *WORDS)
    assert isinstance(translator, RewindingTranslator)
    losses = {translator.loss(given).item() for _ in range(3)}
    translator.eval()
    assert len(losses) == 3 and len({translator.loss(given).item() for _ in range(3)}) == 1


@pytest.mark.parametrize("model", ["revgru", "gru"])
def test_what_is_attended_to_is_dropped_sentence_by_sentence(model: str) -> None:
    rates, found = (0.0, 0.5), []
    for rate in rates:
        _, given = made(model, "emb")
        net = Net(model=model, embedding=6, hidden=8, attend="emb+slice:3", dropout=0.0, slice_dropout=rate)  # type: ignore[arg-type]
        translator = build(net, *WORDS)
        found.append({translator.loss(given).item() for _ in range(4)})
    assert [len(losses) for losses in found] == [1, 4]
    mask = translator.mask(given.source)
    assert mask is not None and mask.shape == (B, 6 + 3) and set(mask.unique().tolist()) == {0.0, 2.0}


def test_what_is_attended_to_is_read() -> None:
    of = partial(Attended.of, hidden=8)
    assert of("emb") == (True, 0) and of("slice:4") == (False, 4) and of("emb+slice:1") == (True, 1)
    assert of("full") == (False, None)


@pytest.mark.parametrize("text", ["", "emb+", "slice", "slice:0", "slice:5", "slice:-1", "full+emb", "emb+full", "x:3"])
def test_what_cannot_be_attended_to_is_named(text: str) -> None:
    with pytest.raises(Problem, match=r"--attend must be emb, slice:K, emb\+slice:K \(K from 1 to 4\) or full, got"):
        Attended.of(text, 8)
