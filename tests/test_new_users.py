"""Networks that someone else wrote, converted by one line: their dropouts are tuned, and what comes out is plain."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import revtune as rt

CLASSES, WORDS, TAGS = 4, 20, 3
methods = pytest.mark.parametrize("method", ["delta", "stn"])


class BasicBlock(nn.Module):
    """Two convolutions beside a shortcut, as in torchvision's ResNet."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.relu, self.drop = nn.ReLU(inplace=True), nn.Dropout2d(0.1)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = self.drop(self.relu(self.bn1(self.conv1(x))))
        out = self.bn2(self.conv2(out))
        out += self.downsample(x)
        y: Tensor = self.relu(out)
        return y


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer1, self.layer2 = BasicBlock(3, 8, 1), BasicBlock(8, 16, 2)
        self.avgpool, self.dropout, self.fc = nn.AdaptiveAvgPool2d(1), nn.Dropout(0.2), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.flatten(self.avgpool(self.layer2(self.layer1(x))), 1)
        y: Tensor = self.fc(self.dropout(x))
        return y


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.drop = nn.Embedding(WORDS, 8), nn.Dropout(0.1)
        self.lstm = nn.LSTM(8, 12, num_layers=2, dropout=0.2, batch_first=True, bidirectional=True)
        self.tags = nn.Linear(24, TAGS)

    def forward(self, tokens: Tensor) -> Tensor:
        y: Tensor = self.tags(self.lstm(self.drop(self.words(tokens)))[0])
        return y.transpose(1, 2)


def pictures(rows: int) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, 3, 8, 8), torch.randint(CLASSES, (rows,))


def sentences(rows: int) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(WORDS, (rows, 9))
    return tokens, tokens % TAGS


def train_loss(out: Tensor, batch: Any, h: Any) -> Tensor:
    losses = F.cross_entropy(out, batch[1], reduction="none")
    return losses.reshape(len(losses), -1).mean(1)


CASES = {"ResNet": (ResNet, pictures, 3), "Tagger": (Tagger, sentences, 2)}


@methods
@pytest.mark.parametrize("kind", CASES)
@pytest.mark.covering(1)
def test_three_lines_tune_the_dropouts_of_a_network(kind: str, method: Any) -> None:
    torch.manual_seed(0)
    make, draw, rates = CASES[kind]
    data, held_out, plain = [draw(16) for _ in range(2)], [draw(16) for _ in range(2)], make()
    own = {name: value.clone() for name, value in plain.state_dict().items()}
    net = rt.self_tuning(plain)
    assert own.keys() <= net.state_dict().keys()
    assert all(torch.equal(net.state_dict()[name], value) for name, value in own.items())
    tuner = rt.Tuner(
        net, train_loss, lambda out, batch: F.cross_entropy(out, batch[1]), method=method,
        optimizer=lambda params: torch.optim.Adam(params, 3e-3), hyper_optimizer=lambda p: torch.optim.Adam(p, 0.05),
    )  # fmt: skip
    before = tuner.values()
    for _ in range(60):
        for batch, valid in tuner.batches(data, held_out):
            tuner.step(batch, valid)
    after = tuner.values()
    assert len(after) == rates and all(abs(after[name] - value) > 0.01 for name, value in before.items())
    x, frozen = data[0][0], rt.frozen(net).eval()
    torch.testing.assert_close(frozen(x), net.eval()(x), rtol=1e-5, atol=1e-5)
    assert frozen.state_dict().keys() == own.keys()
    assert not any(type(module).__module__.startswith("revtune") for module in frozen.modules())
