"""Networks that respond, for the tests of the self-tuning half."""

from typing import Any

import torch
from torch import Tensor, nn

from revtune.tuning.hypers.hyperparameters import Hyperparameters, Pass
from revtune.tuning.hypers.kinds import Positive, Rate
from revtune.tuning.responses.embedding_bags import ResponseEmbeddingBag
from revtune.tuning.responses.layers import (
    ResponseConv2d,
    ResponseConvTranspose1d,
    ResponseConvTranspose2d,
    ResponseConvTranspose3d,
    ResponseEmbedding,
    ResponseLinear,
)
from revtune.tuning.responses.normalisation import (
    ResponseBatchNorm1d,
    ResponseBatchNorm2d,
    ResponseGroupNorm,
    ResponseLayerNorm,
    ResponseRMSNorm,
)
from revtune.tuning.responses.recurrent_cells import ResponseGRUCell, ResponseLSTMCell, ResponseRNNCell
from revtune.tuning.responses.registered import LAYERS, ResponseRegistered
from revtune.tuning.responses.responding import ADDED, Responding

KINDS: tuple[Any, ...] = (
    ResponseLinear, ResponseConv2d, ResponseEmbedding, ResponseBatchNorm1d, ResponseBatchNorm2d, ResponseGroupNorm,
    ResponseLayerNorm, ResponseRMSNorm, ResponseConvTranspose1d, ResponseConvTranspose2d, ResponseConvTranspose3d,
    ResponseLSTMCell, ResponseGRUCell, ResponseRNNCell, ResponseEmbeddingBag,
)  # fmt: skip


def two() -> Hyperparameters:
    """Two hyperparameters."""
    return Hyperparameters(a=Rate(0.3), b=Positive(0.1))


def adopt(net: nn.Module, hypers: Hyperparameters, batch_dim: int = 0) -> nn.Module:
    """Convert every layer of a network that can respond."""
    own = {plain: kind for plain, kind in LAYERS.items() if issubclass(kind, ResponseRegistered)}
    by_plain = {kind.plain: kind for kind in KINDS} | own
    for name, module in list(net.named_modules()):
        if type(module) in by_plain:
            layer: Any = module
            layer.__class__ = by_plain[type(module)]
            layer.adopt(hypers, name, batch_dim)
    return net


def with_responses(net: nn.Module, seed: int = 0) -> nn.Module:
    """The network with responses that are not 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith(ADDED[1:]):
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return net


def convolutional() -> nn.Sequential:
    """Convolution, all normalisations, activations in place and not, and linear layers, in float64, on (B, 3, 6, 6)."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.GroupNorm(2, 6), nn.Flatten(1),
        nn.Linear(6 * 16, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3, bias=False),
    ).double()  # fmt: skip


def at(net: nn.Module, hypers: Hyperparameters, x: Tensor, d: Tensor) -> Tensor:
    """The network's output for examples at these differences of hyperparameters, (B, n)."""
    with hypers.bound(Pass(len(d), d, None)):
        y: Tensor = net(x)
    return y


def responding(net: nn.Module) -> list[Any]:
    """Its response layers."""
    return [module for module in net.modules() if isinstance(module, Responding)]


def pictures() -> nn.Sequential:
    """A small convolutional classifier, as someone else writes it."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Dropout2d(0.1),
        nn.Flatten(), nn.Linear(8 * 16, 16), nn.ReLU(), nn.Dropout(0.0), nn.Linear(16, 4),
    )  # fmt: skip


class Tied(nn.Module):
    """An embedding whose weights are the readout's too."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.hidden, self.drop = nn.Embedding(9, 6), nn.Linear(6, 6), nn.Dropout(0.3)
        self.readout = nn.Linear(6, 9)
        self.readout.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.readout(self.drop(torch.tanh(self.hidden(self.words(x)))))
        return found
