"""The smallest studies to contend in, a clock to do it by, and a report that nobody reads."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from revtune.program.layers import Model
from revtune.program.recipes import ptb
from revtune.program.studies.compare import table as compare_table
from revtune.program.studies.compare.contest import Contestant, Options
from revtune.program.studies.compare.live import CompareReport
from revtune.program.studies.compare.population import PopulationSettings
from revtune.program.studies.compare.study import study_of
from revtune.program.tasks.image_task import ImageStudy
from revtune.program.tasks.task import Learning
from revtune.program.tuning import Tuning
from tests.tiny_images import write_images
from tests.tiny_words import write_words

LEARNING = Learning(batch=4, valid_every=2, lr=0.05, patience=1)
TUNING = Tuning(warmup=1, ratio=1)


class Seconds:
    """A clock that goes a second on each time that it is read, and none while it is stopped."""

    running = True

    def __init__(self, wall: float = 0.0, cpu: float = 0.0) -> None:
        self.wall, self.cpu = wall, cpu

    def now(self) -> dict[str, float]:
        return {"wall": self.wall, "cpu": self.cpu}

    def read(self, kind: str) -> float:
        self.wall += 1
        return self.wall

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        self.running = False
        yield
        self.running = True


def tiny_study(folder: Path) -> ImageStudy:
    """A study of 40 images, which it writes."""
    write_images(folder)
    return ImageStudy(data=folder, images=40, width=4, learning=LEARNING, stn=TUNING, delta=TUNING)


def tiny_options(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Options[ImageStudy]:
    """A contest in a folder beside its data, by such a clock, whose runs draw nothing and tell of no memory."""
    for module in ("studies.compare.search", "tasks.loop"):
        monkeypatch.setattr(f"revtune.program.{module}.Clock", Seconds)
    monkeypatch.setattr("revtune.program.tasks.loop.resident_bytes", lambda: 0)
    monkeypatch.setattr("revtune.tuning.tuner.history.History.plot", lambda *_: None)
    return Options(study=tiny_study(folder / "data"), budget=20.0, out=folder / "contest")


def language_contest(
    folder: Path, model: Model, contestants: tuple[Contestant, ...], monkeypatch: pytest.MonkeyPatch
) -> Options[Any]:
    """A contest on a Penn Treebank of nine words, whose runs draw nothing."""
    for module in ("studies.compare.search", "tasks.loop"):
        monkeypatch.setattr(f"revtune.program.{module}.Clock", Seconds)
    monkeypatch.setattr("revtune.tuning.tuner.history.History.plot", lambda *_: None)
    monkeypatch.setattr(compare_table, "plot", lambda found: b"")
    write_words(folder / "data")
    base: Any = study_of(ptb, "small")
    study = dataclasses.replace(
        base, text=dataclasses.replace(base.text, data=folder / "data", words=200), stn=TUNING, delta=TUNING,
        net=dataclasses.replace(base.net, model=model, embedding=4, hidden=4, layers=2),
        learning=dataclasses.replace(
            base.learning, batch=4, length=6, valid_every=2, valid_batch=2, patience=1, lr=0.02, warmup=1
        ),
    )  # fmt: skip
    pbt = PopulationSettings(members=2, interval=1)
    return Options(study=study, budget=14.0, contestants=contestants, pbt=pbt, out=folder / "contest")


def quiet() -> CompareReport:
    """Says nothing."""
    return CompareReport(Console(quiet=True), "", 1.0, "wall")
