"""Whole runs of a tuner that streams: the same as of layers, resumed to the last bit, whatever the threads and backend.

Where two runs are compared that draw differently, masks are made alike in both, from the rates alone.
"""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
from pathlib import Path
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


def tuner_of(net: Any, method: Any, **asked: Any) -> rt.Tuner:
    """A tuner of a net, which is made this method's."""
    net.hypers.centred = method == "delta"
    settings: dict[str, Any] = {"ratio": 2, "carry": True}
    settings |= {"optimizer": lambda p: torch.optim.SGD(p, 0.3, momentum=0.5), **asked}
    return rt.Tuner(net, method=method, **settings)


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


def run_on(folder: Path, rev: str, method: str, steps: int, dies_at: int | None = None) -> rt.Tuner:
    """Run, or go on with, a tuner that is saved after each step; killed at one, between its two levels, if asked."""
    ragged = streamed(lengths=torch.tensor([11, 1, 7]), checkpoint_every=5)

    def stream(net: Any, batch: Tensor, h: Any) -> Any:
        if h is None and tuner.steps == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return ragged(net, batch, h)

    torch.manual_seed(4)
    tuner, saved = tuner_of(language(getattr(rt, rev)), method, stream=stream), folder / "tuner.pt"
    if saved.exists():
        tuner.load_state_dict(torch.load(saved, weights_only=True))
    while tuner.steps < steps:
        run(tuner, tuner.steps, tuner.steps + 1)
        torch.save(tuner.state_dict(), folder / "partial.pt")
        (folder / "partial.pt").replace(saved)
    return tuner


@methods
@pytest.mark.parametrize("rev", ["RevGRU", "RevLSTM"])
@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_to_the_last_bit(rev: str, method: str, tmp_path: Path) -> None:
    (killed := tmp_path / "killed").mkdir()
    (whole := tmp_path / "whole").mkdir()
    code = f"import torch, pathlib\nfrom {__name__} import run_on\ntorch.set_num_threads(1)\n"
    code += f"run_on(pathlib.Path({str(killed)!r}), {rev!r}, {method!r}, 9, dies_at=6)"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    assert done.returncode == -signal.SIGKILL
    resumed, wanted = (run_on(folder, rev, method, 9) for folder in (killed, whole))
    assert resumed.valid_steps == wanted.valid_steps > 3
    numbers_wanted = numbers(wanted)
    for name, value in numbers(resumed).items():
        assert torch.equal(value, numbers_wanted[name]), name
    assert resumed.schedule() == wanted.schedule()


@methods
def test_threads_change_no_bit(method: str) -> None:
    """Not those of a step's loss and gradients; later on torch's own small product of departures may differ by one."""
    results: list[Any] = []
    before = torch.get_num_threads()
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


REFUSED: dict[str, tuple[Any, str]] = {
    "no dict": (lambda given, net: [1], "stream must return the arguments of rewind_loss, a dict, got list"),
    "unknown": (lambda given, net: {**given, "penalty": 1}, "but it gave penalty"),
    "missing": (lambda given, net: {"rnn": net.rnn}, "but it lacks inputs, targets, readout"),
    "another net": (
        lambda given, net: {**given, "rnn": rt.RevLSTM(WIDTH, 8)},
        "stream must give an rnn that is a module of the network, .* got a RevLSTM that is not",
    ),
    "sum": (lambda given, net: {**given, "reduction": "sum"}, 'reduction must be "mean" or "rows", .* got "sum"'),
    "state": (lambda given, net: {**given, "state": torch.zeros(2, ROWS, 8)}, "stream gave a state, which carry=True"),
    "both ways": (
        lambda given, net: vars(net.rnn).update(bidirectional=True) or given,
        "carry=True carries a state from batch to batch, where a bidirectional net cannot go on",
    ),
    "readout": (lambda given, net: {**given, "readout": 3}, "readout must be a module or a function, got int"),
    "encode": (lambda given, net: {**given, "encode": 3}, "encode must be a module or a function, got int"),
}


@methods
@pytest.mark.parametrize("case", REFUSED)
def test_what_a_stream_may_not_give(method: str, case: str) -> None:
    change, words = REFUSED[case]

    def stream(net: Any, batch: Tensor, h: Any) -> Any:
        return change(streamed()(net, batch, h), net)

    tuner = tuner_of(language(), method, stream=stream)
    before = numbers(tuner)
    with pytest.raises((TypeError, ValueError), match=words):
        run(tuner, 0, 1)
    assert all(torch.equal(value, before[name]) for name, value in numbers(tuner).items())


@methods
def test_hyperparameters_are_not_there_on_held_out_data(method: str) -> None:
    def stream(net: Any, batch: Tensor, h: Any) -> Any:
        return {**streamed()(net, batch, h), "penalties": rt.ActivationPenalties(activation=h.a)}

    net: Any = rt.self_tuning(
        Language(rt.RevGRU, torch.float32, nn.Linear(8, WORDS), nn.Embedding(WORDS, WIDTH)),
        rt.Hyperparameters(a=rt.Positive(1.0)), batch_dim=1,
    )  # fmt: skip
    tuner = tuner_of(net, method, stream=stream)
    tuner.train_step(batches()[0])
    with pytest.raises(ValueError, match="without regularizers on held-out data, where h is None, and it read 'a'"):
        tuner.valid_step(batches()[1])


def test_a_stream_takes_three_arguments() -> None:
    with pytest.raises(ValueError, match="stream must take a model, a batch and h, got one that takes"):
        tuner_of(language(), "stn", stream=lambda net, batch: {})


@pytest.mark.parametrize("what", ["inputs", "state"])
def test_delta_refuses_responses_outside_of_what_is_streamed(what: str) -> None:
    """Whose tangents would be lost; STN follows them by the gradient."""

    def stream(net: Any, batch: Tensor, h: Any) -> Any:
        given = {**streamed()(net, batch, h), "readout": net.head}
        if what == "inputs":
            return {**given, "inputs": net.words(batch[:-1]), "encode": None}
        with torch.no_grad():
            inputs = net.words(batch[:-1])  # without a gradient it is nothing that responses learn by
        return {**given, "state": tuple(net.rnn(inputs)[1])}

    losses = run(tuner_of(language(), "stn", stream=stream, carry=False), 0, 2)
    assert losses[1][1] is not None
    name = {"inputs": "words", "state": "rnn"}[what]
    with pytest.raises(ValueError, match=f"stream runs {name}, which responds to hyperparameters, outside"):
        run(tuner_of(language(), "delta", stream=stream, carry=False), 0, 1)


def test_delta_refuses_inputs_with_a_gradient() -> None:
    inputs = torch.randn(STEPS, ROWS, WIDTH, requires_grad=True)

    def stream(net: Any, batch: Tensor, h: Any) -> Any:
        return {**streamed()(net, batch, h), "inputs": inputs, "encode": None}

    net: Any = rt.self_tuning(
        Language(rt.RevGRU, torch.float32, nn.Linear(8, WORDS), nn.Embedding(WORDS, WIDTH)), batch_dim=1
    )
    with pytest.raises(ValueError, match="inputs must require no gradient in Delta-STN's pass for responses"):
        run(tuner_of(net, "delta", stream=stream), 0, 1)


def test_delta_wants_a_head_that_gives_a_tensor() -> None:
    def stream(net: Any, batch: Tensor, h: Any) -> Any:
        loss = nn.CrossEntropyLoss(reduction="sum")
        head: Any = lambda y: (net.head(y), 1)  # noqa: E731
        readout = rt.Readout(head, lambda out, targets: loss(out[0], targets))
        return {**streamed()(net, batch, h), "readout": readout}

    net: Any = rt.self_tuning(
        Language(rt.RevGRU, torch.float32, nn.Linear(8, WORDS), nn.Embedding(WORDS, WIDTH)), batch_dim=1
    )
    with pytest.raises(ValueError, match="head must return a tensor of floating-point numbers, got tuple"):
        run(tuner_of(net, "delta", stream=stream), 0, 1)


def test_a_net_that_tunes_itself_is_trained_by_a_tuner() -> None:
    net, tokens = language(), batches()[0]

    def loss() -> Tensor:
        return rt.rewind_loss(net.rnn, tokens[:-1], tokens[1:], encode=net.words, readout=net.head)[0]

    with pytest.raises(ValueError, match=r"trained by Tuner\(stream=\), or as rt.frozen\(net\) .* torch.no_grad\(\)"):
        loss()
    with torch.no_grad():
        assert loss().isfinite()
    with pytest.warns(UserWarning, match="rnn tunes itself and was called with gradients outside of a tuner's passes"):
        net.rnn(net.words(tokens[:-1]))[0].sum().backward()
    net.rnn(net.words(tokens[:-1]))  # said once
    net = rt.frozen(net)
    loss().backward()


@methods
def test_autocast(method: str) -> None:
    """Layers run in their own numbers, and a step is near the one without."""
    results = []
    for on in (False, True):
        torch.manual_seed(4)
        tuner = tuner_of(
            language(),
            method,
            stream=streamed(),
            autocast=lambda on=on: torch.autocast("cpu", torch.bfloat16, enabled=on),
        )
        results.append([train for train, _ in run(tuner, 0, 3)])
    assert results[0] == pytest.approx(results[1], rel=1e-2)


@methods
def test_a_readout_that_changes_a_weight_is_refused(method: str) -> None:
    """Also where it does so in Delta-STN's second pass alone."""
    net: Any = rt.self_tuning(
        Language(rt.RevGRU, torch.float32, nn.Linear(8, WORDS), nn.Embedding(WORDS, WIDTH)), batch_dim=1
    )
    armed: list[bool] = []

    def head(y: Tensor) -> Tensor:
        record = net.hypers.current is not None and net.hypers.current.record is not None
        if armed and (record or method == "stn"):
            with torch.no_grad():
                net.rnn.weight_hh_l0.mul_(1.001)
        return net.head(y)

    def stream(net: Any, batch: Tensor, h: Any) -> Any:
        return {**streamed()(net, batch, h), "readout": rt.Readout(head, nn.CrossEntropyLoss(reduction="sum"))}

    tuner = tuner_of(net, method, stream=stream)
    run(tuner, 0, 1)
    armed.append(True)
    with pytest.raises(rt.ReversalError, match="weight_hh_l0 .* was changed while rewind_loss ran"):
        run(tuner, 1, 2)


@pytest.mark.parametrize(
    ("factor", "deviation", "words"),
    [
        (15.0, 1e37, "how a recurrent net's states move with hyperparameters has no bound"),
        (25.0, 0.5, "the gradient of the weights is not finite; they are as before this step"),
    ],
)
def test_a_chaotic_net_changes_nothing(factor: float, deviation: float, words: str) -> None:
    """Tangents that overflow, and gradients that do."""
    torch.manual_seed(0)
    model = Language(rt.RevLSTM, torch.float32, rt.LinearCrossEntropy(8, WORDS), nn.Embedding(WORDS, WIDTH))
    with torch.no_grad():
        model.rnn.weight_hh_l0.mul_(factor)
        model.rnn.weight_hh_l1.mul_(factor)
    net = rt.self_tuning(model, batch_dim=1)
    for name, parameter in net.named_parameters():
        if "response_s" in name:
            nn.init.normal_(parameter, std=deviation)
    tuner = tuner_of(net, "delta", stream=streamed())
    before = numbers(tuner)
    with pytest.raises(rt.NonFiniteError, match=words):
        tuner.train_step(batches(steps=400)[0])
    assert all(torch.equal(value, before[name]) for name, value in numbers(tuner).items())
    assert tuner.steps == 0 and tuner.states == {"train": None, "valid": None}


MEASURED = """
import sys, torch, revtune as rt
from torch import nn
from revtune.program.bench.measuring import peak_of
torch.set_num_threads(1)
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.head = rt.Embedding(256, 256, dropout=0.1), rt.LinearCrossEntropy(256, 256)
        self.rnn = rt.RevLSTM(256, 256, 2, input_dropout=0.1, weight_drop=0.1)
def stream(net, batch, h):
    given = dict(rnn=net.rnn, inputs=batch[:-1], targets=batch[1:], encode=net.words, readout=net.head)
    return given | dict(max_memory="20MB" if len(batch) > 9 else None)
net = rt.self_tuning(Net(), batch_dim=1)
net.hypers.centred = True
tuner = rt.Tuner(net, method="delta", stream=stream, optimizer=lambda p: torch.optim.SGD(p, 0.3))
for _ in range(2):
    tuner.train_step(torch.randint(256, (9, 20)))
batch = torch.randint(256, (201, 20))
print(peak_of(lambda: tuner.train_step(batch), torch.device("cpu")) - sum(p.nbytes for p in net.parameters()))
"""


@pytest.mark.slow
def test_a_step_stays_below_a_limit_of_memory() -> None:
    """Its chunks are of one step there, before each of which the tangents of all states are kept."""
    done = subprocess.run([sys.executable, "-c", MEASURED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= 1.1 * 20e6
