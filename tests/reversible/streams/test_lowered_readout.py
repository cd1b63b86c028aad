"""A LinearCrossEntropy whose factors are read with fewer bits: near float32's loss, and the same streamed or not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import revtune as rt
from revtune.reversible.kernel.lowered_matmuls import Precision
from tests.chunking import set_stack_chunk_steps
from tests.stored import relative

WORDS, WIDTH, STEPS, ROWS = 11, 8, 6, 4
APART = {"bfloat16": (1e-4, 1e-2), "float16": (1e-5, 1e-3)}
"""How far the farthest of a loss and its gradients is from float32's, relatively: more than this and less than that."""


def head_of(precision: Precision | None, **options: Any) -> rt.LinearCrossEntropy:
    torch.manual_seed(0)
    return rt.LinearCrossEntropy(WIDTH, WORDS, precision=precision, **options)


@pytest.mark.parametrize("precision", APART)
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.2, "ignore_index": 3}, {"bias": False}])
def test_loss_and_gradients_are_near_those_of_float32(precision: Precision, options: dict[str, Any]) -> None:
    y, targets = torch.randn(40, WIDTH), torch.randint(WORDS, (40,))

    def found(which: Precision | None) -> list[torch.Tensor]:
        head, leaf = head_of(which, **options), y.clone().requires_grad_()
        loss = head(leaf, targets)
        (loss / 40).backward()
        grads = [tensor.grad for tensor in (leaf, *head.parameters()) if tensor.grad is not None]
        return [loss.detach(), head.losses(y, targets).sum(), *grads]

    pairs = list(zip(found(precision), found(None), strict=True))
    least, most = APART[precision]
    assert least < max(relative(*pair) for pair in pairs) < most


STREAMED: dict[str, Callable[[rt.LinearCrossEntropy], dict[str, Any]]] = {
    "head": lambda head: {"readout": head},
    "function": lambda head: {"readout": lambda y, targets: head(y, targets), "normalizer": STEPS * ROWS},
    "lengths": lambda head: {"readout": head, "lengths": torch.tensor([6, 1, 3, 4])},
    "rows": lambda head: {"readout": head, "reduction": "rows"},
    "checkpoints": lambda head: {"readout": head, "checkpoint_every": 2},
}


@pytest.mark.parametrize("how", STREAMED)
def test_a_stream_gives_the_same(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs have the same bits either way, so that they are rounded to the same numbers."""
    set_stack_chunk_steps(monkeypatch, 2)
    words, rnn, head = nn.Embedding(WORDS, WIDTH), rt.RevGRU(WIDTH, WIDTH), head_of("bfloat16")
    tokens, parameters = torch.randint(WORDS, (STEPS + 1, ROWS)), [*words.parameters(), *rnn.parameters()]
    parameters += head.parameters()
    given = STREAMED[how](head)
    loss, _ = rt.rewind_loss(rnn, tokens[:-1], tokens[1:], encode=words, **given)
    y, lengths = rnn(words(tokens[:-1]))[0], given.get("lengths", torch.full((ROWS,), STEPS))
    live = torch.arange(STEPS)[:, None] < lengths
    wanted = head(y[live], tokens[1:][live]) / live.sum()
    assert relative(loss.mean().detach(), wanted.detach()) < 1e-6
    grads, expected = (torch.autograd.grad(one, parameters) for one in (loss.mean(), wanted))
    assert all(relative(got, want) < 1e-5 for got, want in zip(grads, expected, strict=True))


def test_autocast_beside_it_changes_nothing() -> None:
    head, y, targets = head_of("float16"), torch.randn(9, WIDTH), torch.randint(WORDS, (9,))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head(y, targets), head_of("float16")(y, targets))
    assert "precision='float16'" in repr(head) and "precision" not in repr(head_of(None))


def test_what_does_not_go_together_is_refused() -> None:
    head, rnn, x = head_of("bfloat16"), rt.RevGRU(WIDTH, WIDTH), torch.randn(STEPS, ROWS, WIDTH)
    with pytest.raises(ValueError, match="rewind_loss: max_memory counts no lowered copies .* must be None, got 'bf"):
        rt.rewind_loss(rnn, x, torch.zeros(STEPS, ROWS, dtype=torch.long), readout=head, max_memory="9MB")
    with pytest.raises(ValueError, match="precision must be"):
        rt.LinearCrossEntropy(WIDTH, WORDS, precision="half")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="lowers products of float32, got torch.float64"):
        head.double()(x[0].double(), torch.zeros(ROWS, dtype=torch.long))


def test_a_lowered_readout_responds_to_nothing() -> None:
    net = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(0.1))
    net.add_module("head", head_of("bfloat16"))
    tuned: Any = rt.self_tuning(net)
    assert tuned.conversion.left["head"] == "its products are read in bfloat16, and a response's are float32's"
