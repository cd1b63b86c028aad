"""Optuna's samplers and pruners, by which a search chooses the values of its trials and ends them early.

    random       nothing is learnt from earlier trials
    grid         at least GRID_POINTS points, in an order of chance
    tpe          densities of good and of other trials (Bergstra et al. 2011), of all hyperparameters together
    hyperband    tpe, of whose trials brackets of successive halving end most early (Li et al. 2018)
    asha         random, one bracket of which each trial is judged in as soon as it comes to a rung (Li et al. 2020)
    gp           expected improvement under a Gaussian process with a Matern kernel
    cmaes        CMA-ES (Hansen and Ostermeier 2001), in the middle of the space at first

A sampler is made anew for each trial, so that what it draws depends on the seed, the trial's number and the trials
that the journal holds, and on nothing that a search which was stopped would have lost.

`gp` draws at random until 10 trials are whole. `cmaes` moves after each generation of whole trials, 4 + 3 log n for n
hyperparameters: 9 of them for 6. Neither learns from trials that were cut short or failed.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, GridSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from revtune.program.tasks.task import SEARCHERS, Searcher, Space

GRID_POINTS = 100
"""A grid has at least so many points, and at least two values of each hyperparameter."""

REDUCTION, ROUNDS = 3, 9
"""Hyperband's and ASHA's reduction factor; the shortest trials have one in so many of the validations of a whole one.
"""


def distribution(space: Space) -> BaseDistribution:
    """A space in Optuna's terms."""
    if space.whole:
        return IntDistribution(int(space.low), int(space.high), log=space.log)
    return FloatDistribution(space.low, space.high, log=space.log)


def grid(spaces: dict[str, Space]) -> dict[str, list[float]]:
    """Values of each hyperparameter at the middles of equal shares of its space."""
    # less a little, as a root may come out just above a whole number
    count = max(2, math.ceil(GRID_POINTS ** (1 / len(spaces)) - 1e-9))
    shares = [(i + 0.5) / count for i in range(count)]
    return {name: sorted({space.at(share) for share in shares}) for name, space in spaces.items()}


class Grid(GridSampler):
    """Optuna's, for trials that are asked for one by one."""

    def after_trial(self, *args: Any) -> None:
        """Nothing: Optuna's would stop a study that runs by itself, and `Search` knows when the grid is through."""


class CmaEs(CmaEsSampler):
    """Optuna's, whose optimizer is led anew through all generations of whole trials for each trial that is asked for.

    Optuna's pickles it into the journal after each generation; what comes from a file is not unpickled here.
    """

    def sample_relative(self, study: Any, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> Any:
        """The values of a trial."""
        self._whole = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return super().sample_relative(study, trial, search_space)

    def _restore_optimizer(self, completed_trials: list[FrozenTrial]) -> None:
        """None, by which Optuna's makes a new one."""

    def _init_optimizer(self, trans: Any, direction: Any) -> Any:
        optimizer = super()._init_optimizer(trans, direction)
        while len(told := self._get_solution_trials(self._whole, optimizer.generation)) >= optimizer.population_size:
            optimizer.tell([(trans.transform(one.params), one.value) for one in told[: optimizer.population_size]])
        return optimizer


def sampler(searcher: Searcher, spaces: dict[str, Space], seed: int, number: int) -> BaseSampler:
    """What draws the trial of a number; the order of a grid depends on the seed alone."""
    # differs for all seeds, searchers and numbers, as long as a search has fewer than 7,919 trials
    draw = (1_000_003 * seed + 7_919 * SEARCHERS.index(searcher) + number) % 2**32
    if searcher == "grid":
        return Grid(grid(spaces), seed=seed % 2**32)
    if searcher in ("random", "asha"):
        return RandomSampler(seed=draw)
    if searcher == "gp":
        return GPSampler(seed=draw)
    if searcher == "cmaes":
        return CmaEs(seed=draw)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return TPESampler(multivariate=True, seed=draw)


def pruner(searcher: Searcher, rounds: int) -> optuna.pruners.BasePruner:
    """What ends trials early, of so many validations."""
    shortest = max(1, rounds // ROUNDS)
    if searcher == "asha":
        return optuna.pruners.SuccessiveHalvingPruner(shortest, REDUCTION)
    if searcher == "hyperband":
        return optuna.pruners.HyperbandPruner(shortest, max(1, rounds), REDUCTION)
    return optuna.pruners.NopPruner()
