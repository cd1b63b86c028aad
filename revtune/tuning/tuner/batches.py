"""Batches of both levels, in an order that a resumed run repeats."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from revtune.tuning.own_generators import generators_of, is_among, set_states, states_of

NO_HELD_OUT = "the validation data hold no batch"
ONCE = ", or could be gone through only once, as a generator"

_END = object()  # no batch can be this, while one could be None


class BatchIterators:
    """The batches of both levels: training data one pass at a time, held-out data round and round."""

    def __init__(self) -> None:
        self._train, self._valid = ResumableIterator(), ResumableIterator()
        self._resumed: list[torch.Generator] = []

    def check(self, train: Iterable[Any], valid: Iterable[Any]) -> None:
        """Refuse data whose length says that they are empty.

        Raises:
            ValueError: they are.
        """
        for data, sentence in ((train, "the training data hold no batch"), (valid, NO_HELD_OUT)):
            if _length(data) == 0:
                raise ValueError(sentence)

    def train_pass(self, data: Iterable[Any]) -> Iterator[Any]:
        """The training batches of one pass, or of the rest of a saved one.

        Raises:
            ValueError: there is none.
        """
        if self._train.batches is not None:  # the last pass was left before its end: begin anew
            self._train = ResumableIterator()
        current = self._train
        current.open(data, self._resumed)
        none_yet = current.taken == 0
        while (batch := current.next()) is not _END:
            yield batch
            if self._train is not current:
                raise RuntimeError("a state was loaded inside a pass over batches; leave the loop and begin another")
            none_yet = False
        if none_yet:
            raise ValueError(f"the training data hold no batch{ONCE}")

    def next_valid(self, data: Iterable[Any]) -> Any:
        """The next held-out batch, of endless passes.

        Raises:
            ValueError: there is none.
        """
        for _ in range(2):  # where a pass ends the next one begins; if that is empty, data are at an end
            if self._valid.batches is None:
                self._valid.open(data, self._resumed)
            if (batch := self._valid.next()) is not _END:
                return batch
        raise ValueError(f"{NO_HELD_OUT}{ONCE}")

    def state_dict(self) -> dict[str, Any]:
        """Where both levels stand."""
        return {"train": _saved(self._train), "valid": _saved(self._valid)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where both levels stood."""
        self._resumed = []
        self._train, self._valid = (
            ResumableIterator(
                list(saved["began"]), saved["taken"], place=saved["place"], states=_own_states(saved.get("own")),
                warm=saved.get("warm", False),
            )
            for saved in (state["train"], state["valid"])  # states of early versions lack "own" and "warm"
        )  # fmt: skip


@dataclass
class ResumableIterator:
    """One pass over some data after another, each of which can be saved and resumed.

    Data that can save where they stand, as a `TunedLoader`, are asked to. Others are begun again from the same states
    of the generators, from which loaders draw their order, and gone through up to the same batch.

    Attributes:
        began: states of the generators that the pass was begun with.
        taken: batches since then.
        batches: the iterator of a pass; None between passes.
        data: what is gone through, if it saves its own place (`state_dict`); else None.
        place: a place of such data that has been loaded, until the pass begins.
        own: the generators that the data draw from, but for torch's.
        states: those in which these generators were saved; set by loading, until a pass begins.
        loader: what is gone through, in a pass and after it.
        warm: whether the present pass was begun with workers that an earlier one had left; between passes, whether the
            next one will be. Such a pass draws no seed for workers, one number less than others.
    """

    began: list[Tensor] = field(default_factory=list)
    taken: int = 0
    batches: Iterator[Any] | None = None
    data: Any = None
    place: dict[str, Any] | None = None
    own: list[torch.Generator] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)
    loader: Any = None
    warm: bool = False

    def open(self, data: Iterable[Any], resumed: list[torch.Generator]) -> None:
        """Begin a pass, or go on with a saved one, which leaves torch's generator as it is.

        Args:
            data: what to go through.
            resumed: the generators that have been put back to where they were saved, as both levels may draw from the
                same; those of these data are added.
        """
        self.own = generators_of(data)
        if hasattr(data, "load_state_dict"):
            return self._open_saving(data, resumed)
        self.loader, now = data, self._saved_states(resumed)
        if self.began:
            return self._go_on(data, now)
        set_states(self.own, now)
        if self.warm:
            self._warm_up(data)
        self.began, self.warm = [torch.get_rng_state(), *states_of(self.own)], _is_warm(data)
        self.batches = iter(data)

    def _open_saving(self, data: Any, resumed: list[torch.Generator]) -> None:
        """Begin a pass over data that save their own place, or the rest of a saved one."""
        self.data, self.states = data, []
        if self.place is not None:
            before = [generator for generator in self.own if is_among(generator, resumed)]
            states = states_of(before)
            data.load_state_dict(self.place)
            set_states(before, states)
            resumed.extend(generator for generator in self.own if not is_among(generator, before))
        self.place, self.batches = None, iter(data)

    def _go_on(self, data: Iterable[Any], now: list[Tensor]) -> None:
        """Go on with a saved pass, which is begun again and gone through; generators are left at `now`."""
        state = torch.get_rng_state()
        if self.warm:
            self._warm_up(data)
        torch.set_rng_state(self.began[0])
        set_states(self.own, self.began[1:])
        if not self.warm and _is_warm(data):
            torch.empty((), dtype=torch.int64).random_(generator=getattr(data, "generator", None))  # the workers' seed
        self.batches = iter(data)
        for _ in range(self.taken):
            next(self.batches, None)
        torch.set_rng_state(state)
        set_states(self.own, now)

    def _warm_up(self, data: Iterable[Any]) -> None:
        """Let a fresh loader begin workers that stay, whose seed the saved pass did not draw; no generator changes."""
        if _is_warm(data):
            return
        state, own = torch.get_rng_state(), states_of(self.own)
        iter(data)
        torch.set_rng_state(state)
        set_states(self.own, own)

    def _saved_states(self, resumed: list[torch.Generator]) -> list[Tensor]:
        """Where the own generators were when they were saved; of those that have been put back, where they are now."""
        now = states_of(self.own)
        for number, (generator, saved) in enumerate(zip(self.own, self.states, strict=False)):
            if not is_among(generator, resumed):
                now[number] = saved
                resumed.append(generator)
        self.states = []
        return now

    def next(self) -> Any:
        """The next batch, or `_END`, after which another pass can begin."""
        assert self.batches is not None
        batch = next(self.batches, _END)
        self.taken += 1
        if batch is _END:
            self.began, self.taken, self.batches, self.warm = [], 0, None, _is_warm(self.loader)
        return batch


def _length(data: Iterable[Any]) -> int | None:
    """How many batches there are, if the data know: a loader of an iterable dataset has a length that raises."""
    try:
        return len(data) if isinstance(data, Sized) else None
    except (TypeError, NotImplementedError):
        return None


def _saved(level: ResumableIterator) -> dict[str, Any]:
    place = level.place if level.data is None else level.data.state_dict()
    own = level.states or states_of(level.own)
    return {"began": level.began, "taken": level.taken, "place": place, "own": own, "warm": level.warm}


def _own_states(saved: Any) -> list[Tensor]:
    """The states of a level's own generators; early versions saved one of them, or None."""
    return list(saved) if isinstance(saved, list) else [] if saved is None else [saved]


def _is_warm(data: Any) -> bool:
    """Whether a loader has workers that stay from pass to pass."""
    return getattr(data, "_iterator", None) is not None
