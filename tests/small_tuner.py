"""A small tuner for the tests of what tuners accept."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import revtune as rt

BATCH = (torch.randn(8, 6), torch.randint(3, (8,)))


def net(width: int = 8) -> nn.Module:
    return rt.self_tuning(
        nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), nn.Dropout(0.2), nn.Linear(width, 3))
    )


def train_loss(out: Tensor, batch: Any, h: Any) -> Tensor:
    return F.cross_entropy(out, batch[1], reduction="none")


def tuner(model: nn.Module | None = None, **options: Any) -> rt.Tuner:
    given: dict[str, Any] = {
        "train_loss": train_loss, "valid_loss": lambda out, batch: F.cross_entropy(out, batch[1]),
        "optimizer": lambda params: torch.optim.SGD(params, 0.1), **options,
    }  # fmt: skip
    return rt.Tuner(net() if model is None else model, **given)


def everything(of: rt.Tuner) -> list[Tensor]:
    """Weights, statistics and hyperparameters."""
    return [one.clone() for one in of.model.state_dict().values() if isinstance(one, Tensor)]
