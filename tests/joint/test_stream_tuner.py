"""Whole runs of a tuner that streams: the same as of layers, resumed to the last bit, whatever the threads and backend.

Where two runs are compared that draw differently, masks are made alike in both, from the rates alone.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import revtune as rt
from tests.chunking import set_stack_chunk_steps
from tests.joint.test_linear_stream import layered, make_masks_alike, streamed, tuned
from tests.joint.test_streams import ROWS, STEPS, WIDTH, WORDS, Language, nets

methods = pytest.mark.parametrize("method", ["delta", "stn"])


@pytest.fixture
def alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks that depend on shapes and rates alone."""
    make_masks_alike(monkeypatch)


def batches(steps: int = STEPS, rows: int = ROWS, count: int = 10) -> list[Tensor]:
    """Batches of words."""
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(WORDS, (steps + 1, rows), generator=generator) for _ in range(count)]


def tuner_of(net: Any, method: str, **asked: Any) -> rt.Tuner:
    """A tuner of a net, which is made this method's."""
    net.hypers.centred = method == "delta"
    asked = {"ratio": 2, "carry": True, "optimizer": lambda p: torch.optim.SGD(p, 0.3, momentum=0.5)} | asked
    return rt.Tuner(net, method=method, **asked)


def run(tuner: rt.Tuner, first: int, last: int, data: list[Tensor] | None = None) -> list[Any]:
    """The losses of some steps."""
    data = batches() if data is None else data
    return [tuner.step(data[step % 7], data[7 + step % 3]) for step in range(first, last)]


def numbers(tuner: rt.Tuner) -> dict[str, Tensor]:
    """All that a run has moved."""
    return {name: p.detach().clone() for name, p in tuner.model.named_parameters()}


RATES = {"input_dropout": 0.2, "hidden_dropout": 0.3, "output_dropout": 0.1, "weight_drop": 0.2}


@methods
@pytest.mark.parametrize(("rev", "own"), [(rt.RevGRU, True), (rt.RevLSTM, False)])
@pytest.mark.usefixtures("alike")
def test_a_run_is_that_of_layers(rev: Any, method: str, own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    set_stack_chunk_steps(monkeypatch, 2)
    data = batches(steps=5)

    def made() -> Any:
        torch.manual_seed(6)
        head = rt.LinearCrossEntropy(8, WORDS) if own else nn.Linear(8, WORDS)
        words = rt.Embedding(WORDS, WIDTH, dropout=0.2) if own else nn.Embedding(WORDS, WIDTH)
        return tuned(rev, torch.float64, head, words, **RATES)

    def predict(net: Any, batch: Tensor, state: Any) -> Any:
        y, last = net.rnn(net.words(batch[:-1]), state)
        return net.head.logits(y) if own else net.head(y), last

    losses = layered(None)
    streams = tuner_of(made(), method, stream=streamed())
    layers = tuner_of(made(), method, predict=predict, train_loss=losses, valid_loss=losses)
    found, wanted = run(streams, 0, 6, data), run(layers, 0, 6, data)
    assert streams.valid_steps == 3
    for (train, valid), (train_too, valid_too) in zip(found, wanted, strict=True):
        assert train == pytest.approx(train_too, rel=1e-8)
        assert valid == (None if valid_too is None else pytest.approx(valid_too, rel=1e-8))
    others = numbers(layers)
    for name, value in numbers(streams).items():
        assert torch.allclose(value, others[name], rtol=0, atol=1e-8), name
    assert streams.values() == pytest.approx(layers.values(), rel=1e-8)
    assert streams.hypers.scales() == pytest.approx(layers.hypers.scales(), rel=1e-8)


def language(rev: Any = rt.RevLSTM, **options: Any) -> Any:
    """A self-tuning net with all its dropouts, float32, always the same."""
    torch.manual_seed(6)
    model = Language(rev, torch.float32, rt.LinearCrossEntropy(8, WORDS), rt.Embedding(WORDS, WIDTH, dropout=0.2))
    model.rnn = rev(WIDTH, 8, num_layers=2, dropout=0.2, **RATES | options)
    return rt.self_tuning(model, batch_dim=1)


@nets
@methods
def test_a_run_goes_on_to_the_last_bit(rev: Any, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_stack_chunk_steps(monkeypatch, 4)
    torch.manual_seed(4)
    tuner = tuner_of(language(rev), method, stream=streamed(), accumulate=2)
    run(tuner, 0, 5)
    saved = copy.deepcopy(tuner.state_dict())
    wanted, numbers_wanted = run(tuner, 5, 9), numbers(tuner)
    torch.manual_seed(99)
    other = tuner_of(language(rev), method, stream=streamed(), accumulate=2)
    other.load_state_dict(saved)
    assert run(other, 5, 9) == wanted
    for name, value in numbers(other).items():
        assert torch.equal(value, numbers_wanted[name]), name
    assert other.schedule() == tuner.schedule()


@methods
def test_threads_change_no_bit(method: str) -> None:
    """Not those of a step's loss and gradients; later on torch's own small product of departures may differ by one."""
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            torch.manual_seed(4)
            tuner, data = tuner_of(language(), method, stream=streamed()), batches(steps=70, rows=5)
            first = (run(tuner, 0, 1, data), numbers(tuner))
            results.append((*first, run(tuner, 1, 4, data), numbers(tuner)))
    finally:
        torch.set_num_threads(before)
    (loss, first, losses, last), (loss_too, first_too, losses_too, last_too) = results
    assert loss == loss_too
    assert all(torch.equal(value, first_too[name]) for name, value in first.items())
    assert [train for train, _ in losses] == pytest.approx([train for train, _ in losses_too], rel=1e-6)
    assert all(torch.allclose(value, last_too[name], rtol=0, atol=1e-6) for name, value in last.items())


@methods
@pytest.mark.parametrize(
    ("rev", "more"), [(rt.RevLSTM, {"checkpoint_every": 5}), (rt.RevGRU, {"max_memory": "3MB"})], ids=str
)
@pytest.mark.usefixtures("alike")
def test_backends_agree(rev: Any, method: str, more: dict[str, Any]) -> None:
    lengths, results = torch.tensor([11, 1, 7]), []
    for backend in ("native", "reference"):
        torch.manual_seed(4)
        net = language(rev, backend=backend)
        tuner = tuner_of(net, method, stream=streamed(lengths=lengths, **more))
        results.append((run(tuner, 0, 3), numbers(tuner)))
    (losses, found), (others, wanted) = results
    for one, other in zip(losses, others, strict=True):
        assert one[0] == pytest.approx(other[0], abs=1e-4)
    for name, value in found.items():
        assert torch.allclose(value, wanted[name], rtol=0, atol=1e-4), name
