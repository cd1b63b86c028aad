"""Stochastic depth of other libraries is tuned: each example is dropped at its own rate."""

import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from revtune.tuning.conversion.convert import self_tuning
from revtune.tuning.conversion.freeze import frozen
from revtune.tuning.hypers.hyperparameters import Pass
from revtune.tuning.tuner.tuner import Tuner


class DropPath(nn.Module):
    """timm's (timm.layers.drop)."""

    def __init__(self, drop_prob: float = 0.0, scale_by_keep: bool = True) -> None:
        super().__init__()
        self.drop_prob, self.scale_by_keep = drop_prob, scale_by_keep

    def forward(self, x: Tensor) -> Tensor:
        if self.drop_prob == 0.0 or not self.training:
            return x
        keep = 1 - self.drop_prob
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
        if keep > 0.0 and self.scale_by_keep:
            mask.div_(keep)
        return x * mask


class SwinDropPath(nn.Module):
    """Hugging Face's, whose rate may be None."""

    def __init__(self, drop_prob: float | None = None) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, hidden_states: Tensor) -> Tensor:
        if not self.drop_prob or not self.training:
            return hidden_states
        keep = 1 - self.drop_prob
        shape = (hidden_states.shape[0],) + (1,) * (hidden_states.ndim - 1)
        return hidden_states.div(keep) * (keep + torch.rand(shape, dtype=hidden_states.dtype)).floor_()


class StochasticDepth(nn.Module):
    """torchvision's (torchvision.ops.stochastic_depth)."""

    def __init__(self, p: float, mode: str) -> None:
        super().__init__()
        self.p, self.mode = p, mode

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return input
        survival = 1.0 - self.p
        size = [input.shape[0] if self.mode == "row" else 1] + [1] * (input.ndim - 1)
        noise = torch.empty(size, dtype=input.dtype).bernoulli_(survival)
        return input * (noise.div_(survival) if survival > 0.0 else noise)


class Residual(nn.Module):
    """A residual branch that is dropped."""

    def __init__(self, path: nn.Module) -> None:
        super().__init__()
        self.fc, self.path, self.out = nn.Linear(6, 6), path, nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.out(x + self.path(self.fc(x).relu()))
        return found


PATHS: dict[str, Any] = {
    "timm": lambda: DropPath(0.2),
    "hugging face": lambda: SwinDropPath(0.2),
    "torchvision": lambda: StochasticDepth(0.2, "row"),
}
paths = pytest.mark.parametrize("kind", PATHS)


@paths
def test_whole_examples_are_dropped_each_at_its_own_rate(kind: str) -> None:
    torch.manual_seed(0)
    net: Any = self_tuning(Residual(PATHS[kind]()))
    assert net.conversion.replaced["path"] == f"{type(PATHS[kind]()).__name__}, its rate tuned"
    rates = torch.tensor([0.1, 0.7]).repeat_interleave(2000)
    with net.hypers.bound(Pass(4000, None, rates.logit()[:, None])):
        y = net.path(torch.ones(4000, 2, 3))
    assert torch.equal(y, y[:, :1, :1].expand_as(y))
    assert [half.mean().item() for half in (y[:, 0, 0] == 0).float().chunk(2)] == pytest.approx([0.1, 0.7], abs=0.03)
    torch.testing.assert_close(y[y[:, 0, 0] > 0][0, 0, 0].item(), 1 / 0.9)
    torch.manual_seed(1)
    outside, plain = net.path(torch.ones(50, 3)), PATHS[kind]()
    torch.manual_seed(1)
    torch.testing.assert_close(outside, plain(torch.ones(50, 3)))
    with torch.no_grad():
        net.hypers.raw.fill_(torch.tensor(0.35).logit())
    saved = pickle.loads(pickle.dumps(net))
    assert type(saved.path) is type(net.path) and saved.path.hypers is saved.hypers
    path: Any = frozen(net).path
    assert type(path) is type(plain) and getattr(path, "drop_prob", getattr(path, "p", None)) == pytest.approx(0.35)
    assert torch.equal(net.eval().path(y), y)


@paths
@pytest.mark.parametrize("method", ["delta", "stn"])
def test_its_rate_is_trained_and_tuned(kind: str, method: Any) -> None:
    torch.manual_seed(0)
    net, batch = self_tuning(Residual(PATHS[kind]())), (torch.randn(8, 6), torch.arange(8) % 3)
    tuner = Tuner(
        net, lambda out, batch, h: F.cross_entropy(out, batch[1], reduction="none"),
        lambda out, batch: F.cross_entropy(out, batch[1]), optimizer=lambda groups: torch.optim.SGD(groups, 0.1),
        method=method,
    )  # fmt: skip
    for _ in range(4):
        tuner.step(batch, batch)
    assert tuner.values()["path"] != pytest.approx(0.2, abs=1e-4)


def test_what_is_kept_may_stay_unscaled() -> None:
    net: Any = self_tuning(Residual(DropPath(0.5, scale_by_keep=False)))
    with net.hypers.bound(Pass(40, None, torch.zeros(40, 1))):
        assert set(net.path(torch.ones(40, 3)).unique().tolist()) == {0.0, 1.0}


def test_a_rate_of_none_starts_where_a_rate_of_0_does() -> None:
    net: Any = self_tuning(Residual(SwinDropPath(None)))
    assert net.conversion.replaced["path"].endswith("its rate tuned (it was 0, and starts at 0.05)")


def test_paths_that_cannot_be_tuned_are_told() -> None:
    mixed = nn.ModuleDict({"fc": nn.Linear(2, 2), "drop": nn.Dropout(0.1), "depth": StochasticDepth(0.3, "batch")})
    net: Any = self_tuning(mixed)
    assert net.conversion.left["depth"] == "it drops whole batches, so its rate stays 0.3"
    mixed = nn.ModuleDict({"fc": nn.Linear(2, 2), "drop": nn.Dropout(0.1), "path": DropPath(0.3)})
    net = self_tuning(mixed, batch_dim=1)
    branches = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1), DropPath([0.1, 0.2]))  # type: ignore[arg-type]
    assert self_tuning(branches).hypers.names == ("1",)  # type: ignore[union-attr]
    assert net.conversion.left["path"].startswith("it drops rows of dimension 0, which are no examples")
