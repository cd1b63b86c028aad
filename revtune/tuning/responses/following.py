"""Which example each entry of a tensor is of, followed through the operations of a forward pass.

The tensors of a batch have their examples in one dimension. While `Following` is entered, each operation gives its
result *owners*: one integer an entry, with size 1 along dimensions in which it is the same::

    0 ... B - 1   an example         NOBODY    made without any example: constants, parameters, positions
                                     SEVERAL   made of more than one

A shape operation is run on the owners themselves, so that it is exact by construction. Of an operation that is neither
known here nor elementwise, the result has no owners: nothing is said about it.

Owners depend on the data where entries are chosen by numbers of the batch, a mask, say; they are then not `fixed`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from revtune.tuning.responses.owner_places import WRITTEN_IN_PLACE
from revtune.tuning.responses.owner_rules import RULES, rule_of
from revtune.tuning.responses.owners import (
    DRAWN_IN_PLACE,
    FILLED_IN_PLACE,
    NOBODY,
    Owners,
    compressed,
    joined,
    padded,
)


class Following(TorchDispatchMode):
    """Follows whose entries tensors hold, for as long as it is entered.

    Attributes:
        paused: whether operations are run without being followed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.paused = False
        self._known: dict[int, tuple[StorageWeakRef, dict[Any, Owners]]] = {}

    def mark(self, x: Tensor, dim: int, owners: Tensor | None = None) -> None:
        """Say that the entries of a dimension are examples 0 to B - 1, or these."""
        owners = torch.arange(x.shape[dim], dtype=torch.int32) if owners is None else owners
        self.set(x, Owners(owners.reshape([-1 if d == dim % x.dim() else 1 for d in range(x.dim())])))

    def constant(self, x: Tensor) -> None:
        """Say that no example has a part in a tensor of the model's own."""
        self.set(x, Owners(torch.full([1] * x.dim(), NOBODY, dtype=torch.int32), lasting=True))

    def set(self, x: Tensor, owners: Owners | None) -> None:
        """Say whose entries a tensor holds; None for nothing to be said."""
        if owners is None:
            return
        storage = x.untyped_storage()
        reference, views = self._known.get(storage._cdata, (None, {}))
        if reference is None or reference.expired():
            reference, views = StorageWeakRef(storage), {}
            self._known[storage._cdata] = reference, views
        views[_place(x)] = owners

    def owners(self, x: Tensor) -> Owners | None:
        """Whose entries a tensor holds; None where that is not known."""
        if type(x) is not Tensor and not isinstance(x, torch.nn.Parameter):
            return None
        reference, views = self._known.get(x.untyped_storage()._cdata, (None, {}))
        return None if reference is None or reference.expired() else views.get(_place(x))

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Operations are not followed until the block ends."""
        before, self.paused = self.paused, True
        try:
            yield
        finally:
            self.paused = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What the operation gives, and its owners."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if not self.paused:
            self._follow(func, args, kwargs, out)
        return out

    def _follow(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
        name = func.name().removeprefix("aten::").partition(".")[0]
        given = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
        written = [a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
        if written:
            target = given[written[0]]
            if isinstance(target, Tensor):
                self._write(func, name, target, given)
            return
        rule = rule_of(func, name)
        if rule is None:
            return
        with torch.utils._python_dispatch._disable_current_modes():
            try:
                made = rule(self, func, given, out)
            except (RuntimeError, TypeError, ValueError, IndexError, KeyError, NotImplementedError):
                return  # an overload that the rule does not know: nothing is said about what it gives
        outs = out if isinstance(out, tuple | list) else [out]
        for result, owners in zip(outs, made if isinstance(made, list) else [made] * len(outs), strict=False):
            if isinstance(result, Tensor) and owners is not None and owners.of.dim() == result.dim():
                self.set(result, owners)

    def _write(self, func: Any, name: str, target: Tensor, given: dict[str, Any]) -> None:
        """What is written in place: into a view, also into the whole that it is a view of."""
        pointwise = torch.Tag.pointwise in func.tags
        known = self._known.get(target.untyped_storage()._cdata)
        if name in FILLED_IN_PLACE:
            return
        if name in DRAWN_IN_PLACE:
            before = self.owners(target)
            if known is not None and before is not None and before.constant:
                known[1].clear()
            return
        rule = RULES.get(name[:-1]) if name in WRITTEN_IN_PLACE else None
        if known is None and not pointwise and name != "copy_":
            return
        with torch.utils._python_dispatch._disable_current_modes():
            if name == "copy_":
                source = self.owners(given["src"])
                owners = None if source is None else padded(source, target.dim())
            else:
                owners = joined(self, given, target) if pointwise else rule and rule(self, func, given, target)
            views = {} if known is None or known[0].expired() else dict(known[1])
            before = views.get(_place(target))
            if (
                owners is not None
                and before is not None
                and torch.equal(before.of, owners.of)
                and owners.fixed >= before.fixed
            ):
                return
            if known is not None:
                known[1].clear()
            if owners is None:
                return
            for place, earlier in views.items():
                if place != _place(target) and (whole := _written_through(place, earlier, target, owners)) is not None:
                    self._known[target.untyped_storage()._cdata][1][place] = whole
            self.set(target, owners)


def _place(x: Tensor) -> tuple[Any, ...]:
    return x.storage_offset(), tuple(x.shape), x.stride()


def _written_through(place: tuple[Any, ...], before: Owners, target: Tensor, owners: Owners) -> Owners | None:
    """The owners of a contiguous whole, once a view of it has been written."""
    offset, shape, strides = place
    expected = [prod(shape[d + 1 :]) for d in range(len(shape))]
    last = target.storage_offset() + sum((n - 1) * s for n, s in zip(target.shape, target.stride(), strict=True))
    inside = target.storage_offset() >= offset and last < offset + prod(shape)
    if list(strides) != expected or not inside or prod(shape) == 0:
        return None
    full = before.of.expand(shape).contiguous().clone()
    full.as_strided(target.shape, target.stride(), target.storage_offset() - offset).copy_(owners.of)
    return compressed(full, before.fixed and owners.fixed)
