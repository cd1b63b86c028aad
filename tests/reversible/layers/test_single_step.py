"""A net's single step without a gradient: the numbers of the sequence, and when it is not taken."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import revtune as rt
from revtune.errors import NonFiniteError
from revtune.reversible.layers import rnn
from revtune.reversible.layers.single_step import single_step

BACKENDS = ("native",)
Rev = type[rt.RevGRU] | type[rt.RevLSTM]
both = pytest.mark.parametrize("rev", [rt.RevGRU, rt.RevLSTM])
ARGUMENTS: list[dict[str, Any]] = [
    {},
    {"num_layers": 3},
    {"bias": False, "num_layers": 2},
    {"max_forget_bits": None},
    {"forgetting": False},
    {"batch_first": True, "num_layers": 2},
]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each call without a gradient so far, whether it was a single step."""
    calls: list[bool] = []

    def noted(*arguments: Any) -> Any:
        result = single_step(*arguments)
        calls.append(result is not None)
        return result

    monkeypatch.setattr(rnn, "single_step", noted)
    return calls


def listed(hx: Any) -> list[Tensor]:
    return [hx] if isinstance(hx, Tensor) else list(hx)


def formed(states: list[Tensor]) -> Any:
    return states[0] if len(states) == 1 else tuple(states)


def first_state(net: Any, *shape: int, dtype: torch.dtype = torch.float64) -> Any:
    return formed([torch.randn(*shape, dtype=dtype) for _ in net.cell.states])


def steps_of(net: Any, x: Tensor) -> Iterator[Tensor]:
    dim = 1 if net.batch_first and x.dim() == 3 else 0
    return iter(x.split(1, dim))


@both
@pytest.mark.parametrize("arguments", ARGUMENTS, ids=lambda arguments: "-".join(arguments) or "plain")
@pytest.mark.parametrize("batched", [True, False])
def test_steps_give_the_bits_of_the_sequence(
    rev: Rev, arguments: dict[str, Any], batched: bool, taken: list[bool]
) -> None:
    net = rev(5, 12, **arguments)
    x = torch.randn(*((3, 7, 5) if net.batch_first else (7, 3, 5))) if batched else torch.randn(7, 5)
    hx = first_state(net, *((net.num_layers, 3, 12) if batched else (net.num_layers, 12)))
    with torch.no_grad():
        y, finals = net(x, hx)
        pieces = []
        for part in steps_of(net, x):
            piece, hx = net(part, hx)
            pieces.append(piece)
    assert taken == [False] + [True] * 7
    assert torch.equal(torch.cat(pieces, 1 if net.batch_first and batched else 0), y)
    assert all(map(torch.equal, listed(hx), listed(finals)))


@both
@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_a_step_gives_what_the_way_over_sequences_gives(rev: Rev, dtype: torch.dtype | None, taken: list[bool]) -> None:
    net, x = rev(5, 12, num_layers=2), torch.randn(1, 3, 5)
    hx = None if dtype is None else first_state(net, 2, 3, 12, dtype=dtype)
    with torch.no_grad():
        found, wanted = net(x, hx), net._uncompiled(x, hx)
    assert taken == [True]
    assert torch.equal(found[0], wanted[0]) and found[0].shape == wanted[0].shape
    for one, other in zip(listed(found[1]), listed(wanted[1]), strict=True):
        assert torch.equal(one, other) and one.dtype == other.dtype == torch.float32


@both
def test_with_a_gradient_no_step_is_taken(rev: Rev, taken: list[bool]) -> None:
    net = rev(5, 12)
    y, _ = net(torch.randn(1, 3, 5))
    assert y.requires_grad and not taken
    with torch.inference_mode():
        y, _ = net(torch.randn(1, 3, 5))
    assert taken == [True]


@pytest.mark.parametrize(
    "arguments",
    [
        {"bidirectional": True},
        {"output": "last"},
        {"backend": "reference"},
        {"dtype": torch.float64},
        {"num_layers": 2, "dropout": 0.5},
        {"input_dropout": 0.5},
        {"hidden_dropout": 0.5},
        {"output_dropout": 0.5},
        {"weight_drop": 0.5},
    ],
    ids=lambda arguments: "-".join(arguments),
)
@both
def test_other_nets_go_the_way_over_sequences(rev: Rev, arguments: dict[str, Any], taken: list[bool]) -> None:
    net = rev(5, 12, **arguments)
    with torch.no_grad():
        net(torch.randn(1, 3, 5, dtype=arguments.get("dtype", torch.float32)))
    assert taken == [False]


@both
def test_dropout_does_not_stand_in_the_way_of_evaluation(rev: Rev, taken: list[bool]) -> None:
    net = rev(5, 12, num_layers=2, dropout=0.5, hidden_dropout=0.5, weight_drop=0.5).eval()
    with torch.no_grad():
        net(torch.randn(1, 3, 5))
    assert taken == [True]


@both
def test_computed_weights_go_the_way_over_sequences(rev: Rev, taken: list[bool]) -> None:
    net = parametrizations.weight_norm(rev(5, 12), "weight_hh_l0")
    x, hx = torch.randn(2, 3, 5), first_state(net, 1, 3, 12)
    with torch.no_grad():
        y, _ = net(x, hx)
        first, hx = net(x[:1], hx)
        second, _ = net(x[1:], hx)
    assert taken == [False] * 3
    assert torch.equal(torch.cat([first, second]), y)


@both
def test_what_is_wrong_is_said_as_of_a_sequence(rev: Rev) -> None:
    net, x = rev(5, 12), torch.randn(1, 3, 5)
    hx = first_state(net, 1, 3, 12)
    bad: list[tuple[Any, Any, str]] = [
        (torch.randn(1, 3, 6), hx, "input must have input_size=5 features, got 6"),
        (x.double(), hx, "input must be torch.float32 like the parameters, got torch.float64"),
        (torch.tensor(1.0), hx, r"input must be \(T, B, I\), or \(T, I\) unbatched, got 0 dimensions"),
        (x, first_state(net, 1, 2, 12), r"each tensor of hx must be \(1, 3, 12\), got \(1, 2, 12\)"),
        (x, first_state(net, 3, 12), r"each tensor of hx must be \(1, 3, 12\), got \(3, 12\)"),
        (x, (), "hx must be"),
        ([1.0], None, "input must be a tensor, got list"),
        (x * torch.nan, hx, "input is not finite: nan at step 0, batch row 0, feature 0"),
    ]
    with torch.no_grad():
        for given, state, message in bad:
            with pytest.raises(ValueError, match=message):
                net(given, state)
        net.weight_hh_l0[3, 2] = torch.inf
        with pytest.raises(NonFiniteError, match=r"weight 'hh' is not finite: inf at index \(3, 2\)"):
            net(x, hx)


def test_parameters_are_found_by_name_and_not_by_place(taken: list[bool]) -> None:
    """Input and recurrent weight have one shape here, and somebody has registered them in another order."""
    net = rt.RevGRU(6, 12)
    ih, hh = net._parameters.pop("weight_ih_l0"), net._parameters.pop("weight_hh_l0")
    net.register_parameter("weight_hh_l0", hh)
    net.register_parameter("weight_ih_l0", ih)
    x = torch.randn(1, 3, 6)
    with torch.no_grad():
        assert torch.equal(net(x)[0], net._uncompiled(x, None)[0])
    assert taken == [True]


@both
def test_a_compiled_step_is_the_same(rev: Rev) -> None:
    net, x = rev(5, 12), torch.randn(1, 3, 5)
    hx = first_state(net, 1, 3, 12)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(compiled(x, hx)[0], net(x, hx)[0])


@both
def test_a_wrapped_net_steps_too(rev: Rev, taken: list[bool]) -> None:
    net = nn.ModuleList([rev(5, 12)])
    with torch.no_grad():
        torch.func.functional_call(net[0], dict(net[0].named_parameters()), (torch.randn(1, 3, 5),))
    assert taken == [True]
