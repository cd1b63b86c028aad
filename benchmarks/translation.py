"""Translation by rewinding beside torch's own layers, on Multi30K: a queue of runs that goes on where it stopped.

    python -m benchmarks.translation --list         what is done, begun and missing
    python -m benchmarks.translation                the eight runs of the study that are missing
    python -m benchmarks.translation --all          those with other slices and limits too
    python -m benchmarks.translation --only NAME    one run

All runs share a recipe, the order of the data and the budget. Each is a `revtune train multi30k` of its own in --runs;
when it ends its memory is measured, and a small file in --results is made; the table there is made from these files.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.metadata
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import jobs as queue
from benchmarks.jobs import Figures, alone, backend, call, measured
from revtune import translation_memory
from revtune.config import read_typed
from revtune.problem import Problem
from revtune.recipes import multi30k
from revtune.run import write
from revtune.translation import Study
from revtune.translation_memory import Job as Sizes
from revtune.translation_run import stored
from revtune.translator import Model

RESULTS = queue.RESULTS / "translation"
NAMES = {"gru": "nn.GRU", "lstm": "nn.LSTM", "revgru": "RevGRU", "revlstm": "RevLSTM"}
COUNTERPART: dict[Model, Model] = {"revgru": "gru", "revlstm": "lstm"}
TOLD = ("batch", "hidden", "lr", "steps")
MEGABYTE = 1e6


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run of the study.

    Args:
        model: as in `Net`.
        attend: what the decoder attends to; to all units with torch's layers.
        bits: the most that a unit may forget in one step; None for no limit.
    """

    model: Model
    attend: str = "full"
    bits: float | None = 3.0

    @property
    def reversible(self) -> bool:
        """Whether it trains one of our cells."""
        return self.model in COUNTERPART

    @property
    def limit(self) -> str:
        """The limit in words; nothing for torch's layers."""
        if not self.reversible:
            return ""
        return "none" if self.bits is None else f"{self.bits:g} bits"

    @property
    def name(self) -> str:
        """Its name in files and on the command line."""
        limit = self.limit.replace(" ", "").replace("none", "unlimited")
        return "-".join(filter(None, (self.model, self.attend.replace("+", "-").replace(":", ""), limit)))

    def study(self) -> Study:
        """The recipe of all runs, with this one's model, attention and limit."""
        base = multi30k.recipe()
        return replace(base, net=replace(base.net, model=self.model, attend=self.attend, max_forget_bits=self.bits))

    def command(self) -> list[str]:
        """What trains it, but for the folder: the recipe, what is not its default, and the settings worth reading."""
        study, base = self.study(), multi30k.recipe()
        words = ["revtune", "train", "multi30k"]
        for ours, theirs in ((study.net, base.net), (study.learning, base.learning)):
            for name, value in dataclasses.asdict(ours).items():
                if name in TOLD or value != getattr(theirs, name):
                    words += [f"--{name.replace('_', '-')}", str(value)]
        return [*words, "--seed", str(study.seed)]


def jobs(*, every: bool = True) -> list[Job]:
    """The eight runs of the study in their order, and the others after them."""
    models: tuple[Model, ...] = ("revgru", "revlstm")
    required = [Job(model="gru"), Job(model="lstm")]
    required += [Job(model=model, attend=attend) for attend in ("emb+slice:20", "emb", "full") for model in models]
    others = [Job(model=model, attend=attend) for attend in ("slice:20", "slice:100") for model in models]
    others += [Job(model=model, attend="emb+slice:20", bits=bits) for bits in (1.0, 2.0, 5.0, None) for model in models]
    return required + others * every


@dataclass(frozen=True)
class Place:
    """Where runs are trained and where their figures are kept."""

    runs: Path
    results: Path

    def run(self, job: Job) -> Path:
        """The run's folder."""
        return self.runs / job.name

    def file(self, job: Job) -> Path:
        """The figures of a run."""
        return self.results / f"{job.name}.json"

    def kept(self, job: Job) -> Figures | None:
        """The figures of a run that is done, else None.

        Raises:
            Problem: when they are those of another recipe, or damaged.
        """
        path = self.file(job)
        if not path.exists():
            return None
        try:
            found: Figures = json.loads(path.read_text(encoding="utf-8"))
            theirs, command = read_typed(Study, found["study"]), found["command"]
            if lacking := {"bytes", "words"} - found.keys():
                raise ValueError(f"it lacks {', '.join(sorted(lacking))}")
        except (OSError, KeyError, TypeError, ValueError) as error:
            told = f"{path} is damaged or of an earlier version: {error}"
            raise Problem(f"{told}; move it away to train this one") from error
        if theirs != job.study():
            raise Problem(f"{path} is of another recipe, `{command}`; move it away to train this one")
        return found

    def done(self, job: Job) -> bool:
        """Whether nothing is left to do for a run, its memory measured too; raises as `kept`."""
        found = self.kept(job)
        return found is not None and "error" not in found["bytes"]

    def standing(self, job: Job) -> str:
        """done, begun at a step, missing, or why its figures cannot be used."""
        try:
            if found := self.kept(job):
                failed = found["bytes"].get("error")
                return f"done, but its memory could not be measured: {failed}" if failed else "done"
        except Problem as problem:
            return str(problem)
        steps = [line["step"] for line in measured(self.run(job) / "metrics.jsonl")]
        return f"at step {steps[-1]} of {job.study().learning.steps}" if steps else "missing"

    def write_table(self) -> None:
        """Make the README of the results from what is kept and can be used."""
        done: dict[Job, Figures] = {}
        for job in jobs():
            with contextlib.suppress(Problem):
                done |= {job: found} if (found := self.kept(job)) else {}
        write(self.results / "README.md", readme(done).encode())

    def unusable(self) -> Iterator[str]:
        """What is wrong with figures that are there."""
        for job in jobs():
            try:
                self.kept(job)
            except Problem as problem:
                yield str(problem)


def train(place: Place, job: Job) -> None:
    """Train a run from where it stands to its end, measure its memory, and keep its figures.

    Raises:
        Problem: when the folder holds a run of another recipe, the program gives up or is stopped, or its memory cannot
            be measured.
    """
    if found := place.kept(job):
        keep(place, job, found)
        return
    folder = place.run(job)
    begun = (folder / "config.json").exists()
    if begun and at_home(stored(folder)[1]) != job.study():
        raise Problem(f"{folder} holds a run of another recipe; move it away to train this one")
    if not (folder / "result.json").exists():
        words = ["train", "--resume", str(folder)] if begun else [*job.command()[1:], "--out", str(folder)]
        if code := call([sys.executable, "-m", "revtune", *words]):
            raise Problem(f"{job.name} ended with exit code {code}", code=code)
    keep(place, job, figures(folder, job))


def at_home(study: Study) -> Study:
    """A study without the folder that its data were found in."""
    return replace(study, text=replace(study.text, data=None))


def keep(place: Place, job: Job, found: Figures) -> None:
    """Measure the memory of a finished run, and write its figures and the table.

    Raises:
        Problem: it cannot be measured; all else is kept.
    """
    needed = translation_memory.measured(Sizes(net=job.study().net, **found["words"]))
    write(place.file(job), json.dumps({**found, "bytes": needed}, indent=1).encode() + b"\n")
    place.write_table()
    if "error" in needed:
        raise Problem(f"the memory of {job.name} could not be measured: {needed['error']}")


def figures(folder: Path, job: Job) -> Figures:
    """All figures of a finished run but its memory."""
    result: Figures = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    lines = measured(folder / "metrics.jsonl")
    words: Figures = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))
    return {
        "name": job.name, "command": " ".join(job.command()),
        "backend": backend() if job.reversible else "torch's layer",
        "torch": importlib.metadata.version("torch"), "sacrebleu": importlib.metadata.version("sacrebleu"),
        "words": {f"{side}_words": len(words[side]["words"]) for side in ("source", "target")},
        "updates": job.study().learning.steps, "validations": [[one["step"], round(one["loss"], 4)] for one in lines],
        **{name: value for name, value in result.items() if name not in ("values", "final_values")},
        "study": json.loads(json.dumps(dataclasses.asdict(job.study()), default=str)),
    }  # fmt: skip


def readme(done: dict[Job, Figures]) -> str:
    """The document of the results: how they came about, the tables, and each run's command."""
    commands = "\n".join(f"    {found['command']}" for found in done.values())
    tables = "\n".join([*quality(done), "", MEMORY, *memory(done)])
    return ABOUT + tables + "\n\nThe commands, each with `--out` and a folder:\n\n" + commands + "\n"


ABOUT = """# Translation, Multi30K from English to German

    python -m benchmarks.translation

One layer of 300 units each, the same recipe, data order and budget for all; a JSON for each run has its command,
settings and figures. The same command trains what is missing and goes on with what was begun. What is tested is the
network with the lowest perplexity on the validation text, the one told here; BLEU is of the test of 2016, by beam
search and greedy, sacrebleu's signature being in the JSON. An epoch's seconds are the processor's, one thread of a
machine shared with other jobs, its validations included.

"""
MEMORY = """Memory of a training step of 64 sentences of 26 words, in MB, measured: the most that the whole step, the
encoder by itself and the decoder by itself take at one time beside weights and gradients, and what the encoder holds
once it has gone forward; in brackets how many times less than torch's layer. Then bits a unit, state and word that the
buffers take, and that gates forgot; then how many times fewer bits than the states of torch's layer, all else left out,
as the papers count: padding of states and slices left out, with batches of like length, and with batches as they come,
as in the papers.
"""


def quality(done: dict[Job, Figures]) -> Iterator[str]:
    """The lines of the table of BLEU, perplexity and time, a row a run."""
    yield "| model | attends to | limit | BLEU | greedy | perplexity | best at update | seconds an epoch | ratio |"
    yield "|---|---|---|---:|---:|---:|---:|---:|---:|"
    for job, found in done.items():
        seconds, theirs = (epoch_seconds(one) for one in (found, done.get(counterpart(job), found)))
        ratio = f"{seconds / theirs:.2f}" if job.reversible and counterpart(job) in done else ""
        scores = f"{found['bleu']:.2f} | {found['greedy_bleu']:.2f} | {found['valid']['perplexity']:.2f}"
        cells = f"{scores} | {found['step']} | {seconds:.0f} | {ratio}"
        yield f"| {NAMES[job.model]} | {job.attend} | {job.limit} | {cells} |"


def memory(done: dict[Job, Figures]) -> Iterator[str]:
    """The lines of the table of memory, measured and counted."""
    heads = ["model", "attends to", "limit", "step", "encoder", "held", "decoder"]
    heads += [f"{side} {what}" for side in ("encoder", "decoder") for what in ("bits, forgotten", "counted")]
    yield "| " + " | ".join(heads) + " |"
    yield "|---" * len(heads) + "|"
    for job, found in done.items():
        theirs = done.get(counterpart(job)) if job.reversible else None
        cells = [bytes_of(found["bytes"], theirs and theirs["bytes"], part)
                 for part in ("step", "encoder", "held", "decoder")]  # fmt: skip
        for side in ("encoder", "decoder"):
            bits = found["bits"][side]
            cells += [f"{bits['stored']:.2f}, {bits['forgotten']:.2f}" if "stored" in bits else ""]
            cells += [" / ".join(f"{one:.1f}" for one in bits.get("saved", {}).values())]
        yield f"| {NAMES[job.model]} | {job.attend} | {job.limit} | " + " | ".join(cells) + " |"


def bytes_of(found: Figures, theirs: Figures | None, part: str) -> str:
    """What a part takes, and how many times less than torch's layer."""
    if part not in found:
        return "failed"
    less = f" ({theirs[part] / found[part]:.1f}x)" if theirs and part in theirs else ""
    return f"{found[part] / MEGABYTE:.1f}{less}"


def counterpart(job: Job) -> Job:
    """The run of torch's layer that a run is compared with."""
    return Job(model=COUNTERPART.get(job.model, job.model))


def epoch_seconds(found: Figures) -> float:
    """Processor seconds of a pass over the training pairs."""
    return float(found["cpu"]) / found["updates"] * float(found["epoch"])


def work(place: Place, wanted: list[Job]) -> None:
    """Train what is not done yet, and make the table.

    Raises:
        Problem: as `jobs.work`.
    """
    place.results.mkdir(parents=True, exist_ok=True)
    for told in place.unusable():
        print(f"translation: left out: {told}", file=sys.stderr)
    with alone(place.runs):
        try:
            queue.work("translation", wanted, place.done, lambda job: train(place, job))
        finally:
            place.write_table()


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description="Translation by rewinding beside torch's own layers, run by run.")
    parser.add_argument("--list", action="store_true", help="say what is done, begun and missing, and train nothing")
    parser.add_argument("--only", metavar="NAME", help="this run alone")
    parser.add_argument("--all", action="store_true", help="other slices and limits too")
    parser.add_argument("--runs", type=Path, default=Path("runs/translation"), help="folder of the runs themselves")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of figures and table")
    options = parser.parse_args(arguments)
    place = Place(options.runs, options.results)
    try:
        if options.list:
            print("\n".join(f"{job.name:28} {place.standing(job)}" for job in jobs()))
        else:
            work(place, jobs(every=options.all) if options.only is None else queue.named(jobs(), options.only))
    except Problem as problem:
        print(f"translation: {problem}", file=sys.stderr)
        return problem.code
    return 0


if __name__ == "__main__":
    sys.exit(main())
