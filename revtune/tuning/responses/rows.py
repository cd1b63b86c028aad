"""Whose the rows of a layer's input are: the batch, as the user says, or as they were followed from the batch.

A row is what has one scalar a unit. Where dimension `batch_dim` of an input has B entries and nothing else is known,
they are the examples. Else whose they are is what `following` found in a pass, which a `RowsMemory` keeps for later
passes of the same shapes, or what `self_tuning(rows=)` says::

    "together"      the rows of an example stand together      0 0 0 1 1 1
    "alternating"   a row of every example, again and again    0 1 0 1 0 1
    "all"           each row is of all examples, as positions are: the layer does not respond
    [0, 0, 1, ...]  the example of each row
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn

from revtune.sequences import Along, Nobody, Rows, streamed
from revtune.tuning.responses.following import Following
from revtune.tuning.responses.owners import NOBODY, SEVERAL, Owners

if TYPE_CHECKING:
    from revtune.tuning.responses.probing import Probe

WAYS = ("together", "alternating", "all")
Told = str | list[int] | None


class Lost(BaseException):
    """A layer meets rows that were never followed: the pass is run again, followed. No `except Exception` stops it."""


@dataclass(frozen=True)
class Laid:
    """How examples lie in an input.

    Attributes:
        axis: the dimension of examples, where there is one.
        way: how they repeat along it: "batch" (once, in order), "together", "alternating", "all", or "index".
        index: the example of each row, by all dimensions of rows; for "index" alone.
    """

    axis: int = 0
    way: str = "batch"
    index: Tensor | None = None

    def spread(self, scalars: Tensor, shape: Sequence[int], unit_dim: int) -> Tensor:
        """Scalars (B, U) to broadcast over an output of a shape."""
        unit_dim %= len(shape)
        if self.index is not None:
            rows = self.index.shape
            laid = scalars.index_select(0, self.index.to(scalars.device).reshape(-1)).reshape(*rows, -1)
            return laid if unit_dim == len(shape) - 1 else laid.reshape(*laid.shape, *[1] * (len(shape) - laid.dim()))
        times = 1 if len(scalars) == 1 else shape[self.axis] // len(scalars)
        if self.way == "together" and times > 1:
            scalars = scalars.repeat_interleave(times, 0)
        elif self.way == "alternating" and times > 1:
            scalars = scalars.repeat(times, 1)
        sizes = [1] * len(shape)
        sizes[self.axis], sizes[unit_dim] = scalars.shape[0], scalars.shape[1]
        return scalars if list(scalars.shape) == sizes else scalars.reshape(sizes)

    def each(self, scalars: Tensor, count: int) -> Tensor:
        """Scalars (B, k) of so many rows along the dimension of examples, (count, k)."""
        if self.index is not None:
            return scalars.index_select(0, self.index.to(scalars.device).reshape(-1))
        return self.spread(scalars, [1] * self.axis + [count, 1], -1).reshape(-1, scalars.shape[1]).expand(count, -1)


class RowsMemory:
    """How the rows of each layer's input lie, by its shape and B; of one network.

    Attributes:
        following: what follows the pass that runs; None in one that goes by what is remembered.
        begun: whether a pass has been followed.
        changing: whether some rows depend on the data, so that every pass is followed.
        arranged: whether some rows are not simply the batch.
        replaying: whether it is the second pass of a linearisation, which says itself when it comes to other layers.
        probe: measures whose loss the rows of outputs move, in one pass of a tuner's first step; None in others.
        believed: layers whose rows are as their user says, which could not be followed.
        assumed: layers whose rows are the batch by their number alone.
    """

    def __init__(self) -> None:
        self.following: Following | None = None
        self.probe: Probe | None = None
        self.believed, self.assumed = WeakSet[nn.Module](), WeakSet[nn.Module]()
        self.begun = self.changing = self.replaying = self.arranged = False
        self._shapes: Any = None
        self._known: WeakKeyDictionary[nn.Module, dict[Any, Laid]] = WeakKeyDictionary()
        self._met: dict[Any, Laid] = {}

    def begin(self, shapes: Any) -> None:
        """A pass begins, for a batch of these shapes."""
        self._shapes = shapes
        self._met.clear()

    def recall(self, owner: nn.Module, key: Any, axis: int, size: int) -> Laid:
        """What is known of a layer's input of this shape, in passes for batches of these shapes.

        Raises:
            Lost: nothing is.
        """
        laid = self._known.get(owner, {}).get((self._shapes, key))
        if laid is not None:
            return laid
        if self.replaying or (self._known and not self.arranged and key[0][axis] == size):
            return Laid(axis)  # in this network all rows are the batch
        raise Lost

    def knows(self, owner: nn.Module, x: Tensor, size: int) -> bool:
        """Whether it is known that rows of an input are examples' own."""
        if self.following is None:
            return (self._shapes, (tuple(x.shape), size)) in self._known.get(owner, {})
        owners = self.following.owners(x)
        return owners is not None and not owners.constant

    def keep(self, owner: Any, key: Any, laid: Laid, fixed: bool, name: str) -> Laid:
        """Remember it; rows that are not fixed have every pass followed.

        Raises:
            ValueError: in this pass the layer has met the same shape with other rows.
        """
        if not _same(self._met.setdefault((id(owner), key), laid), laid):
            raise ValueError(
                f"{name}: in one pass it is given two inputs {key[0]} whose rows are of different examples; call it "
                "once on both, or let two modules do it"
            )
        known = self._known.setdefault(owner, {})
        before = known.get((self._shapes, key))
        self.changing = self.changing or not fixed or (before is not None and not _same(before, laid))
        self.arranged = self.arranged or laid != Laid(laid.axis) or laid.axis != owner.batch_dim
        known[self._shapes, key] = laid
        return laid


def _same(one: Laid, other: Laid) -> bool:
    if one.index is None or other.index is None:
        return one == other
    return torch.equal(one.index, other.index)


def laid_in(
    owner: Any,
    x: Tensor,
    shape: Sequence[int],
    size: int,
    *,
    unit_dim: int,
    name: str,
    advice: str,
    memory: Any,
    axis: int | None = None,
) -> Laid:
    """How B examples lie in the input x of a layer whose output has a shape.

    Args:
        owner: the layer; `owner.rows` is what its user says.
        x: its input.
        shape: of its output.
        size: B.
        unit_dim: which dimension of the output is units.
        name: what messages call it.
        advice: what may help.
        memory: a `RowsMemory`; None outside of a tuner's steps.
        axis: the only dimension that can be examples; by default `owner.batch_dim`, or 0 where that is a unit's.

    Raises:
        ValueError: it cannot be told.
    """  # fmt: skip
    if torch._C._functorch.is_batchedtensor(x):
        raise ValueError(f"{name}: torch.func.vmap hides the examples' dimension; call it on the whole batch")
    unit = unit_dim % len(shape)
    only = axis is not None or unit != len(shape) - 1
    axis = axis if axis is not None else owner.batch_dim if owner.batch_dim < unit else 0
    if size == 1:
        return Laid(axis)
    if (handed := streamed.get()) is not None:
        return _streamed(handed, shape, size, unit, name)
    told: Told = owner.rows
    following = None if memory is None else memory.following
    key = tuple(x.shape), size
    if told is None and memory is not None and following is None:
        recalled: Laid = memory.recall(owner, key, axis, size)
        return recalled
    owners = None if following is None else following.owners(x)
    rows = len(shape) - 1 if not only else axis + 1
    found = _found(owners, rows, axis, size, only) if owners is not None else None
    if told is not None:
        laid = _told(told, shape[axis], size, axis, rows, name)
        _check_told(laid, found, [*shape[:rows], 1], size, name, told)
        if following is not None and found is None:
            memory.believed.add(owner)
        return laid
    if found is None:
        constant = owners is not None and owners.constant
        positions = getattr(owner, "positions", None)
        if (
            positions(x, size, axis, constant)
            if positions and (constant or owners is None)
            else (constant and (shape[axis] != size or _differ(x, axis)))
        ):
            found = Laid(axis, "all")
        elif shape[axis] == size and (owners is None or constant or _several(owners)):
            found = Laid(axis)
            if memory is not None:
                memory.assumed.add(owner)
        else:
            raise ValueError(_question(owners, x.shape, size, axis, name, advice))
    fixed = owners is None or owners.fixed or _several(owners)
    return found if memory is None else memory.keep(owner, key, found, fixed, name)


def _streamed(handed: Rows, shape: Sequence[int], size: int, unit_dim: int, name: str) -> Laid:
    """How examples, the rows of a stream's batch, lie in the output for a chunk."""
    if isinstance(handed, Nobody):
        return Laid(0, "all")
    if isinstance(handed, Along):
        of, axis = handed.of, handed.axis
        handed.asked.add(name)
        if axis >= unit_dim or shape[axis] != handed.count(size):
            function = "encode" if of is None else "readout"
            raise ValueError(_not_handed(name, function, f"rows must stay in dimension {axis}", size, shape))
        return Laid(axis) if of is None else Laid(axis, "index", _along(of, axis, unit_dim))
    index = handed.index()
    # a readout may leave positions out, and whose the others are is known by their number alone
    if handed.rows != size or shape[0] != (handed.steps * size if index is None else len(index)):
        raise ValueError(_not_handed(name, "readout", "all positions must stay in dimension 0", size, shape))
    return Laid(0, "alternating" if shape[0] > size else "batch") if index is None else Laid(0, "index", index)


def _not_handed(name: str, function: str, what: str, size: int, shape: Sequence[int]) -> str:
    return f"{name}: in a stream's {function} {what}, those of {size} rows, got an output {tuple(shape)}"


def _differ(x: Tensor, axis: int) -> bool:
    """Whether rows that no example has a part in are not all the same, as positions are and nothing of examples is."""
    return not torch.equal(x, x.narrow(axis, 0, 1).expand_as(x))


def _several(owners: Owners) -> bool:
    return bool((owners.of == SEVERAL).any())


def _elsewhere(owners: Owners, axis: int) -> bool:
    """Whether examples are known to lie in one other dimension."""
    return owners.of.shape[axis] == 1 and any(n > 1 for n in owners.of.shape) and not _several(owners)


def _found(owners: Owners, rows: int, axis: int, size: int, only: bool) -> Laid | None:
    """How examples lie by what was followed; None where it does not tell of every row."""
    of = owners.of
    if owners.constant:
        return None
    dims = [axis] if only else range(min(rows, of.dim()))
    vectors = {dim: of_dimension(of, dim) for dim in dims if of.shape[dim] > 1}
    told = {dim: v for dim, v in vectors.items() if bool((v >= 0).all())}
    if len(told) == 1:
        ((dim, vector),) = told.items()
        return _way(vector, dim, rows, size)
    if only or told:
        return None
    by_row = _vectors(of, rows)
    if bool((by_row >= 0).all()):
        return Laid(axis, "index", by_row.long())
    return None


def of_dimension(of: Tensor, dim: int) -> Tensor:
    """Whose each entry of a dimension is."""
    return _merged(of.movedim(dim, 0).flatten(1)) if of.dim() > 1 else of


def _vectors(of: Tensor, rows: int) -> Tensor:
    """Whose each row is, by all dimensions of rows."""
    return of if of.dim() == rows else _merged(of.flatten(rows))


def _merged(parts: Tensor) -> Tensor:
    """Whose something is of these parts, the last dimension."""
    high = parts.amax(-1)
    low = torch.where(parts == NOBODY, torch.iinfo(parts.dtype).max, parts).amin(-1)
    return torch.where((low == high) | (high == NOBODY) & (low > high), high, SEVERAL)


def _way(vector: Tensor, dim: int, rows: int, size: int) -> Laid:
    """How a dimension's examples repeat, by name where there is one."""
    count, times = len(vector), len(vector) // size
    each = torch.arange(size, dtype=vector.dtype)
    if count == size and torch.equal(vector, each):
        return Laid(dim)
    if count == times * size:
        if torch.equal(vector, each.repeat_interleave(times)):
            return Laid(dim, "together")
        if torch.equal(vector, each.repeat(times)):
            return Laid(dim, "alternating")
    return Laid(dim, "index", _along(vector, dim, rows))


def _along(vector: Tensor, dim: int, rows: int) -> Tensor:
    return vector.long().reshape([-1 if d == dim else 1 for d in range(rows)])


def _told(told: Any, count: int, size: int, axis: int, rows: int, name: str) -> Laid:
    """What the user says of so many rows.

    Raises:
        ValueError: it does not fit.
    """
    if told == "all":
        return Laid(axis, "all")
    if isinstance(told, str):
        if count % size:
            raise ValueError(f"{name}: rows says {told!r}, but {count} rows are no multiple of {size} examples")
        return Laid(axis, told if count > size else "batch")
    if len(told) != count or not all(0 <= example < size for example in told):
        expected = f"an example from 0 to {size - 1} for each of {count} rows"
        raise ValueError(f"{name}: rows must hold {expected}, got {len(told)} from {min(told)} to {max(told)}")
    return Laid(axis, "index", _along(torch.tensor(told), axis, rows))


def _check_told(laid: Laid, found: Laid | None, shape: Sequence[int], size: int, name: str, told: Any) -> None:
    """Refuse what the user says where it is known to be otherwise."""
    if found is None or laid.way == "all":
        return
    scalars = torch.arange(size)[:, None]
    one, other = (x.spread(scalars, shape, -1) for x in (laid, found))
    if not torch.equal(*torch.broadcast_tensors(one, other)):
        raise ValueError(f"{name}: rows says {told!r:.60}, but its rows {describe(found)}")


def describe(laid: Laid) -> str:
    """How examples lie, in words."""
    ways = {
        "batch": "are the batch", "together": "of an example stand together",
        "alternating": "of the examples alternate", "all": "are the same for all examples",
    }  # fmt: skip
    return f"{ways.get(laid.way, 'are in another order')} along dimension {laid.axis}"


def _question(owners: Owners | None, shape: Sequence[int], size: int, axis: int, name: str, advice: str) -> str:
    where = f"{name}: dimension {axis} of its input {tuple(shape)} must be the batch of {size} examples"
    if owners is not None and _elsewhere(owners, axis):
        dims = [dim for dim, n in enumerate(owners.of.shape) if n > 1]
        return f"{where}, but examples lie in dimension {dims[0]}; {advice.format(name=name)}"
    why = "some of them hold more than one example, or none" if owners is not None else "whose they are is not known"
    return f"{where}, or rows that can be told, but {why}; {advice.format(name=name)}"
