"""The information buffer gives back every count, keeps its heads in range, stores little more than was forgotten.

What is said of one kind is said of both: of the one for a CPU, and of the one that asks its device nothing.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from revtune import Buffer, ReversalError, default_share, ideal_bits
from revtune.reversible.cells.lane_buffer import LaneBuffer

of_both_kinds = pytest.mark.parametrize("kind", [Buffer, LaneBuffer])

LOW, HIGH = 2**14, 2**30
LIMIT = 2**52


class Shape(NamedTuple):
    """A batch of cells and how many units share a head."""

    rows: int
    units: int
    parts: int
    share: int

    def buffer(self, kind: type[Buffer] = Buffer) -> Buffer:
        return kind(self.rows, self.units, parts=self.parts, share=self.share)


class Model:
    """The buffer in whole numbers, element by element, as docs/exactness.md writes it."""

    def __init__(self, shape: Shape) -> None:
        self.turns = max(1, min(shape.share // shape.parts, shape.units))
        self.width = math.ceil(shape.units / self.turns)
        self.rows, self.units = shape.rows, shape.units
        self.heads = [[LOW] * self.width for _ in range(shape.rows)]
        self.stack: list[int] = []

    def order(self) -> list[tuple[int, int]]:
        """Rows and units, turn by turn."""
        starts = range(0, self.units, self.width)
        return [(b, j) for s in starts for b in range(self.rows) for j in range(s, min(s + self.width, self.units))]

    def multiply(self, h: Sequence[Sequence[int]], zi: Sequence[Sequence[int]]) -> list[list[int]]:
        out = [list(row) for row in h]
        for b, j in self.order():
            s, z = self.heads[b][j % self.width], zi[b][j]
            if s >= z * 2**20:
                self.stack.append(s % 2**16)
                s >>= 16
            s, m = divmod(s * 2**10 + h[b][j] % 2**10, z)
            out[b][j], self.heads[b][j % self.width] = h[b][j] // 2**10 * z + m, s
        return out

    def divide(self, h: Sequence[Sequence[int]], zi: Sequence[Sequence[int]]) -> list[list[int]]:
        out = [list(row) for row in h]
        for b, j in reversed(self.order()):
            s, z = self.heads[b][j % self.width], zi[b][j]
            q, m = divmod(h[b][j], z)
            s, r = divmod(s * z + m, 2**10)
            if s < LOW:
                s = s * 2**16 + self.stack.pop()
            out[b][j], self.heads[b][j % self.width] = q * 2**10 + r, s
        return out


COUNT = st.one_of(
    st.integers(-LIMIT + 1, LIMIT - 1),
    st.integers(-(2**33), 2**33),
    st.sampled_from([0, -1, 1023, 1024, -1024, LIMIT - 1, 1 - LIMIT]),
)
FORGET = st.one_of(st.integers(1, 1024), st.integers(1, 8), st.sampled_from([1, 512, 1023, 1024]))
SHAPE = st.builds(
    lambda rows, units, parts, turns: Shape(rows, units, parts, parts * turns),
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(1, 6),
)


@st.composite
def plans(draw: st.DrawFn) -> tuple[Shape, list[tuple[str, list[list[int]], list[list[int]]]]]:
    """Multiplications to run, with ragged masks (zi = 1024), and what to do between them."""
    shape = draw(SHAPE)

    def grid(values: st.SearchStrategy[int]) -> list[list[int]]:
        row = st.lists(values, min_size=shape.units, max_size=shape.units)
        return draw(st.lists(row, min_size=shape.rows, max_size=shape.rows))

    moves = []
    for then in draw(st.lists(st.sampled_from(["", "seal", "undo", "undo all", "copy"]), min_size=1, max_size=12)):
        live = draw(st.lists(st.booleans(), min_size=shape.rows, max_size=shape.rows))
        zi = [row if alive else [1024] * shape.units for row, alive in zip(grid(FORGET), live, strict=True)]
        moves.append((then, grid(COUNT), zi))
    return shape, moves


def tensor(grid: Sequence[Sequence[int]]) -> Tensor:
    return torch.tensor(grid, dtype=torch.float64)


def random_counts(rows: int, units: int, generator: torch.Generator) -> Tensor:
    return torch.randint(-(2**33), 2**33, (rows, units), generator=generator).double()


@of_both_kinds
@settings(deadline=None, max_examples=150)
@given(plan=plans())
def test_buffer_is_its_whole_number_model_step_by_step_and_inverts(
    kind: type[Buffer],
    plan: tuple[Shape, list[tuple[str, list[list[int]], list[list[int]]]]],
) -> None:
    shape, moves = plan
    buffer, model = shape.buffer(kind), Model(shape)
    waiting: list[tuple[list[list[int]], list[list[int]], list[list[int]]]] = []

    def agree() -> None:
        assert buffer.heads.tolist() == model.heads
        assert buffer.words == len(model.stack)
        assert bool(((buffer.heads >= LOW) & (buffer.heads < HIGH)).all())
        assert buffer.stored_bits == 16 * len(model.stack) + 32 * shape.rows * model.width

    def undo() -> None:
        h, zi, product = waiting.pop()
        assert buffer.divide(tensor(product), tensor(zi)).tolist() == h == model.divide(product, zi)
        agree()

    for then, h, zi in moves:
        product = model.multiply(h, zi)
        assert buffer.multiply(tensor(h), tensor(zi)).tolist() == product
        waiting.append((h, zi, product))
        agree()
        if then == "seal":
            buffer.seal()
        elif then == "copy":
            buffer = buffer.copy()
        elif then:
            for _ in range(len(waiting) if then == "undo all" else 1):
                undo()
    while waiting:
        undo()
    assert buffer.heads.unique().tolist() == [LOW]
    assert buffer.words == 0


@settings(deadline=None, max_examples=60)
@given(SHAPE, st.integers(0, 2**32), st.integers(1, 200), st.sampled_from([(1, 1), (1, 64), (128, 1024), (1, 1024)]))
def test_stored_bits_are_what_was_forgotten_and_the_heads(
    shape: Shape, seed: int, steps: int, span: tuple[int, int]
) -> None:
    generator, buffer, ideal = torch.Generator().manual_seed(seed), shape.buffer(), 0.0
    for step in range(steps):
        zi = torch.randint(span[0], span[1] + 1, (shape.rows, shape.units), generator=generator).double()
        ideal += ideal_bits(zi)
        buffer.multiply(random_counts(shape.rows, shape.units, generator), zi)
        if step % 7 == 0:
            buffer.seal()
    heads = buffer.heads.numel()
    assert buffer.stored_bits == 16 * buffer.words + 32 * heads
    rounding = steps * shape.rows * shape.units * 2e-4 + 0.1 * buffer.words
    assert abs(16 * buffer.words + float((buffer.heads / LOW).log2().sum()) - ideal) <= rounding
    assert ideal - rounding - 16 * heads <= 16 * buffer.words <= ideal + rounding


@pytest.mark.parametrize("zi", [1, 2, 3, 511, 1000, 1023])
@pytest.mark.parametrize("above", [-1, 0, 1])
def test_a_head_is_spilled_from_its_limit_on(zi: int, above: int) -> None:
    """Just below the limit a head still fits; at the limit it would reach 2^30."""
    buffer, h = Buffer(1, 1), tensor([[1023]])
    buffer.heads.fill_(zi * 2**20 + above)
    product = buffer.multiply(h, tensor([[zi]]))
    assert buffer.words == (above >= 0)
    assert LOW <= buffer.heads.item() < HIGH
    assert torch.equal(buffer.divide(product, tensor([[zi]])), h)
    assert buffer.heads.item() == zi * 2**20 + above


def test_a_gate_of_one_forgets_nothing_and_changes_nothing() -> None:
    buffer, h = Buffer(2, 3, share=2), tensor([[5, -7, LIMIT - 1], [0, 1 - LIMIT, -1]])
    ones = torch.full((2, 3), 1024.0, dtype=torch.float64)
    for _ in range(50):
        assert torch.equal(buffer.multiply(h, ones), h)
    assert buffer.words == 0
    assert buffer.heads.unique().tolist() == [LOW]


@given(COUNT, FORGET)
def test_multiplying_is_right_to_ten_low_bits(count: int, zi: int) -> None:
    product = int(Buffer(1, 1).multiply(tensor([[count]]), tensor([[zi]])).item())
    assert abs(product - count * zi / 1024) < 1024


@of_both_kinds
def test_dividing_more_than_was_multiplied_is_a_reversal_error(kind: type[Buffer]) -> None:
    buffer, zi = kind(4, 8), torch.full((4, 8), 3.0, dtype=torch.float64)
    h = random_counts(4, 8, torch.Generator().manual_seed(0))
    for _ in range(5):
        h = buffer.multiply(h, zi)
    for _ in range(5):
        h = buffer.divide(h, zi)
    with pytest.raises(ReversalError, match="the information buffer ran empty: [0-9]+ words wanted, 0 left"):
        for _ in range(3):
            h = buffer.divide(h, zi)


@of_both_kinds
def test_copies_go_their_own_ways(kind: type[Buffer]) -> None:
    generator, buffer = torch.Generator().manual_seed(1), kind(3, 4, parts=2, share=4)
    zi = torch.randint(1, 300, (20, 3, 4), generator=generator).double()
    kept = [random_counts(3, 4, generator)]
    for step in range(10):
        kept.append(buffer.multiply(kept[-1], zi[step]))
    assert torch.equal(buffer.divide(kept[10], zi[9]), kept[9])
    buffer.multiply(kept[9], zi[9])
    heads, words = buffer.heads.clone(), buffer.words
    copy = buffer.copy()
    for step in reversed(range(10)):
        assert torch.equal(copy.divide(kept[step + 1], zi[step]), kept[step])
    assert (copy.words, copy.heads.unique().tolist()) == (0, [LOW])
    assert torch.equal(buffer.heads, heads)
    assert buffer.words == words
    other, h = buffer.copy(), kept[10]
    for step in range(10, 20):
        h = other.multiply(h, zi[step])
    assert buffer.words == words < other.words
    for step in reversed(range(10)):
        assert torch.equal(buffer.divide(kept[step + 1], zi[step]), kept[step])


@of_both_kinds
def test_discarding_forgets_the_words_since_the_last_seal_only(kind: type[Buffer]) -> None:
    generator, buffer = torch.Generator().manual_seed(2), kind(2, 6)
    zi = torch.randint(1, 40, (12, 2, 6), generator=generator).double()
    kept = [random_counts(2, 6, generator)]
    for step in range(6):
        kept.append(buffer.multiply(kept[-1], zi[step]))
    buffer.seal()
    heads, words, h = buffer.heads.clone(), buffer.words, kept[-1]
    for step in range(6, 12):
        h = buffer.multiply(h, zi[step])
    assert buffer.words > words
    buffer.discard()
    buffer.heads = heads
    assert buffer.words == words
    for step in reversed(range(6)):
        assert torch.equal(buffer.divide(kept[step + 1], zi[step]), kept[step])
    assert buffer.words == 0


@of_both_kinds
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_not_a_number_and_infinity_stay_visible(kind: type[Buffer], bad: float) -> None:
    half = torch.full((1, 2), 512.0, dtype=torch.float64)
    assert not kind(1, 2).multiply(torch.tensor([[bad, 3.0]], dtype=torch.float64), half)[0, 0].isfinite()
    gates = torch.tensor([[float("nan"), 512.0]], dtype=torch.float64)
    assert not kind(1, 2).multiply(tensor([[5, 3]]), gates)[0, 0].isfinite()


@given(st.integers(1, 10**6), st.integers(1, 8))
def test_default_share_is_the_least_that_makes_heads_cheap(steps: int, parts: int) -> None:
    allowed = [share for share in range(1, 17) if share % parts == 0]
    enough = [share for share in allowed if share * steps >= 1120]
    assert default_share(steps, parts) == (enough[0] if enough else allowed[-1])


def test_default_share_of_wide_cells_is_their_parts() -> None:
    assert [default_share(10, 17), default_share(10**6, 17)] == [17, 17]


@pytest.mark.parametrize("parts", [0, -2, 1.5])
def test_a_default_share_of_no_parts_is_refused(parts: Any) -> None:
    with pytest.raises(ValueError, match=f"parts must be a positive integer, got {parts}"):
        default_share(0, parts)


@pytest.mark.parametrize(("parts", "share"), [(1, 0), (2, 3), (4, 2), (2, -2)])
def test_a_share_that_fits_no_parts_is_refused(parts: int, share: int) -> None:
    with pytest.raises(ValueError, match=f"share must be a positive multiple of the cell's {parts} parts, got {share}"):
        Buffer(2, 3, parts=parts, share=share)


def test_units_of_a_row_share_heads() -> None:
    for shape, heads in ((Shape(2, 10, 2, 8), 3), (Shape(2, 10, 2, 2), 10), (Shape(2, 3, 1, 16), 1)):
        assert shape.buffer().heads.shape == (2, heads)


def test_ideal_bits() -> None:
    assert ideal_bits(tensor([[512, 1024, 1]])) == 11.0


@of_both_kinds
@given(
    counts=st.lists(st.integers(1 - LIMIT, LIMIT - 1), min_size=12, max_size=12),
    heads=st.lists(st.integers(LOW, HIGH - 1), min_size=4, max_size=4),
    sealed=st.booleans(),
)
def test_what_is_put_away_whole_is_taken_back(
    kind: type[Buffer], counts: list[int], heads: list[int], sealed: bool
) -> None:
    buffer, rows = kind(4, 3, parts=2, share=6), torch.tensor([0, 3])
    buffer.heads.copy_(torch.tensor(heads).view(4, 1))
    first, second = torch.tensor(counts, dtype=torch.float64).view(2, 2, 3)
    buffer.put_away(rows, [first, second])
    assert buffer.heads[:, 0].tolist() == [LOW, heads[1], heads[2], LOW]
    assert buffer.words == 2 * (4 * 2 * 3 + 2)
    if sealed:
        buffer.seal()
    buffer.heads[1], before = LOW, buffer.copy()
    assert all(map(torch.equal, buffer.take_back(rows, 2), (first, second)))
    assert buffer.heads[:, 0].tolist() == [heads[0], LOW, heads[2], heads[3]] and buffer.words == 0
    before.heads[3] += 1
    with pytest.raises(ReversalError, match="a head has not come back to where it began anew"):
        before.take_back(rows, 2)


@of_both_kinds
@pytest.mark.parametrize("ends", ["raises", "undoes nothing"])
def test_a_way_back_that_was_not_gone_leaves_a_buffer_that_asks_again(kind: type[Buffer], ends: str) -> None:
    """What is undone step by step afterwards finds the words of every `seal`, and heads that are not new."""
    generator, buffer = torch.Generator().manual_seed(3), kind(3, 4, parts=2, share=4)
    zi = torch.randint(1, 40, (20, 3, 4), generator=generator).double()
    kept = [random_counts(3, 4, generator)]
    for step in range(20):
        kept.append(buffer.multiply(kept[-1], zi[step]))
        buffer.seal()
    if ends == "raises":
        with pytest.raises(KeyError), buffer.rewinding():
            raise KeyError
    else:
        with buffer.rewinding():
            pass
        assert buffer.came_even() == (True, True)
    with pytest.raises(ReversalError, match="a head has not come back to where it began anew"):
        buffer.copy().take_back(torch.tensor([0, 2]), 2)
    for step in reversed(range(20)):
        assert torch.equal(buffer.divide(kept[step + 1], zi[step]), kept[step])
    assert buffer.words == 0
