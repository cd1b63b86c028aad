"""RevGRU and RevLSTM with a response: what they compute in a pass, their gradients, their rates, and the way back.

The reference is the same net with stored states, by plain autograd, each row with weights and biases of its own.
"""

import io
import pickle
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import revtune as rt
from revtune.joint.rev_layers import ResponseRev
from revtune.tuning.hypers.hyperparameters import Pass
from revtune.tuning.responses.linearized import second_pass
from revtune.tuning.tuner.bilevel import BilevelProblem, linearized_prediction
from tests.stored import relative, stored_scan

BACKENDS = ("reference", "native")
nets = pytest.mark.parametrize("rev", [rt.RevGRU, rt.RevLSTM])
ROWS, STEPS, INPUTS, HIDDEN = 3, 7, 5, 8


class Tagger(nn.Module):
    """A net of one recurrent layer and a readout."""

    def __init__(self, rev: Any, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn = rev(INPUTS, HIDDEN, **options)
        self.head = nn.Linear(HIDDEN * self.rnn.directions, 3).to(self.rnn.weight_ih_l0.dtype)

    def forward(self, x: Tensor, hx: Any = None) -> Tensor:
        y, _ = self.rnn(x, hx)
        return self.head(y)


def tuning(net: Tagger, hypers: rt.Hyperparameters | None = None) -> Any:
    """The net converted, whichever dimension of its batches is examples."""
    return rt.self_tuning(net, hypers, batch_dim=0 if net.rnn.batch_first else 1)


def converted(rev: Any, names: tuple[str, ...] = ("drop", "other"), **options: Any) -> Any:
    """A tagger that responds to hyperparameters which tune none of its rates, with responses that are not zero."""
    hypers = rt.Hyperparameters(**{name: rt.Rate(0.3) for name in names})
    net: Any = tuning(Tagger(rev, **options), hypers)
    for name, parameter in net.named_parameters():
        if "response_s" in name:
            nn.init.normal_(parameter, std=0.3)
    return net


def passing(net: Any, d: Tensor, **options: Any) -> Any:
    """A training pass at these departures."""
    raw = net.hypers.raw.detach() + d
    return net.hypers.bound(Pass(len(d), d, raw, **options))


def departures(net: Any, rows: int = ROWS) -> Tensor:
    return torch.randn(rows, len(net.hypers.names), generator=torch.Generator().manual_seed(5)).to(net.hypers.raw)


def problem_of(net: Any) -> BilevelProblem:
    """Predictions of the recurrent layer's outputs; no loss is asked for."""

    def no_loss(*_: Any) -> Tensor:
        raise AssertionError

    return BilevelProblem(net.rnn, net.hypers, lambda model, x: model(x)[0], no_loss, no_loss, lambda x: x.shape[1])


def stored(net: Any, x: Tensor, d: Tensor) -> Tensor:
    """Outputs (T, B, H) of a net's layers with stored states."""
    layer: Any = net.rnn
    for number in range(layer.num_layers):
        own = {name: getattr(layer, f"{name}_l{number}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
        response = {side: getattr(layer, f"response_weight_{side}_l{number}") for side in ("ih", "hh")}
        scales = {side: d @ getattr(layer, f"response_scale_{side}_l{number}").T for side in ("ih", "hh")}
        bias = own["bias_ih"] + own["bias_hh"] + d @ getattr(layer, f"response_shift_l{number}").T
        weights = {"ih": own["weight_ih"], "hh": own["weight_hh"], "bias": bias}
        state = tuple(x.new_zeros(x.shape[1], HIDDEN) for _ in layer.cell.states)
        pairs = {side: (response[side], scales[side]) for side in ("ih", "hh")}
        x, _ = stored_scan(layer.cell, x, state, weights=weights, responses=pairs)
    return x


@nets
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("double", [False, True])
def test_gradients_are_those_of_stored_states(rev: Any, layers: int, double: bool, backend: str) -> None:
    dtype = torch.float64 if double else torch.float32
    net = converted(rev, num_layers=layers, dtype=dtype)
    x, d = torch.randn(STEPS, ROWS, INPUTS, dtype=dtype), departures(net).requires_grad_()
    weights = [*net.parameters(), d]
    loss = torch.randn(STEPS, ROWS, HIDDEN, dtype=dtype)
    with passing(net, d):
        given = net.rnn(x)[0]
        found = torch.autograd.grad((given * loss).sum(), weights, allow_unused=True)
    wanted_y = stored(net, x, d)
    wanted = torch.autograd.grad((wanted_y * loss).sum(), weights, allow_unused=True)
    close = 1e-12 if double else 1e-5
    assert relative(given.detach(), wanted_y.detach()) < close
    for (name, _), one, other in zip([*net.named_parameters(), ("d", d)], found, wanted, strict=True):
        assert (one is None) == (other is None), name
        assert one is None or relative(one, other) < close, name


@nets
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("double", [False, True])
def test_a_linear_prediction_and_its_gradients(rev: Any, layers: int, double: bool, backend: str) -> None:
    """The tangent is the derivative of stored outputs for the size of departures, and its gradients are autograd's."""
    dtype = torch.float64 if double else torch.float32
    net = converted(rev, num_layers=layers, dtype=dtype)
    x, d = torch.randn(STEPS, ROWS, INPUTS, dtype=dtype), departures(net)
    added = {name: p for name, p in net.named_parameters() if "response" in name and name.startswith("rnn")}

    def loss(y: Tensor) -> Tensor:
        return (y.tanh() * torch.linspace(-1, 1, HIDDEN, dtype=dtype)).sum()

    problem = problem_of(net)
    for parameter in [p for name, p in net.named_parameters() if "response" not in name]:
        parameter.requires_grad_(False)
    with second_pass():
        out, linear = linearized_prediction(problem, x, net.hypers.raw.detach() + d, d)
    size = torch.zeros((), dtype=dtype, requires_grad=True)
    still = stored(net, x, size * d)
    cotangent = torch.zeros_like(still).requires_grad_()
    (gradient,) = torch.autograd.grad(still, size, cotangent, create_graph=True)
    (moved,) = torch.autograd.grad(gradient, cotangent, create_graph=True)
    close = 1e-12 if double else 1e-5
    assert relative(out.detach(), still.detach()) < close
    assert relative(linear.detach(), (still + moved).detach()) < close
    (dy,) = torch.autograd.grad(loss(linear), linear)
    found = torch.autograd.grad(out, list(added.values()), dy)
    wanted = torch.autograd.grad(loss(still.detach() + moved), list(added.values()))
    for name, one, other in zip(added, found, wanted, strict=True):
        assert relative(one, other) < close, name


@nets
@pytest.mark.parametrize(
    "options",
    [{"bidirectional": True, "num_layers": 2}, {"output": "last"}, {"output": "last", "bidirectional": True}],
    ids=str,
)
def test_a_linear_prediction_moves_as_the_prediction_does(rev: Any, options: dict[str, Any]) -> None:
    """In float64 a hundred thousandth of a departure moves outputs by so much of the tangent, but for rounded gates."""
    net = converted(rev, dtype=torch.float64, max_forget_bits=None, forgetting=False, **options)
    x, d = torch.randn(STEPS, ROWS, INPUTS, dtype=torch.float64), departures(net)
    problem = problem_of(net)
    with second_pass():
        out, linear = linearized_prediction(problem, x, net.hypers.raw.detach() + d, d)
    with passing(net, 1e-4 * d), torch.no_grad():
        ahead = net.rnn(x)[0]
    with passing(net, -1e-4 * d), torch.no_grad():
        behind = net.rnn(x)[0]
    assert relative((linear - out).detach(), (ahead - behind) / 2e-4) < 1e-5


@nets
def test_at_no_departure_it_is_the_plain_layer(rev: Any, backend: str) -> None:
    net, plain = converted(rev), Tagger(rev)
    x = torch.randn(STEPS, ROWS, INPUTS)
    with pytest.warns(UserWarning, match="tunes itself and was called with gradients"):
        assert torch.equal(net(x), plain(x))
    with passing(net, torch.zeros(ROWS, 2)):
        torch.testing.assert_close(net(x), plain(x), atol=2e-3, rtol=0.0)


@nets
@pytest.mark.parametrize(
    "options",
    [{"bidirectional": True}, {"output": "last"}, {"batch_first": True}, {"bias": False}, {"num_layers": 2}],
    ids=str,
)
def test_each_row_goes_by_its_own_departure(rev: Any, options: dict[str, Any], backend: str) -> None:
    net = converted(rev, **options)
    x, d = torch.randn(STEPS, ROWS, INPUTS), departures(net)
    axis = 0 if options.get("batch_first") or options.get("output") == "last" else 1
    with passing(net, d):
        whole = net(x.transpose(0, 1) if options.get("batch_first") else x)
    for row in range(ROWS):
        one = x[:, row : row + 1]
        with passing(net, d[row : row + 1]):
            alone = net(one.transpose(0, 1) if options.get("batch_first") else one)
        torch.testing.assert_close(whole.select(axis, row), alone.select(axis, 0), atol=2e-3, rtol=0.0)


@nets
def test_packed_rows_keep_their_departures(rev: Any, backend: str) -> None:
    net, x, lengths = converted(rev), torch.randn(STEPS, ROWS, INPUTS), torch.tensor([3, 7, 5])
    d = departures(net)
    with passing(net, d):
        y, _ = pad_packed_sequence(net.rnn(pack_padded_sequence(x, lengths, enforce_sorted=False))[0])
        whole, _ = net.rnn(x)
    for row, length in enumerate(lengths):
        torch.testing.assert_close(y[:length, row], whole[:length, row], atol=2e-3, rtol=0.0)


@nets
@pytest.mark.parametrize("name", ["input_dropout", "hidden_dropout", "output_dropout", "dropout"])
def test_each_row_drops_at_its_own_rate(rev: Any, name: str, backend: str) -> None:
    """A row at a rate of nearly 1 is what it is where all is dropped, and one at a rate of nearly 0 as if none were."""
    hypers = rt.Hyperparameters(**{name: rt.Rate(0.5)})
    net: Any = tuning(Tagger(rev, num_layers=2), hypers)
    x, raw = torch.randn(STEPS, 2, INPUTS), torch.tensor([[-15.0], [15.0]])
    with net.hypers.bound(Pass(2, torch.zeros(2, 1), raw)):
        y, _ = net.rnn(x)
    torch.testing.assert_close(y[:, 0], Tagger(rev, num_layers=2).rnn(x)[0][:, 0], atol=2e-3, rtol=0.0)
    whole: Any = Tagger(rev, num_layers=2, **{name: 1.0}).rnn.train()
    torch.testing.assert_close(y[:, 1], whole(x)[0][:, 1], atol=2e-3, rtol=0.0)


@nets
def test_one_mask_drops_weights_and_their_responses(rev: Any, backend: str) -> None:
    net: Any = tuning(Tagger(rev), rt.Hyperparameters(weight_drop=rt.Rate(0.9999, per="batch")))
    nn.init.normal_(net.rnn.response_scale_hh_l0)
    x, d, raw = torch.randn(STEPS, ROWS, INPUTS), torch.ones(ROWS, 1), net.hypers.raw.detach().expand(ROWS, 1)
    with net.hypers.bound(Pass(ROWS, d, raw)):
        dropped, _ = net.rnn(x)
    nn.init.zeros_(net.rnn.weight_hh_l0)
    nn.init.zeros_(net.rnn.response_weight_hh_l0)
    with net.hypers.bound(Pass(ROWS, d, raw)):
        torch.testing.assert_close(dropped, net.rnn(x)[0])


def test_every_dropout_argument_becomes_a_rate_of_its_name() -> None:
    rates = {"input_dropout": 0.1, "hidden_dropout": 0.2, "weight_drop": 0.3, "dropout": 0.4}
    net: Any = tuning(Tagger(rt.RevGRU, num_layers=2, **rates))
    values = net.hypers.values()
    assert values == {**{f"rnn.{name}": rate for name, rate in rates.items()}, "rnn.output_dropout": 0.05}
    assert net.hypers.spec("rnn.weight_drop").per == "batch"
    assert "output_dropout was 0, and starts at 0.05" in net.conversion.replaced["rnn"]
    assert "rnn.dropout" not in tuning(Tagger(rt.RevLSTM)).hypers.names


def test_a_rate_of_weights_is_one_for_the_batch() -> None:
    with pytest.raises(ValueError, match="weight_drop"):
        tuning(Tagger(rt.RevGRU), rt.Hyperparameters(weight_drop=rt.Rate(0.1)))


@nets
@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_a_copy_reads_its_own_hyperparameters(rev: Any, how: str) -> None:
    net: Any = tuning(Tagger(rev, input_dropout=0.4))
    copied: Any
    if how == "pickle":
        copied = pickle.loads(pickle.dumps(net))
    else:
        torch.save(net, saved := io.BytesIO())
        saved.seek(0)
        copied = torch.load(saved, weights_only=False)
    with torch.no_grad():
        copied.hypers.raw.fill_(15.0)
    assert copied.rnn._rate("input_dropout") > 0.99 and net.rnn._rate("input_dropout") == pytest.approx(0.4)


@nets
@pytest.mark.parametrize("method", ["stn", "delta"])
def test_a_tuned_net_learns_and_freezes(rev: Any, method: Any, backend: str) -> None:
    net: Any = tuning(Tagger(rev, batch_first=True, input_dropout=0.2, weight_drop=0.1))
    data = [(torch.randn(6, STEPS, INPUTS), torch.randint(3, (6, STEPS))) for _ in range(6)]
    tuner = rt.Tuner(
        net,
        lambda out, batch, h: F.cross_entropy(out.transpose(1, 2), batch[1], reduction="none").mean(1),
        lambda out, batch: F.cross_entropy(out.transpose(1, 2), batch[1]),
        optimizer=lambda params: torch.optim.Adam(params, 0.01),
        method=method,
    )
    losses = [tuner.step(data[i % 4], data[4 + i % 2])[0] for i in range(24)]
    assert sum(losses[-4:]) < sum(losses[:4]) and all(scale.any() for scale in [net.rnn.response_scale_hh_l0])
    plain: Any = rt.frozen(net).eval()
    assert type(plain.rnn) is rev and not [name for name in plain.state_dict() if "response" in name]
    assert plain.rnn.options.input_dropout == pytest.approx(tuner.values()["rnn.input_dropout"])
    torch.testing.assert_close(plain(data[0][0]), net.eval()(data[0][0]), atol=2e-3, rtol=0.0)


def test_rows_that_are_not_the_batch_are_refused() -> None:
    net = converted(rt.RevGRU)
    with passing(net, departures(net)), pytest.raises(ValueError, match=re.escape("rnn")):
        net.rnn(torch.randn(STEPS, ROWS + 1, INPUTS))
    with passing(net, departures(net)), pytest.raises(ValueError, match="must have a batch and three dimensions"):
        net.rnn(torch.randn(STEPS, INPUTS))


def test_a_computed_weight_is_left_alone() -> None:
    net = Tagger(rt.RevGRU)
    nn.utils.parametrizations.weight_norm(net.rnn, "weight_hh_l0")
    with pytest.warns(UserWarning, match="ParametrizationList has no response"):
        tuned = tuning(net, rt.Hyperparameters(drop=rt.Rate(0.1)))
    assert not isinstance(tuned.rnn, ResponseRev)
    assert tuned.conversion.left["rnn"] == "its weight_hh_l0 is no parameter of its own"
