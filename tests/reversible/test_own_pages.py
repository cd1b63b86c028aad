"""Memory in pages of its own: what it is like, and that it goes back to the system at once."""

import os
from collections.abc import Callable

import pytest
import torch

from revtune.reversible.meter import ResidentGauge
from revtune.reversible.own_pages import LEAST, Room, in_own_pages, zeros


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


def test_rows_of_a_gradient_that_nothing_reaches_take_no_memory() -> None:
    weight, gauge = torch.nn.Parameter(torch.empty(4096, 1024)), ResidentGauge()
    grad = zeros(weight, (4096, 1024))
    grad.index_add_(0, torch.tensor([3, 7]), torch.ones(2, 1024))
    resident = int(gauge._read("RssAnon")) - gauge.before
    assert resident < 2**20 < grad.nbytes and grad.sum() == 2048


def test_a_forked_process_has_its_own() -> None:
    made = in_own_pages(torch.empty(0), (2**20,)).fill_(1)
    child = os.fork()
    if child == 0:
        made.fill_(2)
        os._exit(0)
    os.waitpid(child, 0)
    assert made.max() == 1


HOLDS: list[Callable[[torch.Tensor], object]] = [
    lambda made: made,
    lambda made: made[:1, 3:],
    lambda made: made.untyped_storage(),
    lambda made: made.detach().numpy(),
    lambda made: made.t().expand(2, -1, -1),
]


@pytest.mark.parametrize("hold", HOLDS)
def test_a_room_is_used_again_only_when_nobody_holds_what_was_there(hold: Callable[[torch.Tensor], object]) -> None:
    room, like = Room(), torch.empty(0)
    made = room.tensor(like, (600, 100))
    where, held = made.data_ptr(), hold(made)
    del made
    other = room.tensor(like, (600, 100))
    assert other.data_ptr() != where
    del held
    again = room.tensor(like, (500, 100))
    assert again.data_ptr() == where and again.shape == (500, 100) and again.is_contiguous() and not again._is_view()
    del again
    assert room.tensor(like, (700, 100)).fill_(2).sum() == 140_000


def test_a_room_is_held_by_the_graph_that_reads_it() -> None:
    room, weight = Room(), torch.nn.Parameter(torch.ones(100))
    made = room.tensor(weight, (600, 100)).fill_(3)
    total = (made * weight).sum()
    where = made.data_ptr()
    del made
    assert room.tensor(weight, (600, 100)).fill_(0).data_ptr() != where
    total.backward()
    assert weight.grad is not None and weight.grad.unique().tolist() == [1800]
    del total
    assert room.tensor(weight, (600, 100)).data_ptr() == where


def test_what_is_small_stands_in_no_room() -> None:
    room = Room()
    room.tensor(torch.empty(0), (3, 5))
    assert room._pages is None
