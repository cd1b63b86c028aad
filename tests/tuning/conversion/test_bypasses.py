"""What no conversion reaches is found in a module's own code, however it is spelled there."""

import ast
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.functional import dropout as thrown

from revtune.tuning.conversion.bypasses import Sources, _read, reason_left, stands_for
from revtune.tuning.conversion.convert import self_tuning


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


class ReadingAnyOfAList(ReadingOneOfAList):
    def read(self, x: Tensor) -> Tensor:
        for place in range(1):
            x = x @ self.layers[place].weight  # type: ignore[operator]
        return x


class ByAnotherSelf(nn.Module):
    """A readout tied by hand, in a method whose first argument has another name."""

    def __init__(this) -> None:
        super().__init__()
        this.words = nn.Embedding(5, 2)

    def forward(this, x: Tensor) -> Tensor:
        y: Tensor = this.words(x)
        return y @ this.words.weight.t()


class Attending(nn.Module):
    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x, dropout_p=self.rate)


class AttendingWithout(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x, dropout_p=0.0)


class Innocent(nn.Module):
    """It neither calls F.dropout(x, 0.5) nor reads self.first.weight past its response."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout, self.first = nn.Dropout(), nn.Linear(2, 2)
        nn.init.zeros_(self.first.weight)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.dropout(self.first(x.to(self.first.weight.dtype)))  # not F.dropout(x)
        return y


def functional_dropout(module: nn.Module) -> str | None:
    return Sources().of(module).functional_dropout


def weights(module: nn.Module) -> set[str]:
    return Sources().of(module).weights


def rates(module: nn.Module) -> set[str]:
    return Sources().of(module).rates


def left(module: nn.Module) -> str | None:
    return reason_left(module, Sources().of(module))


def test_functional_dropout_is_found_in_any_spelling() -> None:
    for kind in (Plainly, InAHelper, ByAnotherName, Above, Between):
        told = functional_dropout(kind())
        assert told is not None and "as a function, whose rate stays its own" in told, kind
    told = functional_dropout(Attending(0.1))
    assert told is not None and "it calls scaled_dot_product_attention" in told
    assert functional_dropout(AttendingWithout()) is None
    assert functional_dropout(Innocent()) is None and functional_dropout(Covered()) is None


def test_weights_and_functional_dropout_are_told_together() -> None:
    told = left(WithWeights())
    assert told is not None and "its 4 weights are trained as they are" in told and "calls dropout" in told


def test_layers_whose_weights_are_read_are_found() -> None:
    assert weights(Reading()) == {"first"} and weights(ReadingOneOfAList()) == {"layers.0"}
    assert weights(ReadingAnyOfAList()) == {"layers"} and weights(ByAnotherSelf()) == {"words"}
    assert weights(Innocent()) == set() == weights(nn.MultiheadAttention(2, 1))


def test_a_class_without_source_is_let_be() -> None:
    made = type("Made", (nn.Module,), {"forward": lambda self, x: x})
    assert functional_dropout(made()) is None
    assert left(nn.ReLU()) is None


def test_a_class_that_another_module_publishes_is_read_too() -> None:
    """As public classes of many packages are, whose `__module__` is the package."""
    module = Plainly()
    published = type("Published", (Plainly,), {"forward": Plainly.forward, "__module__": "torchlike"})
    assert functional_dropout(published()) == functional_dropout(module) is not None


class HandingOn(nn.Module):
    """Rates of dropouts handed on: to attention, by way of a variable, out of a list; one is only asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.asked, self.mlp = nn.Dropout(0.1), nn.Dropout(0.1), nn.ModuleDict({"drop": nn.Dropout()})
        self.many, self.p = nn.ModuleList([nn.Dropout()]), 0.5

    def forward(self, x: Tensor) -> Tensor:
        rate = self.drop.p if self.training else 0.0
        if self.asked.p > 0 or self.asked.p:
            x = self.asked(x)
        for place in range(1):
            x = F.dropout(x, self.many[place].p, self.training)  # type: ignore[arg-type]
        return F.scaled_dot_product_attention(x, x, x, None, rate) * self.p


def test_rates_that_are_read_as_numbers_are_found() -> None:
    assert rates(HandingOn()) == {"drop", "many.*"} and rates(Innocent()) == set()
    assert stands_for("many.*", "many.3") and not stands_for("many.*", "many.3.drop")
    assert functional_dropout(HandingOn()) is None


class Block(nn.Module):
    """A layer of a deep network, whose forward calls methods of its own and its base's."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop, self.last = nn.Linear(2, 2), nn.Dropout(0.1), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(self.wide(x))

    def wide(self, x: Tensor) -> Tensor:
        y: Tensor = self.first(x)
        return y

    def narrow(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.drop(x))
        return y

    def never_called(self) -> None:
        raise AssertionError


class Deep(nn.Module):
    def __init__(self, layers: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block() for _ in range(layers)])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def test_a_source_is_read_once_a_class_and_not_once_a_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve layers cost the reading of one, as far as methods are called at all."""
    parsed, walked, parse, walk = list[str](), list[ast.AST](), ast.parse, ast.walk

    def counted_parse(source: str) -> ast.Module:
        parsed.append(source.partition("(")[0])
        return parse(source)

    def counted_walk(node: ast.AST) -> Iterator[ast.AST]:
        walked.append(node)
        return walk(node)

    monkeypatch.setattr(ast, "parse", counted_parse)
    monkeypatch.setattr(ast, "walk", counted_walk)
    _read.cache_clear()
    self_tuning(Deep(12))
    assert sorted(parsed) == ["def forward", "def forward", "def narrow", "def wide"]
    of_twelve = len(walked)
    walked.clear()
    _read.cache_clear()
    self_tuning(Deep(1))
    assert of_twelve == len(walked) > 0


def test_dropouts_of_any_name_are_reported() -> None:
    class Drop(nn.Dropout):
        pass

    assert left(Drop(0.3)) == "Drop has no tuned form; its rate stays 0.3"
