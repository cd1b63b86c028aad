"""Bags of embeddings that answer to hyperparameters: torch's own bags, at each example's own weight."""

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from revtune.tuning.conversion.convert import self_tuning
from revtune.tuning.conversion.freeze import frozen
from revtune.tuning.hypers.hyperparameters import Pass
from revtune.tuning.responses.embedding_bags import ResponseEmbeddingBag
from revtune.tuning.responses.following import Following
from revtune.tuning.responses.weight_norm import weight_norm2
from revtune.tuning.tuner.bilevel import BilevelProblem, linearized_prediction
from revtune.tuning.tuner.tuner import Tuner
from tests.tuned_nets import adopt, at, two, with_responses

V, D, B, N = 9, 4, 5, 2
WORDS = [[1, 2, 3], [0, 4], [5, 5, 6, 7], [], [8]]
"""What is in each bag; 0 is padding where there is one."""
OPTIONS: list[dict[str, Any]] = [
    {"mode": "sum"}, {"mode": "mean"}, {"mode": "sum", "padding_idx": 0}, {"mode": "mean", "include_last_offset": True}
]  # fmt: skip
every_option = pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(map(str, options.values())))


class Weighted(nn.Module):
    """Bags of rows that a layer weights by its inputs, one of each word, and a layer that reads them."""

    def __init__(self, options: dict[str, Any], weighted: bool = False) -> None:
        super().__init__()
        self.score, self.bag, self.out = nn.Linear(1, 1), nn.EmbeddingBag(V, D, **options), nn.Linear(D, 3)
        self.weighted = weighted

    def forward(self, words: Tensor, x: Tensor) -> Tensor:
        weights = self.score(x[..., None])[..., 0].tanh() if self.weighted else None
        found: Tensor = self.out(self.bag(words, per_sample_weights=weights).tanh())
        return found


def flat(include_last: bool) -> tuple[Tensor, Tensor]:
    """All words, and where bags begin."""
    starts = [sum(map(len, WORDS[:i])) for i in range(len(WORDS) + include_last)]
    return torch.tensor([word for words in WORDS for word in words]), torch.tensor(starts)


def answered(net: Any, name: str, d: Tensor) -> tuple[Tensor, Any]:
    """A layer's weight and bias at one example's d, by their equation."""
    own = net.get_submodule(name)
    scale = own.response_scale @ d
    if isinstance(own, nn.EmbeddingBag):
        return own.weight + scale * own.response_weight, None
    return own.weight + scale[:, None] * own.response_weight, own.bias + own.response_shift @ d


def drawn(module: nn.Module) -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    hypers = two().double()
    net: Any = with_responses(adopt(module.double(), hypers))
    net.hypers = hypers
    return net, torch.randn(B, N, dtype=torch.float64)


@every_option
def test_each_bag_has_a_weight_of_its_own_and_so_have_gradients(options: dict[str, Any]) -> None:
    layer, d = drawn(nn.EmbeddingBag(V, D, **options))
    d.requires_grad_()
    words, offsets = flat(layer.include_last_offset)
    with layer.hypers.bound(Pass(B, d, None)):
        y = layer(words, offsets)
    rows = []
    for b, bag in enumerate(WORDS):
        weight, _ = answered(layer.eval(), "", d[b])
        kept = [word for word in bag if word != layer.padding_idx]
        total = weight[kept].sum(0)
        rows.append(total / max(len(kept), 1) if layer.mode == "mean" else total)
    torch.testing.assert_close(y, torch.stack(rows))
    wrt, cotangent = [d, layer.weight, layer.response_weight, layer.response_scale], torch.randn_like(y)
    found, expected = (torch.autograd.grad(z, wrt, cotangent) for z in (y, torch.stack(rows)))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("weighted", [True, False])
def test_its_linearisation_and_the_gradient_are_those_of_jvp(weighted: bool) -> None:
    """The reference sums rows itself, as torch has no forward mode of bags; weights of rows carry tangents, too."""
    net, d = drawn(Weighted({"mode": "sum" if weighted else "mean"}, weighted))
    words, x = torch.randint(V, (B, 3)), torch.randn(B, 3, dtype=torch.float64)

    def alone(d: Tensor) -> Tensor:
        rows = []
        for b in range(B):
            score, bag, out = (answered(net, name, d[b]) for name in ("score", "bag", "out"))
            weights = F.linear(x[b, :, None], *score).tanh() if weighted else torch.full_like(x[b, :, None], 1 / 3)
            rows.append(F.linear((weights * bag[0][words[b]]).sum(0).tanh(), *out))
        return torch.stack(rows)

    def never(*_: Any) -> Tensor:
        raise AssertionError

    problem = BilevelProblem(net, net.hypers, lambda net, batch: net(*batch), never, never, lambda batch: B)
    with forward_ad.dual_level():
        out, linear = linearized_prediction(problem, (words, x), d, d)
    zero, change, *_ = torch.func.jvp(alone, (torch.zeros_like(d),), (d,))
    torch.testing.assert_close(out, zero)
    torch.testing.assert_close(linear, zero + change, atol=1e-12, rtol=1e-12)
    with net.hypers.bound(Pass(B, d, None)):
        torch.testing.assert_close(net(words, x), alone(d))
    added = [p for name, p in net.named_parameters() if ".response_" in name and (weighted or "score" not in name)]
    cotangent = torch.randn_like(linear)
    found, expected = (torch.autograd.grad(z, added, cotangent) for z in (out, zero + change))
    torch.testing.assert_close(found, expected)


@every_option
def test_before_training_it_is_the_plain_bag_and_later_it_folds_into_one(options: dict[str, Any]) -> None:
    plain = nn.EmbeddingBag(V, D, **options).double()
    words, offsets = flat(plain.include_last_offset)
    fresh: Any = adopt(copy.deepcopy(plain), two().double())
    assert torch.equal(fresh(words, offsets), plain(words, offsets)) and isinstance(fresh, ResponseEmbeddingBag)
    layer, d = drawn(copy.deepcopy(plain))
    with layer.hypers.bound(Pass(B, d, None)):
        y, norms = layer(words, offsets), weight_norm2(layer)
    for b in range(B):
        alone = copy.deepcopy(layer)
        alone.fold(d[b])
        assert type(alone) is nn.EmbeddingBag and not any("response" in name for name in alone.state_dict())
        torch.testing.assert_close(alone(words, offsets)[b], y[b])
        torch.testing.assert_close(weight_norm2(alone), norms[b])


def test_what_cannot_respond_says_why() -> None:
    assert ResponseEmbeddingBag.refuses(nn.EmbeddingBag(V, D)) is None
    for options, why in (({"mode": "max"}, "max"), ({"sparse": True}, "sparse"), ({"max_norm": 1.0}, "max_norm")):
        assert why in str(ResponseEmbeddingBag.refuses(nn.EmbeddingBag(V, D, **options)))


def test_one_bag_for_all_examples_is_not_answered() -> None:
    layer, d = drawn(nn.EmbeddingBag(V, D))
    words = torch.tensor([[1, 2, 3]])
    with pytest.warns(UserWarning, match="was given one bag that is the same for all 5 examples"):
        y = at(layer, layer.hypers, words, d)
    assert torch.equal(y, F.embedding_bag(words, layer.weight))


def test_whose_bags_are_is_followed() -> None:
    words, offsets = flat(include_last=False)
    for bag in (nn.EmbeddingBag(V, D), nn.EmbeddingBag(V, D).requires_grad_(False)):
        following, padded = Following(), torch.randint(V, (2 * B, 3))
        following.mark(padded, 0, torch.arange(B, dtype=torch.int32).repeat(2))
        following.mark(offsets, 0)
        with following:
            twice, once = bag(padded), bag(words, offsets)
        owners = [following.owners(y) for y in (twice, once)]
        assert [o.of[:, 0].tolist() for o in owners if o] == [[*range(B)] * 2, [*range(B)]]


class Classifier(nn.Module):
    """As the tutorial of torchtext has it."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.bag, self.drop, self.out = nn.EmbeddingBag(V, D, **options), nn.Dropout(0.2), nn.Linear(D, 2)

    def forward(self, words: Tensor, offsets: Tensor) -> Tensor:
        found: Tensor = self.out(self.drop(self.bag(words, offsets)))
        return found


@pytest.mark.parametrize("method", ["stn", "delta"])
def test_a_text_classifier_is_tuned_and_frozen(method: Any) -> None:
    torch.manual_seed(0)
    net: Any = self_tuning(Classifier())

    def train_loss(out: Tensor, batch: Sequence[Tensor], h: Any) -> Tensor:
        return F.cross_entropy(out, batch[0], reduction="none")

    tuner = Tuner(
        net, train_loss, lambda out, batch: F.cross_entropy(out, batch[0]), method=method, ratio=1,
        predict=lambda model, batch: model(*batch[1:]), optimizer=lambda params: torch.optim.Adam(params, 0.01),
    )  # fmt: skip
    words, offsets = flat(include_last=False)
    for _ in range(3):
        tuner.step(*((torch.randint(2, (B,)), words, offsets) for _ in range(2)))
    assert net.bag.response_scale.any()
    plain: Any = frozen(net)
    assert type(plain.bag) is nn.EmbeddingBag
    torch.testing.assert_close(plain.eval()(words, offsets), net.eval()(words, offsets))
