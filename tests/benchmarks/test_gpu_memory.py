"""What a streamed step would take of a GPU's memory, as it is calculated."""

from importlib.util import find_spec

import pytest
import torch

from benchmarks.gpu_memory import Live, calculated
from benchmarks.gpu_parts import LARGE, MEMORY_GOAL, shape
from revtune.program.bench.contestants import Contestant
from revtune.reversible.kernel.chunks import budget_on
from revtune.reversible.layers.stack import DEFAULT_BUDGET

needs_triton = pytest.mark.skipif(not find_spec("triton"), reason="triton is not installed")


def test_tensors_are_counted_while_somebody_holds_them() -> None:
    with Live() as live:
        held = torch.zeros(1000)
        view = held[10:]
        torch.ones_like(view)
        assert (live.present, live.most) == (4000, 4000 + 3960)
        del held
        assert live.present == 4000
        del view
    assert live.present == 0


@needs_triton
def test_longer_sequences_take_little_more() -> None:
    """Words, which are counted by arithmetic, and not a chunk."""
    few, many = (calculated(Contestant(cell="RevGRU", backend="triton"), shape(steps, 4, 8, 5)) for steps in (16, 32))
    words, tokens = 16 * 4 * 8 * 3.01 / 8, 2 * 16 * 4 * 8
    assert 0 < many - few
    assert few > words + tokens


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("cell", ["RevGRU", "RevLSTM"])
def test_the_large_shape_keeps_to_its_goal(cell: str) -> None:
    """With all rooms of graphs; it takes a chunk at least, or nothing was counted."""
    found = calculated(Contestant(cell=cell, backend="triton"), LARGE)
    assert 0.9 * budget_on(torch.device("cuda"), DEFAULT_BUDGET) < found < MEMORY_GOAL * 1e9
