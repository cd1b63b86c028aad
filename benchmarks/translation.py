"""Translation by rewinding beside torch's own layers, on Multi30K: a queue of runs that goes on where it stopped.

    python -m benchmarks.translation --list         what is done, begun and missing
    python -m benchmarks.translation                the eight runs of the study that are missing
    python -m benchmarks.translation --all          those with other slices and limits too
    python -m benchmarks.translation --only NAME    one run
    python -m benchmarks.translation --time         seconds of an update of all, in turns; nothing else should run

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
from benchmarks import translation_memory, translation_speed
from benchmarks.jobs import Figures, alone, backend, call, measured
from benchmarks.translation_jobs import Job, jobs, timed
from benchmarks.translation_memory import Job as Sizes
from benchmarks.translation_table import Times, readme
from revtune.program.errors import Problem
from revtune.program.files import write
from revtune.program.translation.run import stored
from revtune.program.translation.task import TranslationStudy
from revtune.program.typed import read_typed

RESULTS = queue.RESULTS / "translation"
TIMES = "times.json"


@dataclass(frozen=True)
class Folders:
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
            theirs, command = read_typed(TranslationStudy, found["study"]), found["command"]
            if lacking := {"bytes", "words"} - found.keys():
                raise ValueError(f"it lacks {', '.join(sorted(lacking))}")
        except (OSError, KeyError, TypeError, ValueError) as error:
            reason = f"{path} is damaged or of an earlier version: {error}"
            raise Problem(f"{reason}; move it away to train this one") from error
        if theirs != job.study():
            raise Problem(f"{path} is of another recipe, `{command}`; move it away to train this one")
        return found

    def done(self, job: Job) -> bool:
        """Whether nothing is left to do for a run, its memory measured too; raises as `kept`."""
        found = self.kept(job)
        return found is not None and not error_in(found)

    def standing(self, job: Job) -> str:
        """done, begun at a step, missing, or why its figures cannot be used."""
        try:
            if found := self.kept(job):
                failed = error_in(found)
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
        write(self.results / "README.md", readme(done, self.times()).encode())

    def times(self) -> Times:
        """Seconds of an update by name of a job and round, as `--time` left them; none before."""
        path = self.results / TIMES
        found: Times = json.loads(path.read_text())["seconds"] if path.exists() else {}
        return found

    def unusable(self) -> Iterator[str]:
        """What is wrong with figures that are there."""
        for job in jobs():
            try:
                self.kept(job)
            except Problem as problem:
                yield str(problem)


def train(folders: Folders, job: Job) -> None:
    """Train a run from where it stands to its end, measure its memory, and keep its figures.

    Raises:
        Problem: when the folder holds a run of another recipe, the program gives up or is stopped, or its memory cannot
            be measured.
    """
    if found := folders.kept(job):
        keep(folders, job, found)
        return
    folder = folders.run(job)
    begun = (folder / "config.json").exists()
    if begun and without_data_folder(stored(folder)[1]) != job.study():
        raise Problem(f"{folder} holds a run of another recipe; move it away to train this one")
    if not (folder / "result.json").exists():
        words = ["train", "--resume", str(folder)] if begun else [*job.command()[1:], "--out", str(folder)]
        if code := call([sys.executable, "-m", "revtune", *words]):
            raise Problem(f"{job.name} ended with exit code {code}", code=code)
    keep(folders, job, figures(folder, job))


def without_data_folder(study: TranslationStudy) -> TranslationStudy:
    """A study without the folder that its data were found in."""
    return replace(study, text=replace(study.text, data=None))


def keep(folders: Folders, job: Job, found: Figures) -> None:
    """Measure the memory of a finished run, and write these figures and the table.

    Raises:
        Problem: it cannot be measured; all else is kept.
    """
    sizes = Sizes(net=job.study().net, **found["words"])
    found = {**found, "bytes": translation_memory.measured(sizes)}
    if not job.reversible:
        blocks = replace(sizes, net=replace(sizes.net, loss_in_blocks=True))
        found["bytes_in_blocks"] = translation_memory.measured(blocks)
    write(folders.file(job), json.dumps(found, indent=1).encode() + b"\n")
    folders.write_table()
    if failed := error_in(found):
        raise Problem(f"the memory of {job.name} could not be measured: {failed}")


def error_in(found: Figures) -> str | None:
    """Why a run's memory could not be measured, if it could not."""
    errors = (found.get(name, {}).get("error") for name in ("bytes", "bytes_in_blocks"))
    return next(filter(None, errors), None)


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


def work(folders: Folders, wanted: list[Job]) -> None:
    """Train what is not done yet, and make the table.

    Raises:
        Problem: as `jobs.work`.
    """
    folders.results.mkdir(parents=True, exist_ok=True)
    for reason in folders.unusable():
        print(f"translation: left out: {reason}", file=sys.stderr)
    with alone(folders.runs):
        try:
            queue.work("translation", wanted, folders.done, lambda job: train(folders, job))
        finally:
            folders.write_table()


def take_times(folders: Folders) -> None:
    """Time the updates of all contestants in turns, and keep the seconds."""
    folders.results.mkdir(parents=True, exist_ok=True)
    seconds = translation_speed.timed({job.name: job.study() for job in timed()})
    facts = {"torch": importlib.metadata.version("torch"), "backend": backend(), "seconds": seconds}
    write(folders.results / TIMES, json.dumps(facts, indent=1).encode() + b"\n")
    folders.write_table()


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description="Translation by rewinding beside torch's own layers, run by run.")
    parser.add_argument("--list", action="store_true", help="say what is done, begun and missing, and train nothing")
    parser.add_argument("--time", action="store_true", help="time updates of all in turns, and train nothing")
    parser.add_argument("--only", metavar="NAME", help="this run alone")
    parser.add_argument("--all", action="store_true", help="other slices and limits too")
    parser.add_argument("--runs", type=Path, default=Path("runs/translation"), help="folder of the runs themselves")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of figures and table")
    options = parser.parse_args(arguments)
    folders = Folders(options.runs, options.results)
    try:
        if options.list:
            print("\n".join(f"{job.name:28} {folders.standing(job)}" for job in jobs()))
        elif options.time:
            take_times(folders)
        else:
            work(folders, jobs(every=options.all) if options.only is None else queue.named(jobs(), options.only))
    except Problem as problem:
        print(f"translation: {problem}", file=sys.stderr)
        return problem.code
    return 0


if __name__ == "__main__":
    sys.exit(main())
