"""The information buffer where the host must not wait for numbers: on a GPU.

`Buffer` asks at every turn how many words are spilled, which on a GPU makes the host wait for the device, and which a
CUDA graph cannot hold. Here every lane, a head at a turn, notes the word that it would spill and whether it did. `seal`
picks those that were: one question a chunk. Dividing, a lane finds its word by its rank among the lanes that want one,
and how many words are left is a number on the device.

Words, their order and all counts are those of `Buffer` to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from revtune.errors import ReversalError
from revtune.reversible.cells.information_buffer import WORD, Buffer

HALF_WORD, WORD_MASK = int(WORD) // 2, int(WORD) - 1


class LaneBuffer(Buffer):
    """A `Buffer` of fixed shapes: `multiply`, and `divide` inside `rewinding`, never ask the device anything.

    Outside of `rewinding`, `divide` asks when the words at hand may not suffice.
    """

    free_to_ask = False

    def __init__(
        self, rows: int, units: int, *, parts: int = 1, share: int = 1, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(rows, units, parts=parts, share=share, device=device)
        self._spilled: list[Tensor] = []  # beside each of `_open`: which of its words were spilled
        self._new: list[Tensor] = []  # whether heads had come back to where they began anew, not asked for yet
        self._set_at_hand(None)

    def _set_at_hand(self, top: Tensor | None) -> None:
        """Make these the words at hand, as `_unpacked` gives them, all of them still there."""
        self._at_hand = self.heads.new_empty(0) if top is None else top
        self._left = torch.full((), self._at_hand.numel(), dtype=torch.int64, device=self.heads.device)
        self._least = self._left  # how few were ever left; fewer than none where the buffer ran empty
        self._sure: float = self._at_hand.numel()  # as many are left at least, as far as the host knows
        self._touched = False  # whether any may have been taken

    @property
    def words(self) -> int:
        """How many words are spilled. Asks the device if any may have been since `seal`, or taken since."""
        return self._sealed.words + self._settled() + int(sum(spilled.sum() for spilled in self._spilled))

    def copy(self) -> LaneBuffer:
        other = super().copy()
        assert isinstance(other, LaneBuffer)
        other._spilled, other._new = list(self._spilled), list(self._new)
        return other

    @contextmanager
    def rewinding(self) -> Iterator[None]:
        self.seal()
        self._push_left()
        self._set_at_hand(self._unpacked() if len(self._sealed) else None)
        self._sure, self._new = float("inf"), []
        try:
            yield
        except BaseException:
            self._sure, self._new = 0, []  # nobody asks for `came_even`, so the device is asked again
            raise

    def came_even(self) -> tuple[bool | Tensor, bool | Tensor]:
        if not self._touched:  # and another `seal` may have closed the words at hand
            self._sure = self._at_hand.numel()
            return True, True
        enough, all_taken = self._least >= 0, torch.stack([self._left == 0, *self._new]).all()
        self._set_at_hand(None)
        self._new = []
        return enough, all_taken

    def seal(self) -> None:
        if self._open:
            words = torch.cat(self._open).masked_select(torch.cat(self._spilled))  # the one question
            self._push_left()
            self._sealed.push(words.bitwise_and_(WORD_MASK).sub_(HALF_WORD).to(torch.int16))
            self._open, self._spilled = [], []

    def take_up(self, sealed: list[Tensor]) -> None:
        super().take_up(sealed)
        self._set_at_hand(None)

    def discard(self) -> None:
        self._open, self._spilled = [], []

    def _note(self, words: Tensor, spilled: Tensor) -> None:
        """Note whole numbers below 2^31, of which the low 16 bits count, and which of them are spilled."""
        self._open.append(words.to(torch.int32).flatten())
        self._spilled.append(spilled.flatten())

    def _spill(self, words: Tensor) -> None:
        self._note(words.remainder(WORD), torch.ones_like(words, dtype=torch.bool))

    def _require_new(self, heads: Tensor) -> None:
        if self._sure < float("inf"):  # nobody asks for `came_even` later
            super()._require_new(heads)
        else:
            self._new.append(heads)

    def _spill_full(self, s: Tensor, full: Tensor) -> None:
        self._note(s, full)
        s.copy_(torch.where(full, torch.floor(s * (1 / WORD)), s))

    def _refill_low(self, s: Tensor, low: Tensor) -> None:
        if not low.numel():
            return  # a turn that kept units have left no unit
        self._have(low.numel())
        if not self._at_hand.numel():
            return self._take(low.sum())
        rank = low.flatten().cumsum(0)
        self._take(rank[-1])
        words = self._at_hand[(self._left + rank - 1).clamp_min_(0)].view(s.shape)
        s.copy_(torch.where(low, words.add_(s, alpha=WORD), s))

    def _unspill(self, count: int) -> Tensor:
        self._have(count)
        self._take(count)
        if not self._at_hand.numel():
            return self.heads.new_zeros(count)
        return self._at_hand[(self._left + torch.arange(count, device=self.heads.device)).clamp_min_(0)]

    def _take(self, count: Tensor | int) -> None:
        """Take so many words off those at hand."""
        self._left = self._left - count
        self._least = torch.minimum(self._least, self._left)
        self._touched = True

    def _have(self, most: int) -> None:
        """Have as many words at hand as may be wanted, or all there are."""
        self.seal()
        if self._sure < most:
            while self._settled() < most and len(self._sealed):
                self._set_at_hand(torch.cat([self._unpacked(), self._at_hand]))
        self._sure -= most

    def _settled(self) -> int:
        """How many of the words at hand are left, which asks the device.

        Raises:
            ReversalError: more have been wanted than there were.
        """
        if self._touched:
            left, least = torch.stack([self._left, self._least]).tolist()
            if least < 0:
                raise ReversalError(f"the information buffer ran empty: {-least} words wanted, 0 left")
            self._set_at_hand(self._at_hand[:left])
        return self._at_hand.numel()

    def _push_left(self) -> None:
        """Put what is left of the words at hand back on the stack."""
        if self._settled():
            self._sealed.push((self._at_hand - HALF_WORD).to(torch.int16))
            self._set_at_hand(None)

    def _unpacked(self) -> Tensor:
        """The words of the chunk on top of the stack."""
        return self._sealed.pop().double().add_(HALF_WORD)


def buffer_for(device: torch.device) -> type[Buffer]:
    """The kind of buffer for tensors on a device: on a CPU a question costs nothing, and fewer words are moved."""
    return Buffer if device.type == "cpu" else LaneBuffer
