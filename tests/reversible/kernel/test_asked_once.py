"""What must hold on a way back: asked of a device once, at its end, and of a CPU at once."""

from functools import partial

import pytest
import torch

from revtune.errors import ReversalError
from revtune.reversible.kernel.asked_once import Number, asking_once, numbers, require, same
from revtune.reversible.kernel.checksum import checksum, checksum_there, fingerprint, fingerprint_there, signed
from tests.questions import counting

YES, NO = torch.tensor(True), torch.tensor(False)


def test_the_first_that_does_not_hold_is_told_at_the_end() -> None:
    reached = False
    with counting() as questions, pytest.raises(ReversalError, match="^second$"), asking_once():
        for what, holds in (("first", YES), ("second", NO), ("third", NO)):
            require(holds, partial(str, what))
        reached = True
    assert reached and questions.asked == ["tolist"]


def test_an_error_that_may_have_come_of_it_gives_way() -> None:
    with pytest.raises(ReversalError, match="^wrong$") as raised, asking_once():
        require(NO, lambda: "wrong")
        raise ValueError("a readout that was given wrong numbers")
    assert isinstance(raised.value.__cause__, ValueError)
    with pytest.raises(ValueError, match="of its own"), asking_once():
        require(YES, lambda: "wrong")
        raise ValueError("of its own")


def test_what_the_host_knows_raises_at_once() -> None:
    for holds in (False, NO):  # outside of a block tensors are asked for
        with pytest.raises(ReversalError, match="^wrong$"):
            require(holds, lambda: "wrong")
    with pytest.raises(ReversalError, match="^wrong$"), asking_once():
        require(False, lambda: "wrong")
        pytest.fail("it went on")
    require(True, lambda: "wrong")


def test_a_block_within_another_asks_for_its_own() -> None:
    with pytest.raises(ReversalError, match="^outer$"), asking_once():
        require(NO, lambda: "outer")
        with asking_once():
            require(YES, lambda: "inner")


def test_numbers_are_asked_for_at_once() -> None:
    large = 2**64 - 3
    some: list[Number] = [large, torch.tensor(-3), 5, torch.tensor(7)]
    with counting() as questions:
        assert numbers(some) == [large, -3, 5, 7]
    assert questions.asked == ["tolist"] and numbers([]) == []
    assert same(large, large) and not same(large, 5) and bool(same(some[1], large)) and not bool(same(some[1], 5))


@pytest.mark.parametrize("shape", [(3, 4), (0,), (1,)])
def test_a_device_has_the_same_checksums(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    with counting() as questions:
        there = [checksum_there(7, (one, other)), fingerprint_there(one.float()), fingerprint_there(one.float().t())]
    assert not questions.asked
    here = [checksum(7, (one, other)), fingerprint(one.float()), fingerprint(one.float().t())]
    assert numbers(there) == list(map(signed, here))
