"""A self-tuning net whose outputs are streamed, inside a tuner's passes: by STN as its layers, by Delta-STN refused."""

from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

import revtune as rt
from revtune.tuning.hypers.hyperparameters import Pass
from tests.backends import on_native
from tests.chunking import set_stack_chunk_steps
from tests.joint.test_streams import ROWS, STEPS, WORDS, nets, of_parts
from tests.stored import relative

BACKENDS = ("reference", "native")
LENGTHS = torch.tensor([11, 4, 7])


def outputs(net: Any, tokens: Tensor, *, streamed: bool, lengths: Tensor | None = None) -> Tensor:
    """Scores of all positions, zero at padding."""
    own = isinstance(net.head, rt.LinearCrossEntropy)
    if streamed:
        head = net.head.logits if own else net.head
        given: Tensor = rt.rewind_outputs(net.rnn, tokens, encode=net.words, readout=head, lengths=lengths)[0]
        return given
    scores: Tensor = net.logits(tokens)
    live = torch.ones(scores.shape[:2]) if lengths is None else torch.arange(STEPS)[:, None] < lengths
    return scores * live.unsqueeze(-1).to(scores)


def loss_of(scores: Tensor) -> Tensor:
    """Of pairs of steps that follow one another, each row's (B,)."""
    return (scores.diff(dim=0).square() * scores[1:].sigmoid()).sum((0, 2))


def tokens() -> Tensor:
    """Words of a batch."""
    return torch.randint(WORDS, (STEPS, ROWS), generator=torch.Generator().manual_seed(2))


@nets
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("training", [True, False])
def test_a_pass_is_that_of_layers(
    rev: Any, own: bool, lengths: Tensor | None, training: bool, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_stack_chunk_steps(monkeypatch, 4)
    net = of_parts(rev, own, backend).requires_grad_(training)
    d = torch.randn(ROWS, 2, generator=torch.Generator().manual_seed(3)).to(net.hypers.raw).requires_grad_()
    bound = Pass(ROWS, d, (net.hypers.raw + d).detach() if training else None, training=training)
    named = dict(net.named_parameters()) if training else {}
    found = []
    with net.hypers.bound(bound):
        for streamed in (True, False):
            loss = loss_of(outputs(net, tokens(), streamed=streamed, lengths=lengths)).sum()
            found.append((loss.detach(), torch.autograd.grad(loss, [*named.values(), d], allow_unused=True)))
    (one, ones), (other, others) = found
    close = 1e-12 if backend == "reference" else 2e-5
    assert relative(one, other) < close
    for name, a, b in zip([*named, "d"], ones, others, strict=True):
        assert (a is None) == (b is None) or not (a if b is None else b).any(), name
        assert a is None or b is None or relative(a, b) < close, name
    assert ones[-1].any()


def tuner_of(net: Any, method: Literal["stn", "delta"], *, streamed: bool) -> rt.Tuner:
    """A tuner whose prediction is all outputs."""
    net.hypers.centred = method == "delta"

    def train_loss(scores: Tensor, batch: Tensor, h: Any) -> Tensor:
        return loss_of(scores) * (1 + h.a + h.b) / STEPS

    return rt.Tuner(
        net, train_loss, lambda scores, batch: loss_of(scores).mean(), method=method,
        predict=lambda net, batch: outputs(net, batch, streamed=streamed),
        optimizer=lambda parameters: torch.optim.SGD(parameters, 0.01),
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore:the network's responses were changed")
@on_native
def test_steps_of_stn_are_those_of_layers(backend: str) -> None:
    numbers = []
    for streamed in (True, False):
        torch.manual_seed(6)
        net = of_parts(rt.RevLSTM, True, backend)
        tuner = tuner_of(net, "stn", streamed=streamed)
        torch.manual_seed(4)
        for _ in range(3):
            tuner.step(tokens(), tokens().flip(0))
        numbers.append([parameter.detach().clone() for parameter in net.parameters()])
    for one, other in zip(*numbers, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore:the network's responses were changed")
@on_native
def test_delta_stn_is_refused(backend: str) -> None:
    tuner = tuner_of(of_parts(rt.RevGRU, True, backend), "delta", streamed=True)
    with pytest.raises(ValueError, match="rewind_outputs: rnn tunes itself by Delta-STN.*use method=.stn."):
        tuner.step(tokens(), tokens())


def test_outside_of_a_pass_gradients_are_refused(backend: str) -> None:
    net = of_parts(rt.RevGRU, False, backend)
    with pytest.raises(ValueError, match="rewind_outputs: rnn tunes itself, and responses learn in a tuner's passes"):
        outputs(net, tokens(), streamed=True)
    with torch.no_grad():
        scores = outputs(net, tokens(), streamed=True)
        torch.testing.assert_close(scores, outputs(net, tokens(), streamed=False), rtol=1e-3, atol=1e-3)
    plain = rt.frozen(net)
    assert isinstance(plain, nn.Module) and outputs(plain, tokens(), streamed=True).requires_grad
