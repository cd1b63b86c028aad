"""SequenceArguments by name are those of the schemas, in their order."""

import pytest
import torch

from revtune.reversible.kernel.sequence_arguments import DIFFERENTIABLE, BackwardArguments, SequenceArguments

BACKENDS = ("native",)


@pytest.mark.parametrize("name", ["sequence", "sequence_backward"])
def test_names_and_order_are_the_schemas(name: str) -> None:
    arguments = getattr(torch.ops.revtune, name).default._schema.arguments[-len(SequenceArguments._fields) :]
    assert [argument.name for argument in arguments] == list(SequenceArguments._fields)
    assert ["Tensor" in str(argument.type) for argument in arguments] == [True] * 13 + [False] * 8 + [True] * 3 + [
        False
    ]


def test_the_arguments_of_backward_are_its_schemas() -> None:
    names = [argument.name for argument in torch.ops.revtune.sequence_backward.default._schema.arguments]
    assert names == [*BackwardArguments._fields[:-1], *SequenceArguments._fields]
    call = BackwardArguments.of(names)
    assert [*call[:-1], *call.sequence] == names


def test_tensors_settings_and_what_gradients_flow_to() -> None:
    x, h, c, hh, lengths, resets, anew = torch.zeros(7).unbind()
    given = SequenceArguments(
        x, h, c, None, None, hh, None, None, None, None, None, None, lengths, 4, None, 3.0, True, True, True,
        "RevLSTM", True, resets, anew,
    )  # fmt: skip
    assert given.tensors() == (*given[:13], resets, anew, None) and given.settings() == (*given[13:21], given[-1])
    assert SequenceArguments.of(given.tensors(), given.settings()) == given
    assert given.differentiable() == [getattr(given, name) for name in DIFFERENTIABLE] == [*given[:10], anew, None]
    assert given.read_again() == {
        "first state h": h, "first state c": c, "weight 'hh'": hh, "lengths": lengths, "resets": resets,
        "reset_state h": anew,
    }  # fmt: skip
