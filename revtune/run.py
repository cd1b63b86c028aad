"""The folder of a run: what it was told, what it measured, what it learned, and where it stands.

    config.json              the configuration
    vocabulary.json          the tokens' text
    metrics.jsonl            a line of measurements a step and a validation
    weights.safetensors      the model with the lowest validation loss
    checkpoint.safetensors   everything that the next step depends on
    lock                     had by who begins the run

A file is written beside its place and renamed into it, so that at any moment a whole one is there.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from revtune import checkpoint
from revtune.checkpoint import Saved
from revtune.config import Config, from_json
from revtune.data import Corpus, Vocabulary, regular, vocabulary
from revtune.language import LanguageModel, build
from revtune.problem import Problem

RUNS = Path("runs")
LEARNT = ("checkpoint.safetensors", "weights.safetensors", "result.json", "metrics.jsonl")
"""What a run has once it has learnt something."""
OWN = (*LEARNT, "config.json", "vocabulary.json", "lock")
"""What is a run's, and no place for anything else."""


@dataclass(frozen=True)
class Run:
    """A run's folder and the files in it."""

    folder: Path

    @property
    def metrics(self) -> Path:
        """The measurements."""
        return self.folder / "metrics.jsonl"

    @property
    def weights(self) -> Path:
        """The best model."""
        return self.folder / "weights.safetensors"

    @property
    def checkpoint(self) -> Path:
        """The state to go on from."""
        return self.folder / "checkpoint.safetensors"

    def config(self) -> Config:
        """What the run was told.

        Raises:
            Problem: when the folder holds no run.
        """
        path = config_of(self.folder)
        return from_json(_text(path), path)

    def corpus_facts(self) -> dict[str, Any]:
        """The vocabulary and the digest of the data that the run learned from."""
        path = self.folder / "vocabulary.json"
        try:
            facts: dict[str, Any] = json.loads(_text(path))
            vocabulary(facts)
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise Problem(f"{path} holds no vocabulary: {error}") from error
        return facts

    def vocabulary(self) -> Vocabulary:
        """The tokens of the run."""
        return vocabulary(self.corpus_facts())

    def model(self) -> LanguageModel:
        """The best model so far, ready to evaluate.

        Raises:
            Problem: when there is none yet, or its file does not fit the configuration.
        """
        config = self.config()
        if not self.weights.exists():
            step = config.learning.valid_every
            raise Problem(f"{self.folder} has no weights yet: its first validation is at step {step}")
        model = build(config.net, len(self.vocabulary()))
        checkpoint.load_weights(model, checkpoint.read(self.weights), self.weights)
        return model.eval()

    def best(self) -> dict[str, Any]:
        """The step and the validation loss of the best model so far."""
        return checkpoint.read(self.weights).facts

    def save(self, path: Path, saved: Saved) -> None:
        """Write tensors and facts as safetensors, whole or not at all."""
        write(path, checkpoint.pack(saved))

    def check_best(self, model: LanguageModel, step: int) -> None:
        """Raise `Problem` when the best weights, found at `step` or replaced since, are not there or not whole."""
        if not self.weights.exists():
            raise Problem(f"{self.weights} is not there, but the best validation was at step {step}; put it back")
        saved = checkpoint.read(self.weights)
        checkpoint.fitting_weights(model, saved, self.weights)
        there = saved.facts.get("step")
        if type(there) is not int or there < step:
            raise Problem(f"{self.weights} holds the weights of step {there}, but those of step {step} are the best")

    def check_no_checkpoint(self, save_every: int) -> None:
        """Raise `Problem` when measurements show that a run without a checkpoint once had one."""
        step = last_step(self.metrics)
        if step > save_every:
            raise Problem(f"{self.checkpoint} is not there, but {self.metrics.name} knows of step {step}")

    def check_data(self, corpus: Corpus) -> None:
        """Raise `Problem` when the data are not those that the run learned from."""
        if corpus.digest() != self.corpus_facts().get("digest"):
            raise Problem(f"the data are not those that {self.folder} was trained on: their digest differs")


def config_of(folder: Path) -> Path:
    """The file with the settings of the run in a folder.

    Raises:
        Problem: the folder holds no run.
    """
    path = folder / "config.json"
    if not path.exists():
        raise Problem(f"{folder} holds no run: config.json is not there")
    return path


def create(config: Config, corpus: Corpus, out: Path | None) -> Run:
    """A folder for a new run, as `claimed`, with its configuration and vocabulary.

    Raises:
        Problem: as `claimed`.
    """
    with claimed(config.recipe, out) as folder:
        known = {**corpus.vocabulary.facts(), "digest": corpus.digest()}
        write(folder / "vocabulary.json", json.dumps(known).encode())
        write(folder / "config.json", config.json().encode())
    return Run(folder)


@contextlib.contextmanager
def claimed(recipe: str, out: Path | None) -> Iterator[Path]:
    """A folder for a new run: `out`, or the next free `runs/<recipe>-<n>`; nobody else writes settings there meanwhile.

    Raises:
        Problem: it holds a run already, cannot be made, or another process begins one there.
    """
    try:
        folder = next_folder(recipe) if out is None else _made(out)
    except OSError as error:
        raise Problem(f"cannot make the folder {out or RUNS}: {error.strerror}") from error
    with held(folder):
        refuse_taken(folder)
        yield folder


def refuse_taken(out: Path | None) -> None:
    """Raise `Problem` when a folder for a new run holds a run already, or what is left of one."""
    if out is None:
        return
    if (out / "config.json").exists():
        raise Problem(f"{out} already holds a run; revtune train --resume {out} goes on with it")
    if left := next((name for name in LEARNT if (out / name).exists()), None):
        raise Problem(f"{out} holds {left} of a run whose config.json is not there; put it back, or give another --out")


def next_folder(recipe: str) -> Path:
    """The next free `runs/<recipe>-<n>`, made."""
    for number in itertools.count(1):
        with contextlib.suppress(FileExistsError):
            folder = RUNS / f"{recipe}-{number}"
            folder.mkdir(parents=True)
            return folder
    raise AssertionError


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _text(path: Path) -> str:
    try:
        return regular(path).read_text(encoding="utf-8")
    except OSError as error:
        raise Problem(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise Problem(f"{path} is no text: {error}") from error


def write(path: Path, content: bytes) -> None:
    """Put content in a file's place at once; when that fails, what was there stays.

    Raises:
        Problem: for a full disk and whatever else the system refuses.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise Problem(f"cannot write {path}: {error.strerror}; what was saved before is intact") from error


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Have a folder for oneself in what follows, by its file `lock`.

    Raises:
        Problem: another process has it, or it cannot be written to.
    """
    path = regular(folder / "lock")
    try:
        opened = open(path, "ab")
    except OSError as error:
        raise Problem(f"cannot write {path}: {error.strerror}") from error
    with opened as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Problem(f"another process is at work in {folder}") from error
        yield


def last_step(path: Path) -> int:
    """The highest step that a file of measurements tells of; 0 when there is none."""
    highest = 0
    for line in _text(path).splitlines() if path.exists() else []:
        with contextlib.suppress(KeyError, TypeError, ValueError):
            highest = max(highest, int(json.loads(line)["step"]))
    return highest


class Metrics:
    """The measurements of a run as JSON lines, held by one process at a time.

    Args:
        path: the file; made when it is not there.
        size: bytes of it to keep, those that a checkpoint knows of.
        digest: of those bytes, as `digest()` gave it; None to keep them unchecked.

    Raises:
        Problem: when another process holds it, it cannot be written, it is shorter than that or its digest differs.
    """

    def __init__(self, path: Path, size: int, digest: str | None = None) -> None:
        self.path = path
        try:
            self.file = open(regular(path), "ab", buffering=0)
        except OSError as error:
            raise Problem(f"cannot write {path}: {error.strerror}") from error
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.file.close()
            raise Problem(f"another process is training in {path.parent}") from error
        if (there := os.fstat(self.file.fileno()).st_size) < size:
            self.file.close()
            raise Problem(f"{path} has {there} bytes, fewer than the {size} that the checkpoint goes on from")
        with open(path, "rb") as kept:
            self.sha = hashlib.sha256(kept.read(size))
        if digest is not None and digest != self.digest():
            self.file.close()
            raise Problem(f"{path} is damaged: its first {size} bytes are not those that the checkpoint knows of")
        self._ask(lambda: self.file.truncate(size))

    def add(self, facts: dict[str, Any]) -> None:
        """Append a line."""
        line = json.dumps(facts).encode() + b"\n"
        self._ask(lambda: self._write(line))
        self.sha.update(line)

    def _write(self, line: bytes) -> None:
        """Write a line to its end; what a short write left over is tried again, so that the system says why."""
        while line:
            line = line[self.file.write(line) or 0 :]

    def digest(self) -> str:
        """SHA-256 of all lines."""
        return self.sha.hexdigest()

    def sync(self) -> int:
        """Have the lines on disk; their size in bytes."""
        self._ask(lambda: os.fsync(self.file.fileno()))
        return os.fstat(self.file.fileno()).st_size

    def close(self) -> None:
        """Let the file go."""
        self.file.close()

    def _ask(self, action: Any) -> None:
        try:
            action()
        except OSError as error:
            raise Problem(f"cannot write {self.path}: {error.strerror}; the last checkpoint is intact") from error
