"""What a language model's regularizers are tuned by, and the forms of its losses that are told of their values.

A hyperparameter has the name of the option that it starts from, but for that of words, which are dropped by the
embedding's own `dropout`, where the one between layers is meant by that name.

Shapes: T steps, B streams, V tokens, H units.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor
from torch.nn import functional as F

import revtune as rt
from revtune.program.data.text import Segment
from revtune.program.language.config import Net
from revtune.program.language.model import LanguageModel, Out
from revtune.program.layers import REVERSIBLE
from revtune.tuning.hypers.kinds import Hyper, Positive, Rate
from revtune.tuning.regularizers.penalties import activation_penalty, temporal_penalty

WORDS = "encode.dropout"
"""The rate that `embedding_dropout` starts."""

BATCH_RATES = ("embedding_dropout", "weight_drop")
"""Those of weights, of which a batch has one mask."""

PENALTIES = ("activation", "temporal")
"""AR and TAR (Merity et al. 2018)."""


def rates_of(net: Net) -> list[str]:
    """The dropout rates that a net has, by option."""
    own = ["input_dropout", "output_dropout", "embedding_dropout", "weight_drop"]
    own += ["dropout"] if net.layers > 1 else []
    return own + (["hidden_dropout"] if net.model in REVERSIBLE else [])


def starts(net: Net, tuned_from: float) -> dict[str, Hyper]:
    """A rate for each dropout, and the weights of both penalties, by hyperparameter, where they start."""
    rates: dict[str, Hyper] = {
        WORDS if name == "embedding_dropout" else name: Rate(
            getattr(net, name) or tuned_from, per="batch" if name in BATCH_RATES else "example"
        )
        for name in rates_of(net)
    }
    return {**rates, **{name: Positive(tuned_from) for name in PENALTIES}}


def by_option(values: dict[str, float]) -> dict[str, float]:
    """Values of hyperparameters by the options that they start from."""
    return {"embedding_dropout" if name == WORDS else name: value for name, value in values.items()}


def in_force(net: Net, values: dict[str, float]) -> Net:
    """A net at the rates among some values by option; penalties are none of a net's."""
    rates: dict[str, Any] = {name: value for name, value in values.items() if name in rates_of(net)}
    return dataclasses.replace(net, **rates)


def predict(model: Any, batch: Segment, state: Any) -> tuple[Out, Any]:
    """The prediction of a storing model, and its next state."""
    out, state = model.outputs(batch.inputs, None if batch.first else state)
    return out, state


def cross_entropy(out: Out, batch: Segment) -> Tensor:
    """Mean cross entropy of a token in each stream, (B,), in nats."""
    losses = F.cross_entropy(out.logits.flatten(0, 1), batch.targets.flatten(), reduction="none")
    return losses.view(batch.targets.shape).mean(0)


def train_loss(out: Out, batch: Segment, h: Any) -> Tensor:
    """Mean cross entropy of a token in each stream, and its penalties, (B,), in nats."""
    penalty = activation_penalty(out.dropped, h.activation, batch_dim=1)
    penalty = penalty + temporal_penalty(out.outputs, h.temporal, batch_dim=1)
    return cross_entropy(out, batch) + penalty


def valid_loss(out: Out, batch: Segment) -> Tensor:
    """Mean cross entropy of a token, in nats."""
    return F.cross_entropy(out.logits.flatten(0, 1), batch.targets.flatten())


def stream(model: LanguageModel, batch: Segment, h: Any) -> dict[str, Any]:
    """What the loss of a reversible model is streamed from; held-out text has no penalties."""
    given: dict[str, Any] = {
        "rnn": model.rnn, "inputs": batch.inputs, "targets": batch.targets, "encode": model.encode,
        "readout": model.readout,
    }  # fmt: skip
    if h is not None:
        given["penalties"] = rt.ActivationPenalties(activation=h.activation, temporal=h.temporal)
    return {**given, "state": None} if batch.first else given
