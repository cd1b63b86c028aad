"""Whose the entries of a tensor are (`following`)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from revtune.tuning.responses.following import Following

NOBODY, SEVERAL = -1, -2

DRAWN_IN_PLACE = ("bernoulli_", "uniform_", "normal_", "exponential_")
"""Operations that draw numbers into a tensor: whose it was by its shape it stays, but nobody's is then not known."""

FILLED_IN_PLACE = ("fill_", "zero_")
"""Operations that fill a tensor, and leave it whose it was by its shape."""


PICKED = (
    "aten::select", "aten::slice", "aten::unbind", "aten::split", "aten::split_with_sizes", "aten::unsafe_split",
    "aten::unsafe_split_with_sizes", "aten::unsafe_chunk", "aten::roll",
)  # fmt: skip
"""Operations that take entries along a dimension by numbers of Python's, which may come from any batch's data."""


@dataclass(frozen=True, eq=False)
class Owners:
    """Whose entries a tensor holds.

    Attributes:
        of: integers, of as many dimensions as the tensor, each of its size or 1.
        fixed: whether they are the same for every batch of these shapes.
        fixed_sequences: of packed rows, whether it is the same whose each sequence is.
        sorted: whether they are of sequences that torch has sorted by length, and will put back.
    """

    of: Tensor
    fixed: bool = True
    fixed_sequences: bool = True
    sorted: bool = False

    @property
    def constant(self) -> bool:
        """Whether no example has a part in the tensor."""
        return self.of.numel() == 1 and int(self.of) == NOBODY


def compressed(full: Tensor, fixed: bool) -> Owners:
    """The owners of each entry, with size 1 where they are the same along a dimension."""
    for dim in range(full.dim()):
        if full.shape[dim] > 1:
            first = full.narrow(dim, 0, 1)
            if full.stride(dim) == 0 or torch.equal(full, first.expand_as(full)):
                full = first
    return Owners(full.clone(), fixed)


def padded(owners: Owners, dims: int) -> Owners:
    """The same with dimensions of size 1 in front, as broadcasting adds them."""
    return Owners(owners.of.reshape([1] * (dims - owners.of.dim()) + list(owners.of.shape)), owners.fixed)


def join(one: Tensor, other: Tensor) -> Tensor:
    """Whose a number is that is made of two."""
    both = torch.where(one == other, one, SEVERAL)
    return torch.where(one == NOBODY, other, torch.where(other == NOBODY, one, both)).to(torch.int32)


def over(owners: Owners, dims: Iterable[int]) -> Owners:
    """Whose sums over dimensions are, with size 1 in each."""
    of = owners.of
    for dim in dims:
        if of.dim() and of.shape[dim] > 1:
            low = torch.where(of == NOBODY, torch.iinfo(torch.int32).max, of).amin(dim, keepdim=True)
            high = of.amax(dim, keepdim=True)
            of = torch.where((low == high) | (high == NOBODY) & (low > high), high, SEVERAL)
            of = torch.where(low == SEVERAL, SEVERAL, of).to(torch.int32)
    return Owners(of, owners.fixed)


def tensors_of(given: dict[str, Any]) -> list[Tensor]:
    """The tensors among an operation's arguments."""
    return [value for value in given.values() if isinstance(value, Tensor)]


def first_of(given: dict[str, Any]) -> Any:
    """An operation's first argument."""
    return next(iter(given.values()))


def joined(follow: Following, given: dict[str, Any], out: Tensor) -> Owners | None:
    """Whose an elementwise result is. Where one of the inputs is not known, the others tell, if they are someone's."""
    tensors = tensors_of(given)
    found = [follow.owners(x) for x in tensors]
    known = [padded(owners, out.dim()) for owners in found if owners is not None]
    if not known or (len(known) < len(tensors) and all(owners.constant for owners in known)):
        return None
    of, fixed = known[0].of, known[0].fixed
    for owners in known[1:]:
        of, fixed = join(of, owners.of), fixed and owners.fixed
    return Owners(of, fixed)


def moved(follow: Following, func: Any, given: dict[str, Any], out: Any) -> Any:
    """What the operation itself makes of the owners."""
    fixed, parts = True, dict[str, Any]()
    main = first_of(given)
    for name, value in given.items():
        if value is main:
            many = [value] if isinstance(value, Tensor) else list(value)
            found = [follow.owners(x) for x in many]
            if any(owners is None for owners in found):
                return None
            fixed = fixed and all(owners.fixed for owners in found if owners is not None)
            full = [o.of.expand(x.shape) for o, x in zip(found, many, strict=True) if o is not None]
            parts[name] = full[0] if isinstance(value, Tensor) else full
        elif name in ("dtype", "layout", "device", "pin_memory", "memory_format", "sparse_grad"):
            continue
        else:
            indices = value if isinstance(value, tuple | list) else [value]
            for index in indices:
                if isinstance(index, Tensor):
                    owners = follow.owners(index)
                    fixed = fixed and owners is not None and owners.constant and owners.fixed
            moved = [index.cpu() if isinstance(index, Tensor) else index for index in indices]
            parts[name] = moved if isinstance(value, tuple | list) else moved[0]
    name = func.name()
    if name.startswith("aten::constant_pad_nd"):
        parts["value"] = NOBODY
    elif name in ("aten::as_strided", "aten::view.dtype", "aten::view_as_complex"):
        return None
    if name in ("aten::view", "aten::_unsafe_view", "aten::_reshape_alias"):
        result = parts["self"].reshape(parts["size"])
    elif name == "aten::view_as_real":
        result = parts["self"].unsqueeze(-1).expand(out.shape)
    else:
        result = func(**parts)
    owners = follow.owners(main) if isinstance(main, Tensor) else None
    picked = owners is not None and name.partition(".")[0] in PICKED and _among_examples(owners, given)
    made = [compressed(x, fixed) for x in ([result] if isinstance(result, Tensor) else result)]
    if picked:
        assert owners is not None
        made = [Owners(part.of, fixed and _same_as(part, owners)) for part in made]
    if not isinstance(result, Tensor):
        return made
    back = name == "aten::index_select" and owners is not None and owners.sorted and _in_order(made[0].of)
    return Owners(made[0].of, made[0].fixed or back)


def _among_examples(owners: Owners, given: dict[str, Any]) -> bool:
    """Whether the dimension along which an operation takes entries has those of several examples."""
    return any(owners.of.shape[dim] > 1 for dim in given.get("dims") or [given.get("dim", 0)])


def _same_as(one: Owners, other: Owners) -> bool:
    return one.of.shape == other.of.shape and torch.equal(one.of, other.of)


def _in_order(of: Tensor) -> bool:
    return torch.equal(of.reshape(-1), torch.arange(of.numel(), dtype=of.dtype))
