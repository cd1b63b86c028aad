"""An encoder that rewinds and tunes itself: what `rewind_encode` asks of RevGRU and RevLSTM with a response.

Its masks, scales and shifts are each row's own, as in any pass. What it gives is known to be of the batch's rows, so
that layers between encoder and decoder know theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from revtune.tuning.responses.recurrent_rows import run_in_pass
from revtune.tuning.responses.responding import ADVICE
from revtune.tuning.responses.rows import Laid, describe

if TYPE_CHECKING:
    from revtune.joint.rev_layers import ResponseRev


def encoded(layer: ResponseRev, what: str, inputs: Tensor, run: Callable[[], tuple[Tensor, Any]]) -> tuple[Tensor, Any]:
    """What `run` gives, annotations and final states.

    Args:
        layer: the encoder.
        what: the function that encodes, for messages.
        inputs: as they were given to it.
        run: encodes them.

    Raises:
        ValueError: its output_dropout is tuned, in which nothing that is kept has a part; or in a pass rows are not the
            examples in order, or Delta-STN would have to follow what they give.
    """
    if "output_dropout" in layer.tuned:
        raise ValueError(
            f"{what} keeps units as they are, so {layer._name}.output_dropout must not be tuned: take it out of "
            "rates = rt.dropout_rates(net), and self_tuning(net, rt.Hyperparameters(**rates)) leaves it as it is"
        )
    bound = layer.hypers.current
    if bound is None:
        return run()
    if bound.record is not None and torch.is_grad_enabled():
        raise ValueError(
            f"{what}: what {layer._name} encodes moves with hyperparameters, and Delta-STN does not follow that any "
            'further, into a decoder or a loss; use method="stn"'
        )

    def in_order(laid: Laid) -> tuple[Any, Any]:
        if laid.way != "batch":
            of = f"those of {layer._name} {describe(laid)}"
            raise ValueError(f"{what}: rows of inputs must be the batch's examples in their order, but {of}")
        return run()

    return run_in_pass(layer, inputs, bound, ADVICE, in_order)
