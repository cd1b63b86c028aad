"""Regularizers at a tuned value for each example."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

import revtune as rt
from revtune.errors import HyperparameterError
from revtune.tuning.hypers.hyperparameters import Hyperparameters, Pass
from revtune.tuning.hypers.kinds import Between, Integer, Positive, Rate
from revtune.tuning.noise import drop_mask
from revtune.tuning.regularizers.dropouts import (
    ConvertedDropout,
    TunedDropout,
    TunedDropout1d,
    TunedDropout2d,
    TunedDropout3d,
    TunedLockedDropout,
    TunedNoise,
)
from revtune.tuning.regularizers.regularizer import TunedRegularizer
from revtune.tuning.regularizers.weights import TunedEmbeddingDropout, TunedWeightDrop
from revtune.tuning.responses.layers import ResponseEmbedding, ResponseLinear
from revtune.tuning.responses.recurrent_cells import ResponseLSTMCell
from revtune.tuning.tuner.bilevel import BilevelProblem, delta, hypergradients, stn

# what torch loads at the first use of forward differentiation says so
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is:DeprecationWarning")
KINDS = [TunedDropout, TunedDropout1d, TunedDropout2d, TunedDropout3d]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def in_pass(hypers: Hyperparameters, size: int, raw: Tensor | None = None) -> Pass:
    """A training pass at given l, or at perturbed ones."""
    return Pass(size, None, hypers.perturbed(size).detach() if raw is None else raw)


def adopted(module: nn.Module, kind: type[ConvertedDropout], hypers: Hyperparameters, batch_dim: int = 0) -> nn.Module:
    module.__class__ = kind
    module.adopt(hypers, "drop", batch_dim)  # type: ignore[operator]
    return module


def logits(*rates: float) -> Tensor:
    """l of rates, (B, 1)."""
    return torch.tensor(rates).logit()[:, None]


def dropped(x: Tensor, *rates: float, kind: type[ConvertedDropout] = TunedDropout, batch_dim: int = 0) -> Tensor:
    """An input after a pass at these rates of its examples."""
    hypers = Hyperparameters(drop=Rate(0.3))
    module = adopted(kind.plain(), kind, hypers, batch_dim)
    with hypers.bound(in_pass(hypers, len(rates), logits(*rates))):
        y: Tensor = module(x)
    return y


@pytest.mark.parametrize("batch_dim", [0, 1])
def test_each_example_is_dropped_at_its_own_rate(batch_dim: int) -> None:
    rates = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0])
    x = torch.full((5, 40_000), 2.0)[..., None].transpose(0, batch_dim)
    y = dropped(x, *rates.tolist(), batch_dim=batch_dim).transpose(0, batch_dim)[..., 0]
    assert torch.allclose((y == 0).float().mean(1), rates, atol=0.01)
    kept = torch.where(y == 0, 2 / (1 - rates[:, None]), y)
    assert torch.allclose(kept[:4], (2 / (1 - rates[:4]))[:, None].expand(-1, 40_000))
    assert torch.allclose(y[:4].mean(1), torch.tensor(2.0), atol=0.06)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_rates_near_1_give_no_infinity(dtype: torch.dtype) -> None:
    x = torch.ones(4, 100_000, dtype=dtype, requires_grad=True)
    y = dropped(x, 1.0, 1 - 1e-7, 1 - 1e-4, 0.999)
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert y.dtype == dtype and y.isfinite().all() and grad.isfinite().all() and not y[0].any()


def test_a_number_a_0d_tensor_and_one_for_each_are_the_same() -> None:
    raw = torch.tensor([[-0.4]])
    hypers = Hyperparameters(each=Rate(0.3), all=Rate(0.3, per="batch"))
    x, found = torch.rand(3, 5, 50), []
    for p in (raw.sigmoid().item(), "all", "each"):
        torch.manual_seed(1)
        with hypers.bound(in_pass(hypers, 3, raw.expand(3, 2))):
            found.append(TunedLockedDropout(hypers, p)(x))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2]) and not torch.equal(found[0], x)
    assert torch.equal(TunedLockedDropout(hypers, 0.0)(x), x)


def test_no_gradient_reaches_a_value() -> None:
    hypers = all_hypers()
    with hypers.bound(Pass(3, None, hypers.perturbed(3))):
        for module, x in modules(hypers):
            assert not module.requires_grad_(False)(x).requires_grad, module


@pytest.mark.filterwarnings("ignore:dropout.d. Received a:UserWarning")  # torch's own
@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("dims", [2, 3, 4, 5])
def test_every_shape_that_torch_takes_loses_what_it_loses_in_torch(kind: Any, dims: int) -> None:
    x = torch.ones(200, 20, *[3] * (dims - 2))
    try:
        plain = kind.plain(0.5)(x)
    except RuntimeError:
        with pytest.raises(ValueError, match=rf"{kind.__name__} wants 3 dimensions, \(B, C, \.\.\.\), got \(200, 20,"):
            dropped(x, *[0.5] * 200, kind=kind)
        return
    y = dropped(x, *[0.2] * 100, *[0.7] * 100, kind=kind)
    assert whole(y) == whole(plain)
    rates = (y == 0).flatten(1).float().mean(1)
    assert [half.mean().item() for half in rates.chunk(2)] == pytest.approx([0.2, 0.7], abs=0.15)


def whole(y: Tensor) -> tuple[bool, bool]:
    """Whether whole rows and whole channels are dropped."""
    rows, channels = y.flatten(1), y.flatten(0, 1).reshape(y.shape[0] * y.shape[1], -1)
    return bool((rows == rows[:, :1]).all()), bool((channels == channels[:, :1]).all())


@pytest.mark.parametrize("kind", KINDS[1:])
def test_dropout_of_channels_drops_whole_ones(kind: type[ConvertedDropout]) -> None:
    y = dropped(torch.ones(2, 4000, *[2] * ((kind.dims or 0) - 2)), 0.2, 0.8, kind=kind).flatten(2)
    assert torch.equal(y, y[:, :, :1].expand_as(y))
    assert torch.allclose((y == 0).float().mean((1, 2)), torch.tensor([0.2, 0.8]), atol=0.03)


@pytest.mark.parametrize("batch_dim", [0, 1])
def test_locked_dropout_has_one_mask_for_all_steps(batch_dim: int) -> None:
    hypers, rates = Hyperparameters(drop=Rate(0.3)), (0.2, 0.5, 0.8)
    x = torch.ones((3, 7, 4000) if batch_dim == 0 else (7, 3, 4000))
    with hypers.bound(in_pass(hypers, 3, logits(*rates))):
        y = TunedLockedDropout(hypers, "drop", batch_dim=batch_dim)(x).movedim(batch_dim, 0)
    assert torch.equal(y, y[:, :1].expand_as(y)) and not torch.equal(y[0], y[1])
    assert torch.allclose((y[:, 0] == 0).float().mean(1), torch.tensor(rates), atol=0.03)


def test_embedding_dropout_drops_a_word_wherever_it_stands() -> None:
    ids, words = torch.randint(2000, (4, 3000)), nn.Embedding(2000, 5)
    nn.init.ones_(words.weight)
    y = TunedEmbeddingDropout(words, Hyperparameters(drop=Rate(0.3, per="batch")), "drop")(ids).detach()
    assert torch.equal(y, y[..., :1].expand_as(y))
    by_word = torch.zeros(2000).index_put((ids,), y[..., 0])
    assert torch.equal(by_word[ids], y[..., 0])
    assert (by_word[ids.unique()] == 0).float().mean().item() == pytest.approx(0.3, abs=0.04)


def test_weight_drop_and_noise_have_their_strengths() -> None:
    layer = nn.Linear(200, 200, bias=False)
    found = TunedWeightDrop(layer, Hyperparameters(drop=Rate(0.3, per="batch")), "drop")(torch.eye(200))
    assert (found == 0).float().mean().item() == pytest.approx(0.3, abs=0.02)
    hypers, deviations = Hyperparameters(noise=Between(0.5, 0.0, 4.0)), torch.tensor([0.0, 0.5, 2.0])
    with hypers.bound(in_pass(hypers, 3, (deviations / 4).logit()[:, None])):
        noise = TunedNoise(hypers, "noise")(torch.full((3, 40_000), 7.0)) - 7
    assert torch.allclose(noise.std(1), deviations, rtol=0.02) and not noise[0].any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_tuned_dropout_takes_the_value_of_each_example_in_a_pass(kind: type[ConvertedDropout]) -> None:
    hypers = Hyperparameters(drop=Rate(0.3))
    module = adopted(kind.plain(0.9), kind, hypers)
    x = torch.ones(2, 3000, *[2] * ((kind.dims or 3) - 2))
    with hypers.bound(in_pass(hypers, 2, logits(0.2, 0.7))):
        y = module(x)
    assert torch.allclose((y == 0).float().flatten(1).mean(1), torch.tensor([0.2, 0.7]), atol=0.04)
    assert torch.equal(y, y[:, :, :1].expand_as(y)) == (kind.dims is not None)
    assert (module(x) == 0).float().mean().item() == pytest.approx(0.3, abs=0.04)
    assert hypers.read == {"drop"}


@pytest.mark.parametrize("kind", KINDS)
def test_outside_a_pass_it_is_the_plain_one_at_the_current_rate(kind: type[ConvertedDropout]) -> None:
    hypers, x = Hyperparameters(drop=Rate(0.3)), torch.rand(4, 5, *[6] * ((kind.dims or 3) - 2))
    module, plain = adopted(kind.plain(0.9), kind, hypers), kind.plain(hypers.values()["drop"])
    torch.manual_seed(1)
    y = module(x)
    torch.manual_seed(1)
    assert torch.equal(y, plain(x))


@pytest.mark.parametrize("kind", KINDS)
def test_dropped_it_is_plain_at_the_current_rate(kind: type[ConvertedDropout]) -> None:
    hypers = Hyperparameters(drop=Rate(0.25))
    module = adopted(kind.plain(0.9), kind, hypers)
    assert "'drop'" in repr(module)
    module.become_plain()  # type: ignore[operator]
    assert type(module) is kind.plain and module.p == 0.25
    assert module.__dict__.keys() == kind.plain().__dict__.keys() and repr(module) == repr(kind.plain(0.25))


def test_its_rate_is_not_set_by_hand() -> None:
    network: Any = rt.self_tuning(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.25)))
    with pytest.raises(ValueError, match=r"as hyperparameter '1', which is 0.25 now, so that p = 0.5 would change"):
        network[1].p = 0.5
    plain: Any = rt.frozen(network)
    assert plain[1].p == pytest.approx(0.25)


def test_examples_whose_steps_were_flattened_keep_their_rates() -> None:
    for batch_dim in (0, 1):
        hypers = Hyperparameters(drop=Rate(0.3))
        module: Any = adopted(nn.Dropout(), TunedDropout, hypers, batch_dim)
        module.rows = ("together", "alternating")[batch_dim]
        with hypers.bound(in_pass(hypers, 2, logits(0.05, 0.95))):
            y = module(torch.ones(2 * 3, 4000)).view(*((2, 3) if batch_dim == 0 else (3, 2)), 4000)
            share = (y == 0).float().mean((1 - batch_dim, 2))
            assert torch.allclose(share, torch.tensor([0.05, 0.95]), atol=0.02)
            assert module(torch.ones(2)).shape == (2,)
            module.rows = None
            told = "TunedDropout: dimension 0 .* must be the batch of 2 examples"
            with pytest.raises(ValueError, match=rf"{told}.*; self_tuning\(\.\.\., batch_dim=1\) is for inputs"):
                module(torch.ones(2 * 3, 5))


def test_in_place_it_changes_its_input() -> None:
    hypers = Hyperparameters(drop=Rate(0.3))
    module, x = adopted(nn.Dropout(inplace=True), TunedDropout, hypers), torch.ones(2, 50)
    with hypers.bound(in_pass(hypers, 2)):
        assert module(x) is x and (x == 0).any()


def modules(hypers: Hyperparameters) -> list[tuple[nn.Module, Tensor]]:
    """Every kind, with an input."""
    kinds = [(adopted(kind.plain(), kind, hypers), torch.ones(3, 4, *[5] * ((kind.dims or 2) - 2))) for kind in KINDS]
    words = TunedEmbeddingDropout(nn.Embedding(6, 4), hypers, "words")
    return [
        *kinds,
        (TunedLockedDropout(hypers, "drop"), torch.ones(3, 5, 4)),
        (TunedNoise(hypers, "noise"), torch.ones(3, 4)),
        (words, torch.randint(6, (3, 5))),
        (TunedWeightDrop(nn.Linear(4, 2), hypers, "words"), torch.ones(3, 4)),
    ]


def all_hypers() -> Hyperparameters:
    return Hyperparameters(drop=Rate(0.4), noise=Positive(0.5), words=Rate(0.4, per="batch"))


def test_in_evaluation_modules_do_nothing_and_read_nothing() -> None:
    hypers = all_hypers()
    for module, x in modules(hypers):
        inner = next(module.children(), None)
        expected = x if inner is None else inner(x)
        with hypers.bound(Pass(3, None, None, training=False)):
            assert torch.equal(module.eval()(x), expected)
            with pytest.raises(HyperparameterError, match="is read in a validation pass"):
                module.train()(x)
    assert not hypers.read


def test_in_training_modules_do_something_inside_a_pass_and_outside() -> None:
    hypers = all_hypers()
    for module, x in modules(hypers):
        outside, at_rest = module(x), copy.deepcopy(module).eval()(x)
        with hypers.bound(in_pass(hypers, 3)):
            inside = module(x)
        assert inside.shape == outside.shape == at_rest.shape
        assert not torch.equal(inside, at_rest) and not torch.equal(outside, at_rest), module


def test_dropped_modules_are_torchs_own_and_equal_in_evaluation() -> None:
    hypers = all_hypers()
    for module, x in modules(hypers):
        before, keys = module.eval()(x), list(module.state_dict())
        assert isinstance(module, TunedRegularizer)
        module.become_plain()
        assert type(module).__module__.startswith("torch.nn") and list(module.state_dict()) == keys
        assert torch.equal(module(x), before) and "hypers" not in str(module.__dict__)


def test_a_copy_reads_its_own_hyperparameters() -> None:
    hypers = all_hypers()
    net = nn.ModuleList([hypers, TunedNoise(hypers, "noise")])
    twin = copy.deepcopy(net)
    assert twin[1].hypers is twin[0] and twin[1].hypers is not hypers


def test_the_mask_of_words_falls_on_the_response_too() -> None:
    hypers = Hyperparameters(words=Rate(0.5, per="batch"))
    embedding: Any = nn.Embedding(50, 3)
    module = TunedEmbeddingDropout(embedding, hypers, "words")
    embedding.__class__ = ResponseEmbedding
    embedding.adopt(hypers, "words", 0)
    nn.init.normal_(embedding.response_scale)
    ids = torch.arange(50).repeat(2, 1)
    with hypers.bound(Pass(2, torch.ones(2, 1), torch.zeros(2, 1))):
        ratio = module(ids) / embedding(ids)
    assert torch.equal(ratio[0], ratio[1]) and set(ratio.round(decimals=4).unique().tolist()) == {0.0, 2.0}


def dropped_linear(nested: bool) -> tuple[Hyperparameters, TunedWeightDrop, Any]:
    hypers = Hyperparameters(words=Rate(0.5, per="batch"))
    inner: Any = nn.Linear(6, 4)
    module = TunedWeightDrop(nn.Sequential(inner), hypers, "words", weight="0.weight") if nested else None
    module = module or TunedWeightDrop(inner, hypers, "words")
    inner.__class__ = ResponseLinear
    inner.adopt(hypers, "inner", 0)
    nn.init.normal_(inner.response_scale)
    return hypers, module, inner


@pytest.mark.parametrize("nested", [False, True])
def test_weight_drop_masks_both_weights_alike(nested: bool) -> None:
    hypers, module, inner = dropped_linear(nested)
    d = torch.randn(3, 1)
    with hypers.bound(Pass(3, d, torch.zeros(3, 1))):
        torch.manual_seed(5)
        y = module(torch.eye(6)[:3])
        torch.manual_seed(5)
        mask = drop_mask((4, 6), 0.5, inner.weight)
    s = d @ inner.response_scale.T
    whole = mask * (inner.weight + s[:, :, None] * inner.response_weight)
    expected = torch.einsum("buf,bf->bu", whole, torch.eye(6)[:3]) + inner.bias + d @ inner.response_shift.T
    assert torch.allclose(y, expected, atol=1e-6)
    (grad,) = torch.autograd.grad(y.sum(), inner.weight)
    assert not grad[mask == 0].any()


def test_weight_drop_masks_both_recurrent_weights_of_a_cell_alike() -> None:
    hypers = Hyperparameters(words=Rate(0.5, per="batch"))
    cell: Any = nn.LSTMCell(3, 4)
    module = TunedWeightDrop(cell, hypers, "words", weight="weight_hh")
    cell.__class__ = ResponseLSTMCell
    cell.adopt(hypers, "cell", 0)
    for name in ("scale_ih", "scale_hh", "shift"):
        nn.init.normal_(getattr(cell, f"response_{name}"))
    d, x, h, c = torch.randn(2, 1), torch.randn(2, 3), torch.randn(2, 4), torch.randn(2, 4)
    with hypers.bound(Pass(2, d, torch.zeros(2, 1))):
        torch.manual_seed(5)
        found, _ = module(x, (h, c))
        torch.manual_seed(5)
        mask = drop_mask((16, 4), 0.5, cell.weight_hh)
        kept = cell.weight_hh.detach().clone(), cell.response_weight_hh.detach().clone()
        with torch.no_grad():
            cell.weight_hh.mul_(mask)
            cell.response_weight_hh.mul_(mask)
        expected, _ = cell(x, (h, c))
    assert torch.allclose(found, expected, atol=1e-6) and not torch.equal(kept[1], cell.response_weight_hh)


def problem(net: nn.Module, hypers: Hyperparameters) -> BilevelProblem:
    return BilevelProblem(
        net, hypers, lambda m, b: m(b[0]),
        lambda out, b, h: F.cross_entropy(out, b[1], reduction="none"),
        lambda out, b: F.cross_entropy(out, b[1]), lambda b: len(b[0]),
    )  # fmt: skip


def whole_net() -> tuple[Hyperparameters, Any, tuple[Tensor, Tensor]]:
    hypers = all_hypers()
    first, last = nn.Linear(8, 16), nn.Linear(16, 3)
    net = nn.Sequential(
        TunedNoise(hypers, "noise"), first, nn.ReLU(), nn.Dropout(0.5), TunedWeightDrop(last, hypers, "words")
    )
    adopted(net[3], TunedDropout, hypers)
    for name, layer in (("first", first), ("last", last)):
        layer.__class__ = ResponseLinear
        layer.adopt(hypers, name, 0)  # type: ignore[operator]
        nn.init.normal_(layer.response_scale, 0, 0.1)  # type: ignore[arg-type]
    return hypers, net, (torch.randn(10, 8), torch.randint(3, (10,)))


@pytest.mark.parametrize("step", [stn, delta])
def test_steps_of_both_methods_run_through_every_module(step: Callable[..., Tensor]) -> None:
    hypers, net, batch = whole_net()
    hypers.centred = step is delta
    held = problem(net, hypers)
    loss = step(held, batch, lambda loss: loss)
    assert loss.isfinite() and hypers.read == {"drop", "noise", "words"}
    assert all(p.grad is not None and p.grad.isfinite().all() for group in held.parameters() for p in group)
    assert all(p.grad is None for p in hypers.parameters())
    _, grads = hypergradients(held, batch, 1e-3)
    assert grads[hypers.raw].all()


def test_the_linearisation_sees_the_same_masks() -> None:
    """Where nothing but the last, linear layer responds, the linear prediction is the prediction itself."""
    from revtune.tuning.tuner.bilevel import linearized_prediction

    hypers, net, batch = whole_net()
    nn.init.zeros_(net[1].response_scale)
    nn.init.zeros_(net[1].response_shift)
    raw = hypers.perturbed(10).detach()
    torch.manual_seed(3)
    with forward_ad.dual_level():
        _, linear = linearized_prediction(problem(net, hypers), batch, raw, d := raw - hypers.raw.detach())
    torch.manual_seed(3)
    with hypers.bound(Pass(10, d, raw)):
        assert torch.allclose(net(batch[0]), linear, atol=1e-5)


REFUSED: list[tuple[Callable[[Hyperparameters], object], str]] = [
    (lambda h: TunedNoise(h, "noises"), "TunedNoise: deviation: there is no hyperparameter 'noises'; there are"),
    (
        lambda h: TunedLockedDropout(h, "decay"),
        r"TunedLockedDropout: p must lie in 0\.\.1, but .* Positive from 0 to inf",
    ),
    (lambda h: TunedLockedDropout(h, 1.5), r"TunedLockedDropout: p must lie in 0\.\.1, got 1\.5"),
    (lambda h: TunedLockedDropout(h, -0.5), r"TunedLockedDropout: p must lie in 0\.\.1, got -0\.5"),
    (lambda h: TunedLockedDropout(h, float("nan")), r"TunedLockedDropout: p must lie in 0\.\.1, got nan"),
    (lambda h: TunedNoise(h, -1.0), "TunedNoise: deviation must be at least 0, got -1"),
    (lambda h: TunedNoise(h, "shift"), "TunedNoise: deviation must be at least 0, but .* a Between from -1 to 1"),
    (lambda h: TunedWeightDrop(nn.Linear(2, 2), h, "drop"), r'hyperparameter \'drop\' must have per="batch"'),
    (lambda h: TunedWeightDrop(nn.LSTM(2, 2), h, "words"), "cannot wrap LSTM: its response layer drops"),
    (
        lambda h: TunedWeightDrop(nn.Sequential(nn.LSTM(2, 2)), h, "words", weight="0.weight_hh_l0"),
        "cannot drop '0.weight_hh_l0' of LSTM: its response layer drops weights itself",
    ),
    (lambda h: TunedWeightDrop(nn.ReLU(), h, "words"), "ReLU has no parameter 'weight'; it has none"),
    (lambda h: TunedWeightDrop(nn.Linear(2, 2), h, "words", weight="w"), "no parameter 'w'; it has weight, bias"),
    (lambda h: TunedEmbeddingDropout(nn.Linear(2, 2), h, "words"), "wraps an nn.Embedding, got Linear"),  # type: ignore[arg-type]
    (lambda h: adopted(nn.Dropout(), TunedDropout, Hyperparameters(drop=Integer(1, 0, 4))), "an? Integer from 0 to 4"),
]


@pytest.mark.parametrize(("make", "told"), REFUSED)
def test_what_cannot_be_tuned_so_is_refused(make: Callable[[Hyperparameters], object], told: str) -> None:
    hypers = Hyperparameters(
        drop=Rate(0.1), words=Rate(0.1, per="batch"), decay=Positive(1.0), shift=Between(0.0, -1.0, 1.0)
    )
    with pytest.raises(ValueError, match=told):
        make(hypers)


def test_shapes_that_a_module_cannot_take_are_named() -> None:
    hypers = Hyperparameters(drop=Rate(0.1))
    with hypers.bound(in_pass(hypers, 2)):
        with pytest.raises(ValueError, match=r"TunedDropout2d wants 4 dimensions, \(B, C, \.\.\.\), got \(2,\)"):
            adopted(nn.Dropout2d(), TunedDropout2d, hypers)(torch.ones(2))
        with pytest.raises(ValueError, match=r"TunedDropout2d wants 4 dimensions, \(B, C, \.\.\.\), got \(4, 2, 3\)"):
            adopted(nn.Dropout2d(), TunedDropout2d, hypers, 1)(torch.ones(4, 2, 3))
        with pytest.raises(ValueError, match=r"TunedLockedDropout wants \(B, T, H\), got \(2, 3\)"):
            TunedLockedDropout(hypers, "drop")(torch.ones(2, 3))
        with pytest.raises(ValueError, match="TunedLockedDropout: batch_dim must be 0 or 1, got 2"):
            TunedLockedDropout(hypers, "drop", batch_dim=2)(torch.ones(2, 3, 4))
        told = "TunedNoise: dimension 0 .* must be the batch of 2 examples"
        with pytest.raises(ValueError, match=rf"{told}.*; TunedNoise\(\.\.\., batch_dim=1\) is for inputs"):
            TunedNoise(hypers, "drop")(torch.ones(3, 5))


class Modules(nn.Module):
    """Masks of a sequence's units, of words and of a weight."""

    def __init__(self, hypers: Hyperparameters) -> None:
        super().__init__()
        self.words = TunedEmbeddingDropout(nn.Embedding(9, 16), hypers, "words")
        self.weight = TunedWeightDrop(nn.Linear(16, 16, bias=False), hypers, "words")
        self.locked = TunedLockedDropout(hypers, "drop", batch_dim=1)
        self.rows = nn.Dropout(0.1)

    def forward(self, ids: Tensor) -> Tensor:
        y: Tensor = self.locked(self.weight(self.words(ids)))
        return y


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_inside_a_stream_a_sequence_has_one_mask_though_it_runs_in_chunks(backend: Any) -> None:
    hypers = Hyperparameters(drop=Rate(0.5), words=Rate(0.4, per="batch"))
    modules, seen = Modules(hypers), list[Tensor]()
    ids = torch.arange(9).repeat(20)[:, None].expand(-1, 4).contiguous()  # (180, 4)
    rnn, targets = rt.RevGRU(16, 8, backend=backend), ids.new_zeros(180, 4, 1)

    def encode(ids: Tensor) -> Tensor:
        y = modules(ids)
        if len(ids) > 16:  # more than an encoder's trial takes
            seen.append(torch.stack([y.detach()[ids[:, 0] == word][0] for word in range(9)]))
        return modules.rows(y)

    def loss() -> Tensor:
        found, _ = rt.rewind_loss(
            rnn, ids, targets, encode=encode, readout=lambda y, t: y.square().sum(), checkpoint_every=30
        )
        return found

    with hypers.bound(in_pass(hypers, 4)):
        loss().backward()
        assert len(seen) > 6 and all(torch.equal(one, seen[0]) for one in seen)
        assert 0.2 < (seen[0] == 0).float().mean() < 0.95
        first = seen[0]
        loss()
        assert not torch.equal(first, seen[-1])
