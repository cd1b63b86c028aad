"""The repeat task: say at each step which token came the step before (MacKay et al. 2018, on what no forgetting costs).

An ordinary net forgets a token once it has said it. A net that rewinds without stored bits cannot: its last state must
hold the whole sequence. The easy task thus becomes one of memory, the harder the longer the sequence is. With a few
bits a step to forget by, reversible nets solve it as torch's own do.

A cell of the study's table is one model, length and seed.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import revtune as rt
from revtune.program.errors import Problem
from revtune.program.typed import told_of
from revtune.reversible.layers.rnn import RevRNN

MODELS = ("nn.GRU", "nn.LSTM", "RevGRU", "RevLSTM", "NF-RevGRU", "NF-RevLSTM")

FIRST = -100
"""The target of the first step, which has none; losses leave it out, as `ignore_index` does in torch."""


@dataclass(frozen=True, kw_only=True)
class RepeatStudy:
    """What a study of the repeat task compares and how long it learns."""

    lengths: tuple[int, ...] = (5, 10, 20, 40, 80)
    """Steps of the sequences; a model learns each length anew."""
    seeds: int = 3
    """Runs of each model and length."""
    updates: int = 250
    """Updates by Adam, fewer where the training loss falls below `solved`."""
    tokens: int = 8
    """Different tokens."""
    hidden: int = 32
    """Units of a model."""
    batch: int = 64
    """Sequences of an update, drawn anew for each."""
    lr: float = 0.02
    """Adam's step size."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    max_forget_bits: float = 3.0
    """Most bits that RevGRU and RevLSTM forget a unit and step."""
    solved: float = 0.01
    """Training loss in nats a token at which learning ends."""
    tested: int = 512
    """Fresh sequences that a model is scored on."""

    def cells(self) -> Iterator[Cell]:
        """All cells of the table, those that take longest first."""
        for steps in sorted(self.lengths, reverse=True):
            for model in reversed(MODELS):
                for seed in range(self.seeds):
                    yield Cell(model=model, steps=steps, seed=seed)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of one model at one length."""

    model: str
    steps: int
    seed: int


class Repeater(nn.Module):
    """A recurrent net over one-hot tokens with a readout."""

    def __init__(self, model: str, study: RepeatStudy) -> None:
        super().__init__()
        sizes, bits = (study.tokens, study.hidden), study.max_forget_bits
        self.rnn: nn.Module
        match model.removeprefix("NF-"):
            case "RevGRU":
                self.rnn = rt.RevGRU(*sizes, max_forget_bits=bits, forgetting=model == "RevGRU")
            case "RevLSTM":
                self.rnn = rt.RevLSTM(*sizes, max_forget_bits=bits, forgetting=model == "RevLSTM")
            case _:
                self.rnn = (nn.GRU if model == "nn.GRU" else nn.LSTM)(*sizes)
        self.readout = rt.LinearCrossEntropy(study.hidden, study.tokens)
        self.tokens = study.tokens

    def encode(self, tokens: Tensor) -> Tensor:
        """One-hot features, (T, B, V)."""
        return F.one_hot(tokens, self.tokens).to(self.readout.weight.dtype)

    def loss(self, tokens: Tensor) -> Tensor:
        """Mean loss in nats of saying the token before, at all of (T, B) tokens but the first of each sequence."""
        targets = torch.cat([torch.full_like(tokens[:1], FIRST), tokens[:-1]])
        if isinstance(self.rnn, RevRNN):
            return rt.rewind_loss(self.rnn, tokens, targets, encode=self.encode, readout=self.readout)[0]
        y, _ = self.rnn(self.encode(tokens))
        loss: Tensor = self.readout(y, targets) / tokens[1:].numel()  # it sums; `rewind_loss` gives a mean
        return loss

    def said(self, tokens: Tensor) -> Tensor:
        """The likeliest token before, at each step but the first, (T - 1, B)."""
        y, _ = self.rnn(self.encode(tokens))
        return self.readout.logits(y[1:]).argmax(-1)


def learn(study: RepeatStudy, cell: Cell) -> dict[str, Any]:
    """Train a cell's model and score it on fresh sequences; the figures depend on the seed alone."""
    torch.set_num_threads(1)  # each processor has a process of its own, and sums come out alike on every machine
    torch.manual_seed(cell.seed)
    model = Repeater(cell.model, study)
    optimizer = torch.optim.Adam(model.parameters(), lr=study.lr)
    updates, last = 0, float("inf")
    while updates < study.updates and last >= study.solved:
        loss = model.loss(torch.randint(study.tokens, (cell.steps, study.batch)))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), study.clip)
        optimizer.step()
        updates, last = updates + 1, loss.item()
    return {**dataclasses.asdict(cell), "updates": updates, **score(model, study, cell)}


@torch.no_grad()
def score(model: Repeater, study: RepeatStudy, cell: Cell) -> dict[str, Any]:
    """Loss in nats and share of tokens said right, altogether and by step."""
    tokens = torch.randint(study.tokens, (cell.steps, study.tested))
    right = (model.said(tokens) == tokens[:-1]).double().mean(1)
    by_step = [round(share, 4) for share in right.tolist()]
    return {"loss": round(model.loss(tokens).item(), 5), "right": round(right.mean().item(), 5), "by_step": by_step}


def check(study: RepeatStudy) -> None:
    """Raise `Problem` for the first setting that no study can have."""
    if not study.lengths or min(study.lengths) < 2:
        raise Problem(f"--lengths must be two steps or more each, got {' '.join(map(str, study.lengths))}", code=2)
    for name in ("seeds", "updates", "batch", "tested"):
        if getattr(study, name) < 1:
            raise Problem(f"--{name} must be at least 1, got {getattr(study, name)}", code=2)
    if study.tokens < 2:
        raise Problem(f"--tokens must be at least 2, got {study.tokens}", code=2)
    if study.hidden < 2 or study.hidden % 2:
        raise Problem(f"--hidden must be even to split it in halves, got {study.hidden}", code=2)
    for name in ("lr", "clip", "max_forget_bits"):
        if not 0 < getattr(study, name) < float("inf"):
            raise Problem(f"--{name.replace('_', '-')} must be above 0, got {getattr(study, name)}", code=2)


def to_json(study: RepeatStudy) -> str:
    """The content of a study's config.json."""
    return json.dumps({"recipe": "repeat", **dataclasses.asdict(study)}, indent=1) + "\n"


def from_json(text: str, path: Path) -> RepeatStudy:
    """The study of a config.json's content.

    Raises:
        Problem: when it is another recipe's or of another version.
    """
    try:
        facts = json.loads(text)
        if facts.pop("recipe") != "repeat":
            raise ValueError("it is another recipe's")
        facts["lengths"] = tuple(facts["lengths"])
        study = RepeatStudy(**facts)
    except (KeyError, TypeError, ValueError) as error:
        raise Problem(f"{path} is no configuration of the repeat study: {error}") from error
    with told_of(path):
        check(study)
    return study
