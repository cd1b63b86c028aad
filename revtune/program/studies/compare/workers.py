"""Processes that run a search's trials at once."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Self

from optuna.pruners import BasePruner
from optuna.trial import Trial

from revtune.program.errors import Problem
from revtune.program.studies.compare import trials
from revtune.program.studies.compare.storage import Kept
from revtune.program.studies.compare.trials import Job, Outcome
from revtune.program.tasks.task import Task

LOOKED_EVERY = 0.5
"""Seconds between looks at whether the search was asked to stop."""


class Workers:
    """Processes that run trials, begun within a block and ended with it.

    Args:
        count: how many.
        task: what trials learn; each process loads it anew.
        kept: where the trials are kept.
        pruner: ends trials early.
        command: what goes on with the search, for messages.

    Attributes:
        busy: what runs, by the number of its worker.
    """

    def __init__(self, count: int, task: Task, kept: Kept, pruner: BasePruner, command: str) -> None:
        spawning = multiprocessing.get_context("spawn")  # forked processes would hang in torch's threads
        self._command = command
        self._stop, self.busy = spawning.Event(), dict[int, tuple[Trial, Future[Outcome]]]()
        load = partial(type(task).as_learnt, task.study, task.digest())
        begin: Callable[[], object] = partial(trials.begin, load, kept, pruner, self._stop)
        self._pool = ProcessPoolExecutor(count, spawning, begin)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()
        self._pool.shutdown(cancel_futures=True)

    def stop(self) -> None:
        """Have trials end after their step, as the search is over."""
        self._stop.set()

    def run(self, worker: int, trial: Trial, job: Job) -> None:
        """Have a worker run a trial.

        Raises:
            Problem: a worker has died.
        """
        with self._alive((BrokenProcessPool, OSError)):  # the latter where another dies while one starts
            self.busy[worker] = trial, self._pool.submit(trials.run, job)

    def ended(self) -> Iterator[tuple[int, Trial, Outcome]]:
        """Trials that have ended, after a while none.

        Raises:
            Problem: a worker has died.
        """
        wait([future for _, future in self.busy.values()], LOOKED_EVERY, FIRST_COMPLETED)
        for worker, (trial, future) in list(self.busy.items()):
            if future.done():
                del self.busy[worker]
                with self._alive():
                    outcome = future.result()
                yield worker, trial, outcome

    @contextlib.contextmanager
    def _alive(self, died: tuple[type[Exception], ...] = (BrokenProcessPool,)) -> Iterator[None]:
        try:
            yield
        except died as error:
            raise Problem(f"a worker of the search has died; {self._command} goes on") from error
