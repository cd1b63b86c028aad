"""Schedules that a tuner found, replayed in plain networks: the same rates at each step, and what is refused."""

import copy
import json
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import revtune as rt
from revtune.regularize_weights import TunedEmbeddingDropout
from revtune.tuning.conversion.plain import RecurrentWithRates
from revtune.tuning.noise import RATE
from revtune.tuning.regularizers.regularizer import TunedRegularizer

Made = tuple[nn.Module, rt.Hyperparameters | None]


class Words(nn.Module):
    """Words, a recurrent layer over (T, B), a readout of its last step."""

    def __init__(self, words: nn.Module, rnn: nn.Module, drop: nn.Module) -> None:
        super().__init__()
        self.words, self.rnn, self.drop, self.readout = words, rnn, drop, nn.Linear(6, 3)

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.readout(self.drop(self.rnn(self.words(ids))[0])[-1])
        return logits


def of_images() -> Made:
    return nn.Sequential(nn.Flatten(), nn.Linear(5, 6), nn.Dropout(0.2), nn.Linear(6, 3), nn.Dropout(0.0)), None


def of_torchs_words() -> Made:
    rates = {name: rt.Rate(0.1, per="batch") for name in ("weight_drop", "word_drop")}
    hypers = rt.Hyperparameters(alpha=rt.Positive(0.01), drop=rt.Rate(0.3), dropout=rt.Rate(0.2), **rates)
    words = TunedEmbeddingDropout(nn.Embedding(7, 5), hypers, "word_drop")
    drop = rt.TunedLockedDropout(hypers, "drop", batch_dim=1)
    return Words(words, nn.LSTM(5, 6, num_layers=2, dropout=0.2), drop), hypers


def of_reversible_words() -> Made:
    rnn = rt.RevGRU(5, 6, num_layers=2, dropout=0.2, hidden_dropout=0.1)
    return Words(rt.Embedding(7, 5, dropout=0.1), rnn, nn.Dropout(0.3)), None


def batches(words: bool, count: int) -> list[tuple[Tensor, Tensor]]:
    inputs = [torch.randint(7, (3, 4)) if words else torch.randn(4, 5) for _ in range(count)]
    return [(x, torch.randint(3, (4,))) for x in inputs]


def tuned(make: Callable[[], Made], steps: int = 7) -> tuple[nn.Module, rt.Tuner, list[dict[str, float]], Any]:
    """A network as it was, its tuner after so many steps, the values that each step began with, the batches."""
    torch.manual_seed(1)
    net, hypers = make()
    before, words = copy.deepcopy(net), isinstance(net, Words)
    net = rt.self_tuning(net, hypers, batch_dim=int(words))

    def train_loss(out: Tensor, batch: Any, h: Any) -> Tensor:
        loss = F.cross_entropy(out, batch[1], reduction="none")
        return loss + h.alpha * out.square().mean(-1) if hypers is not None else loss

    tuner = rt.Tuner(
        net, train_loss, lambda out, batch: F.cross_entropy(out, batch[1]), method="stn", warmup=2, ratio=2,
        optimizer=lambda params: torch.optim.SGD(params, 0.1), size=lambda batch: len(batch[1]),
        hyper_optimizer=lambda params: torch.optim.Adam(params, 0.3),
    )  # fmt: skip
    data, values = batches(words, steps), []
    for batch in data:
        values.append(tuner.values())
        tuner.step(batch, data[0])
    return before, tuner, values, data


def rate(net: nn.Module, path: str) -> float:
    """A rate of a plain network as it is now."""
    where, _, name = path.rpartition(".")
    module: Any = net.get_submodule(where)
    if isinstance(module, TunedRegularizer):
        return float(module.now()[name])
    if isinstance(module, RecurrentWithRates) and name in module.rates:
        return module.rates[name]()
    return float(getattr(module, name) if hasattr(module, name) else getattr(module.options, name))


PLACES = {
    of_images: {"2": ["2.p"], "4": ["4.p"]},
    of_torchs_words: {
        "alpha": [], "drop": ["drop.p"], "dropout": ["rnn.dropout"], "weight_drop": ["rnn.weight_drop"],
        "word_drop": ["words.p"],
    },
    of_reversible_words: {
        "words.dropout": ["words.dropout"], "drop": ["drop.p"],
        **{f"rnn.{name}": [f"rnn.{name}"] for name in
           ("dropout", "input_dropout", "hidden_dropout", "output_dropout", "weight_drop")},
    },
}  # fmt: skip


@pytest.mark.parametrize("make", PLACES)
def test_a_schedule_is_replayed_in_a_plain_loop(make: Callable[[], Made]) -> None:
    net, tuner, values, data = tuned(make)
    schedule = json.loads(json.dumps(tuner.schedule()))
    assert schedule["steps"] == [0, 4, 6] and schedule["rates"] == PLACES[make]
    assert all(len({json.dumps(one[name]) for one in values}) == 3 for name in values[0])  # all of them moved
    kinds = [type(module) for module in net.modules()]
    player = rt.replay(schedule, net)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for (x, target), then in zip(data, values, strict=True):
        player.step()
        assert dict(player.values) == then
        for name, paths in schedule["rates"].items():
            assert [rate(net, path) for path in paths] == [then[name]] * len(paths)
        loss = F.cross_entropy(net(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert player.steps == 7 and not any(isinstance(m, rt.Hyperparameters) for m in net.modules())
    changed = [type(m) for m, kind in zip(net.modules(), kinds, strict=True) if type(m) is not kind]
    assert all(issubclass(kind, RecurrentWithRates) for kind in changed)
    rt.replay(schedule, net)  # once more
    assert all(rate(net, path) == values[0][name] for name, paths in schedule["rates"].items() for path in paths)


def losses(net: nn.Module, data: Any, player: Any = None) -> list[float]:
    """Of a plain loop, whose masks are the same each time."""
    torch.manual_seed(3)
    optimizer, found = torch.optim.SGD(net.parameters(), 0.1), []
    for x, target in data:
        if player is not None:
            player.step()
        loss = F.cross_entropy(net(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def test_it_trains_as_rates_that_are_set_by_hand() -> None:
    before, tuner, values, data = tuned(of_images)
    schedule, net, by_hand = tuner.schedule(), copy.deepcopy(before), copy.deepcopy(before)
    found = losses(net, data, rt.replay(schedule, net))

    class ByHand:
        def __init__(self) -> None:
            self.values = iter(values)

        def step(self) -> None:
            then, dropouts = next(self.values), dict(by_hand.named_modules())
            for name in ("2", "4"):
                dropouts[name].p = then[name]

    assert found == losses(by_hand, data, ByHand()) != losses(before, data)


def test_it_is_replayed_in_what_frozen_gives() -> None:
    _, tuner, values, data = tuned(of_images)
    plain = rt.frozen(tuner.model)
    player = rt.replay(tuner.schedule(), plain)
    assert rate(plain, "2.p") == values[0]["2"] == 0.2 and rate(plain, "4.p") == 0.05
    losses(plain, data, player)
    assert rate(plain, "2.p") == values[-1]["2"]
    player.step()
    assert rate(plain, "2.p") == tuner.values()["2"]


class Penalized(nn.Module):
    """Holds hyperparameters, and reads one itself."""

    def __init__(self, hypers: Any) -> None:
        super().__init__()
        self.held, self.linear = hypers, nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        return y * (1 + self.held["gain"]) if self.training else y


@pytest.mark.parametrize("first", [lambda net: net, lambda net: rt.frozen(rt.self_tuning(net, net.held))])
def test_a_module_that_holds_hyperparameters_reads_what_is_replayed(first: Any) -> None:
    net = first(Penalized(rt.Hyperparameters(gain=rt.Positive(0.5))))
    schedule = {"steps": [0, 1], "values": {"gain": [1.0, 3.0]}, "rates": {"gain": []}}
    player, x = rt.replay(schedule, net), torch.ones(1, 5)
    for gain in (1.0, 3.0, 3.0):
        player.step()
        assert player.values.gain == net.held["gain"] == gain
        assert torch.equal(net(x), net.linear(x) * (1 + gain))


def test_children_of_the_names_of_hyperparameters_stay() -> None:
    net = nn.Sequential(nn.Dropout(0.1), nn.Dropout(0.1))
    rates = {"0": ["0.p"], "1": ["1.p"]}
    rt.replay({"steps": [0], "values": {"0": [0.2], "1": [0.3]}, "rates": rates}, net)
    assert (rate(net, "0.p"), rate(net, "1.p")) == (0.2, 0.3)


def test_other_hyperparameters_that_a_module_holds_are_told() -> None:
    net = Penalized(rt.Hyperparameters(gain=rt.Positive(0.5), more=rt.Rate(0.1)))
    with pytest.raises(
        ValueError, match="a module holds as 'held' the hyperparameters gain, more, and the schedule ha"
    ):
        rt.replay({"steps": [0], "values": {"gain": [1.0]}, "rates": {"gain": []}}, net)
    assert isinstance(net.held, rt.Hyperparameters)


def test_a_replay_goes_on_from_its_state() -> None:
    before, tuner, values, _ = tuned(of_images)
    schedule, net = tuner.schedule(), copy.deepcopy(before)
    player = rt.replay(schedule, net)
    for _ in range(5):
        player.step()
    state = json.loads(json.dumps(player.state_dict()))
    again = rt.replay(schedule, before)
    again.load_state_dict(state)
    assert again.steps == 5 and rate(before, "2.p") == values[4]["2"] == rate(net, "2.p")
    again.step()
    player.step()
    assert again.values == player.values
    with pytest.raises(ValueError, match="the saved state is none of a replay: steps must be a count, got None"):
        again.load_state_dict({})
    with pytest.raises(ValueError, match="the saved state is of another schedule, which has other values at step 5"):
        again.load_state_dict({**state, "values": {"2": 0.1, "4": 0.1}})
    assert again.steps == 6


GIVEN: dict[str, Any] = {"steps": [0, 3], "values": {"a": [0.1, 0.2]}, "rates": {"a": ["1.p"]}}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"steps": None}, "the schedule's 'steps' must be a list, got None"),
        ({"values": [1]}, r"the schedule's 'values' must be a dict, got \[1\]"),
        ({"steps": [1, 3]}, r"steps must be integers that rise from 0, got \[1, 3\]"),
        ({"steps": [0, 0]}, r"steps must be integers that rise from 0, got \[0, 0\]"),
        ({"steps": [0, 1.5]}, r"steps must be integers that rise from 0, got \[0, 1.5\]"),
        ({"rates": {}}, "the schedule has 'a' in its values alone"),
        ({"values": {"a": [0.1]}}, "hyperparameter 'a' must have a value for each of 2 steps, got 1 of them"),
        ({"values": {"a": 0.1}}, "hyperparameter 'a' must have a value for each of 2 steps, got 0.1"),
        ({"values": {"a": [0.1, float("nan")]}}, "hyperparameter 'a' must be finite numbers, got nan"),
        ({"values": {"a": [0.1, "0.2"]}}, "hyperparameter 'a' must be finite numbers, got '0.2'"),
        ({"values": {"a": [0.1, 1.5]}}, r"1.p must lie in 0..1, got 1.5"),
        ({"values": {"a": [-0.1, 0.5]}}, r"1.p must lie in 0..1, got -0.1"),
        ({"rates": {"a": "1.p"}}, "the rates that 'a' sets must be a list of names, got '1.p'"),
        ({"rates": {"a": ["7.p"]}}, "the schedule sets '7.p' by hyperparameter 'a'; the network has no '7'"),
        ({"rates": {"a": ["0.p"]}}, "sets '0.p' by hyperparameter 'a', and 0, a Linear, has no p; give the network as"),
        ({"rates": {"a": ["1.dropout"]}}, "and 1, a Dropout, has no dropout"),
        ({"rates": {"a": ["p"]}}, "and the network, a Sequential, has no p"),
    ],
)
def test_what_is_no_schedule_for_a_network_is_told(changes: dict[str, Any], told: str) -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.4))
    with pytest.raises(ValueError, match=told):
        rt.replay({**GIVEN, **changes}, net)
    assert rate(net, "1.p") == 0.4


def test_what_cannot_be_replayed_in_is_told() -> None:
    net, wrong = rt.self_tuning(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.4))), "a dictionary, as tuner.schedule"
    with pytest.raises(ValueError, match=r"wants a plain network, and this one tunes itself \(ResponseLinear\); rt.fr"):
        rt.replay(GIVEN, net)
    with pytest.raises(ValueError, match="replay wants a network, an nn.Module, got str"):
        rt.replay(GIVEN, "net")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=wrong):
        rt.replay([], net)  # type: ignore[arg-type]
    _, tuner, _, _ = tuned(of_torchs_words)
    with pytest.raises(ValueError, match="and drop, a Identity, has no p; give the network as it was before"):
        rt.replay(tuner.schedule(), rt.frozen(tuner.model))


@pytest.mark.parametrize("limits", [RATE, (0.0, 1.0), [0, 1]])
def test_a_class_may_say_which_of_its_attributes_are_rates(limits: Any) -> None:
    class Thinned(nn.Module):
        RATES: ClassVar = {"share": limits}
        share = 0.1

    net = nn.Sequential(Thinned())
    player = rt.replay({"steps": [0, 1], "values": {"a": [0.2, 0.4]}, "rates": {"a": ["0.share"]}}, net)
    player.step()
    player.step()
    assert net[0].share == 0.4
    with pytest.raises(ValueError, match="0.share must be|0.share"):
        rt.replay({"steps": [0], "values": {"a": [1.2]}, "rates": {"a": ["0.share"]}}, net)


@pytest.mark.parametrize("limits", [0.5, (1.0, 0.0), ("a", "b"), (0, 1, 2)])
def test_limits_that_are_no_pair_of_numbers_are_refused(limits: Any) -> None:
    class Thinned(nn.Module):
        RATES: ClassVar = {"share": limits}
        share = 0.1

    with pytest.raises(ValueError, match=r"Thinned.RATES\['share'\] must be the least and the largest value, as"):
        rt.replay({"steps": [0], "values": {"a": [0.2]}, "rates": {"a": ["0.share"]}}, nn.Sequential(Thinned()))


class OwnLSTM(nn.LSTM):
    """A class of somebody's own."""


def test_a_class_made_of_a_recurrent_layer_drops_its_weights() -> None:
    def make() -> Made:
        hypers = rt.Hyperparameters(alpha=rt.Positive(0.01), weight_drop=rt.Rate(0.4, per="batch"))
        return Words(nn.Embedding(7, 5), OwnLSTM(5, 6), nn.Identity()), hypers

    net, tuner, _, _ = tuned(make)
    before: Any = net
    twin = copy.deepcopy(before)
    rt.replay(tuner.schedule(), before)
    ids = torch.randint(7, (3, 4))
    assert isinstance(before.rnn, OwnLSTM) and not torch.equal(before(ids), before(ids))
    assert torch.equal(before.eval()(ids), twin(ids))
