"""RevGRUCell and RevLSTMCell beside nn.GRUCell and nn.LSTMCell, call for call, and beside the layers of their names."""

import copy
import inspect
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import revtune as rt
from revtune.errors import NonFiniteError, StateRangeError
from tests.backends import close, on_native, real

BACKENDS = ("reference", "native")

CellType = type[rt.RevGRUCell] | type[rt.RevLSTMCell]
CELLS: list[tuple[Any, Any, Any]] = [
    (rt.RevGRUCell, nn.GRUCell, rt.RevGRU),
    (rt.RevLSTMCell, nn.LSTMCell, rt.RevLSTM),
]
both = pytest.mark.parametrize("kind", [kind for kind, *_ in CELLS])
pairs = pytest.mark.parametrize("kind, plain", [(kind, plain) for kind, plain, _ in CELLS])
layers = pytest.mark.parametrize("kind, layer", [(kind, layer) for kind, _, layer in CELLS])
ways = pytest.mark.parametrize("training", [True, False])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def listed(hx: Any) -> list[Tensor]:
    return [hx] if isinstance(hx, Tensor) else list(hx)


def formed(states: Any) -> Any:
    states = list(states)
    return states[0] if len(states) == 1 else tuple(states)


def state_for(cell: Any, *shape: int, dtype: torch.dtype = torch.float64, grad: bool = False) -> Any:
    count = 2 if isinstance(cell, (nn.LSTMCell, rt.RevLSTMCell)) else 1
    return formed(torch.randn(*shape, dtype=dtype).requires_grad_(grad) for _ in range(count))


def twins(kind: Any, layer: Any, **options: Any) -> tuple[Any, Any]:
    """A cell and a layer with the same parameters."""
    cell, net = kind(5, 12, **options), layer(5, 12, **options)
    net.load_state_dict({f"{name}_l0": weight for name, weight in cell.state_dict().items()})
    return cell, net


def unrolled(cell: Any, x: Tensor, hx: Any) -> tuple[Tensor, Any]:
    """What a user's loop gives: outputs of all steps, in x's dtype, and the last state."""
    outputs = []
    for part in x:
        hx = cell(part, hx)
        outputs.append(listed(hx)[0].to(x.dtype))
    return torch.stack(outputs), hx


# As nn.GRUCell and nn.LSTMCell


@pairs
def test_arguments_come_in_the_same_order(kind: Any, plain: Any) -> None:
    ours, theirs = (list(inspect.signature(one).parameters.values()) for one in (kind, plain))
    assert [(p.name, p.default) for p in ours[: len(theirs)]] == [(p.name, p.default) for p in theirs]
    assert {p.kind for p in ours[len(theirs) :]} == {inspect.Parameter.KEYWORD_ONLY}
    assert list(inspect.signature(kind.forward).parameters) == list(inspect.signature(plain.forward).parameters)


@pairs
@pytest.mark.parametrize("bias", [True, False])
def test_parameters_have_the_same_names(kind: Any, plain: Any, bias: bool) -> None:
    ours, theirs = kind(5, 8, bias=bias), plain(5, 8, bias=bias)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert ours._parameters.keys() == theirs._parameters.keys()
    assert (ours.input_size, ours.hidden_size, ours.bias) == (theirs.input_size, theirs.hidden_size, theirs.bias)
    assert all(float(weight.detach().abs().max()) <= 8**-0.5 for weight in ours.parameters())


@pairs
@ways
@pytest.mark.parametrize("batch", [(3,), (), (1,), (0,)])
@pytest.mark.parametrize("given", [True, False])
def test_shapes_are_the_same(kind: Any, plain: Any, training: bool, batch: tuple[int, ...], given: bool) -> None:
    ours, theirs, x = kind(5, 8), plain(5, 8), torch.randn(*batch, 5)
    hx = state_for(ours, *batch, 8, dtype=torch.float32) if given else None
    with torch.set_grad_enabled(training):
        found, wanted = listed(ours(x, hx)), listed(theirs(x, hx))
    assert [(t.shape, t.dtype, t.requires_grad) for t in found] == [(t.shape, t.dtype, t.requires_grad) for t in wanted]


@both
@ways
def test_a_state_comes_back_in_its_dtype(kind: Any, training: bool) -> None:
    cell, x = kind(5, 8), torch.randn(3, 5)
    for dtype in (torch.float32, torch.float64):
        with torch.set_grad_enabled(training):
            assert {tensor.dtype for tensor in listed(cell(x, state_for(cell, 3, 8, dtype=dtype)))} == {dtype}


@both
def test_prints_what_differs_from_the_defaults(kind: Any) -> None:
    assert repr(kind(5, 8)) == f"{kind.__name__}(5, 8, max_forget_bits=3.0)"
    other = kind(5, 8, False, forgetting=False, backend="reference")
    assert repr(other).endswith("(5, 8, bias=False, max_forget_bits=3.0, forgetting=False, backend='reference')")


@both
@pytest.mark.parametrize(
    "options, message",
    [
        ({"hidden_size": 7}, "hidden_size must be even to split it in halves, got 7"),
        ({"hidden_size": 0}, "hidden_size must be a positive integer, got 0"),
        ({"input_size": 1.5}, "input_size must be a positive integer, got 1.5"),
        ({"bias": 1}, "bias must be True or False, got 1"),
        ({"forgetting": None}, "forgetting must be True or False, got None"),
        ({"max_forget_bits": 0}, "max_forget_bits must be a positive number or None"),
        ({"backend": "cuda"}, 'backend must be "auto", "native", "reference" or "triton", got \'cuda\''),
        ({"dtype": torch.float16}, "dtype must be torch.float32 or torch.float64, got torch.float16"),
    ],
)
def test_bad_settings_are_refused(kind: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**{"input_size": 5, "hidden_size": 8, **options})
    with pytest.raises(ValueError, match="bounded must be True or False, got 2"):
        rt.RevLSTMCell(5, 8, bounded=2)  # type: ignore[arg-type]


@both
@ways
def test_bad_arguments_are_refused(kind: Any, training: bool) -> None:
    cell, x = kind(5, 8), torch.randn(3, 5)
    bad: list[tuple[Any, Any, str]] = [
        (torch.randn(2, 3, 5), None, r"input must be \(B, I\), or \(I,\) unbatched, got 3 dimensions"),
        (torch.tensor(1.0), None, r"input must be \(B, I\), or \(I,\) unbatched, got 0 dimensions"),
        (torch.randn(3, 6), None, "input must have input_size=5 features, got 6"),
        (torch.randn(0, 6), None, "input must have input_size=5 features, got 6"),
        (x.double(), None, "input must be torch.float32 like the parameters, got torch.float64"),
        ([1.0], None, "input must be a tensor, got list"),
        (x.to("meta"), None, "input is on meta, parameters on cpu"),
        (x, state_for(cell, 2, 8), r"each tensor of hx must be \(3, 8\), got \(2, 8\)"),
        (x, state_for(cell, 8), r"each tensor of hx must be"),
        (x[0], state_for(cell, 1, 8), r"each tensor of hx must be \(8,\), got \(1, 8\)"),
        (x, state_for(cell, 3, 8, dtype=torch.float16), "hx must be torch.float32, or float64 for exact states"),
        (
            x,
            formed([torch.tensor(0.0)] * len(listed(state_for(cell, 1)))),
            r"each tensor of hx must be \(3, 8\), got \(\)",
        ),
        (
            x[0],
            formed([torch.tensor(0.0)] * len(listed(state_for(cell, 1)))),
            r"each tensor of hx must be \(8,\), got \(\)",
        ),
        (x, (), "hx must be"),
        (x, (torch.zeros(3, 8),) * 3, "hx must be"),
    ]
    with torch.set_grad_enabled(training):
        for given, hx, message in bad:
            with pytest.raises(ValueError, match=f"^{kind.__name__}: {message}"):
                cell(given, hx)


@on_native
@both
@ways
def test_the_kernel_is_not_there_for_float64(kind: Any, training: bool) -> None:
    cell = kind(5, 8, backend="native", dtype=torch.float64)
    with torch.set_grad_enabled(training), pytest.raises(ValueError, match='backend="native" runs RevGRU and RevLSTM'):
        cell(torch.randn(3, 5, dtype=torch.float64))


@both
@ways
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_numbers_that_are_not_finite_are_refused(kind: Any, training: bool, value: float) -> None:
    cell, x = kind(5, 8), torch.zeros(3, 5)  # of zeros, so that no weight hides behind one
    with torch.set_grad_enabled(training):
        with pytest.raises(NonFiniteError, match=f"^{kind.__name__}: input is not finite: {value}"):
            cell(x + value)
        with pytest.raises(NonFiniteError, match=f"^{kind.__name__}: the first state is not finite: {value}"):
            cell(x, formed(state + value for state in listed(state_for(cell, 3, 8))))
        for name, called in (("weight_ih", "ih"), ("weight_hh", "hh"), ("bias_ih", "bias"), ("bias_hh", "bias")):
            broken = copy.deepcopy(cell)
            with torch.no_grad():
                broken.get_parameter(name).view(-1)[2] = value
            with pytest.raises(NonFiniteError, match=f"^{kind.__name__}: weight '{called}' is not finite: {value}"):
                broken(x)


@both
@ways
def test_states_out_of_range_are_refused(kind: Any, training: bool) -> None:
    cell, x = kind(5, 8), torch.randn(3, 5)
    with torch.set_grad_enabled(training), pytest.raises(StateRangeError, match="the first state holds 1.04858e"):
        cell(x, formed(torch.full((3, 8), 2.0**20) for _ in listed(state_for(cell, 1))))


@both
def test_a_copy_and_a_pickle_are_the_same_cell(kind: Any) -> None:
    cell, x = kind(5, 8, max_forget_bits=2.0, forgetting=False), torch.randn(3, 5)
    stream = io.BytesIO()
    torch.save(cell, stream)
    stream.seek(0)
    with torch.serialization.safe_globals([kind]):
        loaded = torch.load(stream, weights_only=True)
    for other in (copy.deepcopy(cell), pickle.loads(pickle.dumps(cell)), loaded):
        assert repr(other) == repr(cell)
        for training in (True, False):
            with torch.set_grad_enabled(training):
                assert all(map(torch.equal, listed(other(x)), listed(cell(x))))


# Beside the layers


@on_native
@layers
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"forgetting": False}, {"max_forget_bits": None}], ids=str)
def test_steps_give_the_bits_of_the_layer(kind: Any, layer: Any, options: dict[str, Any]) -> None:
    cell, net = twins(kind, layer, **options)
    x, hx = torch.randn(7, 3, 5), state_for(cell, 3, 12)
    with torch.no_grad():
        y, finals = net(x, formed(state[None] for state in listed(hx)))
    for training in (True, False):
        with torch.set_grad_enabled(training):
            found, last = unrolled(cell, x, hx)
        assert found.requires_grad == training and torch.equal(found, y)
        assert all(torch.equal(one, other[0]) for one, other in zip(listed(last), listed(finals), strict=True))


@on_native
@both
def test_every_way_into_the_kernel_gives_the_same_bits(kind: Any) -> None:
    """Tensors that lie apart, computed weights, torch.compile and torch.func.vmap."""
    cell, x, hx = kind(5, 8), torch.randn(3, 5), state_for(kind(5, 8), 3, 8)
    spread = formed(torch.stack([state, state], -1)[..., 0] for state in listed(hx))
    compiled = torch.compile(cell, fullgraph=True, backend="aot_eager")
    computed = copy.deepcopy(cell)
    parametrizations.orthogonal(computed, "weight_hh")
    with torch.no_grad():
        wanted = listed(cell(x, hx))
        assert all(map(torch.equal, wanted, listed(cell(torch.stack([x, x], -1)[..., 0], spread))))
        assert all(map(torch.equal, wanted, listed(compiled(x, hx))))
        rows = zip(*(listed(cell(x[row], formed(state[row] for state in listed(hx)))) for row in range(3)), strict=True)
        assert all(torch.equal(one, torch.stack(many)) for one, many in zip(wanted, rows, strict=True))
        same = copy.deepcopy(cell)
        same.weight_hh = nn.Parameter(computed.weight_hh)
        assert all(map(torch.equal, listed(computed(x, hx)), listed(same(x, hx))))
    apart = cell(torch.stack([x, x], -1)[..., 0], spread)  # with a gradient
    assert all(map(torch.equal, wanted, listed(apart))) and listed(apart)[0].requires_grad
    assert all(map(torch.equal, listed(computed(x, hx)), listed(same(x, hx))))


@layers
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"forgetting": False}, {"max_forget_bits": None}], ids=str)
def test_gradients_are_the_layers(kind: Any, layer: Any, options: dict[str, Any]) -> None:
    cell, net = twins(kind, layer, dtype=real(), **options)
    x, hx = torch.randn(9, 3, 5, dtype=real(), requires_grad=True), state_for(cell, 3, 12, grad=True)
    (y, finals), (found, last) = net(x, formed(state[None] for state in listed(hx))), unrolled(cell, x, hx)
    weights = [torch.randn_like(y), *(torch.randn_like(state) for state in listed(last))]

    def gradients(module: nn.Module, outputs: list[Tensor]) -> list[Tensor]:
        loss = sum(((w * out).sum() for w, out in zip(weights, outputs, strict=True)), torch.zeros(()))
        return list(torch.autograd.grad(loss, [x, *listed(hx), *module.parameters()]))

    wanted = gradients(net, [y, *(state[0] for state in listed(finals))])
    # Where the layer forgets, its buffer steers the ten lowest bits of states, up to 2^-22 of them at each step
    most = 9 * 2.0**-22 if options.get("forgetting", True) else close()
    for one, other in zip(gradients(cell, [found, *listed(last)]), wanted, strict=True):
        assert float((one - other).abs().max()) <= max(most, close()) * float(other.abs().max())
    assert float((found - y).detach().abs().max()) <= max(most, close())


@both
def test_the_gradient_is_that_of_the_equations(kind: Any) -> None:
    """Rounding passes gradients through, so they are those of differences much larger than what it rounds to."""
    cell = kind(2, 4, dtype=torch.float64, forgetting=False)
    x, hx = torch.randn(3, 2, dtype=torch.float64, requires_grad=True), state_for(cell, 3, 4, grad=True)

    def total(x: Tensor) -> Tensor:
        return sum((state.square().sum() for state in listed(cell(x, hx))), torch.zeros(()))

    (grad,), step = torch.autograd.grad(total(x), x), 1e-3
    for row in range(3):
        for column in range(2):
            move = torch.zeros_like(x)
            move[row, column] = step
            slope = float((total(x + move) - total(x - move)).detach()) / (2 * step)
            assert slope == pytest.approx(float(grad[row, column]), abs=1e-5)


@on_native
@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_loop_keeps_its_states_and_no_gates(kind: Any, dtype: torch.dtype) -> None:
    """Beside inputs and weights; nn.GRUCell and nn.LSTMCell keep seven float32 numbers a unit and step."""
    kept: dict[int, Tensor] = {}
    # `data_ptr` would part lazy clones, which share memory until it is asked
    place_of: Any = torch._C._data_address  # type: ignore[attr-defined]

    def keep(tensor: Tensor) -> Tensor:
        kept[place_of(tensor)] = tensor
        return tensor

    cell, x = kind(5, 16), torch.randn(30, 3, 5)
    hx = state_for(cell, 3, 16, dtype=dtype)
    given = {place_of(tensor) for tensor in (*x, *cell.parameters(), *listed(hx))}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        for part in x:
            hx = cell(part, hx)
    stored = sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in given)
    assert stored == 30 * 3 * 16 * len(listed(hx)) * dtype.itemsize


@both
def test_a_checkpointed_loop_has_the_same_gradients(kind: Any) -> None:
    """Of torch.utils.checkpoint, which lets a step read what it saved once."""
    cell, x, hx = kind(5, 8), torch.randn(4, 3, 5), state_for(kind(5, 8), 3, 8)

    def total(x: Tensor) -> Tensor:
        return unrolled(cell, x, hx)[0].square().sum()

    wanted = torch.autograd.grad(total(x), list(cell.parameters()))
    checkpointed: Any = checkpoint(total, x, use_reentrant=False)
    assert all(map(torch.equal, torch.autograd.grad(checkpointed, list(cell.parameters())), wanted))


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("which", [0, -1])
def test_a_state_may_be_written_to_after_its_step(kind: Any, dtype: torch.dtype, which: int) -> None:
    """As where an episode ends: gradients are those of a loop that writes to copies."""
    cell, x = kind(5, 8), torch.randn(4, 3, 5, requires_grad=True)
    first = state_for(cell, 3, 8, dtype=dtype, grad=True)

    def gradients(copied: bool) -> tuple[Tensor, ...]:
        hx, outputs = first, []
        for part in x:
            states = [state.clone() if copied else state for state in listed(cell(part, hx))]
            states[which][0] = 0.25
            states[which][1].mul_(0.5)
            outputs.append(states[0].square().sum())
            hx = formed(states)
        return torch.autograd.grad(torch.stack(outputs).sum(), [x, *listed(first), *cell.parameters()])

    assert all(map(torch.equal, gradients(copied=False), gradients(copied=True)))


@both
def test_gradients_have_gradients(kind: Any) -> None:
    cell, x = kind(5, 8), torch.randn(3, 5)
    (grad,) = torch.autograd.grad(listed(cell(x))[0].square().sum(), cell.weight_hh, create_graph=True)
    (second,) = torch.autograd.grad(grad.square().sum(), cell.weight_hh)
    assert bool(second.isfinite().all()) and float(second.abs().max()) > 0


@both
def test_a_stack_by_hand_learns(kind: Any) -> None:
    """Two cells one on the other: to tell the sign of the first of five inputs."""
    bottom, top, head = kind(1, 8), kind(8, 8), nn.Linear(8, 1)
    parameters = [*bottom.parameters(), *top.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(parameters, 0.05)
    losses = []
    for _ in range(40):
        x = torch.randn(5, 32, 1)
        h, g = None, None
        for part in x:
            h = bottom(part, h)
            g = top(listed(h)[0], g)
        loss = nn.functional.binary_cross_entropy_with_logits(head(listed(g)[0]), (x[0] > 0).to(x.dtype))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) / 5 < 0.35 < 0.6 < losses[0]


@both
@pytest.mark.covering(1)
def test_a_compiled_loop_is_the_loop(kind: Any, backend: str) -> None:
    torch._dynamo.reset()  # what is compiled keeps the backend that it was compiled for
    cell, x = kind(5, 8), torch.randn(3, 3, 5)
    hx = state_for(cell, 3, 8)
    compiled = torch.compile(unrolled, fullgraph=True, backend="aot_eager")
    for training in (True, False):
        with torch.set_grad_enabled(training):
            (found, _), (wanted, _) = compiled(cell, x, hx), unrolled(cell, x, hx)
        if not training and backend == "native":
            assert torch.equal(found, wanted)
        else:  # torch.compile takes F.linear apart, and takes plain torch where a gradient is wanted
            torch.testing.assert_close(found, wanted)
        if training:
            first, second = (torch.autograd.grad(y.square().sum(), list(cell.parameters())) for y in (found, wanted))
            for one, other in zip(first, second, strict=True):
                torch.testing.assert_close(one, other)


@both
def test_autocast_leaves_the_numbers_alone(kind: Any) -> None:
    cell, x = kind(5, 8), torch.randn(3, 5)
    for training in (True, False):
        with torch.set_grad_enabled(training):
            wanted = listed(cell(x))
            with torch.autocast("cpu", torch.bfloat16):
                assert all(map(torch.equal, listed(cell(x)), wanted))


@both
def test_frozen_parameters_are_no_training(kind: Any, backend: str) -> None:
    cell, x = kind(5, 8).requires_grad_(False), torch.randn(3, 5)
    found = listed(cell(x))
    with torch.no_grad():
        assert all(map(torch.equal, found, listed(cell(x))))
    assert not found[0].requires_grad
