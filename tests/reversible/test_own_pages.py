"""Memory in pages of its own: what it is like, and that it goes back to the system at once."""

import os

import pytest
import torch

from revtune.reversible.meter import ResidentGauge
from revtune.reversible.own_pages import LEAST, in_own_pages


@pytest.mark.parametrize("shape", [(3, 5), (LEAST, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int16])
def test_it_is_a_tensor_like_any(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    made = in_own_pages(torch.empty(0, dtype=dtype), shape)
    assert (made.shape, made.dtype, made.is_contiguous()) == (shape, dtype, True)
    assert made.fill_(3).double().mean() == 3
    assert made.untyped_storage().nbytes() == made.nbytes


def test_freed_pages_are_not_resident_any_more() -> None:
    gauge = ResidentGauge()
    made = in_own_pages(torch.empty(0), (2**22,)).fill_(1)
    resident = int(gauge._read("RssAnon"))
    del made
    assert resident - gauge.before > 15 * 2**20 and gauge._read("RssAnon") - gauge.before < 2**20


def test_a_forked_process_has_its_own() -> None:
    made = in_own_pages(torch.empty(0), (2**20,)).fill_(1)
    child = os.fork()
    if child == 0:
        made.fill_(2)
        os._exit(0)
    os.waitpid(child, 0)
    assert made.max() == 1
