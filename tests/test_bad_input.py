"""Whatever does not fit gives one error that names the thing, what was expected and what was given."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence

import revtune as rt
from tests.backends import on_both
from tests.chunking import set_chunk_steps

Rev = type[rt.RevGRU] | type[rt.RevLSTM]
both = pytest.mark.parametrize("rev", [rt.RevGRU, rt.RevLSTM])

BOTH_WAYS = rt.RevGRU(6, 8, 2, bidirectional=True)
X, IDS, TARGETS = torch.zeros(5, 3, 6), torch.zeros(5, 3, dtype=torch.int64), torch.zeros(5, 3, dtype=torch.int64)
NAN, INF = float("nan"), float("inf")


@pytest.fixture(autouse=True)
def _two_steps_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    set_chunk_steps(monkeypatch, 2)


def refused(kind: type[Exception], *words: str) -> Any:
    """Expects one error, not one out of another, whose text has all these words."""
    return _Refused(kind, words)


class _Refused:
    def __init__(self, kind: type[Exception], words: tuple[str, ...]) -> None:
        self.kind, self.words = kind, words

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        assert error is not None, f"nothing was refused, though {self.words} was expected"
        assert type(error) is self.kind, f"{type(error).__name__}: {error}"
        missing = [word for word in self.words if word not in str(error)]
        assert not missing, f"{missing} missing in: {error}"
        assert error.__cause__ is None and (error.__context__ is None or error.__suppress_context__)
        return True


def filled(value: float, *shape: int, at: tuple[int, ...]) -> Tensor:
    x = torch.zeros(*shape)
    x[at] = value
    return x


def parts(**options: Any) -> dict[str, Any]:
    """A net, an embedding and a head, with which (5, 3) ids and targets are fine."""
    return {
        "rnn": rt.RevGRU(6, 8),
        "inputs": IDS,
        "targets": TARGETS,
        "encode": nn.Embedding(11, 6),
        "readout": rt.LinearCrossEntropy(8, 11),
    } | options


def stream(**options: Any) -> Tensor:
    given = parts(**options)
    return rt.rewind_loss(given.pop("rnn"), given.pop("inputs"), given.pop("targets"), **given)[0]


def test_nothing_is_refused_without_reason() -> None:
    assert stream().isfinite()


# Layers: construction


@both
@pytest.mark.parametrize(
    "arguments, words",
    [
        ((6, 301), ("hidden_size", "even", "301")),
        ((6, 0), ("hidden_size", "positive", "0")),
        ((6, -4), ("hidden_size", "positive", "-4")),
        ((6, 8.0), ("hidden_size", "integer", "8.0")),
        ((0, 8), ("input_size", "positive", "0")),
        ((6, 8, 0), ("num_layers", "positive", "0")),
        ((6, 8, "2"), ("num_layers", "integer", "'2'")),
        ((True, 8), ("input_size", "integer", "True")),
    ],
)
def test_sizes_of_a_layer(rev: Rev, arguments: tuple[Any, ...], words: tuple[str, ...]) -> None:
    with refused(ValueError, *words):
        rev(*arguments)


@both
@pytest.mark.parametrize(
    "options, words",
    [
        ({"max_forget_bits": 0}, ("max_forget_bits", "positive", "0")),
        ({"max_forget_bits": -1.5}, ("max_forget_bits", "positive", "-1.5")),
        ({"max_forget_bits": NAN}, ("max_forget_bits", "positive", "nan")),
        ({"max_forget_bits": INF}, ("max_forget_bits", "positive", "inf")),
        ({"max_forget_bits": True}, ("max_forget_bits", "positive number", "True")),
        ({"forgetting": "no"}, ("forgetting", "True or False", "'no'")),
        ({"bias": "no"}, ("bias", "True or False", "'no'")),
        ({"batch_first": 1}, ("batch_first", "True or False", "1")),
        ({"bidirectional": None}, ("bidirectional", "True or False", "None")),
        ({"num_layers": 2, "dropout": True}, ("dropout", "0..1", "True")),
        ({"num_layers": 2, "dropout": "0.5"}, ("dropout", "0..1", "'0.5'")),
        ({"weight_drop": True}, ("weight_drop", "0..1", "True")),
        ({"output": "first"}, ("output", '"all"', '"last"', "'first'")),
        ({"backend": "cuda"}, ("backend", '"auto"', "'cuda'")),
        ({"num_layers": 2, "dropout": 1.5}, ("dropout", "0..1", "1.5")),
        ({"num_layers": 2, "dropout": NAN}, ("dropout", "0..1", "nan")),
        ({"input_dropout": -0.1}, ("input_dropout", "0..1", "-0.1")),
        ({"hidden_dropout": 2}, ("hidden_dropout", "0..1", "2")),
        ({"output_dropout": 2}, ("output_dropout", "0..1", "2")),
        ({"weight_drop": 2}, ("weight_drop", "0..1", "2")),
        ({"proj_size": 4}, ("proj_size", "rewound", "0", "4")),
        ({"dtype": torch.float16}, ("dtype", "float32", "float64", "float16")),
        ({"dtype": torch.int64}, ("dtype", "float32", "float64", "int64")),
    ],
)
def test_options_of_a_layer(rev: Rev, options: dict[str, Any], words: tuple[str, ...]) -> None:
    with refused(ValueError, *words):
        rev(6, 8, **options)


def test_a_forget_limit_that_is_no_number() -> None:
    with refused(ValueError, "max_forget_bits", "'3'"):
        rt.RevGRU(6, 8, max_forget_bits="3")  # type: ignore[arg-type]


def test_switches_of_a_cell() -> None:
    switches: list[dict[str, Any]] = [{"forgetting": "no"}, {"bounded": 1}]
    for switch in switches:
        with refused(ValueError, *switch, "True or False", repr(*switch.values())):
            rt.rev_lstm(**switch)
        with refused(ValueError, *switch, "True or False", repr(*switch.values())):
            rt.RevLSTM(6, 8, **switch)
    with refused(ValueError, "forgetting", "True or False", "'no'"):
        rt.rev_gru(forgetting="no")  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [rt.LockedDropout, lambda p: rt.Embedding(3, 4, dropout=p)])
def test_rates_that_are_no_numbers(make: Callable[[Any], nn.Module]) -> None:
    for wrong in (True, "0.5", None):
        with refused(ValueError, "0..1", "probability", repr(wrong)):
            make(wrong)


def test_a_locked_dropout_wants_a_tensor() -> None:
    wrong: Any = [1]
    with refused(ValueError, "LockedDropout: input must be a tensor, got list"):
        rt.LockedDropout()(wrong)


# Layers: use


@on_both
@both
@pytest.mark.parametrize(
    "x, words",
    [
        (torch.zeros(6), ("input", "(T, B, I)", "1 dim")),
        (torch.zeros(1, 5, 3, 6), ("input", "(T, B, I)", "4 dim")),
        (torch.zeros(5, 3, 7), ("input_size=6", "7")),
        (torch.zeros(5, 7), ("input_size=6", "7")),
        (torch.zeros(0, 3, 6), ("input", "one step", "(0, 3, 6)")),
        (torch.zeros(0, 6), ("input", "one step", "0")),
        (torch.zeros(5, 3, 6, dtype=torch.float64), ("input", "float32", "float64")),
        (torch.zeros(5, 3, 6, dtype=torch.float16), ("input", "float32", "float16")),
        (torch.zeros(5, 3, 6, dtype=torch.int64), ("input", "float32", "int64")),
        (torch.zeros(5, 3, 6, device="meta"), ("input", "meta", "cpu")),
    ],
)
@pytest.mark.parametrize("grad", [True, False])
def test_inputs_of_a_layer(rev: Rev, x: Tensor, words: tuple[str, ...], grad: bool) -> None:
    rnn = rev(6, 8)
    with torch.set_grad_enabled(grad), refused(ValueError, rev.__name__, *words):
        rnn(x)


@on_both
@both
def test_inputs_that_are_no_dense_tensors(rev: Rev) -> None:
    cases: list[tuple[Any, str]] = [
        ([[[0.0]]], "must be a tensor, got list"),
        (None, "must be a tensor, got NoneType"),
        (X.numpy(), "must be a tensor, got ndarray"),
        (X.to_sparse(), "must be a dense tensor, got torch.sparse_coo"),
        (pack_padded_sequence(X[..., 0], torch.tensor([5, 4, 2])), "must hold data (N, I), a row a step, got (11,)"),
    ]
    for x, words in cases:
        with refused(ValueError, rev.__name__, words):
            rev(6, 8)(x)


@both
def test_tensors_without_numbers(rev: Rev) -> None:
    net = rev(6, 8, device="meta")
    ways: list[Callable[[], Any]] = [
        lambda: net(X.to("meta")),
        lambda: rt.rewind_loss(net, X.to("meta"), TARGETS.to("meta"), readout=lambda y, _: y.sum()),
        lambda: rt.scan(rt.rev_gru(), X.to("meta"), weights={"hh": torch.zeros(6, 1, device="meta")}),
    ]
    for way in ways:
        with refused(ValueError, "input must hold numbers", "got a meta tensor"):
            way()
    with FakeTensorMode():
        fake = rev(6, 8, backend="reference")
        assert fake(torch.zeros(5, 3, 6))[0].shape == (5, 3, 8)  # a graph's shapes, which need no numbers


def put(net: nn.Module, name: str, value: Any) -> None:
    """Put something else in the place of a parameter."""
    del net._parameters[name]
    setattr(net, name, value)


@on_both
@both
@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0", "bias_hh_l0", "weight_ih_l1", "bias_ih_l1"])
def test_parameters_put_in_the_place_of_others(rev: Rev, name: str) -> None:
    made: Tensor = rev(6, 8, 2).get_parameter(name).detach()
    cases: list[tuple[Any, tuple[str, ...]]] = [
        (made[:-1], (name, str(tuple(made.shape)), str(tuple(made[:-1].shape)))),
        (made[None], (name, str(tuple(made.shape)), str((1, *made.shape)))),
        (made.to_sparse(), (name, "dense", "sparse_coo")),
        (None, (name, "tensor", "NoneType")),
    ]
    if name != "weight_ih_l0":
        cases += [(made.double(), (name, "float32", "float64")), (made.half(), (name, "float32", "float16"))]
        cases += [(made.to("meta"), (name, "cpu", "meta"))]
    for wrong, words in cases:
        rnn = rev(6, 8, 2)
        put(rnn, name, wrong)
        for way in (rnn, lambda x, rnn=rnn: rt.rewind_loss(rnn, x, TARGETS, readout=rt.LinearCrossEntropy(8, 11))):
            with refused(ValueError, rev.__name__, *words):
                way(X)


@on_both
@both
@pytest.mark.parametrize(
    "wrong, words",
    [
        (torch.zeros(2, 3, 8), ("(1, 3, 8)", "(2, 3, 8)")),
        (torch.zeros(1, 4, 8), ("(1, 3, 8)", "(1, 4, 8)")),
        (torch.zeros(1, 3, 4), ("(1, 3, 8)", "(1, 3, 4)")),
        (torch.zeros(3, 8), ("(1, 3, 8)", "(3, 8)")),
        (torch.zeros(1, 3, 8, dtype=torch.float16), ("hx", "float32", "float64", "float16")),
        (torch.zeros(1, 3, 8, dtype=torch.int64), ("hx", "float32", "int64")),
        (torch.zeros(1, 3, 8, device="meta"), ("hx", "meta", "cpu")),
        (torch.zeros(1, 3, 8).to_sparse(), ("hx", "dense", "sparse_coo")),
    ],
)
def test_states_of_a_layer(rev: Rev, wrong: Tensor, words: tuple[str, ...]) -> None:
    right = torch.zeros(1, 3, 8)
    hx: Any = [wrong] if rev is rt.RevGRU else [(wrong, right), (right, wrong)]
    for given in hx:
        with refused(ValueError, rev.__name__, *words):
            rev(6, 8)(X, given)
    if wrong.dim() == 3 and wrong.device.type == "cpu":
        with refused(ValueError, rev.__name__, "hx must be (1, 8), got (1, 3, 8)"):
            rev(6, 8)(X[:, 0], right if rev is rt.RevGRU else (right, right))


@both
def test_a_state_that_is_one_number(rev: Rev) -> None:
    bare = torch.tensor(0.0)
    for x, shape in ((X, "(1, 3, 8)"), (X[:, 0], "(1, 8)")):
        with refused(ValueError, f"{rev.__name__}: each tensor of hx must be {shape}, got ()"):
            rev(6, 8)(x, bare if rev is rt.RevGRU else (bare, bare))


@on_both
def test_the_number_of_states() -> None:
    h = torch.zeros(1, 3, 8)
    cases: list[Any] = [h, 3, (h,), (h, h, h), (None, None), (h, None)]
    for given in cases:
        with refused(ValueError, "RevLSTM: hx must be (h_0, c_0), got"):
            rt.RevLSTM(6, 8)(X, given)
    with refused(ValueError, "RevGRU: hx must be the tensor h_0, got"):
        rt.RevGRU(6, 8)(X, (h, h))


@on_both
@both
@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("grad", [True, False])
def test_inputs_that_are_not_finite(rev: Rev, value: float, grad: bool) -> None:
    with torch.set_grad_enabled(grad):
        with refused(rt.NonFiniteError, f"{rev.__name__} layer 0: input", "step 3, batch row 1", str(value)):
            rev(6, 8, 2)(filled(value, 5, 3, 6, at=(3, 1, 2)))
        packed = pack_padded_sequence(filled(value, 5, 3, 6, at=(3, 1, 2)), torch.tensor([1, 4, 5]), False, False)
        with refused(rt.NonFiniteError, f"{rev.__name__} layer 0: input", "step 3, batch row 1", str(value)):
            rev(6, 8, 2)(packed)


@on_both
@both
@pytest.mark.parametrize("name", ["weight_ih_l1", "weight_hh_l1", "bias_ih_l1", "bias_hh_l1"])
@pytest.mark.parametrize("value", [NAN, INF])
def test_parameters_that_are_not_finite(rev: Rev, name: str, value: float) -> None:
    rnn = rev(6, 8, 2)
    with torch.no_grad():
        rnn.get_parameter(name).view(-1)[3] = value
    reverse = rev(6, 8, bidirectional=True)
    with torch.no_grad():
        reverse.get_parameter(name.replace("l1", "l0_reverse")).view(-1)[3] = value
    short = {"weight_ih_l1": "'ih'", "weight_hh_l1": "'hh'"}.get(name, "'bias'")
    for grad in (True, False):
        with torch.set_grad_enabled(grad), refused(rt.NonFiniteError, f"{rev.__name__} layer 1", short, str(value)):
            rnn(X)
        with torch.set_grad_enabled(grad), refused(rt.NonFiniteError, "layer 0, reverse", short, str(value)):
            reverse(X)
    with refused(rt.NonFiniteError, f"{rev.__name__} layer 1", short, str(value)):
        rt.rewind_loss(rnn, X, TARGETS, readout=rt.LinearCrossEntropy(8, 11))


@on_both
@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "value, kind, words",
    [
        (NAN, rt.NonFiniteError, ("first state", "not finite")),
        (INF, rt.NonFiniteError, ("first state", "not finite")),
        (2.0**20, rt.StateRangeError, ("first state", "1.04858e+06", "2^20")),
        (-1e9, rt.StateRangeError, ("first state", "1e+09", "2^20")),
    ],
)
def test_first_states_out_of_range(
    rev: Rev, dtype: torch.dtype, value: float, kind: type[Exception], words: tuple[str, ...]
) -> None:
    wrong, right = filled(value, 2, 3, 8, at=(1, 2, 5)).to(dtype), torch.zeros(2, 3, 8, dtype=dtype)
    cases: Any = [wrong] if rev is rt.RevGRU else [(wrong, right), (right, wrong)]
    for given in cases:
        with refused(kind, f"{rev.__name__} layer 1", *words):
            rev(6, 8, 2)(X, given)
        with refused(kind, f"{rev.__name__} layer 1", *words):
            rt.rewind_loss(rev(6, 8, 2), X, TARGETS, readout=rt.LinearCrossEntropy(8, 11), state=given)


@on_both
@pytest.mark.parametrize("grad", [True, False])
def test_states_that_leave_the_exact_range(grad: bool) -> None:
    rnn = rt.RevGRU(6, 8, forgetting=False)
    with torch.no_grad():
        rnn.get_parameter("bias_ih_l0").view(6, 4)[2] = 50.0
        rnn.get_parameter("bias_ih_l0").view(6, 4)[0] = -50.0
    h_0 = filled(2.0**20 - 2.5, 1, 3, 8, at=(0, 1, 2))
    with (
        torch.set_grad_enabled(grad),
        refused(rt.StateRangeError, "RevGRU layer 0", "h1", "unit 2", "batch row 1", "step 2", "2^20"),
    ):
        rnn(X, h_0)


@on_both
def test_numbers_that_overflow_inside_a_layer() -> None:
    rnn = rt.RevGRU(6, 8)
    with torch.no_grad():
        rnn.get_parameter("weight_ih_l0").fill_(3e38)
        rnn.get_parameter("weight_hh_l0").fill_(-3e38)
    x = torch.zeros(5, 3, 6)
    x[3, 1] = 1.0
    h_0 = filled(1.0, 1, 3, 8, at=(0, 1))
    for grad in (True, False):
        with (
            torch.set_grad_enabled(grad),
            refused(rt.NonFiniteError, "RevGRU layer 0", "batch row 1", "step 3", "nan", "not finite"),
        ):
            rnn(x, h_0)


# Layers: between forward and backward


@on_both
@both
@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0"])
def test_weights_changed_in_place_before_backward(rev: Rev, name: str) -> None:
    rnn = rev(6, 8)
    y, _ = rnn(torch.randn(5, 3, 6))
    with torch.no_grad():
        rnn.get_parameter(name).add_(0.1)
    with refused(RuntimeError, "modified by an inplace operation", "is at version 2; expected version 1"):
        y.sum().backward()


@on_both
@both
@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0"])
@pytest.mark.parametrize("steps", [2, 5])
def test_weights_changed_behind_autograds_back_before_backward(rev: Rev, name: str, steps: int) -> None:
    rnn = rev(6, 8)
    y, _ = rnn(torch.randn(steps, 3, 6))
    rnn.get_parameter(name).data.add_(0.1)
    with refused(rt.ReversalError, f"{rev.__name__} layer 0", "changed", "o gradient was produced"):
        y.sum().backward()


@on_both
def test_inputs_and_states_changed_in_place_before_backward() -> None:
    for place in (0, 1):
        given = (torch.randn(5, 3, 6), torch.zeros(1, 3, 8))
        y, _ = rt.RevGRU(6, 8)(*given)
        given[place].add_(0.1)
        with refused(RuntimeError, "modified by an inplace operation", "version 1; expected version 0"):
            y.sum().backward()


@on_both
@both
def test_double_backward_through_a_layer(rev: Rev) -> None:
    rnn = rev(6, 8)
    y, _ = rnn(X)
    with refused(RuntimeError, "double backward", "create_graph=False"):
        torch.autograd.grad(y.sum(), list(rnn.parameters()), create_graph=True)


# Streams


@pytest.mark.parametrize(
    "options, words",
    [
        ({"rnn": nn.GRU(6, 8)}, ("RevGRU or RevLSTM", "GRU")),
        ({"rnn": BOTH_WAYS, "checkpoint_every": 3}, ("checkpoint_every", "None", "bidirectional", "3")),
        ({"rnn": BOTH_WAYS, "max_memory": "9MB"}, ("max_memory", "several layers", "9MB", "2 layers")),
        ({"rnn": BOTH_WAYS, "penalties": rt.ActivationPenalties(activation=1.0)}, ("penalties", "bidirectional")),
        ({"rnn": BOTH_WAYS, "state": torch.zeros(2, 3, 8)}, ("(4, 3, 8)", "(2, 3, 8)")),
        ({"reduction": "none"}, ("reduction", '"mean"', '"sum"', "'none'")),
        ({"checkpoint_every": 0}, ("checkpoint_every", "positive", '"auto"', "0")),
        ({"checkpoint_every": -3}, ("checkpoint_every", "positive", "-3")),
        ({"checkpoint_every": True}, ("checkpoint_every", "positive", "True")),
        ({"checkpoint_every": 2.5}, ("checkpoint_every", "positive", "2.5")),
        ({"checkpoint_every": "often"}, ("checkpoint_every", '"auto"', "'often'")),
        ({"targets": TARGETS[:4]}, ("inputs and targets", "(T, B, ...)", "(5, 3)", "(4, 3)")),
        ({"targets": TARGETS[:, :2]}, ("inputs and targets", "(T, B, ...)", "(5, 3)", "(5, 2)")),
        ({"inputs": IDS[0]}, ("inputs and targets", "(T, B, ...)", "(3,)", "(5, 3)")),
        (
            {"rnn": rt.RevGRU(6, 8, batch_first=True), "targets": TARGETS[:4]},
            ("inputs and targets", "(B, T, ...)", "(5, 3)", "(4, 3)"),
        ),
        ({"inputs": IDS[:0], "targets": TARGETS[:0]}, ("one step", "(0, 3)")),
        ({"inputs": IDS[:, :0], "targets": TARGETS[:, :0]}, ("one row", "(5, 0)")),
        ({"encode": None}, ("inputs", "int64", "encode=")),
        ({"encode": None, "inputs": torch.zeros(5, 3, 7)}, ("input_size=6", "7")),
        ({"encode": None, "inputs": X.double()}, ("input", "float32", "float64")),
        ({"encode": nn.Embedding(11, 5)}, ("input_size=6", "5")),
        ({"encode": lambda ids: torch.zeros(1, 3, 6)}, ("encode", "(2, 3, I)", "(1, 3, 6)")),
        ({"encode": lambda ids: torch.zeros(2, 1, 6)}, ("encode", "(2, 3, I)", "(2, 1, 6)")),
        ({"encode": lambda ids: torch.zeros(6, 6)}, ("encode", "(2, 3, I)", "(6, 6)")),
        ({"readout": lambda y, t: y}, ("readout", "one number", "8)")),
        ({"readout": lambda y, t: 1.0}, ("readout", "one number", "float")),
        ({"readout": rt.LinearCrossEntropy(7, 11)}, ("LinearCrossEntropy", "(..., 7)", "8")),
        ({"state": torch.zeros(1, 4, 8)}, ("hx", "(1, 3, 8)", "(1, 4, 8)")),
        ({"state": torch.zeros(1, 3, 8).half()}, ("hx", "float32", "float64", "float16")),
        ({"state": torch.zeros(1, 3, 8, device="meta")}, ("hx", "meta", "cpu")),
        ({"inputs": X.to_sparse(), "encode": None}, ("inputs", "dense", "sparse_coo")),
        ({"encode": lambda ids: [0.0]}, ("encode", "tensor", "list")),
        ({"inputs": IDS.to("meta")}, ("inputs", "meta", "cpu")),
        ({"targets": TARGETS.to("meta")}, ("targets", "meta", "cpu")),
        ({"lengths": torch.tensor([5, 5, 5], device="meta")}, ("lengths", "meta", "cpu")),
        ({"encode": nn.Embedding(11, 6, device="meta")}, ("token ids", "cpu", "embedding", "meta")),
        ({"encode": rt.Embedding(11, 6, device="meta")}, ("token ids", "cpu", "embedding", "meta")),
        ({"encode": lambda ids: torch.zeros(2, 3, 6, device="meta")}, ("input", "meta", "cpu")),
        ({"rnn": rt.RevGRU(6, 8).half()}, ("parameters", "float32 or float64", "float16")),
        ({"context": torch.zeros(2, 3)}, ("context", "list or tuple of tensors", "Tensor")),
        ({"context": 3}, ("context", "list or tuple of tensors", "int")),
        ({"context": [3]}, ("each of context", "tensor", "int")),
        ({"context": [X]}, ("context", "LinearCrossEntropy", "empty", "got 1")),
    ],
)
@pytest.mark.parametrize("grad", [True, False])
def test_arguments_of_a_stream(options: dict[str, Any], words: tuple[str, ...], grad: bool) -> None:
    with torch.set_grad_enabled(grad), refused(ValueError, *words):
        stream(**options)


@on_both
@pytest.mark.parametrize(
    "lengths, words",
    [
        (torch.tensor([5, 0, 5]), ("lengths", "1..5", "0 in row 1")),
        (torch.tensor([5, 5, -2]), ("lengths", "1..5", "-2 in row 2")),
        (torch.tensor([6, 5, 5]), ("lengths", "1..5", "6 in row 0")),
        (torch.tensor([5, 5]), ("lengths", "3 integers", "(2,)")),
        (torch.tensor([[5, 5, 5]]), ("lengths", "3 integers", "(1, 3)")),
        (torch.tensor(5), ("lengths", "3 integers", "()")),
        (torch.tensor([5.0, 5.0, 5.0]), ("lengths", "integers", "float32")),
        (torch.tensor([True, True, True]), ("lengths", "integers", "bool")),
    ],
)
def test_lengths(lengths: Tensor, words: tuple[str, ...]) -> None:
    with refused(ValueError, *words):
        stream(lengths=lengths)
    weights = {"ih": torch.zeros(24, 6), "hh": torch.zeros(24, 4)}
    for call in (rt.scan, rt.record):
        with refused(ValueError, *words):
            call(rt.rev_gru(), X, weights=weights, lengths=lengths)


@pytest.mark.parametrize("wrong", [-1, 11, 10**6])
@pytest.mark.parametrize("embedding", [nn.Embedding, rt.Embedding])
def test_token_ids(wrong: int, embedding: Callable[[int, int], nn.Module]) -> None:
    ids = IDS.clone()
    ids[4, 1] = wrong
    for grad in (True, False):
        with torch.set_grad_enabled(grad), refused(ValueError, "token ids", "0..10", f"got {wrong}"):
            stream(inputs=ids, encode=embedding(11, 6))
    with refused(ValueError, "token ids", "int64", "float32"):
        stream(inputs=IDS.float(), encode=embedding(11, 6))


def heads() -> list[rt.LinearCrossEntropy]:
    return [
        rt.LinearCrossEntropy(8, 11),
        rt.LinearCrossEntropy(8, 11, class_weights=torch.ones(11)),
        rt.LinearCrossEntropy(8, 11, label_smoothing=0.1),
    ]


@pytest.mark.parametrize("wrong", [-1, 11, 10**6])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_targets(wrong: int, reduction: str) -> None:
    targets = TARGETS.clone()
    targets[4, 1] = wrong
    for head in heads():
        for grad in (True, False):
            with torch.set_grad_enabled(grad), refused(ValueError, "targets", "0..10", "-100", f"got {wrong}"):
                stream(targets=targets, readout=head, reduction=reduction)
        with refused(ValueError, "targets", "0..10", "-100", f"got {wrong}"):
            head(torch.zeros(5, 3, 8), targets)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_targets_of_another_type_or_shape(reduction: str) -> None:
    for head in heads():
        with refused(ValueError, "targets", "int64", "float32"):
            stream(targets=TARGETS.float(), readout=head, reduction=reduction)
        with refused(ValueError, "targets", "(3, 1)"):
            stream(targets=TARGETS.unsqueeze(-1), readout=head, reduction="sum")


def test_targets_that_do_not_count() -> None:
    for head in heads():
        with refused(ValueError, "no target counts", "reduction='sum'"):
            stream(targets=torch.full_like(TARGETS, -100), readout=head)
        assert stream(targets=torch.full_like(TARGETS, -100), readout=head, reduction="sum").item() == 0


@on_both
@pytest.mark.parametrize("where", ["inputs", "embedding"])
def test_a_stream_of_numbers_that_are_not_finite(where: str) -> None:
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            with refused(rt.NonFiniteError, "RevGRU layer 0: input", "step 3, batch row 1", "nan"):
                if where == "inputs":
                    stream(inputs=filled(NAN, 5, 3, 6, at=(3, 1, 2)), encode=None)
                else:
                    embedding, ids = nn.Embedding(11, 6), IDS.clone()
                    embedding.weight.data[7, 2] = NAN
                    ids[3, 1] = 7
                    stream(inputs=ids, encode=embedding)


def test_a_readout_that_is_not_finite_is_seen_in_the_loss() -> None:
    head = rt.LinearCrossEntropy(8, 11)
    head.weight.data[3, 3] = NAN
    assert stream(readout=head).isnan()


@on_both
def test_a_net_that_is_random_behind_our_back_is_found() -> None:
    """Never a wrong gradient: an encoder that gives something else the second time is refused."""
    calls = []

    def encode(ids: Tensor) -> Tensor:
        calls.append(1)
        return torch.full((*ids.shape, 6), 0.1 * len(calls))

    with refused(rt.ReversalError, "encode gave other numbers", "same steps again"):
        stream(encode=encode)


@on_both
def test_a_failed_call_leaves_no_trace() -> None:
    given = parts()
    wrong = TARGETS.clone()
    wrong[0, 0] = 99
    state = torch.get_rng_state()
    with refused(ValueError, "99"):
        stream(**given | {"targets": wrong})
    torch.set_rng_state(state)
    again = stream(**given)
    torch.set_rng_state(state)
    assert torch.equal(again, stream(**given)) and all(p.grad is None for p in given["rnn"].parameters())
    assert not torch.is_autocast_enabled("cpu") and torch.is_grad_enabled()
    mask = rt.LockedDropout(0.5)(torch.ones(2, 4, 50))
    assert not torch.equal(rt.LockedDropout(0.5)(torch.ones(2, 4, 50)), mask)


# The readout


@pytest.mark.parametrize(
    "options, words",
    [
        ({"label_smoothing": -0.1}, ("label_smoothing", "0..1", "-0.1")),
        ({"label_smoothing": 1.5}, ("label_smoothing", "0..1", "1.5")),
        ({"label_smoothing": NAN}, ("label_smoothing", "0..1", "nan")),
        ({"label_smoothing": True}, ("label_smoothing", "0..1", "True")),
        ({"num_classes": 0}, ("num_classes", "positive", "0")),
        ({"num_classes": -1}, ("num_classes", "positive", "-1")),
        ({"num_classes": 1.5}, ("num_classes", "integer", "1.5")),
        ({"in_features": 0}, ("in_features", "positive", "0")),
        ({"ignore_index": None}, ("ignore_index", "integer", "None")),
        ({"tie": nn.Linear(8, 11)}, ("tie", "nn.Embedding", "Linear")),
        ({"tie": nn.Embedding(10, 8)}, ("tied weight", "(11, 8)", "(10, 8)")),
        ({"tie": torch.zeros(8, 11)}, ("tied weight", "(11, 8)", "(8, 11)")),
        ({"class_weights": [1.0] * 11}, ("class_weights", "tensor (11,)", "list")),
        ({"class_weights": torch.ones(10)}, ("class_weights", "(11,)", "(10,)")),
        ({"class_weights": torch.ones(11, 1)}, ("class_weights", "(11,)", "(11, 1)")),
        ({"class_weights": -torch.ones(11)}, ("class_weights", "negative", "-1")),
        ({"class_weights": torch.full((11,), NAN)}, ("class_weights", "NaN", "nan")),
        ({"class_weights": nn.Parameter(torch.ones(11))}, ("class_weights", "no gradient", "requires one", "detach")),
        ({"bias": "no"}, ("bias", "True or False", "'no'")),
        ({"bias": 1}, ("bias", "True or False", "1")),
        ({"tie": nn.Embedding(11, 8), "dtype": torch.float64}, ("dtype", "None or torch.float32", "tied", "float64")),
        ({"tie": torch.zeros(11, 8), "device": "meta"}, ("device", "None or cpu", "tied", "meta")),
    ],
)
def test_options_of_a_head(options: dict[str, Any], words: tuple[str, ...]) -> None:
    with refused(ValueError, *words):
        rt.LinearCrossEntropy(**{"in_features": 8, "num_classes": 11} | options)


def test_a_tied_head_may_be_told_where_its_weight_is() -> None:
    head = rt.LinearCrossEntropy(8, 11, tie=(words := nn.Embedding(11, 8)), device="cpu", dtype=torch.float32)
    assert head.weight is words.weight


@pytest.mark.parametrize(
    "y, targets, words",
    [
        (torch.zeros(4, 7), torch.zeros(4).long(), ("(..., 8)", "(4, 7)", "(4,)")),
        (torch.zeros(4, 8), torch.zeros(5).long(), ("(..., 8)", "(4, 8)", "(5,)")),
        (torch.zeros(4, 2, 8), torch.zeros(8).long(), ("(..., 8)", "(4, 2, 8)", "(8,)")),
        (torch.zeros(4, 8), torch.zeros(4), ("targets", "int64", "float32")),
        ([0.0], torch.zeros(4).long(), ("y", "tensor", "list")),
        (torch.zeros(4, 8), None, ("targets", "tensor", "NoneType")),
        (torch.zeros(4, 8), torch.zeros(4).bool(), ("targets", "int64", "bool")),
        (torch.zeros(4, 8).double(), torch.zeros(4).long(), ("y", "float32", "float64")),
        (torch.zeros(4, 8, device="meta"), torch.zeros(4).long(), ("meta", "cpu")),
        (torch.zeros(4, 8), torch.zeros(4, device="meta").long(), ("meta", "cpu")),
    ],
)
def test_arguments_of_a_head(y: Tensor, targets: Tensor, words: tuple[str, ...]) -> None:
    for head in heads():
        with refused(ValueError, *words):
            head(y, targets)


def test_class_weights_of_another_float_type_are_taken_in_the_heads() -> None:
    head = rt.LinearCrossEntropy(8, 11, class_weights=torch.rand(11, dtype=torch.float64))
    y, targets = torch.randn(4, 8, requires_grad=True), torch.tensor([1, 2, 3, 4])
    head(y, targets).backward()
    assert head.class_weights is not None and y.grad is not None
    wanted = F.cross_entropy(head.logits(y), targets, weight=head.class_weights.float(), reduction="sum")
    assert torch.allclose(torch.autograd.grad(wanted, y)[0], y.grad, atol=1e-6)


def test_rewind_loss_names_what_it_cannot_take() -> None:
    rnn, head = rt.RevGRU(3, 4), rt.LinearCrossEntropy(4, 5)
    x, targets = torch.randn(6, 2, 3), torch.zeros(6, 2, dtype=torch.long)
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, torch.tensor([6, 4]))
    with pytest.raises(ValueError, match="inputs must be a padded tensor.*PackedSequence"):
        rt.rewind_loss(rnn, packed, targets, readout=head)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="lengths must be a tensor of 2 integers.*list"):
        rt.rewind_loss(rnn, x, targets, readout=head, lengths=[6, 4])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match='output="last"'):
        rt.rewind_loss(rt.RevGRU(3, 4, output="last"), x, targets, readout=head)


class Doubled(rt.RevGRU):
    """A net whose forward is not what a RevGRU's is."""

    def forward(self, input: Any, hx: Any = None, **resets: Any) -> tuple[Any, Any]:
        y, h = super().forward(input, hx, **resets)
        return 2 * y, h


def hooked_backward() -> rt.RevGRU:
    net = rt.RevGRU(4, 8)
    net.register_full_backward_pre_hook(lambda *_: None)
    return net


@pytest.mark.parametrize(
    ("make", "encode", "told"),
    [
        (lambda: Doubled(4, 8), None, "does not call the net's forward, but Doubled has one of its own"),
        (hooked_backward, None, "does not call the net's forward, so its hooks would not run"),
        (lambda: rt.RevGRU(4, 8), nn.Embedding(9, 4, scale_grad_by_freq=True), "scale_grad_by_freq must be False"),
    ],
)
def test_what_streaming_would_pass_over_is_refused(make: Any, encode: nn.Module | None, told: str) -> None:
    tokens = torch.randint(9, (5, 2))
    inputs = tokens if encode else torch.randn(5, 2, 4)
    with pytest.raises(ValueError) as refused:
        rt.rewind_loss(make(), inputs, tokens, encode=encode, readout=rt.LinearCrossEntropy(8, 9))
    assert told in str(refused.value)


def test_a_backward_hook_on_the_readout_runs() -> None:
    seen: list[str] = []
    head = rt.LinearCrossEntropy(8, 9)
    head.register_full_backward_pre_hook(lambda *_: seen.append("head"))
    x, targets = torch.randn(5, 2, 4), torch.randint(9, (5, 2))
    rt.rewind_loss(rt.RevGRU(4, 8), x, targets, readout=head)[0].backward()
    assert seen


@pytest.mark.parametrize("run", [rt.scan, rt.record])
def test_a_backend_that_there_is_not_is_refused(run: Any) -> None:
    weights = {"ih": torch.zeros(24, 4), "hh": torch.zeros(24, 4)}
    with pytest.raises(
        ValueError, match='backend must be "auto", "native", "reference" or "triton", got \'Reference\''
    ):
        run(rt.rev_gru(), torch.randn(3, 2, 4), weights=weights, backend="Reference")
