"""A plain loop of Hugging Face Accelerate around a net that rewinds: prepare, accumulate, clip, save and go on.

Batches are consecutive segments of a text in columns, so the exact state is carried from batch to batch. With several
processes `split_batches` gives each its own columns of every segment, which it reads to the end.

    pip install '.[examples]'
    python examples/accelerate_loop.py FOLDER
    torchrun --nproc-per-node 2 examples/accelerate_loop.py FOLDER

learns Python's own manual as bytes, leaves an epoch in its middle, and goes on from what it saved in the folder.
"""

from __future__ import annotations

import sys
from pydoc_data.topics import topics
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import revtune as rt

MANUAL = torch.tensor(list("\n".join(topics.values()).encode()))


class Segments(Dataset[Tensor]):
    """Segments (T + 1,) of a text in columns: all columns' first ones, then all their second ones."""

    def __init__(self, text: Tensor, columns: int, steps: int) -> None:
        self.columns, self.steps = text[: len(text) // columns * columns].view(columns, -1), steps

    def __len__(self) -> int:
        return (self.columns.shape[1] - 1) // self.steps * len(self.columns)

    def __getitem__(self, number: int) -> Tensor:
        segment, column = divmod(number, len(self.columns))
        return self.columns[column, segment * self.steps : (segment + 1) * self.steps + 1]


class LanguageModel(nn.Module):
    """Its forward is the whole step, so that Accelerate may wrap it for several processes."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.words, self.rnn = rt.Embedding(256, 64), rt.RevGRU(64, units, batch_first=True)
        self.head = rt.LinearCrossEntropy(units, 256)

    def forward(self, tokens: Tensor, state: Tensor | None) -> tuple[Tensor, Any]:
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        return rt.rewind_loss(self.rnn, inputs, targets, encode=self.words, readout=self.head, state=state)


class Run:
    """Accelerate's objects, and where the run stands in the text."""

    def __init__(self, units: int, columns: int, steps: int, text: Tensor) -> None:
        torch.manual_seed(0)
        split = DataLoaderConfiguration(split_batches=True)
        self.accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2, dataloader_config=split)
        net = LanguageModel(units)
        self.model, self.optimizer, self.loader = self.accelerator.prepare(
            net, torch.optim.Adam(net.parameters(), 3e-3), DataLoader(Segments(text, columns, steps), columns)
        )
        self.taken, self.state = 0, cast(Any, None)

    def save(self, folder: str) -> None:
        """Weights, optimizer and generators by Accelerate; the state of all processes' rows beside them."""
        self.accelerator.save_state(folder)
        rows = self.accelerator.gather(self.state.transpose(0, 1).contiguous())  # (B, L, H), float64
        if self.accelerator.is_main_process:  # not by register_for_checkpointing, whose files are unpickled
            save_file({"rows": rows, "taken": torch.tensor(self.taken)}, f"{folder}/place.safetensors")

    def load(self, folder: str) -> None:
        """Go on from what was saved, be it by another number of processes."""
        self.accelerator.load_state(folder)
        place = load_file(f"{folder}/place.safetensors", device=str(self.accelerator.device))
        own = place["rows"].chunk(self.accelerator.num_processes)[self.accelerator.process_index]
        self.taken, self.state = int(place["taken"]), own.transpose(0, 1)

    def train(self, segments: int) -> list[float]:
        """Learn until so many segments of the epoch are taken; the losses."""
        losses = []
        for tokens in self.accelerator.skip_first_batches(self.loader, self.taken):
            if self.taken == segments:
                break
            with self.accelerator.accumulate(self.model):
                loss, self.state = self.model(tokens, self.state)
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
                self.optimizer.step()
                self.optimizer.zero_grad()
            self.taken += 1
            losses.append(self.accelerator.reduce(loss.detach(), "mean").item())
        return losses


def train(
    folder: str, segments: int, *, resume: bool = False, units: int = 256, columns: int = 16, steps: int = 200,
    text: Tensor = MANUAL,
) -> tuple[list[float], Run]:  # fmt: skip
    """Learn from so many segments, counted from the first run's start, and save; an even number, as two accumulate."""
    run = Run(units, columns, steps, text)
    if resume:
        run.load(folder)
    losses = run.train(segments)
    run.save(folder)
    return losses, run


if __name__ == "__main__":
    folder = sys.argv[1]
    for segments in (60, 120):
        losses, run = train(folder, segments, resume=segments > 60)
        run.accelerator.print(f"{segments} segments: {losses[-1]:.3f} nats a byte")
