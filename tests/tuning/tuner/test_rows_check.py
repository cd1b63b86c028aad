"""The first step measures whose loss each row moves: it names false rows, lets mixing be, and leaves all as it was."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import revtune as rt
from revtune.tuning.hypers.hyperparameters import Hyperparameters
from revtune.tuning.hypers.kinds import Positive
from revtune.tuning.tuner import first_step
from revtune.tuning.tuner.tuner import Tuner

B, T, D = 4, 6, 5

methods = pytest.mark.parametrize("method", ["stn", "delta"])


class Net(nn.Module):
    """Scores (B, T) of rows that may be hidden from whoever follows them, as NumPy hides them."""

    def __init__(self, way: Callable[[Any, Tensor], Tensor]) -> None:
        torch.manual_seed(0)
        super().__init__()
        self.first, self.norm, self.last, self.way = nn.Linear(D, 7), nn.BatchNorm1d(7), nn.Linear(7, 1), way
        self.drop, self.calls, self.seen = nn.Dropout(0.2), 0, list[int]()

    def rows(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(torch.relu(self.first(x)))[..., 0]
        return found

    def normalized(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(torch.relu(self.norm(self.first(x))))[..., 0]
        return found

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(len(x))
        return self.way(self, x)


def hidden(x: Tensor) -> Tensor:
    return torch.from_numpy(x.numpy().copy())


def steps_alternate(net: Any, x: Tensor) -> Tensor:
    found: Tensor = net.rows(hidden(x.transpose(0, 1).reshape(-1, D))).view(-1, len(x)).t()
    return found


def normalized_steps_alternate(net: Any, x: Tensor) -> Tensor:
    found: Tensor = net.normalized(hidden(x.transpose(0, 1).reshape(-1, D))).view(-1, len(x)).t()
    return found


def square(net: Any, x: Tensor) -> Tensor:
    """Time first, and as many steps as examples."""
    found: Tensor = net.rows(hidden(x[:, : len(x)].transpose(0, 1))).t()
    return found


def reversed_batch(net: Any, x: Tensor) -> Tensor:
    found: Tensor = net.rows(hidden(x.flip(0))).flip(0)
    return found


def squares(out: Tensor, batch: Any, h: Any = None) -> Tensor:
    losses = (out - batch[1][:, : out.shape[1]]).square().mean(1)
    return losses if h is None else losses * h.w


def contrastive(out: Tensor, batch: Any, h: Any = None) -> Tensor:
    losses = F.cross_entropy(out @ out.t(), torch.arange(len(out)), reduction="none")
    return losses if h is None else losses * h.w


def tuner_of(way: Any, method: Any, loss: Any = squares, **options: Any) -> Tuner:
    net: Any = rt.self_tuning(Net(way), Hyperparameters(w=Positive(1.0, scale=1.0)), **options)
    return Tuner(net, loss, lambda out, batch: loss(out, batch), method=method,
                 optimizer=lambda params: torch.optim.SGD(params, 0.1))  # fmt: skip


def data(size: int = B) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(size, T, D, generator=generator), torch.randn(size, T, generator=generator)


def told(tuner: Tuner, batch: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tuner.train_step(batch)
    return [str(warning.message) for warning in caught]


@methods
@pytest.mark.parametrize("size", [B, 70])
@pytest.mark.parametrize("way", [steps_alternate, normalized_steps_alternate])
def test_false_rows_are_named_with_what_to_write(way: Any, size: int, method: str) -> None:
    """Also of more examples than one weighting tells apart, and past a batch normalisation."""
    assert told(tuner_of(way, method, rows={"": "alternating"}), data(size)) == []
    tuner = tuner_of(way, method, rows={"": "together"})
    before = {name: value.clone() for name, value in tuner.model.state_dict().items() if isinstance(value, Tensor)}
    expected = (
        r"first: row \(1,\) of its output is at the hyperparameters of example 0 and moves the loss of example 1; "
        r"self_tuning\(rows=\{'first': \"alternating\"\}\) says how they lie"
    )
    for _ in range(2):  # a cell of a notebook may be run again
        with pytest.raises(ValueError, match=expected):
            tuner.train_step(data(size))
    after = tuner.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(parameter.grad is None for parameter in tuner.model.parameters())


@methods
@pytest.mark.parametrize(("way", "row"), [(square, r"\(0, 1\)"), (reversed_batch, r"\(0, 0\)")])
def test_rows_that_are_as_many_as_the_batch_but_not_it_are_named(way: Any, row: str, method: str) -> None:
    with pytest.raises(ValueError, match=rf"first: row {row} of its output .* self_tuning\(rows=\{{'first'"):
        tuner_of(way, method).train_step(data())


@methods
def test_a_batch_with_time_first_is_named_where_it_was_taken_for_the_examples(method: str) -> None:
    def per_example(out: Tensor, batch: Any, h: Any = None) -> Tensor:
        return out.square().mean(0) * (1.0 if h is None else h.w)

    with pytest.raises(ValueError, match=r"first: row \(0, 1\) .* by\s*self_tuning\(batch_dim=\)"):
        tuner_of(lambda net, x: net.rows(x), method, per_example).train_step(data(T))
    tuner = tuner_of(lambda net, x: net.rows(x), method, per_example, batch_dim=1)
    assert tuner.train_step(data(T)) > 0


# What is right is let be


def mean_taken_off(net: Any, x: Tensor) -> Tensor:
    found: Tensor = net.rows(x - x.mean(0))
    return found


@methods
@pytest.mark.parametrize("loss", [squares, contrastive])
def test_a_network_and_a_loss_that_mix_examples_are_no_errors(loss: Any, method: str) -> None:
    for way in (lambda net, x: net.rows(x), lambda net, x: net.normalized(x.flatten(0, 1)).view(len(x), -1)):
        assert told(tuner_of(way, method, loss), data()) == []
    assert told(tuner_of(mean_taken_off, method, squares), data()) == []


@methods
def test_what_could_not_be_checked_is_said(method: str) -> None:
    """Examples are mixed before the layer, where they cannot be followed, and after it."""
    sentences = told(tuner_of(mean_taken_off, method, contrastive), data())
    assert sentences == [
        f"{name}: its rows are taken for the batch, which could not be checked, as they move the losses of several "
        "examples each" for name in ("first", "last")
    ]  # fmt: skip


@methods
def test_losses_that_are_sorted_are_let_be(method: str) -> None:
    def worst_first(out: Tensor, batch: Any, h: Any = None) -> Tensor:
        return squares(out, batch, h).sort(descending=True).values

    assert told(tuner_of(lambda net, x: net.rows(x), method, worst_first), data()) == []


def mean_of_squares(out: Tensor, batch: Any, h: Any = None) -> Tensor:
    return squares(out, batch, h).mean()


@methods
def test_of_a_mean_the_prediction_tells(method: str) -> None:
    def seen_again(net: Any, x: Tensor) -> Tensor:
        return steps_alternate(net, x) + 0 * x[..., 0]

    assert told(tuner_of(seen_again, method, mean_of_squares, rows={"": "alternating"}), data()) == []
    with pytest.raises(ValueError, match=r"first: row \(1,\) .*\"alternating\"\}\) says"):
        tuner_of(seen_again, method, mean_of_squares, rows={"": "together"}).train_step(data())
    (first, *_) = told(tuner_of(square, method, mean_of_squares), data())
    assert first.startswith("first: its rows are taken for the batch, which could not be checked, as train_loss gives")


# All is as it was


def dropped(net: Any, x: Tensor) -> Tensor:
    found: Tensor = net.drop(net.normalized(x.flatten(0, 1)).view(len(x), -1)) * (1 + torch.rand(()))
    return found


@methods
def test_the_check_changes_no_bit_of_the_training(method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for checked in (True, False):
        if not checked:
            monkeypatch.setattr(first_step, "check_rows", lambda *given: [])
        net: Any = rt.self_tuning(Net(dropped))
        loss = lambda out, batch, h=None: (out - batch[1]).square().mean(1)  # noqa: E731
        tuner = Tuner(net, loss, loss, method=method, optimizer=lambda params: torch.optim.Adam(params, 0.1))
        torch.manual_seed(2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            values = [tuner.step(data(), data()) for _ in range(3)]
        results.append((values, tuner.state_dict(), net.calls, net.seen))
    (values, state, *counts), (expected, other, *expected_counts) = results
    assert values == expected and counts == expected_counts
    assert torch.equal(state["generator"], other["generator"]) and torch.equal(state["random"][0], other["random"][0])
    for name, value in other["model"].items():
        assert not isinstance(value, Tensor) or torch.equal(state["model"][name], value), name
