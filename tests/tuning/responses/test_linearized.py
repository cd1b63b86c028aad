"""The linearisation by hand is torch.func.jvp's, and so is its gradient."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from revtune.tuning.hypers.hyperparameters import Hyperparameters, Pass
from revtune.tuning.regularizers import images as regularize_images
from revtune.tuning.regularizers.augment import holes_in
from revtune.tuning.regularizers.dropouts import TunedLockedDropout, TunedNoise
from revtune.tuning.regularizers.images import TunedColourJitter, TunedCutout
from revtune.tuning.regularizers.regularizer import TunedRegularizer
from revtune.tuning.responses.linearized import ResponseRecord
from revtune.tuning.responses.registered import register_response
from tests.stored import relative
from tests.tuned_nets import adopt, at, convolutional, two, with_responses


def by_hand(net: nn.Module, hypers: Hyperparameters, x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """The output at d = 0 with its graph, and J r(d)."""
    record = ResponseRecord()
    bound = Pass(len(d), d, None, record=record)
    with hypers.bound(bound):
        y = net(x)
    with forward_ad.dual_level(), record.replay(), hypers.bound(bound):
        tangent = forward_ad.unpack_dual(net(x)).tangent
    assert tangent is not None
    return y, tangent.detach()


class Recurrent(nn.Module):
    """One linear layer, applied several times."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.step = nn.Embedding(9, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), 4, dtype=torch.float64)
        for word in x.unbind(1):
            h = torch.tanh(self.step(h) + self.words(word))
        return h


def resting_norms() -> nn.Module:
    """The convolutional net, its batch normalisation going by running statistics."""
    net: Any = convolutional()
    nn.init.normal_(net[1].running_mean)
    net[1].eval()
    return net


@register_response
class Squashed(nn.Linear):
    """A layer that is linear in its parameters alone."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x.tanh() * x, self.weight, self.bias)


def squashed() -> nn.Module:
    """Two of them behind another."""
    return nn.Sequential(nn.Linear(4, 5), Squashed(5, 6), Squashed(6, 3, bias=False)).double()


class Relative(nn.Module):
    """Positions that all examples share pass a normalisation and a layer that examples pass too."""

    def __init__(self) -> None:
        super().__init__()
        self.positions, self.norm, self.key = nn.Parameter(torch.randn(1, 3, 4)), nn.LayerNorm(4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        keys = self.key(self.norm(self.positions))
        return (self.key(self.norm(x)) @ keys.transpose(1, 2)).softmax(-1)


def transposed() -> nn.Module:
    """Transposed convolutions of one to three dimensions, and normalisation by the root mean square."""
    return nn.Sequential(
        nn.ConvTranspose1d(2, 4, 3, groups=2), nn.Tanh(), nn.RMSNorm(5), nn.Unflatten(2, (1, 5)),
        nn.ConvTranspose2d(4, 6, 2, stride=2, output_padding=1, groups=2), nn.Tanh(), nn.Unflatten(3, (1, 11)),
        nn.ConvTranspose3d(6, 2, 2, bias=False, padding=(1, 0, 1)), nn.Flatten(1), nn.RMSNorm(80, eps=0.1),
        nn.Linear(80, 3),
    ).double()  # fmt: skip


NETS: list[tuple[Any, Any]] = [
    (lambda: Relative().double(), lambda: torch.randn(5, 6, 4, dtype=torch.float64)),
    (transposed, lambda: torch.randn(5, 2, 3, dtype=torch.float64)),
    (convolutional, lambda: torch.randn(5, 3, 6, 6, dtype=torch.float64)),
    (resting_norms, lambda: torch.randn(5, 3, 6, 6, dtype=torch.float64)),
    (squashed, lambda: torch.randn(5, 4, dtype=torch.float64)),
    (lambda: Recurrent().double(), lambda: torch.randint(9, (5, 6))),
]


@pytest.mark.parametrize(("make", "draw"), NETS)
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # of the reference
@pytest.mark.filterwarnings("ignore:.*the same for all 5 examples:UserWarning")
def test_prediction_and_gradient_are_those_of_jvp(make: Any, draw: Any) -> None:
    torch.manual_seed(1)
    hypers = two().double()
    net = with_responses(adopt(make(), hypers))
    x, d = draw(), torch.randn(5, 2, dtype=torch.float64)
    y, tangent = by_hand(net, hypers, x, d)
    weights = {name: p.detach() for name, p in net.named_parameters() if "response" in name}
    weigh = torch.randn_like(tangent)

    def linear(weights: dict[str, Tensor]) -> Tensor:
        def run(d: Tensor) -> Tensor:
            with hypers.bound(Pass(len(d), d, None)):
                found: Tensor = torch.func.functional_call(net, weights, (x,))
            return found

        value, along, *_ = torch.func.jvp(run, (torch.zeros_like(d),), (d,))
        return value + along

    def loss(prediction: Tensor) -> Tensor:
        return (prediction.softmax(-1) * weigh).sum()

    assert relative(y.detach() + tangent, linear(weights).detach()) < 1e-12
    prediction = (y.detach() + tangent).requires_grad_()
    (cotangent,) = torch.autograd.grad(loss(prediction), prediction)
    own = dict(net.named_parameters())
    given = torch.autograd.grad(y, [own[name] for name in weights], cotangent)
    wanted = torch.func.grad(lambda weights: loss(linear(weights)))(weights)
    for name, grad in zip(weights, given, strict=True):
        assert relative(grad.detach(), wanted[name].detach()) < 1e-12, name


def test_the_tangent_is_the_difference_quotient() -> None:
    torch.manual_seed(1)
    hypers = two().double()
    net = with_responses(adopt(convolutional(), hypers))
    x, d = torch.randn(5, 3, 6, 6, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    _, tangent = by_hand(net, hypers, x, d)
    quotient = (at(net, hypers, x, 1e-6 * d) - at(net, hypers, x, -1e-6 * d)) / 2e-6
    assert relative(tangent, quotient.detach()) < 1e-6


def test_at_no_response_the_tangent_is_zero_and_values_are_the_plain_ones() -> None:
    hypers = two().double()
    plain = convolutional()
    net = adopt(convolutional(), hypers)
    x = torch.randn(5, 3, 6, 6, dtype=torch.float64)
    y, tangent = by_hand(net, hypers, x, torch.randn(5, 2, dtype=torch.float64))
    assert not tangent.any()
    torch.testing.assert_close(y, plain(x), atol=1e-14, rtol=0)


def test_what_was_drawn_is_taken_from_the_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if both passes drew from one state, though regularizers that are not tuned draw in between."""
    hypers = two().double()
    first, last = TunedNoise(hypers, "b"), TunedLockedDropout(hypers, "a")
    net = nn.Sequential(
        TunedLockedDropout(hypers, "a"), nn.ReLU(inplace=True),  # drawn anew: it is overwritten, and has no tangent
        first, nn.Dropout(0.5), TunedNoise(hypers, "b"), TunedLockedDropout(hypers, "a"),
        adopt(nn.Linear(4, 8), hypers), nn.Dropout(0.5), last,
        nn.ReLU(inplace=True), nn.Dropout(0.5), TunedNoise(hypers, 0.1), adopt(nn.Linear(8, 3), hypers),
    ).double()  # fmt: skip
    with_responses(net)
    x, raw = torch.randn(5, 6, 4, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)

    def run() -> list[Tensor]:
        torch.manual_seed(3)
        record = ResponseRecord()
        with hypers.bound(Pass(5, 0.1 * raw, raw, record=record)):
            y = net(x)
            end = torch.get_rng_state()
            torch.manual_seed(3)
            with forward_ad.dual_level(), record.replay():
                primal, tangent = forward_ad.unpack_dual(net(x))
        assert torch.equal(torch.get_rng_state(), end)
        assert torch.equal(y, primal)
        assert tangent is not None
        return [primal.clone(), tangent.clone()]

    found = run()
    monkeypatch.setattr(TunedRegularizer, "_record", None)
    for one, other in zip(found, run(), strict=True):
        assert torch.equal(one, other)


def test_images_are_augmented_once(monkeypatch: pytest.MonkeyPatch) -> None:
    hypers = two()
    net = nn.Sequential(TunedColourJitter(hypers, contrast=0.5), nn.Flatten(), adopt(nn.Linear(12, 3), hypers))
    calls = list[Tensor]()

    def jitter(x: Tensor, **strengths: Any) -> Tensor:
        calls.append(x)
        return x + 1

    monkeypatch.setattr(regularize_images, "colour_jitter", jitter)
    d = torch.randn(5, 2)
    record, images = ResponseRecord(), torch.rand(5, 3, 2, 2)
    with hypers.bound(Pass(5, d, d, record=record)):
        net(images)
        with forward_ad.dual_level(), record.replay():
            net(images)
    assert len(calls) == 1


def test_holes_are_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And lie where they lay, though others draw before and after, and the generator ends where it did."""
    hypers = two()
    cutout, after = TunedCutout(hypers, 2, 2), nn.Dropout(0.5)
    net = nn.Sequential(TunedNoise(hypers, 0.1), cutout, after, nn.Flatten(), adopt(nn.Linear(48, 3), hypers))
    calls, seen = list[Tensor](), list[Tensor]()

    def holes(x: Tensor, *strengths: Any) -> Tensor:
        calls.append(x)
        return holes_in(x, *strengths)

    monkeypatch.setattr(regularize_images, "holes_in", holes)
    after.register_forward_hook(lambda module, given, y: seen.append(y.clone()))
    d, record, images = torch.randn(5, 2), ResponseRecord(), torch.rand(5, 3, 4, 4)
    with hypers.bound(Pass(5, d, d, record=record)):
        torch.manual_seed(3)
        net(images)
        end = torch.get_rng_state()
        torch.manual_seed(3)
        with forward_ad.dual_level(), record.replay():
            net(images)
    assert len(calls) == 1 and torch.equal(torch.get_rng_state(), end)
    assert torch.equal(*seen) and not seen[0].all()
