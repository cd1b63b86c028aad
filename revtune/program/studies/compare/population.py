"""Population based training (Jaderberg et al. 2017, arXiv 1711.09846): networks that learn in turns and take after the
best of them, so that hyperparameters change while they learn.

All members begin with the same weights, as all contestants do: the first at the values that all methods start from,
the others at values drawn as random search draws them. A round is a turn of each. After it (the paper's sections 3 and
4.1, "truncation selection" and "perturb")::

    exploit    a member among the worst fifth by held-out loss becomes a copy of one among the best fifth, drawn at
               random: weights, the optimizer's state and its learning rate, hyperparameters
    explore    then each of its hyperparameters is multiplied by 0.8 or 1.2, drawn at random, in user units, and kept
               in its space; an integer moves by a fifth as well, but by 1 at least

A member whose loss is no finite number waits for the next exploit, in which it takes part whatever its rank. Under a
cosine a member that has come to its end stands still, and the population has when all have that have not failed.
"""

from __future__ import annotations

import copy
import math
import random
from dataclasses import dataclass
from typing import Any

from torch import nn

from revtune.errors import NonFiniteError
from revtune.program.tasks.learner import Learner
from revtune.program.tasks.plain_learner import PlainLearner
from revtune.program.tasks.task import Space, Task
from revtune.tuning.hypers.constants import Constants
from revtune.tuning.random_states import random_states

SHARE, STEP = 0.2, 0.2
"""Of the members that are copied and copied to; by how much of itself a hyperparameter is changed."""


@dataclass(frozen=True, kw_only=True)
class PopulationSettings:
    """How population based training tunes."""

    members: int = 8
    """Networks that learn in turns."""
    interval: int = 2
    """Validations of a member between the rounds in which the worst become copies of the best."""


class Population(Learner):
    """Learns by a population, one member after the other for a turn each.

    Args:
        task: what is learnt.
        settings: how many members, and how long a turn is.

    Attributes:
        losses: each member's last held-out loss; infinite before the first one, and of a member that has failed.
        failed: the members that no longer learn until they become copies.
    """

    task: Task

    def __init__(self, task: Task, settings: PopulationSettings) -> None:
        super().__init__(task)
        self.spaces, self.turn = task.spaces(), settings.interval * self.learning.valid_every
        draws = random.Random(task.study.seed)
        drawn = [
            {name: space.at(draws.random()) for name, space in self.spaces.items()} for _ in range(settings.members)
        ]
        first = dict(Constants(task.hypers()).values())
        self.members = [PlainLearner(task, values) for values in (first, *drawn[1:])]
        self.losses, self.failed, self._steps = [math.inf] * len(self.members), list[int](), 0

    @property
    def steps(self) -> int:
        """Updates of all members so far, and those that were due to members that stood still."""
        return self._steps

    @property
    def past_its_schedule(self) -> bool:
        learning = [member for number, member in enumerate(self.members) if number not in self.failed]
        # where all have failed, `step` says so
        return bool(learning) and all(member.past_its_schedule for member in learning)

    @property
    def current(self) -> int:
        """The member that was updated last."""
        return max(0, self._steps - 1) // self.turn % len(self.members)

    def step(self) -> float:
        """Update one member once more, after the round that is due, if one is; the training loss.

        Raises:
            NonFiniteError: no member has a loss that is a finite number.
        """
        if self._steps and self._steps % (self.turn * len(self.members)) == 0:
            self.exchange()
        self._steps += 1
        return self.update()

    def update(self) -> float:
        """Update the current member, unless it has failed or is past its schedule; the training loss."""
        if self.current not in self.failed and not self.members[self.current].past_its_schedule:
            try:
                return self.members[self.current].step()
            except NonFiniteError:
                self._fail()
        return math.nan

    def validate(self) -> dict[str, float]:
        """The current member's figures and its number; none of one that has failed or has stood still since."""
        member = self.members[self.current]
        try:
            stood = self.current in self.failed or not member.unvalidated
            figures = {} if stood else member.validate()
        except NonFiniteError:
            self._fail()
            return {}
        if not figures:
            return {}
        self.losses[self.current] = figures["loss"]
        if figures["loss"] < self.progress.best:
            self.progress.best, self.progress.best_step = figures["loss"], self._steps
            self.best = {"model": member.best, "values": member.values()}
        member.best = {}  # that of the population is kept alone
        return {**figures, "member": self.current}

    def _fail(self) -> None:
        self.failed.append(self.current)
        self.losses[self.current] = math.inf

    def exchange(self) -> None:
        """Have the worst members become copies of the best ones, at values near theirs.

        Raises:
            NonFiniteError: no member has a loss that is a finite number.
        """
        ranks = sorted(range(len(self.members)), key=self.losses.__getitem__)
        count = max(1, round(SHARE * len(ranks)))
        best = [number for number in ranks[:count] if number not in self.failed]
        if not best:
            raise NonFiniteError(f"each of the population's {len(ranks)} members has failed")
        worst = {*ranks[-count:], *self.failed} - set(best)
        draws = random.Random(f"{self.task.study.seed} {self._steps}")
        for number in sorted(worst):
            source = draws.choice(best)
            self.members[number].restore(self._explored(self.members[source], draws))
            self.losses[number] = self.losses[source]
        self.failed = []

    def _explored(self, source: PlainLearner, draws: random.Random) -> dict[str, Any]:
        """A copy of a member's state at other values; random numbers go on from where they are."""
        state = copy.deepcopy(source.state())  # optimizers take tensors as they are
        values = {name: explored(value, self.spaces[name], draws) for name, value in source.values().items()}
        return state | {"values": values, "random": random_states(next(source.model.parameters()).device)}

    def leading(self) -> dict[str, float]:
        """The values of the member with the lowest last loss."""
        return self.members[min(range(len(self.losses)), key=self.losses.__getitem__)].values()

    def values(self) -> dict[str, float]:
        """Those of the current member."""
        return self.members[self.current].values()

    def take_best(self) -> None:
        """Put the current member to the population's best state."""
        member = self.members[self.current]
        self.model = member.model
        if self.best:
            self.model.load_state_dict(self.best["model"])
            member.hypers.put(self.best["values"])

    def plain(self) -> nn.Module:
        """The current member's."""
        return self.members[self.current].model

    def state(self) -> dict[str, Any]:
        """All that the next step depends on."""
        return super().state() | {
            "members": [member.state() for member in self.members], "last": self.losses, "failed": self.failed,
            "steps": self._steps,
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state()` gave of a population as large."""
        super().restore(state)
        for member, saved in zip(self.members, state["members"], strict=True):
            member.restore(saved)
        self.losses, self.failed, self._steps = list(state["last"]), list(state["failed"]), state["steps"]


def explored(value: float, space: Space, draws: random.Random) -> float:
    """A value near another one, within its space."""
    step = max(1, round(STEP * abs(value))) if space.whole else STEP * abs(value)
    return min(max(value + draws.choice((-step, step)), space.low), space.high)
