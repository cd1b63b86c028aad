"""Attention of a decoder to an encoder's positions (Luong et al. 2015, "general"), also as the readout of a stream.

For a query q, the decoder's output at one step, and keys k_s, one a source position::

    a_s = softmax over s of (W q) . k_s           padding left out
    out = tanh(V [sum_s a_s k_s; q])

Nothing is fed back to the decoder, so queries of many steps are answered together, and `rewind_loss` does it chunk by
chunk: the decoder's attention, softmax and loss are its readout. Keys are made anew for each chunk, so that what they
are made of is all that is stored: words, whose embeddings cost nothing, and the encoder's annotations.

Shapes: B batch, K steps, N positions, S source positions, Q query width, D key width, O output width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from revtune.arguments import running
from revtune.readout import Featured, LinearCrossEntropy
from revtune.values import check_size

Keys = Callable[..., Tensor]
ROWS = 16
"""Rows that are read out at a time."""


class Attention(nn.Module):
    """General attention (Luong et al. 2015, equations 5 to 8), without input feeding.

    Args:
        query_size: Q.
        key_size: D.
        output_size: O; that of the query by default.

    Shape:
        Queries (B, K, Q), keys (B, S, D) and lengths (B,), source positions of each row, all of them by default. Gives
        outputs (B, K, O) and weights (B, K, S), which are 0 at padding and add up to 1.

    Raises:
        ValueError: sizes that are no positive integers.

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

    def forward(self, queries: Tensor, keys: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Outputs and weights; as in the class's description."""
        scores = self.score(queries) @ keys.transpose(1, 2)
        if lengths is not None:
            padding = ~running(lengths, 0, keys.shape[1]).t()
            scores = scores.masked_fill(padding.unsqueeze(1), -torch.inf)
        weights = scores.softmax(-1)
        return torch.tanh(self.combine(torch.cat([weights @ keys, queries], -1))), weights

    def extra_repr(self) -> str:
        return f"{self.query_size}, {self.key_size}, {self.output_size}"


class AttentionReadout(Featured):
    """The readout of a decoder that attends, for `rewind_loss`; made anew for each batch.

    Rows are read out some at a time, so that the keys of few of them are there at once.

    Args:
        attention: general attention.
        keys: `keys(rows, *context)` gives keys (R, S, D) of some rows, a slice of the batch, from the context that
            `rewind_loss` is given; called once a chunk for each.
        lengths: source positions of each row, (B,).
        head: from outputs to words.
        drop: what is done to outputs before that, such as nn.Dropout.

    Shape:
        Called with decoder outputs y (N, H), of positions in the order of their steps, targets (N, 2) as `numbered`
        gives them, and the context.

    Example:
        >>> attention, head = Attention(8, 6), LinearCrossEntropy(8, 10)
        >>> annotations, lengths = torch.randn(5, 2, 6), torch.tensor([5, 3])
        >>> readout = AttentionReadout(attention, lambda rows, kept: kept[:, rows].transpose(0, 1), lengths, head)
        >>> targets = numbered(torch.randint(10, (4, 2)))
        >>> loss, _ = rewind_loss(RevGRU(8, 8), torch.randn(4, 2, 8), targets, readout=readout, context=[annotations])
    """

    def __init__(
        self, attention: nn.Module, keys: Keys, lengths: Tensor, head: LinearCrossEntropy, drop: nn.Module | None = None
    ) -> None:
        super().__init__(head)
        self.attention, self.keys, self.lengths = attention, keys, lengths
        self.drop = drop or nn.Identity()

    def parts(self, targets: Tensor) -> list[Tensor]:
        """As in `Featured`: positions by their rows, some at a time."""
        rows = targets[:, 1] % len(self.lengths)
        groups = rows.div(ROWS, rounding_mode="floor")
        found = [(groups == group).nonzero()[:, 0] for group in range(-(-len(self.lengths) // ROWS))]
        return [part for part in found if len(part)]

    def features(self, y: Tensor, targets: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        """As in `Featured`."""
        tokens, numbers = targets.unbind(-1)
        row, step = numbers % len(self.lengths), numbers.div(len(self.lengths), rounding_mode="floor")
        low, high = int(row.min()), int(row.max()) + 1
        row, step = row - low, step - step[0]
        queries = y.new_zeros(high - low, int(step[-1]) + 1, y.shape[1]).index_put((row, step), y)
        some = slice(low, high)
        out, _ = self.attention(queries, self.keys(some, *context), self.lengths[some])
        return self.drop(out[row, step]), tokens


def numbered(tokens: Tensor) -> Tensor:
    """Target tokens (T, B) with the numbers of their positions, (T, B, 2), which `AttentionReadout` takes."""
    return torch.stack([tokens, torch.arange(tokens.numel(), device=tokens.device).view(tokens.shape)], -1)
