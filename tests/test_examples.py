"""The examples learn what they say that they learn."""

import os
import zipfile
from pathlib import Path

import pytest
import torch

from examples import crf_tagger, ctc

RECORDINGS = Path(os.environ.get("REVTUNE_DATA") or ".", "spoken-digits", "recordings.zip")


def test_ctc_spells_made_up_speech() -> None:
    torch.manual_seed(0)
    net = ctc.Speller(8, 5)
    losses = list(ctc.train(net, ctc.made_up, 100))
    assert losses[-1] < 0.5 * losses[0] and ctc.errors(net, ctc.made_up(50)) < 0.2


def test_letters_that_are_wrong_missing_or_too_many_are_counted() -> None:
    assert ctc.distance([1, 2, 3], [1, 2, 3]) == 0
    assert ctc.distance([], [1, 2]) == 2 and ctc.distance([1, 2], []) == 2
    assert ctc.distance([1, 5, 3], [1, 2, 3]) == 1 and ctc.distance([2, 3, 3, 4], [1, 2, 3, 4]) == 2


@pytest.mark.slow
@pytest.mark.skipif(not zipfile.is_zipfile(RECORDINGS), reason="no recordings of spoken digits in $REVTUNE_DATA")
def test_ctc_begins_to_tell_spoken_digits_apart() -> None:
    """After the plateau on which only blanks are heard, within a third of the example's updates."""
    torch.manual_seed(0)
    found = ctc.recordings(RECORDINGS)
    assert sum(map(len, found.values())) == 2700
    net = ctc.Speller(20, 10, 128)
    losses = list(ctc.train(net, lambda: ctc.said(found, 32, held_out=False), 150))
    assert losses[-1] < 0.1 * losses[0] and ctc.errors(net, ctc.said(found, 50, held_out=True)) < 0.9


def test_a_crf_tags_and_breaks_no_rule() -> None:
    torch.manual_seed(0)
    tagger = crf_tagger.Tagger(20)
    losses = list(crf_tagger.train(tagger, 40))
    share, broken = crf_tagger.right(tagger)
    assert losses[-1] < 0.7 * losses[0] and share > 0.7 and not broken


def test_the_crfs_loss_and_best_tags_are_those_of_all_rows_of_tags() -> None:
    """Beside every row of tags that there is, of a few steps."""
    torch.manual_seed(1)
    chain, steps, lengths = crf_tagger.Chain(3).double(), 4, torch.tensor([4, 2])
    torch.nn.init.normal_(chain.moves), torch.nn.init.normal_(chain.first)
    scores, tags = torch.randn(steps, 2, 3, dtype=torch.float64), torch.randint(3, (steps, 2))
    rows = torch.cartesian_prod(*[torch.arange(3)] * steps)

    def score(row: torch.Tensor, which: int) -> torch.Tensor:
        last = int(lengths[which])
        moved = sum((chain.moves[row[t - 1], row[t]] for t in range(1, last)), chain.first[row[0]])
        return moved + scores[torch.arange(last), which, row[:last]].sum()

    total, best = torch.zeros((), dtype=torch.float64), chain.best(scores, lengths)
    for which, last in enumerate(lengths.tolist()):
        different = rows[:, :last].unique(dim=0)
        each = torch.stack([score(row, which) for row in different])
        total = total + each.logsumexp(0) - score(tags[:, which], which)
        assert torch.equal(best[:last, which], different[each.argmax()])
    torch.testing.assert_close(chain(scores, tags, lengths), total / lengths.sum())
