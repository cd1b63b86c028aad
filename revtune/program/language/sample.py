"""Text from a trained model, one token after another."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from revtune.program.data.vocabulary import TextUnit, Vocabulary
from revtune.program.language.model import LanguageModel
from revtune.program.runs.checkpoint import RecurrentState

SHOWN: dict[TextUnit, int] = {"byte": 600, "word": 100}
"""Tokens of the sample that a run shows at its end."""


def shown(model: LanguageModel, vocabulary: Vocabulary) -> str:
    """The sample that a run shows at its end, from the beginning of a line, the same for the same weights."""
    pieces = text(model, vocabulary, "", length=SHOWN[vocabulary.unit], temperature=0.7, seed=1)
    return "".join(pieces).strip("\n")


def tokens(model: LanguageModel, prompt: list[int], *, length: int, temperature: float, seed: int) -> Iterator[int]:
    """`length` tokens that follow a prompt, each drawn from softmax(logits / temperature); the likeliest for 0.

    Args:
        model: in evaluation mode.
        prompt: at least one token.
        length: tokens to draw.
        temperature: at least 0.
        seed: of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    state: RecurrentState = None
    read = torch.tensor(prompt).view(-1, 1)
    for _ in range(length):
        with torch.no_grad():
            logits, state = model(read, state)
        token = pick(logits[-1, 0], temperature, generator)
        yield token
        read = torch.tensor([[token]])


def pick(logits: Tensor, temperature: float, generator: torch.Generator) -> int:
    """A token drawn from logits (V,)."""
    if temperature == 0:
        return int(logits.argmax())
    below = logits.double() - logits.max()  # nothing overflows, however low the temperature
    return int(torch.multinomial((below / temperature).softmax(0), 1, generator=generator))


def text(
    model: LanguageModel, vocabulary: Vocabulary, prompt: str, *, length: int, temperature: float, seed: int
) -> Iterator[str]:
    """Pieces of text that follow a prompt; without one, the text begins on a new line."""
    start = vocabulary.encode(prompt) or [vocabulary.start]
    return vocabulary.pieces(tokens(model, start, length=length, temperature=temperature, seed=seed))
