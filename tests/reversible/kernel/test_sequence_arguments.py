"""Operands by name are those of the schemas, in their order."""

import pytest
import torch

from revtune.reversible.kernel.sequence_arguments import DIFFERENTIABLE, Operands

BACKENDS = ("native",)


@pytest.mark.parametrize("name", ["sequence", "sequence_backward"])
def test_names_and_order_are_the_schemas(name: str) -> None:
    arguments = getattr(torch.ops.revtune, name).default._schema.arguments[-len(Operands._fields) :]
    assert [argument.name for argument in arguments] == list(Operands._fields)
    assert ["Tensor" in str(argument.type) for argument in arguments] == [True] * 13 + [False] * 7


def test_tensors_settings_and_what_gradients_flow_to() -> None:
    x, h, c, hh, lengths = torch.zeros(5).unbind()
    given = Operands(
        x,
        h,
        c,
        None,
        None,
        hh,
        None,
        None,
        None,
        None,
        None,
        None,
        lengths,
        4,
        None,
        3.0,
        True,
        True,
        True,
        "RevLSTM",
    )
    assert given.tensors() == given[:13] and given.settings() == given[13:]
    assert given.differentiable() == [getattr(given, name) for name in DIFFERENTIABLE] == list(given[:10])
    assert given.read_again() == {"first state h": h, "first state c": c, "weight 'hh'": hh, "lengths": lengths}
