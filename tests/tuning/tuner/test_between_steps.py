"""What others do to a network between steps: what nothing would train is refused, what leads tuning astray is told."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

import revtune as rt
from revtune.tuning.tuner.tuner import Tuner

Change = Callable[[Any], Any]


def net_of(**settings: Any) -> Any:
    torch.manual_seed(0)
    return rt.self_tuning(
        nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.2), nn.LayerNorm(8), nn.Linear(8, 3)), **settings
    )


def tuner_of(net: nn.Module, method: Any = "delta", **settings: Any) -> Tuner:
    def loss(out: Tensor, batch: Any, h: Any = None) -> Tensor:
        return F.cross_entropy(out, batch[1], reduction="none")

    return Tuner(net, loss, lambda out, batch: loss(out, batch).mean(), method=method,
                 optimizer=lambda groups: torch.optim.Adam(groups, 0.01), **{"ratio": 1, **settings})  # fmt: skip


def batch(seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(5, 6, generator=generator), torch.randint(3, (5,), generator=generator)


def steps(tuner: Tuner, count: int = 2) -> list[str]:
    """What is told in some steps."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for seed in range(count):
            tuner.step(batch(seed), batch(9))
    return [str(warning.message) for warning in caught]


def assign(net: Any) -> None:
    net.load_state_dict({name: value.clone() for name, value in net.state_dict().items() if "_extra" not in name}
                        | {n: v for n, v in net.state_dict().items() if "_extra" in n}, assign=True)  # fmt: skip


def new_weight(net: Any) -> None:
    net[0].weight = nn.Parameter(net[0].weight.detach() * 2)


REFUSED: dict[str, tuple[Change, str]] = {
    "assigned": (assign, r"^0\.weight is another parameter than when the Tuner was made, .* make the Tuner again"),
    "a new parameter": (new_weight, r"^0\.weight is another parameter"),
    "cast": (lambda net: net.double(), r"^0\.weight was torch.float32 on cpu .* is torch.float64 on cpu, .* cast and"),
    "added": (lambda net: net.append(nn.Linear(3, 3)), r"had no parameter 5\.weight when the Tuner .* before self_"),
    "removed": (lambda net: net.pop(4), r"has lost 4\.bias, which the Tuner was made to train"),
    "a dropout replaced": (
        lambda net: net.__setitem__(2, nn.Dropout(0.5)),
        "^2, a TunedDropout, is no longer part of the network",
    ),
}


@pytest.mark.parametrize(("change", "told"), REFUSED.values(), ids=REFUSED.keys())
@pytest.mark.parametrize("method", ["delta", "stn"])
@pytest.mark.parametrize("after", [0, 2])
def test_a_network_that_the_optimizers_no_longer_move_is_refused(
    change: Change, told: str, method: str, after: int
) -> None:
    tuner = tuner_of(net := net_of(), method)
    assert steps(tuner, after) == []
    change(net)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=told):
        tuner.train_step(batch())
    with pytest.raises(ValueError, match=told):
        tuner.valid_step(batch())
    now = net.state_dict()
    assert all(torch.equal(v, now[name]) for name, v in before.items() if isinstance(v, Tensor))
    assert tuner.steps == after


def test_a_tuner_made_again_goes_on_after_parameters_were_assigned() -> None:
    first = tuner_of(net := net_of())
    steps(first)
    state, going_on = copy.deepcopy(first.state_dict()), copy.deepcopy(first)
    assign(net)
    again = tuner_of(net)
    again.load_state_dict(state)
    assert steps(again) == []
    torch.set_rng_state(state["random"][0])
    assert steps(going_on) == [] and again.values() == going_on.values()
    theirs = going_on.model.state_dict()
    assert all(torch.equal(v, theirs[name]) for name, v in net.state_dict().items() if isinstance(v, Tensor))


@pytest.mark.parametrize("method", ["delta", "stn"])
def test_a_copy_goes_on_with_the_gradients_that_wait(method: str) -> None:
    first = tuner_of(net_of(), method, accumulate=3)
    steps(first, 4)
    other, state = copy.deepcopy(first), torch.get_rng_state()
    steps(first, 3)
    torch.set_rng_state(state)
    steps(other, 3)
    one, two = first.model.state_dict(), other.model.state_dict()
    assert first.values() == other.values()
    assert all(torch.equal(v, two[name]) for name, v in one.items() if isinstance(v, Tensor))


def initialise(net: nn.Module) -> None:
    for p in net.parameters():
        nn.init.uniform_(p, -0.1, 0.1)


def initialise_matrices(net: nn.Module) -> None:
    for p in net.parameters():
        if p.dim() > 1:
            nn.init.xavier_uniform_(p)


def clamp(net: nn.Module) -> None:
    for p in net.parameters():
        p.data.clamp_(-0.01, 0.01)


def average(net: nn.Module) -> None:
    for p in net.parameters():
        p.data.mul_(0.9)


@pytest.mark.parametrize("change", [initialise, initialise_matrices, clamp, average])
@pytest.mark.parametrize("after", [None, 0, 2])
def test_a_loop_over_all_parameters_is_told_once(change: Change, after: int | None) -> None:
    net = net_of()
    if after is None:
        change(net)
    tuner = tuner_of(net)
    if after is not None:
        assert steps(tuner, after) == []
        change(net)
    now = ", ".join(f"{name}={value:g}" for name, value in net.hypers.values().items())
    told = steps(tuner)
    change(net)
    (sentence,) = told + steps(tuner)
    assert sentence.startswith("the network's responses were changed by others than its Tuner") and now in sentence


def swap(net: nn.Module) -> None:
    """Averaged weights for an evaluation, and back."""
    before = [p.clone() for p in net.parameters()]
    average(net)
    with torch.no_grad():
        for p, own in zip(net.parameters(), before, strict=True):
            p.copy_(own)


HARMLESS: dict[str, Change] = {
    "a state loaded": lambda net: net.load_state_dict(tuner_of(rt.self_tuning(net_of_plain())).model.state_dict()),
    "plain weights loaded": lambda net: net.load_state_dict(net_of_plain().state_dict(), strict=True),
    "averages swapped in and out": swap,
    "weights changed": lambda net: net[0].weight.data.clamp_(-0.1, 0.1),
    "a layer initialised": lambda net: net[0].reset_parameters(),
    "hyperparameters set": lambda net: net.hypers.raw.data.add_(0.1),
    "clipped": lambda net: nn.utils.clip_grad_norm_(net.parameters(), 1.0),
    "frozen": lambda net: net[4].requires_grad_(False),
}


def net_of_plain() -> nn.Sequential:
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.2), nn.LayerNorm(8), nn.Linear(8, 3))


@pytest.mark.parametrize("change", HARMLESS.values(), ids=HARMLESS.keys())
@pytest.mark.parametrize("after", [0, 2])
def test_what_a_user_may_do_between_steps_is_not_told(change: Change, after: int) -> None:
    tuner = tuner_of(net := net_of())
    assert steps(tuner, after) == []
    change(net)
    assert steps(tuner, 3) == []


def test_a_weight_that_is_pruned_between_steps_is_trained_on() -> None:
    tuner = tuner_of(net := net_of())
    steps(tuner)
    prune.l1_unstructured(net[0], "weight", 0.5)
    before = net[0].weight_orig.detach().clone()
    assert steps(tuner) == [] and not torch.equal(net[0].weight_orig, before) and not net[0].weight[0].all()


def test_copies_and_networks_loaded_whole_are_looked_at_too() -> None:
    for net in (copy.deepcopy(net_of()), copy.deepcopy(tuner_of(net_of())).model):
        tuner = tuner_of(net)
        average(net)
        assert len(steps(tuner)) == 1


def test_weights_that_are_freed_after_the_conversion_are_named_once() -> None:
    plain = net_of_plain()
    plain[0].requires_grad_(False)
    net: Any = rt.self_tuning(plain)
    tuner = tuner_of(net)
    assert steps(tuner) == []
    net[0].requires_grad_(True)
    before = net[0].weight.detach().clone()
    told = steps(tuner) + steps(tuner)
    assert len(told) == 1 and told[0].startswith("0: its weights were frozen when the network was converted")
    assert not torch.equal(net[0].weight, before)
