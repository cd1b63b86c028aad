"""What operators say of their results without running them: torch.library.opcheck of each."""

import pytest
import torch
from torch import Tensor

from revtune.reversible.kernel.fakes import pack, pack_projection

BACKENDS = ("native",)
UNITS = pytest.mark.parametrize("units", [1, 7, 33])


def chunk(units: int, blocks: int) -> tuple[Tensor, Tensor, Tensor]:
    """Gates, outputs and first outputs of 3 steps and 2 rows."""
    return torch.randn(3, 2, 2 * blocks * units), torch.randn(3, 2, 2 * units), torch.randn(2, 2 * units)


@UNITS
@pytest.mark.parametrize("blocks", [3, 5])
def test_packing(units: int, blocks: int) -> None:
    weight = torch.randn(2 * blocks * units, units)
    torch.library.opcheck(torch.ops.revtune.pack.default, (weight, blocks))
    packed = torch.ops.revtune.pack(weight, blocks)
    assert pack(weight, blocks).shape == packed.shape == (torch.ops.revtune.packed_size(blocks, units),)
    torch.library.opcheck(torch.ops.revtune.pack_into.default, (into := torch.empty_like(packed), weight, blocks))
    torch.ops.revtune.pack_into(into, weight, blocks)
    assert torch.equal(into, packed)


@UNITS
def test_matmuls(units: int) -> None:
    x, weight, bias, d = torch.randn(9, units), torch.randn(5, units), torch.randn(5), torch.randn(9, 5)
    torch.library.opcheck(torch.ops.revtune.project_back.default, (d, weight))
    torch.library.opcheck(torch.ops.revtune.project_back_into.default, (torch.zeros(9, units), d, weight))
    torch.library.opcheck(torch.ops.revtune.pack_projection.default, (weight,))
    packed = torch.ops.revtune.pack_projection(weight)
    assert pack_projection(weight).shape == packed.shape
    for added, laid_out in ((bias, None), (None, packed)):
        arguments = (torch.zeros(9, 5), x, weight, added, laid_out)
        torch.library.opcheck(torch.ops.revtune.project_into.default, arguments)
    torch.library.opcheck(torch.ops.revtune.add_outer.default, (torch.zeros(5, units), d, x))
    products, scale, sum = torch.randn(9, 5), torch.randn(3, 5), torch.zeros(3, 5)
    torch.library.opcheck(torch.ops.revtune.add_answer.default, (d, products, scale, None))
    torch.library.opcheck(torch.ops.revtune.scale_back.default, (products, d, scale, sum, True))
    rows, total = torch.arange(9) % 3, torch.zeros(3, 5)
    torch.library.opcheck(torch.ops.revtune.answer_back.default, (products, d, scale, rows, sum, total, True))


@UNITS
@pytest.mark.parametrize("blocks", [3, 5])
def test_chunks(units: int, blocks: int) -> None:
    gates, y, start = chunk(units, blocks)
    weight = torch.randn(2 * blocks * units, units)
    packed, rh = torch.ops.revtune.pack(weight, blocks), torch.zeros_like(y) if blocks == 3 else None
    torch.library.opcheck(torch.ops.revtune.recall.default, (gates, y, start, rh, packed, *[None] * 4))
    c, c_start = (None, None) if blocks == 3 else (torch.randn_like(y), torch.randn_like(start))
    direction = torch.randn(1 if blocks == 3 else 2, 2, 2, units)
    arguments = (gates, direction, y, start, c, c_start, weight, *[None] * 6, 0, 0.875, True, True)
    torch.library.opcheck(torch.ops.revtune.gradient.default, arguments)
    given = torch.randn_like(gates), gates[0], torch.randn_like(gates), gates[0], None, None, torch.zeros_like(y)
    moved = (gates, direction, y, start, c, c_start, packed, None, None, None, *given, 0, 0.875, True, True)
    torch.library.opcheck(torch.ops.revtune.tangent.default, moved)


def test_gates() -> None:
    for op in (torch.ops.revtune.gate_sigmoid, torch.ops.revtune.gate_tanh):
        torch.library.opcheck(op.default, (torch.randn(40),))
