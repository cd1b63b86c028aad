"""Where the words of a buffer lie: a stack of chunks in a few large blocks of memory.

Were each chunk's words a tensor of their own, thousands of small tensors that live as long as the sequence would lie
between the large ones that come and go with each chunk. The C library could then neither join the holes nor give them
back, and a process would hold many times what it stores.
"""

from __future__ import annotations

import copy
from array import array
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from revtune.reversible.own_pages import in_own_pages

BLOCK_WORDS = 2**19
"""Words of a block at least, 1 MiB of int16. What of a block is never written is never resident."""


class WordStore:
    """A stack of chunks of words. A block is freed when the last chunk in it is taken off.

    Args:
        device: where words lie.
        dtype: theirs; those of a buffer are int16.
    """

    def __init__(self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.int16) -> None:
        self._none = torch.empty(0, dtype=dtype, device=device)
        self._blocks: list[Tensor] = []
        # Of each chunk: how many blocks there were, and from where to where it lies in the last of them. Numbers in
        # arrays, since objects of Python's would be small and many too.
        self._in, self._begins, self._ends = array("q"), array("q"), array("q")
        self._open = False  # whether the last block may be written on

    @classmethod
    def of(cls, chunks: Iterable[Tensor], device: torch.device | str = "cpu") -> WordStore:
        """A stack of these chunks, the lowest first."""
        store = cls(device)
        for words in chunks:
            store.push(words)
        return store

    def __len__(self) -> int:
        return len(self._ends)

    def __iter__(self) -> Iterator[Tensor]:
        """The words of each chunk, the lowest first."""
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int) -> Tensor:
        """The words of a chunk, a view."""
        if self._begins[number] == self._ends[number]:
            return self._none
        return self._blocks[self._in[number] - 1][self._begins[number] : self._ends[number]]

    @property
    def words(self) -> int:
        """The words of all chunks."""
        return sum(self._ends) - sum(self._begins)

    def push(self, words: Tensor) -> None:
        """Put a chunk's words on top; they are copied."""
        size = words.numel()
        end = self._ends[-1] if self._open and self._ends else 0
        if size and (not self._open or len(self._blocks[-1]) - end < size):
            self._blocks.append(in_own_pages(self._none, (max(size, BLOCK_WORDS),)))
            self._open, end = True, 0
        self._in.append(len(self._blocks))
        self._begins.append(end)
        self._ends.append(end + size)
        if size:
            self[-1].copy_(words)

    def pop(self) -> Tensor:
        """Take the top chunk off. Its words may be overwritten by the next `push`."""
        top = self[-1]
        for numbers in (self._in, self._begins, self._ends):
            numbers.pop()
        del self._blocks[self._in[-1] if self._in else 0 :]
        self._open = self._open and bool(self._blocks)
        return top

    def copy(self) -> WordStore:
        """A stack that goes its own way; the words so far are shared, not copied, and neither writes over them."""
        self._open = False
        other = copy.copy(self)
        other._blocks = list(self._blocks)
        other._in, other._begins, other._ends = self._in[:], self._begins[:], self._ends[:]
        return other
