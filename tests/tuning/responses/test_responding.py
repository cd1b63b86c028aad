"""Response layers: the plain layer at first, each example at its own hyperparameters, and what they fold into."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from revtune.tuning.hypers.hyperparameters import Pass
from revtune.tuning.responses.responding import ADDED
from tests.tuned_nets import adopt, at, responding, two, with_responses

LAYERS: list[tuple[Any, Any]] = [
    (lambda: nn.Linear(5, 4), lambda: torch.randn(6, 5)),
    (lambda: nn.Linear(5, 4, bias=False), lambda: torch.randn(6, 3, 5)),
    (lambda: nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"), lambda: torch.randn(6, 2, 5, 5)),
    (lambda: nn.Conv2d(4, 4, 3, groups=2, stride=2), lambda: torch.randn(6, 4, 7, 7)),
    (lambda: nn.Embedding(7, 4, padding_idx=0), lambda: torch.randint(7, (6, 3))),
    (lambda: nn.LayerNorm(4), lambda: torch.randn(6, 3, 4)),
    (lambda: nn.RMSNorm(4, eps=0.1), lambda: torch.randn(6, 3, 4)),
    (lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, groups=2), lambda: torch.randn(6, 4, 5)),
    (lambda: nn.ConvTranspose2d(4, 4, 2, groups=2, output_padding=1, stride=2), lambda: torch.randn(6, 4, 3, 3)),
    (lambda: nn.ConvTranspose3d(2, 3, 2, bias=False, padding=1), lambda: torch.randn(6, 2, 4, 4, 4)),
    (lambda: nn.GroupNorm(2, 4), lambda: torch.randn(6, 4, 3)),
    (lambda: nn.BatchNorm1d(4).eval(), lambda: torch.randn(6, 4)),
]
layers = pytest.mark.parametrize(("make", "draw"), LAYERS)


@layers
def test_a_converted_layer_is_the_layer_it_was(make: Any, draw: Any) -> None:
    torch.manual_seed(0)
    plain, x = make(), draw()
    hypers = two()
    layer = adopt(copy.deepcopy(plain), hypers)
    assert isinstance(layer, type(plain)) and torch.equal(layer(x), plain(x))
    torch.testing.assert_close(at(layer, hypers, x, torch.randn(6, 2)), plain(x))
    assert plain.state_dict().keys() <= layer.state_dict().keys()


@layers
def test_every_example_is_answered_at_its_own_hyperparameters(make: Any, draw: Any) -> None:
    """Each row is what a plain layer, folded at that row's d, makes of it."""
    torch.manual_seed(0)
    hypers, x, d = two(), draw(), torch.randn(6, 2)
    plain = make()
    layer = with_responses(adopt(plain, hypers))
    y = at(layer, hypers, x, d)
    for row in range(6):
        folded: Any = copy.deepcopy(layer)
        folded.fold(d[row])
        assert type(folded) is type(make()) and folded.training == layer.training
        torch.testing.assert_close(folded(x[row : row + 1]), y[row : row + 1], atol=1e-5, rtol=1e-5)


@layers
def test_plain_weights_load_and_tuned_ones_too(make: Any, draw: Any) -> None:
    weights = make().state_dict()
    layer, other = (with_responses(adopt(make(), two()), seed) for seed in (1, 2))
    layer.load_state_dict(weights)
    assert all(torch.equal(layer.state_dict()[name], value) for name, value in weights.items())
    assert not any(value.any() for name, value in layer.named_parameters() if name.startswith(ADDED[1:]))
    with_responses(layer, 1)
    other.load_state_dict(layer.state_dict())
    assert all(torch.equal(other.state_dict()[name], value) for name, value in layer.state_dict().items())


def test_weights_without_a_layers_own_leave_its_response() -> None:
    net = with_responses(adopt(nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)), two()))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.load_state_dict({name: value for name, value in before.items() if name in ("0.weight", "0.bias")}, strict=False)
    assert not net.get_parameter("0.response_scale").any() and not net.get_parameter("0.response_shift").any()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items() if name[0] == "1")


def test_a_response_has_the_gradient_of_its_equation() -> None:
    hypers = two().double()
    layer: Any = with_responses(adopt(nn.Linear(3, 2).double(), hypers))
    x, d = torch.randn(4, 3, dtype=torch.float64, requires_grad=True), torch.randn(4, 2, dtype=torch.float64)
    d.requires_grad_()

    def run(x: Tensor, d: Tensor, *weights: Tensor) -> Tensor:
        names = [name for name, _ in layer.named_parameters()]
        with hypers.bound(Pass(4, d, None)):
            found: Tensor = torch.func.functional_call(layer, dict(zip(names, weights, strict=True)), (x,))
        return found

    assert torch.autograd.gradcheck(run, (x, d, *layer.parameters()))


def test_time_may_come_first_or_be_flattened_into_rows() -> None:
    torch.manual_seed(0)
    d, x = torch.randn(4, 2), torch.randn(7, 4, 5)
    for batch_dim in (0, 1):
        hypers = two()
        layer: Any = with_responses(adopt(nn.Linear(5, 3), hypers, batch_dim))
        shaped = x if batch_dim else x.transpose(0, 1).contiguous()
        y = at(layer, hypers, shaped, d)
        layer.rows = ("together", "alternating")[batch_dim]
        torch.testing.assert_close(at(layer, hypers, shaped.flatten(0, 1), d), y.flatten(0, 1))
        layer.rows = None
        with pytest.raises(ValueError, match=r"whose they are is not known; .*rows=\{'': \"together\"\}"):
            at(layer, hypers, shaped.flatten(0, 1), d)
        last = shaped.select(1 - batch_dim, 6)
        torch.testing.assert_close(at(layer, hypers, last, d), y.select(1 - batch_dim, 6))


def test_rows_that_are_no_batch_are_refused_by_the_layers_name() -> None:
    hypers = two()
    net = adopt(nn.Sequential(nn.Linear(5, 3)), hypers)
    with pytest.raises(ValueError, match=r"0: dimension 0 of its input \(9, 5\) must be the batch of 4 examples"):
        at(net, hypers, torch.randn(9, 5), torch.randn(4, 2))


def test_padding_is_not_answered() -> None:
    hypers = two()
    layer = with_responses(adopt(nn.Embedding(5, 3, padding_idx=0), hypers))
    assert not at(layer, hypers, torch.zeros(4, 2, dtype=torch.long), torch.randn(4, 2)).any()


def test_a_copy_has_hyperparameters_of_its_own() -> None:
    hypers = two()
    net = nn.Sequential(adopt(nn.Linear(5, 3), hypers), nn.Linear(3, 3))
    other: Any = copy.deepcopy(net)
    assert other[0].hypers is not hypers


def test_under_autocast_a_layer_computes_in_the_low_precision() -> None:
    hypers = two()
    layer = with_responses(adopt(nn.Linear(5, 3), hypers))
    x, d = torch.randn(4, 5), torch.randn(4, 2)
    with torch.autocast("cpu", torch.bfloat16):
        y = at(layer, hypers, x, d)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), at(layer, hypers, x, d), atol=0.1, rtol=0.1)


def test_the_second_weight_is_as_spread_as_the_first() -> None:
    layer: Any = adopt(nn.Linear(300, 300), two())
    assert layer.response_weight.std().item() == pytest.approx(layer.weight.std().item(), rel=0.05)
    assert len(responding(layer)) == 1 and F.relu(layer.response_weight).any()


@pytest.mark.parametrize("rows", [4, 6, 12])
def test_positions_are_no_examples(rows: int) -> None:
    """An embedding of numbers that all examples share gives the same with and without hyperparameters."""
    hypers = two()
    layer: Any = with_responses(adopt(nn.Embedding(12, 3), hypers))
    with pytest.warns(UserWarning, match=r"are the same for all 6 examples, as positions are"):
        y = at(layer, hypers, torch.arange(rows), torch.randn(6, 2))
    assert torch.equal(y, F.embedding(torch.arange(rows), layer.weight))
    one_row = at(layer, hypers, torch.arange(rows)[None], torch.randn(6, 2))
    assert torch.equal(one_row[0], y)
    labels = at(layer, hypers, torch.tensor([1, 0, 2, 3, 4, 5]), torch.randn(6, 2))
    assert not torch.equal(labels, F.embedding(torch.tensor([1, 0, 2, 3, 4, 5]), layer.weight))


ONE_ROW: list[tuple[Any, Any]] = [
    (lambda: nn.Linear(5, 4), (1, 7, 5)),
    (lambda: nn.Linear(5, 4), (5,)),
    (lambda: nn.LayerNorm(5), (1, 7, 5)),
    (lambda: nn.RMSNorm(5), (5,)),
    (lambda: nn.BatchNorm2d(4), (1, 4, 3, 3)),
    (lambda: nn.Conv2d(4, 3, 1), (1, 4, 3, 3)),
    (lambda: nn.Conv2d(4, 3, 1), (4, 3, 3)),
    (lambda: nn.ConvTranspose1d(4, 3, 2), (4, 5)),
]


@pytest.mark.parametrize(("make", "shape"), ONE_ROW)
def test_one_row_for_all_examples_is_not_answered(make: Any, shape: tuple[int, ...]) -> None:
    """As relative positions (DeBERTa) and positional encodings (XCiT) are."""
    torch.manual_seed(0)
    hypers, plain, x = two(), make(), torch.randn(shape)
    layer: Any = with_responses(adopt(copy.deepcopy(plain), hypers))
    with pytest.warns(UserWarning, match=r"was given one row, \(.*\), that is the same for all 6 examples"):
        y = at(layer, hypers, x, torch.randn(6, 2))
    torch.testing.assert_close(y, plain(x))
    one = at(layer, hypers, x, d := torch.randn(1, 2))
    layer.fold(d[0])
    torch.testing.assert_close(one, layer(x))


def test_a_transposed_convolution_answers_at_the_size_that_is_asked_for() -> None:
    torch.manual_seed(0)
    hypers, x, d = two(), torch.randn(6, 4, 5, 5), torch.randn(6, 2)
    layer: Any = with_responses(adopt(nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), hypers))
    with hypers.bound(Pass(6, d, None)):
        y = layer(x, output_size=[12, 11])
    assert y.shape == (6, 6, 12, 11) and layer.output_padding == (0, 0)
    layer.fold(d[2])
    torch.testing.assert_close(y[2:3], layer(x[2:3], [12, 11]))
