"""Hyperparameters by name: values, perturbations, who may read them, what is saved."""

import math
from typing import Any

import pytest
import torch

from revtune.errors import HyperparameterError
from revtune.tuning.hypers.hyperparameters import Hyperparameters, Pass, Values
from revtune.tuning.hypers.kinds import Integer, Positive, Rate


def three(**more: Any) -> Hyperparameters:
    return Hyperparameters(drop=Rate(0.2, scale=0.3), word=Rate(0.1, per="batch"), holes=Integer(1, 0, 4), **more)


def test_values_and_scales_are_told_in_user_units() -> None:
    hypers = three()
    assert hypers.values() == {"drop": 0.2, "word": 0.1, "holes": 1}
    assert hypers.scales() == {"drop": 0.3, "word": 0.5, "holes": 0.5}
    assert hypers["drop"] == 0.2 and isinstance(hypers.values()["holes"], int)
    assert repr(hypers) == "Hyperparameters(drop=0.2, word=0.1, holes=1)"


def test_examples_are_perturbed_each_by_itself_and_batches_as_one() -> None:
    hypers = three()
    raw = hypers.perturbed(20_000, torch.Generator().manual_seed(0)).detach()
    moved = raw - hypers.raw.detach()
    assert moved[:, 0].std().item() == pytest.approx(0.3, rel=0.02)
    assert moved[:, 0].mean().abs() < 0.01
    assert bool((moved[:, 1] == moved[0, 1]).all())
    assert abs(torch.corrcoef(moved[:, [0, 2]].T)[0, 1]) < 0.02


def test_perturbed_values_have_a_gradient_to_l_and_scale() -> None:
    hypers = three()
    hypers.perturbed(5).sum().backward()
    assert hypers.raw.grad is not None and hypers.spread.grad is not None
    assert hypers.raw.grad.tolist() == [5.0] * 3 and bool(hypers.spread.grad.any())


def test_only_tuned_scales_are_perturbed_where_scales_are_tuned() -> None:
    hypers = Hyperparameters(a=Rate(0.2), b=Rate(0.2, tune_scale=False))
    moved = hypers.perturbed(9, tuned_only=True) - hypers.raw
    assert bool(moved[:, 0].any()) and not bool(moved[:, 1].any())
    hypers.entropy().backward()
    assert hypers.spread.grad is not None and hypers.spread.grad[1] == 0 and hypers.spread.grad[0] > 0


def test_the_entropy_is_that_of_normal_perturbations() -> None:
    hypers = Hyperparameters(a=Rate(0.2, scale=0.3), b=Rate(0.2, scale=0.7))
    wanted = sum(torch.distributions.Normal(0.0, scale).entropy().item() for scale in (0.3, 0.7))
    assert hypers.entropy().item() == pytest.approx(wanted, rel=1e-5)


def test_scales_are_brought_back_below_their_caps() -> None:
    hypers = three()
    with torch.no_grad():
        hypers.spread.add_(10)
    hypers.cap()
    assert hypers.scales() == {"drop": 1.0, "word": 1.0, "holes": 1.0}


def test_scales_that_are_not_tuned_have_no_cap() -> None:
    hypers = Hyperparameters(a=Rate(0.1, scale=3.0, tune_scale=False), b=Rate(0.1))
    with torch.no_grad():
        hypers.spread[1] += 10
    hypers.cap()
    assert hypers.scales() == {"a": 3.0, "b": 1.0}


def test_a_training_pass_reads_perturbed_values_and_a_validation_pass_none() -> None:
    hypers = three()
    raw = hypers.perturbed(4).detach()
    with hypers.bound(Pass(4, raw, raw)):
        drop, word = hypers["drop"], hypers["word"]
        assert isinstance(drop, torch.Tensor) and torch.equal(drop, raw[:, 0].sigmoid())
        assert isinstance(word, torch.Tensor) and word.shape == ()
    assert hypers.read == {"drop", "word"}
    refused = pytest.raises(HyperparameterError, match="'holes' is read in a validation pass")
    with hypers.bound(Pass(4, raw, None, training=False)), refused:
        hypers["holes"]
    assert hypers["holes"] == 1


def test_values_are_had_as_attributes_and_by_dotted_names() -> None:
    hypers = Hyperparameters(**{"encoder.drop": Rate(0.5), "decay": Positive(1.0)})
    h = Values(hypers, hypers.raw.detach().expand(3, -1))
    assert h["encoder.drop"].tolist() == [0.5] * 3
    torch.testing.assert_close(h.decay, torch.ones(3))
    with pytest.raises(HyperparameterError, match="no hyperparameter 'wrong'; there are encoder.drop, decay"):
        h.wrong  # noqa: B018


@pytest.mark.parametrize("name", ["lr", "momentum", "eps"])
def test_what_belongs_to_the_optimizer_is_refused_and_told_why(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name!r} cannot be tuned: it belongs to the optimizer, and the training"):
        Hyperparameters(**{name: Positive(1.0)})


def test_none_and_what_is_no_hyperparameter_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Hyperparameters()
    wrong: Any = 0.5
    with pytest.raises(ValueError, match="'drop' must be a Rate, Between, Positive or Integer, got float 0.5"):
        Hyperparameters(drop=wrong)


def test_saved_hyperparameters_come_back_and_others_are_refused() -> None:
    hypers, other = three(), three()
    with torch.no_grad():
        hypers.raw.add_(1)
    hypers.centred = False
    other.load_state_dict(hypers.state_dict())
    assert other.values() == hypers.values() and not other.centred
    with pytest.raises(ValueError, match="saved hyperparameters are drop, word, holes; these are a, b, c"):
        Hyperparameters(a=Rate(0.1), b=Rate(0.1), c=Rate(0.1)).load_state_dict(hypers.state_dict())


def test_responses_are_to_the_difference_or_to_l_itself() -> None:
    hypers = three()
    assert hypers.current_departure() is None
    hypers.centred = False
    departure = hypers.current_departure()
    assert departure is not None and departure.shape == (1, 3)
    assert math.isclose(departure[0, 0].item(), math.log(0.25), rel_tol=1e-6)


def test_a_departure_is_in_scales_where_it_is_from_the_current_values() -> None:
    hypers = Hyperparameters(a=Rate(0.3, scale=0.25), b=Positive(0.1, scale=0.5))
    hypers.centred = True
    raw = hypers.raw.detach() + torch.tensor([[0.25, 1.0], [0.0, -0.5]])
    torch.testing.assert_close(hypers.departure(raw), torch.tensor([[1.0, 2.0], [0.0, -1.0]]))
    hypers.centred = False
    torch.testing.assert_close(hypers.departure(raw), raw)


def test_what_starts_far_out_departs_no_farther_than_others() -> None:
    """l is -9.2 for 0.0001: a response to that would learn 85 times as fast as the weights."""
    hypers = Hyperparameters(drop=Rate(0.05), decay=Positive(1e-4))
    hypers.centred = False
    drop, decay = hypers.departure(hypers.raw.detach()[None])[0].tolist()
    assert drop == pytest.approx(math.log(0.05 / 0.95)) and decay == pytest.approx(-3.0)
    departure = hypers.current_departure()
    assert departure is not None and departure[0].tolist() == [drop, decay]


def test_saved_responses_are_not_read_in_other_units() -> None:
    hypers = Hyperparameters(a=Rate(0.3, scale=0.25))
    for other in (Hyperparameters(a=Rate(0.2, scale=0.25)), Hyperparameters(a=Rate(0.3, scale=0.5))):
        with pytest.raises(ValueError, match="saved hyperparameter 'a' started at l = -0.8473 with scale 0.25"):
            other.load_state_dict(hypers.state_dict())
