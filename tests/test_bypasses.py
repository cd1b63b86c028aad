"""What no conversion reaches is found in a module's own code, however it is spelled there."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.functional import dropout as thrown

from revtune.bypasses import bypasses, why_not


class Plainly(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, self.training)


class InAHelper(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return self.noisy(x)

    def noisy(self, x: Tensor) -> Tensor:
        return torch.nn.functional.dropout(x, 0.5, self.training)


class ByAnotherName(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return thrown(x, 0.5, self.training)


class WithWeights(Plainly):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.scale * x, 0.5, self.training)


class Above(InAHelper):
    """The base's forward and this one's helper."""

    def noisy(self, x: Tensor) -> Tensor:
        return super().noisy(x)


class Between(Plainly):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


class Covered(Plainly):
    """The base's forward is not called."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class Reading(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.first.weight


class ReadingOneOfAList(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 2)])

    def forward(self, x: Tensor) -> Tensor:
        return self.read(x)

    def read(self, x: Tensor) -> Tensor:
        weight = self.layers[0].weight
        assert isinstance(weight, Tensor)
        return x @ weight


class Innocent(nn.Module):
    """It neither calls F.dropout(x, 0.5) nor reads self.first.weight past its response."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout, self.first = nn.Dropout(), nn.Linear(2, 2)
        nn.init.zeros_(self.first.weight)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.dropout(self.first(x.to(self.first.weight.dtype)))  # not F.dropout(x)
        return y


def test_functional_dropout_is_found_in_any_spelling() -> None:
    for kind in (Plainly, InAHelper, ByAnotherName, Above, Between):
        told = bypasses(kind())
        assert told is not None and "as a function, whose rate stays its own" in told, kind
    assert bypasses(Innocent()) is None and bypasses(Covered()) is None


def test_weights_and_functional_dropout_are_told_together() -> None:
    told = why_not(WithWeights())
    assert told is not None and "its 4 weights are trained as they are" in told and "calls dropout" in told


def test_weights_read_past_a_layer_are_told() -> None:
    assert bypasses(Reading()) == "its forward reads the weights of first directly, past its response"
    assert bypasses(ReadingOneOfAList()) == "its forward reads the weights of layers directly, past its response"


def test_a_class_without_source_is_let_be() -> None:
    made = type("Made", (nn.Module,), {"forward": lambda self, x: x})
    assert bypasses(made()) is None
    assert why_not(nn.ReLU()) is None
