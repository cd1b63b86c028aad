"""Each row at its own example's hyperparameters, wherever a network puts it; or a sentence that names the layer."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import revtune as rt
from revtune.tuning.conversion.convert import self_tuning
from revtune.tuning.hypers.hyperparameters import Hyperparameters
from revtune.tuning.hypers.kinds import Positive
from revtune.tuning.responses.following import Following
from revtune.tuning.tuner.tuner import Tuner

B, T, D = 4, 6, 5
LENGTHS = torch.tensor([3, 6, 2, 5])

Way = Callable[[Any, Tensor], Tensor]


class Net(nn.Module):
    """A score for each step of each example (B, T), computed in some arrangement of rows."""

    def __init__(self, way: Way) -> None:
        torch.manual_seed(0)
        super().__init__()
        self.first, self.last, self.rnn, self.way = (
            nn.Linear(D, 7),
            nn.Linear(7, 1),
            nn.GRU(D, 7, batch_first=True),
            way,
        )

    def rows(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(torch.relu(self.first(x)))[..., 0]
        return found

    def forward(self, x: Tensor) -> Tensor:
        return self.way(self, x)


def plain(net: Net, x: Tensor) -> Tensor:
    return net.rows(x)


def number_of(x: Tensor) -> int:
    """A number that differs from batch to batch, and is 0 for the first."""
    return (int(x[:, 0, 0].argmax()) + 2) % B


def turned(x: Tensor, number: int) -> Tensor:
    """Rows that go round by a number of places, taken by a tensor that is made of it."""
    return x[(torch.arange(B) + number) % B]


def order_of(x: Tensor) -> Tensor:
    return x[:, 0, 0].argsort()


def picked(x: Tensor, order: Tensor) -> Tensor:
    """Rows in an order, taken one by one."""
    return torch.stack([x[i] for i in order.tolist()])


WAYS: dict[str, Way] = {
    "rows together": lambda net, x: net.rows(x.flatten(0, 1)).view(len(x), -1),
    "two halves": lambda net, x: torch.cat(net.rows(torch.cat(x.split(T // 2, 1))).chunk(2), 1),
    "steps as a list": lambda net, x: net.rows(torch.cat(x.unbind(1))).view(-1, len(x)).t(),
    "time first": lambda net, x: net.rows(x.transpose(0, 1)).t(),
    "time first, as long as the batch": lambda net, x: torch.cat(
        [net.rows(x[:, :B].transpose(0, 1)).t(), net.rows(x[:, B:])], 1
    ),
    "an order of its own": lambda net, x: net.rows(x[torch.arange(B).flip(0)]).flip(0),
    "chosen by the data": lambda net, x: x.new_zeros(x.shape[:2]).masked_scatter(
        x[..., 0] > -9, net.rows(x[x[..., 0] > -9])
    ),
    "rolled by a number of the data": lambda net, x: net.rows(x.roll(number_of(x), 0)).roll(-number_of(x), 0),
    "turned by a number of the data": lambda net, x: turned(net.rows(turned(x, number_of(x))), -number_of(x)),
    "sorted by numbers of the data": lambda net, x: picked(net.rows(picked(x, order_of(x))), order_of(x).argsort()),
    "sorted by the data": lambda net, x: net.rows(x[order_of(x)])[order_of(x).argsort()],
}


def gradients(way: Way, method: Any, data: list[Tensor], **options: Any) -> dict[str, Tensor]:
    """Those of training steps, the weight of each example's loss its own hyperparameter."""
    net: Any = self_tuning(Net(way), Hyperparameters(w=Positive(1.0, scale=1.0)), **options)

    def train_loss(out: Tensor, batch: Any, h: Any) -> Tensor:
        return (out - batch[1]).square().mean(1) * h.w

    def valid_loss(out: Tensor, batch: Any) -> Tensor:
        return (out - batch[1]).square().mean()

    sgd = lambda params: torch.optim.SGD(params, 0.0)  # noqa: E731
    tuner = Tuner(net, train_loss, valid_loss, optimizer=sgd, method=method, accumulate=len(data) + 1)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "response_s" in name:
                parameter.copy_(torch.linspace(-0.3, 0.3, parameter.numel()).view_as(parameter))
    for x in data:
        batch = x, x.sum(2)
        tuner.train_step(batch)
    tuner.valid_step(batch)
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(B, steps, D, generator=generator) for steps in (T, T, T + 2, T)]


@pytest.mark.parametrize("method", ["stn", "delta"])
@pytest.mark.parametrize("way", WAYS)
def test_each_row_is_at_its_own_examples_hyperparameters(way: str, method: str) -> None:
    """Also in later steps, at other lengths, and where the data choose rows anew in each step."""
    data = batches()[:2] if "halves" in way or "batch" in way else batches()
    found, expected = gradients(WAYS[way], method, data), gradients(plain, method, data)
    assert found.keys() == expected.keys() and len(found) > 6
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6)


def last_states(net: Any, x: Tensor) -> Tensor:
    scores: Tensor = net.last(net.rnn(x)[1])[0]
    return scores.expand(-1, x.shape[1])


def last_steps(net: Any, x: Tensor) -> Tensor:
    scores: Tensor = net.last(net.rnn(x)[0][:, -1])
    return scores.expand(-1, x.shape[1])


def packed(net: Any, x: Tensor) -> Tensor:
    lengths = torch.full((len(x),), x.shape[1])
    rows = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    y, _ = nn.utils.rnn.pad_packed_sequence(net.rnn(rows)[0], batch_first=True)
    scores: Tensor = net.last(y[:, -1])
    return scores.expand(-1, x.shape[1])


@pytest.mark.parametrize("way", [last_states, packed])
def test_last_states_and_packed_steps_are_their_examples(way: Way) -> None:
    found, expected = gradients(way, "stn", batches()), gradients(last_steps, "stn", batches())
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6)


def packed_and_padded(fold: bool) -> Way:
    def way(net: Any, x: Tensor) -> Tensor:
        rows = nn.utils.rnn.pack_padded_sequence(x, LENGTHS, batch_first=True, enforce_sorted=False)
        y, _ = nn.utils.rnn.pad_packed_sequence(net.rnn(rows)[0], batch_first=True)
        scores = net.last(y.flatten(0, 1)).view(len(x), -1) if fold else net.last(y)[..., 0]
        return F.pad(scores, (0, x.shape[1] - scores.shape[1]))

    return way


@pytest.mark.parametrize("method", ["stn", "delta"])
def test_padding_of_packed_sequences_is_their_examples(method: str) -> None:
    """Also where rows are folded, as before a readout; and it is the same in every batch, so none is followed again."""
    found, expected = (gradients(packed_and_padded(fold), method, batches()) for fold in (True, False))
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6)


def test_packed_sequences_are_followed_in_the_first_steps_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    followed, begin = list[Following](), Following.__init__

    def counted(self: Following) -> None:
        followed.append(self)
        begin(self)

    monkeypatch.setattr(Following, "__init__", counted)
    counts = []
    for steps in (2, 6):
        followed.clear()
        gradients(packed_and_padded(fold=True), "stn", batches()[:1] * steps)
        counts.append(len(followed))
    assert counts[0] == counts[1] > 0


def through_numpy(net: Any, x: Tensor) -> Tensor:
    """Rows that nobody can follow; they alternate."""
    rows = torch.from_numpy(x.numpy().transpose(1, 0, 2).reshape(-1, D).copy())
    scores: Tensor = net.rows(rows).view(-1, len(x)).t()
    return scores


def test_what_cannot_be_followed_is_asked_for_by_the_layers_name() -> None:
    with pytest.raises(ValueError, match=r"first: dimension 0 of its input \(24, 5\) .*not known; .*rows=\{'first'"):
        gradients(through_numpy, "stn", batches()[:1])
    each = torch.arange(B).repeat(T)
    for told in ("alternating", each.tolist(), each):
        rows = {"": told}
        found = gradients(through_numpy, "stn", batches()[:1], rows=rows)
        expected = gradients(plain, "stn", batches()[:1])
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6)


def test_what_is_said_and_known_to_be_otherwise_is_refused() -> None:
    with pytest.raises(ValueError, match="first: rows says 'together', but its rows of the examples alternate along"):
        gradients(WAYS["steps as a list"], "stn", batches()[:1], rows={"first": "together"})


def test_what_is_said_is_recorded_and_kept_by_copies() -> None:
    net: Any = self_tuning(Net(plain), Hyperparameters(w=Positive(1.0)), rows={"first": torch.tensor([0, 0, 1])})
    assert net.conversion.rows == {"first": [0, 0, 1]}
    other = copy.deepcopy(net)
    assert other.first.rows == [0, 0, 1] and other.last.rows is None and other.conversion.rows == net.conversion.rows


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ({"encoder": "together"}, "rows must hold names of modules, .* got 'encoder'"),
        ({"first": "folded"}, "rows of 'first' must be one of together, alternating, all, or each row's example, got"),
        ({"first": [0.5]}, "rows of 'first' must be one of"),
        ("together", "rows must be a dictionary such as"),
    ],
)
def test_what_is_said_of_rows_is_checked_first(rows: Any, told: str) -> None:
    net = Net(plain)
    with pytest.raises(ValueError, match=told):
        self_tuning(net, Hyperparameters(w=Positive(1.0)), rows=rows)
    assert type(net.first) is nn.Linear


class Relative(nn.Module):
    """Attention by relative positions alone, looked up on a (T, T) grid."""

    def __init__(self) -> None:
        super().__init__()
        self.bias, self.lin, self.drop, self.out = (
            nn.Embedding(32, 1),
            nn.Linear(D, 6),
            nn.Dropout(0.2),
            nn.Linear(6, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[1]
        grid = torch.arange(n)[:, None] - torch.arange(n) + 15
        weights = torch.softmax(self.bias(grid)[..., 0], -1)
        found: Tensor = self.out(self.drop(weights @ self.lin(x)).mean(1))
        return found


@pytest.mark.parametrize("steps", [4, 7, 8])
def test_positions_on_a_grid_are_no_examples(steps: int) -> None:
    net = self_tuning(Relative())
    cross = lambda out, batch, h=None: F.cross_entropy(out, batch[1], reduction="none")  # noqa: E731
    tuner = Tuner(net, cross, cross, optimizer=lambda params: torch.optim.SGD(params, 0.1), method="stn")
    batch = torch.randn(4, steps, D), torch.randint(3, (4,))
    with pytest.warns(UserWarning, match="bias was given .* that are the same for all 4 examples, as positions are"):
        tuner.train_step(batch)
    assert not net.get_parameter("bias.response_scale").any()
    tuner.train_step(batch)


def one_by_one(net: Any, x: Tensor) -> Tensor:
    return torch.stack([net.rows(example) for example in x])


def test_examples_given_one_by_one_are_refused() -> None:
    with pytest.raises(ValueError, match=r"first: in one pass it is given two inputs \(6, 5\) whose rows are of diff"):
        gradients(one_by_one, "stn", batches()[:1])


class Streamed(nn.Module):
    """A language model whose forward is a streamed loss."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.drop = nn.Embedding(50, 16), nn.Dropout(0.1)
        self.rnn, self.head = rt.RevGRU(16, 32), nn.Linear(32, 50)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        def readout(y: Tensor, targets: Tensor) -> Tensor:
            return F.cross_entropy(self.head(y), targets, reduction="sum")

        def encode(chunk: Tensor) -> Tensor:
            encoded: Tensor = self.drop(self.words(chunk))
            return encoded

        return rt.rewind_loss(self.rnn, ids[:-1], ids[1:], encode=encode, readout=readout, lengths=lengths)[0]


@pytest.mark.parametrize("lengths", [[12, 9, 4, 3], [12, 9, 4, 4]])
def test_positions_of_a_streamed_loss_are_their_rows(lengths: list[int]) -> None:
    """Also where their number is a multiple of B, and in the steps that are followed."""
    net: Any = rt.self_tuning(Streamed(), batch_dim=1)
    tuner = rt.Tuner(
        net, lambda out, batch, h: out, lambda out, batch: out, optimizer=lambda groups: torch.optim.SGD(groups, 0.1),
        method="stn", predict=lambda model, batch: model(*batch),
    )  # fmt: skip
    batch = torch.randint(50, (13, 4)), torch.tensor(lengths)
    for _ in range(2):
        tuner.step(batch, batch)
    assert net.head.response_scale.any() and net.rnn.response_scale_hh_l0.any()
