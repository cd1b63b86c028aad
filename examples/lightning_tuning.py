"""A reversible net that tunes its own dropout rates, in Lightning.

`rt.Tuner` takes the steps of weights and of hyperparameters; Lightning counts them, logs, and saves the tuner's whole
state in its checkpoints. Three hooks keep Lightning from a second backward pass and a second step.

    pip install '.[examples]'
    python examples/lightning_tuning.py

learns Python's own manual as bytes, stops, goes on bit for bit, and prints the rates that the run found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pydoc_data.topics import topics
from tempfile import TemporaryDirectory
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

import revtune as rt

MANUAL = torch.tensor(list("\n".join(topics.values()).encode()))


def stream(net: Any, tokens: Tensor, h: Any) -> Mapping[str, Any]:
    """What `rt.rewind_loss` is given; h would hold the rows' own values, for penalties."""
    return {
        "rnn": net["rnn"], "inputs": tokens[:-1], "targets": tokens[1:], "encode": net["words"], "readout": net["head"],
    }  # fmt: skip


class Batches:
    """Batches of both levels, in the order in which the tuner wants them; it knows where they stand."""

    def __init__(self, tuner: rt.Tuner, data: list[Tensor], held_out: list[Tensor]) -> None:
        self.tuner, self.data, self.held_out = tuner, data, held_out

    def __len__(self) -> int:
        return len(self.data)  # without it Lightning would fetch a batch ahead

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        return self.tuner.batches(self.data, self.held_out)

    def state_dict(self) -> dict[str, Any]:
        return {}  # the place is in the tuner's own state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """There is nothing to load."""


class TunedModel(lightning.LightningModule):
    """A language model over bytes whose dropout rates are tuned on held-out text."""

    def __init__(self, text: Tensor = MANUAL, units: int = 128, length: int = 100) -> None:
        super().__init__()
        words, rnn = rt.Embedding(256, 32, dropout=0.1), rt.RevGRU(32, units, input_dropout=0.1, output_dropout=0.1)
        net = nn.ModuleDict({"words": words, "rnn": rnn, "head": rt.LinearCrossEntropy(units, 256)})
        self.net = rt.self_tuning(net, batch_dim=1)
        columns = text[: len(text) // 16 * 16].view(16, -1).t()
        segments = [columns[start : start + length + 1] for start in range(0, len(columns) - length, length)]
        part = len(segments) // 5
        self.data, self.held_out, self.saved = segments[part:], segments[:part], dict[str, Any]()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The tuner is made here, where the net is on its device and has the weights of a checkpoint."""
        self.tuner = rt.Tuner(
            self.net, stream=stream, optimizer=lambda params: torch.optim.Adam(params, 3e-3), carry=True, clip=1.0,
            hyper_optimizer=lambda params: torch.optim.Adam(params, 0.03), warmup=8,
        )  # fmt: skip
        if self.saved:
            self.tuner.load_state_dict(self.saved)
        return self.tuner.optimizer

    def train_dataloader(self) -> Batches:
        return Batches(self.tuner, self.data, self.held_out)

    def training_step(self, batch: tuple[Tensor, Tensor | None], index: int) -> Tensor:
        train, valid = self.tuner.step(*batch)
        self.log_dict({"train": train, **({} if valid is None else {"valid": valid}), **self.tuner.values()})
        return torch.tensor(train)

    def optimizer_step(self, epoch: int, batch: int, optimizer: Any, optimizer_closure: Callable[[], Any]) -> None:
        optimizer_closure()  # which calls training_step, whose tuner has stepped; Lightning counts it

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """The tuner has gone backward."""

    def optimizer_zero_grad(self, epoch: int, batch: int, optimizer: Any) -> None:
        """The tuner's own gradients may wait for more batches."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["tuner"] = self.tuner.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.saved = checkpoint["tuner"]


def fit(folder: str, steps: int, *, resume: bool = False, **sizes: Any) -> TunedModel:
    """Train for this many batches, counted from the first run's start, with checkpoints in a folder."""
    torch.manual_seed(0)
    model = TunedModel(**sizes)
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=steps, logger=False, enable_model_summary=False, enable_progress_bar=False,
        callbacks=[ModelCheckpoint(folder, save_last=True, every_n_train_steps=steps)],
    )  # fmt: skip
    trainer.fit(model, ckpt_path=f"{folder}/last.ckpt" if resume else None)
    return model


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        for steps in (150, 300):
            model = fit(folder, steps, resume=steps > 150)
            held_out = model.tuner.history.records[-1]["valid"]
            print(f"{steps} batches, held-out loss {held_out:.3f} nats a byte, rates {model.tuner.values()}")
    print(rt.frozen(model.net))
