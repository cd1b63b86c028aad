"""The alternation: who steps when, what is saved and resumed to the bit, what is refused, that values are tuned."""

import gc
import sys
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from revtune.errors import NonFiniteError
from revtune.tuning.conversion.convert import self_tuning
from revtune.tuning.conversion.freeze import frozen
from revtune.tuning.conversion.plan import Conversion
from revtune.tuning.hypers.hyperparameters import Hyperparameters
from revtune.tuning.hypers.kinds import Positive, Rate
from revtune.tuning.trees import tensors
from revtune.tuning.tuner.tuner import Tuner
from tests import small_tuner
from tests.tuned_nets import adopt

methods = pytest.mark.parametrize("method", ["delta", "stn"])


class Net(nn.Module):
    """A classifier whose loss reads its two hyperparameters."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.first, self.drop, self.last = nn.Linear(6, 8), nn.Dropout(0.3), nn.Linear(8, 3)
        self.hypers = Hyperparameters(noise=Rate(0.2), decay=Positive(0.01), **options)
        self.conversion = Conversion()
        adopt(self, self.hypers)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(self.drop(F.relu(self.first(x))))
        return found


def train_loss(out: Tensor, batch: Any, h: Any) -> Tensor:
    return F.cross_entropy(out + h.noise[:, None], batch[1], reduction="none") * (1 + h.decay)


def valid_loss(out: Tensor, batch: Any) -> Tensor:
    return F.cross_entropy(out, batch[1])


def tuner(method: Any = "delta", seed: int = 0, **options: Any) -> Tuner:
    torch.manual_seed(seed)
    given: dict[str, Any] = {"optimizer": lambda params: torch.optim.SGD(params, 0.1, momentum=0.9), **options}
    return Tuner(Net(), train_loss, valid_loss, method=method, **given)


def data(rows: int = 40, seed: int = 0) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 6, generator=generator)
    return TensorDataset(x, x[:, :3].argmax(1))


def loaders(**options: Any) -> tuple[DataLoader[Any], DataLoader[Any]]:
    return DataLoader(data(), 5, shuffle=True, **options), DataLoader(data(12, 1), 5, shuffle=True, **options)


def everything(of: Tuner) -> dict[str, Tensor]:
    return {name: v.clone() for name, v in of.model.state_dict().items() if isinstance(v, Tensor)}


@methods
def test_validation_steps_come_after_the_warm_up_and_at_their_ratio(method: str) -> None:
    of = tuner(method, warmup=3, ratio=2)
    train, valid = loaders()
    due = []
    for batch, held_out in of.batches(train, valid):
        due.append(held_out is not None)
        before = of.hypers.raw.detach().clone()
        _, validated = of.step(batch, held_out)
        assert (validated is not None) == due[-1]
        assert torch.equal(before, of.hypers.raw) != due[-1]
    assert due == [False, False, False, False, True, False, True, False]
    assert of.steps == 8 and of.valid_steps == 2 == len(of.history.records)


def test_a_due_validation_step_wants_its_batch() -> None:
    of = tuner(ratio=1)
    with pytest.raises(ValueError, match="a validation step is due, so held_out must be a batch, got None"):
        of.step((torch.randn(4, 6), torch.zeros(4, dtype=torch.long)))
    assert of.steps == 0


@methods
@pytest.mark.parametrize("stop", [3, 8, 11])
def test_a_saved_run_goes_on_to_the_bit(method: str, stop: int, tmp_path: Path) -> None:
    """Also in the middle of a pass over shuffled data, through a file that is read without unpickling."""

    def run(of: Tuner, steps: int) -> None:
        train, valid = loaders()
        while of.steps < steps:
            for batch, held_out in of.batches(train, valid):
                of.step(batch, held_out)
                if of.steps == steps:
                    return

    whole, begun = tuner(method), tuner(method)
    run(whole, 17)
    torch.manual_seed(0)
    begun = tuner(method)
    run(begun, stop)
    torch.save(begun.state_dict(), tmp_path / "tuner.pt")
    other = tuner(method, seed=5)
    other.load_state_dict(torch.load(tmp_path / "tuner.pt", weights_only=True))
    run(other, 17)
    assert all(torch.equal(value, everything(other)[name]) for name, value in everything(whole).items())
    pairs = zip(whole.history.records, other.history.records, strict=True)
    assert all(one["values"] == two["values"] and one["valid"] == two["valid"] for one, two in pairs)


def test_a_loaded_state_puts_back_the_generators_of_the_networks_device(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("revtune.tuning.tuner.tuner.set_random_states", lambda states, device=None: seen.append(device))
    of = tuner()
    of.load_state_dict(of.state_dict())
    assert seen == [torch.device("cpu")]


@methods
@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_a_step_that_fails_leaves_the_last_good_state(method: str, bad: str) -> None:
    of, (train, valid) = tuner(method), loaders()
    for batch, held_out in of.batches(train, valid):
        of.step(batch, held_out)
    before, (x, target) = everything(of), next(iter(train))
    if bad == "loss":
        x = x * float("nan")
    else:
        of.model.get_parameter("first.weight").register_hook(lambda grad: grad * float("inf"))
    told = "loss is nan" if bad == "loss" else "gradient of the weights is not finite"
    with pytest.raises(NonFiniteError, match=told):
        of.train_step((x, target))
    assert all(torch.equal(value, before[name]) for name, value in everything(of).items())
    assert all(p.grad is None for p in of.model.parameters()) and of.steps == 8
    with pytest.raises(NonFiniteError, match="the validation loss is nan"):
        of.valid_step((x * float("nan"), target))
    assert all(torch.equal(value, before[name]) for name, value in everything(of).items())


def test_gradients_of_several_batches_are_one_update() -> None:
    """Without perturbations and dropout two halves of a batch are the batch."""
    found = []
    x, target = data(8).tensors
    for accumulate in (1, 2):
        of = tuner("stn", accumulate=accumulate, warmup=9)
        of.model.drop.p = 0.0  # type: ignore[union-attr]
        with torch.no_grad():
            of.hypers.spread.fill_(-40.0)
        for part in range(accumulate):
            rows = slice(part * 8 // accumulate, (part + 1) * 8 // accumulate)
            of.train_step((x[rows], target[rows]))
        found.append(everything(of))
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], msg=name)


@methods
def test_gradients_that_wait_for_their_update_are_saved(method: str) -> None:
    parts = [data(8, seed).tensors for seed in range(4)]
    whole, begun, other = (tuner(method, accumulate=2, warmup=9, seed=seed) for seed in (0, 0, 5))
    torch.manual_seed(1)
    for part in parts:
        whole.train_step(part)
    torch.manual_seed(1)
    for part in parts[:3]:
        begun.train_step(part)
    other.load_state_dict(begun.state_dict())
    other.train_step(parts[3])
    assert all(torch.equal(value, everything(other)[name]) for name, value in everything(whole).items())


@methods
def test_gradients_of_others_are_no_part_of_an_update(method: str) -> None:
    """As a loop that learns before leaves them, or a backward of the user's own between steps."""
    found = []
    for others in (False, True):
        of = tuner(method, accumulate=2, warmup=9)
        for i in range(4):
            if others and i % 2 == 0:
                for p in of.model.parameters():
                    p.grad = torch.ones_like(p)
            torch.manual_seed(i)
            of.train_step(data(8, i).tensors)
        found.append(everything(of))
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


@methods
def test_a_batch_that_fails_leaves_gradients_that_wait(method: str) -> None:
    x, target = data(8).tensors
    of = tuner(method, accumulate=3, warmup=9)
    of.train_step((x, target))
    before = [None if p.grad is None else p.grad.clone() for group in of.groups for p in group]
    with pytest.raises(NonFiniteError):
        of.train_step((x * float("nan"), target))
    after = [p.grad for group in of.groups for p in group]
    for was, grad in zip(before, after, strict=True):
        assert (was is None) == (grad is None) and (was is None or grad is None or torch.equal(was, grad))
    other = tuner(method, accumulate=2, warmup=9)
    with pytest.raises(ValueError, match="gradients that wait for accumulate=3, this tuner's is 2"):
        other.load_state_dict(of.state_dict())


def root(out: Tensor, batch: Any, h: Any) -> Tensor:
    """Losses that are finite at 0, where their gradients are not."""
    return F.cross_entropy(out, batch[1], reduction="none") + (out * batch[2]).sum(1).abs().sqrt()


@methods
@pytest.mark.parametrize("options", [{}, {"scaler": torch.amp.GradScaler("cpu", enabled=False)}, {"accumulate": 2}])
def test_gradients_that_are_not_finite_are_refused_where_they_come(method: Any, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    net = self_tuning(nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 3)))
    of = Tuner(net, root, lambda out, batch: F.cross_entropy(out, batch[1]), method=method,
               optimizer=lambda groups: torch.optim.SGD(groups, 0.1), **options)  # fmt: skip
    batch = torch.randn(6, 4), torch.randint(3, (6,))
    of.train_step((*batch, torch.ones(6, 3)))
    of.train_step((*batch, torch.ones(6, 3)))
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    with pytest.raises(NonFiniteError, match="the gradient of the weights is not finite; they are as before this step"):
        of.train_step((*batch, torch.zeros(6, 3)))
    assert of.steps == 2 and all(torch.equal(p, before[name]) for name, p in net.named_parameters())
    for _ in range(2):
        of.train_step((*batch, torch.ones(6, 3)))
    assert all(bool(p.isfinite().all()) for p in net.parameters())


def test_a_schedule_of_the_users_own_moves_the_learning_rate() -> None:
    of = tuner("stn", warmup=9)
    schedule = torch.optim.lr_scheduler.StepLR(of.optimizer, 1, 0.0)
    of.train_step(data(8).tensors)
    schedule.step()
    of.optimizer.state.clear()  # momentum goes on by itself
    before = everything(of)
    of.train_step(data(8).tensors)
    assert all(torch.equal(value, before[name]) for name, value in everything(of).items())


@methods
def test_a_scaler_that_overflows_takes_no_step_and_is_saved(method: str) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    of, batch = tuner(method, scaler=scaler, warmup=9), data(8).tensors
    of.train_step(batch)
    before = everything(of)
    hook = of.model.get_parameter("last.weight").register_hook(lambda grad: grad * float("inf"))
    of.train_step(batch)
    hook.remove()
    assert scaler.get_scale() == 4.0
    assert all(torch.equal(value, before[name]) for name, value in everything(of).items())
    other = tuner(method, scaler=torch.amp.GradScaler("cpu", init_scale=2.0), warmup=9, seed=5)
    other.load_state_dict(of.state_dict())
    for one in (of, other):
        torch.manual_seed(1)
        one.train_step(batch)
    assert all(torch.equal(value, everything(other)[name]) for name, value in everything(of).items())


def test_weights_and_responses_are_clipped_each_by_itself() -> None:
    of = tuner(clip=1e-3, optimizer=lambda params: torch.optim.SGD(params, 1.0), warmup=9)
    before = [torch.cat([p.detach().flatten().clone() for p in group]) for group in of.groups]
    of.train_step(data(8).tensors)
    for group, was in zip(of.groups, before, strict=True):
        moved = torch.cat([p.detach().flatten() for p in group]) - was
        assert moved.norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_a_recurrent_state_is_carried_on_each_level_by_itself() -> None:
    seen: dict[str, list[float]] = {"train": [], "valid": []}
    torch.manual_seed(0)
    net = Net()

    def predict(model: nn.Module, batch: Any, state: Tensor | None) -> tuple[Tensor, Tensor]:
        bound = net.hypers.current
        assert bound is not None and (state is None or not state.requires_grad)
        level = "train" if bound.training else "valid"
        seen[level].append(0.0 if state is None else state.item())
        after = (torch.zeros(()) if state is None else state) + 1
        return model(batch[0]), after + 0 * net.last.weight.sum()

    of = Tuner(net, train_loss, valid_loss, optimizer=lambda params: torch.optim.SGD(params, 0.1), predict=predict,
               carry=True, method="delta", ratio=1)  # fmt: skip
    train, valid = loaders()
    for (batch, held_out), _ in zip(of.batches(train, valid), range(3), strict=False):
        of.step(batch, held_out)
    assert seen["valid"] == [0, 1, 2] and seen["train"] == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]  # one more in the first step


def test_a_scaler_and_autocast_train() -> None:
    low = lambda: torch.autocast("cpu", torch.bfloat16)  # noqa: E731
    of = tuner(scaler=torch.amp.GradScaler("cpu", init_scale=8.0), autocast=low)
    train, valid = loaders()
    losses = [of.step(*both)[0] for _ in range(6) for both in of.batches(train, valid)]
    assert sum(losses[-8:]) < 0.8 * sum(losses[:8])
    with low(), pytest.raises(RuntimeError, match="must not run inside torch.autocast"):
        of.train_step(data(8).tensors)


def test_a_hyperparameter_that_nobody_reads_is_named() -> None:
    torch.manual_seed(0)
    of = Tuner(Net(idle=Rate(0.5)), train_loss, valid_loss, optimizer=lambda params: torch.optim.SGD(params, 0.1))
    with pytest.warns(UserWarning, match="nobody read hyperparameter 'idle' in a training step"):
        of.train_step(data(8).tensors)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        of.train_step(data(8).tensors)


def decaying(params: list[dict[str, Any]]) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for group in params for p in group["params"]], 0.1, weight_decay=0.1)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"method": "both"}, 'method must be "delta" or "stn", got \'both\''),
        ({"ratio": 0}, "ratio must be an integer of at least 1, got 0"),
        ({"warmup": -1}, "warmup must be an integer of at least 0, got -1"),
        ({"accumulate": 1.5}, "accumulate must be an integer of at least 1, got 1.5"),
        ({"optimizer": torch.optim.SGD([torch.zeros(1)], 0.1)}, "optimizer must be a factory"),
        ({"optimizer": lambda params: torch.optim.SGD([torch.zeros(1)], 0.1)}, "lacks 10 of them and holds 1 others"),
        ({"optimizer": decaying}, "the optimizer decays responses by weight_decay=0.1"),
    ],
)
def test_what_cannot_work_is_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError) as refused:
        tuner(**options)
    assert told in str(refused.value)


def test_a_network_that_was_not_converted_is_refused() -> None:
    with pytest.raises(ValueError, match="wants a network that self_tuning converted, got Linear"):
        Tuner(nn.Linear(2, 2), train_loss, valid_loss, optimizer=lambda params: torch.optim.SGD(params, 0.1))


def test_optimizers_decay_of_weights_leaves_responses_alone() -> None:
    of = tuner(optimizer=lambda params: torch.optim.SGD(params, 0.1, weight_decay=0.1))
    assert [group["weight_decay"] for group in of.optimizer.param_groups] == [0.1, 0.0]


def test_held_out_data_without_a_batch_are_refused() -> None:
    of = tuner(ratio=1)
    with pytest.raises(ValueError, match="the validation data hold no batch"):
        next(of.batches(loaders()[0], []))


def test_a_state_of_the_other_method_is_refused() -> None:
    with pytest.raises(ValueError, match="is of method 'stn', this tuner's is 'delta'"):
        tuner("delta").load_state_dict(tuner("stn").state_dict())


@methods
def test_a_penalty_is_tuned_to_where_held_out_loss_is_least(method: Any) -> None:
    """One weight pulled to 0 by a penalty, which held-out data want halved: `w = 1 / (1 + penalty)`, best at 1."""
    torch.manual_seed(0)
    net: Any = nn.Sequential(nn.Linear(1, 1, bias=False))
    hypers = Hyperparameters(penalty=Positive(0.1, per="batch", scale=0.3, tune_scale=False))
    adopt(net, hypers)
    net.__dict__.update(hypers=hypers, conversion=Conversion())

    def loss(out: Tensor, batch: Any, h: Any) -> Tensor:
        return (out[:, 0] - 1) ** 2 + h.penalty * out[:, 0] ** 2

    of = Tuner(net, loss, lambda out, batch: ((out[:, 0] - 0.5) ** 2).mean(), method=method, warmup=200,
               optimizer=lambda params: torch.optim.Adam(params, 0.02),
               hyper_optimizer=lambda params: torch.optim.Adam(params, 0.02))  # fmt: skip
    x: Callable[[], tuple[Tensor]] = lambda: (torch.ones(16, 1),)  # noqa: E731
    for _ in range(1200):
        of.step(x(), x())
    assert of.values()["penalty"] == pytest.approx(1.0, rel=0.1)


def test_the_history_is_kept_as_json_lines_and_drawn(tmp_path: Path) -> None:
    of, (train, valid) = tuner(), loaders()
    with pytest.raises(ValueError, match="nothing to plot"):
        of.history.plot()
    for both in of.batches(train, valid):
        of.step(*both)
    assert len(of.history) == 4
    of.history.write(tmp_path / "history.jsonl")
    assert len((tmp_path / "history.jsonl").read_text().splitlines()) == 4
    of.history.plot(tmp_path / "history.png")
    assert (tmp_path / "history.png").read_bytes()[:4] == b"\x89PNG"
    assert of.history.column("noise")[-1] == of.values()["noise"]
    numbers = of.history.numbers()
    assert numbers["values/noise"] == of.values()["noise"] and {"valid", "scales/noise", "step"} <= numbers.keys()


def test_a_plot_without_matplotlib_tells_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    of = tuner(ratio=1)
    of.step(data(8).tensors, data(8).tensors)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"needs matplotlib, .* pip install 'revtune\[program\]'"):
        of.history.plot()


# Bad steps, garbage


def normed(method: Any) -> Tuner:
    """A tuner of a network with running statistics, some steps on."""
    torch.manual_seed(0)
    net = self_tuning(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 3)))
    of = Tuner(net, lambda out, batch, h: F.cross_entropy(out, batch[1], reduction="none"), valid_loss, method=method,
               optimizer=lambda params: torch.optim.Adam(params, 0.1))  # fmt: skip
    for _ in range(4):
        of.step(data(8).tensors, data(8).tensors)
    return of


class Kept(nn.Sequential):
    """Its batch normalisation stays in evaluation mode, as in fine-tuning."""

    def train(self, mode: bool = True) -> "Kept":
        super().train(mode)
        self[1].eval()
        return self


@methods
def test_a_norm_that_is_kept_in_evaluation_mode_goes_by_its_statistics_on_both_levels(method: Any) -> None:
    torch.manual_seed(0)
    net = self_tuning(Kept(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 3)))
    statistics: Any = net.get_buffer("1.running_mean").normal_().clone()
    of = Tuner(net, lambda out, batch, h: F.cross_entropy(out, batch[1], reduction="none"), valid_loss, method=method,
               optimizer=lambda params: torch.optim.Adam(params, 0.1))  # fmt: skip
    with torch.no_grad():
        of.hypers.spread.fill_(-40.0)
    x, y = data(8).tensors
    wanted = F.cross_entropy(frozen(net).eval()(x), y).item()
    assert of.valid_step((x, y)) == pytest.approx(wanted, rel=1e-5)
    for _ in range(3):
        of.step((x, y), (x, y))
    assert torch.equal(net.get_buffer("1.running_mean"), statistics) and net.get_parameter("1.weight").std() > 0
    of.step((x[:1], y[:1]), (x[:1], y[:1]))


def test_a_validation_step_is_the_same_after_an_evaluation() -> None:
    found = []
    for rests in (False, True):
        of = normed("delta")
        of.model.train(not rests)
        found.append(of.valid_step(data(8).tensors))
    assert found[0] == found[1]


def state_of(of: Tuner) -> list[Tensor]:
    """Weights, statistics, hyperparameters and both optimizers' states."""
    saved = of.state_dict()
    return [
        t.clone() for t in tensors([saved[key] for key in ("model", "optimizer", "hyper_optimizer")], floating=False)
    ]


@methods
@pytest.mark.parametrize("level", ["train", "valid"])
def test_after_a_loss_that_is_no_number_all_is_as_before(method: Any, level: str) -> None:
    of, (x, y) = normed(method), data(8).tensors
    before, steps = state_of(of), (of.steps, of.valid_steps)
    with pytest.raises(NonFiniteError, match="loss is nan"):
        (of.train_step if level == "train" else of.valid_step)((x * float("nan"), y))
    assert len(before) > 20 and all(map(torch.equal, before, state_of(of)))
    assert steps == (of.steps, of.valid_steps) and all(p.grad is None for p in of.model.parameters())
    of.step((x, y), (x, y))


def test_a_hyperparameter_that_leaves_the_numbers_is_named_and_put_back() -> None:
    of, batch = (
        tuner(hyper_optimizer=lambda params: torch.optim.SGD(params, float("inf"), momentum=0.9)),
        data(8).tensors,
    )
    of.train_step(batch)
    with torch.no_grad():
        of.hypers.spread.fill_(-40.0)
    of.model.last.response_scale.data.normal_()  # type: ignore[union-attr, operator]
    before = state_of(of)
    with pytest.raises(NonFiniteError, match="hyperparameter 'noise' left the range of numbers in one step"):
        of.valid_step(batch)
    assert all(map(torch.equal, before, state_of(of)))


@pytest.mark.parametrize("carry", [False, True])
def test_a_tuner_goes_when_it_is_let_go_and_its_workers_with_it(carry: bool) -> None:
    """Without the garbage collector: no cycle of references holds the passes that it is in the middle of."""
    predict = (lambda model, batch, state: (model(batch[0]), state)) if carry else None
    of = tuner(carry=carry, predict=predict, ratio=1)
    train, valid = loaders(num_workers=1)
    gc.collect()
    gc.disable()
    try:
        passes = of.batches(train, valid)
        of.step(*next(passes))
        iterators = [of.batch_iterators._train.batches, of.batch_iterators._valid.batches]
        workers: list[Any] = [one for it in iterators for one in it._workers]  # type: ignore[union-attr]
        gone = weakref.ref(of)
        assert all(worker.is_alive() for worker in workers) and len(workers) == 2
        del of, passes, iterators
        assert gone() is None and not any(worker.is_alive() for worker in workers)
    finally:
        gc.enable()


@methods
@pytest.mark.parametrize("options", [{}, {"clip": 0.05}, {"accumulate": 2}])
def test_a_sparse_embedding_is_trained_as_a_dense_one(method: Any, options: dict[str, Any]) -> None:
    words, found = torch.randint(20, (8, 4)), []
    batch = (words, torch.arange(8) % 3)
    for sparse in (False, True):
        torch.manual_seed(0)
        net = self_tuning(
            nn.Sequential(nn.Embedding(20, 8, sparse=sparse), nn.Flatten(), nn.Dropout(0.1), nn.Linear(32, 3)),
            leave=["0"],
        )
        of = small_tuner.tuner(net, method=method, **options)
        for _ in range(4):
            of.step(batch, batch)
        found.append(of)
    for dense, sparse_one in zip(*map(small_tuner.everything, found), strict=True):
        torch.testing.assert_close(dense, sparse_one)
    state = found[1].state_dict()
    found[1].load_state_dict(state)
    assert torch.isfinite(torch.tensor(found[1].train_step(batch)))
