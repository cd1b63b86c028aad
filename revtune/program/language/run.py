"""The folder of a run: its configuration, what it measured, what it learned, and how far it has come.

    config.json              the configuration
    vocabulary.json          the text of the tokens, and a digest of the data
    metrics.jsonl            a line of measurements for each step and each validation
    weights.safetensors      the model with the lowest validation loss, plain, and the values of what was tuned
    schedule.json            all values that tuned hyperparameters have had, as `Tuner.schedule` tells
    replayed.json            such values of another run, by a run that tunes nothing and takes them
    checkpoint.safetensors   everything that the next step depends on
    environment.json         versions and processors that it began with
    lock                     held by the process that begins the run

A file is written beside the one that it replaces and then renamed, so that a whole one is there at any moment.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from revtune.program.data.named_sets import TEXT_FILES
from revtune.program.data.text import Corpus
from revtune.program.data.text_sources import Text, load
from revtune.program.data.vocabulary import Vocabulary, vocabulary
from revtune.program.errors import Problem
from revtune.program.files import read_text, write
from revtune.program.language.config import Config, from_json
from revtune.program.language.evaluate import evaluate, held_out_streams
from revtune.program.language.model import LanguageModel, build
from revtune.program.language.regularizers import in_force
from revtune.program.runs import checkpoint, followed
from revtune.program.runs.checkpoint import Saved
from revtune.program.runs.folder import REPLAYED, SCHEDULE, claimed, config_of
from revtune.program.runs.metrics import last_step
from revtune.program.runs.places import near, place
from revtune.program.runs.seals import Seals
from revtune.program.typed import reason
from revtune.tuning.tuner.schedule import Schedule

READS = {"file": "file", "data": "data set by name"}
"""What a text is read from, by the option that says where it is."""


@dataclass(frozen=True)
class Run:
    """A run's folder and the files in it.

    Args:
        folder: where it is.
        file, data: its text, or the folder with data sets, where that has been moved.
        accept_edits: whether settings and vocabulary are taken as they are, though they were edited.
    """

    folder: Path
    file: Path | None = None
    data: Path | None = None
    accept_edits: bool = False

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
        """Everything that the next step depends on."""
        return self.folder / "checkpoint.safetensors"

    @property
    def schedule(self) -> Path:
        """The values of tuned hyperparameters by step."""
        return self.folder / SCHEDULE

    def replayed(self) -> Schedule | None:
        """The hyperparameters by step that the run takes from another, if it does.

        Raises:
            Problem: they are not there, or damaged.
        """
        return followed.read(self.folder / REPLAYED) if self.config().replays else None

    def config(self) -> Config:
        """The configuration.

        Raises:
            Problem: the folder holds no run.
        """
        path = config_of(self.folder)
        return from_json(read_text(path), path)

    def text(self) -> Text:
        """Which text the run reads, from where it is now.

        Raises:
            Problem: it is a file that is not there, or its recipe reads nothing of what is said to have been moved.
        """
        config = self.config()
        text, named = config.text, config.text.source in TEXT_FILES
        for name, given, read in (("file", self.file, text.source == "file"), ("data", self.data, named)):
            if given is not None and not read:
                what = f"{self.folder} is of recipe {config.recipe}"
                raise Problem(f"{what}, which reads no {READS[name]}; leave --{name} out", code=2)
        file = place("file", text.file, self.folder, self.file)
        if file is not None and not file.exists():
            raise Problem(f"the text of {self.folder} is not at {file}; give the path that it has now by --file")
        return dataclasses.replace(text, file=file, data=place("data", text.data, self.folder, self.data))

    def seals(self) -> Seals:
        """The digests of settings and vocabulary as they are now."""
        return Seals.of(self.folder, accept_edits=self.accept_edits)

    def corpus_json(self) -> dict[str, Any]:
        """The vocabulary and the digest of the data that the run learned from."""
        path = self.folder / "vocabulary.json"
        try:
            stored: dict[str, Any] = json.loads(read_text(path))
            vocabulary(stored)  # checks it
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise Problem(f"{path} holds no vocabulary: {reason(error)}") from error
        return stored

    def vocabulary(self) -> Vocabulary:
        """The tokens of the run."""
        return vocabulary(self.corpus_json())

    def model(self) -> LanguageModel:
        """The best model so far, ready to evaluate; its dropout rates are those that were in force where it is best.

        Raises:
            Problem: there is none yet, or its file does not fit the configuration.
        """
        config = self.config()
        if not self.weights.exists():
            step = config.learning.valid_every
            if self.metrics.is_file() and last_step(self.metrics) > step:
                raise Problem(f"{self.weights} is not there, but the first validation was at step {step}; put it back")
            raise Problem(f"{self.folder} has no weights yet: its first validation is at step {step}")
        saved = checkpoint.read(self.weights)
        if saved.seals:
            self.seals().check(saved.seals, self.weights)
        else:
            self.check_seals()  # the checkpoint may have them where an earlier version wrote the weights
        model = build(in_force(config.net, saved.facts.get("values", {})), len(self.vocabulary()))
        checkpoint.untie(model, saved.tensors.keys())
        checkpoint.load_weights(model, saved, self.weights)
        return model.eval()

    def best(self) -> dict[str, Any]:
        """The step and the validation loss of the best model so far."""
        return checkpoint.read(self.weights).facts

    def save(self, path: Path, saved: Saved) -> None:
        """Write tensors and facts as safetensors, whole or not at all."""
        checkpoint.write(path, saved)

    def check_best(self, model: nn.Module, step: int) -> None:
        """Raise `Problem` when the best weights, those of `step` or of a later one, are not there or not whole."""
        if not self.weights.exists():
            raise Problem(f"{self.weights} is not there, but the best validation was at step {step}; put it back")
        saved = checkpoint.read(self.weights)
        checkpoint.fitting_weights(model, saved, self.weights)
        saved_at = saved.facts.get("step")
        if type(saved_at) is not int or saved_at < step:  # later is right: weights are saved before the checkpoint
            raise Problem(f"{self.weights} holds the weights of step {saved_at}, but those of step {step} are the best")

    def check_seals(self) -> None:
        """Raise `Problem` when settings or vocabulary are not those that weights and checkpoint were written with."""
        for path in (self.weights, self.checkpoint):
            if path.exists():
                self.seals().check(checkpoint.read_facts(path).seals, path)

    def seal_anew(self) -> None:
        """Have the weights and the checkpoint that are there carry the digests of the edited files."""
        for path in (self.weights, self.checkpoint):
            if path.exists():
                self.save(path, dataclasses.replace(checkpoint.read(path), seals=self.seals().digests))

    def check_no_checkpoint(self, save_every: int) -> None:
        """Raise `Problem` when the measurements go so far that a checkpoint must have been there."""
        step = last_step(self.metrics)
        if step > save_every:
            raise Problem(f"{self.checkpoint} is not there, but {self.metrics.name} knows of step {step}")

    def check_data(self, corpus: Corpus) -> None:
        """Raise `Problem` when the data are not those that the run learned from."""
        if corpus.digest() != self.corpus_json().get("digest"):
            raise Problem(f"the data are not those that {self.folder} was trained on: their digest differs")


def create(config: Config, corpus: Corpus, out: Path | None, schedule: Schedule | None = None) -> Run:
    """Make the folder of a new run, with its configuration and vocabulary, and the schedule that it replays, if any.

    Raises:
        Problem: it holds a run already, cannot be made, or another process begins one there.
    """
    with claimed(config.recipe, out) as folder:
        stored = {**corpus.vocabulary.to_json(), "digest": corpus.digest()}
        write(folder / "vocabulary.json", json.dumps(stored).encode())
        if schedule is not None:
            followed.keep(schedule, folder)
        seen = near(folder, file=config.text.file, data=config.text.data)
        write(folder / "config.json", config.json(**seen).encode())
    return Run(folder)


def held_out_loss(run: Run, split: str) -> float:
    """Mean loss in nats a token of a run's best model on its validation or test text."""
    config, model = run.config(), run.model()
    corpus = load(run.text(), run.corpus_json().get("digest"))
    run.check_data(corpus)
    tokens = corpus.test if split == "test" else corpus.valid
    return evaluate(model, held_out_streams(tokens, config.learning, name=split), config.learning.length)
