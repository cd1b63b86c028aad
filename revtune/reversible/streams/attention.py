"""Attention of a decoder to an encoder's positions (Luong et al. 2015, "general"), also as the readout of a stream.

For a query q, the decoder's output at one step, and keys k_s, one a source position::

    a_s = softmax over s of (W q) . k_s           padding left out
    out = tanh(V [sum_s a_s k_s; q])

Nothing is fed back to the decoder, so queries of many steps are answered together. `rewind_loss` does so chunk by
chunk, with the decoder's attention, softmax and loss as its readout. Keys are computed anew for each chunk, so that
only what they are computed from is stored: words, whose embeddings cost nothing, and the encoder's annotations.

Shapes: B batch, K steps, N positions, S source positions, Q query width, D key width, O output width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from revtune.reversible.arguments import check_lengths, check_like, check_size, check_tensor, running
from revtune.reversible.streams.readout import FeatureReadout, LinearCrossEntropy
from revtune.sequences import Along, handing

Keys = Callable[..., Tensor]

_LENGTH_NAMES = ("source lengths", "the positions of the keys")
"""What messages call the lengths, and what these count."""

PART_ROWS = 32
"""Rows that are read out at a time, whose keys are there at once."""


class Attention(nn.Module):
    """General attention (Luong et al. 2015, equations 5 to 8), without input feeding.

    Args:
        query_size: Q.
        key_size: D.
        output_size: O; that of the query by default.

    Shape:
        Queries (B, K, Q), keys (B, S, D), lengths (B,), source positions of each row, all of them by default, and a
        mask (B, D) of the keys' dtype that a row's keys are multiplied with, by default 1. Gives outputs (B, K, O) and
        weights (B, K, S), which are 0 at padding and add up to 1.

    Raises:
        ValueError: sizes that are no positive integers; queries, keys, lengths or a mask of other shapes than these, a
            mask of another dtype (under autocast any of floats fits), or a length outside 1..S.

    Example:
        >>> out, weights = Attention(8, 6)(torch.randn(2, 3, 8), torch.randn(2, 5, 6), torch.tensor([5, 2]))
        >>> out.shape, weights.shape, bool((weights[1, :, 2:] == 0).all())
        (torch.Size([2, 3, 8]), torch.Size([2, 3, 5]), True)
    """

    def __init__(self, query_size: int, key_size: int, output_size: int | None = None) -> None:
        super().__init__()
        self.query_size, self.key_size = check_size("query_size", query_size), check_size("key_size", key_size)
        self.output_size = query_size if output_size is None else check_size("output_size", output_size)
        self.score = nn.Linear(query_size, key_size, bias=False)
        self.combine = nn.Linear(key_size + query_size, self.output_size, bias=False)

    def forward(
        self, queries: Tensor, keys: Tensor, lengths: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Outputs and weights; shapes as in the class's description."""
        self._check(queries, keys, lengths, mask)
        projected, padding = self.score(queries), None
        if lengths is not None:
            padding = ~running(lengths, 0, keys.shape[1]).t().unsqueeze(1)
        # m * k_s is never made: (W q) . (m * k_s) = (m * W q) . k_s, and sum_s a_s (m * k_s) = m * sum_s a_s k_s
        mask = None if mask is None else mask.unsqueeze(1)
        projected = projected if mask is None else projected * mask
        with torch.autocast(keys.device.type, enabled=False):
            context, weights = _DotAttention.apply(projected.to(keys.dtype), keys, padding)
        context = context if mask is None else context * mask
        return torch.tanh(self.combine(torch.cat([context, queries], -1))), weights

    def _check(self, queries: Tensor, keys: Tensor, lengths: Tensor | None, mask: Tensor | None) -> None:
        for name, given, size in (("queries", queries, self.query_size), ("keys", keys, self.key_size)):
            check_tensor(f"Attention: {name}", given)
            if given.dim() != 3 or given.shape[2] != size:
                raise ValueError(f"Attention: {name} must be (B, steps, {size}), got {tuple(given.shape)}")
        if len(queries) != len(keys):
            raise ValueError(f"Attention: queries and keys must be of as many rows, got {len(queries)} and {len(keys)}")
        check_lengths(lengths, keys.shape[1], len(keys), keys.device, _LENGTH_NAMES)
        if mask is not None:
            _check_mask("Attention", mask, len(keys), self.key_size)
            dtype = mask.dtype if torch.is_autocast_enabled(keys.device.type) else keys.dtype
            check_like("Attention: mask", mask, dtype, keys.device, "the keys")

    def extra_repr(self) -> str:
        return f"{self.query_size}, {self.key_size}, {self.output_size}"


def _check_mask(name: str, mask: object, rows: int, width: int | None = None) -> Tensor:
    """Refuse a mask that is no tensor of floats (B, D) of so many rows, and of this width if one is given."""
    given = check_tensor(f"{name}: mask", mask)
    if not given.is_floating_point() or given.dim() != 2 or given.shape != (rows, width or given.shape[1]):
        wanted = f"({rows}, {width or 'D'})"
        raise ValueError(
            f"{name}: mask must be floats {wanted}, a row's for its keys, got {given.dtype} {tuple(given.shape)}"
        )
    return given


class _DotAttention(torch.autograd.Function):
    """Context vectors and weights of queries (B, K, D) over keys (B, S, D).

    By hand, since autograd would make two gradients of the keys, one of scores and one of contexts, and add them up.
    """

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, padding: Tensor | None) -> tuple[Tensor, Tensor]:
        scores = queries @ keys.transpose(1, 2)
        weights = (scores if padding is None else scores.masked_fill_(padding, -torch.inf)).softmax(-1)
        ctx.save_for_backward(queries, keys, weights)
        return weights @ keys, weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dcontext: Tensor, dweights: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, weights = ctx.saved_tensors
        want_queries, want_keys, _ = ctx.needs_input_grad
        dweights = torch.baddbmm(dweights, dcontext, keys.transpose(1, 2))
        dscores = weights * (dweights - (weights * dweights).sum(-1, keepdim=True))  # through the softmax
        dqueries = dscores @ keys if want_queries else None
        if not want_keys:
            return dqueries, None, None
        return dqueries, (weights.transpose(1, 2) @ dcontext).baddbmm_(dscores.transpose(1, 2), queries), None


class AttentionReadout(FeatureReadout):
    """The readout of a decoder that attends, for `rewind_loss`; made anew for each batch.

    Rows are read out some at a time, so that only the keys of these are in memory.

    Args:
        attention: general attention.
        keys: `keys(rows, *context)` gives keys (R, S, D) of some rows, a slice of the batch, from the context that
            `rewind_loss` is given; called once a chunk for each. Modules of a self-tuning net that it calls find these
            rows in dimension 1.
        lengths: source positions of each row, (B,).
        head: from outputs to words.
        drop: what is done to outputs before that, such as nn.Dropout.
        mask: what keys of each row are multiplied with, (B, D); nothing by default.

    Shape:
        Called with decoder outputs y (N, H), of positions in the order of their steps, targets (N, 3) as `numbered`
        gives them, and the context.

    Raises:
        ValueError: lengths that are no integers (B,), or of another batch than the targets; a mask that is not of as
            many rows; targets that are not numbered; keys, or a mask, that do not fit the attention.

    Example:
        >>> attention, head = Attention(8, 6), LinearCrossEntropy(8, 10)
        >>> annotations, lengths = torch.randn(5, 2, 6), torch.tensor([5, 3])
        >>> readout = AttentionReadout(attention, lambda rows, kept: kept[:, rows].transpose(0, 1), lengths, head)
        >>> targets = numbered(torch.randint(10, (4, 2)))
        >>> loss, _ = rewind_loss(RevGRU(8, 8), torch.randn(4, 2, 8), targets, readout=readout, context=[annotations])
    """

    def __init__(
        self,
        attention: nn.Module,
        keys: Keys,
        lengths: Tensor,
        head: LinearCrossEntropy,
        drop: nn.Module | None = None,
        mask: Tensor | None = None,
    ) -> None:
        super().__init__(head)
        if not isinstance(lengths, Tensor) or lengths.dim() != 1 or lengths.dtype not in (torch.int64, torch.int32):
            given = f"{lengths.dtype} {tuple(lengths.shape)}" if isinstance(lengths, Tensor) else type(lengths).__name__
            raise ValueError(f"AttentionReadout: lengths must be integers (B,), one a row of the source, got {given}")
        self.attention, self.keys, self.lengths = attention, keys, lengths
        self.mask = None if mask is None else _check_mask("AttentionReadout", mask, len(lengths))
        self.drop = drop or nn.Identity()

    def classes(self, targets: Tensor) -> Tensor:
        """The target tokens."""
        self._check_numbered(targets)
        return targets[..., 0]

    @staticmethod
    def _check_numbered(targets: Tensor) -> None:
        if targets.dim() < 2 or targets.shape[-1] != 3:
            given = tuple(targets.shape)
            raise ValueError(f"AttentionReadout: targets must be (..., 3), as `numbered` gives them, got {given}")

    def _check(self, targets: Tensor) -> None:
        """Refuse targets that are not numbered or not time first, and lengths of another batch than theirs."""
        self._check_numbered(targets)
        if not len(targets):
            return
        rows, steps, count = targets[:, 1], targets[:, 2], len(self.lengths)
        if bool((steps[1:] < steps[:-1]).any()):
            raise ValueError("AttentionReadout: targets must be numbered time first, (T, B), but their steps fall")
        known, begun = int(rows.max()) + 1, int((steps == 0).sum())
        # Every row has a step 0, so where all known rows begin there are no more; later steps may lack rows that ended
        if known > count or begun == known < count:
            raise ValueError(f"AttentionReadout: lengths must be of the batch's {known} rows, got {count}")

    def parts(self, targets: Tensor) -> list[Tensor]:
        """The positions of some rows at a time."""
        self._check(targets)
        groups = targets[:, 1].div(PART_ROWS, rounding_mode="floor")
        found = [(groups == group).nonzero()[:, 0] for group in range(-(-len(self.lengths) // PART_ROWS))]
        return [part for part in found if len(part)]

    def features(self, y: Tensor, targets: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        """What attention gives for outputs y (N, H), and the target tokens (N,)."""
        tokens, row, step = targets.unbind(-1)
        low, high = int(row.min()), int(row.max()) + 1
        row, step = row - low, step - step[0]
        queries = y.new_zeros(high - low, int(step[-1]) + 1, y.shape[1]).index_put((row, step), y)
        rows = slice(low, high)
        mask = None if self.mask is None else self.mask[rows]
        keys = self._keys(low, high, context)
        check_lengths(self.lengths, keys.shape[1], len(self.lengths), keys.device, _LENGTH_NAMES)
        with handing(Along(0, torch.arange(low, high, device=y.device))):
            out, _ = self.attention(queries, keys, self.lengths[rows], mask)
        return self.drop(out[row, step]), tokens

    def _keys(self, low: int, high: int, context: Sequence[Tensor]) -> Tensor:
        """The keys of the rows from `low` on, up to `high`, whose layers are told that dimension 1 is rows.

        Where there are as many positions as rows, a layer that was given them in another dimension has not found out.
        It does with fewer rows.
        """
        numbers = torch.arange(low, high, device=self.lengths.device)
        with handing(handed := Along(1, numbers)):
            keys = self.keys(slice(low, high), *context)
        if handed.asked and keys.dim() == 3 and len(keys) == keys.shape[1] > 1:
            fewer = min(2, len(keys) - 1)
            with handing(Along(1, numbers[:fewer])):
                self.keys(slice(low, low + fewer), *context)
        return keys


def numbered(tokens: Tensor) -> Tensor:
    """Target tokens (T, B), each with its row and step, (T, B, 3), which `AttentionReadout` takes.

    Raises:
        ValueError: they are of another shape.
    """
    if check_tensor("numbered: tokens", tokens).dim() != 2:
        raise ValueError(f"numbered: tokens must be (T, B), got {tuple(tokens.shape)}")
    steps, rows = (torch.arange(size, device=tokens.device) for size in tokens.shape)
    return torch.stack([tokens, rows.expand(tokens.shape), steps.unsqueeze(1).expand(tokens.shape)], -1)
