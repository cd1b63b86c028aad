"""How operations hand on whose entries are whose (`following`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from revtune.tuning.responses.owner_places import bags, chosen, put, scattered
from revtune.tuning.responses.owners import NOBODY, Owners, compressed, first_of, join, joined, moved, over, tensors_of

if TYPE_CHECKING:
    from revtune.tuning.responses.following import Following


def _pointwise(follow: Following, func: Any, given: dict[str, Any], out: Any) -> Owners | None:
    return joined(follow, given, out) if isinstance(out, Tensor) else None


def _same(follow: Following, func: Any, given: dict[str, Any], out: Any) -> Owners | None:
    """As the first input."""
    return follow.owners(first_of(given))


def _nobody(follow: Following, func: Any, given: dict[str, Any], out: Tensor) -> Owners | None:
    return Owners(torch.full([1] * out.dim(), NOBODY, dtype=torch.int32))


def _dims(given: dict[str, Any], of: Tensor) -> list[int]:
    dim = given.get("dim")
    if dim is None or dim == []:
        return list(range(of.dim()))
    return [d % max(of.dim(), 1) for d in ([dim] if isinstance(dim, int) else dim)]


def _reduced(follow: Following, func: Any, given: dict[str, Any], out: Any) -> Owners | None:
    x = first_of(given)
    owners = follow.owners(x) if isinstance(x, Tensor) else None
    if owners is None:
        return None
    dims = _dims(given, x)
    of = over(owners, dims).of
    kept = of.dim() == (out[0] if isinstance(out, tuple | list) else out).dim()
    return Owners(of if kept else of.reshape([n for d, n in enumerate(of.shape) if d not in dims]), owners.fixed)


def _mixed_along(follow: Following, func: Any, given: dict[str, Any], out: Any) -> Owners | None:
    """Of the same shape, each entry made of all along a dimension."""
    x = first_of(given)
    owners = follow.owners(x)
    return None if owners is None else over(owners, [given.get("dim", -1)])


def _transformed(follow: Following, func: Any, given: dict[str, Any], out: Tensor) -> Owners | None:
    """Made of all along several dimensions."""
    owners = follow.owners(first_of(given))
    return None if owners is None else over(owners, given["dim"])


def _layer_norm(follow: Following, func: Any, given: dict[str, Any], out: Any) -> Any:
    owners = follow.owners(first_of(given))
    if owners is None:
        return None
    made = over(owners, range(-len(given["normalized_shape"]), 0))
    return [made] + [None] * (len(out) - 1) if isinstance(out, tuple) else made


def _of_first_only(follow: Following, func: Any, given: dict[str, Any], out: Any) -> Any:
    """A normalisation by the batch, whose statistics are nobody's; dropout."""
    return (
        [follow.owners(first_of(given))] + [None] * (len(out) - 1)
        if isinstance(out, tuple | list)
        else _same(follow, func, given, out)
    )


def _by_row(follow: Following, func: Any, given: dict[str, Any], out: Any) -> Any:
    """Each entry of dimension 0 made of that entry alone, all else of it mixed."""
    first = out[0] if isinstance(out, tuple | list) else out
    known = [owners for x in tensors_of(given) if (owners := follow.owners(x)) is not None and not owners.constant]
    if not known or follow.owners(first_of(given)) is None:
        return None
    rows = [over(owners, range(1, owners.of.dim())) for owners in known]
    of = rows[0].of.reshape(-1)
    for owners in rows[1:]:
        of = join(of, owners.of.reshape(-1))
    if len(of) not in (1, first.shape[0]):
        return None
    made = Owners(of.reshape(-1, *[1] * (first.dim() - 1)), all(owners.fixed for owners in rows))
    return [made] + [None] * (len(out) - 1) if isinstance(out, tuple | list) else made


def _product(follow: Following, func: Any, given: dict[str, Any], out: Tensor) -> Owners | None:
    """A matrix product, batched or not."""
    values = tensors_of(given)
    one, other = values[-2:]
    found = [follow.owners(one), follow.owners(other)]
    known = [owners for owners in found if owners is not None]
    if len(known) < 2 and all(owners.constant for owners in known):
        return None
    # of one it is not known whose it is; the other one tells
    left, right = (
        Owners(torch.full([1] * x.dim(), NOBODY, dtype=torch.int32)) if owners is None else owners
        for owners, x in zip(found, (one, other), strict=True)
    )
    left = over(left, [-1])
    right = over(right, [-2 if other.dim() > 1 else -1])
    of = left.of.squeeze(-1) if other.dim() == 1 else left.of
    made = join(of, right.of.reshape([1] * of.dim()) if other.dim() == 1 else right.of)
    return Owners(made, left.fixed and right.fixed)


def _distances(follow: Following, func: Any, given: dict[str, Any], out: Tensor) -> Owners | None:
    """Of each row of one matrix to each row of another."""
    one, other = follow.owners(given["x1"]), follow.owners(given["x2"])
    if one is None or other is None:
        return None
    one, other = over(one, [-1]), over(other, [-1])
    return Owners(join(one.of, other.of.transpose(-1, -2)), one.fixed and other.fixed)


def _looked_up(follow: Following, func: Any, given: dict[str, Any], out: Tensor) -> Owners | None:
    owners = follow.owners(given["indices"])
    return None if owners is None else Owners(owners.of.unsqueeze(-1), owners.fixed)


def _searched(follow: Following, func: Any, given: dict[str, Any], out: Tensor) -> Owners | None:
    """The place of each number among others."""
    sequence = follow.owners(given["sorted_sequence"])
    return follow.owners(given["self"]) if sequence is not None and sequence.constant else None


def _packed(follow: Following, func: Any, given: dict[str, Any], out: Any) -> Any:
    """The steps of all sequences, the longest first, one after another."""
    owners = follow.owners(given["input"])
    if owners is None:
        return None
    batch_axis = 0 if given["batch_first"] else 1
    full = owners.of.expand(given["input"].shape).transpose(0, 1 - batch_axis)
    rows = torch.cat([full[step, :count] for step, count in enumerate(out[1].tolist())])
    return [Owners(compressed(rows, False).of, False, fixed_sequences=owners.fixed), None]


def _unpacked(follow: Following, func: Any, given: dict[str, Any], out: Any) -> Any:
    """Sequences, padded: all steps of one are whose its first is."""
    owners = follow.owners(given["data"])
    if owners is None or owners.of.shape[0] != given["data"].shape[0] or owners.of.numel() != len(owners.of):
        return None
    axis, count = 0 if given["batch_first"] else 1, int(given["batch_sizes"][0])
    of = owners.of[:count].reshape([-1 if dim == axis else 1 for dim in range(out[0].dim())])
    return [Owners(of, owners.fixed_sequences, sorted=True), None]


_NAMES: tuple[tuple[Any, str], ...] = (
    (moved, "_unsafe_view clone cat stack repeat flip roll constant_pad_nd masked_select "
             "_reshape_alias unfold_copy diagonal unsafe_split unsafe_split_with_sizes unsafe_chunk rot90 "
             "pixel_shuffle pixel_unshuffle channel_shuffle"),
    (chosen, "index_select gather index take"),
    (_same, "tril triu bucketize isin _to_copy lift_fresh lift alias contiguous zeros_like ones_like full_like "
            "rand_like randn_like empty_like bernoulli native_dropout randint_like _prelu_kernel nan_to_num"),
    (_nobody, "arange empty zeros ones full eye linspace scalar_tensor new_empty new_zeros new_ones new_full "
              "tril_indices triu_indices"),
    (_reduced, "sum mean amax amin max min var std prod norm linalg_vector_norm logsumexp argmax argmin any all "
               "var_mean std_mean median kthvalue mode count_nonzero"),
    (_mixed_along, "_softmax _log_softmax _safe_softmax cumsum cumprod sort topk logcumsumexp glu cummax cummin "
                   "multinomial"),
    (_transformed, "_fft_r2c _fft_c2c _fft_c2r"),
    (_pointwise, "floor_divide polar complex"),
    (_layer_norm, "native_layer_norm _fused_rms_norm"),
    (_of_first_only, "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training "
                     "cudnn_batch_norm _batch_norm_with_update _batch_norm_no_update miopen_batch_norm"),
    (_by_row, "convolution max_pool2d_with_indices avg_pool1d avg_pool2d avg_pool3d max_pool3d_with_indices "
              "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d native_group_norm "
              "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention "
              "_scaled_dot_product_efficient_attention _scaled_dot_product_attention_math "
              "_scaled_dot_product_cudnn_attention upsample_nearest1d upsample_nearest2d upsample_nearest3d "
              "upsample_bilinear2d upsample_bicubic2d upsample_linear1d upsample_trilinear3d _upsample_nearest_exact2d "
              "_upsample_bilinear2d_aa im2col col2im grid_sampler_2d grid_sampler_3d reflection_pad1d "
              "reflection_pad2d reflection_pad3d "
              "replication_pad1d replication_pad2d replication_pad3d"),
    (_product, "mm bmm addmm baddbmm mv dot addmv"),
    (_distances, "_cdist_forward"),
    (_looked_up, "embedding"),
    (bags, "_embedding_bag _embedding_bag_forward_only"),
    (_searched, "searchsorted"),
    (scattered, "scatter scatter_add scatter_reduce index_add index_copy"),
    (put, "index_put masked_scatter select_scatter slice_scatter diagonal_scatter"),
    (_packed, "_pack_padded_sequence"),
    (_unpacked, "_pad_packed_sequence"),
)  # fmt: skip
RULES = {name: rule for rule, names in _NAMES for name in names.split()}
"""What is known of operations that are neither views nor elementwise, by their names in torch's own list (aten)."""


def rule_of(func: Any, name: str) -> Any:
    if name in RULES:
        return RULES[name]
    if func.is_view:
        return moved
    return _pointwise if torch.Tag.pointwise in func.tags else None
