"""What a mean loss divides by is never guessed where positions do not all count alike."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import revtune as rt
from revtune.reversible.streams import trials
from tests.chunking import set_stack_chunk_steps

WORDS, STEPS, ROWS = 11, 50, 3
Readout = Callable[[Tensor, Tensor], Tensor]


@pytest.fixture(autouse=True)
def _chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    set_stack_chunk_steps(monkeypatch, 8)
    trials._counted.clear()


class Whole(nn.Module):
    """A readout of a user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.head = rt.LinearCrossEntropy(8, WORDS, ignore_index=0)

    def forward(self, y: Tensor, targets: Tensor) -> Tensor:
        loss: Tensor = self.head(y, targets)
        return loss


class Parts:
    def __init__(self) -> None:
        self.rnn, self.words, self.linear = rt.RevGRU(6, 8), nn.Embedding(WORDS, 6), nn.Linear(8, WORDS)
        self.ids = torch.randint(WORDS, (STEPS, ROWS))
        self.whole = Whole()
        self.whole.head.weight, self.whole.head.bias = self.linear.weight, self.linear.bias

    def lose(self, readout: Any, targets: Tensor, **options: Any) -> Tensor:
        return rt.rewind_loss(self.rnn, self.ids, targets, encode=self.words, readout=readout, **options)[0]

    def targets(self) -> Tensor:
        """Some to leave out, but none of the last chunk, which is tried."""
        targets = self.ids.clamp(min=1)
        targets[3:20] = 0
        return targets


def leaving_out(parts: Parts) -> dict[str, Readout]:
    linear, options = parts.linear, dict[str, Any](reduction="sum", ignore_index=0)
    module = nn.CrossEntropyLoss(reduction="sum", ignore_index=0)
    return {
        "cross_entropy": lambda y, t: F.cross_entropy(linear(y), t, **options),
        "each": lambda y, t: F.cross_entropy(linear(y), t, reduction="none", ignore_index=0).sum(),
        "nll_loss": lambda y, t: F.nll_loss(linear(y).log_softmax(-1), t, **options),
        "2d": lambda y, t: F.cross_entropy(linear(y).t()[None, :, :, None], t[None, :, None], **options),
        "module": lambda y, t: module(linear(y), t),
        "head": lambda y, t: parts.whole.head(y, t),
        "a module around the head": parts.whole,
    }


KINDS = list(leaving_out(Parts()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_a_readout_that_leaves_targets_out_needs_a_normaliser(kind: str, mode: Any) -> None:
    parts = Parts()
    readout, targets = leaving_out(parts)[kind], parts.targets()
    right = parts.lose(parts.whole.head, targets).item()
    with mode():
        for _ in range(2):  # the first time it is tried, then it is known
            with pytest.raises(ValueError, match=r"leaves out targets that are 0 .*write normalizer=lambda targets"):
                parts.lose(readout, targets)
        counted = parts.lose(readout, targets, normalizer=lambda t: int((t != 0).sum())).item()
        over_all = parts.lose(readout, targets, normalizer=len).item()
    assert counted == pytest.approx(right)
    assert over_all == pytest.approx(right * float((targets != 0).double().mean()))


@pytest.mark.parametrize(("normalizer", "got"), [
    ("mean", "'mean'"), (lambda targets: None, "None"), (lambda targets: targets, r"a tensor \(\d+,\)"),
    (lambda targets: "3", "'3'"), ([2.0], r"\[2.0\]"), (-1.5, "-1.5"), (float("inf"), "inf"),
    (torch.tensor(0.0), "tensor"),
])  # fmt: skip
def test_a_normalizer_that_is_no_positive_number_is_told(normalizer: Any, got: str) -> None:
    parts = Parts()
    with pytest.raises(ValueError, match=f"normalizer must be, or return, a positive number, .* got {got}"):
        parts.lose(parts.whole.head, parts.targets(), normalizer=normalizer)


def test_what_is_left_out_in_a_later_batch_is_seen() -> None:
    parts = Parts()
    readout = leaving_out(parts)["cross_entropy"]
    parts.lose(readout, parts.ids.clamp(min=1)).backward()
    with pytest.raises(ValueError, match="leaves out targets"):
        parts.lose(readout, parts.targets())
    assert parts.lose(readout, parts.targets(), reduction="sum").isfinite()


def test_padding_is_not_left_out() -> None:
    parts, targets = Parts(), Parts().ids.clamp(min=1)
    targets[40:, 1] = 0
    readout, lengths = leaving_out(parts)["cross_entropy"], torch.tensor([50, 40, 50])
    with pytest.raises(ValueError, match="leaves out targets"):
        parts.lose(readout, targets)
    got, right = (parts.lose(loss, targets, lengths=lengths).item() for loss in (readout, parts.whole.head))
    assert got == pytest.approx(right)


def test_targets_that_a_readout_computes_are_seen_where_it_is_tried() -> None:
    parts, targets = Parts(), Parts().ids.clamp(min=1)
    targets[-1] = 0
    with pytest.raises(ValueError, match="leaves out targets that are -100"):
        parts.lose(lambda y, t: F.cross_entropy(parts.linear(y), t.masked_fill(t == 0, -100), reduction="sum"), targets)


def test_weights_need_a_normaliser() -> None:
    parts = Parts()
    weight, ones = torch.rand(WORDS), torch.ones(WORDS)

    def of_classes(weight: Tensor) -> Readout:
        return lambda y, t: F.cross_entropy(parts.linear(y), t, weight, reduction="sum")

    squares: Any = F.mse_loss  # whose weight the stubs do not know

    def of_positions(y: Tensor, targets: Tensor) -> Tensor:
        loss: Tensor = squares(y[:, 0], targets.float(), reduction="sum", weight=(targets > 0).float())
        return loss

    with pytest.raises(ValueError, match=r"weighs its classes .*float\(weight\[targets\].sum"):
        parts.lose(of_classes(weight), parts.ids)
    with pytest.raises(ValueError, match=r"weighs its positions"):
        parts.lose(of_positions, parts.ids)
    logits = parts.linear(parts.rnn(parts.words(parts.ids))[0]).flatten(0, 1)
    wanted = F.cross_entropy(logits, parts.ids.flatten(), weight).item()
    got = parts.lose(of_classes(weight), parts.ids, normalizer=lambda t: float(weight[t].sum()))
    assert got.item() == pytest.approx(wanted, rel=1e-5)
    trials._counted.clear()
    parts.lose(of_classes(ones), parts.ids).backward()


def test_probabilities_all_count() -> None:
    parts = Parts()

    def readout(y: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(parts.linear(y), F.one_hot(targets, WORDS).float(), reduction="sum")

    with torch.inference_mode():
        assert parts.lose(readout, parts.ids).isfinite()
