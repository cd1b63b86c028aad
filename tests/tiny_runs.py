"""Runs of language models that take a second: their settings, reports that say nothing, and what two have in common."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from revtune.program.data.text_sources import Text
from revtune.program.language.config import Config, Net
from revtune.program.language.learning import Learning
from revtune.program.layers import Model
from revtune.program.runs import checkpoint

LEARNING = Learning(steps=9, batch=4, length=8, lr=0.01, warmup=2, valid_every=4, valid_batch=2, save_every=3)


class Died(Exception):
    """The end of a process, as far as a test can have one."""


class Silent:
    """A report that says nothing, and dies after a step if it is told to."""

    def __init__(self, dies_at: int | None = None) -> None:
        self.dies_at = dies_at

    def step(self, facts: dict[str, Any]) -> None:
        if facts["step"] == self.dies_at:
            raise Died

    def valid(self, facts: dict[str, Any]) -> None:
        pass


def write_sums(path: Path) -> None:
    path.write_text("".join(f"{i} plus {i} is {2 * i}\n" for i in range(200)))


def config(text: Path, model: Model = "revgru", net: dict[str, Any] | None = None, **learning: Any) -> Config:
    return Config(
        recipe="text",
        text=Text(source="file", file=text),
        net=Net(model=model, embedding=8, hidden=8, **(net or {})),
        learning=dataclasses.replace(LEARNING, **learning),
    )


def losses(folder: Path) -> list[tuple[int, str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], name, line[name]) for line in lines for name in ("loss", "valid_loss") if name in line]


def tensors(folder: Path) -> dict[str, str]:
    """Digests of what the checkpoint and the best weights hold."""
    files = [checkpoint.read(folder / name) for name in ("checkpoint.safetensors", "weights.safetensors")]
    named = {f"{i}{name}": tensor for i, file in enumerate(files) for name, tensor in file.tensors.items()}
    return {name: hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest() for name, tensor in named.items()}


def assert_same(one: Path, other: Path) -> None:
    assert losses(one) == losses(other)
    assert tensors(one) == tensors(other)
