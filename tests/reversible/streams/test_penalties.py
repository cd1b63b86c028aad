"""Penalties of a stream beside those of the layer's whole outputs, as `revtune.penalties` computes them."""

import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import revtune as rt
from revtune.penalties import activation_penalty, temporal_penalty
from revtune.reversible.layers.masks import BatchSpec
from revtune.reversible.layers.rnn import RevRNN
from revtune.reversible.streams import stream
from revtune.reversible.streams.memory_plan import MemoryPlan, plan
from revtune.reversible.streams.penalties import ChunkPenalties
from tests.backends import close, on_reference, real
from tests.chunking import set_chunk_steps
from tests.stored import relative

BACKENDS = ("reference", "native")
STEPS, ROWS, WIDTH, WORDS = 11, 3, 8, 9
AR, TAR = torch.tensor([0.7, 2.0, 0.0]), torch.tensor([0.5, 0.1, 3.0])
RAGGED = torch.tensor([11, 1, 7])
both = pytest.mark.parametrize("rev", [rt.RevGRU, rt.RevLSTM])


@pytest.fixture(autouse=True)
def _four_steps_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    set_chunk_steps(monkeypatch, 4)


class Step:
    """A net and a batch, streamed and with all its outputs."""

    def __init__(self, rev: Any, num_layers: int = 1, **options: Any) -> None:
        self.rnn = rev(5, WIDTH, num_layers, dtype=real(), **options)
        self.head = rt.LinearCrossEntropy(WIDTH, WORDS, dtype=real())
        self.x = torch.randn(STEPS, ROWS, 5, dtype=real(), requires_grad=True)
        self.targets = torch.randint(WORDS, (STEPS, ROWS))
        shape = (num_layers, ROWS, WIDTH)
        self.firsts = [torch.rand(shape, dtype=torch.float64).requires_grad_() for _ in self.rnn.cell.states]
        self.state: Any = tuple(self.firsts) if len(self.firsts) > 1 else self.firsts[0]
        self.tensors = [*self.rnn.parameters(), *self.head.parameters(), self.x, *self.firsts]
        self.mask: Tensor | None = None

    def stream(self, penalties: Any, **options: Any) -> Tensor:
        """The streamed loss."""
        x, targets = self.x, self.targets
        if self.rnn.batch_first:
            x, targets = x.transpose(0, 1), targets.t()
        given = {"readout": self.head, "state": self.state, "penalties": penalties} | options
        return rt.rewind_loss(self.rnn, x, targets, **given)[0]

    def layers(self, activation: Any, temporal: Any, lengths: Tensor | None = None, reduction: str = "mean") -> Tensor:
        """The same of all outputs, each row's by itself; no mask but that of outputs acts."""
        mask, self.mask, self.rnn.batch_first = self.mask, None, False
        raw = self.rnn(self.x, self.state)[0]
        y, self.mask = raw if mask is None else raw * mask, mask
        losses, penalties = [], []
        for b, steps in enumerate([STEPS] * ROWS if lengths is None else lengths.tolist()):
            own, below = y[:steps, b : b + 1], raw[:steps, b : b + 1]
            losses.append(F.cross_entropy(self.head.logits(own[:, 0]), self.targets[:steps, b], reduction="none"))
            a, c = (value[b : b + 1] if isinstance(value, Tensor) and value.dim() else value
                    for value in (activation, temporal))  # fmt: skip
            penalties.append(activation_penalty(own, a, batch_dim=1) + temporal_penalty(below, c, batch_dim=1))
        each = torch.cat(losses)
        if reduction == "mean":
            return each.mean() + torch.cat(penalties).mean()
        return each.sum() + torch.cat(penalties).sum()

    def drop_outputs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Have one fixed mask in the place of those that are drawn."""
        self.mask = torch.bernoulli(torch.full((ROWS, WIDTH), 0.7, dtype=real())) / 0.7

        def mask(net: RevRNN, name: str, shape: Any, like: Tensor | BatchSpec) -> Tensor | None:
            return self.mask if name == "output_dropout" else None

        monkeypatch.setattr(RevRNN, "mask", mask)


def agree(step: Step, activation: Any, temporal: Any, lengths: Tensor | None = None, **options: Any) -> None:
    """Loss and gradients are those of the whole outputs; without gradients the loss is the same."""
    penalties = rt.ActivationPenalties(activation=activation, temporal=temporal)
    loss = step.stream(penalties, lengths=lengths, **options)
    got = torch.autograd.grad(loss, step.tensors)
    with torch.no_grad():
        evaluated = step.stream(penalties, lengths=lengths, **options)
    wanted = step.layers(activation, temporal, lengths, options.get("reduction", "mean"))
    assert loss.dtype == real() and loss.item() == pytest.approx(wanted.item(), rel=close())
    assert evaluated.item() == pytest.approx(wanted.item(), rel=1e-6)
    for a, b in zip(got, torch.autograd.grad(wanted, step.tensors), strict=True):
        assert relative(a, b) < close()


@both
@pytest.mark.parametrize("lengths", [None, RAGGED])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("options", [{}, {"checkpoint_every": 5}, {"max_memory": "1200KB"}, {"reduction": "sum"}])
def test_penalties_are_those_of_whole_outputs(
    rev: Any, lengths: Tensor | None, masked: bool, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Step(rev, 2)
    if masked:
        step.drop_outputs(monkeypatch)
    agree(step, AR, TAR, lengths, **options)


@both
@pytest.mark.parametrize("chunk", [1, 2, 10, STEPS])
@pytest.mark.parametrize(("activation", "temporal"), [(2.0, 0.0), (0.0, 2.0), (torch.tensor(1), TAR.double())])
def test_chunks_of_any_length(
    rev: Any, chunk: int, activation: Any, temporal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_chunk_steps(monkeypatch, chunk)
    step = Step(rev, batch_first=True)
    penalties = rt.ActivationPenalties(activation=activation, temporal=temporal)
    loss = step.stream(penalties)
    got = torch.autograd.grad(loss, step.tensors)
    wanted = step.layers(activation, temporal)
    for a, b in zip((loss, *got), (wanted, *torch.autograd.grad(wanted, step.tensors)), strict=True):
        assert relative(a.detach(), b.detach()) < close()


@on_reference
def test_the_gradient_is_exact_to_the_last_digits() -> None:
    """Twelve digits in float64, over chunks and checkpoints, where a border's gradient left out would cost two."""
    step = Step(rt.RevLSTM, 2)
    penalties = rt.ActivationPenalties(activation=AR, temporal=1e3 * TAR)
    got = torch.autograd.grad(step.stream(penalties, checkpoint_every=5), step.tensors)
    for a, b in zip(got, torch.autograd.grad(step.layers(AR, 1e3 * TAR), step.tensors), strict=True):
        assert relative(a, b) < 1e-12


@both
@pytest.mark.parametrize("penalties", [None, rt.ActivationPenalties()])
def test_without_penalties_no_bit_changes(rev: Any, penalties: Any) -> None:
    step = Step(rev, 2)
    found = [
        [loss.detach(), *torch.autograd.grad(loss, step.tensors)]
        for loss in (step.stream(None, lengths=RAGGED), step.stream(penalties, lengths=RAGGED))
    ]
    assert all(map(torch.equal, *found))


@both
def test_the_step_before_a_chunk_has_the_numbers_of_outputs(rev: Any) -> None:
    """The tape's present state, rounded as it rounds outputs."""
    step, seen = Step(rev), list[tuple[Tensor, Tensor | None]]()

    class Noting(ChunkPenalties):
        def gradient(self, y: Tensor, raw: Tensor, before: Tensor | None, first: int) -> Any:
            seen.append((raw.clone(), before))
            return super().gradient(y, raw, before, first)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "ChunkPenalties", Noting)
        step.stream(rt.ActivationPenalties(temporal=1.0))
    assert [len(raw) for raw, _ in seen] == [3, 4, 4] and seen[-1][1] is None
    for (_, before), (raw, _) in zip(seen[:-1], seen[1:], strict=True):
        assert before is not None and torch.equal(before, raw[-1])


@both
def test_a_readout_of_ones_own_that_writes_to_what_it_is_given(rev: Any) -> None:
    step = Step(rev)

    def summed(y: Tensor, targets: Tensor) -> Tensor:
        y += 0.0
        loss = F.cross_entropy(step.head.logits(y), targets, reduction="sum")
        y.detach().zero_()
        return loss

    penalties = rt.ActivationPenalties(activation=AR, temporal=TAR)
    with torch.no_grad():
        assert step.stream(penalties, readout=summed).item() == pytest.approx(step.layers(AR, TAR).item(), rel=1e-6)


def test_a_readout_that_loses_nothing_leaves_the_penalties() -> None:
    step = Step(rt.RevGRU)
    loss = step.stream(rt.ActivationPenalties(activation=AR, temporal=TAR), readout=lambda y, targets: (0 * y).sum())
    nothing = step.stream(None, readout=lambda y, targets: (0 * y).sum())
    wanted = step.layers(AR, TAR) - step.layers(0.0, 0.0)
    assert loss.item() - nothing.item() == pytest.approx(wanted.item(), rel=1e-6)
    got = torch.autograd.grad(loss, [step.rnn.weight_hh_l0])[0]
    assert relative(got, torch.autograd.grad(wanted, [step.rnn.weight_hh_l0])[0]) < close()


def test_coefficients_are_kept_as_they_are_now_and_get_no_gradient() -> None:
    step, alpha = Step(rt.RevGRU), torch.ones(ROWS, requires_grad=True)
    penalties = rt.ActivationPenalties(activation=alpha)
    with torch.no_grad():
        alpha.fill_(7.0)
    loss = step.stream(penalties)
    loss.backward()
    assert alpha.grad is None and loss.item() == pytest.approx(step.layers(1.0, 0.0).item(), rel=1e-6)


@pytest.mark.parametrize("name", ["activation", "temporal"])
@pytest.mark.parametrize(
    ("value", "told"),
    [
        (-1.0, "-1.0"),
        (math.inf, "inf"),
        (math.nan, "nan"),
        (True, "True"),
        ("2", "'2'"),
        (None, "None"),
        (torch.tensor([1.0, -2.0, 3.0]), "-2"),
        (torch.tensor([1.0, math.nan, 3.0]), "nan"),
        (torch.tensor(math.inf), "inf"),
        (torch.ones(2, 2), r"torch.float32 of shape \(2, 2\)"),
        (torch.ones(2, dtype=torch.bool), "torch.bool"),
    ],
)
def test_what_is_no_coefficient_is_refused(name: str, value: Any, told: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must be a number, or a tensor \(B,\) .* and finite, got {told}"):
        rt.ActivationPenalties(**{name: value})


def test_what_does_not_fit_the_batch_is_refused() -> None:
    step = Step(rt.RevGRU)
    with pytest.raises(ValueError, match=r"^temporal must be one number, or \(3,\) for each row, got \(2,\)"):
        step.stream(rt.ActivationPenalties(temporal=torch.ones(2)))
    with pytest.raises(ValueError, match="^penalties must be an ActivationPenalties or None, got float"):
        step.stream(0.5)


def test_memory_for_penalties_is_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    rnn, head = rt.RevGRU(5, 64, dtype=real()), rt.LinearCrossEntropy(64, WORDS, dtype=real())
    x, targets = torch.randn(400, ROWS, 5, dtype=real()), torch.randint(WORDS, (400, ROWS))
    made: list[MemoryPlan] = []

    def noted(*args: Any, **kwargs: Any) -> MemoryPlan:
        made.append(plan(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(stream, "plan", noted)
    for penalties in (None, rt.ActivationPenalties(activation=1.0)):
        rt.rewind_loss(rnn, x, targets, readout=head, penalties=penalties, max_memory="2500KB")
    assert made[1].chunk < made[0].chunk


def test_penalties_are_saved_and_shown() -> None:
    penalties = rt.ActivationPenalties(activation=2, temporal=torch.ones(2))
    assert repr(penalties) == "ActivationPenalties(activation=2.0, temporal=tensor([1., 1.]))"
    again = pickle.loads(pickle.dumps(penalties))
    assert again.activation == 2.0 and torch.equal(again.temporal, torch.ones(2))


def test_a_module_between_net_and_loss_reads_outputs_under_their_mask() -> None:
    """Drawn masks: what the readout reads is what is penalized, in training and in evaluation."""
    step, read = Step(rt.RevGRU, output_dropout=0.5), list[Tensor]()
    linear = nn.Linear(WIDTH, WORDS, dtype=real())

    def summed(y: Tensor, targets: Tensor) -> Tensor:
        read.append(y.detach().clone())
        return 1e-12 * F.cross_entropy(linear(y), targets, reduction="sum")

    for mode in (torch.enable_grad, torch.no_grad):
        with mode():
            read.clear()
            step.stream(None, readout=summed)  # the first call tries the readout
            read.clear()
            loss = step.stream(rt.ActivationPenalties(activation=1.0), readout=summed)
        assert loss.item() == pytest.approx(torch.cat(read).square().mean().item(), rel=1e-6)
