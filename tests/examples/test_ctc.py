"""It spells, and counts its mistakes rightly."""

import io
import os
import wave
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


def test_recordings_of_another_kind_are_refused_and_other_files_left_alone(tmp_path: Path) -> None:
    def wav(rate: int) -> bytes:
        content = io.BytesIO()
        with wave.open(content, "wb") as sound:
            sound.setparams((1, 2, rate, 0, "NONE", ""))
            sound.writeframes(bytes(2 * rate))
        return content.getvalue()

    path = tmp_path / "recordings.zip"
    with zipfile.ZipFile(path, "w") as files:
        for name in ("readme.wav", "1_ann_0.wav"):
            files.writestr(name, b"not read")
        files.writestr("recordings/1_ann_5.wav", wav(8000))
    found = ctc.recordings(path)
    assert {key: len(said) for key, said in found.items()} == {("ann", True): 1}
    with zipfile.ZipFile(path, "w") as files:
        files.writestr("recordings/1_ann_5.wav", wav(16000))
    with pytest.raises(ValueError, match=r"1_ann_5.wav must have \(channels, bytes, rate\) .* got \(1, 2, 16000\)"):
        ctc.recordings(path)


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
