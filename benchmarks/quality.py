"""Perplexity of reversible layers beside torch's own on Penn Treebank: a queue of runs that goes on where it stopped.

    python -m benchmarks.quality --list             what is done, begun and missing
    python -m benchmarks.quality                    the runs of nn.GRU and nn.LSTM that are missing
    python -m benchmarks.quality --reversible       those of RevGRU and RevLSTM too
    python -m benchmarks.quality --only NAME        one run

All runs share a recipe, the order of the data and the budget. Each is a `revtune train ptb` of its own in --runs, from
whose measurements a small file in --results is made when it ends; the table there is made from these files.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median

from benchmarks import jobs as queue
from benchmarks.jobs import COUNTERPART, NAMES, Figures, RecurrentJob, alone, backend, call, measured
from revtune.program.errors import Problem
from revtune.program.files import write
from revtune.program.language.config import Config, from_json
from revtune.program.language.run import Run
from revtune.program.layers import Model
from revtune.program.recipes import ptb

RESULTS = queue.RESULTS / "quality"
EPOCH = 664  # updates, at 20 streams of 70 words
EPOCHS = 6
RATE = 4e-3
DROPOUT = 0.2
SEEDS = (1, 2, 3)
TOLD = ("batch", "length", "lr", "warmup", "clip", "threads", "seed")
PAUSED = 5  # medians that a step takes at least when the process was stopped in it
CLOSE = 1.01  # the ratio of perplexities up to which a reversible layer is told as close


@dataclass(frozen=True, kw_only=True)
class Job(RecurrentJob):
    """A run of the study.

    Args:
        units: of embedding and hidden layer.
        seed: of weights and masks.
    """

    units: int = 200
    seed: int = 1

    @property
    def name(self) -> str:
        """Its name in files and on the command line."""
        parts = (self.model, str(self.units), self.limit_name)
        return "-".join(filter(None, (*parts, f"seed{self.seed}")))

    def config(self) -> Config:
        """The recipe of all runs, with this one's model, size, limit and seed."""
        base = ptb.recipe()
        net = replace(
            base.net, model=self.model, embedding=self.units, hidden=self.units, max_forget_bits=self.bits,
            input_dropout=DROPOUT, output_dropout=DROPOUT,
        )  # fmt: skip
        learning = replace(base.learning, steps=EPOCHS * EPOCH, lr=RATE, valid_every=EPOCH, seed=self.seed)
        return replace(base, net=net, learning=learning, tune="off")

    def command(self) -> list[str]:
        """What trains it, but for the folder: the recipe, what is not its default, and the settings worth reading."""
        config, base = self.config(), ptb.recipe()
        words = ["revtune", "train", "ptb"]
        for ours, theirs in ((config.net, base.net), (config.learning, base.learning)):
            for name, value in dataclasses.asdict(ours).items():
                if name in TOLD or value != getattr(theirs, name):
                    words += [f"--{name.replace('_', '-')}", str(value)]
        return [*words, "--tune", config.tune]


def jobs() -> list[Job]:
    """All runs in their order: torch's layers, ours, their other limits, and the larger nets.

    RevLSTM at 2 bits has all seeds, since at the first it is off.
    """
    ordinary: tuple[Model, ...] = ("gru", "lstm")
    reversible: tuple[Model, ...] = ("revgru", "revlstm")
    queue = [Job(model=model, seed=seed) for models in (ordinary, reversible) for seed in SEEDS for model in models]
    queue += [Job(model=model, bits=bits) for bits in (2.0, 5.0, None) for model in reversible]
    queue += [Job(model="revlstm", bits=2.0, seed=seed) for seed in SEEDS[1:]]
    return queue + [Job(model=model, units=650) for model in (*ordinary, *reversible)]


@dataclass(frozen=True)
class Folders:
    """Where runs are trained and where their figures are kept."""

    runs: Path
    results: Path

    def run(self, job: Job) -> Run:
        """The run's folder."""
        return Run(self.runs / job.name)

    def file(self, job: Job) -> Path:
        """The figures of a run."""
        return self.results / f"{job.name}.json"

    def kept(self, job: Job) -> Figures | None:
        """The figures of a run that is done, else None.

        Raises:
            Problem: when they are those of another recipe.
        """
        path = self.file(job)
        if not path.exists():
            return None
        found: Figures = json.loads(path.read_text(encoding="utf-8"))
        if from_json(json.dumps(found["config"]), path) != job.config():
            raise Problem(f"{path} is of another recipe, `{found['command']}`; move it away to train this one")
        return found

    def standing(self, job: Job) -> str:
        """done, begun at a step, or missing."""
        if self.kept(job):
            return "done"
        steps = [line["step"] for line in measured(self.run(job).metrics)]
        return f"at step {steps[-1]} of {job.config().learning.steps}" if steps else "missing"

    def write_table(self) -> None:
        """Make the README of the results from what is kept."""
        done = {job: found for job in jobs() if (found := self.kept(job))}
        write(self.results / "README.md", readme(done).encode())


def finished(job: Job, lines: list[Figures]) -> bool:
    """Whether measurements tell of the last step's validation."""
    return bool(lines) and "valid_loss" in lines[-1] and lines[-1]["step"] == job.config().learning.steps


def figures(lines: list[Figures]) -> Figures:
    """What measurements come to.

    Seconds are those of the updates alone; one that took `PAUSED` medians or more, because the process was stopped or
    the machine was busy, counts as a median one.
    """
    steps = [line for line in lines if "seconds" in line]
    valid = [(line["step"], line["valid_loss"]) for line in lines if "valid_loss" in line]
    best = min(valid, key=lambda validation: validation[1])
    typical = median(line["seconds"] for line in steps)
    found: Figures = {
        "perplexity": math.exp(best[1]), "best_step": best[0], "final_perplexity": math.exp(valid[-1][1]),
        "updates": len(steps), "epochs": len(steps) / EPOCH,
        "seconds": round(sum(s if (s := line["seconds"]) < PAUSED * typical else typical for line in steps), 1),
        "step_seconds": typical, "validations": [[step, round(math.exp(loss), 3)] for step, loss in valid],
        "training": [round(math.exp(loss), 3) for loss in by_epoch(steps)],
    }  # fmt: skip
    bits = [line["stored_bits"] for line in steps if "stored_bits" in line]
    return found | ({"stored_bits": round(fmean(bits), 4)} if bits else {})


def by_epoch(steps: list[Figures]) -> list[float]:
    """Mean training loss of each epoch, in nats."""
    return [fmean(line["loss"] for line in steps[first : first + EPOCH]) for first in range(0, len(steps), EPOCH)]


def keep(folders: Folders, job: Job) -> None:
    """Write the figures of a finished run and the table."""
    facts = {
        "name": job.name, "command": " ".join(job.command()), "seed": job.seed,
        "backend": backend() if job.reversible else "torch's layer",
        "torch": importlib.metadata.version("torch"), **figures(measured(folders.run(job).metrics)),
        "config": json.loads(folders.run(job).config().json()),
    }  # fmt: skip
    write(folders.file(job), json.dumps(facts, indent=1).encode() + b"\n")
    folders.write_table()


def train(folders: Folders, job: Job) -> None:
    """Train a run from where it stands to its end, and keep its figures.

    Raises:
        Problem: when the folder holds a run of another recipe, or the program gives up or is stopped.
    """
    run = folders.run(job)
    begun = (run.folder / "config.json").exists()
    if begun and run.config() != job.config():
        raise Problem(f"{run.folder} holds a run of another recipe; move it away to train this one")
    if not finished(job, measured(run.metrics)):
        words = ["train", "--resume", str(run.folder)] if begun else [*job.command()[1:], "--out", str(run.folder)]
        if code := call([sys.executable, "-m", "revtune", *words]):
            raise Problem(f"{job.name} ended with exit code {code}", code=code)
    keep(folders, job)


def readme(done: dict[Job, Figures]) -> str:
    """The document of the results: how they came about, the table, and each run's command."""
    commands = "\n".join(f"    {found['command']}" for found in done.values())
    return ABOUT + "\n".join(table(done)) + "\n\nThe commands, each with `--out` and a folder:\n\n" + commands + "\n"


ABOUT = f"""# Quality on Penn Treebank

    python -m benchmarks.quality --reversible

Word level, one layer, tied embedding, {EPOCHS} epochs of {EPOCH} updates, the same recipe and data order for all; a
JSON for each run has its command, configuration and figures. The same command trains what is missing and goes on with
what was begun. One thread of a machine shared with other jobs; seconds are of the updates alone, a paused one left out.

Perplexity is the lowest on the validation text, the mean over seeds ± half their range; the ratio is to torch's layer
over the same seeds; it is close when at most {CLOSE}, or when the mean is at most that layer's worst seed. Bits are
those that the information buffer stores a unit and step, the mean over the run.

"""


def table(done: dict[Job, Figures]) -> Iterator[str]:
    """The table's lines, a row for each model, size and limit of which a run is done."""
    yield "| model | units | limit | seeds | perplexity | ratio | close | bits stored | seconds a step | minutes |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for group in dict.fromkeys(replace(job, seed=1) for job in jobs()):
        runs = {job.seed: found for job, found in done.items() if replace(job, seed=1) == group}
        if runs:
            yield "| " + " | ".join((*row(group, runs), *ratio(group, runs, done), *costs(runs))) + " |"


def row(group: Job, runs: dict[int, Figures]) -> tuple[str, ...]:
    """What was trained, how often, and the perplexity."""
    values = [figures["perplexity"] for figures in runs.values()]
    half = f" ± {(max(values) - min(values)) / 2:.1f}" if len(values) > 1 else ""
    return NAMES[group.model], str(group.units), group.limit, str(len(runs)), f"{fmean(values):.1f}{half}"


def ratio(group: Job, runs: dict[int, Figures], done: dict[Job, Figures]) -> tuple[str, str]:
    """Perplexity over torch's layer's on the seeds that both have, and whether that is close."""
    if not group.reversible:
        return "", ""
    model = COUNTERPART[group.model]
    counterparts = {seed: done.get(Job(model=model, units=group.units, seed=seed)) for seed in SEEDS}
    theirs = {seed: figures["perplexity"] for seed, figures in counterparts.items() if figures}
    shared = [seed for seed in runs if seed in theirs]
    if not shared:
        return "", ""
    ours = fmean(runs[seed]["perplexity"] for seed in shared)
    value = ours / fmean(theirs[seed] for seed in shared)
    return f"{value:.3f}", "yes" if value <= CLOSE or ours <= max(theirs.values()) else "no"


def costs(runs: dict[int, Figures]) -> tuple[str, ...]:
    """Bits and time, means over seeds."""
    bits = [figures["stored_bits"] for figures in runs.values() if "stored_bits" in figures]
    step, seconds = (fmean(figures[name] for figures in runs.values()) for name in ("step_seconds", "seconds"))
    return f"{fmean(bits):.2f}" if bits else "", f"{step:.2f}", f"{seconds / 60:.0f}"


def chosen(only: str | None, reversible: bool) -> list[Job]:
    """The runs that are asked for, in their order.

    Raises:
        Problem: for a name that no run has.
    """
    if only is not None:
        return queue.named(jobs(), only)
    return [job for job in jobs() if reversible or not job.reversible]


def work(folders: Folders, wanted: list[Job]) -> None:
    """Train what is not done yet, and make the table.

    Raises:
        Problem: as `jobs.work`.
    """
    folders.results.mkdir(parents=True, exist_ok=True)
    with alone(folders.runs):
        try:
            queue.work("quality", wanted, folders.kept, lambda job: train(folders, job))
        finally:
            folders.write_table()


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description="Perplexity of reversible layers beside torch's own, run by run.")
    parser.add_argument("--list", action="store_true", help="say what is done, begun and missing, and train nothing")
    parser.add_argument("--only", metavar="NAME", help="this run alone")
    parser.add_argument("--reversible", action="store_true", help="RevGRU and RevLSTM too")
    parser.add_argument("--runs", type=Path, default=Path("runs/quality"), help="folder of the runs themselves")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of figures and table")
    options = parser.parse_args(arguments)
    folders = Folders(options.runs, options.results)
    try:
        if options.list:
            print("\n".join(f"{job.name:28} {folders.standing(job)}" for job in jobs()))
        else:
            work(folders, chosen(options.only, options.reversible))
    except Problem as problem:
        print(f"quality: {problem}", file=sys.stderr)
        return problem.code
    return 0


if __name__ == "__main__":
    sys.exit(main())
