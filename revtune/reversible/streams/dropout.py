"""Modules whose masks are drawn once a sequence: locked dropout, embeddings that drop words."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from revtune.reversible.arguments import check_rate, check_tensor
from revtune.reversible.layers.masks import locked_mask
from revtune.reversible.streams.gradient_sinks import sink_of
from revtune.reversible.streams.hooks import called_as_written
from revtune.reversible.streams.leaf_weights import LookUp
from revtune.reversible.streams.once import check_once

_LOOK_UP = nn.Embedding.forward
"""Noted here, since someone may replace it later."""


class LockedDropout(nn.Module):
    """Dropout with one mask for all steps of a sequence.

    Args:
        p: probability of dropping, 0..1.

    Shape:
        Input and output (T, B, F); the mask is (B, F). Inside `rewind_loss` a module has one mask, so a module of its
        own is needed at each place.

    Raises:
        ValueError: p outside 0..1, or an input that is not (T, B, F).

    Example:
        >>> y = LockedDropout(0.5)(torch.ones(3, 2, 4))
        >>> torch.equal(y[0], y[2])
        True
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = check_rate("p", p)

    def forward(self, x: Tensor) -> Tensor:
        if check_tensor("LockedDropout: input", x).dim() != 3:
            raise ValueError(
                f"LockedDropout wants (T, B, F), got {tuple(x.shape)}; on readouts use the layer's output_dropout"
            )
        if not self.training or self.p == 0.0:
            return x
        return x * locked_mask(self, tuple(x.shape[1:]), self.p, x, rows=0)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class Embedding(nn.Embedding):
    """`nn.Embedding` with embedding dropout: whole words are dropped, the same ones throughout a sequence (Merity et
    al. 2018).

    Args:
        num_embeddings, embedding_dim, padding_idx, device, dtype: as in nn.Embedding.
        dropout: probability of dropping a word of the vocabulary, 0..1.

    Inside `rewind_loss` its gradient is added row by row into one accumulator, so that no dense gradient of a chunk
    exists.

    Raises:
        ValueError: dropout outside 0..1, or ids that are not integers or lie outside the vocabulary.

    Example:
        >>> Embedding(10, 4, dropout=0.1)(torch.tensor([[1, 2], [3, 1]])).shape
        torch.Size([2, 2, 4])
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx, device=device, dtype=dtype)
        self.dropout = check_rate("dropout", dropout)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, embeddings: Tensor, freeze: bool = True, padding_idx: int | None = None, *, dropout: float = 0.0
    ) -> Embedding:
        """An embedding whose weight is this tensor, (num_embeddings, embedding_dim), frozen unless `freeze` is False.

        Raises:
            ValueError: a weight that is no matrix, or dropout outside 0..1.

        Example:
            >>> Embedding.from_pretrained(torch.eye(3))(torch.tensor([2]))
            tensor([[0., 0., 1.]])
        """
        if check_tensor("embeddings", embeddings).dim() != 2:
            raise ValueError(f"embeddings must be (num_embeddings, embedding_dim), got {tuple(embeddings.shape)}")
        words, features = embeddings.shape
        # On the meta device, where the weight that is put aside takes no memory
        made = cls(words, features, padding_idx, dropout=dropout, device="meta", dtype=embeddings.dtype)
        made.weight = nn.Parameter(embeddings, requires_grad=not freeze)
        return made

    def forward(self, input: Tensor) -> Tensor:
        for name in ("max_norm", "scale_grad_by_freq", "sparse"):
            if given := getattr(self, name):
                raise ValueError(f"Embedding has no {name}, got {given}; nn.Embedding has, and is an encoder too")
        rows = look_up(self, input)
        if not self.training or self.dropout == 0.0:
            return rows
        mask = locked_mask(self, (self.num_embeddings, 1), self.dropout, self.weight)
        return rows * F.embedding(input, mask)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, dropout={self.dropout}"


_FORWARD = Embedding.forward


def plain_embedding(module: Callable[..., Tensor] | None) -> bool:
    """Whether this is an nn.Embedding that `look_up` can replace."""
    return (
        type(module) is nn.Embedding
        and module.max_norm is None
        and not (module.sparse or module.scale_grad_by_freq)
        and called_as_written(module, _LOOK_UP)
    )


def known_encoder(module: Callable[..., Tensor] | None) -> bool:
    """Whether this is an embedding, called as it was written, that surely encodes each step by itself."""
    return plain_embedding(module) or (type(module) is Embedding and called_as_written(module, _FORWARD))


def look_up(embedding: nn.Embedding, ids: Tensor) -> Tensor:
    """The rows of the embedding at these ids. Where a sink is open, the gradient is added to it in place.

    Raises:
        ValueError: ids that are not integers or lie outside the vocabulary.
    """
    if ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"token ids must be int64 or int32, got {ids.dtype}")
    if ids.device != embedding.weight.device:
        raise ValueError(f"token ids are on {ids.device}, the embedding on {embedding.weight.device}")
    check_once(ids, partial(_check_ids, embedding.num_embeddings), ("ids", embedding.num_embeddings))
    sink = sink_of(embedding.weight)
    if sink is None:
        return F.embedding(ids, embedding.weight, embedding.padding_idx)
    rows: Tensor = LookUp.apply(ids, embedding.weight, embedding.padding_idx, sink)
    return rows


def _check_ids(words: int, ids: Tensor) -> None:
    """Refuse ids that are not among so many words'."""
    if not ids.numel():
        return
    low, high = torch.stack(torch.aminmax(ids)).tolist()
    if low < 0 or high >= words:
        raise ValueError(f"token ids must lie in 0..{words - 1}, the vocabulary, got {low if low < 0 else high}")
