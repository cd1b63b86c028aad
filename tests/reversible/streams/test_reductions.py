"""`reduction="rows"`: each row's loss, whose mean is the mean loss, with the mean's gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import revtune as rt
from revtune.penalties import activation_penalty, temporal_penalty
from revtune.reversible.streams import blocks, stream, trials
from revtune.reversible.streams.attention import Attention, AttentionReadout, numbered
from revtune.reversible.streams.memory_plan import MemoryPlan
from tests.backends import close, real
from tests.chunking import set_chunk_steps
from tests.stored import relative

BACKENDS = ("reference", "native")
STEPS, ROWS, WIDTH, WORDS = 11, 3, 8, 9
RAGGED = torch.tensor([11, 1, 7])
both = pytest.mark.parametrize("rev", [rt.RevGRU, rt.RevLSTM])
modes = pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])


@pytest.fixture(autouse=True)
def _four_steps_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    set_chunk_steps(monkeypatch, 4)
    trials._counted.clear()


class Step:
    """A net and a batch."""

    def __init__(self, rev: Any = rt.RevGRU, **head: Any) -> None:
        self.words, self.rnn = nn.Embedding(WORDS, 5, dtype=real()), rev(5, WIDTH, 2, dtype=real())
        self.head = rt.LinearCrossEntropy(WIDTH, WORDS, dtype=real(), **head)
        self.ids, self.targets = torch.randint(WORDS, (STEPS, ROWS)), torch.randint(WORDS, (STEPS, ROWS))
        self.parameters = [*self.words.parameters(), *self.rnn.parameters(), *self.head.parameters()]

    def lose(self, reduction: Any = "rows", **options: Any) -> Tensor:
        """The streamed loss."""
        ids, targets = self.ids, options.pop("targets", self.targets)
        if self.rnn.batch_first:
            ids, targets = ids.t(), targets.transpose(0, 1)
        given = {"readout": self.head} | options
        return rt.rewind_loss(self.rnn, ids, targets, encode=self.words, reduction=reduction, **given)[0]

    def gradients(self, loss: Tensor) -> list[Tensor]:
        """Of all parameters; the graph stays."""
        return list(torch.autograd.grad(loss, self.parameters, retain_graph=True))

    def of_rows(self, lengths: Tensor | None = None) -> Tensor:
        """Each row's summed loss, of all outputs at once."""
        head = self.head
        y, self.rnn.batch_first = self.rnn(self.words(self.ids))[0], False
        losses = F.cross_entropy(
            head.logits(y).movedim(-1, 1), self.targets, reduction="none", weight=head.class_weights,
            ignore_index=head.ignore_index, label_smoothing=head.label_smoothing,
        )  # fmt: skip
        live = torch.arange(STEPS)[:, None] < (torch.full((ROWS,), STEPS) if lengths is None else lengths)
        return (losses * live).sum(0)


@both
@pytest.mark.parametrize("lengths", [None, RAGGED])
@pytest.mark.parametrize("options", [{}, {"checkpoint_every": 5}, {"normalizer": 7.0}, {"max_memory": "1200KB"}])
@pytest.mark.parametrize(
    "head", [{}, {"ignore_index": 2}, {"label_smoothing": 0.1, "class_weights": torch.arange(1.0, 1 + WORDS)}]
)
def test_the_mean_of_rows_is_the_mean_and_has_its_gradients(
    rev: Any, lengths: Tensor | None, options: dict[str, Any], head: dict[str, Any]
) -> None:
    step = Step(rev, **head)
    losses, mean = step.lose(lengths=lengths, **options), step.lose("mean", lengths=lengths, **options)
    assert losses.shape == (ROWS,) and losses.dtype == real()
    assert losses.mean().item() == pytest.approx(mean.item(), rel=1e-6)
    assert all(map(torch.equal, step.gradients(losses.mean()), step.gradients(mean)))
    summed = step.of_rows(lengths)
    assert relative(losses.detach(), (summed * mean.detach() * ROWS / summed.sum()).detach()) < close()
    with torch.no_grad():
        assert relative(step.lose(lengths=lengths, **options), losses.detach()) < 1e-6


def own(head: rt.LinearCrossEntropy, reduction: str) -> Any:
    return lambda y, targets: F.cross_entropy(head.logits(y), targets, reduction=reduction)


@both
@pytest.mark.parametrize("lengths", [None, RAGGED])
@pytest.mark.parametrize("batch_first", [False, True])
def test_a_readout_of_ones_own_tells_the_losses_of_positions(
    rev: Any, lengths: Tensor | None, batch_first: bool
) -> None:
    step = Step(rev)
    step.rnn.batch_first = batch_first
    losses = step.lose(lengths=lengths, readout=own(step.head, "none"))
    mean = step.lose("mean", lengths=lengths, readout=own(step.head, "sum"))
    with torch.no_grad():
        evaluated = step.lose(lengths=lengths, readout=own(step.head, "none"))
    step.rnn.batch_first = False
    wanted = step.of_rows(lengths) * ROWS / (STEPS * ROWS if lengths is None else int(lengths.sum()))
    assert relative(losses.detach(), wanted.detach()) < close() and relative(evaluated, wanted.detach()) < 1e-5
    assert all(map(torch.equal, step.gradients(losses.mean()), step.gradients(mean)))


def test_any_multiple_of_the_mean_goes_back() -> None:
    step = Step()
    losses = step.lose()
    mean = step.gradients(losses.mean())
    for loss, factor in ((losses.sum(), ROWS), (5.0 * losses.mean(), 5), (-losses.sum() / 2, -ROWS / 2)):
        for got, wanted in zip(step.gradients(loss), mean, strict=True):
            assert relative(got, factor * wanted) < 1e-6
    losses.mean().backward()
    for parameter, wanted in zip(step.parameters, mean, strict=True):
        assert parameter.grad is not None and torch.equal(parameter.grad, wanted)
    with pytest.raises(RuntimeError, match="backward a second time"):
        losses.mean().backward()


@pytest.mark.parametrize("rows", [1, 41, 49])
def test_the_gradient_of_the_mean_is_exact_with_any_number_of_rows(rows: int) -> None:
    """1 / 41 times 41 is not 1 in float32."""
    step = Step()
    step.ids, step.targets = torch.randint(WORDS, (5, rows)), torch.randint(WORDS, (5, rows))
    assert all(map(torch.equal, step.gradients(step.lose().mean()), step.gradients(step.lose("mean"))))


@pytest.mark.parametrize("weigh", [lambda x: x[0], lambda x: x @ torch.arange(3.0).to(x), lambda x: x.square().sum()])
def test_rows_cannot_be_weighed_afterwards(weigh: Any) -> None:
    losses = Step().lose()
    with pytest.raises(ValueError, match="rows cannot be weighed afterwards, got .* weigh the losses of positions in"):
        weigh(losses).backward()


@both
@pytest.mark.parametrize("lengths", [None, torch.tensor([40, 7, 33])])
def test_in_blocks(rev: Any, lengths: Tensor | None, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Step(rev)
    step.ids, step.targets = torch.randint(WORDS, (40, ROWS)), torch.randint(WORDS, (40, ROWS))
    found = []
    for budget in (1, 2**40):
        monkeypatch.setattr(blocks, "FEWEST_POSITIONS", 6)
        monkeypatch.setattr(stream, "plan", lambda *_, budget=budget, **__: MemoryPlan(20, 40, block_bytes=budget))
        losses = step.lose(lengths=lengths, readout=own(step.head, "none"))
        found.append((losses.detach(), *step.gradients(losses.mean())))
    for one, other in zip(*found, strict=True):
        assert relative(one, other) < close()


@modes
@pytest.mark.parametrize("lengths", [None, RAGGED])
def test_a_readout_that_attends(mode: Any, lengths: Tensor | None) -> None:
    step, attention = Step(), Attention(WIDTH, 4).to(real())
    kept = torch.randn(6, ROWS, 4, dtype=real())
    readout = AttentionReadout(
        attention, lambda rows, kept: kept[:, rows].transpose(0, 1), torch.tensor([6, 2, 4]), step.head
    )
    step.parameters += attention.parameters()
    given = {"readout": readout, "targets": numbered(step.targets), "context": [kept], "lengths": lengths}
    with mode():
        losses, mean = step.lose(**given), step.lose("mean", **given)
        assert losses.mean().item() == pytest.approx(mean.item(), rel=1e-6)
        if losses.requires_grad:
            assert all(map(torch.equal, step.gradients(losses.mean()), step.gradients(mean)))
        wanted = []
        for b in range(ROWS):
            alone = numbered(step.targets)
            alone[..., 0] = torch.where(torch.arange(ROWS) == b, alone[..., 0], -100)
            wanted.append(step.lose("sum", **(given | {"targets": alone})) * losses.mean() * ROWS)
        total = step.lose("sum", **given)
    assert relative(losses.detach(), (torch.stack(wanted) / total).detach()) < close()


@modes
@pytest.mark.parametrize("lengths", [None, RAGGED])
def test_each_row_has_its_own_penalties(mode: Any, lengths: Tensor | None) -> None:
    step, ar, tar = Step(), torch.tensor([1.0, 0.0, 3.0]), torch.tensor([0.0, 2.0, 1.0])
    penalties = rt.ActivationPenalties(activation=ar, temporal=tar)
    with mode():
        losses, mean = (step.lose(kind, penalties=penalties, lengths=lengths) for kind in ("rows", "mean"))
        assert losses.mean().item() == pytest.approx(mean.item(), rel=1e-6)
        added = losses - step.lose(lengths=lengths)
        if losses.requires_grad:
            assert all(map(torch.equal, step.gradients(losses.mean()), step.gradients(mean)))
        y, _ = step.rnn(step.words(step.ids))
    for b, steps in enumerate([STEPS] * ROWS if lengths is None else lengths.tolist()):
        alone = y[:steps, b : b + 1]
        wanted = activation_penalty(alone, ar[b], batch_dim=1) + temporal_penalty(alone, tar[b], batch_dim=1)
        assert added[b].item() == pytest.approx(wanted.item(), rel=1e-5, abs=1e-6)


@modes
def test_a_readout_must_tell_each_position(mode: Any) -> None:
    step = Step()
    inside = nn.Sequential(nn.Identity(), nn.Linear(WIDTH, WORDS, dtype=real()))
    told = r'^with reduction="rows", readout\(y, targets\) must return the losses of its positions, \(\d+,\), got'
    for readout, given in (
        (own(step.head, "sum"), r"shape \(\)"),
        (lambda y, targets: own(step.head, "none")(y, targets)[:, None], r"shape \(\d+, 1\)"),
        (lambda y, targets: step.head(inside[0](y), targets), r"shape \(\); .* must be the readout itself"),
        (lambda y, targets: 2.0, "float"),
    ):
        with mode(), pytest.raises(ValueError, match=f"{told} {given}"):
            step.lose(readout=readout)


@modes
@pytest.mark.parametrize("wrong", ["order", "spread"])
def test_losses_in_another_order_or_of_other_positions_are_refused(mode: Any, wrong: str) -> None:
    """Their sum is right, so that nothing else would tell."""
    step = Step()

    def readout(y: Tensor, targets: Tensor) -> Tensor:
        losses = own(step.head, "none")(y, targets)
        return losses.flip(0) if wrong == "order" else losses.mean().expand(len(losses))

    step.lose("sum", readout=lambda y, targets: readout(y, targets).sum())
    with mode(), pytest.raises(ValueError, match="losses of its positions in their order, each of one position alone"):
        step.lose(readout=readout)


def test_what_was_tried_for_rows_is_tried_for_the_mean_again() -> None:
    step = Step()
    each = own(step.head, "none")
    step.lose(readout=each)
    with pytest.raises(ValueError, match="must return the summed loss of its positions, one number, got"):
        step.lose("mean", readout=each)


def test_targets_that_are_left_out_want_a_normaliser() -> None:
    step = Step()

    def readout(y: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(step.head.logits(y), targets, reduction="none", ignore_index=2)

    with pytest.raises(ValueError, match="leaves out targets that are 2 .*write normalizer="):
        step.lose(readout=readout)
    losses = step.lose(readout=readout, normalizer=lambda targets: int((targets != 2).sum()))
    step.head.ignore_index = 2
    assert relative(losses.detach(), step.lose().detach()) < 1e-6


def test_another_reduction_is_refused() -> None:
    with pytest.raises(ValueError, match='reduction must be "mean", "sum" or "rows", got \'none\''):
        Step().lose("none")
