"""Speech without alignments: CTC (Graves et al. 2006) over whole sequences, by a RevGRU that rewinds.

    python examples/ctc.py
    python examples/ctc.py recordings.zip

The first trains on made-up speech: each letter is a sound of its own that lasts for some frames, in noise. The second
takes the recordings of the Free Spoken Digit Dataset, some of one speaker after another, and is told which digits were
said, not when. `rewind_outputs` keeps the scores of all frames, which the loss wants, and no output of the net.
"""

from __future__ import annotations

import io
import re
import sys
import wave
import zipfile
from collections.abc import Callable, Iterator
from itertools import groupby, pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

import revtune as rt

FRAME = 160
"""Samples of a frame, 20 ms at 8 kHz."""

BANDS = 20
"""Of frequencies."""

STACKED = 3
"""Frames that make a step (Sak et al. 2015): among fewer steps CTC learns sooner where letters are."""


class Speech(NamedTuple):
    """A batch of sequences and what was said, as nn.CTCLoss takes it.

    Attributes:
        frames: (T, B, F).
        lengths: frames of each row, (B,).
        letters: (B, S), from 1 on, as 0 is CTC's blank.
        counts: letters of each row, (B,).
    """

    frames: Tensor
    lengths: Tensor
    letters: Tensor
    counts: Tensor


class Speller(nn.Module):
    """Frames to scores of letters."""

    def __init__(self, features: int, letters: int, hidden: int = 64) -> None:
        super().__init__()
        self.rnn, self.head = rt.RevGRU(features, hidden), nn.Linear(hidden, letters + 1)

    def forward(self, speech: Speech) -> Tensor:
        """Log probabilities of letters and of the blank at each frame, (T, B, V + 1)."""
        scores, _ = rt.rewind_outputs(self.rnn, speech.frames, readout=self.head, lengths=speech.lengths)
        logs: Tensor = scores.log_softmax(-1)
        return logs


def made_up(rows: int = 16, letters: int = 5, features: int = 8) -> Speech:
    """Words of three to five letters, each letter's sound over four to eight frames, then a pause."""
    sounds = torch.randn(letters + 1, features, generator=torch.Generator().manual_seed(0))  # the first is silence
    words, spoken = [], []
    for _ in range(rows):
        word = torch.randint(1, letters + 1, (int(torch.randint(3, 6, ())),))
        lasting = [[int(letter)] * int(torch.randint(4, 9, ())) + [0] * 2 for letter in word]
        spoken.append(sounds[sum(lasting, [])])
        words.append(word)
    frames = nn.utils.rnn.pad_sequence(spoken)
    return _speech(frames + 0.5 * torch.randn(frames.shape), spoken, words)


def recordings(path: Path) -> dict[tuple[str, bool], list[tuple[int, Tensor]]]:
    """Digits and their frames (T, F), by speaker, and whether they are held out: takes 5 to 9 are.

    Takes 0 to 4, the official test, and files of other names are not read.

    Raises:
        ValueError: a recording is of another rate, width or number of channels.
    """
    found: dict[tuple[str, bool], list[tuple[int, Tensor]]] = {}
    with zipfile.ZipFile(path) as files:
        for name in sorted(files.namelist()):
            match = re.fullmatch(r"(\d)_(\w+)_(\d+)\.wav", Path(name).name)
            if not match or int(match[3]) < 5:
                continue
            digit, speaker, take = match.groups()
            with wave.open(io.BytesIO(files.read(name))) as sound:
                if (kind := sound.getparams()[:3]) != (1, 2, 8000):
                    raise ValueError(f"{name} must have (channels, bytes, rate) = (1, 2, 8000), got {kind}")
                samples = torch.frombuffer(bytearray(sound.readframes(sound.getnframes())), dtype=torch.int16)
            found.setdefault((speaker, int(take) < 10), []).append((int(digit), spectrum(samples.float())))
    return found


def spectrum(samples: Tensor) -> Tensor:
    """The logarithm of each frame's power at each frequency, in bands, frames stacked, (T, STACKED * BANDS)."""
    frames = samples[: len(samples) // FRAME * FRAME].view(-1, FRAME) / 2**15
    power = torch.fft.rfft(frames * torch.hann_window(FRAME)).abs().square()[:, 1:]
    bands = (power.view(len(frames), BANDS, -1).mean(-1) + 1e-6).log() / 4 + 2
    return bands[: len(bands) // STACKED * STACKED].view(-1, STACKED * BANDS)


def said(found: dict[tuple[str, bool], list[tuple[int, Tensor]]], rows: int, *, held_out: bool) -> Speech:
    """Three digits after one another, of one speaker in each row."""
    speakers = [digits for (_, held), digits in found.items() if held == held_out]
    spoken, words = [], []
    for _ in range(rows):
        digits = speakers[int(torch.randint(len(speakers), ()))]
        chosen = [digits[int(which)] for which in torch.randint(len(digits), (3,))]
        spoken.append(torch.cat([frames for _, frames in chosen]))
        words.append(torch.tensor([digit + 1 for digit, _ in chosen]))
    return _speech(nn.utils.rnn.pad_sequence(spoken), spoken, words)


def _speech(frames: Tensor, spoken: list[Tensor], words: list[Tensor]) -> Speech:
    lengths, counts = (torch.tensor([len(row) for row in rows]) for rows in (spoken, words))
    return Speech(frames, lengths, nn.utils.rnn.pad_sequence(words, batch_first=True), counts)


def train(net: Speller, batches: Callable[[], Speech], updates: int) -> Iterator[float]:
    """Train by CTC. Gives the loss of each update, in nats a letter."""
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(updates):
        speech = batches()
        loss = nn.functional.ctc_loss(net(speech), speech.letters, speech.lengths, speech.counts, zero_infinity=True)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        yield loss.item()


@torch.no_grad()
def errors(net: Speller, speech: Speech) -> float:
    """Letters that are wrong, missing or too many among those that were said: the edit distance over their number."""
    best, wrong = net(speech).argmax(-1), 0
    for row, (frames, count) in enumerate(zip(speech.lengths, speech.counts, strict=True)):
        heard = [letter for letter, _ in groupby(best[:frames, row].tolist()) if letter]
        wrong += distance(heard, speech.letters[row, :count].tolist())
    return wrong / int(speech.counts.sum())


def distance(one: list[int], other: list[int]) -> int:
    """How many letters must be changed, put in or left out to make one word of another (Levenshtein 1966)."""
    costs = list(range(len(other) + 1))
    for number, letter in enumerate(one, 1):
        following = [number]
        for (before, above), wanted in zip(pairwise(costs), other, strict=True):
            following.append(min(before + (letter != wanted), above + 1, following[-1] + 1))
        costs = following
    return costs[-1]


def main(arguments: list[str]) -> None:
    """Train and tell what is wrong of what was not trained on."""
    torch.manual_seed(0)
    if arguments:
        found = recordings(Path(arguments[0]))
        net, batches, updates = Speller(STACKED * BANDS, 10, 128), lambda: said(found, 32, held_out=False), 300
        unheard = said(found, 200, held_out=True)
    else:
        net, batches, updates, unheard = Speller(8, 5), made_up, 150, made_up(100)
    for update, loss in enumerate(train(net, batches, updates)):
        if update % 25 == 0:
            print(f"update {update:3}  {loss:.3f} nats a letter  {errors(net, unheard):.1%} of unheard letters wrong")
    print(f"update {updates:3}  {errors(net, unheard):.1%} of unheard letters wrong")


if __name__ == "__main__":
    main(sys.argv[1:])
