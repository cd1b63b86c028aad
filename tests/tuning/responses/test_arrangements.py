"""Networks that put rows where they like: each gradient is that of its examples run alone, one after another."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

from revtune.tuning.conversion.convert import self_tuning
from revtune.tuning.hypers.hyperparameters import Hyperparameters
from revtune.tuning.hypers.kinds import Positive
from revtune.tuning.regularizers.sampler import AugmentedBatch
from revtune.tuning.tuner.rows_check import check_rows
from revtune.tuning.tuner.tuner import GRADIENTS, Tuner

B, T, D, WORDS = 4, 6, 8, 9

Way = Callable[[Any, Tensor], Tensor]


class Net(nn.Module):
    """What ways are made of; a way gives a few numbers of each example."""

    def __init__(self, way: Way) -> None:
        torch.manual_seed(0)
        super().__init__()
        self.first, self.query, self.last, self.way = nn.Linear(D, 7), nn.Linear(D, 7), nn.Linear(7, 1), way
        self.lstm, self.states = nn.LSTM(D, 5, 2, batch_first=True, bidirectional=True), nn.Linear(10, 1)
        self.frame, self.two, self.steps = nn.Conv2d(1, 3, 3, padding=1), nn.Linear(2 * D, 7), nn.Linear(T, 3)
        self.table, self.words, self.hot = nn.Parameter(torch.randn(WORDS, D)), nn.Embedding(WORDS, 7), nn.Linear(9, 7)

    def rows(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(torch.relu(self.first(x)))[..., 0]
        return found

    def forward(self, x: Tensor) -> Tensor:
        return self.way(self, x)


def numbers(x: Tensor) -> Tensor:
    return (x[..., 0] * 2).round().long().clamp(-4, 4) + 4


def packed(net: Any, x: Tensor) -> tuple[Any, Any]:
    lengths = (x[:, 0, 0].abs() * 2).long() + 2
    found: tuple[Any, Any] = net.lstm(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
    return found


def masked(net: Any, x: Tensor) -> Tensor:
    mask = x[..., 1] > -0.3
    out = x.new_zeros(x.shape[:2])
    out[mask] = net.rows(x[mask])
    return out


def routed(net: Any, x: Tensor) -> Tensor:
    """Each step goes to one of two experts."""
    flat = x.flatten(0, 1)
    out = flat.new_zeros(len(flat), 7)
    for number, expert in enumerate((net.first, net.query)):
        places = ((flat[:, 0] > 0) == bool(number)).nonzero()[:, 0]
        out = out.index_add(0, places, expert(flat[places]))
    found: Tensor = net.last(torch.tanh(out))[:, 0].view(len(x), -1)
    return found


def attention(net: Any, x: Tensor, **how: Any) -> Tensor:
    y = net.first(x)
    found: Tensor = net.last(F.scaled_dot_product_attention(y, net.query(x), y, **how))[..., 0]
    return found


def written(net: Any, x: Tensor) -> Tensor:
    rows = torch.empty(B, len(x), D)
    for step in range(B):
        rows[step] = x[:, step]
    found: Tensor = net.rows(rows).t()
    return found


WAYS: dict[str, Way] = {
    "three views": lambda net, x: torch.cat(net.rows(torch.cat(x.split(2, 1))).chunk(3), 1),
    "time first, as long as the batch": lambda net, x: net.rows(x[:, :B].transpose(0, 1)).t(),
    "folded frames": lambda net, x: net.frame(x.reshape(-1, 1, 2, 4)).mean((1, 2, 3)).view(len(x), -1),
    "windows": lambda net, x: net.two(x.unfold(1, 2, 1).transpose(2, 3).flatten(2)).sum(-1),
    "states of both directions": lambda net, x: net.states(torch.cat(net.lstm(x)[1][0][-2:].unbind(), 1)),
    "packed sequences": lambda net, x: net.states(
        pad_packed_sequence(packed(net, x)[0], True, total_length=T)[0]
    )[..., 0],
    "states of packed sequences": lambda net, x: net.states(packed(net, x)[1][0][-2:].transpose(0, 1).flatten(1)),
    "repeated": lambda net, x: net.rows(x.repeat_interleave(3, 0)).view(len(x), 3, -1).mean(1),
    "tiled": lambda net, x: net.rows(x.repeat(3, 1, 1)).view(3, len(x), -1).mean(0),
    "gathered": lambda net, x: net.rows(x.gather(1, numbers(x)[..., None].clamp(0, 5).expand_as(x))),
    "masked": masked,
    "routed": routed,
    "einsum": lambda net, x: net.rows(torch.einsum("btd,de->tbe", x, torch.eye(D))).t(),
    "attention in three dimensions": attention,
    "causal attention": lambda net, x: attention(net, x, is_causal=True),
    "attention as long as the batch": lambda net, x: attention(net, x[:, :B]),
    "a triangle of scores": lambda net, x: net.steps((net.first(x) @ net.query(x).transpose(1, 2)).tril()).sum(-1),
    "rows of a table": lambda net, x: net.rows(net.table[numbers(x)]),
    "rows of a table, selected": lambda net, x: net.rows(
        net.table.index_select(0, numbers(x).flatten())
    ).view(len(x), -1),
    "one hot": lambda net, x: net.last(
        net.hot(F.one_hot(numbers(x), WORDS).float().flatten(0, 1))
    )[:, 0].view(len(x), -1),
    "one hot, time first": lambda net, x: net.last(
        net.hot(torch.zeros(T, len(x), WORDS).scatter_(2, numbers(x).t()[..., None], 1.0))
    )[..., 0].t(),
    "words, time first": lambda net, x: net.last(net.words(numbers(x[:, :B]).t()))[..., 0].t(),
    "sums of segments": lambda net, x: net.rows(
        torch.zeros(len(x) * 2, D).index_add(0, torch.arange(len(x) * T) // 3, x.flatten(0, 1))
    ).view(len(x), -1),
    "spectra": lambda net, x: net.rows(torch.fft.fft(x, dim=1).real[:, :B].transpose(0, 1)).t(),
    "checkpointed": lambda net, x: checkpoint(lambda z: net.rows(z.transpose(0, 1)), x, use_reentrant=False).t(),
    "written step by step": written,
    "in an order of its own": lambda net, x: net.rows(x.roll(1, 0)).roll(-1, 0),
}  # fmt: skip


def data() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return tuple(torch.randn(shape, generator=generator) for shape in ((B, T, D), (B, T), (B, 1)))  # type: ignore[return-value]


def tuner_of(way: Way, method: Any) -> Tuner:
    net: Any = self_tuning(Net(way), Hyperparameters(w=Positive(1.0, scale=1.0)))

    def loss(out: Tensor, batch: Any, h: Any) -> Tensor:
        return (out - batch[1][:, : out.shape[1]]).square().mean(1) * h.w

    tuner = Tuner(net, loss, lambda out, batch: out.square().mean(), method=method,
                  optimizer=lambda params: torch.optim.SGD(params, 0.1))  # fmt: skip
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "response_s" in name:
                parameter.copy_(torch.linspace(-0.3, 0.3, parameter.numel()).view_as(parameter))
    return tuner


def gradients(tuner: Tuner, examples: list[slice]) -> dict[str, Tensor]:
    """The mean of a step's gradients, each step on some of the examples, at their own hyperparameters."""
    for some in examples:
        x, y, raw = (part[some] for part in data())
        batch: Any = AugmentedBatch((x, y), raw, (x, y))
        GRADIENTS[tuner.method](tuner.problem, batch, lambda loss: loss / len(examples))
    named = tuner.model.named_parameters()
    return {name: p.grad for name, p in named if p.grad is not None}


@pytest.mark.filterwarnings("ignore:the network itself. Net has no response:UserWarning")
@pytest.mark.parametrize("method", ["stn", "delta"])
@pytest.mark.parametrize("way", WAYS)
def test_gradients_are_those_of_examples_run_alone(way: str, method: str) -> None:
    tuner = tuner_of(WAYS[way], method)
    found = gradients(tuner, [slice(B)])
    x, y, raw = data()
    assert check_rows(tuner.problem, AugmentedBatch((x, y), raw, (x, y)), per_example=True) == []
    expected = gradients(tuner_of(WAYS[way], method), [slice(b, b + 1) for b in range(B)])
    assert found.keys() == expected.keys() and any("response_scale" in name for name in found)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.filterwarnings("ignore:the network itself. Net has no response:UserWarning")
@pytest.mark.parametrize("dims", [0, 1])
def test_what_vmap_hides_is_refused_by_the_layers_name(dims: int) -> None:
    def hidden(net: Any, x: Tensor) -> Tensor:
        found: Tensor = torch.func.vmap(net.rows, in_dims=dims, out_dims=dims)(x)
        return found

    with pytest.raises(ValueError, match="first: torch.func.vmap hides the examples' dimension"):
        gradients(tuner_of(hidden, "stn"), [slice(B)])
