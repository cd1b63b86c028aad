"""Sub-words as a vocabulary: byte-pair encoding (Sennrich et al. 2016) by the `tokenizers` library."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from revtune.program.data.vocabulary import END, UNKNOWN
from revtune.program.errors import Problem


class Subwords:
    """A vocabulary of lower-case sub-words, which have the spaces between words in them.

    Args:
        tokenizer: the JSON of the library.

    Raises:
        ValueError: it is none, lacks the mark of an end, or skips numbers.
    """

    unit = "subword"

    def __init__(self, tokenizer: str) -> None:
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_str(tokenizer)
        except Exception as error:  # the library raises plain exceptions
            raise ValueError(f"no tokenizer: {error}") from error
        start = self._tokenizer.token_to_id(END)
        if start is None:
            raise ValueError(f"the tokenizer lacks {END}")
        numbers = self._tokenizer.get_vocab().values()
        if set(numbers) != set(range(len(numbers))):
            raise ValueError(f"the tokenizer's {len(numbers)} sub-words must be numbered from 0 on, got {max(numbers)}")
        self.start: int = start

    @classmethod
    def of(cls, lines: Iterable[str], *, most: int, fewest: int = 1) -> Subwords:
        """Learn at most so many from a training text; two are joined if they come up together `fewest` times.

        Raises:
            Problem: the text is empty, or its characters alone are more than `most`.
        """
        from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

        tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        marks = [END, UNKNOWN]
        trainer = trainers.BpeTrainer(vocab_size=most, min_frequency=fewest, special_tokens=marks, show_progress=False)
        tokenizer.train_from_iterator(lines, trainer)
        if (size := tokenizer.get_vocab_size()) <= len(marks):
            raise Problem("the vocabulary is empty: the training text has no words")
        if size > most:
            needed = f"the characters of the training text and {len(marks)} marks"
            raise Problem(f"--vocabulary must be at least {size}, {needed}, got {most}", code=2)
        return cls(tokenizer.to_str())

    def __len__(self) -> int:
        size: int = self._tokenizer.get_vocab_size()
        return size

    def encode(self, text: str) -> list[int]:
        """The sub-words of a sentence."""
        ids: list[int] = self._tokenizer.encode(text).ids
        return ids

    def unknown(self, text: str) -> list[str]:
        """The parts of a sentence that this vocabulary lacks: characters it has never met."""
        encoding = self._tokenizer.encode(text)
        unknown = self._tokenizer.token_to_id(UNKNOWN)
        spans = zip(encoding.ids, encoding.offsets, strict=True)
        return [text[first:last].strip() for token, (first, last) in spans if token == unknown]

    def text(self, tokens: Iterable[int]) -> str:
        """A sentence of these sub-words."""
        decoded: str = self._tokenizer.decode(list(tokens))
        return decoded

    def to_json(self) -> dict[str, Any]:
        """What `lexicon` needs to make this one again, ready for JSON."""
        return {"unit": self.unit, "tokenizer": self._tokenizer.to_str()}
