"""What a language model's regularizers are tuned by, and the forms of its losses that are told of their values.

A hyperparameter has the name of the option that it starts from, but for that of words, which are dropped by the
embedding's own `dropout`, where the one between layers is meant by that name.

Shapes: T steps, B streams, V tokens, H units.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

import revtune as rt
from revtune.program.language.config import Config, Net
from revtune.program.language.learner import Segment
from revtune.program.language.model import LanguageModel, of_layer, of_layers
from revtune.program.layers import REVERSIBLE
from revtune.program.tuning import Tuning
from revtune.tuning.hypers.hyperparameters import Hyperparameters
from revtune.tuning.hypers.kinds import Hyper, Positive, Rate
from revtune.tuning.regularizers.dropouts import TunedLockedDropout
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


def hyperparameters(config: Config, tuning: Tuning) -> Hyperparameters:
    """A rate for each dropout, and the weights of both penalties, where they start."""
    how: dict[str, Any] = {"scale": tuning.scale, "tune_scale": tuning.tune_scales}
    hypers: dict[str, Hyper] = {
        WORDS if name == "embedding_dropout" else name: Rate(
            getattr(config.net, name) or config.tuned_from, per="batch" if name in BATCH_RATES else "example", **how
        )
        for name in rates_of(config.net)
    }
    return Hyperparameters(**hypers, **{name: Positive(config.tuned_from, **how) for name in PENALTIES})


def by_option(values: dict[str, float]) -> dict[str, float]:
    """Values of hyperparameters by the options that they start from."""
    return {"embedding_dropout" if name == WORDS else name: value for name, value in values.items()}


def in_force(net: Net, values: dict[str, float]) -> Net:
    """A net at the rates among some values by option; penalties are none of a net's."""
    rates: dict[str, Any] = {name: value for name, value in values.items() if name in rates_of(net)}
    return dataclasses.replace(net, **rates)


class Out(NamedTuple):
    """Logits (T, B, V), and outputs (T, B, H) of the last layer before and after dropout."""

    logits: Tensor
    outputs: Tensor
    dropped: Tensor


class TunedStack(nn.Module):
    """The layers of a `StoringStack`, under dropouts that are tuned; its weights keep their names.

    Args:
        layers: of nn.GRU or nn.LSTM; converted, they drop their recurrent weights themselves.
        hypers: what the dropouts read.
    """

    def __init__(self, layers: nn.ModuleList, hypers: Hyperparameters) -> None:
        super().__init__()
        self.layers, self.dropout = layers, nn.Dropout(0.0)
        self.input_drop = TunedLockedDropout(hypers, "input_dropout", batch_dim=1)
        self.output_drop = TunedLockedDropout(hypers, "output_dropout", batch_dim=1)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Outputs (T, B, H) and the state, (L, B, H) or a pair of it."""
        _, x, after = self.outputs(x, state)
        return x, after

    def outputs(self, x: Tensor, state: Any) -> tuple[Tensor, Tensor, Any]:
        """Outputs of the last layer before and after dropout, and the state."""
        after, raw = list[tuple[Tensor, ...]](), x
        for number, layer in enumerate(self.layers):
            x = self.dropout(x) if number else x
            parts = of_layer(state, number)
            raw, part = layer(self.input_drop(x), parts if len(parts) > 1 else parts[0] if parts else None)
            x = self.output_drop(raw)
            after.append(part if isinstance(part, tuple) else (part,))
        return raw, x, of_layers(after)


def predict(model: Any, batch: Segment, state: Any) -> tuple[Out, Any]:
    """The prediction of a storing model, and its next state."""
    raw, dropped, state = model.rnn.outputs(model.encode(batch.inputs), None if batch.first else state)
    return Out(model.readout.logits(dropped), raw, dropped), state


def train_loss(out: Out, batch: Segment, h: Any) -> Tensor:
    """Mean cross entropy of a token in each stream, and its penalties, (B,), in nats."""
    losses = F.cross_entropy(out.logits.flatten(0, 1), batch.targets.flatten(), reduction="none")
    penalty = activation_penalty(out.dropped, h.activation, batch_dim=1)
    penalty = penalty + temporal_penalty(out.outputs, h.temporal, batch_dim=1)
    return losses.view(batch.targets.shape).mean(0) + penalty


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
