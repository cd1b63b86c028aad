"""Beam search against every translation there is, and what a batch may not change."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from revtune.program.data.buckets import padded
from revtune.program.translation.beam import Translation, search
from revtune.program.translation.translator import Memory, Net, State, Translator, build

START, WORDS = 0, 4
SOURCES = [[1, 2, 3], [2], [3, 3, 1, 2, 1]]


@pytest.fixture(params=["revgru", "lstm"])
def model(request: pytest.FixtureRequest) -> Translator:
    """One that has strong opinions."""
    torch.manual_seed(7)
    net = build(Net(model=request.param, embedding=6, hidden=6, attend="emb+slice:2"), WORDS, WORDS)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(0, 1.2)
    return net.eval()


@torch.no_grad()
def log_probability(model: Translator, source: list[int], words: list[int]) -> float:
    """Of a translation with its end, word by word."""
    memory, state = model.remembered(*padded([source]))
    total, last = 0.0, START
    for word in [*words, START]:
        logp, _, state = model.step(torch.tensor([last]), state, memory)
        total, last = total + logp[0, word].item(), word
    return total


def every(model: Translator, source: list[int], longest: int, penalty: float) -> list[tuple[float, list[int]]]:
    """All translations of so many words at most, best first."""
    found = []
    for size in range(longest + 1):
        for words in itertools.product(range(1, WORDS), repeat=size):
            found.append((log_probability(model, source, list(words)) / (size + 1) ** penalty, list(words)))
    return sorted(found, reverse=True)


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_a_wide_beam_finds_the_best_of_all(model: Translator, penalty: float) -> None:
    """With room for every beginning, whatever ends within the limit is met."""
    source, lengths = padded(SOURCES)
    found = search(model, source, lengths, start=START, width=81, penalty=penalty, longest=4)
    for one, sentence in zip(found, SOURCES, strict=True):
        score, words = every(model, sentence, 3, penalty)[0]
        if one.words != words:  # it may have been longer than what was enumerated
            assert len(one.words) > 3 or one.score >= score - 1e-5
        assert one.score >= score - 1e-5


def test_scores_are_those_of_the_words(model: Translator) -> None:
    source, lengths = padded(SOURCES)
    for width in (1, 3):
        for one, sentence in zip(search(model, source, lengths, start=START, width=width), SOURCES, strict=True):
            if len(one.words) < 2 * len(sentence) + 10:
                wanted = log_probability(model, sentence, one.words) / (len(one.words) + 1)
                assert one.score == pytest.approx(wanted, abs=1e-4)
            assert one.attention.shape == (len(one.words), max(map(len, SOURCES)))
            torch.testing.assert_close(one.attention.sum(1), torch.ones(len(one.words)))
            assert not one.attention[:, len(sentence) :].any()


def test_one_wide_is_greedy(model: Translator) -> None:
    for sentence in SOURCES:
        memory, state = model.remembered(*padded([sentence]))
        words, last = list[int](), START
        for _ in range(12):
            logp, _, state = model.step(torch.tensor([last]), state, memory)
            last = int(logp[0].argmax())
            if last == START:
                break
            words.append(last)
        found = search(model, *padded([sentence]), start=START, width=1, longest=12)[0]
        assert found.words == words


def test_a_sentence_is_translated_alike_alone_and_among_others(model: Translator) -> None:
    together = search(model, *padded(SOURCES), start=START, width=3)
    for one, sentence in zip(together, SOURCES, strict=True):
        alone = search(model, *padded([sentence]), start=START, width=3)[0]
        assert alone.words == one.words
        assert alone.score == pytest.approx(one.score, abs=1e-4)


class Stubborn(Translator):
    """Never ends a sentence."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)

    def remembered(self, source: Tensor, lengths: Tensor) -> tuple[Memory, State]:
        """Nothing."""
        rows = len(lengths)
        return Memory(torch.zeros(rows, len(source), 1), lengths), torch.zeros(1, rows, 1)

    def step(self, words: Tensor, state: State, memory: Memory) -> tuple[Tensor, Tensor, State]:
        """Word 2, always."""
        logp = torch.full((len(words), WORDS), -9.0)
        logp[:, START], logp[:, 2] = -math.inf, 0.0
        return logp, torch.ones(len(words), memory.keys.shape[1]), state


class Table(Stubborn):
    """Word after word by a table (V, V) of log-probabilities, and no more than that."""

    def __init__(self, logp: Tensor) -> None:
        super().__init__()
        self.logp, self.rows = logp, list[int]()

    def step(self, words: Tensor, state: State, memory: Memory) -> tuple[Tensor, Tensor, State]:
        """What the table says, attention that tells step and words, and how many rows were asked."""
        self.rows.append(len(words))
        assert isinstance(state, Tensor) and len(memory.keys) == state.shape[1] == len(words)
        seen = (10 * len(self.rows) + words).float()
        return self.logp[words], seen[:, None].expand(-1, memory.keys.shape[1]), state


def plain_search(logp: list[list[float]], width: int, penalty: float, longest: int) -> tuple[float, list[int]]:
    """A beam that is searched to its end, sentence by sentence, with all words of each beginning written out."""
    beginnings, ended = [(0.0, [START])], list[tuple[float, list[int]]]()
    for length in range(1, longest + 1):
        every = [(score + logp[words[-1]][word], [*words, word])
                 for score, words in beginnings for word in range(len(logp))]  # fmt: skip
        best = sorted(every, reverse=True)[: 2 * width]
        ended += [(score / length**penalty, words[1:-1]) for score, words in best[:width] if words[-1] == START]
        beginnings = [one for one in best if one[1][-1] != START][:width]
    return max(ended, default=(beginnings[0][0] / longest**penalty, beginnings[0][1][1:]))


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("penalty", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("longest", [3, 12])
def test_it_finds_what_a_search_to_the_end_finds(width: int, penalty: float, longest: int) -> None:
    for seed in range(20):
        torch.manual_seed(seed)
        logp = (2 * torch.randn(9, 9)).log_softmax(-1)
        source = padded([[1]])
        one = search(Table(logp), *source, start=START, width=width, penalty=penalty, longest=longest)[0]
        score, words = plain_search(logp.tolist(), width, penalty, longest)
        assert one.words == words and one.score == pytest.approx(score, abs=1e-5)
        came_of = [10 * step + before for step, before in enumerate([START, *words][: len(words)], 1)]
        assert one.attention[:, 0].tolist() == came_of


def probabilities(rows: dict[int, dict[int, float]]) -> Tensor:
    """A table of log-probabilities from probabilities; of what is not told they are tiny."""
    found = torch.full((WORDS, WORDS), 1e-9)
    for before, after in rows.items():
        for word, probability in after.items():
            found[before, word] = probability
    return found.log()


def test_a_search_goes_on_while_a_longer_translation_may_be_better() -> None:
    model = Table(probabilities({START: {START: 0.5, 1: 0.45}, 1: {2: 1.0}, 2: {START: 1.0}}))
    found = search(model, *padded([[1]]), start=START, width=2)[0]
    assert found.words == [1, 2], "the first to end is not the best"
    assert search(model, *padded([[1]]), start=START, width=1)[0].words == [], "what is greedy ends at the first end"


def test_an_end_that_is_not_among_the_best_is_none() -> None:
    model = Table(probabilities({START: {1: 0.55, START: 0.4}, 1: {2: 1.0}, 2: {START: 0.01, 2: 0.01}}))
    found = search(model, *padded([[1]]), start=START, width=1)[0]
    assert found.words and found.score < math.log(0.4), "the end would have scored best"


def test_nothing_is_computed_for_sentences_that_are_done() -> None:
    model = Table(probabilities({START: {1: 0.99}, 1: {1: 0.99}}))
    found = search(model, *padded([[1] * size for size in (1, 5, 3)]), start=START, width=2)
    assert [len(one.words) for one in found] == [12, 20, 16]
    assert model.rows == [6] * 12 + [4] * 4 + [2] * 4


def test_what_never_ends_is_cut(model: Translator) -> None:
    found: list[Translation] = search(Stubborn(), *padded(SOURCES), start=START, width=2)
    assert [one.words for one in found] == [[2] * (2 * len(sentence) + 10) for sentence in SOURCES]
