"""Whose the entries of a tensor are, and how operations hand that on (`following`)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from revtune.tuning.responses.following import Following

NOBODY, SEVERAL = -1, -2

DRAWN_IN_PLACE = ("bernoulli_", "uniform_", "normal_", "exponential_", "fill_", "zero_")
"""Operations that fill a tensor, and leave it whose it was by its shape."""


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
    for dim in range(full.dim()):
        if full.shape[dim] > 1:
            first = full.narrow(dim, 0, 1)
            if full.stride(dim) == 0 or torch.equal(full, first.expand_as(full)):
                full = first
    return Owners(full.clone(), fixed)


def padded(owners: Owners, dims: int) -> Owners:
    """The same with dimensions of size 1 in front, as broadcasting adds them."""
    return Owners(owners.of.reshape([1] * (dims - owners.of.dim()) + list(owners.of.shape)), owners.fixed)


def _join(one: Tensor, other: Tensor) -> Tensor:
    """Whose a number is that is made of two."""
    both = torch.where(one == other, one, SEVERAL)
    return torch.where(one == NOBODY, other, torch.where(other == NOBODY, one, both)).to(torch.int32)


def _over(owners: Owners, dims: Iterable[int]) -> Owners:
    """Whose sums over dimensions are, with size 1 in each."""
    of = owners.of
    for dim in dims:
        if of.dim() and of.shape[dim] > 1:
            low = torch.where(of == NOBODY, torch.iinfo(torch.int32).max, of).amin(dim, keepdim=True)
            high = of.amax(dim, keepdim=True)
            of = torch.where((low == high) | (high == NOBODY) & (low > high), high, SEVERAL)
            of = torch.where(low == SEVERAL, SEVERAL, of).to(torch.int32)
    return Owners(of, owners.fixed)


def _tensors(given: dict[str, Any]) -> list[Tensor]:
    return [value for value in given.values() if isinstance(value, Tensor)]


def joined(follow: Following, given: dict[str, Any], out: Tensor) -> Owners | None:
    """Whose an elementwise result is. Where one of the inputs is not known, the others tell, if they are someone's."""
    tensors = _tensors(given)
    found = [follow.owners(x) for x in tensors]
    known = [padded(owners, out.dim()) for owners in found if owners is not None]
    if not known or (len(known) < len(tensors) and all(owners.constant for owners in known)):
        return None
    of, fixed = known[0].of, known[0].fixed
    for owners in known[1:]:
        of, fixed = _join(of, owners.of), fixed and owners.fixed
    return Owners(of, fixed)


def _pointwise(follow: Following, func: Any, given: dict[str, Any], out: Any) -> Owners | None:
    return joined(follow, given, out) if isinstance(out, Tensor) else None


def _first(given: dict[str, Any]) -> Any:
    return next(iter(given.values()))


def _same(follow: Following, func: Any, given: dict[str, Any], out: Any) -> Owners | None:
    """As the first input."""
    return follow.owners(_first(given))


def _nobody(follow: Following, func: Any, given: dict[str, Any], out: Tensor) -> Owners | None:
    return Owners(torch.full([1] * out.dim(), NOBODY, dtype=torch.int32))


def _moved(follow: Following, func: Any, given: dict[str, Any], out: Any) -> Any:
    """What the operation itself makes of the owners."""
    fixed, parts = True, dict[str, Any]()
    main = _first(given)
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
    elif name in ("aten::as_strided", "aten::view.dtype", "aten::view_as_real", "aten::view_as_complex"):
        return None
    if name in ("aten::view", "aten::_unsafe_view", "aten::_reshape_alias"):
        result = parts["self"].reshape(parts["size"])
    else:
        result = func(**parts)
    if isinstance(result, Tensor):
        owners = follow.owners(main) if isinstance(main, Tensor) else None
        back = name == "aten::index_select" and owners is not None and owners.sorted
        made = compressed(result, fixed)
        return Owners(made.of, fixed or (back and _in_order(made.of)))
    return [compressed(x, fixed) for x in result]


def _dims(given: dict[str, Any], of: Tensor) -> list[int]:
    dim = given.get("dim")
    if dim is None or dim == []:
        return list(range(of.dim()))
    return [d % max(of.dim(), 1) for d in ([dim] if isinstance(dim, int) else dim)]


def _reduced(follow: Following, func: Any, given: dict[str, Any], out: Any) -> Owners | None:
    x = _first(given)
    owners = follow.owners(x) if isinstance(x, Tensor) else None
    if owners is None:
        return None
    dims = _dims(given, x)
    of = _over(owners, dims).of
    kept = of.dim() == (out[0] if isinstance(out, tuple | list) else out).dim()
    return Owners(of if kept else of.reshape([n for d, n in enumerate(of.shape) if d not in dims]), owners.fixed)


def _mixed_along(follow: Following, func: Any, given: dict[str, Any], out: Any) -> Owners | None:
    """Of the same shape, each entry made of all along a dimension."""
    x = _first(given)
    owners = follow.owners(x)
    return None if owners is None else _over(owners, [given.get("dim", -1)])


def _layer_norm(follow: Following, func: Any, given: dict[str, Any], out: Any) -> Any:
    owners = follow.owners(_first(given))
    if owners is None:
        return None
    made = _over(owners, range(-len(given["normalized_shape"]), 0))
    return [made] + [None] * (len(out) - 1) if isinstance(out, tuple) else made


def _of_first_only(follow: Following, func: Any, given: dict[str, Any], out: Any) -> Any:
    """A normalisation by the batch, whose statistics are nobody's; dropout."""
    return (
        [follow.owners(_first(given))] + [None] * (len(out) - 1)
        if isinstance(out, tuple | list)
        else _same(follow, func, given, out)
    )


def _by_row(follow: Following, func: Any, given: dict[str, Any], out: Any) -> Any:
    """Each entry of dimension 0 made of that entry alone, all else of it mixed."""
    first = out[0] if isinstance(out, tuple | list) else out
    known = [owners for x in _tensors(given) if (owners := follow.owners(x)) is not None and not owners.constant]
    if not known or follow.owners(_first(given)) is None:
        return None
    rows = [_over(owners, range(1, owners.of.dim())) for owners in known]
    of = rows[0].of.reshape(-1)
    for owners in rows[1:]:
        of = _join(of, owners.of.reshape(-1))
    if len(of) not in (1, first.shape[0]):
        return None
    made = Owners(of.reshape(-1, *[1] * (first.dim() - 1)), all(owners.fixed for owners in rows))
    return [made] + [None] * (len(out) - 1) if isinstance(out, tuple | list) else made


def _product(follow: Following, func: Any, given: dict[str, Any], out: Tensor) -> Owners | None:
    """A matrix product, batched or not."""
    values = _tensors(given)
    one, other = values[-2:]
    left, right = follow.owners(one), follow.owners(other)
    if left is None:
        return None
    left = _over(left, [-1])
    if right is None:  # of nobody knows whom; rows are still the left one's
        right = Owners(torch.full([1] * other.dim(), NOBODY, dtype=torch.int32))
    right = _over(right, [-2 if other.dim() > 1 else -1])
    of = left.of.squeeze(-1) if other.dim() == 1 else left.of
    made = _join(of, right.of.reshape([1] * of.dim()) if other.dim() == 1 else right.of)
    return Owners(made, left.fixed and right.fixed)


def _looked_up(follow: Following, func: Any, given: dict[str, Any], out: Tensor) -> Owners | None:
    owners = follow.owners(given["indices"])
    return None if owners is None else Owners(owners.of.unsqueeze(-1), owners.fixed)


def _bagged(follow: Following, func: Any, given: dict[str, Any], out: Any) -> Any:
    """Bags, each made of the rows from its offset to the next; where nobody knows whose those are, as its offset."""
    bags, starts = out[0], given["offsets"].tolist()
    owners, of_offsets = follow.owners(given["indices"]), follow.owners(given["offsets"])
    if owners is None or owners.constant:
        made = of_offsets
    else:
        full = owners.of.expand(len(given["indices"]))
        parts = [Owners(full[a:b]) for a, b in zip(starts, [*starts[1:], len(full)], strict=True)][: len(bags)]
        fixed = owners.fixed and of_offsets is not None and of_offsets.constant
        made = Owners(torch.cat([_over(part, [0]).of for part in parts]), fixed)
    if made is None or len(made.of) not in (1, len(bags)):
        return None
    return [Owners(made.of[:, None], made.fixed)] + [None] * (len(out) - 1)


def added_by_index(follow: Following, func: Any, given: dict[str, Any], out: Any) -> Owners | None:
    """Sums by index, as of messages over the nodes of a graph: each of the entries that an index sends there."""
    source = given["source" if "source" in given else "src"]
    index, dim = given["index"], given["dim"] % out.dim()
    found, of_index = [follow.owners(given["self"]), follow.owners(source)], follow.owners(index)
    if any(owners is None for owners in found):
        return None
    into, sent = (o.of.expand(x.shape) for o, x in zip(found, (given["self"], source), strict=True) if o is not None)
    if "source" in given:  # one node for all numbers of a message
        index = index.reshape([-1 if d == dim else 1 for d in range(out.dim())]).expand(source.shape)

    def reduced(nobody: int, how: str) -> Tensor:
        one, other = (torch.where(of == NOBODY, nobody, of) for of in (into, sent))
        return one.scatter_reduce(dim, index.cpu(), other, how)

    low, high = reduced(torch.iinfo(into.dtype).max, "amin"), reduced(NOBODY, "amax")
    of = torch.where((low != SEVERAL) & ((low == high) | (high == NOBODY)), high, SEVERAL).to(torch.int32)
    fixed = of_index is not None and of_index.constant and all(o.fixed for o in found if o is not None)
    return compressed(of, fixed)


def _in_order(of: Tensor) -> bool:
    return torch.equal(of.reshape(-1), torch.arange(of.numel(), dtype=of.dtype))


def _packed(follow: Following, func: Any, given: dict[str, Any], out: Any) -> Any:
    """The steps of all sequences, the longest first, one after another."""
    owners = follow.owners(given["input"])
    if owners is None:
        return None
    batch_axis = 0 if given["batch_first"] else 1
    full = owners.of.expand(given["input"].shape).transpose(0, 1 - batch_axis)
    rows = torch.cat([full[step, :count] for step, count in enumerate(out[1].tolist())])
    return [Owners(compressed(rows, False).of, False, fixed_sequences=owners.fixed), None]


_NAMES: tuple[tuple[Any, str], ...] = (
    (_moved, "_unsafe_view clone cat stack repeat flip roll index_select gather index constant_pad_nd masked_select "
             "take _reshape_alias unfold_copy diagonal tril triu"),
    (_same, "_to_copy lift_fresh lift alias contiguous zeros_like ones_like full_like rand_like randn_like "
            "empty_like bernoulli native_dropout randint_like _prelu_kernel nan_to_num"),
    (_nobody, "arange zeros ones full eye linspace scalar_tensor new_zeros new_ones new_full tril_indices "
              "triu_indices"),
    (_reduced, "sum mean amax amin max min var std prod norm linalg_vector_norm logsumexp argmax argmin any all "
               "var_mean std_mean median"),
    (_mixed_along, "_softmax _log_softmax _safe_softmax cumsum cumprod sort topk logcumsumexp glu"),
    (_layer_norm, "native_layer_norm _fused_rms_norm"),
    (_of_first_only, "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training "
                     "cudnn_batch_norm _batch_norm_with_update _batch_norm_no_update miopen_batch_norm"),
    (_by_row, "convolution max_pool2d_with_indices avg_pool1d avg_pool2d avg_pool3d max_pool3d_with_indices "
              "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d native_group_norm "
              "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention "
              "_scaled_dot_product_efficient_attention _scaled_dot_product_attention_math "
              "_scaled_dot_product_cudnn_attention upsample_nearest1d upsample_nearest2d upsample_nearest3d "
              "upsample_bilinear2d upsample_bicubic2d upsample_linear1d upsample_trilinear3d _upsample_nearest_exact2d "
              "_upsample_bilinear2d_aa im2col col2im reflection_pad1d reflection_pad2d reflection_pad3d "
              "replication_pad1d replication_pad2d replication_pad3d"),
    (_product, "mm bmm addmm baddbmm mv dot addmv"),
    (_looked_up, "embedding"),
    (_bagged, "_embedding_bag _embedding_bag_forward_only"),
    (_packed, "_pack_padded_sequence"),
    (added_by_index, "index_add scatter_add scatter_reduce"),
)  # fmt: skip
RULES = {name: rule for rule, names in _NAMES for name in names.split()}
"""What is known of operations that are neither views nor elementwise, by their names in torch's own list (aten)."""


def rule_of(func: Any, name: str) -> Any:
    if name in RULES:
        return RULES[name]
    if func.is_view:
        return _moved
    return _pointwise if torch.Tag.pointwise in func.tags else None
