"""RevGRU and RevLSTM beside nn.GRU and nn.LSTM, call for call, and what they add."""

import copy
import inspect
import io
import pickle
import typing
import weakref
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import revtune as rt
from revtune.reversible.cells import fixed
from revtune.reversible.layers import masks as dropout
from revtune.reversible.layers import rnn
from revtune.reversible.layers.rnn import RevRNN
from revtune.reversible.layers.stack import StepDropout
from tests.backends import close, on_reference, real
from tests.chunking import set_chunk_steps, watch_outputs

BACKENDS = ("reference", "native")

Rev = type[rt.RevGRU] | type[rt.RevLSTM]
Plain = type[nn.GRU] | type[nn.LSTM]

NETS: list[Rev] = [rt.RevGRU, rt.RevLSTM]
both = pytest.mark.parametrize("rev", NETS)
pairs = pytest.mark.parametrize("rev, plain", [(rt.RevGRU, nn.GRU), (rt.RevLSTM, nn.LSTM)])
ARGUMENTS: list[dict[str, Any]] = [
    {},
    {"num_layers": 3},
    {"bias": False},
    {"batch_first": True},
    {"num_layers": 2, "dropout": 0.4},
    {"bidirectional": True},
    {"num_layers": 2, "bidirectional": True, "batch_first": True, "bias": False},
    {"num_layers": 2, "dtype": torch.float64},
]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def chunked(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets how many steps a chunk has."""

    return partial(set_chunk_steps, monkeypatch)


def states_of(hx: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (hx,) if isinstance(hx, Tensor) else tuple(hx)


def hx_for(rnn: Any, rows: int | None, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """First states that fit a net, drawn at random."""
    size = rnn.num_layers * (2 if rnn.bidirectional else 1)
    shape = (size, rnn.hidden_size) if rows is None else (size, rows, rnn.hidden_size)
    h_0 = (0.5 * torch.randn(*shape, dtype=dtype)).requires_grad_(options.get("requires_grad", False))
    if isinstance(rnn, (nn.GRU, rt.RevGRU)):
        return h_0
    return h_0, (0.5 * torch.randn(*shape, dtype=dtype)).requires_grad_(options.get("requires_grad", False))


def weight(rnn: nn.Module, name: str) -> nn.Parameter:
    """A parameter by its name."""
    return rnn.get_parameter(name)


def apart(got: Tensor, wanted: Tensor) -> float:
    """The relative distance of two tensors."""
    return ((got.double() - wanted.double()).norm() / wanted.double().norm().clamp_min(1e-30)).item()


def stored(
    rnn: RevRNN,
    layer: int,
    x: Tensor,
    state: tuple[Tensor, ...],
    *,
    chunk: int = 4,
    lengths: Tensor | None = None,
    masks: Mapping[str, Tensor] | None = None,
    drop: Tensor | None = None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One layer by plain autograd over stored states: the same rounded numbers, straight-through gradients.

    Args:
        rnn: a unidirectional net.
        layer: which of its layers.
        x: (T, B, F).
        state: first states, (B, H) each.
        chunk: how many steps are projected by one product, which decides its last bits.
        lengths: steps of each row.
        masks: locked masks by part.
        drop: a mask on the recurrent weight.
    """
    cell, units = rnn.cell, rnn.hidden_size // 2
    weight_ih, weight_hh, *biases = rnn.all_weights[layer]
    weights = {"hh": weight_hh if drop is None else weight_hh * drop}
    pieces = [piece for tensor in state for piece in tensor.chunk(2, -1)]
    parts = dict(zip(cell.parts, pieces, strict=True))
    counts = {part: fixed.to_counts(value.detach()) for part, value in parts.items()}
    parts = {part: _through(value, counts[part]).to(x.dtype) for part, value in parts.items()}
    share = rt.default_share(x.shape[0], len(cell.parts))
    buffer = rt.Buffer(x.shape[1], units, parts=len(cell.parts), share=share)
    outputs = []
    bias = biases[0] + biases[1] if biases else None
    for time, row in enumerate(torch.cat([F.linear(part, weight_ih, bias) for part in x.split(chunk)])):
        live = torch.ones(x.shape[1], 1, dtype=torch.bool) if lengths is None else (lengths > time).unsqueeze(-1)
        columns = iter(row.split([stage.blocks * units for stage in cell.stages], -1))
        for stage in cell.stages:
            reads = {part: value * masks[part] if masks and part in masks else value for part, value in parts.items()}
            step = rt.Step(next(columns), reads, weights, {})
            gates = stage.gates(step)
            for coupling in stage.couplings:
                name = coupling.part
                z, u = coupling.update(step, *gates)
                u, factor = torch.where(live, u, 0.0), None if z is None else torch.where(live, z, 1.0)
                count = counts[name] if factor is None else buffer.multiply(counts[name], fixed.forget_integer(factor))
                counts[name] = count + fixed.to_counts(u.detach())
                parts[name] = _through(parts[name] + u if factor is None else factor * parts[name] + u, counts[name])
                reads[name] = parts[name] * masks[name] if masks and name in masks else parts[name]
        outputs.append(torch.cat([parts[part] for part in cell.states[0]], -1))
    return torch.stack(outputs), tuple(torch.cat([parts[part] for part in group], -1) for group in cell.states)


def _through(value: Tensor, count: Tensor) -> Tensor:
    """The value of a count, with the gradient of `value`."""
    return fixed.from_counts(count, value.dtype) + (value - value.detach())


def stored_net(
    rnn: RevRNN, x: Tensor, state: tuple[Tensor, ...], *, chunk: int = 4, lengths: Tensor | None = None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """All layers, stored; no masks."""
    finals = []
    for layer in range(rnn.num_layers):
        x, final = stored(rnn, layer, x, tuple(s[layer] for s in state), chunk=chunk, lengths=lengths)
        finals.append(final)
    return x, tuple(torch.stack(group) for group in zip(*finals, strict=True))


def gradients(y: Tensor, finals: tuple[Tensor, ...], tensors: list[Tensor]) -> list[Tensor]:
    """Gradients of a loss that weighs every output and every final state differently."""
    generator = torch.Generator().manual_seed(7)
    loss = torch.zeros((), dtype=torch.float64)
    for value in (y, *finals):
        loss = loss + (value.double() * torch.randn(value.shape, generator=generator, dtype=torch.float64)).sum()
    return list(torch.autograd.grad(loss, tensors))


# The constructor


@on_reference
@pairs
def test_positional_arguments_have_torchs_order(rev: Rev, plain: Plain) -> None:
    overload = typing.get_overloads(plain.__init__)[0]
    theirs = [p for p in inspect.signature(overload).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    ours = inspect.signature(rev.__init__).parameters.values()
    positional = [p for p in ours if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [(p.name, p.default) for p in positional] == [(p.name, p.default) for p in theirs]
    added = {p.name: p.default for p in ours if p.kind is p.KEYWORD_ONLY and p.name != "proj_size"}
    assert added["max_forget_bits"] == 3.0 and added["forgetting"] is True and added["output"] == "all"


@on_reference
@pairs
@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_parameters_have_torchs_names_order_and_rows(rev: Rev, plain: Plain, arguments: dict[str, Any]) -> None:
    ours, theirs = rev(6, 8, **arguments), plain(6, 8, **arguments)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    rows = 24 if rev is rt.RevGRU else 40
    for name, p in ours.named_parameters():
        width = theirs.state_dict()[name].shape[-1]
        wanted = {"weight_ih": (rows, width), "weight_hh": (rows, 4)}.get(name[:9], (rows,))
        assert tuple(p.shape) == wanted and p.dtype == theirs.state_dict()[name].dtype
        assert float(p.detach().abs().max()) <= 8**-0.5


@on_reference
@pairs
@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_all_weights_is_arranged_as_torchs(rev: Rev, plain: Plain, arguments: dict[str, Any]) -> None:
    def names(rnn: nn.Module, groups: Any) -> list[list[str]]:
        known = {id(p): name for name, p in rnn.named_parameters()}
        return [[known[id(p)] for p in group] for group in groups]

    ours, theirs = rev(6, 8, **arguments), plain(6, 8, **arguments)
    assert names(ours, ours.all_weights) == names(theirs, theirs.all_weights)


@on_reference
@pairs
@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_repr_begins_as_torchs(rev: Rev, plain: Plain, arguments: dict[str, Any]) -> None:
    ours = rev(6, 8, max_forget_bits=2.0, hidden_dropout=0.25, **arguments).extra_repr()
    assert ours == plain(6, 8, **arguments).extra_repr() + ", max_forget_bits=2.0, hidden_dropout=0.25"


@on_reference
@pairs
def test_dropout_that_does_nothing_warns_as_torchs(rev: Rev, plain: Plain) -> None:
    for build in (rev, plain):
        with pytest.warns(UserWarning, match="dropout.*num_layers=1"):
            build(6, 8, dropout=0.5)


@on_reference
@both
def test_device_is_where_parameters_are_made(rev: Rev) -> None:
    rnn = rev(6, 8, device="meta", dtype=torch.float64)
    assert {(p.device.type, p.dtype) for p in rnn.parameters()} == {("meta", torch.float64)}
    with torch.device("meta"):
        assert weight(rev(6, 8), "weight_ih_l0").is_meta
    made = rnn.to_empty(device="cpu")
    made.reset_parameters()
    assert made(torch.zeros(2, 1, 6, dtype=torch.float64))[0].isfinite().all()


@on_reference
@both
def test_the_default_dtype_is_torchs(rev: Rev) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        assert rev(6, 8).weight_hh_l0.dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@both
@pytest.mark.parametrize("bits", [0.1, 1, 3.0, 40.0, None])
def test_any_positive_forget_limit_is_kept(rev: Rev, bits: float | None) -> None:
    rnn = rev(6, 8, max_forget_bits=bits)
    with torch.no_grad():
        weight(rnn, "bias_ih_l0").fill_(-50.0)
        h_0 = torch.ones(1, 1, 8)
        given: Any = h_0 if rev is rt.RevGRU else (torch.zeros(1, 1, 8), h_0)
        rest = states_of(rnn(torch.zeros(1, 1, 6), given)[1])[-1]
    floor = 2.0 ** -(10.0 if bits is None else min(bits, 10.0))
    update = -(1 - floor) if rev is rt.RevGRU else 0.0
    assert torch.allclose(rest, torch.full_like(rest, floor + update), atol=2**-10)


# Shapes and dtypes


@pairs
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_shapes_are_torchs(rev: Rev, plain: Plain, arguments: dict[str, Any], given: bool) -> None:
    ours, theirs = rev(6, 8, **arguments), plain(6, 8, **arguments)
    dtype = arguments.get("dtype", torch.float32)
    for shape, rows in (((5, 3, 6), 5 if ours.batch_first else 3), ((5, 6), None)):
        x = torch.randn(*shape, dtype=dtype)
        hx = hx_for(ours, rows, dtype) if given else None
        (y, ours_n), (y_wanted, theirs_n) = ours(x, hx), theirs(x, hx)
        assert (y.shape, y.dtype) == (y_wanted.shape, y_wanted.dtype)
        assert isinstance(ours_n, Tensor) == isinstance(theirs_n, Tensor)
        for got, wanted in zip(states_of(ours_n), states_of(theirs_n), strict=True):
            assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype)


@both
def test_batch_first_and_unbatched_are_only_another_shape(rev: Rev) -> None:
    rnn, turned = rev(6, 8, 2), rev(6, 8, 2, batch_first=True)
    turned.load_state_dict(rnn.state_dict())
    x, hx = torch.randn(5, 3, 6), hx_for(rnn, 3)
    y, finals = rnn(x, hx)
    y_turned, finals_turned = turned(x.transpose(0, 1), hx)
    assert torch.equal(y_turned, y.transpose(0, 1))
    assert all(map(torch.equal, states_of(finals_turned), states_of(finals)))
    alone: Any = tuple(s[:, 1] for s in states_of(hx))
    row, row_finals = rnn(x[:, 1], alone if rev is rt.RevLSTM else alone[0])
    same, same_finals = rnn(x[:, 1:2], tuple(s[:, 1:2] for s in states_of(hx)))
    assert torch.equal(row, same.squeeze(1))
    assert all(torch.equal(a, b.squeeze(1)) for a, b in zip(states_of(row_finals), states_of(same_finals), strict=True))


@both
def test_hx_left_out_is_zero(rev: Rev) -> None:
    rnn, x = rev(6, 8, 2), torch.randn(5, 3, 6)
    zeros: Any = tuple(torch.zeros(2, 3, 8) for _ in rnn.cell.states)
    assert torch.equal(rnn(x)[0], rnn(x, zeros if rev is rt.RevLSTM else zeros[0])[0])


@both
def test_the_top_outputs_end_in_the_final_state(rev: Rev) -> None:
    rnn = rev(6, 8, 2, bidirectional=True)
    y, finals = rnn(torch.randn(5, 3, 6))
    h_n = states_of(finals)[0]
    assert torch.equal(y[-1, :, :8], h_n[2]) and torch.equal(y[0, :, 8:], h_n[3])


@both
def test_a_bidirectional_net_is_two_nets_a_layer(rev: Rev) -> None:
    rnn, x = rev(6, 8, 2, bidirectional=True), torch.randn(5, 3, 6)
    hx = hx_for(rnn, 3)
    y, finals = rnn(x, hx)
    for layer in range(2):
        outputs = []
        for way, suffix in enumerate((f"_l{layer}", f"_l{layer}_reverse")):
            single = rev(x.shape[-1], 8)
            single.load_state_dict({k: weight(rnn, k.replace("_l0", suffix)) for k in single.state_dict()})
            place = 2 * layer + way
            state: Any = tuple(s[place : place + 1] for s in states_of(hx))
            out, final = single(x.flip(0) if way else x, state if rev is rt.RevLSTM else state[0])
            outputs.append(out.flip(0) if way else out)
            assert all(torch.equal(a[place], b[0]) for a, b in zip(states_of(finals), states_of(final), strict=True))
        x = torch.cat(outputs, -1)
    assert torch.equal(y, x)


@both
def test_a_float64_state_carries_on_exactly(rev: Rev) -> None:
    rnn, x = rev(6, 8, 2), torch.randn(9, 3, 6)
    hx: Any = tuple(torch.randn(2, 3, 8, dtype=torch.float64) for _ in rnn.cell.states)
    with torch.no_grad():
        whole, end = rnn(x, hx)
        first, middle = rnn(x[:4], hx)
        second, resumed = rnn(x[4:], middle)
    for state in states_of(end):
        assert state.dtype == torch.float64 and torch.equal(state * 2**32, (state * 2**32).round())
    assert torch.equal(torch.cat([first, second]), whole)
    assert all(map(torch.equal, states_of(resumed), states_of(end)))


@both
def test_states_may_have_either_dtype_and_come_back_in_it(rev: Rev) -> None:
    rnn, x = rev(6, 8), torch.randn(4, 3, 6)
    for dtype in (torch.float32, torch.float64):
        y, finals = rnn(x, hx_for(rnn, 3, dtype))
        assert y.dtype == torch.float32 and {s.dtype for s in states_of(finals)} == {dtype}


@both
def test_under_autocast_everything_stays_as_it_is(rev: Rev) -> None:
    rnn, x = rev(6, 8, 2, bidirectional=True), torch.randn(5, 3, 6)
    wanted = rnn(x)[0]
    wanted_grads = torch.autograd.grad(wanted.sum(), list(rnn.parameters()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, _ = rnn(x)
        from_half, _ = rnn(x.bfloat16())
    assert y.dtype == from_half.dtype == torch.float32 and torch.equal(y, wanted)
    assert torch.equal(from_half, rnn(x.bfloat16().float())[0])
    assert all(map(torch.equal, torch.autograd.grad(y.sum(), list(rnn.parameters())), wanted_grads))


@both
def test_under_autocast_a_state_may_be_half_as_the_input_may(rev: Rev) -> None:
    rnn, x = rev(6, 8), torch.randn(5, 3, 6)
    hx: Any = tuple(torch.randn(1, 3, 8).bfloat16() for _ in rnn.cell.states)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert rnn(x, hx)[0].dtype == torch.float32


# Packed sequences


@pairs
@pytest.mark.parametrize("lengths, enforce_sorted", [([6, 4, 1], True), ([6, 4, 1], False), ([2, 6, 3], False)])
def test_packed_sequences_come_back_packed_as_torchs(
    rev: Rev, plain: Plain, lengths: list[int], enforce_sorted: bool
) -> None:
    ours, theirs = rev(6, 8, 2, bidirectional=True), plain(6, 8, 2, bidirectional=True)
    packed = pack_padded_sequence(torch.randn(6, 3, 6), torch.tensor(lengths), enforce_sorted=enforce_sorted)
    hx = hx_for(ours, 3)
    (y, finals), (wanted, wanted_finals) = ours(packed, hx), theirs(packed, hx)
    assert isinstance(y, PackedSequence) and y.data.shape == wanted.data.shape
    assert torch.equal(y.batch_sizes, wanted.batch_sizes)
    for name in ("sorted_indices", "unsorted_indices"):
        got, expected = getattr(y, name), getattr(wanted, name)
        assert (got is None) == (expected is None) and (got is None or torch.equal(got, expected))
    assert [s.shape for s in states_of(finals)] == [s.shape for s in states_of(wanted_finals)]


@both
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("lengths", [[6, 4, 1], [2, 6, 3]])
def test_a_packed_row_is_what_it_is_alone(rev: Rev, lengths: list[int], bidirectional: bool) -> None:
    rnn = rev(6, 8, 2, bidirectional=bidirectional, dtype=real())
    hx = hx_for(rnn, 3, torch.float64)
    x = torch.randn(6, 3, 6, dtype=real())
    for row, length in enumerate(lengths):
        x[length:, row] = float("nan")
    x.requires_grad_()
    packed = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
    y, finals = rnn(packed, hx)
    padded, _ = pad_packed_sequence(y)
    for row, length in enumerate(lengths):
        alone: Any = tuple(s[:, row : row + 1] for s in states_of(hx))
        single = x.detach()[:length, row : row + 1].requires_grad_()
        y_alone, finals_alone = rnn(single, alone)
        assert torch.allclose(padded[:length, row], y_alone[:, 0], atol=1e-5)
        for got, wanted in zip(states_of(finals), states_of(finals_alone), strict=True):
            assert torch.allclose(got[:, row], wanted[:, 0], atol=1e-5)
        (grad,) = torch.autograd.grad(padded[:length, row].square().sum(), x, retain_graph=True)
        (wanted_grad,) = torch.autograd.grad(y_alone.square().sum(), single)
        assert torch.allclose(grad[:length, row], wanted_grad[:, 0], atol=1e-4)
        assert not grad[length:].isnan().any() and float(grad[length:, row].abs().sum()) == 0


# Gradients


@both
@pytest.mark.parametrize("chunk", [1, 4, 11, 20])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("dtype, most", [(torch.float32, 1e-5), (torch.float64, 1e-8)])
def test_gradients_are_those_of_stored_states(
    rev: Rev, chunk: int, num_layers: int, dtype: torch.dtype, most: float, chunked: Callable[[int], None], backend: str
) -> None:
    torch.manual_seed(1)  # so that none of the kernel's gates, whose sums have another order, rounds the other way
    chunked(chunk)
    rnn = rev(5, 8, num_layers, dtype=dtype)
    x, hx = torch.randn(11, 3, 5, dtype=dtype, requires_grad=True), hx_for(rnn, 3, dtype, requires_grad=True)
    tensors = [x, *states_of(hx), *rnn.parameters()]
    y, finals = rnn(x, hx)
    y_stored, finals_stored = stored_net(rnn, x, states_of(hx), chunk=chunk)
    for value, expected in zip((y, *states_of(finals)), (y_stored, *finals_stored), strict=True):
        exact = backend == "reference" or dtype == torch.float64
        assert torch.equal(value, expected.to(dtype)) if exact else apart(value, expected) < 1e-6
    got, wanted = gradients(y, states_of(finals), tensors), gradients(y_stored, finals_stored, tensors)
    assert max(map(apart, got, wanted)) < most


@both
@pytest.mark.parametrize(
    "options", [{"max_forget_bits": None}, {"max_forget_bits": 1.0}, {"forgetting": False}, {"bias": False}]
)
def test_gradients_are_those_of_stored_states_for_every_option(
    rev: Rev, options: dict[str, Any], chunked: Callable[[int], None]
) -> None:
    chunked(4)
    rnn = rev(5, 8, 2, dtype=real(), **options)
    x, lengths = torch.randn(9, 3, 5, dtype=real(), requires_grad=True), torch.tensor([9, 2, 5])
    hx = hx_for(rnn, 3, torch.float64, requires_grad=True)
    tensors = [x, *states_of(hx), *rnn.parameters()]
    packed, finals = rnn(pack_padded_sequence(x, lengths, enforce_sorted=False), hx)
    y, _ = pad_packed_sequence(packed)
    live = (torch.arange(9).unsqueeze(1) < lengths).unsqueeze(-1)
    y_stored, finals_stored = stored_net(rnn, x, states_of(hx), lengths=lengths)
    got = gradients(y, states_of(finals), tensors)
    wanted = gradients(y_stored * live, finals_stored, tensors)
    assert max(map(apart, got, wanted)) < close()


@both
def test_only_what_requires_a_gradient_gets_one(rev: Rev) -> None:
    rnn = rev(5, 8, 2)
    for name, p in rnn.named_parameters():
        p.requires_grad_(name in ("weight_hh_l0", "bias_ih_l1"))
    x = torch.randn(6, 3, 5, requires_grad=True)
    rnn(x)[0].square().sum().backward()
    got = {name: p.grad for name, p in rnn.named_parameters() if p.grad is not None}
    assert sorted(got) == ["bias_ih_l1", "weight_hh_l0"] and x.grad is not None
    for p in rnn.parameters():
        p.requires_grad_(True)
    wanted = torch.autograd.grad(rnn(x)[0].square().sum(), [weight(rnn, "weight_hh_l0"), weight(rnn, "bias_ih_l1")])
    assert apart(got["weight_hh_l0"], wanted[0]) < 1e-6 and apart(got["bias_ih_l1"], wanted[1]) < 1e-6


@both
def test_rows_of_a_batch_do_not_see_each_other(rev: Rev, chunked: Callable[[int], None]) -> None:
    chunked(4)
    rnn, x = rev(5, 8, 2), torch.randn(12, 4, 5)
    other = x.clone()
    other[:, 2] = 3 * torch.randn(12, 5)
    results = []
    for given in (x, other):
        leaf = given.clone().requires_grad_()
        y, _ = rnn(leaf)
        (grad,) = torch.autograd.grad(y.square().sum(), leaf)
        results.append((y, grad))
    keep = [0, 1, 3]
    assert torch.equal(results[0][0][:, keep], results[1][0][:, keep])
    assert torch.equal(results[0][1][:, keep], results[1][1][:, keep])
    assert not torch.equal(results[0][0][:, 2], results[1][0][:, 2])


# The graph of one forward


def tapes_of(y: Tensor) -> list[Any]:
    """The tapes that the graph of y holds."""
    node: Any = y.grad_fn
    while not hasattr(node, "stack"):
        node = node.next_functions[0][0]
    return list(node.stack.tapes)


def rewound_output(backend: str) -> str:
    """The kernel rewinds h only where outputs do not tell it."""
    return "last" if backend == "native" else "all"


@both
def test_two_forwards_interleaved_keep_to_themselves(rev: Rev, chunked: Callable[[int], None]) -> None:
    chunked(4)
    rnn, inputs = rev(5, 8, 2), [torch.randn(10, 3, 5), torch.randn(7, 2, 5)]
    parameters = list(rnn.parameters())
    wanted = [torch.autograd.grad(rnn(x)[0].square().sum(), parameters) for x in inputs]
    first, second = (rnn(x)[0] for x in inputs)
    with torch.no_grad():
        rnn(inputs[1])
    for y, grads in ((first, wanted[0]), (second, wanted[1])):
        assert all(map(torch.equal, torch.autograd.grad(y.square().sum(), parameters), grads))


@both
def test_retain_graph_gives_the_same_gradients_again(rev: Rev, chunked: Callable[[int], None]) -> None:
    chunked(4)
    rnn = rev(5, 8, 2)
    parameters = list(rnn.parameters())
    loss = rnn(torch.randn(10, 3, 5))[0].square().sum()
    first = torch.autograd.grad(loss, parameters, retain_graph=True)
    second = torch.autograd.grad(loss, parameters, retain_graph=True)
    third = torch.autograd.grad(loss, parameters)
    assert all(map(torch.equal, first, second)) and all(map(torch.equal, first, third))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, parameters)


@both
def test_the_buffer_goes_with_the_graph(rev: Rev, backend: str) -> None:
    rnn = rev(5, 8, output=rewound_output(backend))
    y, finals = rnn(torch.randn(10, 3, 5))
    buffer = weakref.ref(tapes_of(y)[0].buffer)
    del finals
    assert buffer() is not None
    del y
    assert buffer() is None


@both
def test_the_buffer_goes_with_backward_even_while_the_loss_is_held(rev: Rev, backend: str) -> None:
    rnn = rev(5, 8, output=rewound_output(backend))
    y, _ = rnn(torch.randn(10, 3, 5))
    loss = y.square().sum()
    buffer = weakref.ref(tapes_of(y)[0].buffer)
    loss.backward(retain_graph=True)
    assert buffer() is not None
    loss.backward()
    assert buffer() is None, "the buffer lives on after backward, so that two of them exist in the next forward"


@both
def test_training_leaves_no_per_step_output_behind_when_only_the_last_is_wanted(
    rev: Rev, chunked: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    chunked(1)
    alive = watch_outputs(monkeypatch, "forward", "record", "infer")
    rnn = rev(5, 8, output="last")
    for grad in (True, False):
        alive.clear()
        with torch.set_grad_enabled(grad):
            rnn(torch.randn(12, 3, 5))
        assert len(alive) == 12 and max(alive) <= 2


# Modules


@both
def test_copies_are_the_same_net(rev: Rev) -> None:
    rnn, x = rev(5, 8, 2, bidirectional=True, max_forget_bits=2.0, dropout=0.3).eval(), torch.randn(6, 3, 5)
    with torch.no_grad():
        wanted = rnn(x)[0]
        for other in (copy.deepcopy(rnn), pickle.loads(pickle.dumps(rnn))):
            assert torch.equal(other(x)[0], wanted) and repr(other) == repr(rnn)
        fresh = rev(5, 8, 2, bidirectional=True, max_forget_bits=2.0).eval()
        assert not torch.equal(fresh(x)[0], wanted)
        file = io.BytesIO()
        torch.save(rnn.state_dict(), file)
        file.seek(0)
        fresh.load_state_dict(torch.load(file))
        assert torch.equal(fresh(x)[0], wanted)
        weight(copy.deepcopy(rnn), "weight_hh_l0").zero_()
        assert torch.equal(rnn(x)[0], wanted)


@both
def test_to_another_dtype_and_back(rev: Rev) -> None:
    rnn, x = rev(5, 8, 2), torch.randn(6, 3, 5)
    wanted = rnn(x)[0]
    double = copy.deepcopy(rnn).to(torch.float64)
    y, finals = double(x.double())
    assert y.dtype == torch.float64 and torch.allclose(y.float(), wanted, atol=3e-3)
    assert torch.equal(double.to("cpu", torch.float32)(x)[0], wanted)


@both
def test_half_precision_is_refused_when_used(rev: Rev) -> None:
    for half in (rev(5, 8).half(), rev(5, 8).bfloat16()):
        dtype = weight(half, "weight_hh_l0").dtype
        with pytest.raises(ValueError, match=f"parameters must be float32 or float64 .* got {dtype}"):
            half(torch.zeros(2, 3, 5, dtype=dtype))
        half.float()(torch.zeros(2, 3, 5))


@on_reference
@both
def test_flatten_parameters_changes_nothing(rev: Rev) -> None:
    rnn = rev(5, 8)
    before = {name: p.data_ptr() for name, p in rnn.named_parameters()}
    rnn.flatten_parameters()
    assert {name: p.data_ptr() for name, p in rnn.named_parameters()} == before


class Tagger(nn.Module):
    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.first, self.rnn, self.last = nn.Linear(4, 5), rnn, nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.rnn(torch.tanh(self.first(x)))[0])
        return y


@on_reference
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@both
def test_torch_compile_runs_and_gives_the_same(rev: Rev) -> None:
    model, x = Tagger(rev(5, 8)), torch.randn(6, 3, 4)
    wanted = model(x)
    wanted_grads = torch.autograd.grad(wanted.square().sum(), list(model.parameters()))
    y = torch.compile(model, backend="aot_eager")(x)
    grads = torch.autograd.grad(y.square().sum(), list(model.parameters()))
    torch._dynamo.reset()
    assert torch.allclose(y, wanted, atol=1e-6) and max(map(apart, grads, wanted_grads)) < 1e-5


@on_reference
@both
def test_parametrized_weights_train_through_their_parametrization(rev: Rev) -> None:
    rnn, x = rev(5, 8, dtype=torch.float64), torch.randn(6, 3, 5, dtype=torch.float64)
    plain = copy.deepcopy(rnn)
    parametrizations.weight_norm(rnn, "weight_hh_l0")
    magnitude, direction = rnn.get_submodule("parametrizations.weight_hh_l0").parameters()
    y, wanted = rnn(x)[0], plain(x)[0]
    assert torch.allclose(y, wanted, atol=1e-6)
    grads = torch.autograd.grad(y.square().sum(), [magnitude, direction])
    (dense,) = torch.autograd.grad(wanted.square().sum(), [weight(plain, "weight_hh_l0")])
    through = torch.autograd.grad(torch._weight_norm(direction, magnitude, 0), [magnitude, direction], dense)
    assert max(map(apart, grads, through)) < 1e-4


@pytest.mark.parametrize("name", ["weight_hh_l0", "weight_hh_l1"])
def test_a_parametrization_is_computed_once_a_call(name: str) -> None:
    calls = []

    class Counted(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            calls.append(1)
            return 2 * weight

    rnn = rt.RevGRU(5, 8, 2)
    nn.utils.parametrize.register_parametrization(rnn, name, Counted())
    calls.clear()
    rnn(torch.randn(6, 3, 5))
    assert len(calls) == 1


# Only the last output


@both
@pytest.mark.parametrize("form", ["padded", "packed", "batch_first", "unbatched"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_last_output_is_the_last_of_all(rev: Rev, form: str, bidirectional: bool) -> None:
    every = rev(5, 8, 2, batch_first=form == "batch_first", bidirectional=bidirectional)
    last = rev(5, 8, 2, batch_first=form == "batch_first", bidirectional=bidirectional, output="last")
    last.load_state_dict(every.state_dict())
    x = torch.randn(*((7, 5) if form == "unbatched" else (7, 3, 5)), requires_grad=True)
    lengths = torch.tensor([4, 7, 1])

    def given() -> Any:
        return pack_padded_sequence(x, lengths, enforce_sorted=False) if form == "packed" else x

    (y, finals), (y_every, finals_every) = last(given()), every(given())
    if form == "packed":
        padded, _ = pad_packed_sequence(y_every)
        ahead, back = padded[lengths - 1, torch.arange(3)], padded[0]
    elif form == "batch_first":
        ahead, back = y_every[:, -1], y_every[:, 0]
    else:
        ahead, back = y_every[-1], y_every[0]
    wanted = torch.cat([ahead[..., :8], back[..., 8:]], -1) if bidirectional else ahead
    assert torch.equal(y, wanted)
    assert all(map(torch.equal, states_of(finals), states_of(finals_every)))
    got = gradients(y, states_of(finals), [x, *last.parameters()])
    expected = gradients(wanted, states_of(finals_every), [x, *every.parameters()])
    assert max(map(apart, got, expected)) < 1e-6


# Dropout


@both
@pytest.mark.parametrize("bidirectional", [False, True])
def test_dropout_between_layers_acts_in_training_alone(rev: Rev, bidirectional: bool) -> None:
    rnn = rev(5, 8, 2, dropout=0.5, bidirectional=bidirectional)
    plain = rev(5, 8, 2, bidirectional=bidirectional)
    plain.load_state_dict(rnn.state_dict())
    x = torch.randn(6, 3, 5)

    def seeded(seed: int) -> Tensor:
        torch.manual_seed(seed)
        y: Tensor = rnn(x)[0]
        return y

    assert torch.equal(seeded(1), seeded(1)) and not torch.equal(seeded(1), seeded(2))
    assert not torch.equal(seeded(1), plain(x)[0])
    rnn.eval()
    assert torch.equal(seeded(1), plain(x)[0])


@both
@pytest.mark.parametrize("bidirectional", [False, True])
def test_dropout_of_everything_cuts_the_lower_layer_off(rev: Rev, bidirectional: bool) -> None:
    rnn = rev(5, 8, 2, dropout=1.0, bidirectional=bidirectional)
    y, _ = rnn(torch.randn(6, 3, 5))
    grads = torch.autograd.grad(y.square().sum(), [weight(rnn, f"weight_{n}") for n in ("ih_l0", "ih_l1", "hh_l1")])
    assert y.isfinite().all() and [bool(g.abs().sum() > 0) for g in grads] == [False, False, True]


@on_reference
@both
def test_noise_between_layers_is_replayed_exactly(
    rev: Rev, chunked: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    chunked(4)
    rnn, x = rev(5, 8, 2, dropout=0.5, dtype=torch.float64), torch.randn(11, 3, 5, dtype=torch.float64)
    drawn: dict[int, list[Tensor]] = {}
    apply = StepDropout.apply

    def watched(noise: StepDropout, value: Tensor, first: int) -> Tensor:
        drawn.setdefault(first, []).append(apply(noise, torch.ones_like(value), first))
        return apply(noise, value, first)

    monkeypatch.setattr(StepDropout, "apply", watched)
    y, _ = rnn(x)
    got = torch.autograd.grad(y.square().sum(), list(rnn.parameters()))
    assert len(drawn) > 2 and all(torch.equal(mask, masks[0]) for masks in drawn.values() for mask in masks)
    mask = torch.cat([masks[0] for _, masks in sorted(drawn.items())])
    assert mask.shape == (11, 3, 8) and set(mask.unique().tolist()) == {0.0, 2.0}
    assert len({tuple(step.flatten().tolist()) for step in mask}) == 11
    zeros = tuple(torch.zeros(3, 8, dtype=torch.float64) for _ in rnn.cell.states)
    lower, _ = stored(rnn, 0, x, zeros)
    upper, _ = stored(rnn, 1, lower * mask, zeros)
    wanted = torch.autograd.grad(upper.square().sum(), list(rnn.parameters()))
    assert torch.allclose(y, upper) and max(map(apart, got, wanted)) < 1e-8


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tensor]]:
    """The locked masks that layers draw, in order."""
    masks: list[Tensor] = []
    draw = dropout.drop_mask

    def watched(shape: tuple[int, ...], p: float, like: Tensor, *, rows: int | None = None) -> Tensor:
        masks.append(draw(shape, p, like, rows=rows))
        return masks[-1]

    monkeypatch.setattr(rnn, "drop_mask", watched)
    yield masks


@both
@pytest.mark.parametrize("where", ["input_dropout", "hidden_dropout", "output_dropout"])
def test_locked_dropout_uses_one_mask_a_sequence(
    rev: Rev, where: str, drawn: list[Tensor], chunked: Callable[[int], None]
) -> None:
    chunked(4)
    rnn = rev(5, 8, dtype=real(), **{where: 0.5})  # type: ignore[arg-type]
    x = torch.randn(9, 3, 5, dtype=real(), requires_grad=True)
    y, finals = rnn(x)
    tensors = [x, *rnn.parameters()]
    got = gradients(y, states_of(finals), tensors)
    assert len(drawn) == (2 if where == "hidden_dropout" else 1)
    assert all(set(mask.unique().tolist()) == {0.0, 2.0} for mask in drawn)
    assert {tuple(mask.shape) for mask in drawn} == {(3, {"i": 5, "h": 4, "o": 8}[where[0]])}
    zeros = tuple(torch.zeros(3, 8, dtype=torch.float64) for _ in rnn.cell.states)
    masks = {part: mask for part, mask in zip(("h1", "h2"), drawn, strict=True)} if where == "hidden_dropout" else None
    y_stored, finals_stored = stored(rnn, 0, x * drawn[0] if where == "input_dropout" else x, zeros, masks=masks)
    y_stored = y_stored * drawn[0] if where == "output_dropout" else y_stored
    wanted = gradients(y_stored, tuple(s.unsqueeze(0) for s in finals_stored), tensors)
    assert apart(y, y_stored) < close() and max(map(apart, got, wanted)) < close()
    rnn.eval()
    assert rnn(x)[0].isfinite().all() and len(drawn) < 3


@both
def test_weight_drop_uses_one_mask_a_sequence(
    rev: Rev, chunked: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    chunked(4)
    masks: list[Tensor] = []

    def dropped(weight: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        masks.append(torch.bernoulli(torch.full_like(weight, 1 - p)) / (1 - p))
        return weight * masks[-1]

    monkeypatch.setattr(F, "dropout", dropped)
    rnn = rev(5, 8, dtype=real(), weight_drop=0.5)
    x = torch.randn(9, 3, 5, dtype=real(), requires_grad=True)
    y, finals = rnn(x)
    tensors = [x, *rnn.parameters()]
    got = gradients(y, states_of(finals), tensors)
    assert [mask.shape for mask in masks] == [weight(rnn, "weight_hh_l0").shape]
    zeros = tuple(torch.zeros(3, 8, dtype=torch.float64) for _ in rnn.cell.states)
    y_stored, finals_stored = stored(rnn, 0, x, zeros, drop=masks[0])
    wanted = gradients(y_stored, tuple(s.unsqueeze(0) for s in finals_stored), tensors)
    assert apart(y, y_stored) < close() and max(map(apart, got, wanted)) < close()
    assert bool((got[2][masks[0] == 0] == 0).all()) and bool((got[2][masks[0] != 0] != 0).any())
    rnn.eval()
    rnn(x)
    assert len(masks) == 1


@both
@pytest.mark.parametrize("where", ["input_dropout", "hidden_dropout", "output_dropout", "weight_drop"])
def test_locked_dropouts_are_reproducible_and_off_in_evaluation(rev: Rev, where: str) -> None:
    for bidirectional in (False, True):
        rnn = rev(5, 8, 2, bidirectional=bidirectional, **{where: 0.5})  # type: ignore[arg-type]
        plain = rev(5, 8, 2, bidirectional=bidirectional)
        plain.load_state_dict(rnn.state_dict())
        x = torch.randn(6, 3, 5)

        def seeded(seed: int, rnn: RevRNN = rnn, x: Tensor = x) -> Tensor:
            torch.manual_seed(seed)
            y: Tensor = rnn(x)[0]
            return y

        assert torch.equal(seeded(1), seeded(1)) and not torch.equal(seeded(1), seeded(2))
        assert torch.equal(rnn.eval()(x)[0], plain(x)[0])


@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_last_output_is_masked_as_the_others(bidirectional: bool) -> None:
    rnn = rt.RevGRU(5, 8, output="last", output_dropout=0.5, bidirectional=bidirectional)
    y, h_n = rnn(torch.randn(6, 3, 5))
    whole = torch.cat(list(h_n), -1)
    assert set((y / whole).detach().round(decimals=4).unique().tolist()) == {0.0, 2.0}


# Generation


@both
@pytest.mark.parametrize("dtype, most", [(torch.float32, 2.0**-7), (torch.float64, 1e-6)])
def test_stepwise_generation_gives_what_chunked_evaluation_gives(rev: Rev, dtype: torch.dtype, most: float) -> None:
    """Bit for bit if the product of one step's inputs comes out as that of a whole chunk's, which no library promises.

    A last bit that differs moves a forget gate near a rounding boundary by 2^-10, and with it the state by up to 2^-10
    of its range; a few such flips may add up in float32. In float64 a gate would have to fall within 1e-15 of one.
    """
    rnn, x = rev(5, 32, 2, dtype=dtype).eval(), torch.randn(60, 4, 5, dtype=dtype)
    state: Any = tuple(torch.zeros(2, 4, 32, dtype=torch.float64) for _ in rnn.cell.states)
    with torch.no_grad():
        whole, end = rnn(x, state)
        outputs = []
        for step in x.split(1):
            y, state = rnn(step, state)
            outputs.append(y)
    assert float((torch.cat(outputs) - whole).abs().max()) <= most
    for got, wanted in zip(states_of(state), states_of(end), strict=True):
        assert float((got - wanted).abs().max()) <= most


@both
def test_evaluation_gives_what_training_saw(rev: Rev) -> None:
    """Without a buffer a state's ten lowest bits are rounded, not exchanged: 2^-22 a step, unless a gate flips."""
    rnn, x = rev(5, 16, 2, dtype=real()), torch.randn(30, 4, 5, dtype=real())
    y, _ = rnn(x)
    with torch.no_grad():
        evaluated, _ = rnn(x)
    assert 0 < (y - evaluated).abs().max().item() < 2.0**-9
