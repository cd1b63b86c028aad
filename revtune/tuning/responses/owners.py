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


BY_NUMBERS = frozenset(
    ("select", "slice", "unbind", "split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes",
     "unsafe_chunk", "roll", "diagonal", "constant_pad_nd")
)  # fmt: skip
"""Operations that move entries by numbers of Python's, which may come from any batch's data."""

BY_TENSORS = frozenset(("index", "index_select", "gather", "take"))
"""Operations that take entries by numbers in a tensor, which may be made of such numbers."""


@dataclass(frozen=True, eq=False)
class Owners:
    """Whose entries a tensor holds.

    Attributes:
        of: integers, of as many dimensions as the tensor, each of its size or 1.
        fixed: whether they are the same for every batch of these shapes.
        fixed_sequences: of packed rows, whether it is the same whose each sequence is.
        sorted: whether they are of sequences that torch has sorted by length, and will put back.
        lasting: whether the tensor is the model's own, so that its numbers are the same for every batch.
    """

    of: Tensor
    fixed: bool = True
    fixed_sequences: bool = True
    sorted: bool = False
    lasting: bool = False

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
    main, operation = first_of(given), func.name().removeprefix("aten::").partition(".")[0]
    source = follow.owners(main) if isinstance(main, Tensor) else None
    takes = source is not None and _takes_examples(operation, given, source)
    fixed, parts = True, dict[str, Any]()
    for key, value in given.items():
        if value is main:
            many = [value] if isinstance(value, Tensor) else list(value)
            found = [follow.owners(x) for x in many]
            if any(owners is None for owners in found):
                return None
            fixed = fixed and all(owners.fixed for owners in found if owners is not None)
            full = [o.of.expand(x.shape) for o, x in zip(found, many, strict=True) if o is not None]
            parts[key] = full[0] if isinstance(value, Tensor) else full
        elif key in ("dtype", "layout", "device", "pin_memory", "memory_format", "sparse_grad"):
            continue
        else:
            indices = value if isinstance(value, tuple | list) else [value]
            tensors = [index for index in indices if isinstance(index, Tensor)]
            fixed = fixed and all(_lasts(follow.owners(index), takes) for index in tensors)
            places = [index.cpu() if isinstance(index, Tensor) else index for index in indices]
            parts[key] = places if isinstance(value, tuple | list) else places[0]
    result = _run_on_owners(func, parts, out)
    if result is None:
        return None
    made = [compressed(x, fixed) for x in ([result] if isinstance(result, Tensor) else result)]
    if source is not None and takes and operation in BY_NUMBERS:
        # another number than one that leaves all as it is gives another shape, but where it rolls
        still = operation != "roll"
        made = [Owners(part.of, fixed and still and torch.equal(part.of, source.of)) for part in made]
    if not isinstance(result, Tensor):
        return made
    back = operation == "index_select" and source is not None and source.sorted and _in_order(made[0].of)
    return Owners(made[0].of, made[0].fixed or back)


def _run_on_owners(func: Any, parts: dict[str, Any], out: Any) -> Any:
    """The result of a shape operation on owners; None where it has none."""
    name = func.name()
    if name.startswith("aten::constant_pad_nd"):
        parts["value"] = NOBODY
    elif name in ("aten::as_strided", "aten::view.dtype", "aten::view_as_complex"):
        return None
    if name in ("aten::view", "aten::_unsafe_view", "aten::_reshape_alias"):
        return parts["self"].reshape(parts["size"])
    if name == "aten::view_as_real":
        return parts["self"].unsqueeze(-1).expand(out.shape)
    return func(**parts)


def _takes_examples(operation: str, given: dict[str, Any], source: Owners) -> bool:
    """Whether an operation moves entries along a dimension that has those of several examples."""
    every = range(source.of.dim())
    if operation not in BY_NUMBERS | BY_TENSORS:
        return False
    dims: Iterable[int] = [given.get("dim", 0)]
    if operation == "index":
        dims = [dim for dim, index in enumerate(given["indices"]) if index is not None]
    elif operation == "roll":
        dims = given.get("dims") or every
    elif operation == "diagonal":
        dims = [given.get("dim1", 0), given.get("dim2", 1)]
    elif operation == "constant_pad_nd":
        dims = [-1 - place // 2 for place, number in enumerate(given["pad"]) if number]
    elif operation == "take":
        dims = every
    return any(source.of.shape[dim] > 1 for dim in dims)


def _lasts(index: Owners | None, takes: bool) -> bool:
    """Whether what a tensor chooses is the same for every batch; of examples, only if it is one of the model's own."""
    return index is not None and index.constant and index.fixed and (index.lasting or not takes)


def _in_order(of: Tensor) -> bool:
    return torch.equal(of.reshape(-1), torch.arange(of.numel(), dtype=of.dtype))
