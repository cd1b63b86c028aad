"""LSTMs, GRUs and RNNs that answer to hyperparameters: the plain layers' functions, at each example's own weights."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import jvp
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence, unpack_sequence

from revtune.tuning.hypers.hyperparameters import Hyperparameters, Pass
from revtune.tuning.noise import drop_mask
from revtune.tuning.responses.layers import ResponseLinear
from revtune.tuning.responses.recurrent import ResponseGRU, ResponseLSTM, ResponseRNN
from revtune.tuning.responses.recurrent_gates import GRU, LSTM, ReluRNN, TanhRNN
from revtune.tuning.responses.recurrent_loop import run_loop
from revtune.tuning.responses.recurrent_steps import Steps
from revtune.tuning.responses.weight_norm import weight_norm2
from revtune.tuning.trees import tensors
from revtune.tuning.tuner.bilevel import BilevelProblem, linearized_prediction
from tests.tuned_nets import two

T, B, F, H, N = 5, 4, 3, 6, 2
Kind = type[nn.LSTM] | type[nn.GRU] | type[nn.RNN]
KINDS: dict[Kind, Any] = {nn.LSTM: ResponseLSTM, nn.GRU: ResponseGRU, nn.RNN: ResponseRNN}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"bias": False},
    {"num_layers": 2, "dropout": 0.5},
    {"num_layers": 2, "bidirectional": True, "batch_first": True},
]
FORMS = ("padded", "packed", "packed unsorted")
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
every_option = pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "plain")
every_form = pytest.mark.parametrize("form", FORMS)


@pytest.fixture(autouse=True)
def unwritten_memory_is_nan() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def converted(plain: nn.Module, hypers: Hyperparameters, *, trained: bool = True, batch_dim: int = 0) -> Any:
    layer: Any = copy.deepcopy(plain)
    layer.__class__ = ResponseLinear if isinstance(layer, nn.Linear) else KINDS[type(layer)]
    layer.adopt(hypers, "rnn", batch_dim)
    for name, parameter in layer.named_parameters():
        if trained and name.startswith(("response_scale", "response_shift")):
            nn.init.normal_(parameter)
    return layer


def sequences(form: str) -> list[Tensor]:
    lengths = {"padded": [T] * B, "packed": [5, 3, 3, 1], "packed unsorted": [3, 1, 5, 3]}[form]
    return [torch.randn(length, F, dtype=torch.float64) for length in lengths]


def together(rows: Sequence[Tensor], form: str, batch_first: bool = False) -> Any:
    if form == "padded":
        return torch.stack(list(rows), 0 if batch_first else 1)
    return pack_sequence(list(rows), enforce_sorted=form == "packed")


def apart(y: Any, batch_first: bool = False) -> list[Tensor]:
    return unpack_sequence(y) if isinstance(y, PackedSequence) else list(y.unbind(0 if batch_first else 1))


def first_states(layer: nn.RNNBase, size: int = B) -> Any:
    shape = (layer.num_layers * (1 + layer.bidirectional), size, H)
    h, c = (torch.randn(shape, dtype=torch.float64) for _ in range(2))
    return (h, c) if isinstance(layer, nn.LSTM) else h


def in_pass(layer: Any, d: Tensor, *arguments: Any, training: bool = True) -> Any:
    with layer.hypers.bound(Pass(len(d), d, d if training else None, training=training)):
        return layer(*arguments)


def close(found: Any, wanted: Any, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(found, wanted, atol=tolerance, rtol=tolerance)


# A plain loop, as the reference


def of_lstm(a: Tensor, m: Tensor, states: list[Tensor]) -> list[Tensor]:
    i, f, g, o = (a + m).chunk(4)
    c = f.sigmoid() * states[1] + i.sigmoid() * g.tanh()
    return [o.sigmoid() * c.tanh(), c]


def of_gru(a: Tensor, m: Tensor, states: list[Tensor]) -> list[Tensor]:
    (a_r, a_z, a_n), (m_r, m_z, m_n) = a.chunk(3), m.chunk(3)
    z, n = (a_z + m_z).sigmoid(), (a_n + (a_r + m_r).sigmoid() * m_n).tanh()
    return [(1 - z) * n + z * states[0]]


def of_rnn(a: Tensor, m: Tensor, states: list[Tensor]) -> list[Tensor]:
    return [(a + m).tanh()]


def of_relu_rnn(a: Tensor, m: Tensor, states: list[Tensor]) -> list[Tensor]:
    return [(a + m).relu()]


STEPS: dict[Any, Any] = {LSTM: of_lstm, GRU: of_gru, TanhRNN: of_rnn, ReluRNN: of_relu_rnn}


def one_direction(
    layer: Any, own: Mapping[str, Tensor], suffix: str, x: Tensor, d: Tensor, states: list[Tensor]
) -> Any:
    def answered(side: str, value: Tensor) -> Tensor:
        names = (f"weight_{side}{suffix}", f"response_weight_{side}{suffix}", f"response_scale_{side}{suffix}")
        weight, second, scale = (own[name] for name in names)
        return weight @ value + (scale @ d) * (second @ value) + own.get(f"bias_{side}{suffix}", 0)

    step, outputs = STEPS[layer.equations], []
    shift = own[f"response_shift{suffix}"] @ d if layer.bias else torch.zeros(())
    back = suffix.endswith("reverse")
    for row in x.flip(0) if back else x:
        states = step(answered("ih", row) + shift, answered("hh", states[0]), states)
        outputs.append(states[0])
    return torch.stack(outputs[::-1] if back else outputs), states


def slow(layer: Any, own: Mapping[str, Tensor], rows: Sequence[Tensor], d: Tensor, hx: Any) -> tuple[list[Tensor], Any]:
    """What the layer should give, an example at a time."""
    ys, all_finals = [], []
    for b, x in enumerate(rows):
        finals: list[list[Tensor]] = []
        for layer_index in range(layer.num_layers):
            outputs = []
            for end in ("", "_reverse")[: 1 + layer.bidirectional]:
                states = [state[len(finals), b] for state in tensors(hx)]
                y, last = one_direction(layer, own, f"_l{layer_index}{end}", x, d[b], states)
                outputs.append(y)
                finals.append(last)
            x = torch.cat(outputs, -1)
        ys.append(x)
        all_finals.append([torch.stack(last) for last in zip(*finals, strict=True)])
    stacked = tuple(torch.stack(last, 1) for last in zip(*all_finals, strict=True))
    return ys, stacked if isinstance(layer, nn.LSTM) else stacked[0]


# Values


@every_form
@every_option
@every_kind
def test_before_training_it_is_the_plain_layer(kind: Kind, options: dict[str, Any], form: str) -> None:
    plain = kind(F, H, dtype=torch.float64, **options).eval()
    layer, d = converted(plain, two().double(), trained=False), torch.randn(B, N, dtype=torch.float64)
    x = together(sequences(form), form, plain.batch_first)
    for arguments in ((x,), (x, first_states(plain))):
        wanted = plain(*arguments)
        close(in_pass(layer, d, *arguments), wanted, 1e-12)
        close(layer(*arguments), wanted, 0.0)


@every_form
@every_option
@every_kind
def test_each_example_has_weights_of_its_own(kind: Kind, options: dict[str, Any], form: str) -> None:
    """They are those of a plain layer that is folded at its hyperparameters."""
    layer = converted(kind(F, H, dtype=torch.float64, **options).eval(), two().double())
    rows, d, hx = sequences(form), torch.randn(B, N, dtype=torch.float64), first_states(layer)
    y, finals = in_pass(layer, d, together(rows, form, layer.batch_first), hx)
    for b, found in enumerate(apart(y, layer.batch_first)):
        alone = copy.deepcopy(layer)
        alone.fold(d[b])
        assert type(alone) is kind and [*alone.state_dict()] == [*kind(F, H, **options).state_dict()]
        of_one = [state[:, b] for state in tensors(hx)]
        wanted, last = alone(rows[b], tuple(of_one) if kind is nn.LSTM else of_one[0])
        close(found, wanted, 1e-12)
        close([state[:, b] for state in tensors(finals)], tensors(last), 1e-12)


@every_option
@every_kind
def test_the_norm_of_its_weights_is_each_examples_own(kind: Kind, options: dict[str, Any]) -> None:
    layer, d = converted(kind(F, H, dtype=torch.float64, **options), two().double()), torch.randn(B, N).double()
    with layer.hypers.bound(Pass(B, d, d)):
        norms = weight_norm2(layer)
    for b, norm in enumerate(norms):
        alone = copy.deepcopy(layer)
        alone.fold(d[b])
        close(norm, weight_norm2(alone))


@every_kind
def test_sequences_of_one_example_are_answered_alike(kind: Kind) -> None:
    """Words of sentences, say: a batch of which each example has three."""
    plain, d = kind(F, H, dtype=torch.float64), torch.randn(2, N, dtype=torch.float64)
    x = torch.randn(T, 6, F, dtype=torch.float64)
    for told, owner in (("together", [0, 0, 0, 1, 1, 1]), ("alternating", [0, 1, 0, 1, 0, 1])):
        layer = converted(plain, two().double())
        layer.rows = told
        close(in_pass(layer, d, x), in_pass(layer, d[owner], x), 1e-12)
    layer.rows = None
    with pytest.raises(ValueError, match="rnn: .* must be the batch of 2 examples"):
        in_pass(layer, d, x[:, :5])


@every_kind
def test_an_input_without_a_batch_is_for_outside_of_passes(kind: Kind) -> None:
    hypers = two().double()
    hypers.centred = False
    layer = converted(kind(F, H, batch_first=True, dtype=torch.float64), hypers)
    x, folded = torch.randn(T, F, dtype=torch.float64), copy.deepcopy(layer)
    folded.fold(hypers.raw.detach())
    close(layer(x), folded(x), 1e-12)
    with pytest.raises(ValueError, match=r"rnn: in a pass .* must have a batch and three dimensions, got \(5, 3\)"):
        in_pass(layer, torch.randn(1, N, dtype=torch.float64), x)


@every_kind
def test_sequences_without_steps_are_refused(kind: Kind) -> None:
    layer = converted(kind(F, H), two())
    with pytest.raises(ValueError, match=r"rnn: sequences must have at least one step, got \(0, 4, 3\)"):
        in_pass(layer, torch.randn(B, N), torch.randn(0, B, F))


@every_kind
def test_under_autocast_it_computes_in_the_dtype_of_its_weights(kind: Kind) -> None:
    layer, d = converted(kind(F, H), two()), torch.randn(B, N)
    x = torch.randn(T, B, F).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = in_pass(layer, d, x)
    close(found, in_pass(layer, d, x.float()), 1e-6)


# Gradients


@every_form
@every_option
@every_kind
def test_gradients_are_those_of_the_plain_loop(kind: Kind, options: dict[str, Any], form: str) -> None:
    layer = converted(kind(F, H, dtype=torch.float64, **options).eval(), two().double())
    rows, hx = [row.requires_grad_() for row in sequences(form)], first_states(layer)
    d = torch.randn(B, N, dtype=torch.float64, requires_grad=True)
    own = {name: p for name, p in layer.named_parameters()}
    wrt = [*rows, d, *(state.requires_grad_() for state in tensors(hx)), *own.values()]
    y, finals = in_pass(layer, d, together(rows, form, layer.batch_first), hx)
    ys = [*apart(y, layer.batch_first), *tensors(finals)]
    wanted, wanted_finals = slow(layer, own, rows, d, hx)
    wanted_ys = [*wanted, *tensors(wanted_finals)]
    cotangents = [torch.randn_like(one) for one in ys]
    close(ys, wanted_ys)
    close(torch.autograd.grad(ys, wrt, cotangents), torch.autograd.grad(wanted_ys, wrt, cotangents))


@every_kind
def test_a_state_alone_can_be_differentiated(kind: Kind) -> None:
    layer = converted(kind(F, H, dtype=torch.float64), two().double())
    x, d = together(sequences("padded"), "padded"), torch.randn(B, N, dtype=torch.float64, requires_grad=True)
    y, finals = in_pass(layer, d, x)
    wanted = torch.autograd.grad(y[-1].sum(), d, retain_graph=True)
    close(torch.autograd.grad(tensors(finals)[0].sum(), d), wanted)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("cell", "gates"), [(LSTM, 4), (GRU, 3), (TanhRNN, 1), (ReluRNN, 1)])
def test_the_loop_has_the_gradient_of_finite_differences(cell: Any, gates: int, packed: bool) -> None:
    G, even = gates * 2, Steps([2, 2, 2])
    steps = Steps([2, 1, 1], torch.tensor([0, 1, 0, 0]), reverse=True) if packed else even
    shapes = [(4, G) if packed else (3, 2, G), (G, 2), (G,), (G, 2), (2, G), *[(2, 2)] * cell.states]
    given = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]

    def loop(fed: Tensor, weight: Tensor, bias: Tensor, second: Tensor, scale: Tensor, *states: Tensor) -> Any:
        return run_loop(cell, steps, fed, weight, bias, (second, scale), states)

    assert torch.autograd.gradcheck(loop, given)
    with pytest.raises(RuntimeError, match="the gradient of a responding recurrent layer has none itself"):
        torch.autograd.grad(loop(*given)[0].sum(), given[0], create_graph=True)


@every_kind
def test_gradients_that_are_not_wanted_are_not_made(kind: Kind) -> None:
    """On validation weights are frozen, and the gradient for hyperparameters is the same."""
    layer, x = converted(kind(F, H, 2, dtype=torch.float64), two().double()), torch.randn(T, B, F).double()
    d = torch.randn(B, N, dtype=torch.float64, requires_grad=True)
    (wanted,) = torch.autograd.grad(in_pass(layer, d, x)[0].square().sum(), d)
    layer.requires_grad_(False)
    in_pass(layer, d, x, training=False)[0].square().sum().backward()
    close(d.grad, wanted, 1e-14)


# The linearisation


class Encoder(nn.Module):
    """A layer that tells inputs and first states to a recurrent one, all with_responses."""

    def __init__(self, kind: Kind, options: dict[str, Any], form: str) -> None:
        super().__init__()
        self.form, self.hypers = form, two().double()
        plain = kind(F, H, dtype=torch.float64, **options)
        self.first = converted(nn.Linear(2, H, dtype=torch.float64), self.hypers)
        self.before = converted(nn.Linear(F, F, dtype=torch.float64), self.hypers)
        self.rnn = converted(plain, self.hypers)

    def states(self, summary: Tensor, first: Callable[[Tensor], Tensor]) -> Any:
        h = first(summary).expand(self.rnn.num_layers * (1 + self.rnn.bidirectional), B, H)
        return (h, torch.zeros_like(h)) if isinstance(self.rnn, nn.LSTM) else h

    def forward(self, rows: list[Tensor], summary: Tensor) -> Any:
        padded = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        told = self.before(padded)
        if self.form == "padded":
            x = told if self.rnn.batch_first else told.transpose(0, 1)
        else:
            like = together(rows, self.form)
            step = torch.cat([torch.full((int(size),), t) for t, size in enumerate(like.batch_sizes)])
            example = torch.cat([torch.arange(int(size)) for size in like.batch_sizes])
            example = example if like.sorted_indices is None else like.sorted_indices[example]
            x = like._replace(data=told[example, step])
        return self.rnn(x, self.states(summary, self.first))

    def slow(self, own: Mapping[str, Tensor], rows: list[Tensor], summary: Tensor, d: Tensor) -> list[Tensor]:
        """The same by plain operations, at own parameters and differences of hyperparameters."""

        def linear(name: str, x: Tensor, b: Any) -> Tensor:
            scale, shift = d[b] @ own[f"{name}.response_scale"].T, d[b] @ own[f"{name}.response_shift"].T
            second = x @ own[f"{name}.response_weight"].T
            return x @ own[f"{name}.weight"].T + own[f"{name}.bias"] + scale * second + shift

        of_rnn = {name[4:]: p for name, p in own.items() if name.startswith("rnn.")}
        told = [linear("before", row, b) for b, row in enumerate(rows)]
        states = self.states(summary, lambda x: linear("first", x, slice(None)))
        ys, finals = slow(self.rnn, of_rnn, told, d, states)
        return [*ys, *tensors(finals)]


def problem_of(model: Any) -> BilevelProblem:
    def never(*_: Any) -> Tensor:
        raise AssertionError

    return BilevelProblem(model, model.hypers, lambda net, batch: net(*batch), never, never, lambda batch: B)


@every_form
@every_option
@every_kind
def test_its_linearisation_and_the_gradient_are_those_of_jvp(kind: Kind, options: dict[str, Any], form: str) -> None:
    model = Encoder(kind, {**options, "dropout": 0.0}, form)
    rows, summary = sequences(form), torch.randn(B, 2, dtype=torch.float64)
    d = torch.randn(B, N, dtype=torch.float64)
    with forward_ad.dual_level():
        out, linear = linearized_prediction(problem_of(model), (rows, summary), d, d)
    found = [*apart(linear[0], model.rnn.batch_first), *tensors(linear[1])]
    own = {name: p for name, p in model.named_parameters()}
    at_zero, change, *_ = jvp(lambda d: model.slow(own, rows, summary, d), (torch.zeros_like(d),), (d,))
    wanted = [y + dy for y, dy in zip(at_zero, change, strict=True)]
    close([*apart(out[0], model.rnn.batch_first), *tensors(out[1])], at_zero)
    close(found, wanted)

    added = [p for name, p in own.items() if "response_" in name]
    cotangents = [torch.randn_like(one) for one in found]
    told = [*apart(out[0], model.rnn.batch_first), *tensors(out[1])]
    close(torch.autograd.grad(told, added, cotangents), torch.autograd.grad(wanted, added, cotangents))


@every_kind
def test_both_passes_of_a_linearisation_drop_the_same(kind: Kind) -> None:
    model = Encoder(kind, {"num_layers": 2, "dropout": 0.5, "bidirectional": True}, "packed unsorted")
    model.rnn._tuned_weight_drop = lambda: torch.tensor(0.5)
    batch, d = (sequences(model.form), torch.randn(B, 2).double()), torch.randn(B, N, dtype=torch.float64)
    torch.manual_seed(3)
    with forward_ad.dual_level():
        out, linear = linearized_prediction(problem_of(model), batch, d, d)
    after = torch.rand(1)

    def at(step: float) -> list[Tensor]:
        torch.manual_seed(3)
        with torch.no_grad(), model.hypers.bound(Pass(B, step * d, d)):
            found = tensors(model(*batch))
        assert torch.rand(1) == after
        return found

    moved = [(a - b) / 2e-6 for a, b in zip(at(1e-6), at(-1e-6), strict=True)]
    close(tensors(linear), [y + dy for y, dy in zip(tensors(out), moved, strict=True)], 1e-7)


class Tagger(nn.Module):
    """Padded words, embedded and packed, to padded tags."""

    def __init__(self, kind: Kind, hypers: Hyperparameters) -> None:
        super().__init__()
        self.hypers, self.words = hypers, converted(nn.Linear(F, F, dtype=torch.float64), hypers)
        self.rnn = converted(kind(F, H, batch_first=True, bidirectional=True, dtype=torch.float64), hypers)
        self.out = converted(nn.Linear(2 * H, 3, dtype=torch.float64), hypers)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.words(x), lengths, batch_first=True, enforce_sorted=False)
        padded, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        tags: Tensor = self.out(padded)
        return tags


@every_kind
def test_a_tagger_that_packs_its_embeddings_is_linearised(kind: Kind) -> None:
    """torch's packing knows no tangents itself."""
    model = Tagger(kind, two().double())
    batch, d = (torch.randn(B, T, F).double(), torch.tensor([3, 1, 5, 3])), torch.randn(B, N).double()
    with forward_ad.dual_level():
        out, linear = linearized_prediction(problem_of(model), batch, d, d)
    near, other = (in_pass(model, step * d, *batch) for step in (1e-6, -1e-6))
    close(linear.detach(), (out + (near - other) / 2e-6).detach(), 1e-8)


# Dropout


@every_form
def test_a_rectified_layer_has_gradients_and_a_linearisation_of_its_own(form: str) -> None:
    options = {"nonlinearity": "relu", "num_layers": 2}
    test_each_example_has_weights_of_its_own(nn.RNN, options, form)
    test_gradients_are_those_of_the_plain_loop(nn.RNN, options, form)
    test_its_linearisation_and_the_gradient_are_those_of_jvp(nn.RNN, options, form)


@every_form
@every_kind
def test_examples_are_dropped_at_rates_of_their_own(kind: Kind, form: str) -> None:
    layer = converted(kind(F, H, 2, dtype=torch.float64), two().double())
    d, x = torch.randn(B, N, dtype=torch.float64), together(sequences(form), form)
    kept = apart(in_pass(layer, d, x)[0])
    layer._tuned_rate = lambda: torch.tensor([0.0, 0.9, 0.0, 0.9])
    for training, same in ((True, [True, False, True, False]), (False, [True] * B)):
        found = apart(in_pass(layer.train(training), d, x)[0])
        assert [torch.equal(a, b) for a, b in zip(found, kept, strict=True)] == same


@every_kind
def test_recurrent_weights_are_dropped_with_their_response(kind: Kind) -> None:
    """By one mask for all steps and examples, in training alone."""
    layer, x = converted(kind(F, H, dtype=torch.float64), two().double()), torch.randn(T, B, F).double()
    d, dropped = torch.randn(B, N, dtype=torch.float64), copy.deepcopy(layer)
    layer._tuned_weight_drop = lambda: torch.tensor(0.5)
    torch.manual_seed(5)
    found = in_pass(layer, d, x)
    torch.manual_seed(5)
    mask = drop_mask(layer.weight_hh_l0.shape, 0.5, x)
    with torch.no_grad():
        dropped.weight_hh_l0 *= mask
        dropped.response_weight_hh_l0 *= mask
    close(found, in_pass(dropped, d, x), 1e-14)
    layer.become_plain()
    close(layer.eval()(x), layer.train()(x), 0.0)


@every_kind
def test_a_tuned_rate_acts_where_no_response_does_and_stays_in_the_plain_layer(kind: Kind) -> None:
    layer, x = converted(kind(F, H, 2, dtype=torch.float64), two().double()), torch.randn(T, B, F).double()
    layer._tuned_rate = lambda: layer.hypers["a"]
    raw = layer.hypers.raw.detach().expand(B, -1)
    with layer.hypers.bound(Pass(B, None, raw)):
        first, second = layer(x)[0], layer(x)[0]
    assert not torch.equal(first, second)
    close(layer.eval()(x), layer.plain.forward(layer, x), 0.0)
    layer.become_plain()
    assert type(layer) is kind and layer.dropout == pytest.approx(0.3)


# The module


@every_option
@every_kind
def test_its_own_parameters_keep_their_names_and_plain_weights_load(kind: Kind, options: dict[str, Any]) -> None:
    plain, hypers = kind(F, H, dtype=torch.float64, **options), two().double()
    layer = converted(plain, hypers)
    names = [name for name in layer.state_dict() if not name.startswith("response_")]
    assert names == [*plain.state_dict()]
    other = kind(F, H, dtype=torch.float64, **options)
    layer.load_state_dict(other.state_dict())
    close({name: layer.state_dict()[name] for name in names}, dict(other.state_dict()), 0.0)
    again = converted(plain, hypers)
    again.load_state_dict(layer.state_dict())
    x, d = torch.randn(B, B, F, dtype=torch.float64), torch.randn(B, N, dtype=torch.float64)
    close(in_pass(again.eval(), d, x), in_pass(layer.eval(), d, x), 0.0)
    partial = {name: value for name, value in layer.state_dict().items() if name != "response_scale_hh_l0"}
    with pytest.raises(RuntimeError, match="Missing key.*response_scale_hh_l0"):
        layer.load_state_dict(partial)


@every_kind
def test_outputs_may_be_overwritten(kind: Kind) -> None:
    layer, x = converted(kind(F, H, dtype=torch.float64), two().double()), torch.randn(T, B, F).double()
    d = torch.randn(B, N, dtype=torch.float64, requires_grad=True)
    y, _ = in_pass(layer, d, x)
    (wanted,) = torch.autograd.grad(y.relu().sum(), d, retain_graph=True)
    y.relu_()
    close(torch.autograd.grad(y.sum(), d)[0], wanted)


@every_kind
def test_a_copy_is_of_its_own(kind: Kind) -> None:
    layer, x = converted(kind(F, H, dtype=torch.float64), two().double()), torch.randn(T, B, F).double()
    d, other = torch.randn(B, N, dtype=torch.float64), copy.deepcopy(layer)
    wanted = in_pass(layer, d, x)
    nn.init.zeros_(layer.weight_hh_l0)
    nn.init.zeros_(layer.response_weight_ih_l0)
    assert other.hypers is not layer.hypers
    close(in_pass(other, d, x), wanted, 0.0)


def test_layers_that_cannot_respond_say_why() -> None:
    assert ResponseLSTM.refuses(nn.LSTM(F, H)) is None
    assert "proj_size" in str(ResponseLSTM.refuses(nn.LSTM(F, H, proj_size=2)))
    computed = nn.GRU(F, H)
    weight = computed._parameters.pop("weight_hh_l0")
    assert weight is not None
    computed.weight_hh_l0 = weight * 2
    assert "weight_hh_l0" in str(ResponseGRU.refuses(computed))


def test_responses_are_told_from_weights_by_their_names() -> None:
    model = Encoder(nn.LSTM, {}, "padded")
    base, added = problem_of(model).parameters()
    own = {id(p) for name, p in model.named_parameters() if ".response_" in name}
    assert {id(p) for p in added} == own and len(base) == 4 + 2 + 2
