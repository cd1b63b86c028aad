"""Values drawn in the main process for examples that workers augment."""

import copy
import io
import random
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from revtune.tuning.conversion.plan import Conversion
from revtune.tuning.hypers.hyperparameters import Hyperparameters, Pass, Values
from revtune.tuning.hypers.kinds import Between, Integer, Rate
from revtune.tuning.regularizers.loader import TunedLoader
from revtune.tuning.regularizers.sampler import AugmentedBatch, ValueSampler
from revtune.tuning.responses.layers import ResponseLinear
from revtune.tuning.tuner.batches import BatchIterators
from revtune.tuning.tuner.bilevel import BilevelProblem, delta, stn
from revtune.tuning.tuner.tuner import Tuner

# what torch loads at the first use of forward differentiation says so
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is:DeprecationWarning")
DATA = TensorDataset(torch.randn(22, 4, generator=torch.Generator().manual_seed(0)), torch.arange(22) % 3)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def three() -> Hyperparameters:
    return Hyperparameters(noise=Between(0.2, 0.0, 0.5), holes=Integer(1, 0, 4), words=Rate(0.1, per="batch"))


def told(item: tuple[Tensor, Tensor], values: dict[str, float]) -> tuple[Any, ...]:
    """An item with the values that augmented it, and with random numbers of every source."""
    noise = torch.randn(4) * values["noise"]
    rest = (random.random(), float(numpy.random.rand()), isinstance(values["holes"], int))
    return (item[0] + noise, item[1], values["noise"], values["holes"], values["words"], *rest)


def loader(hypers: Hyperparameters, **options: Any) -> TunedLoader:
    given: dict[str, Any] = {"reads": ["noise", "holes", "words"], "batch_size": 4} | options
    return TunedLoader(DATA, told, hypers, **given)


def flat(augmented: AugmentedBatch) -> list[Tensor]:
    return [torch.as_tensor(one) for one in (*augmented.batch, augmented.raw, *(augmented.still or ()))]


def same(one: AugmentedBatch, other: AugmentedBatch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(flat(one), flat(other), strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_augment_by_the_values_that_come_with_the_batch(workers: int) -> None:
    hypers, seen = three(), []
    for augmented in loader(hypers, num_workers=workers):
        x, y, noise, holes, words, *_, whole = augmented.batch
        values = Values(hypers, augmented.raw.to(hypers.raw))
        assert torch.equal(values["noise"], noise.float()) and torch.equal(values["holes"], holes.float())
        assert (words == words[0]).all() and values["words"].item() == words[0].item() and whole.all()
        assert len(x) == 1 or len(noise.unique()) == len(x)
        assert torch.equal(augmented.still[2], torch.full_like(noise, 0.2).float().double())
        assert not torch.equal(augmented.still[0], x) and torch.equal(augmented.still[1], y)
        seen += y.tolist()
    assert sorted(seen) == sorted(DATA.tensors[1].tolist()) and hypers.read == set(hypers.names)


def test_both_views_of_an_example_draw_the_same() -> None:
    for augmented in loader(three()):
        x, y, noise = augmented.batch[:3]
        plain = (
            augmented.still[0] - (x - augmented.still[0]) * (augmented.still[2] / (noise - augmented.still[2]))[:, None]
        )
        assert (torch.cdist(plain.float(), DATA.tensors[0]).amin(1) < 1e-3).all()
        assert torch.equal(augmented.still[5], augmented.batch[5]) and torch.equal(
            augmented.still[6], augmented.batch[6]
        )


def test_a_run_is_the_same_with_any_number_of_workers() -> None:
    runs = [[list(made) for _ in range(2)] for made in (loader(three()), loader(three(), num_workers=2))]
    for one, other in zip(*runs, strict=True):
        assert all(same(a, b) for a, b in zip(one, other, strict=True))
    assert not torch.equal(runs[0][0][0].batch[1], runs[0][1][0].batch[1])


def test_another_seed_is_another_run() -> None:
    assert not same(next(iter(loader(three()))), next(iter(loader(three(), seed=1))))


def array_state() -> list[int]:
    state: Any = numpy.random.get_state()
    found: list[int] = state[1].tolist()
    return found


@pytest.mark.parametrize("workers", [0, 2])
def test_nobody_elses_random_numbers_are_used(workers: int) -> None:
    before = torch.get_rng_state(), random.getstate(), array_state()
    list(loader(three(), num_workers=workers))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1] and array_state() == before[2]


def test_stn_gets_one_view() -> None:
    hypers = three()
    hypers.centred = False
    assert all(augmented.still is None for augmented in loader(hypers))


def test_values_follow_hyperparameters_as_they_move() -> None:
    hypers, means = Hyperparameters(noise=Between(0.2, 0.0, 0.5, scale=0.01)), []
    for augmented in TunedLoader(DATA, lambda item, values: item, hypers, reads=["noise"], batch_size=5):
        means.append((augmented.raw.mean() - hypers.raw).abs().item())
        hypers.raw.data += 1
    assert max(means) < 0.05


def test_values_of_workers_are_older_and_still_those_of_the_batch() -> None:
    hypers, ages = Hyperparameters(noise=Between(0.2, 0.0, 0.5, scale=0.01)), []
    made = TunedLoader(DATA, only_noise, hypers, reads=["noise"], batch_size=4, num_workers=2, prefetch_factor=1)
    for augmented in made:
        assert torch.equal(Values(hypers, augmented.raw.float())["noise"], augmented.batch.float())
        ages.append(round((hypers.raw - augmented.raw.mean()).item()))
        hypers.raw.data += 1
    assert ages == [0, 1, 2, 2, 2, 2]


def only_noise(item: Any, values: dict[str, float]) -> float:
    return values["noise"]


def moving(made: TunedLoader, hypers: Hyperparameters, batches: int) -> list[AugmentedBatch]:
    """Batches of several passes, hyperparameters moved by each."""
    found: list[AugmentedBatch] = []
    while len(found) < batches:
        for augmented in made:
            found.append(augmented)
            hypers.raw.data += 0.1 * augmented.batch[0].mean()
            if len(found) == batches:
                break
    return found


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("after", [1, 3, 5, 6, 8])
def test_a_resumed_run_goes_on_bit_for_bit(workers: int, after: int) -> None:
    hypers = three()
    made = loader(hypers, num_workers=workers)
    moving(made, hypers, after)
    saved = io.BytesIO()
    torch.save({"loader": made.state_dict(), "raw": hypers.raw.detach()}, saved)
    saved.seek(0)
    state = torch.load(saved, weights_only=True)
    again = three()
    resumed = loader(again, num_workers=workers)
    resumed.load_state_dict(state["loader"])
    again.raw.data = state["raw"]
    whole = three()
    expected = moving(loader(whole, num_workers=workers), whole, 14)[after:]
    found = moving(resumed, again, 14 - after)
    assert all(same(a, b) for a, b in zip(expected, found, strict=True))
    assert torch.equal(whole.raw, again.raw)


def test_orders_and_sizes() -> None:
    def items(made: TunedLoader) -> list[list[float]]:
        return [augmented.batch.tolist() for augmented in made]

    data = torch.arange(7)
    options: dict[str, Any] = {"reads": [], "batch_size": 3}
    plain = TunedLoader(data, lambda x, _: x, three(), shuffle=False, **options)
    assert items(plain) == [[0, 1, 2], [3, 4, 5], [6]] and len(plain) == 3
    short = TunedLoader(data, lambda x, _: x, three(), shuffle=False, drop_last=True, **options)
    assert items(short) == [[0, 1, 2], [3, 4, 5]] and len(short) == 2
    own = TunedLoader(data, lambda x, _: x, three(), sampler=[5, 5, 1, 0], **options)
    assert items(own) == [[5, 5, 1], [0]] and len(own) == 2
    mixed = TunedLoader(data, lambda x, _: x, three(), **options)
    assert sorted(sum(items(mixed), [])) == list(range(7)) and items(mixed) != items(mixed)
    listed = TunedLoader(data, lambda x, _: x, three(), collate=list, **options)
    assert isinstance(next(iter(listed)).batch, list)


def test_a_pass_left_before_its_end_is_begun_anew() -> None:
    made = loader(three(), shuffle=False)
    next(iter(made))
    assert len(list(made)) == 6


BAD: list[tuple[dict[str, Any], str]] = [
    ({"reads": ["nose"]}, "reads: there is no hyperparameter 'nose'; there are noise, holes, words"),
    ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
    ({"in_order": False}, "in_order must be True, got False"),
]


@pytest.mark.parametrize(("options", "said"), BAD)
def test_bad_input_is_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        loader(three(), **options)


def test_a_dataset_without_length_is_named() -> None:
    with pytest.raises(ValueError, match="TunedLoader wants a dataset with a length .*, got generator"):
        TunedLoader((i for i in range(3)), told, three(), reads=[], batch_size=2)
    with pytest.raises(TypeError, match="generator does not say how many"):
        len(ValueSampler(3, three(), [], batch_size=2, sampler=(i for i in range(3))))


def network(hypers: Hyperparameters, centred: bool) -> Any:
    """Two response layers that answer, with their hyperparameters inside."""
    torch.manual_seed(2)
    hypers.centred = centred
    net: Any = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    for name in ("0", "2"):
        layer = net.get_submodule(name)
        layer.__class__ = ResponseLinear
        layer.adopt(hypers, name, 0)
        nn.init.normal_(layer.response_scale, 0, 0.1)
    net[0].hyperparameters = hypers
    net.__dict__.update(hypers=hypers, conversion=Conversion())
    return net


def cross_entropy(out: Tensor, batch: Any, h: Values) -> Tensor:
    return F.cross_entropy(out, batch[1], reduction="none") * (1 + h.noise)


def problem(net: nn.Module, hypers: Hyperparameters) -> BilevelProblem:
    return BilevelProblem(
        net, hypers, lambda m, b: m(b[0].float()), cross_entropy, lambda out, b: F.cross_entropy(out, b[1]),
        lambda b: len(b[0]), torch.Generator().manual_seed(4),
    )  # fmt: skip


def unscaled(loss: Tensor) -> Tensor:
    return loss


def grads(net: nn.Module) -> list[Tensor]:
    return [p.grad for p in net.parameters() if p.grad is not None]


@pytest.mark.parametrize("step", [stn, delta])
def test_a_step_takes_values_that_are_given(step: Callable[..., Tensor]) -> None:
    """The same values, drawn by the step or given to it, are the same step."""
    batch = (torch.randn(6, 4), torch.randint(3, (6,)))
    hypers, others = three(), three()
    net, other = network(hypers, step is delta), network(others, step is delta)
    losses = [step(problem(net, hypers), batch, unscaled)]
    raw = hypers.perturbed(6, torch.Generator().manual_seed(4)).detach()
    losses.append(step(problem(other, others), AugmentedBatch(batch, raw.double()), unscaled))
    assert torch.equal(*losses)
    assert len(grads(net)) == 10 and all(torch.equal(a, b) for a, b in zip(grads(net), grads(other), strict=True))


def test_both_steps_of_delta_see_their_own_view() -> None:
    views = [(torch.randn(6, 4), torch.randint(3, (6,))) for _ in range(2)]
    hypers = three()
    net = network(hypers, True)
    raw = hypers.perturbed(6).detach()
    own, added = problem(net, hypers).parameters()

    def step(augmented: AugmentedBatch) -> list[list[Tensor | None]]:
        for p in net.parameters():
            p.grad = None
        delta(problem(net, hypers), augmented, unscaled)
        return [[p.grad for p in group] for group in (own, added)]

    both = step(AugmentedBatch(views[1], raw, views[0]))
    still, moved = (step(AugmentedBatch(view, raw)) for view in views)
    for found, expected in ((both[0], still[0]), (both[1], moved[1])):
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))  # type: ignore[arg-type]
    with hypers.bound(Pass(6, None, hypers.raw.detach().expand(6, -1))):
        loss = cross_entropy(net(views[0][0]), views[0], Values(hypers, hypers.raw.detach().expand(6, -1))).mean()
        expected_own = torch.autograd.grad(loss, own)
    assert all(torch.allclose(a, b) for a, b in zip(both[0], expected_own, strict=True))  # type: ignore[arg-type]


def tuner_of(workers: int) -> tuple[Tuner, TunedLoader]:
    hypers = three()
    torch.manual_seed(3)
    tuner = Tuner(
        network(hypers, True), cross_entropy, lambda out, b: F.cross_entropy(out, b[1]),
        optimizer=lambda params: torch.optim.SGD(params, 0.1), predict=lambda m, b: F.dropout(m(b[0].float()), 0.1),
        hyper_optimizer=lambda params: torch.optim.Adam(params, 0.1),
    )  # fmt: skip
    return tuner, loader(hypers, num_workers=workers)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("after", [2, 6, 7])
@pytest.mark.filterwarnings("ignore:nobody read")
def test_a_resumed_tuner_goes_on_bit_for_bit(workers: int, after: int) -> None:
    held_out = [(torch.randn(5, 4), torch.randint(3, (5,))) for _ in range(2)]

    def go_on(tuner: Tuner, made: TunedLoader, until: int) -> None:
        while tuner.steps < until:
            for batch, valid in tuner.batches(made, held_out):
                tuner.step(batch, valid)
                if tuner.steps == until:
                    return

    whole, made = tuner_of(workers)
    go_on(whole, made, after)
    state = copy.deepcopy(whole.state_dict())
    torch.manual_seed(99)
    resumed, again = tuner_of(workers)
    resumed.load_state_dict(state)
    go_on(resumed, again, 15)
    straight, made = tuner_of(workers)
    go_on(straight, made, 15)
    for tuner in (whole, resumed, straight):  # else the garbage collector waits for workers, 10 seconds a tuner
        tuner.batch_iterators = BatchIterators()
    assert straight.values() == resumed.values() and straight.hypers.read == set(straight.hypers.names)
    for a, b in zip(straight.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)
