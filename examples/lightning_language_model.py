"""A language model in Lightning, with truncated backpropagation and an exact state that is carried over segments.

Lightning once cut sequences itself (`truncated_bptt_steps`) and removed it. Here a batch is the next segment of a text
that is read in columns, and `rt.rewind_loss` begins where the segment before ended. Optimization stays Lightning's own.
Its checkpoints hold the state and the place in the text: a run that stopped inside an epoch goes on bit for bit.

    pip install '.[examples]'
    python examples/lightning_language_model.py

learns Python's own manual as bytes, stops, goes on, and prints the memory of a step beside the bits that it stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from pydoc_data.topics import topics
from tempfile import TemporaryDirectory
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

import revtune as rt

MANUAL = torch.tensor(list("\n".join(topics.values()).encode()))


class Segments:
    """Segments (T + 1, B) of a text in B columns, one after another; Lightning saves where such a loader stands."""

    def __init__(self, text: Tensor, columns: int, steps: int) -> None:
        self.text = text[: len(text) // columns * columns].view(columns, -1).t()
        self.steps, self.taken = steps, 0

    def __len__(self) -> int:
        return (len(self.text) - 1) // self.steps

    def __iter__(self) -> Iterator[Tensor]:
        self.taken %= len(self)
        while self.taken < len(self):
            self.taken += 1
            yield self.text[(self.taken - 1) * self.steps : self.taken * self.steps + 1]

    def state_dict(self) -> dict[str, int]:
        return {"taken": self.taken}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.taken = state["taken"]


class LanguageModel(lightning.LightningModule):
    """p(next byte | bytes so far) by a RevGRU."""

    def __init__(self, units: int = 256) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.words, self.rnn = rt.Embedding(256, 64), rt.RevGRU(64, units)
        self.head = rt.LinearCrossEntropy(units, 256)
        self.state: Any = None

    def training_step(self, tokens: Tensor, index: int) -> Tensor:
        loss, self.state = self.loss(tokens, self.state)
        self.log("train", loss, prog_bar=True)
        return loss

    def loss(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Nats a byte, and the state after the segment, which is detached and exact."""
        inputs, targets = tokens[:-1], tokens[1:]
        return rt.rewind_loss(self.rnn, inputs, targets, encode=self.words, readout=self.head, state=state)

    def on_train_epoch_start(self) -> None:
        self.state = None  # the text begins anew; Lightning does not call this where it resumes inside an epoch

    def on_train_start(self) -> None:
        if self.state is not None:
            self.state = self.state.to(self.device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["recurrent_state"] = self.state

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.state = checkpoint["recurrent_state"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 3e-3)


def fit(
    folder: str, steps: int, *, resume: bool = False, units: int = 256, length: int = 200, text: Tensor = MANUAL
) -> lightning.Trainer:
    """Train for this many segments, counted from the first run's start, with checkpoints in a folder."""
    torch.manual_seed(0)
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=steps, gradient_clip_val=1.0, logger=False, enable_model_summary=False,
        enable_progress_bar=False, callbacks=[ModelCheckpoint(folder, save_last=True, every_n_train_steps=steps)],
    )  # fmt: skip
    trainer.fit(LanguageModel(units), Segments(text, 16, length), ckpt_path=f"{folder}/last.ckpt" if resume else None)
    return trainer


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        for steps in (100, 200):
            trainer = fit(folder, steps, resume=steps > 100)
            print(f"{steps} segments: {trainer.callback_metrics['train']:.3f} nats a byte")
    model, tokens = trainer.lightning_module, MANUAL[: 16 * 5001].view(16, -1).t()
    with rt.meter() as used:
        model.loss(tokens, None)[0].backward()
    print(f"5,000 bytes a column: {used.peak_bytes or 0:,} bytes of memory, {used.bits_per_unit_step:.2f} bits a unit")
