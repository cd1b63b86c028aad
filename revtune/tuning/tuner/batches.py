"""Batches of both levels, in an order that a resumed run repeats."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

NO_HELD_OUT = "the validation data hold no batch"
ONCE = ", or could be gone through only once, as a generator"

_END = object()  # no batch can be this, while one could be None


class BatchIterators:
    """The batches of both levels: training data one pass at a time, held-out data round and round."""

    def __init__(self) -> None:
        self._train, self._valid = ResumableIterator(), ResumableIterator()

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
        current.open(data)
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
                self._valid.open(data)
            if (batch := self._valid.next()) is not _END:
                return batch
        raise ValueError(f"{NO_HELD_OUT}{ONCE}")

    def state_dict(self) -> dict[str, Any]:
        """Where both levels stand."""
        return {"train": _saved(self._train), "valid": _saved(self._valid)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where both levels stood."""
        self._train, self._valid = (
            ResumableIterator(list(saved["began"]), saved["taken"], place=saved["place"], own=saved.get("own"))
            for saved in (state["train"], state["valid"])  # states of early versions lack "own"
        )


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
        own: the loader's own generator; after loading, the state in which it was saved.
    """

    began: list[Tensor] = field(default_factory=list)
    taken: int = 0
    batches: Iterator[Any] | None = None
    data: Any = None
    place: dict[str, Any] | None = None
    own: torch.Generator | Tensor | None = None

    def open(self, data: Iterable[Any]) -> None:
        """Begin a pass, or go on with a saved one, which leaves torch's generator as it is."""
        if hasattr(data, "load_state_dict"):
            self.data = data
            if self.place is not None:
                self.data.load_state_dict(self.place)
            self.place, self.batches = None, iter(data)
            return
        saved, self.own = self.own, _generator(data)
        if not self.began:
            if isinstance(saved, Tensor) and self.own is not None:
                self.own.set_state(saved)
            self.began = _states(data)
            self.batches = iter(data)
            return
        state = torch.get_rng_state()
        _set_states(data, self.began)
        self.batches = iter(data)
        for _ in range(self.taken):
            next(self.batches, None)
        torch.set_rng_state(state)  # the loader's own generator has come to where it stood by itself

    def next(self) -> Any:
        """The next batch, or `_END`, after which another pass can begin."""
        assert self.batches is not None
        batch = next(self.batches, _END)
        self.taken += 1
        if batch is _END:
            self.began, self.taken, self.batches = [], 0, None
        return batch


def _length(data: Iterable[Any]) -> int | None:
    """How many batches there are, if the data know: a loader of an iterable dataset has a length that raises."""
    try:
        return len(data) if isinstance(data, Sized) else None
    except (TypeError, NotImplementedError):
        return None


def _saved(level: ResumableIterator) -> dict[str, Any]:
    place = level.place if level.data is None else level.data.state_dict()
    own = level.own.get_state() if isinstance(level.own, torch.Generator) else level.own
    return {"began": level.began, "taken": level.taken, "place": place, "own": own}


def _generator(data: Iterable[Any]) -> torch.Generator | None:
    generator = getattr(data, "generator", None)
    return generator if isinstance(generator, torch.Generator) else None


def _states(data: Iterable[Any]) -> list[Tensor]:
    own = _generator(data)
    return [torch.get_rng_state(), *([] if own is None else [own.get_state()])]


def _set_states(data: Iterable[Any], states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    own = _generator(data)
    if own is not None and len(states) > 1:
        own.set_state(states[1])
