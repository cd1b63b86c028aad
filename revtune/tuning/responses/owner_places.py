"""Whose a result is whose entries are chosen from places of a tensor, or written into them."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from revtune.tuning.responses.owners import NOBODY, SEVERAL, Owners, compressed, join, moved, over

if TYPE_CHECKING:
    from revtune.tuning.responses.following import Following

WRITTEN_IN_PLACE = (
    "scatter_", "scatter_add_", "scatter_reduce_", "index_add_", "index_copy_", "index_put_", "masked_scatter_",
)  # fmt: skip
"""Operations that write into places of a tensor; without the last letter they make another of it."""


def chosen(follow: Following, func: Any, given: dict[str, Any], out: Tensor) -> Owners | None:
    """Entries of a tensor: whose they are there; if they are nobody's there, theirs who chose them."""
    made, source = moved(follow, func, given, out), follow.owners(given["self"])
    if source is None or not source.constant:
        return made
    index = given["indices"] if "indices" in given else given["index"]
    if isinstance(index, Tensor):
        owners = follow.owners(index)
        if owners is None or index.dim() == out.dim():
            return owners
        dim = given["dim"] % out.dim()
        return Owners(owners.of.reshape([-1 if d == dim else 1 for d in range(out.dim())]), owners.fixed)
    dims = [dim for dim, part in enumerate(index) if part is not None]
    found = [follow.owners(index[dim]) for dim in dims]
    if any(owners is None or index[d].dtype == torch.bool for owners, d in zip(found, dims, strict=True)):
        return None
    known = [owners for owners in found if owners is not None]
    wide = max(index[dim].dim() for dim in dims)
    of = known[0].of
    for owners in known[1:]:
        of = join(*torch.broadcast_tensors(of, owners.of))
    before = dims[0] if dims == list(range(dims[0], dims[-1] + 1)) else 0
    shape = [1] * before + [1] * (wide - of.dim()) + list(of.shape)
    return Owners(of.reshape(shape + [1] * (out.dim() - len(shape))), all(owners.fixed for owners in known))


def scattered(follow: Following, func: Any, given: dict[str, Any], out: Tensor) -> Owners | None:
    """Numbers written into, or added to, a tensor at places along a dimension."""
    whole, index, dim = given["self"], given["index"], given["dim"] % out.dim()
    source = given.get("src", given.get("source"))
    target, places = follow.owners(whole), follow.owners(index)
    fixed_places = places is not None and places.constant
    written = Owners(torch.full([1] * out.dim(), NOBODY)) if not isinstance(source, Tensor) else follow.owners(source)
    if target is None or written is None:
        return None
    if index.dim() < out.dim():  # index_add and index_copy: a vector for all rows
        assert source is not None
        index, places = index.reshape([-1 if d == dim else 1 for d in range(out.dim())]).expand(source.shape), None
    along = over(written, [dim]).of if places is None else join(over(written, [dim]).of, over(places, [dim]).of)
    others = all(n == m for d, (n, m) in enumerate(zip(index.shape, out.shape, strict=True)) if d != dim)
    if places is not None and others and bool((along >= 0).all()):
        # which entries are written depends on the numbers of one example, and so do those that are not
        of = join(over(target, [dim]).of, along)
        return Owners(of, target.fixed and written.fixed and places.fixed)
    full = target.of.expand(out.shape)
    part = (written.of if places is None else join(written.of, places.of)).expand(index.shape)
    made = _collected(full, dim, index.cpu(), part, keep="add" in func.name() or given.get("include_self", False))
    return compressed(made, target.fixed and written.fixed and fixed_places)


def _collected(whole: Tensor, dim: int, index: Tensor, part: Tensor, keep: bool) -> Tensor:
    """Whose entries are to which several may have been brought; with `keep` also what was there before."""
    large = torch.iinfo(torch.int64).max
    lows = [torch.where(x == NOBODY, large, x.long()) for x in (whole, part)]
    low = lows[0].scatter_reduce(dim, index, lows[1], "amin", include_self=keep)
    high = whole.long().scatter_reduce(dim, index, part.long(), "amax", include_self=keep)
    return torch.where((low == high) | (low == large), high, SEVERAL).to(torch.int32)


def put(follow: Following, func: Any, given: dict[str, Any], out: Tensor) -> Owners | None:
    """Numbers written into a tensor where the operation itself says: it is run on the owners."""
    name = next(key for key in ("values", "source", "src") if key in given)
    target, written = follow.owners(given["self"]), follow.owners(given[name])
    if target is None or written is None or given.get("accumulate"):
        return None
    fixed, parts = target.fixed and written.fixed, dict(given)
    for key, value in given.items():
        for index in value if isinstance(value, tuple | list) else [value]:
            if isinstance(index, Tensor) and key not in ("self", name):
                owners = follow.owners(index)
                fixed = fixed and owners is not None and owners.constant
    for key, value in parts.items():
        if isinstance(value, tuple | list):
            parts[key] = [index.cpu() if isinstance(index, Tensor) else index for index in value]
        elif isinstance(value, Tensor):
            parts[key] = value.cpu()
    parts["self"] = target.of.expand(out.shape).clone()
    parts[name] = written.of.expand(given[name].shape).to(target.of.dtype)
    made: Tensor = getattr(torch.ops.aten, func.name().removeprefix("aten::").partition(".")[0].rstrip("_"))(**parts)
    return compressed(made, fixed)


def bags(follow: Following, func: Any, given: dict[str, Any], out: Any) -> Any:
    """Sums of the rows at numbers, from each offset to the next; of nobody's numbers, theirs whose offset it is."""
    owners, offsets = follow.owners(given["indices"]), follow.owners(given["offsets"])
    if owners is None or owners.constant:
        known = offsets is not None and offsets.of.numel() in (1, len(out[0]))
        return [Owners(offsets.of.reshape(-1, 1), offsets.fixed), None, None, None] if known and offsets else None
    if len(given["offsets"]) != len(out[0]):
        return None
    ends = [*given["offsets"].tolist(), len(given["indices"])]
    full = owners.of.expand(len(given["indices"]))
    none = torch.tensor([NOBODY], dtype=torch.int32)
    each = [over(Owners(torch.cat([full[a:b], none])), [0]).of for a, b in itertools.pairwise(ends)]
    fixed = owners.fixed and offsets is not None and offsets.constant
    return [compressed(torch.cat(each)[:, None], fixed), None, None, None]
