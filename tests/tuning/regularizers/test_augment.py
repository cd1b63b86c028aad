"""Augmentation of images by a strength for each example."""

import builtins
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from revtune.tuning.hypers.hyperparameters import Hyperparameters, Pass
from revtune.tuning.hypers.kinds import Between, Integer, Positive, Rate
from revtune.tuning.regularizers.augment import affine, colour_jitter, cutout
from revtune.tuning.regularizers.images import TunedAffine, TunedColourJitter, TunedCutout


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_each_image_has_its_own_holes() -> None:
    holes, length = torch.tensor([0, 1, 1, 4, 3]), torch.tensor([5, 0, 3, 1, 40])
    gone = cutout(torch.ones(5, 2, 20, 30), holes, length) == 0
    assert torch.equal(gone[:, 0], gone[:, 1])
    count = gone[:, 0].flatten(1).sum(1)
    assert count[0] == count[1] == 0 and 4 <= count[2] <= 9 and 1 <= count[3] <= 4 and count[4] > 400


def test_a_hole_is_a_square_around_a_centre_drawn_over_all_pixels() -> None:
    gone = (cutout(torch.ones(4000, 1, 9, 9), 1, 4) == 0)[:, 0]
    rows, columns = gone.any(2), gone.any(1)
    assert torch.equal(gone, rows[:, :, None] & columns[:, None])
    for side in (rows, columns):
        widths = side.sum(1)
        assert set(widths.tolist()) == {2, 3, 4}
        first = side.int().argmax(1)[widths == 4]
        shares = torch.bincount(first, minlength=6) / len(first)
        assert len(shares) == 6 and torch.allclose(shares, torch.tensor(1 / 6), atol=0.03)
    assert widths.eq(2).float().mean().item() == pytest.approx(1 / 9, abs=0.02)


def test_holes_are_filled_and_draws_repeat() -> None:
    x, found = torch.rand(3, 3, 8, 8), []
    for _ in range(2):
        torch.manual_seed(1)
        found.append(cutout(x, torch.tensor([1.0, 2.0, 3.0]), 3, fill=-2.0))
    assert torch.equal(found[0], found[1]) and (found[0] == -2).any() and found[0][found[0] != -2].min() >= 0


def test_brightness_is_a_factor_within_the_strength_of_each() -> None:
    strengths = torch.tensor([0.0, 0.2, 0.8, 3.0]).repeat_interleave(1000)
    found = colour_jitter(torch.full((4000, 3, 1, 1), 0.1), brightness=strengths)[:, 0, 0, 0].view(4, 1000) * 10
    assert torch.allclose(found[0], torch.tensor(1.0), atol=1e-5)
    for i, s in enumerate([0.2, 0.8]):
        assert (found[i + 1] - 1).abs().max() <= s + 1e-5
        assert found[i + 1].std().item() == pytest.approx(s / math.sqrt(3), rel=0.1)
    assert found[3].min() == 0 and 3.8 < found[3].max() <= 4 + 1e-5


def test_contrast_keeps_the_mean_and_saturation_the_grey() -> None:
    grey = torch.tensor([0.299, 0.587, 0.114])[None, :, None, None]
    x, strengths = 0.4 + 0.2 * torch.rand(6, 3, 4, 4), torch.linspace(0, 0.5, 6)
    y = colour_jitter(x, contrast=strengths)
    assert torch.allclose((y * grey).sum(1).mean((1, 2)), (x * grey).sum(1).mean((1, 2)), atol=1e-3)
    factor = y.flatten(1).std(1) / x.flatten(1).std(1)
    assert ((factor - 1).abs() <= strengths + 1e-4).all() and (factor - 1)[1:].abs().min() > 0
    z = colour_jitter(x, saturation=strengths)
    assert torch.allclose((z * grey).sum(1), (x * grey).sum(1), atol=1e-3) and torch.allclose(z[0], x[0], atol=1e-5)
    assert all(not torch.allclose(a, b, atol=1e-3) for a, b in zip(z[1:], x[1:], strict=True))


def test_hue_turns_within_its_strength() -> None:
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1).expand(600, -1, -1, -1)
    y = colour_jitter(red, hue=torch.tensor([0.0, 1 / 6, 0.5]).repeat_interleave(200)).view(3, 200, 3)
    assert torch.allclose(y[0], red[:200, :, 0, 0], atol=1e-5)
    assert (y[1, :, 0] > 0.99).all() and y[1, :, 1].max() > 0.9 and y[1, :, 2].max() > 0.9
    assert y[2, :, 0].min() < 0.01


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Centres of mass (B, 2) as x, y, and covariances (B, 2, 2)."""
    _, _, h, w = x.shape
    places = torch.stack(torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")[::-1]).double().flatten(1)
    mass = x[:, 0].double().flatten(1)
    mass = mass / mass.sum(1, keepdim=True)
    centre = mass @ places.T
    off = places[None] - centre[:, :, None]
    return centre, torch.einsum("bn,bin,bjn->bij", mass, off, off)


def blob(size: int, sx: float = 3.0, sy: float = 3.0) -> Tensor:
    """A normal density in the middle of an image of 41 by 41 pixels."""
    at = torch.arange(41.0) - 20
    return (torch.exp(-(at**2) / (2 * sy**2))[:, None] * torch.exp(-(at**2) / (2 * sx**2))).expand(size, 1, 41, 41)


STRENGTHS = torch.tensor([0.0, 0.4, 1.0]).repeat_interleave(400)


def check_spread(found: Tensor, most: float) -> None:
    """Numbers for `STRENGTHS` are uniform within these, as shares of what is most."""
    still, some, all_ = found.view(3, 400) / most
    assert still.abs().max() < 0.02
    for part, strength in ((some, 0.4), (all_, 1.0)):
        assert part.abs().max() <= strength + 0.02
        assert part.std().item() == pytest.approx(strength / math.sqrt(3), rel=0.1)
        assert part.mean().item() == pytest.approx(0, abs=0.1 * strength)


def test_translation_is_within_its_share() -> None:
    centre, _ = moments(affine(blob(1200, 1, 1), translation=0.2 * STRENGTHS))
    check_spread(centre[:, 0] - 20, 0.2 * 41)
    check_spread(centre[:, 1] - 20, 0.2 * 41)
    assert torch.corrcoef(centre[400:].T)[0, 1].abs() < 0.1


def test_rotation_is_within_its_angle_about_the_middle() -> None:
    centre, cov = moments(affine(blob(1200, 5, 2), rotation=40 * STRENGTHS))
    assert torch.allclose(centre, torch.tensor(20.0).double(), atol=0.01)
    check_spread(torch.rad2deg(0.5 * torch.atan2(2 * cov[:, 0, 1], cov[:, 0, 0] - cov[:, 1, 1])), 40)


def test_scale_is_even_in_its_logarithm() -> None:
    _, cov = moments(affine(blob(1200), scale=0.5 * STRENGTHS))
    ratio = (cov[:, 0, 0] / 9).sqrt()
    for part, strength in zip(ratio.view(3, 400)[1:], (0.2, 0.5), strict=True):
        assert 1 / (1 + strength) - 0.01 < part.min() < part.max() < 1 + strength + 0.01
        assert part.log().mean().item() == pytest.approx(0, abs=0.03)


def test_shear_leans_columns() -> None:
    centre, cov = moments(affine(blob(1200), shear=30 * STRENGTHS))
    assert torch.allclose(centre, torch.tensor(20.0).double(), atol=0.01)
    check_spread(torch.rad2deg(torch.atan(cov[:, 0, 1] / cov[:, 1, 1])), 30)
    assert torch.allclose(cov[:, 1, 1], torch.tensor(9.0).double(), rtol=0.05)


def test_images_without_a_strength_stay_as_they_are() -> None:
    x = torch.rand(4, 3, 11, 14)
    assert torch.allclose(affine(x), x, atol=1e-4) and torch.allclose(colour_jitter(x), x, atol=1e-4)
    assert affine(x.bfloat16(), rotation=5.0).dtype == torch.bfloat16
    assert torch.equal(cutout(x, 0, 5), x)


def test_draws_repeat_with_the_seed() -> None:
    x, found = torch.rand(4, 3, 9, 9), []
    for _ in range(2):
        torch.manual_seed(7)
        found.append(affine(colour_jitter(x, brightness=0.4, hue=0.2), rotation=20.0, shear=5.0))
    assert torch.equal(found[0], found[1]) and not torch.allclose(found[0][0], x[0])


IMAGES = torch.full((2, 3, 4, 4), 0.5)
BAD: list[tuple[Callable[[], Tensor], str]] = [
    (lambda: cutout(torch.ones(2, 3), 1, 1), r"cutout wants floating-point images \(B, C, H, W\), got .* \(2, 3\)"),
    (lambda: cutout(IMAGES.byte(), 1, 1), "cutout wants floating-point images .*, got torch.uint8"),
    (lambda: cutout(IMAGES, 1.5, 1), "holes must be an integer of at least 0, got 1.5"),
    (lambda: cutout(IMAGES, 1, torch.tensor([1, -2])), "length must be an integer of at least 0, got -2"),
    (lambda: cutout(IMAGES, torch.ones(3), 1), r"holes must be one number .* got shape \(3,\)"),
    (lambda: colour_jitter(IMAGES[:, :1]), r"colour_jitter wants images \(B, 3, H, W\), got \(2, 1, 4, 4\)"),
    (lambda: colour_jitter(2 * IMAGES + 0.5), "wants numbers from 0 to 1, got 1.5 to 1.5; normalize later"),
    (lambda: colour_jitter(IMAGES * float("nan")), "wants numbers from 0 to 1, got nan"),
    (lambda: colour_jitter(IMAGES, hue=0.6), r"hue must lie in 0\.\.0\.5, got 0\.6"),
    (lambda: colour_jitter(IMAGES, contrast=-0.1), "contrast must be at least 0, got -0.1"),
    (lambda: affine(IMAGES, rotation=200.0), r"rotation must lie in 0\.\.180, got 200"),
    (lambda: affine(IMAGES, translation=torch.tensor([0.1, 1.1])), r"translation must lie in 0\.\.1, got 1\.1"),
    (lambda: affine(IMAGES, scale=torch.ones(3)), r"scale must be one number .* got shape \(3,\)"),
]


@pytest.mark.parametrize(("call", "told"), BAD)
def test_bad_input_is_named(call: Callable[[], Tensor], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        call()


def test_without_kornia_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("kornia"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    assert cutout(IMAGES, 1, 2).shape == IMAGES.shape
    for call in (affine, colour_jitter):
        with pytest.raises(ImportError, match=rf"{call.__name__} needs kornia, .* pip install 'revtune\[augment\]'"):
            call(IMAGES)


def network() -> tuple[Hyperparameters, nn.Sequential]:
    hypers = Hyperparameters(
        holes=Integer(2, 0, 4), length=Integer(4, 0, 24), hue=Between(0.2, 0.0, 0.5), bright=Between(0.4, 0.0, 1.0),
        turn=Between(20.0, 0.0, 45.0),
    )  # fmt: skip
    return hypers, nn.Sequential(
        TunedAffine(hypers, rotation="turn", translation=0.1),
        TunedColourJitter(hypers, hue="hue", brightness="bright"),
        TunedCutout(hypers, "holes", "length"),
    )


def test_modules_augment_in_training_alone() -> None:
    hypers, net = network()
    x = torch.rand(5, 3, 16, 16)
    with hypers.bound(Pass(5, None, hypers.perturbed(5).detach())):
        inside = net(x)
    assert hypers.read == set(hypers.names) and not torch.allclose(inside, x) and not torch.allclose(net(x), x)
    hypers.read.clear()
    net.eval()
    with hypers.bound(Pass(5, None, None, training=False)):
        assert net(x) is x
    assert not hypers.read


def test_modules_take_the_value_of_each_example() -> None:
    hypers = Hyperparameters(holes=Integer(1, 0, 4), length=Integer(4, 0, 8))
    raw = torch.stack([torch.tensor([-9.0, 0.0, 9.0]), torch.full((3,), 9.0)], 1)
    with hypers.bound(Pass(3, None, raw)):
        gone = (TunedCutout(hypers, "holes", "length")(torch.ones(3, 1, 99, 99)) == 0).flatten(1).sum(1)
    assert gone[0] == 0 < gone[1] <= 2 * 64 < gone[2] <= 4 * 64


REFUSED: list[tuple[Callable[[Hyperparameters], object], str]] = [
    (lambda h: TunedCutout(h, "real", 3), "holes must be an integer of at least 0, but .* is a Positive; Integer"),
    (lambda h: TunedColourJitter(h, hue="wide"), r"hue must lie in 0\.\.0\.5, but .* is a Rate from 0 to 1"),
    (lambda h: TunedAffine(h, shear=90.0), r"TunedAffine: shear must lie in 0\.\.89, got 90"),
]


@pytest.mark.parametrize(("make", "told"), REFUSED)
def test_what_cannot_be_tuned_so_is_refused(make: Callable[[Hyperparameters], object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        make(Hyperparameters(real=Positive(1.0), wide=Rate(0.1)))
