"""Forward mode, torch.func's transforms and batches of gradients: exact, or refused in a sentence."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import revtune as rt
from revtune.reversible.kernel import backend as native
from tests.backends import on_native

BACKENDS = ("reference", "native")

X, TARGETS = torch.linspace(-1, 1, 30).view(5, 2, 3), torch.zeros(5, 2, dtype=torch.int64)
WEIGHTS = {"ih": torch.full((12, 3), 0.2), "hh": torch.full((12, 2), 0.3)}


def layer(x: Tensor) -> Tensor:
    return LAYER(x)[0].square().sum()


def last(x: Tensor) -> Tensor:
    return LAST(x)[0].square().sum()


def scanned(x: Tensor) -> Tensor:
    return rt.scan(rt.rev_gru(), x, weights=WEIGHTS)[0].square().sum()


def streamed(x: Tensor) -> Tensor:
    return rt.rewind_loss(LAYER, x, TARGETS, readout=HEAD)[0]


def encoded(x: Tensor) -> Tensor:
    return rt.rewind_loss(LAYER, X, TARGETS, encode=lambda chunk: chunk * x.sum(), readout=HEAD)[0]


def read_out(x: Tensor) -> Tensor:
    return rt.rewind_loss(LAYER, X, TARGETS, readout=lambda y, _: y.sum() * x.sum())[0]


def head(x: Tensor) -> Tensor:
    return HEAD(torch.ones(5, 2, 4) * x.sum(), TARGETS)


torch.manual_seed(0)
LAYER, LAST, HEAD = rt.RevLSTM(3, 4), rt.RevGRU(3, 4, output="last"), rt.LinearCrossEntropy(4, 6)
TRANSFORMS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "grad": (lambda run: torch.func.grad(run)(X), "torch.func.grad, vjp and jacrev"),
    "vjp": (lambda run: torch.func.vjp(run, X), "torch.func.grad, vjp and jacrev"),
    "jacrev": (lambda run: torch.func.jacrev(run)(X), "torch.func.grad, vjp and jacrev"),
    "hessian": (lambda run: torch.func.hessian(run)(X), "forward-mode"),
    "jvp": (lambda run: torch.func.jvp(run, (X,), (X,)), "forward-mode"),
    "jacfwd": (lambda run: torch.func.jacfwd(run)(X), "forward-mode"),
    "vmap": (lambda run: torch.func.vmap(run)(torch.stack([X, X])), "torch.func.vmap here"),
}


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("run", [layer, last, scanned, streamed, encoded, read_out, head])
def test_transforms_are_refused(run: Callable[[Tensor], Tensor]) -> None:
    runs_under_vmap = run is scanned and native.backend() == "native"
    random_first = run in (encoded, read_out)
    for name, (transform, words) in TRANSFORMS.items():
        if name != "vmap" or not (runs_under_vmap or random_first):
            with pytest.raises(RuntimeError, match=f"^revtune does not support {words}"):
                transform(run)


@on_native
@pytest.mark.filterwarnings("ignore:.*batching rule:UserWarning")
def test_the_kernel_runs_under_vmap_example_by_example() -> None:
    gru = rt.RevGRU(3, 4, num_layers=2)
    ways: list[Callable[[Tensor], Tensor]] = [lambda x: gru(x)[0].square().sum(), scanned]
    for run in ways:
        x = torch.stack([X, X.flip(0)]).requires_grad_()
        together, alone = torch.func.vmap(run)(x), torch.stack([run(one) for one in x])
        assert torch.equal(together, alone)
        grads = [torch.autograd.grad(way.sum(), x)[0] for way in (together, alone)]
        assert torch.equal(*grads)


@on_native
@pytest.mark.filterwarnings("ignore:.*batching rule:UserWarning")
def test_lstms_run_under_vmap_without_gradients_alone() -> None:
    """What they forget takes as many words as their gates make, other ones for each example."""
    x = torch.randn(3, 50, 2, 3)
    with torch.no_grad():
        assert torch.equal(torch.func.vmap(layer)(x), torch.stack([layer(one) for one in x]))
    with pytest.raises(RuntimeError, match="does not support torch.func.vmap here"):
        torch.func.vmap(layer)(x)


def batches(run: Callable[[Tensor], Tensor]) -> Tensor:
    x = X.clone().requires_grad_()
    return torch.autograd.grad(run(x) * torch.ones(2), x, torch.eye(2), is_grads_batched=True)[0]


@pytest.mark.parametrize("run", [layer, last, scanned, streamed, head])
@pytest.mark.filterwarnings("ignore:.*batching rule:UserWarning")
def test_batches_of_gradients_are_those_alone_or_refused(run: Callable[[Tensor], Tensor]) -> None:
    if run in (layer, scanned) and native.backend() == "native":
        x = X.clone().requires_grad_()
        (alone,) = torch.autograd.grad(run(x), x)
        assert torch.equal(batches(run), torch.stack([alone, alone]))
    else:
        with pytest.raises(RuntimeError, match="^revtune does not support batches of gradients here"):
            batches(run)
