"""Text as tokens: corpora, streams, and the segments that a training step reads.

A text of N tokens is cut into B streams, side by side as the columns of a (N // B, B) tensor; a step reads the next
T rows of it as inputs and the same rows one further down as targets.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from revtune.program.data.vocabulary import Bytes, Vocabulary, Words
from revtune.program.errors import Problem


@dataclass(frozen=True)
class Corpus:
    """The texts to train, validate and test on as token tensors of shape (N,), with their vocabulary."""

    vocabulary: Vocabulary
    train: Tensor
    valid: Tensor
    test: Tensor

    def digest(self) -> str:
        """A fingerprint of all tokens, by which a run recognizes its data."""
        sha = hashlib.sha256(repr(self.vocabulary.to_json()).encode())
        for tokens in (self.train, self.valid, self.test):
            sha.update(len(tokens).to_bytes(8, "little"))
            sha.update(tokens.numpy().tobytes())
        return sha.hexdigest()


class Segment(NamedTuple):
    """Tokens (T, B), the tokens after them, and whether they are the first of the text."""

    inputs: Tensor
    targets: Tensor
    first: bool


def byte_corpus(train: bytes, valid: bytes, test: bytes) -> Corpus:
    """Three texts as bytes."""
    writable = map(bytearray, (train, valid, test))  # torch warns of read-only bytes
    parts = [torch.frombuffer(part, dtype=torch.uint8) for part in writable]
    return Corpus(Bytes(), *parts)


def word_corpus(train: list[str], valid: list[str], test: list[str], *, most: int) -> Corpus:
    """Three texts as words, with the vocabulary of the first."""
    words = Words.of(train, most)
    parts = [torch.tensor(words.numbers(part), dtype=torch.int32) for part in (train, valid, test)]
    return Corpus(words, *parts)


def streams(tokens: Tensor, batch: int, *, name: str) -> Tensor:
    """Tokens (N,) cut into `batch` streams, as the columns of a (N // batch, batch) tensor; the rest is left out.

    Raises:
        Problem: a stream would have fewer than two tokens, an input and its target.
    """
    rows = len(tokens) // batch
    if rows < 2:
        raise Problem(f"the {name} text has {len(tokens)} tokens, too few for {batch} streams of at least 2")
    return tokens[: rows * batch].view(batch, rows).t().contiguous()


def after(rows: Tensor, position: int, length: int) -> int:
    """Where the segment behind one of `length` steps begins; 0 behind the text's last."""
    behind = position + length
    return behind if behind < len(rows) - 1 else 0  # the last row is only a target


def segment(rows: Tensor, position: int, length: int) -> Segment:
    """The `length` steps from `position` on, int64, fewer at the end of the text."""
    stop = min(position + length, len(rows) - 1)
    return Segment(rows[position:stop].long(), rows[position + 1 : stop + 1].long(), position == 0)
