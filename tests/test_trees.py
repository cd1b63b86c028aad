"""Tensors in nested containers."""

from typing import NamedTuple

import torch
from torch import Tensor

from revtune.trees import mapped, tensors


class Pair(NamedTuple):
    first: Tensor
    second: int


def test_a_tree_keeps_its_shape_and_what_is_no_tensor() -> None:
    tree = {"a": [torch.ones(2), None], "b": (Pair(torch.zeros(1), 3), "word", torch.tensor(4))}
    doubled = mapped(lambda one: one * 2, tree)
    assert doubled["a"][0].tolist() == [2, 2] and doubled["a"][1] is None
    assert isinstance(doubled["b"][0], Pair) and doubled["b"][0].second == 3 and doubled["b"][1] == "word"
    assert doubled["b"][2].item() == 8


def test_tensors_are_found_in_order_those_of_integers_only_where_wanted() -> None:
    one, two, three = torch.ones(1), torch.tensor([2]), torch.ones(3)
    assert [id(t) for t in tensors([one, (two, {"x": three})])] == [id(one), id(three)]
    assert [id(t) for t in tensors([one, (two, {"x": three})], floating=False)] == [id(one), id(two), id(three)]
