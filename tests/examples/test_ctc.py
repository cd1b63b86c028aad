"""It spells, and counts its mistakes rightly."""

import os
import zipfile
from pathlib import Path

import pytest
import torch

from examples import ctc

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
def test_ctc_spells_digits_of_takes_that_it_has_not_heard() -> None:
    """In two thirds of the example's updates."""
    torch.manual_seed(0)
    found = ctc.recordings(RECORDINGS)
    assert sum(map(len, found.values())) == 2700
    net = ctc.Speller(ctc.STACKED * ctc.BANDS, 10, 128)
    losses = list(ctc.train(net, lambda: ctc.said(found, 32, held_out=False), 200))
    assert losses[-1] < 0.05 * losses[0] and ctc.errors(net, ctc.said(found, 100, held_out=True)) < 0.2
