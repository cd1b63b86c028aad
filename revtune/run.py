"""The folder of a run: what it was told, what it measured, what it learned, and where it stands.

    config.json              the configuration
    vocabulary.json          the tokens' text
    metrics.jsonl            a line of measurements a step and a validation
    weights.safetensors      the model with the lowest validation loss
    checkpoint.safetensors   everything that the next step depends on

A file is written beside its place and renamed into it, so that at any moment a whole one is there.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from revtune import checkpoint
from revtune.checkpoint import Saved
from revtune.config import Config, from_json
from revtune.data import Corpus, Vocabulary, vocabulary
from revtune.language import LanguageModel, build
from revtune.problem import Problem

RUNS = Path("runs")


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
        path = self.folder / "config.json"
        if not path.exists():
            raise Problem(f"{self.folder} holds no run: config.json is not there")
        return from_json(_text(path), path)

    def corpus_facts(self) -> dict[str, Any]:
        """The vocabulary and the digest of the data that the run learned from."""
        path = self.folder / "vocabulary.json"
        try:
            facts: dict[str, Any] = json.loads(_text(path))
            vocabulary(facts)
        except (KeyError, TypeError, ValueError) as error:
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

    def check_data(self, corpus: Corpus) -> None:
        """Raise `Problem` when the data are not those that the run learned from."""
        if corpus.digest() != self.corpus_facts().get("digest"):
            raise Problem(f"the data are not those that {self.folder} was trained on: their digest differs")


def create(config: Config, corpus: Corpus, out: Path | None) -> Run:
    """A folder for a new run: `out`, or the next free `runs/<recipe>-<n>`, with its configuration and vocabulary.

    Raises:
        Problem: when `out` holds a run already or cannot be made.
    """
    refuse_taken(out)
    try:
        folder = _next_folder(config.recipe) if out is None else _made(out)
    except OSError as error:
        raise Problem(f"cannot make the folder {out or RUNS}: {error.strerror}") from error
    write(folder / "vocabulary.json", json.dumps({**corpus.vocabulary.facts(), "digest": corpus.digest()}).encode())
    write(folder / "config.json", config.json().encode())
    return Run(folder)


def refuse_taken(out: Path | None) -> None:
    """Raise `Problem` when a folder for a new run holds a run already."""
    if out is not None and (out / "config.json").exists():
        raise Problem(f"{out} already holds a run; revtune train --resume {out} goes on with it")


def _next_folder(recipe: str) -> Path:
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
        return path.read_text(encoding="utf-8")
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


class Metrics:
    """The measurements of a run as JSON lines, held by one process at a time.

    Args:
        path: the file; made when it is not there.
        size: bytes of it to keep, those that a checkpoint knows of.

    Raises:
        Problem: when another process holds it, or it is shorter than that.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.file = open(path, "ab", buffering=0)
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.file.close()
            raise Problem(f"another process is training in {path.parent}") from error
        if (there := os.fstat(self.file.fileno()).st_size) < size:
            self.file.close()
            raise Problem(f"{path} has {there} bytes, fewer than the {size} that the checkpoint goes on from")
        self.file.truncate(size)

    def add(self, facts: dict[str, Any]) -> None:
        """Append a line."""
        self._ask(lambda: self.file.write(json.dumps(facts).encode() + b"\n"))

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
