"""What a level must not move, for every kind of layer that responds: weights on held-out data, values in training."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import revtune as rt
from revtune.joint.readouts import ResponseLinearCrossEntropy
from revtune.tuning.responses.responding import Responding

pytestmark = pytest.mark.filterwarnings("ignore:.*Plain has no response:UserWarning")  # nor is it to have one

CLASSES, TOKENS, ROWS, WIDTH = 3, 7, 6, 4


class Outputs(nn.Module):
    """The outputs of a recurrent net, without its state."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net(x)[0]
        return y


class Twice(nn.Module):
    """Two steps of a cell, the second from the first one's state."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        state: Any = self.cell(x, self.cell(x))
        return torch.cat(state, 1) if isinstance(state, tuple) else state


def features(*shape: int) -> Tensor:
    return torch.randn(ROWS, *shape)


def tokens() -> Tensor:
    return torch.randint(TOKENS, (ROWS, 5))


KINDS: dict[str, tuple[Any, Any]] = {
    "Linear": (lambda: nn.Linear(WIDTH, WIDTH), lambda: features(WIDTH)),
    "Conv1d": (lambda: nn.Conv1d(2, WIDTH, 3), lambda: features(2, 6)),
    "Conv2d": (lambda: nn.Conv2d(2, WIDTH, 3), lambda: features(2, 6, 6)),
    "Conv3d": (lambda: nn.Conv3d(2, WIDTH, 3), lambda: features(2, 4, 4, 4)),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(2, WIDTH, 3), lambda: features(2, 6)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(2, WIDTH, 3), lambda: features(2, 6, 6)),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(2, WIDTH, 3), lambda: features(2, 4, 4, 4)),
    "Embedding": (lambda: nn.Embedding(TOKENS, WIDTH), tokens),
    "dropped Embedding": (lambda: rt.Embedding(TOKENS, WIDTH, dropout=0.1), tokens),
    "EmbeddingBag": (lambda: nn.EmbeddingBag(TOKENS, WIDTH), tokens),
    "LayerNorm": (lambda: nn.LayerNorm(WIDTH), lambda: features(WIDTH)),
    "RMSNorm": (lambda: nn.RMSNorm(WIDTH), lambda: features(WIDTH)),
    "GroupNorm": (lambda: nn.GroupNorm(2, WIDTH), lambda: features(WIDTH, 5)),
    "BatchNorm1d": (lambda: nn.BatchNorm1d(WIDTH), lambda: features(WIDTH)),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(WIDTH), lambda: features(WIDTH, 5, 5)),
    "BatchNorm3d": (lambda: nn.BatchNorm3d(WIDTH), lambda: features(WIDTH, 3, 3, 3)),
    "LSTM": (lambda: Outputs(nn.LSTM(WIDTH, WIDTH, batch_first=True)), lambda: features(5, WIDTH)),
    "GRU": (lambda: Outputs(nn.GRU(WIDTH, WIDTH, batch_first=True)), lambda: features(5, WIDTH)),
    "RNN": (lambda: Outputs(nn.RNN(WIDTH, WIDTH, batch_first=True)), lambda: features(5, WIDTH)),
    "RevGRU": (lambda: Outputs(rt.RevGRU(WIDTH, WIDTH, batch_first=True)), lambda: features(5, WIDTH)),
    "RevLSTM": (lambda: Outputs(rt.RevLSTM(WIDTH, WIDTH, batch_first=True)), lambda: features(5, WIDTH)),
    "LSTMCell": (lambda: Twice(nn.LSTMCell(WIDTH, WIDTH)), lambda: features(WIDTH)),
    "GRUCell": (lambda: Twice(nn.GRUCell(WIDTH, WIDTH)), lambda: features(WIDTH)),
    "RNNCell": (lambda: Twice(nn.RNNCell(WIDTH, WIDTH)), lambda: features(WIDTH)),
}


def network(kind: str) -> tuple[nn.Module, Tensor]:
    """The layer, dropped, under a plain classifier, which does not respond itself; and its input."""
    torch.manual_seed(0)
    layer, x = KINDS[kind][0](), KINDS[kind][1]()
    return nn.Sequential(layer, nn.Tanh(), nn.Dropout(0.3), nn.Flatten(), Plain(layer(x).flatten(1).shape[1])), x


class Plain(nn.Module):
    """Logits by a product that no conversion knows."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(CLASSES, width))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


@pytest.mark.parametrize("method", ["delta", "stn"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_level_moves_what_is_its_own(kind: str, method: Any) -> None:
    net, x = network(kind)
    batch = (x, torch.arange(ROWS) % CLASSES)
    model = rt.self_tuning(net)
    tuner = rt.Tuner(
        model, lambda out, batch, h: F.cross_entropy(out, batch[1], reduction="none"),
        lambda out, batch: F.cross_entropy(out, batch[1]), optimizer=lambda groups: torch.optim.SGD(groups, 0.5),
        method=method,
    )  # fmt: skip
    start, values = weights(model), hypers(model)
    for _ in range(3):
        tuner.train_step(batch)
    trained = weights(model)
    assert all(map(torch.equal, values, hypers(model)))
    assert [name for name in trained if torch.equal(start[name], trained[name])] == []
    tuner.valid_step(batch)
    assert all(map(torch.equal, trained.values(), weights(model).values()))
    assert not any(map(torch.equal, values, hypers(model)))
    assert all(p.grad is None for p in model.parameters())


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Every weight and statistic."""
    found = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: value.detach().clone() for name, value in found.items() if "hyperparameters." not in name}


def hypers(model: Any) -> list[Tensor]:
    """Values and scales."""
    return [model.hypers.raw.detach().clone(), model.hypers.spread.detach().clone()]


def test_every_layer_that_responds_is_watched() -> None:
    models = [rt.self_tuning(network(kind)[0]) for kind in KINDS]
    watched = {type(module) for model in models for module in model.modules() if isinstance(module, Responding)}
    assert watched == everyone(Responding) - {ResponseLinearCrossEntropy}, (
        "which gives a loss: tests/joint/test_streams"
    )


def everyone(kind: Any) -> set[Any]:
    """All kinds of a kind that a plain layer of torch becomes."""
    below = {one for child in kind.__subclasses__() for one in everyone(child)}
    return below | ({kind} if "plain" in vars(kind) and kind.__module__.startswith("revtune.") else set())
