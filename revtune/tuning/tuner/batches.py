"""Batches of both levels, in an order that a resumed run repeats."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class Stream:
    """How far one pass over some data has come.

    Attributes:
        began: states of the generators that the pass was begun with, from which loaders draw their order.
        taken: batches since then.
        data: what is gone through, if it keeps its own place (`state_dict`), as a `TunedLoader` does.
        place: one that it was saved at.
        own: the loader's own generator, and after loading the state that it was saved in.
    """

    began: list[Tensor] = field(default_factory=list)
    taken: int = 0
    batches: Iterator[Any] | None = None
    data: Any = None
    place: dict[str, Any] | None = None
    own: torch.Generator | Tensor | None = None

    def open(self, data: Iterable[Any]) -> None:
        """Begin a pass, or one that was saved again up to where it stood; generators stay as they are then."""
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
        now = torch.get_rng_state()
        _set_states(data, self.began)
        self.batches = iter(data)
        for _ in range(self.taken):
            next(self.batches, None)
        torch.set_rng_state(now)  # the loader's own generator has come where it stood

    def next(self) -> Any:
        """The next batch, or `_END`."""
        assert self.batches is not None
        batch = next(self.batches, _END)
        self.taken += 1
        if batch is _END:
            self.began, self.taken, self.batches = [], 0, None
        return batch


_END = object()


NO_HELD_OUT = "the validation data hold no batch"


ONCE = ", or could be gone through only once, as a generator"


class Streams:
    """One pass over training data after another, and held-out data round and round."""

    def __init__(self) -> None:
        self._train, self._valid = Stream(), Stream()

    def check(self, train: Iterable[Any], valid: Iterable[Any]) -> None:
        """Refuse data that tell beforehand that they are empty.

        Raises:
            ValueError: they do.
        """
        for data, sentence in ((train, "the training data hold no batch"), (valid, NO_HELD_OUT)):
            if _length(data) == 0:
                raise ValueError(sentence)

    def once(self, data: Iterable[Any]) -> Iterator[Any]:
        """The batches of a pass, from where a saved one stood on.

        Raises:
            ValueError: there is none.
        """
        if self._train.batches is not None:  # the last pass was left before its end
            self._train = Stream()
        stream = self._train
        stream.open(data)
        begins = stream.taken == 0
        while (batch := stream.next()) is not _END:
            yield batch
            if self._train is not stream:
                raise RuntimeError("a state was loaded inside a pass over batches; leave the loop and begin another")
            begins = False
        if begins:
            raise ValueError(f"the training data hold no batch{ONCE}")

    def again(self, data: Iterable[Any]) -> Any:
        """The next batch of endless passes.

        Raises:
            ValueError: there is none.
        """
        for _ in range(2):
            if self._valid.batches is None:
                self._valid.open(data)
            if (batch := self._valid.next()) is not _END:
                return batch
        raise ValueError(f"{NO_HELD_OUT}{ONCE}")

    def state_dict(self) -> dict[str, Any]:
        """Where both stand."""
        return {"train": _saved(self._train), "valid": _saved(self._valid)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Stand there."""
        saved = (state["train"], state["valid"])
        self._train, self._valid = (
            Stream(list(s["began"]), s["taken"], place=s["place"], own=s.get("own")) for s in saved
        )


def _length(data: Iterable[Any]) -> int | None:
    """How many batches there are, if the data can tell: a loader of an iterable dataset has a length that it cannot."""
    try:
        return len(data) if isinstance(data, Sized) else None
    except (TypeError, NotImplementedError):
        return None


def _saved(stream: Stream) -> dict[str, Any]:
    place = stream.place if stream.data is None else stream.data.state_dict()
    own = stream.own.get_state() if isinstance(stream.own, torch.Generator) else stream.own
    return {"began": stream.began, "taken": stream.taken, "place": place, "own": own}


def _generator(data: Iterable[Any]) -> torch.Generator | None:
    found = getattr(data, "generator", None)
    return found if isinstance(found, torch.Generator) else None


def _states(data: Iterable[Any]) -> list[Tensor]:
    own = _generator(data)
    return [torch.get_rng_state(), *([] if own is None else [own.get_state()])]


def _set_states(data: Iterable[Any], states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    own = _generator(data)
    if own is not None and len(states) > 1:
        own.set_state(states[1])
