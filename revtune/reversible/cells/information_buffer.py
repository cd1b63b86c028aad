"""The information buffer: it keeps what multiplying by a forget gate would lose, so that dividing gives it back.

Multiplying a count h by zi/1024 must be undone exactly. The ten low bits of h are pushed onto an integer s, and a
digit in base zi is popped from s in their place (Maclaurin, Duvenaud, Adams 2015; MacKay et al. 2018, section 3.2).
The net growth of s is log2(1024/zi) = -log2 z bits, which is what was forgotten: an asymmetric numeral system whose
message is the state.

s, the *head*, is kept in [2^14, 2^30) and starts at 2^14. When a multiplication would overflow it, its low 16 bits are
spilled to a stack first; after a division s < 2^14 is true exactly when a word was spilled there, so no flags are
stored::

    multiply(h, zi)                                    divide(h, zi)
      if s >= zi * 2^20:  spill s mod 2^16; s >>= 16     q, m = floordivmod(h, zi)
      a = s * 2^10 + (h mod 2^10)                        a = s * zi + m
      s, m = divmod(a, zi)                               s, r = divmod(a, 2^10)
      h = floor(h / 2^10) * zi + m                       h = q * 2^10 + r
                                                         if s < 2^14:  s = s * 2^16 + unspill

A head costs 32 bits once a sequence, so `share` units of a row use one head in turn: the parts of a cell at the same
place, then the units j, j + heads, j + 2 heads ... of a part. docs/exactness.md proves that it inverts and counts what
it stores.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from revtune.errors import ReversalError
from revtune.reversible.arguments import check_size, is_size
from revtune.reversible.cells.word_store import WordStore

HEAD_START = 2.0**14
"""Where heads begin, and the least that they are."""

DIGIT = 2.0**10
"""The base of the digit that a count's ten low bits are: as much as the least forget integer, 1, loses."""

WORD = 2.0**16
"""The base of spilled words."""

COUNT_WORDS, HEAD_WORDS = 4, 2
"""Words of a count, which is below 2^52, and of a head, below 2^30, where they are pushed whole."""

MAX_SHARE = 16
"""The most units that share a head by default: they take turns, which costs time."""

SHARED_STEPS = 1120
"""From share * steps = 1120 on, heads cost under 24.3 / 1120 = 2.2% of the bits stored at one forgotten bit a step."""


def default_share(steps: int, parts: int) -> int:
    """How many units share one head: the least multiple of `parts`, at most 16, with share * steps >= 1120.

    Sharing makes short sequences cheap and costs a little time, since the units of a head take turns; long sequences
    need none beyond the parts of a cell, which take turns anyway.

    Raises:
        ValueError: no positive number of parts.

    Example:
        >>> default_share(70, 2), default_share(1000, 2), default_share(1000, 4)
        (16, 2, 4)
    """
    check_size("parts", parts)
    wanted = -(-SHARED_STEPS // max(steps, 1))
    return max(parts, min(MAX_SHARE // parts, -(-wanted // parts)) * parts)


def check_share(share: int, parts: int) -> None:
    """Refuse a number of units a head that no cell of so many parts can have.

    Raises:
        ValueError: it is not a positive multiple of the parts.
    """
    if not is_size(share) or share % parts:
        raise ValueError(f"share must be a positive multiple of the cell's {parts} parts, got {share!r}")


def ideal_bits(zi: Tensor) -> float:
    """The bits that multiplying by these forget integers loses, sum(log2(1024 / zi)): the least any buffer can store.

    Example:
        >>> ideal_bits(torch.tensor([512.0, 1024.0], dtype=torch.float64))
        1.0
    """
    return float((DIGIT / zi.double()).log2().sum())


class Buffer:
    """An information buffer for `rows` sequences of cells whose parts are `units` wide.

    Args:
        rows: the batch size B.
        units: the width N of one part.
        parts: how many parts the cell has; all of them use the same heads in turn.
        share: how many units use one head, a multiple of `parts`. Each part then has ceil(N / (share / parts)) heads.
        device: where heads and words live.

    Raises:
        ValueError: `share` is not a positive multiple of `parts`.

    Example:
        >>> buffer, zi = Buffer(1, 3), torch.tensor([[512.0, 700.0, 1.0]], dtype=torch.float64)
        >>> h = torch.tensor([[5e9, -7e9, 11.0]], dtype=torch.float64)
        >>> torch.equal(buffer.divide(buffer.multiply(h, zi), zi), h)
        True
    """

    free_to_ask = True
    """Whether it asks for numbers at any step, as where tensors are on a CPU."""

    def __init__(
        self, rows: int, units: int, *, parts: int = 1, share: int = 1, device: torch.device | str = "cpu"
    ) -> None:
        check_share(share, parts)
        self.units = units
        turns = max(1, min(share // parts, units))
        width = -(-units // turns)
        self.heads = torch.full((rows, width), HEAD_START, dtype=torch.float64, device=device)
        self._turns = [slice(first, min(first + width, units)) for first in range(0, units, width)]
        self._sealed = WordStore(device)
        self._open: list[Tensor] = []
        self._top: Tensor | None = None
        self._words = 0

    @property
    def words(self) -> int:
        """How many words are spilled."""
        return self._words

    @property
    def stored_bits(self) -> int:
        """What is stored now: 16 bits a spilled word, 32 bits a head."""
        return 16 * self.words + 32 * self.heads.numel()

    def copy(self) -> Buffer:
        """A buffer that goes its own way from here; the words spilled so far are shared, not copied."""
        other = copy.copy(self)
        other.heads = self.heads.clone()
        other._sealed, other._open = self._sealed.copy(), list(self._open)
        return other

    def multiply(self, h: Tensor, zi: Tensor) -> Tensor:
        """h * zi / 1024, up to the last ten bits of the count, with the lost bits pushed.

        Args:
            h: counts, float64 whole numbers, |h| < 2^52, shape (B, N), or the first units of a part.
            zi: forget integers 1..1024, float64, shape (B, N).

        Returns:
            The new counts, float64, shape (B, N).
        """
        q = torch.floor(h * (1 / DIGIT))
        r = torch.sub(h, q, alpha=DIGIT)
        limit = zi * 2.0**20
        for units in self._turns:
            z = zi[:, units]
            s = self.heads[:, : z.shape[1]]
            self._spill_full(s, s >= limit[:, units])
            a = torch.add(r[:, units], s, alpha=DIGIT)
            torch.floor(a / z, out=s)
            torch.addcmul(a, s, z, value=-1, out=r[:, units])
        return torch.addcmul(r, q, zi, out=r)

    def divide(self, h: Tensor, zi: Tensor) -> Tensor:
        """Undo the last `multiply` that used these forget integers; shapes and units as there.

        Raises:
            ReversalError: more words are wanted than were spilled: h, zi or the order of calls is not what it was.
        """
        q = torch.floor(h / zi)
        m = torch.addcmul(h, q, zi, value=-1)
        for units in reversed(self._turns):
            z = zi[:, units]
            s = self.heads[:, : z.shape[1]]
            a = torch.addcmul(m[:, units], s, z)
            torch.floor(a * (1 / DIGIT), out=s)
            torch.sub(a, s, alpha=DIGIT, out=m[:, units])
            self._refill_low(s, s < HEAD_START)
        return m.add_(q, alpha=DIGIT)

    def _spill_full(self, s: Tensor, full: Tensor) -> None:
        """Spill the low word of those heads `s` that are full, in place."""
        spilled = s.masked_select(full)
        if spilled.numel():
            self._spill(spilled)
            s.masked_scatter_(full, torch.floor(spilled * (1 / WORD)))

    def _refill_low(self, s: Tensor, low: Tensor) -> None:
        """Append a word to those heads `s` that are low, in place, the last word spilled to the last of them."""
        emptied = s.masked_select(low)
        if emptied.numel():
            s.masked_scatter_(low, emptied.mul_(WORD).add_(self._unspill(emptied.numel())))

    @contextmanager
    def rewinding(self) -> Iterator[None]:
        """While what one `seal` closed is undone, all of it; `came_even` is asked then."""
        yield

    def came_even(self) -> tuple[bool | Tensor, bool | Tensor]:
        """End what `rewinding` began: whether there were enough words to undo it, and whether all were taken.

        This buffer has raised an error by then if there were not enough.
        """
        return True, True

    def put_away(self, rows: Tensor, counts: Sequence[Tensor]) -> None:
        """Push counts of some rows and their heads whole, and let these heads begin anew.

        Args:
            rows: which ones, (R,).
            counts: float64 whole numbers, |h| < 2^52, (R, N) each.
        """
        for values, words in ((torch.stack(list(counts)), COUNT_WORDS), (self.heads[rows], HEAD_WORDS)):
            for place in range(words):
                self._spill(torch.floor(values * WORD**-place))
        self.heads[rows] = HEAD_START

    def take_back(self, rows: Tensor, parts: int) -> list[Tensor]:
        """Undo `put_away` of counts of so many parts, which are returned.

        Raises:
            ReversalError: these rows' heads are not where they began, or fewer words are left than were pushed.
        """
        self._require_new((self.heads[rows] == HEAD_START).all())
        self.heads[rows] = self._whole(HEAD_WORDS, (len(rows), self.heads.shape[1]))
        return list(self._whole(COUNT_WORDS, (parts, len(rows), self.units)))

    def _require_new(self, heads: Tensor) -> None:
        if not heads:
            raise ReversalError("a head has not come back to where it began anew")

    def _spill(self, words: Tensor) -> None:
        """Push words, of which `seal` takes the low 16 bits."""
        self._open.append(words.flatten())
        self._words += words.numel()

    def _whole(self, words: int, shape: tuple[int, ...]) -> Tensor:
        """The last whole numbers that were pushed, of so many words each."""
        *low, top = self._unspill(words * math.prod(shape)).view(words, *shape)
        total = torch.where(top < WORD / 2, top, top - WORD)  # whose highest bit is the sign
        for word in reversed(low):
            total = total * WORD + word
        return total

    def seal(self) -> None:
        """Pack the words spilled since the last call into one tensor of 16-bit words."""
        if self._open:
            words = torch.cat(self._open).remainder_(WORD).sub_(WORD / 2).to(torch.int16)
            self._open = []
            if self._top is not None and self._top.numel():
                self._sealed.push((self._top - WORD / 2).to(torch.int16))
            self._top = None
            self._sealed.push(words)

    def sealed(self) -> list[Tensor]:
        """All words, packed, oldest first; nothing may have been unspilled."""
        self.seal()
        return list(self._sealed)

    def take_up(self, sealed: list[Tensor]) -> None:
        """Take up the words that another buffer has sealed."""
        self._sealed = WordStore.of(sealed, self.heads.device)
        self._words = self._sealed.words

    def discard(self) -> None:
        """Forget the words spilled since the last `seal`, for a pass that will not be rewound."""
        self._words -= sum(words.numel() for words in self._open)
        self._open = []

    def _unspill(self, count: int) -> Tensor:
        """Take the last `count` words off the stack, oldest first."""
        if count > self.words:
            raise ReversalError(f"the information buffer ran empty: {count} words wanted, {self.words} left")
        self.seal()
        taken: list[Tensor] = []
        while count:
            top = self._load()
            keep = max(0, top.numel() - count)
            taken.append(top[keep:])
            self._top = top[:keep]
            self._words -= top.numel() - keep
            count -= top.numel() - keep
        return taken[0] if len(taken) == 1 else torch.cat(taken[::-1])

    def _load(self) -> Tensor:
        """The words on top of the stack, unpacked."""
        if self._top is None or not self._top.numel():
            if not len(self._sealed):
                raise ReversalError(f"the information buffer is empty where {self.words} words should be left")
            self._top = self._sealed.pop().double().add_(WORD / 2)
        return self._top
