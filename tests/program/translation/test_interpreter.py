"""Sentences translated: unknown words taken over from where the attention is, very long ones apart from others."""

import torch
from torch import Tensor

from revtune.program.data.subwords import Subwords
from revtune.program.data.vocabulary import END, UNKNOWN, Words
from revtune.program.translation.interpreter import POSITIONS, Decoding, Interpreter, batches
from revtune.program.translation.translator import Memory, State, Translator

SOURCE, TARGET = Words(["a", "b", "c", END, UNKNOWN]), Words(["x", END, UNKNOWN])


class Parrot(Translator):
    """An unknown word for each of the source's, attending to them from the last to the first."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)
        self.said = 0

    def remembered(self, source: Tensor, lengths: Tensor) -> tuple[Memory, State]:
        """Nothing."""
        self.said = 0
        return Memory(torch.zeros(len(lengths), len(source), 1), lengths), torch.zeros(1, len(lengths), 1)

    def step(self, words: Tensor, state: State, memory: Memory) -> tuple[Tensor, Tensor, State]:
        """The next word."""
        left = int(memory.lengths[0]) - self.said
        self.said += 1
        logp = torch.full((len(words), len(TARGET)), -9.0)
        logp[:, TARGET.index[UNKNOWN] if left > 0 else TARGET.start] = 0.0
        weights = torch.full((len(words), memory.keys.shape[1]), 0.1)
        weights[:, max(left - 1, 0)] = 0.9
        return logp, weights, state


def test_an_unknown_word_is_the_source_s_that_is_looked_at_most() -> None:
    found = Interpreter(Parrot(), SOURCE, TARGET, Decoding(beam=1, batch=1))(["a zorg c", "", "b"])
    assert [one.text for one in found] == ["c zorg a", "", "b"]
    assert found[0].source == ["a", "zorg", "c"] and found[0].target == ["c", "zorg", "a"]
    assert found[0].attention.argmax(1).tolist() == [2, 1, 0]


def test_sentences_go_together_by_length_and_very_long_ones_alone() -> None:
    assert batches([3, 0, 1, 2], 2) == [[2, 3], [0]]
    assert batches([POSITIONS, 4, POSITIONS // 2, 1, POSITIONS // 2], 9) == [[3, 1], [2, 4], [0]]
    assert batches([0, 0], 3) == [] and batches([5] * 7, 3) == [[0, 1, 2], [3, 4, 5], [6]]


def test_sub_words_are_told_as_text() -> None:
    words = Subwords.of(["ab cd", "ab", "cd"], most=30)

    class Echo(Parrot):
        """Says what it knows best."""

        def step(self, words: Tensor, state: State, memory: Memory) -> tuple[Tensor, Tensor, State]:
            """The sub-word `ab`, then the end."""
            self.said += 1
            logp = torch.full((len(words), len(lexicon)), -9.0)
            logp[:, lexicon.encode("ab")[0] if self.said == 1 else lexicon.start] = 0.0
            return logp, torch.ones(len(words), memory.keys.shape[1]), state

    lexicon = words
    found = Interpreter(Echo(), words, words, Decoding(beam=1))(["cd"])[0]
    assert found.text == "ab" and found.source == ["cd"] and found.attention.shape == (1, 1)
