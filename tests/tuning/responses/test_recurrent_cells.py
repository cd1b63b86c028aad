"""Cells that answer to hyperparameters step by step: torch's own cells, at each example's own weights."""

import copy
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, jvp
from torch.nn.functional import cross_entropy

from revtune.tuning.conversion.convert import self_tuning
from revtune.tuning.conversion.freeze import frozen
from revtune.tuning.hypers.hyperparameters import Pass
from revtune.tuning.responses.recurrent_cells import ResponseCell
from revtune.tuning.responses.weight_norm import weight_norm2
from revtune.tuning.tuner.bilevel import BilevelProblem, linearized_prediction
from revtune.tuning.tuner.tuner import Tuner
from tests.tuned_nets import adopt, at, two, with_responses

T, B, F, H, N = 4, 5, 3, 6, 2
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")


def relu_cell(inputs: int, width: int) -> nn.RNNCell:
    return nn.RNNCell(inputs, width, nonlinearity="relu")


def unbiased_cell(inputs: int, width: int) -> nn.GRUCell:
    return nn.GRUCell(inputs, width, bias=False)


every_cell = pytest.mark.parametrize("make", [nn.LSTMCell, nn.GRUCell, nn.RNNCell, relu_cell, unbiased_cell])


class Loop(nn.Module):
    """A cell over the steps of (B, T, F), from no state or from one that a layer makes of the first input."""

    def __init__(self, make: Any, given: bool = True) -> None:
        super().__init__()
        self.first, self.cell, self.given = nn.Linear(F, H), make(F, H), given

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x[:, 0])
        state: Any = None if not self.given else (h, h.tanh()) if isinstance(self.cell, nn.LSTMCell) else h
        outputs = []
        for row in x.unbind(1):
            state = self.cell(row, state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack([*outputs, *([state[1]] if isinstance(state, tuple) else [])], 1)


def own_weights(own: Mapping[str, Tensor], d: Tensor) -> dict[str, Tensor]:
    """The weights of the plain network at one example's d, by their equations."""
    found = {name: value for name, value in own.items() if "response_" not in name}
    for name, scale in own.items():
        if ".response_scale" in name:
            weight = name.replace("response_scale", "weight")
            second = own[name.replace("scale", "weight")]
            found[weight] = own[weight] + (scale @ d)[:, None] * second
        elif ".response_shift" in name:
            bias = name.replace("response_shift", "bias" if name.startswith("first") else "bias_ih")
            found[bias] = own[bias] + scale @ d
    return found


def alone(plain: nn.Module, own: Mapping[str, Tensor], x: Tensor, d: Tensor) -> Tensor:
    """What the network should give, an example at a time."""
    return torch.cat([functional_call(plain, own_weights(own, d[b]), (x[b : b + 1],)) for b in range(len(x))])


def drawn(make: Any, given: bool = True) -> tuple[nn.Module, Any, dict[str, Tensor], Tensor, Tensor]:
    """A plain network, the same responding, its parameters, an input and examples' d."""
    torch.manual_seed(0)
    plain, hypers = Loop(make, given).double(), two().double()
    net: Any = with_responses(adopt(copy.deepcopy(plain), hypers))
    own = dict(net.named_parameters())
    net.hypers = hypers
    x, d = torch.randn(B, T, F, dtype=torch.float64), torch.randn(B, N, dtype=torch.float64)
    return plain, net, own, x, d


@pytest.mark.parametrize("given", [True, False])
@every_cell
def test_each_example_has_weights_of_its_own_and_so_have_gradients(make: Any, given: bool) -> None:
    plain, net, own, x, d = drawn(make, given)
    assert isinstance(net.cell, ResponseCell)
    wrt = [x.requires_grad_(), d.requires_grad_(), *own.values()]
    y, wanted = at(net, net.hypers, x, d), alone(plain, own, x, d)
    torch.testing.assert_close(y, wanted, atol=1e-12, rtol=1e-12)
    cotangent = torch.randn_like(y)
    found, expected = (torch.autograd.grad(z, wrt, cotangent, allow_unused=True) for z in (y, wanted))
    torch.testing.assert_close(found, expected, atol=1e-11, rtol=1e-11)


@every_cell
def test_its_linearisation_and_the_gradient_are_those_of_jvp(make: Any) -> None:
    plain, net, own, x, d = drawn(make)

    def never(*_: Any) -> Tensor:
        raise AssertionError

    problem = BilevelProblem(net, net.hypers, lambda net, batch: net(batch), never, never, len)
    with forward_ad.dual_level():
        out, linear = linearized_prediction(problem, x, d, d)
    zero, change, *_ = jvp(lambda d: alone(plain, own, x, d), (torch.zeros_like(d),), (d,))
    torch.testing.assert_close(out, zero)
    torch.testing.assert_close(linear, zero + change, atol=1e-12, rtol=1e-12)
    added = [p for name, p in own.items() if ".response_" in name]
    cotangent = torch.randn_like(linear)
    found, expected = (torch.autograd.grad(z, added, cotangent) for z in (out, zero + change))
    torch.testing.assert_close(found, expected, atol=1e-11, rtol=1e-11)


@every_cell
def test_before_training_it_is_the_plain_cell_and_later_it_folds_into_one(make: Any) -> None:
    plain, net, _, x, d = drawn(make)
    fresh: Any = adopt(copy.deepcopy(plain), hypers := two().double())
    assert torch.equal(fresh(x), plain(x))
    torch.testing.assert_close(at(fresh, hypers, x, d), plain(x))
    with net.hypers.bound(Pass(B, d, None)):
        norms = weight_norm2(net.cell)
    cell = copy.deepcopy(net.cell)
    cell.fold(d[1])
    assert type(cell) is type(make(F, H)) and [*cell.state_dict()] == [*make(F, H).state_dict()]
    torch.testing.assert_close(weight_norm2(cell), norms[1])
    other = make(F, H).double()
    net.cell.load_state_dict(other.state_dict())
    assert torch.equal(net.cell(x[:, 0])[0], other(x[:, 0])[0])
    assert not net.cell.response_scale_hh.any()


def test_an_input_without_a_batch_is_for_outside_of_passes() -> None:
    _, net, _, x, d = drawn(nn.LSTMCell)
    net.hypers.centred = False
    folded = copy.deepcopy(net.cell)
    folded.fold(net.hypers.current_departure()[0].detach())
    state = torch.randn(H, dtype=torch.float64), torch.randn(H, dtype=torch.float64)
    torch.testing.assert_close(net.cell(x[0, 0], state), folded(x[0, 0], state))
    with pytest.raises(ValueError, match=r"cell: in a pass .* must have a batch and two dimensions, got \(3,\)"):
        at(net.cell, net.hypers, x[0, 0], d)
    for given, hx in ((x[:, 0], torch.zeros(1, H)), (x, torch.zeros(B, H))):
        with (
            pytest.raises(ValueError, match=r"cell: a cell takes an input \(B, 3\) and states \(B, 6\), got"),
            net.hypers.bound(Pass(B, d, None)),
        ):
            net.cell(given, (hx.double(), hx.double()))


class Decoder(nn.Module):
    """Two beams an example, each begun by a constant: whose rows are is told by the state alone."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.encode, self.cell, self.drop, self.out = nn.Linear(F, H), cell, nn.Dropout(0.2), nn.Linear(H, 2)

    def forward(self, x: Tensor) -> Tensor:
        h: Any = self.encode(x).repeat_interleave(2, 0)
        given = torch.ones(len(h), F)
        state: Any = (h, torch.zeros_like(h)) if isinstance(self.cell, nn.LSTMCell) else h
        for _ in range(3):
            state = self.cell(given, state)
        h = state[0] if isinstance(state, tuple) else state
        return self.out(self.drop(h)).unflatten(0, (-1, 2)).mean(1)


class Mine(nn.GRUCell):
    """A cell under another name."""


@pytest.mark.parametrize("method", ["stn", "delta"])
@pytest.mark.parametrize("make", [nn.LSTMCell, nn.GRUCell, nn.RNNCell, Mine])
def test_a_network_with_a_loop_is_tuned_and_frozen(make: Any, method: Any) -> None:
    torch.manual_seed(0)
    net: Any = self_tuning(Decoder(make(F, H)))
    assert net.conversion.replaced["cell"] == f"Response{make.__name__}"

    def train_loss(out: Tensor, batch: Sequence[Tensor], h: Any) -> Tensor:
        return cross_entropy(out, batch[1], reduction="none")

    tuner = Tuner(
        net, train_loss, lambda out, batch: cross_entropy(out, batch[1]), method=method, ratio=1,
        optimizer=lambda params: torch.optim.Adam(params, 0.01),
    )  # fmt: skip
    before = {name: value.clone() for name, value in net.state_dict().items() if isinstance(value, Tensor)}
    for _ in range(3):
        tuner.step(*((torch.randn(B, F), torch.randint(2, (B,))) for _ in range(2)))
    for name in ("response_scale_ih", "response_scale_hh", "response_shift", "weight_hh"):
        assert not torch.equal(net.state_dict()[f"cell.{name}"], before[f"cell.{name}"]), name
    x = torch.randn(B, F)
    plain: Any = frozen(net)
    assert type(plain.cell) is make
    torch.testing.assert_close(plain.eval()(x), net.eval()(x))
    saved = pickle.loads(pickle.dumps(net))
    assert torch.equal(saved(x), net(x))


def test_a_cell_whose_weight_is_computed_says_so() -> None:
    cell = nn.utils.parametrizations.weight_norm(nn.GRUCell(F, H), "weight_hh")
    with pytest.warns(UserWarning):
        net: Any = self_tuning(nn.ModuleDict({"cell": cell, "out": nn.Linear(H, 2), "drop": nn.Dropout(0.1)}))
    assert "cell" in net.conversion.left
    plain: Any = self_tuning(nn.ModuleDict({"cell": nn.GRUCell(F, H), "out": nn.Linear(H, 2), "drop": nn.Dropout(0.1)}))
    nn.utils.parametrizations.weight_norm(plain["cell"], "weight_hh")
    with pytest.raises(ValueError, match="cell cannot be made plain: since it was converted its weight is computed"):
        frozen(plain)
