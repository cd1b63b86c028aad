"""What becomes of runs of `revtune train` that are killed, whose files lose a bit, or whose disk is full.

    python benchmarks/faults.py [--tries 40] [--seed 1]

Each try brings a small run to its fault, resumes it, and compares every tensor of its checkpoint and best weights
with those of a run that nothing happened to. It ends in one of three ways: *same*, the same bits; *refused*, a sentence
names the file and nothing is trained; *wrong*, anything else, after which the command fails.

- killed: `revtune train` in a process of its own, by SIGKILL, when it has written so many lines of measurements.
- flipped bit: one bit of one file of a stopped run, each file as often as another.
- full disk: from one of its writes on, the system says that there is no space; then there is some again.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from errno import ENOSPC
from pathlib import Path
from typing import Any

import torch

from revtune.program.bench.display import Markdown
from revtune.program.data.text_sources import Text
from revtune.program.errors import Problem
from revtune.program.language import trainer
from revtune.program.language.config import Config, Net
from revtune.program.language.learning import Learning
from revtune.program.language.run import Run
from revtune.program.runs import checkpoint

STEPS = 60
OUTCOMES = ("same", "refused", "wrong")


class Stopped(Exception):
    """The end of a run, as far as one process can have it."""


class Quiet:
    """A report that says nothing, and stops a run after a step."""

    def __init__(self, last: int | None = None) -> None:
        self.last = last

    def step(self, facts: dict[str, Any]) -> None:
        if facts["step"] == self.last:
            raise Stopped

    def valid(self, facts: dict[str, Any]) -> None:
        pass


class Faults:
    """Runs in one folder, all with the same settings, and what one comes to that nothing happens to."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.folder, self.rng = folder, rng
        text = folder / "text"
        text.write_text("".join(f"{i} plus {i} is {2 * i}\n" for i in range(200)))
        self.config = Config(
            recipe="text",
            text=Text(source="file", file=text),
            net=Net(embedding=8, hidden=32, weight_drop=0.2),
            learning=Learning(steps=STEPS, batch=8, length=32, warmup=2, valid_every=20, valid_batch=2, save_every=7),
        )
        with counted() as calls:
            whole = trainer.start(self.config, folder / "whole", Quiet())
        self.writes, self.wanted = calls[0], tensors(whole)

    def killed(self, out: Path) -> None:
        """A run in a process of its own that is sent SIGKILL on its way."""
        learning, net = self.config.learning, self.config.net
        names = ("steps", "batch", "length", "warmup", "valid_every", "valid_batch", "save_every")
        options = {name.replace("_", "-"): getattr(learning, name) for name in names} | {
            "out": out, "file": self.config.text.file, "embedding": net.embedding, "hidden": net.hidden,
            "weight-drop": net.weight_drop, "threads": torch.get_num_threads(), "tune": "off",
        }  # fmt: skip
        words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
        command = [sys.executable, "-m", "revtune", "train", "text", *words]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        lines = self.rng.randrange(STEPS)
        while process.poll() is None and (not (out / "metrics.jsonl").exists() or count(out) < lines):
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        if process.wait() != -signal.SIGKILL:
            raise RuntimeError(f"the run ended with {process.returncode} before it could be killed")

    def flipped(self, out: Path) -> None:
        """A stopped run with one bit of one file changed."""
        self.stopped(out)
        path = self.rng.choice(sorted(path for path in out.iterdir() if path.stat().st_size))
        content = bytearray(path.read_bytes())
        content[self.rng.randrange(len(content))] ^= 1 << self.rng.randrange(8)
        path.write_bytes(content)

    def full(self, out: Path) -> None:
        """A run whose disk is full from one of its writes on."""
        with counted(self.rng.randrange(self.writes)):
            try:
                trainer.start(self.config, out, Quiet())
            except Problem:
                return
        raise RuntimeError("the run did not notice that its disk was full")

    def stopped(self, out: Path) -> None:
        """A run that has a checkpoint and best weights, and steps to go."""
        try:
            trainer.start(self.config, out, Quiet(last=STEPS // 2))
        except Stopped:
            return

    def outcome(self, fault: Callable[[Path], None]) -> str:
        """What becomes of a run once it is resumed after a fault."""
        out = self.folder / "run"
        try:
            fault(out)
            trainer.resume(Run(out), Quiet())
            return "same" if tensors(Run(out)) == self.wanted else "wrong"
        except Problem:
            return "refused"
        except Exception:
            traceback.print_exc()
            return "wrong"
        finally:
            shutil.rmtree(out, ignore_errors=True)


@contextmanager
def counted(full_from: int | None = None) -> Iterator[list[int]]:
    """Counts the writes that are brought to the disk, all of which fail from one on."""
    calls, synced = [0], os.fsync

    def fsync(descriptor: int) -> None:
        calls[0] += 1
        if full_from is not None and calls[0] > full_from:
            raise OSError(ENOSPC, os.strerror(ENOSPC))
        synced(descriptor)

    os.fsync = fsync  # type: ignore[assignment]
    try:
        yield calls
    finally:
        os.fsync = synced


def count(out: Path) -> int:
    """Lines of measurements."""
    return (out / "metrics.jsonl").read_bytes().count(b"\n")


def tensors(run: Run) -> dict[str, bytes]:
    """What the checkpoint and the best weights hold, bit by bit."""
    files = {path.name: checkpoint.read(path).tensors for path in (run.checkpoint, run.weights)}
    return {f"{file}: {name}": x.contiguous().numpy().tobytes() for file, of in files.items() for name, x in of.items()}


def main(args: Sequence[str] | None = None) -> int:
    """Print the table; 1 if a run ended wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tries", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(args)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        faults = Faults(Path(folder), random.Random(options.seed))
        kinds = {"killed": faults.killed, "flipped bit": faults.flipped, "full disk": faults.full}
        found = {name: Counter(faults.outcome(fault) for _ in range(options.tries)) for name, fault in kinds.items()}
    rows = [(name, str(options.tries), *(str(ends[end]) for end in OUTCOMES)) for name, ends in found.items()]
    Markdown().table("Runs after a fault", "fault", ("tries", *OUTCOMES), rows)
    return int(any(ends["wrong"] for ends in found.values()))


if __name__ == "__main__":
    sys.exit(main())
