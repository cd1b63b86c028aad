"""The runs of the translation study, by what sets them apart."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace

from benchmarks.jobs import COUNTERPART, RecurrentJob
from revtune.program.layers import Model
from revtune.program.recipes import multi30k
from revtune.program.translation.task import TranslationStudy

TOLD = ("batch", "hidden", "lr", "steps")


@dataclass(frozen=True, kw_only=True)
class Job(RecurrentJob):
    """A run of the study.

    Args:
        attend: what the decoder attends to; to all units with torch's layers.
        blocks: whether torch's layer has its loss in blocks; for memory and time, as it computes the same.
    """

    attend: str = "full"
    blocks: bool = False

    @property
    def name(self) -> str:
        """Its name in files and on the command line."""
        attends = self.attend.replace("+", "-").replace(":", "")
        return "-".join(filter(None, (self.model, attends, self.limit_name, "blocks" * self.blocks)))

    @property
    def counterpart(self) -> Job:
        """The run of torch's layer that it is compared with."""
        return Job(model=COUNTERPART.get(self.model, self.model))

    def study(self) -> TranslationStudy:
        """The recipe of all runs, with this one's model, attention and limit."""
        base = multi30k.recipe()
        net = replace(base.net, model=self.model, attend=self.attend, max_forget_bits=self.bits)
        return replace(base, net=replace(net, loss_in_blocks=self.blocks))

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


def timed() -> list[Job]:
    """Whose updates are timed in turns: the eight, and torch's layers with their loss in blocks."""
    own = jobs(every=False)
    return [*own[:2], *(replace(job, blocks=True) for job in own[:2]), *own[2:]]
