"""Losses for each example: penalties, label smoothing, mixup, and the norm of weights that respond."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from revtune.tuning.hypers.hyperparameters import Hyperparameters, Pass
from revtune.tuning.hypers.kinds import Positive, Rate
from revtune.tuning.regularizers.penalties import activation_penalty, mixup, smoothed_cross_entropy, temporal_penalty
from revtune.tuning.responses.layers import (
    ResponseConv1d,
    ResponseConv2d,
    ResponseConv3d,
    ResponseConvTranspose2d,
    ResponseEmbedding,
    ResponseLinear,
)
from revtune.tuning.responses.normalisation import (
    ResponseBatchNorm2d,
    ResponseGroupNorm,
    ResponseLayerNorm,
    ResponseRMSNorm,
)
from revtune.tuning.responses.recurrent import ResponseGRU, ResponseLSTM
from revtune.tuning.responses.responding import Responding
from revtune.tuning.responses.weight_norm import weight_norm2

KINDS: dict[type[nn.Module], type[Responding]] = {
    kind.plain: kind
    for kind in (
        ResponseLinear, ResponseConv1d, ResponseConv2d, ResponseConv3d, ResponseEmbedding, ResponseLayerNorm,
        ResponseConvTranspose2d, ResponseRMSNorm, ResponseGroupNorm, ResponseBatchNorm2d, ResponseLSTM, ResponseGRU,
    )
}  # fmt: skip


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("batch_dim", [0, 1])
def test_penalties_are_means_over_steps_and_units(batch_dim: int) -> None:
    h, c = torch.randn(4, 6, 3, dtype=torch.float64), torch.rand(4, dtype=torch.float64)
    laid = h.transpose(0, batch_dim)
    ar = torch.stack([c[i] * h[i].pow(2).mean() for i in range(4)])
    tar = torch.stack([c[i] * (h[i, 1:] - h[i, :-1]).pow(2).mean() for i in range(4)])
    assert torch.allclose(activation_penalty(laid, c, batch_dim=batch_dim), ar)
    assert torch.allclose(temporal_penalty(laid, c, batch_dim=batch_dim), tar)
    assert torch.allclose(activation_penalty(laid, 2.0, batch_dim=batch_dim), 2 * ar / c)
    assert torch.equal(
        temporal_penalty(laid.narrow(1 - batch_dim, 0, 1), c, batch_dim=batch_dim), torch.zeros(4).double()
    )


def test_penalties_differentiate_outputs_and_not_coefficients() -> None:
    h = torch.randn(3, 5, 2, dtype=torch.float64, requires_grad=True)
    c = torch.rand(3, dtype=torch.float64, requires_grad=True)
    for penalty in (activation_penalty, temporal_penalty):
        assert torch.autograd.gradcheck(lambda h, f=penalty: f(h, c.detach()), h)
        assert torch.autograd.grad(penalty(h, c).sum(), c, allow_unused=True)[0] is None


def test_penalties_of_half_precision_do_not_overflow() -> None:
    assert activation_penalty(torch.full((2, 3, 4), 1000.0, dtype=torch.float16), 1.0).tolist() == [1e6, 1e6]


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 4), (5, 7, 2, 3)])
def test_smoothing_of_each_example_is_torchs(shape: tuple[int, ...]) -> None:
    logits = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    targets, s = torch.randint(7, (5, *shape[2:])), torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0], dtype=torch.float64)
    if len(shape) > 2:
        targets[0, 0] = targets[2] = -100
    found = smoothed_cross_entropy(logits, targets, s)
    for i in range(5):
        args = (logits[i : i + 1], targets[i : i + 1])
        expected = F.cross_entropy(*args, label_smoothing=s[i].item()) if (args[1] >= 0).any() else torch.tensor(0.0)
        assert found[i].item() == pytest.approx(expected.item())
    assert found.shape == (5,)
    assert torch.autograd.gradcheck(lambda x: smoothed_cross_entropy(x, targets, s), logits)
    assert torch.equal(
        smoothed_cross_entropy(logits, targets, 0.1), smoothed_cross_entropy(logits, targets, s[1].expand(5))
    )


def test_mixup_mixes_by_the_weights_it_tells() -> None:
    x, y = torch.randn(64, 3, 2), torch.arange(64)
    mixed, (one, other), w = mixup(x, y, torch.full((64,), 0.5))
    across = w[:, None, None]
    assert torch.allclose(mixed, across * x[one] + (1 - across) * x[other], atol=1e-6)
    assert torch.equal(one, y) and sorted(other.tolist()) == y.tolist() and w.shape == (64,)


@pytest.mark.parametrize("a", [1e-3, 0.1, 1.0, 8.0])
def test_weights_of_mixup_are_beta_distributed(a: float) -> None:
    _, _, w = mixup(torch.zeros(40_000, 1), torch.zeros(40_000), a)
    assert w.isfinite().all() and (w >= 0).all() and (w <= 1).all()
    assert w.mean().item() == pytest.approx(0.5, abs=0.01)
    assert w.var().item() == pytest.approx(1 / (4 * (2 * a + 1)), rel=0.03)


def test_each_example_has_its_own_strength_and_0_mixes_nothing() -> None:
    strengths = torch.tensor([0.0, 1e3]).repeat_interleave(2000)
    _, _, w = mixup(torch.zeros(4000, 2), torch.zeros(4000), strengths)
    assert (w[:2000] == 1).all() and (w[2000:] - 0.5).abs().max() < 0.1


BAD: list[tuple[Callable[[], object], str]] = [
    (lambda: activation_penalty(torch.ones(2, 3, 4), -1.0), "coefficient must be at least 0, got -1"),
    (lambda: activation_penalty(torch.ones(2, 3, 4), torch.ones(3)), r"coefficient .* got shape \(3,\)"),
    (lambda: temporal_penalty(torch.ones(2, 3), 1.0), r"temporal_penalty wants \(B, T, H\), got \(2, 3\)"),
    (
        lambda: smoothed_cross_entropy(torch.ones(2, 3), torch.ones(3).long(), 0.1),
        r"targets must be of shape \(2,\) for these logits, got \(3,\)",
    ),
    (
        lambda: smoothed_cross_entropy(torch.ones(2, 3), torch.ones(2).long(), 1.1),
        r"smoothing must lie in 0\.\.1, got 1\.1",
    ),
    (lambda: mixup(torch.ones(2, 3), torch.ones(3), 1.0), "one target for each of 2 examples, got 3"),
    (lambda: mixup(torch.ones(2, 3).long(), torch.ones(2), 1.0), "floating-point examples, got torch.int64"),
    (lambda: mixup(torch.ones(2, 3), torch.ones(2), -1.0), "strength must be at least 0, got -1"),
]


@pytest.mark.parametrize(("call", "told"), BAD)
def test_bad_input_is_named(call: Callable[[], object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        call()


def with_responses(net: nn.Module, hypers: Hyperparameters) -> nn.Module:
    """A network in float64, its layers converted and with_responses at random."""
    net.double()
    hypers.double()
    for name, layer in net.named_modules():
        if type(layer) in KINDS:
            layer.__class__ = KINDS[type(layer)]
            layer.adopt(hypers, name, 0)
    for name, p in net.named_parameters():
        if "response_" in name:
            nn.init.normal_(p, 0, 0.3)
    return net


LAYERS = [
    nn.Linear(3, 4), nn.Linear(3, 4, bias=False), nn.Conv1d(2, 4, 3), nn.Conv2d(4, 6, 3, groups=2), nn.Conv3d(2, 3, 2),
    nn.ConvTranspose2d(4, 6, 2, groups=2), nn.Embedding(5, 3, padding_idx=1), nn.LayerNorm(4), nn.RMSNorm(4),
    nn.GroupNorm(2, 4), nn.BatchNorm2d(3),
    nn.LSTM(2, 3, bidirectional=True), nn.GRU(3, 2, num_layers=2), nn.GRU(3, 2, bias=False),
]  # fmt: skip


def hypers_of_two() -> Hyperparameters:
    return Hyperparameters(drop=Rate(0.1), decay=Positive(1e-3))


def brute(layer: nn.Module, parameters: dict[str, Tensor], d: Tensor) -> Tensor:
    """The norm of an explicit copy of every weight for every example."""
    total = torch.zeros(len(d), dtype=d.dtype)
    for name, own in parameters.items():
        kind, suffix = name[: name.index("_") if "_" in name else None], name[name.index("_") :] if "_" in name else ""
        if kind == "response":
            continue
        q = f"response_scale{suffix}" if kind == "weight" else f"response_shift{suffix.replace('_ih', '')}"
        s = d @ parameters[q].T if q in parameters else torch.zeros(len(d), len(own), dtype=d.dtype)
        second = parameters.get(f"response_weight{suffix}") if kind == "weight" else None
        if second is None:
            each = own + s
        elif isinstance(layer, nn.ConvTranspose2d):  # inputs and units stand group by group
            blocks = [own.chunk(layer.groups), second.chunk(layer.groups), s.chunk(layer.groups, 1)]
            each = torch.cat([a + c[:, None, :, None, None] * b for a, b, c in zip(*blocks, strict=True)], 1)
        elif isinstance(layer, nn.Embedding):
            each = own + s[:, None, :] * second
        else:
            each = own + s.view(*s.shape, *[1] * (own.dim() - 1)) * second
        total = total + each.square().flatten(1).sum(1)
    return total


@pytest.mark.parametrize("plain", LAYERS, ids=str)
def test_the_norm_and_its_gradients_are_those_of_copies(plain: nn.Module) -> None:
    hypers = hypers_of_two()
    layer, d = with_responses(copy.deepcopy(plain), hypers), torch.randn(5, 2, dtype=torch.float64)
    names, values = zip(*layer.named_parameters(), strict=True)
    with hypers.bound(Pass(5, d, None)):
        found = weight_norm2(layer)
    expected = brute(layer, dict(zip(names, values, strict=True)), d)
    assert found.shape == (5,) and torch.allclose(found, expected)
    weights = torch.randn(5, dtype=torch.float64)
    for a, b in zip(
        torch.autograd.grad(found @ weights, values), torch.autograd.grad(expected @ weights, values), strict=True
    ):
        assert torch.allclose(a, b)


@pytest.mark.parametrize("plain", LAYERS, ids=str)
def test_the_norm_passes_gradcheck(plain: nn.Module) -> None:
    hypers = hypers_of_two()
    layer = with_responses(copy.deepcopy(plain), hypers)
    names, values = zip(*layer.named_parameters(), strict=True)

    def norm(d: Tensor, *given: Tensor) -> Tensor:
        before = dict(layer._parameters)
        layer._parameters |= dict(zip(names, given, strict=True))
        try:
            with hypers.bound(Pass(3, d, None)):
                return weight_norm2(layer)
        finally:
            layer._parameters = before

    d = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(norm, (d, *values))


def whole() -> tuple[Any, Hyperparameters]:
    """A network with a tied readout, a layer without response, and its hyperparameters inside."""
    hypers = hypers_of_two()
    net: Any = nn.ModuleDict(
        {"words": nn.Embedding(7, 4), "hidden": nn.Linear(4, 4), "norm": nn.LayerNorm(4), "rest": nn.PReLU(4)}
    )
    with_responses(net, hypers)
    net["out"] = nn.Linear(4, 7, bias=False).double()
    net["out"].weight = net["words"].weight
    net["hidden"].hyperparameters = hypers
    return net, hypers


def test_a_network_counts_each_of_its_parameters_once() -> None:
    net, hypers = whole()
    d = torch.randn(5, 2, dtype=torch.float64)
    layers = [net["words"], net["hidden"], net["norm"]]
    expected = sum(brute(layer, dict(layer.named_parameters(recurse=False)), d) for layer in layers)
    with hypers.bound(Pass(5, d, None)):
        assert torch.allclose(weight_norm2(net), expected + net["rest"].weight.square().sum())


def test_where_responses_are_0_it_is_the_plain_norm() -> None:
    net, hypers = whole()
    own = [p for name, p in net.named_parameters() if "response_" not in name and "hyper" not in name]
    expected = torch.stack([p.square().sum() for p in own]).sum()
    assert torch.allclose(weight_norm2(net), expected) and weight_norm2(net).shape == ()
    with hypers.bound(Pass(3, None, hypers.raw.expand(3, -1))):
        assert torch.allclose(weight_norm2(net), expected.expand(3)) and weight_norm2(net).shape == (3,)
    plain = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2))
    assert weight_norm2(plain).item() == pytest.approx(sum(p.square().sum().item() for p in plain.parameters()))
    assert weight_norm2(nn.ReLU()).item() == 0


def test_outside_a_pass_stn_answers_at_the_current_values() -> None:
    net, hypers = whole()
    hypers.centred = False
    outside = weight_norm2(net)
    with hypers.bound(Pass(2, hypers.departure(hypers.raw.detach().expand(2, -1)), None)):
        assert outside.shape == () and torch.allclose(weight_norm2(net), outside.expand(2))


def test_autocast_leaves_the_norm_exact() -> None:
    net, hypers = whole()
    net.float(), hypers.float()
    with hypers.bound(Pass(5, torch.randn(5, 2), None)):
        expected = weight_norm2(net)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(weight_norm2(net), expected)


def test_a_layer_whose_parameters_have_other_names_is_refused() -> None:
    class Kernel(ResponseLinear):
        def __init__(self, hypers: Hyperparameters) -> None:
            super().__init__(3, 2)
            self.adopt(hypers, "kernel", 0)
            self.response_kernel = nn.Parameter(torch.ones(2, 3))

    with pytest.raises(TypeError, match="cannot tell what response_kernel of Kernel belong to"):
        weight_norm2(Kernel(Hyperparameters(decay=Positive(1.0))))
