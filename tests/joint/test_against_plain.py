"""Streams that tune themselves, against the same net written out as plain autograd modules in float64.

Nothing here is the library's but what is tested: gates, responses, losses and penalties are written from their
equations, Delta-STN's tangent is `torch.func.jvp`'s.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import revtune as rt
from revtune.tuning.hypers.perturbation import perturbed
from revtune.tuning.tuner import bilevel
from tests.stored import relative

WORDS, STEPS, ROWS, WIDTH, UNITS, LAYERS = 11, 13, 4, 6, 8, 2
RAGGED = (13, 4, 1, 9)

Weights = dict[str, Tensor]


def grid(rate: Tensor, top: int) -> Tensor:
    """A forgetting rate as the buffer has it: limited, and a multiple of 1/1024. Gradients go straight through."""
    floor = 2.0**-3
    limited = (1 - floor) * rate + floor
    counts = (limited * 1024).round().clamp(1, top)
    return limited + (counts / 1024 - limited).detach()


def gru(gates: Callable[..., Tensor], h: list[Tensor], c: list[Tensor], half: int) -> tuple[Tensor, Tensor]:
    """A RevGRU's next half of its state; `gates(x, first, last)` gives those blocks of gates for a state x."""
    other, first = h[1 - half], 3 * half
    z, r = torch.sigmoid(gates(other, first, first + 2)).chunk(2, -1)
    z = grid(z, 1024)
    return z * h[half] + (1 - z) * torch.tanh(gates(r * other, first + 2, first + 3)), c[half]


def lstm(gates: Callable[..., Tensor], h: list[Tensor], c: list[Tensor], half: int) -> tuple[Tensor, Tensor]:
    """A RevLSTM's next half of its states."""
    f, p, i, o, g = gates(h[1 - half], 5 * half, 5 * half + 5).chunk(5, -1)
    f, p = grid(torch.sigmoid(f), 1023), grid(torch.sigmoid(p), 1023)
    cell = f * c[half] + torch.sigmoid(i) * torch.tanh(g)
    return p * h[half] + (1 - p) * torch.sigmoid(o) * torch.tanh(cell), cell


def layer(step: Any, weights: Weights, number: int, x: Tensor, d: Tensor, lengths: Tensor) -> Tensor:
    """One layer's outputs (T, B, H) at departures d (B, n)."""
    units, own = UNITS // 2, {name.split("rnn.")[-1]: value for name, value in weights.items()}

    def product(side: str, given: Tensor, rows: slice) -> Tensor:
        first, second = own[f"weight_{side}_l{number}"][rows], own[f"response_weight_{side}_l{number}"][rows]
        return given @ first.T + (d @ own[f"response_scale_{side}_l{number}"][rows].T) * (given @ second.T)

    bias = own[f"bias_ih_l{number}"] + own[f"bias_hh_l{number}"] + d @ own[f"response_shift_l{number}"].T
    h, c = ([x.new_zeros(len(d), units) for _ in range(2)] for _ in range(2))
    outputs = []
    for t, given in enumerate(x):
        projected, live = product("ih", given, slice(None)) + bias, (t < lengths)[:, None]

        def gates(state: Tensor, first: int, last: int, projected: Tensor = projected) -> Tensor:
            rows = slice(first * units, last * units)
            return projected[:, rows] + product("hh", state, rows)

        for half in range(2):
            pair = step(gates, h, c, half)
            h[half], c[half] = (torch.where(live, new, old[half]) for new, old in zip(pair, (h, c), strict=True))
        outputs.append(torch.cat(h, -1))
    return torch.stack(outputs)


def plain(step: Any, weights: Weights, d: Tensor, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and the top layer's outputs of the whole net."""
    rows = tokens[:-1]
    y = weights["words.weight"][rows] + (d @ weights["words.response_scale"].T) * weights["words.response_weight"][rows]
    for number in range(LAYERS):
        y = layer(step, weights, number, y, d, lengths)
    own = {name.removeprefix("head."): value for name, value in weights.items()}
    logits = y @ own["weight"].T + own["bias"] + d @ own["response_shift"].T
    return logits + (d @ own["response_scale"].T) * (y @ own["response_weight"].T), y


def loss(logits: Tensor, y: Tensor, tokens: Tensor, lengths: Tensor, penalties: tuple[Tensor, Tensor] | None) -> Tensor:
    """The mean of a word's loss, and AR and TAR at each row's coefficients."""
    live = (torch.arange(STEPS)[:, None] < lengths).double()
    mean = (F.cross_entropy(logits.movedim(-1, 1), tokens[1:], reduction="none") * live).sum() / live.sum()
    if penalties is None:
        return mean
    squares, steps = y.square().mean(-1), y.diff(dim=0).square().mean(-1)
    activation = (squares * live).sum(0) / lengths
    temporal = (steps * live[1:]).sum(0) / (lengths - 1).clamp(min=1)
    return mean + (penalties[0] * activation + penalties[1] * temporal).mean()


class Case:
    """A net that tunes itself, a batch, and what a step of its tuner draws."""

    def __init__(self, kind: Any, method: Any, lengths: Tensor, *, decays: bool = False) -> None:
        torch.manual_seed(0)
        parts = {
            "words": rt.Embedding(WORDS, WIDTH, dtype=torch.float64),
            "rnn": kind(WIDTH, UNITS, LAYERS, dtype=torch.float64),
            "head": rt.LinearCrossEntropy(UNITS, WORDS, dtype=torch.float64),
        }
        decay = {"decay": rt.Positive(0.3)} if decays else {}
        hypers = rt.Hyperparameters(activation=rt.Positive(1.5), temporal=rt.Positive(0.7), **decay)
        hypers.centred = method == "delta"  # as its tuner would say, if responses were still zero
        self.net: Any = rt.self_tuning(nn.ModuleDict(parts), hypers)
        for name, parameter in self.net.named_parameters():
            if "response_s" in name or name.startswith("rnn.weight"):
                nn.init.normal_(parameter, std=0.2 if "response" in name else 0.5)
        self.step, self.lengths, self.tokens = lstm if kind is rt.RevLSTM else gru, lengths, torch.randint(
            WORDS, (STEPS + 1, ROWS)
        )  # fmt: skip
        added = (lambda loss, tokens, h: loss + h.decay * rt.weight_norm2(self.net)) if decays else None
        self.tuner = rt.Tuner(
            self.net, added, stream=self.stream, optimizer=lambda own: torch.optim.SGD(own, 0.1), method=method
        )
        self.hypers, self.generator = hypers, torch.Generator()
        self.generator.set_state(self.tuner.generator.get_state())

    def stream(self, net: Any, tokens: Tensor, h: Any) -> dict[str, Any]:
        """What is streamed, in chunks with checkpoints between."""
        penalties = h and rt.ActivationPenalties(activation=h.activation, temporal=h.temporal)
        given = {"rnn": net["rnn"], "inputs": tokens[:-1], "targets": tokens[1:], "encode": net["words"]}
        return {
            **given, "readout": net["head"], "lengths": self.lengths, "checkpoint_every": 5, "penalties": penalties
        }  # fmt: skip

    @property
    def weights(self) -> Weights:
        """Copies of all weights and responses that gradients reach."""
        own = {name: p for name, p in self.net.named_parameters() if "hyperparameters" not in name}
        return {name: p.detach().clone().requires_grad_() for name, p in own.items()}

    def values(self, raw: Tensor) -> list[Tensor]:
        """All coefficients at l, (B,) each."""
        return [spec.value(raw[:, i]) for i, spec in enumerate(self.hypers.specs.values())]

    def decayed(self, weights: Weights, d: Tensor, raw: Tensor) -> Tensor:
        """The penalty on all weights as they are at d, each row's at its own coefficient."""
        total = d.new_zeros(len(d))
        for name, weight in weights.items():
            if "response" in name:
                continue
            module, _, own = name.rpartition(".")
            scale = weights.get(f"{module}.{own.replace('weight', 'response_scale')}")
            shift = weights.get(f"{module}.{own.replace('bias_ih', 'bias').replace('bias', 'response_shift')}")
            if own.startswith("weight") and scale is not None:
                units = (d @ scale.T)[:, None] if module == "words" else (d @ scale.T)[..., None]
                weight = weight + units * weights[f"{module}.{own.replace('weight', 'response_weight')}"]
            elif own.startswith("bias") and shift is not None:
                weight = weight + d @ shift.T
            else:
                weight = weight.expand(len(d), *weight.shape)
            total = total + weight.square().flatten(1).sum(1)
        return (self.values(raw)[2] * total).mean()

    def loss(self, weights: Weights, d: Tensor, raw: Tensor | None) -> Tensor:
        """The loss at departures d and, if there are regularizers, at l."""
        logits, y = plain(self.step, weights, d, self.tokens, self.lengths)
        return self.loss_of(logits, y, weights, d, raw)

    def loss_of(self, logits: Tensor, y: Tensor, weights: Weights, d: Tensor, raw: Tensor | None) -> Tensor:
        """The same of logits and outputs, whatever they are made by."""
        if raw is None:
            return loss(logits, y, self.tokens, self.lengths, None)
        activation, temporal, *decay = self.values(raw)
        mean = loss(logits, y, self.tokens, self.lengths, (activation, temporal))
        return mean + self.decayed(weights, d, raw) if decay else mean


def delta_gradients(case: Case, raw: Tensor, d: Tensor) -> tuple[Tensor, Weights]:
    """Delta-STN's loss and gradients: weights have those at d = 0, responses those of the loss of `f(0) + tangent`."""
    weights = case.weights
    own = [name for name in weights if "response" not in name]
    responses = [name for name in weights if "response" in name]
    mean = case.loss(weights, torch.zeros_like(d), case.hypers.raw.detach().expand_as(d))
    grads = dict(zip(own, torch.autograd.grad(mean, [weights[name] for name in own]), strict=True))

    def out(d: Tensor) -> tuple[Tensor, Tensor]:
        return plain(case.step, weights, d, case.tokens, case.lengths)

    both: Any = torch.func.jvp(out, (torch.zeros_like(d),), (d,))
    (logits, y), (logits_tangent, y_tangent) = both
    linear = case.loss_of(logits.detach() + logits_tangent, y.detach() + y_tangent, weights, d, raw)
    grads |= dict(zip(responses, torch.autograd.grad(linear, [weights[name] for name in responses]), strict=True))
    return mean, grads


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own jvp, when it is first used
@pytest.mark.parametrize("lengths, decays", [((STEPS,) * ROWS, False), (RAGGED, True)], ids=["whole", "ragged, decays"])
@pytest.mark.parametrize("method", ["stn", "delta"])
@pytest.mark.parametrize("kind", [rt.RevGRU, rt.RevLSTM])
def test_both_steps_give_the_gradients_of_plain_modules(
    kind: Any, method: Any, lengths: tuple[int, ...], decays: bool
) -> None:
    case = Case(kind, method, torch.tensor(lengths), decays=decays)
    raw = case.hypers.perturbed(ROWS, case.generator).detach()
    d = case.hypers.departure(raw).detach()
    if method == "stn":
        weights = case.weights
        expected = case.loss(weights, d, raw)
        grads = dict(zip(weights, torch.autograd.grad(expected, list(weights.values())), strict=True))
    else:
        expected, grads = delta_gradients(case, raw, d)
    got = getattr(bilevel, method)(case.tuner.problem, case.tokens, lambda loss: loss)
    assert got.item() == pytest.approx(expected.item(), rel=1e-6)
    for name, grad in grads.items():
        assert relative(case.net.get_parameter(name).grad, grad) < 1e-5, name


@pytest.mark.parametrize("method", ["stn", "delta"])
@pytest.mark.parametrize("kind", [rt.RevGRU, rt.RevLSTM])
def test_the_held_out_step_reaches_values_and_scales_through_responses_alone(kind: Any, method: Any) -> None:
    case, weight = Case(kind, method, torch.tensor(RAGGED)), 1e-3
    hypers = case.hypers
    got, grads = bilevel.hypergradients(case.tuner.problem, case.tokens, weight)
    now, spread = (value.detach().clone().requires_grad_() for value in (hypers.raw, hypers.spread))
    raw = perturbed(now, spread, list(hypers.specs.values()), ROWS, case.generator, tuned_only=True)
    expected = case.loss({name: value.detach() for name, value in case.weights.items()}, departure(case, raw), None)
    entropies = F.softplus(spread).log() * torch.tensor([float(spec.tune_scale) for spec in hypers.specs.values()])
    objective = expected - weight * entropies.sum()
    assert got.item() == pytest.approx(expected.item(), rel=1e-6)
    for parameter, grad in zip((hypers.raw, hypers.spread), torch.autograd.grad(objective, (now, spread)), strict=True):
        assert relative(grads[parameter], grad) < 1e-5


def departure(case: Case, raw: Tensor) -> Tensor:
    """d at l: centred at the current one for Delta-STN, in units of each one's first scale, and l itself for STN."""
    specs = list(case.hypers.specs.values())
    if case.hypers.centred:
        return (raw - case.hypers.raw.detach()) / raw.new_tensor([spec.scale for spec in specs])
    return raw / raw.new_tensor([max(1.0, abs(spec.raw()) / 3.0) for spec in specs])


@pytest.mark.filterwarnings("ignore:nobody read hyperparameter")
def test_penalties_are_off_on_held_out_data_though_their_coefficients_are_not_tuned() -> None:
    def losses(**given: Any) -> list[float]:
        case = Case(rt.RevGRU, "stn", torch.tensor(RAGGED))
        tuner = rt.Tuner(
            case.net,
            stream=lambda net, tokens, h: {**case.stream(net, tokens, None), **given},
            optimizer=lambda own: torch.optim.SGD(own, 0.1),
            method="stn",
        )
        return [tuner.valid_step(case.tokens), tuner.train_step(case.tokens)]

    free, held = losses(), losses(penalties=rt.ActivationPenalties(activation=5.0))
    assert held[0] == free[0]
    assert held[1] > free[1]
