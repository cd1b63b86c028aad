"""What networks and losses are made of, by both methods: it runs, with exact responses, or the first step says why not.

A network that runs is compared, in float64, with finite differences of the network that responds.
"""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

import revtune as rt
from revtune.tuning.hypers.hyperparameters import Pass
from revtune.tuning.responses.linearized import second_pass
from revtune.tuning.trees import tensors
from revtune.tuning.tuner.bilevel import linearized_prediction, uncompiled
from revtune.tuning.tuner.tuner import Tuner

B = 6
Function = Callable[[Any, Tensor], Any]


class Net(nn.Module):
    """Two layers that respond, and a function of them."""

    def __init__(self, function: Function, inner: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.drop, self.last = nn.Linear(8, 12), nn.Dropout(0.2), nn.Linear(12, 4)
        self.inner, self.function = inner, function

    def hidden(self, x: Tensor) -> Tensor:
        return self.drop(torch.tanh(self.first(x)))

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


class Halved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x / 2

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] / 2


class HalvedForward(Halved):
    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        return tangents[0] / 2


class Activated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.layer(x))


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(Activated().double())


def last(function: Callable[[Tensor], Any]) -> Callable[[], Net]:
    return lambda: Net(lambda net, x: function(net.last(net.hidden(x))))


def middle(function: Callable[[Tensor], Tensor]) -> Callable[[], Net]:
    return lambda: Net(lambda net, x: net.last(function(net.hidden(x))))


def around(inner: Callable[[], nn.Module], recurrent: bool = False) -> Callable[[], Net]:
    def run(net: Any, x: Tensor) -> Tensor:
        h = net.hidden(x)
        return net.last(net.inner(h[:, None])[0][:, -1] if recurrent else net.inner(h))

    return lambda: Net(run, inner())


def in_place(h: Tensor) -> Tensor:
    h = h.clone()
    h[:, 0] += 1
    h[:, 1:3].mul_(2)
    out = h.new_zeros(h.shape)
    out[:, :6] = h[:, :6]
    return out


def without_gradients(context: Callable[[], Any]) -> Callable[[], Net]:
    def run(net: Any, x: Tensor) -> Tensor:
        with context():
            gate = net.first(x).sigmoid()
        return net.last(net.hidden(x) * gate.clone())

    return lambda: Net(run)


def attended(net: Any, x: Tensor) -> Tensor:
    h = net.hidden(x)[:, None].repeat(1, 5, 1)[:, None]
    return net.last(F.scaled_dot_product_attention(h, h, h, is_causal=True)[:, 0].mean(1))


def checkpointed(net: Any, x: Tensor) -> Tensor:
    return net.last(checkpoint(net.hidden, x, use_reentrant=False))


def gru() -> nn.Module:
    return nn.GRU(12, 12, batch_first=True)


def outer(y: Tensor) -> Tensor:
    return torch.eye(4, dtype=y.dtype) * 3 + y[:, :, None] * y[:, None]


def scanned(h: Tensor) -> Tensor:
    weights = {"ih": torch.ones(36, 12, dtype=h.dtype), "hh": torch.ones(36, 6, dtype=h.dtype)}
    return rt.scan(rt.rev_gru(), h[None], weights=weights)[0][0]


RUNS: dict[str, Callable[[], Net]] = {
    "log_softmax": last(lambda y: y.log_softmax(-1)),
    "solve": last(lambda y: torch.linalg.solve(outer(y), y)),
    "cholesky": last(lambda y: torch.linalg.cholesky(outer(y)).diagonal(dim1=1, dim2=2)),
    "eigenvalues": last(lambda y: torch.linalg.eigvalsh(outer(y) + torch.arange(4.0, dtype=y.dtype).diag())),
    "matrix exponential": last(lambda y: torch.matrix_exp(outer(y) / 9)[:, 0]),
    "fft within": middle(lambda h: torch.fft.irfft(torch.fft.rfft(h) * 1j, n=12)),
    "complex prediction": last(torch.fft.rfft),
    "complex and real prediction": last(lambda y: (y, torch.fft.rfft(y))),
    "a function with jvp": middle(HalvedForward.apply),
    "in place": middle(in_place),
    "sorted and scattered": middle(lambda h: torch.zeros_like(h).scatter_add(1, h.argsort(1), h.sort(1)[0])),
    "scripted": around(scripted),
    "compiled": around(lambda: torch.compile(Activated(), backend="eager")),  # type: ignore[arg-type, return-value]
    "weight_norm": around(lambda: nn.utils.parametrizations.weight_norm(nn.Linear(12, 12))),
    "nn.GRU": around(gru, recurrent=True),
    "nn.RNN": around(lambda: nn.RNN(12, 12, batch_first=True), recurrent=True),
    "attention": lambda: Net(attended),
    "vmap": middle(torch.func.vmap(torch.tanh)),
}

STOPPED: dict[str, Callable[[], Net]] = {
    "no_grad": without_gradients(torch.no_grad),
    "inference_mode": without_gradients(torch.inference_mode),
}
"""Finite differences do not tell what is a constant here."""

FORWARD = r'^{} of .* cannot be differentiated forward, as Delta-STN does in its second pass; use method="stn"'
REFUSED: dict[str, tuple[Callable[[], Net], str]] = {
    "cdist": (last(lambda y: torch.cdist(y, torch.eye(4, dtype=y.dtype))), FORWARD.format("_cdist_forward")),
    "a function without jvp": (middle(Halved.apply), FORWARD.format("Halved") + ", or give it a jvp"),
    "sparse product": (
        middle(lambda h: torch.sparse.mm(torch.eye(12, dtype=h.dtype).to_sparse(), h.t()).t()),
        FORWARD.format("_sparse_addmm"),
    ),
    "scan": (middle(scanned), FORWARD.format("an operation")),
    "its own gradient": (middle(torch.func.grad(lambda h: h.square().sum())), "^the network differentiates itself"),
    "a distribution": (
        last(lambda y: torch.distributions.Normal(y, 1.0)),
        "^a prediction must be a tensor, .* got Normal",
    ),
    "a distribution beside": (
        last(lambda y: (y, torch.distributions.Normal(y, 1.0))),
        "^the training loss reads tensors of the network that are not in its prediction",
    ),
}


def tuner_of(net: Net, method: Any) -> Tuner:
    def loss(out: Any, batch: Any, h: Any = None) -> Tensor:
        if isinstance(out, tuple) and isinstance(out[1], torch.distributions.Normal):
            out = out[1]
        parts = [out.mean] if isinstance(out, torch.distributions.Normal) else tensors(out)
        return torch.stack([(y.abs() - 1).square().flatten(1).mean(1) for y in parts]).sum(0)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*has no response")
        tuned = rt.self_tuning(net.double(), leave=["inner"] if isinstance(net.inner, torch.jit.ScriptModule) else ())
    return Tuner(tuned, loss, lambda out, batch: loss(out, batch), method=method, ratio=1,
                 optimizer=lambda groups: torch.optim.SGD(groups, 0.05))  # fmt: skip


def batch(seed: int) -> tuple[Tensor]:
    return (torch.randn(B, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)),)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch.compile's own
@pytest.mark.parametrize("method", ["delta", "stn"])
@pytest.mark.parametrize(
    "made", [*RUNS.values(), *STOPPED.values(), lambda: Net(checkpointed)], ids=[*RUNS, *STOPPED, "checkpoint"]
)
def test_it_runs_by_both_methods(made: Callable[[], Net], method: str) -> None:
    torch.manual_seed(0)
    tuner = tuner_of(made(), method)
    before = tuner.values()
    losses = [tuner.step(batch(k), batch(9))[0] for k in range(12)]
    assert torch.tensor(losses).isfinite().all() and tuner.values() != before and tuner.unread == []


@pytest.mark.parametrize("made", RUNS.values(), ids=RUNS)
def test_its_responses_and_their_gradients_are_those_of_finite_differences(made: Callable[[], Net]) -> None:
    """Of <cotangent, f(e d)> for small e, whose part that is odd in e is what a linear prediction has."""
    torch.manual_seed(0)
    tuner = tuner_of(made(), "delta")
    for k in range(2):
        tuner.step(batch(k), batch(9))
    (x,), hypers, (_, added) = batch(3), tuner.hypers, tuner.problem.parameters()
    for name, p in tuner.model.named_parameters():
        if name.rpartition(".")[2].startswith(("response_scale", "response_shift")):
            nn.init.normal_(p, 0, 0.2)
    raw = hypers.perturbed(B).detach()
    d, step = hypers.departure(raw), 1e-5

    def responding(scale: float) -> list[Tensor]:
        torch.manual_seed(5)
        with hypers.bound(Pass(B, d * scale, raw, rows=tuner.problem.rows)):
            return tensors(tuner.model(x))

    with sdpa_kernel(SDPBackend.MATH), uncompiled():
        torch.manual_seed(5)
        with second_pass():
            out, linear = linearized_prediction(tuner.problem, (x,), raw, d)
        cotangents = [torch.randn_like(y) for y in tensors(out)]
        plus, minus = responding(step), responding(-step)
        for y, at, high, low in zip(tensors(out), tensors(linear), plus, minus, strict=True):
            torch.testing.assert_close(at - y, (high - low) / (2 * step), rtol=1e-6, atol=1e-8)
        found, *sides = (
            torch.autograd.grad(ys, added, cotangents, allow_unused=True, materialize_grads=True)
            for ys in (tensors(out), plus, minus)
        )
    for grad, high, low in zip(found, *sides, strict=True):
        torch.testing.assert_close(grad, (high - low) / (2 * step), rtol=1e-5, atol=1e-6)
    assert any(grad.abs().max() > 1e-3 for grad in found)


@pytest.mark.parametrize(("made", "told"), REFUSED.values(), ids=REFUSED)
def test_what_delta_cannot_do_is_told_in_the_first_step_and_stn_does_it(made: Callable[[], Net], told: str) -> None:
    torch.manual_seed(0)
    tuner = tuner_of(made(), "delta")
    with pytest.raises((NotImplementedError, ValueError, TypeError), match=told):
        tuner.train_step(batch(0))
    assert tuner.steps == 0
    tuner = tuner_of(made(), "stn")
    assert all(torch.tensor(tuner.step(batch(k), batch(9))).isfinite().all() for k in range(4))


@pytest.mark.parametrize("made", STOPPED.values(), ids=STOPPED)
def test_what_is_under_no_gradient_is_a_constant(made: Callable[[], Net]) -> None:
    """As what is detached is."""

    def detached(net: Any, x: Tensor) -> Any:
        return net.last(net.hidden(x) * net.first(x).sigmoid().detach())

    found = []
    for one in (made, lambda: Net(detached)):
        torch.manual_seed(0)
        tuner = tuner_of(one(), "delta")
        for k in range(3):
            tuner.step(batch(k), batch(9))
        found.append(list(tuner.model.parameters()))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)
