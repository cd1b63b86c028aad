"""Tensors in nested containers."""

import dataclasses
from collections import OrderedDict, defaultdict
from typing import Any, NamedTuple

import torch
from torch import Tensor

from revtune.tuning.trees import mapped, tensors


class Pair(NamedTuple):
    first: Tensor
    second: int


def test_a_tree_keeps_its_shape_and_what_is_no_tensor() -> None:
    tree = {"a": [torch.ones(2), None], "b": (Pair(torch.zeros(1), 3), "word", torch.tensor(4))}
    doubled = mapped(lambda one: one * 2, tree)
    assert doubled["a"][0].tolist() == [2, 2] and doubled["a"][1] is None
    assert isinstance(doubled["b"][0], Pair) and doubled["b"][0].second == 3 and doubled["b"][1] == "word"
    assert doubled["b"][2].item() == 8


@dataclasses.dataclass(frozen=True)
class Output:
    logits: Tensor
    states: tuple[Tensor, ...] | None = None
    name: str = "output"
    total: Tensor = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "total", self.logits.sum())


@dataclasses.dataclass
class Model(OrderedDict[str, Any]):
    """As `ModelOutput` of transformers: a dictionary that is a dataclass too, made of pairs."""

    pairs: Any = ()

    def __post_init__(self) -> None:
        self.update(self.pairs)


def test_dataclasses_are_trees_and_are_made_anew_only_where_something_changes() -> None:
    whole = Output(torch.ones(2), (torch.zeros(1),))
    doubled = mapped(lambda one: one * 2 + 1, [whole])[0]
    assert doubled.logits.tolist() == [3, 3] and doubled.states[0].item() == 1 and doubled.name == "output"
    assert doubled.total.item() == 6 and len(tensors(whole)) == 2
    assert mapped(lambda one: one, whole.logits) is whole.logits and mapped(lambda one: one, Output) is Output
    plain = Output(torch.ones(2))
    assert mapped(lambda one: one, plain) is plain


def test_dictionaries_that_are_dataclasses_stay_both() -> None:
    doubled = mapped(lambda one: one * 2, Model([("logits", torch.ones(2)), ("loss", None)]))
    assert isinstance(doubled, Model) and doubled["logits"].tolist() == [2, 2] and doubled["loss"] is None


def test_tensors_are_found_in_order_those_of_integers_only_where_wanted() -> None:
    one, two, three = torch.ones(1), torch.tensor([2]), torch.ones(3)
    assert [id(t) for t in tensors([one, (two, {"x": three})])] == [id(one), id(three)]
    assert [id(t) for t in tensors([one, (two, {"x": three})], floating=False)] == [id(one), id(two), id(three)]


def test_a_defaultdict_keeps_its_default() -> None:
    doubled = mapped(lambda one: one * 2, defaultdict(list, y=torch.ones(2)))
    assert doubled["y"].tolist() == [2, 2] and doubled["missing"] == []
