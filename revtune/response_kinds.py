"""Which layers respond: torch's, and those of one's own once they are registered (`response_own`)."""

from __future__ import annotations

from torch import nn

from revtune.response import (
    Responding,
    ResponseConv1d,
    ResponseConv2d,
    ResponseConv3d,
    ResponseEmbedding,
    ResponseLinear,
)  # fmt: skip
from revtune.response_norm import (
    ResponseBatchNorm1d,
    ResponseBatchNorm2d,
    ResponseBatchNorm3d,
    ResponseGroupNorm,
    ResponseLayerNorm,
)  # fmt: skip
from revtune.response_rnn import ResponseGRU, ResponseLSTM

LAYERS: dict[type[nn.Module], type[Responding]] = {
    kind.plain: kind
    for kind in (
        ResponseLinear, ResponseConv1d, ResponseConv2d, ResponseConv3d, ResponseEmbedding, ResponseLayerNorm,
        ResponseGroupNorm, ResponseBatchNorm1d, ResponseBatchNorm2d, ResponseBatchNorm3d, ResponseLSTM, ResponseGRU,
    )
}  # fmt: skip
