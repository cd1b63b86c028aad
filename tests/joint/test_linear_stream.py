"""Delta-STN's streamed step gives the gradients of the same net with all its outputs, for every parameter.

Masks are made alike in both, from the rates alone, since streams draw theirs by generators of their own.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import revtune as rt
import revtune.penalties as rt_penalties
from revtune.joint import linear_stream
from revtune.reversible.kernel.native_tape import NativeTape
from revtune.reversible.kernel.reference import ReferenceTape
from revtune.tuning.tuner import bilevel
from tests.backends import on_reference
from tests.chunking import set_stack_chunk_steps
from tests.joint.test_streams import ROWS, STEPS, WIDTH, WORDS, Language, nets
from tests.stored import relative

BACKENDS = ("reference", "native")


@pytest.fixture(autouse=True)
def alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks that depend on shapes and rates alone, and the same weights however tests are dealt out."""
    torch.manual_seed(0)
    make_masks_alike(monkeypatch)


def make_masks_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have masks depend on shapes and rates alone, each step's on nothing of other steps."""

    def drop_mask(
        shape: Any, rate: Any, like: Tensor, generator: Any = None, *, rows: Any = None, room: Any = None
    ) -> Tensor:
        drawn = torch.rand(tuple(shape)[-2:], generator=torch.Generator().manual_seed(5)).to(like).expand(shape)
        kept = (drawn >= torch.as_tensor(rate)).to(like)
        return kept / (1 - torch.as_tensor(rate).to(like))

    for room in ("rev_layers", "embeddings"):
        monkeypatch.setattr(f"revtune.joint.{room}.drop_mask", drop_mask)


def tuned(rev: Any, dtype: torch.dtype, head: nn.Module, words: nn.Module, **options: Any) -> Any:
    """A self-tuning net under Delta-STN whose responses are not zero."""
    model = Language(rev, dtype, head, words)
    for name, rate in options.items():
        model.rnn.options = model.rnn.options._replace(**{name: rate})
    net: Any = rt.self_tuning(model, None if options else rt.Hyperparameters(a=rt.Rate(0.2)), batch_dim=1)
    torch.manual_seed(1)
    for name, parameter in net.named_parameters():
        if "response_s" in name:
            nn.init.normal_(parameter, std=0.2)
    return net


def summed(net: Any) -> Any:
    """The readout of a net."""
    own = isinstance(net.head, rt.LinearCrossEntropy)
    return net.head if own else rt.Readout(net.head, nn.CrossEntropyLoss(reduction="sum"))


def streamed(**more: Any) -> Any:
    """A function that says what is streamed."""

    def stream(net: Any, batch: Tensor, h: Any) -> dict[str, Any]:
        given = {"rnn": net.rnn, "inputs": batch[:-1], "targets": batch[1:], "encode": net.words}
        return {**given, "readout": summed(net), **more}

    return stream


def layered(lengths: Tensor | None) -> Any:
    """The losses of all outputs."""

    def losses(out: Tensor, batch: Tensor, h: Any = None) -> Tensor:
        each = F.cross_entropy(out.movedim(-1, 1), batch[1:], reduction="none")
        live = torch.ones_like(each) if lengths is None else (torch.arange(len(each))[:, None] < lengths).to(each)
        return (each * live).sum() / live.sum()

    return losses


def tokens() -> Tensor:
    """A batch, the same each time."""
    return torch.randint(WORDS, (STEPS + 1, ROWS), generator=torch.Generator().manual_seed(2))


def gradients(net: Any, method: str, level: str, batch: Any, **asked: Any) -> tuple[float, dict[str, Tensor | None]]:
    """The loss and the gradients of a step of a tuner."""
    net.hypers.centred = method == "delta"
    asked = {"stream": None, "train_loss": None, "valid_loss": None, "predict": None} | asked
    tuner = rt.Tuner(net, method=method, optimizer=lambda p: torch.optim.SGD(p, 0.1), **asked)  # type: ignore[arg-type]
    net.zero_grad()
    net.train()
    if level == "valid":
        loss, grads = bilevel.hypergradients(tuner.problem, batch, 1e-3)
        names = {id(p): name for name, p in net.named_parameters()}
        return float(loss), {names[id(p)]: grad for p, grad in grads.items()}
    step = {"delta": bilevel.delta, "stn": bilevel.stn}[method]
    loss = step(tuner.problem, batch, lambda loss: loss)
    return float(loss), {name: p.grad for name, p in net.named_parameters()}


def agree(
    net: Any, close: float, *, method: str = "delta", lengths: Tensor | None = None, resets: Tensor | None = None,
    **more: Any,
) -> None:  # fmt: skip
    """Gradients of a training step and of a validation step are alike."""
    more = more if lengths is None else {**more, "lengths": lengths}
    more = more if resets is None else {**more, "resets": resets}
    losses = layered(lengths)
    for level in ("train", "valid"):
        torch.manual_seed(3)
        loss, found = gradients(net, method, level, tokens(), stream=streamed(**more))
        torch.manual_seed(3)
        layers = {
            "train_loss": losses, "valid_loss": losses, "predict": lambda net, batch: net.logits(batch[:-1], resets),
        }  # fmt: skip
        whole, wanted = gradients(net, method, level, tokens(), **layers)
        assert loss == pytest.approx(whole, rel=close)
        for name, grad in found.items():
            other = wanted[name]
            if grad is None or other is None:
                assert not any(bool(one.any()) for one in (grad, other) if one is not None), name
            else:
                assert relative(grad, other) < close, (level, name)
        learnt = [grad for name, grad in found.items() if "response_w" in name and grad is not None]
        assert level == "valid" or all(bool(grad.any()) for grad in learnt)


@nets
@pytest.mark.parametrize("method", ["delta", "stn"])
@pytest.mark.parametrize("ragged", [False, True])
def test_a_streamed_step(rev: Any, method: str, ragged: bool, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_stack_chunk_steps(monkeypatch, 4)
    dtype = torch.float64 if backend == "reference" else torch.float32
    net = tuned(rev, dtype, nn.Linear(8, WORDS), nn.Embedding(WORDS, WIDTH))
    lengths = torch.tensor([11, 4, 7]) if ragged else None
    agree(net, 1e-10 if backend == "reference" else 5e-5, method=method, lengths=lengths)


@nets
@pytest.mark.parametrize("method", ["delta", "stn"])
def test_rows_that_begin_anew(rev: Any, method: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_stack_chunk_steps(monkeypatch, 4)
    native = backend == "native"
    net = tuned(rev, torch.float32 if native else torch.float64, nn.Linear(8, WORDS), nn.Embedding(WORDS, WIDTH))
    resets = torch.zeros(STEPS, ROWS, dtype=torch.bool)
    resets[[0, 3, 4, 9], [0, 1, 0, 2]] = True
    for more in ({}, {"lengths": torch.tensor([11, 4, 10])}, {"checkpoint_every": 6}):
        agree(net, 5e-5 if native else 1e-10, method=method, resets=resets, **more)


def test_a_reset_state_that_learns_is_refused_by_delta_stn() -> None:
    net = tuned(rt.RevGRU, torch.float32, nn.Linear(8, WORDS), nn.Embedding(WORDS, WIDTH))
    resets = torch.ones(STEPS, ROWS, dtype=torch.bool)
    anew = torch.zeros(2, 1, 8, requires_grad=True)
    with pytest.raises(ValueError, match="reset_state must require no gradient in Delta-STN's pass"):
        gradients(net, "delta", "train", tokens(), stream=streamed(resets=resets, reset_state=anew))


@nets
@pytest.mark.parametrize("method", ["delta", "stn"])
@pytest.mark.parametrize("ragged", [False, True])
def test_with_our_own_parts_and_all_dropouts(rev: Any, method: str, ragged: bool, backend: str) -> None:
    native = backend == "native"
    head, words = rt.LinearCrossEntropy(8, WORDS), rt.Embedding(WORDS, WIDTH, dropout=0.2)
    rates = {name: 0.3 for name in ("input_dropout", "hidden_dropout", "output_dropout", "weight_drop")}
    net = tuned(rev, torch.float32 if native else torch.float64, head, words, **rates)
    lengths = torch.tensor([11, 4, 7]) if ragged else None
    agree(net, 5e-5 if native else 1e-10, method=method, lengths=lengths)


@on_reference
@pytest.mark.parametrize("method", ["delta", "stn"])
@pytest.mark.parametrize("more", [{"checkpoint_every": 5}, {"max_memory": "3MB"}, {"reduction": "mean"}], ids=str)
def test_with_checkpoints_and_limits(method: str, more: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    if "max_memory" not in more:
        set_stack_chunk_steps(monkeypatch, 2)
    net = tuned(rt.RevLSTM, torch.float64, rt.LinearCrossEntropy(8, WORDS), rt.Embedding(WORDS, WIDTH))
    agree(net, 1e-10, method=method, **more)


@pytest.mark.parametrize("chunk", [1, 5, 23])
def test_any_chunk(chunk: int, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_stack_chunk_steps(monkeypatch, chunk)
    native = backend == "native"
    head = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Dropout(0.0), nn.Linear(8, WORDS))
    words = nn.Sequential(nn.Embedding(WORDS, WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH))
    net = tuned(rt.RevGRU, torch.float32 if native else torch.float64, head, words)
    agree(net, 5e-5 if native else 1e-10)


@on_reference
def test_a_tied_head_and_a_plain_embedding() -> None:
    words = rt.Embedding(WORDS, 8)
    words_plain: nn.Module = nn.Embedding(WORDS, WIDTH)
    net = tuned(rt.RevLSTM, torch.float64, rt.LinearCrossEntropy(8, WORDS, tie=words), words_plain)
    agree(net, 1e-10)


@nets
@pytest.mark.parametrize("method", ["delta", "stn"])
@pytest.mark.parametrize(("ragged", "chunk"), [(False, 3), (True, 1)])
def test_penalties_at_each_rows_own_coefficients(
    rev: Any, method: str, ragged: bool, chunk: int, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_stack_chunk_steps(monkeypatch, chunk)
    native, lengths = backend == "native", torch.tensor([11, 1, 7]) if ragged else None
    net = tuned(rev, torch.float32 if native else torch.float64, nn.Linear(8, WORDS), nn.Embedding(WORDS, WIDTH))
    net.hypers.centred = method == "delta"

    def stream(net: Any, batch: Tensor, h: Any) -> dict[str, Any]:
        given = {**streamed()(net, batch, h), "lengths": lengths}
        return given if h is None else {**given, "penalties": rt.ActivationPenalties(activation=h.a, temporal=3 * h.a)}

    def train_loss(out: Any, batch: Tensor, h: Any) -> Tensor:
        logits, y = out
        total, each = layered(lengths)(logits, batch), []
        for row in range(ROWS):
            mine = y[: len(y) if lengths is None else int(lengths[row]), row : row + 1]
            own = rt_penalties.activation_penalty(mine, h.a[row : row + 1], batch_dim=1)
            each.append(own + rt_penalties.temporal_penalty(mine, 3 * h.a[row : row + 1], batch_dim=1))
        return total + torch.cat(each)

    def predict(net: Any, batch: Tensor) -> Any:
        y, _ = net.rnn(net.words(batch[:-1]))
        return net.head(y), y

    loss, found = gradients(net, method, "train", tokens(), stream=stream)
    whole, wanted = gradients(
        net, method, "train", tokens(), train_loss=train_loss, valid_loss=train_loss, predict=predict
    )
    assert loss == pytest.approx(whole, rel=1e-6)
    for name, grad in found.items():
        other = wanted[name]
        assert (grad is None) == (other is None), name
        assert grad is None or other is None or relative(grad, other) < (5e-5 if native else 1e-10), name


@nets
@pytest.mark.parametrize("more", [{}, {"checkpoint_every": 5, "lengths": torch.tensor([11, 4, 7])}], ids=["", "cut"])
def test_an_outputs_tangent_that_is_kept_spares_its_way_back_and_changes_no_bit(
    rev: Any, more: dict[str, Any], backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_stack_chunk_steps(monkeypatch, 2)
    head, words = rt.LinearCrossEntropy(8, WORDS), rt.Embedding(WORDS, WIDTH, dropout=0.2)
    rates = {name: 0.3 for name in ("input_dropout", "hidden_dropout", "output_dropout", "weight_drop")}
    net = tuned(rev, torch.float32 if backend == "native" else torch.float64, head, words, **rates)
    kind: Any = NativeTape if backend == "native" else ReferenceTape
    tangent, run = kind.tangent, list[int]()

    def noted(tape: Any, x: Tensor, first: int, *given: Any) -> Any:
        run.append(first)
        return tangent(tape, x, first, *given)

    monkeypatch.setattr(kind, "tangent", noted)

    def stream(net: Any, batch: Tensor, h: Any) -> dict[str, Any]:
        penalties = rt.ActivationPenalties(activation=0.1, temporal=0.2)
        return {**streamed(**more)(net, batch, h), **({} if h is None else {"penalties": penalties})}

    found = []
    for kept in (linear_stream.KEPT, 0):
        monkeypatch.setattr(linear_stream, "KEPT", kept)
        torch.manual_seed(3)
        run.clear()
        found.append((gradients(net, "delta", "train", tokens(), stream=stream), len(run)))
    ((loss, kept_grads), fewer), ((other, grads), times) = found
    assert loss == other and fewer < times
    for name, grad in grads.items():
        own = kept_grads[name]
        assert (grad is None) == (own is None) and (grad is None or own is None or torch.equal(grad, own)), name
