"""The bars of a run and of a contestant move with each step, not at validations alone."""

from rich.console import Console

from revtune.program.studies.compare.live import CompareReport
from revtune.program.tasks.live import RunReport

STEP = {"step": 4, "wall": 3.0, "cpu": 2.0}


def test_a_runs_bar_counts_steps() -> None:
    report = RunReport(9, "perplexity", plain=True)
    report.step(STEP)
    (task,) = report.bar.tasks
    assert (task.completed, task.total) == (4, 9)


def test_a_contestants_bar_counts_the_time_of_its_clock() -> None:
    for clock, spent in (("wall", 3.0), ("cpu", 2.0)):
        report = CompareReport(Console(quiet=True), "seed 0, stn", 60.0, clock)  # type: ignore[arg-type]
        report.step(STEP)
        (task,) = report.bar.tasks
        assert (task.completed, task.total) == (spent, 60.0)
