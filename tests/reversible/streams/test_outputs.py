"""Outputs of a head beside those of the layer: the same numbers, and the same gradients of losses of whole sequences.

In float64 the reference runs both; in float32 the kernel does, where the layer keeps outputs and rewinds nothing.
"""

import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

import revtune as rt
from tests.backends import close, on_native, on_reference, real
from tests.chunking import set_stack_chunk_steps, watch_outputs
from tests.stored import relative, stored_scan

Loss = Callable[[Tensor, Tensor], Tensor]

BACKENDS = ("reference", "native")
STEPS, ROWS, INPUTS, HIDDEN, TAGS = 13, 3, 6, 8, 5
BOTH_WAYS = rt.RevGRU(INPUTS, HIDDEN, bidirectional=True)
LENGTHS, FULL = torch.tensor([9, 13, 2]), torch.full((ROWS,), STEPS)
nets = pytest.mark.parametrize("rev", [rt.RevGRU, rt.RevLSTM])


@pytest.fixture(autouse=True)
def _four_steps_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    set_stack_chunk_steps(monkeypatch, 4)


class Parts(NamedTuple):
    """A net, its head and inputs."""

    rnn: Any
    head: nn.Linear
    x: Tensor

    @classmethod
    def of(cls, rev: Any = rt.RevGRU, layers: int = 1, *, tags: int = TAGS, **options: Any) -> "Parts":
        rnn = rev(INPUTS, HIDDEN, layers, dtype=real(), **options)
        return cls(rnn, nn.Linear(HIDDEN, tags, dtype=real()), torch.randn(STEPS, ROWS, INPUTS, dtype=real()))

    def outputs(self, **options: Any) -> tuple[Any, Any]:
        """What `rewind_outputs` gives."""
        return rt.rewind_outputs(self.rnn, self.x, **{"readout": self.head, **options})

    @property
    def parameters(self) -> list[Tensor]:
        return [*self.rnn.parameters(), *self.head.parameters()]


def live(lengths: Tensor) -> Tensor:
    """Which positions are no padding, (T, B, 1)."""
    return (torch.arange(STEPS)[:, None] < lengths).unsqueeze(-1)


def differences(outputs: Tensor, lengths: Tensor) -> Tensor:
    """How unlike the scores of steps that follow one another are, each pair weighed by what went before."""
    running = outputs.sigmoid().cumsum(0)
    return (outputs.diff(dim=0).square() * running[:-1] * live(lengths)[1:]).sum() + (outputs.sin() * 0.3).sum()


def ctc(outputs: Tensor, lengths: Tensor) -> Tensor:
    """Letters that may stand anywhere."""
    letters = torch.tensor([[1, 2, 3], [4, 4, 1], [2, 0, 0]])
    return nn.CTCLoss(reduction="sum")(outputs.log_softmax(-1), letters, lengths, torch.tensor([3, 3, 1]))


def crf(outputs: Tensor, lengths: Tensor) -> Tensor:
    """A linear-chain CRF (Lafferty et al. 2001) with fixed transitions: scores of all tags, less the right ones'."""
    moves = torch.linspace(-1, 1, TAGS * TAGS, dtype=outputs.dtype).view(TAGS, TAGS)
    tags = torch.arange(STEPS * ROWS).view(STEPS, ROWS) * 7 % TAGS
    alpha, right = outputs[0], outputs[0].gather(1, tags[:1].t())[:, 0]
    for step in range(1, STEPS):
        runs = lengths > step
        following = (alpha[:, :, None] + moves + outputs[step][:, None]).logsumexp(1)
        alpha = torch.where(runs[:, None], following, alpha)
        one = outputs[step].gather(1, tags[step][:, None])[:, 0] + moves[tags[step - 1], tags[step]]
        right = right + torch.where(runs, one, 0.0)
    return (alpha.logsumexp(-1) - right).sum()


LOSSES: list[Loss] = [differences, ctc, crf]


def unstreamed(parts: Parts, lengths: Tensor | None = None, state: Any = None) -> tuple[Tensor, Any]:
    """Outputs of the layer's outputs, zero at padding."""
    if lengths is None:
        y, last = parts.rnn(parts.x, state)
        return parts.head(y), last
    packed = nn.utils.rnn.pack_padded_sequence(parts.x, lengths, enforce_sorted=False)
    rows, last = parts.rnn(packed, state)
    y, _ = nn.utils.rnn.pad_packed_sequence(rows)
    return parts.head(y) * live(lengths), last


def agree(one: Tensor, other: Tensor, tensors: Sequence[Tensor], most: float | None = None, **options: Any) -> None:
    """Two losses have the same value and the same gradients."""
    most = close() if most is None else most
    assert relative(one.detach(), other.detach()) < most
    got = torch.autograd.grad(one, tensors, allow_unused=True, **options)
    wanted = torch.autograd.grad(other, tensors, allow_unused=True, **options)
    for place, (a, b) in enumerate(zip(got, wanted, strict=True)):
        assert (a is None) == (b is None), f"gradient {place} exists in one of the two only"
        assert a is None or b is None or relative(a, b) < most, f"gradient {place}"


# Losses of whole sequences


@nets
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "ragged"])
@pytest.mark.parametrize(
    ("loss", "chunk", "every"),
    [
        *[(loss, 3, None) for loss in LOSSES],
        (differences, 1, None),
        (crf, STEPS, None),
        (ctc, 2, 5),
        (differences, 3, 2),
        (differences, 4, "auto"),
    ],
)
def test_a_loss_is_that_of_all_outputs(
    rev: Any, loss: Loss, lengths: Tensor | None, chunk: int, every: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_stack_chunk_steps(monkeypatch, chunk)
    parts = Parts.of(rev, 2 if every == 5 else 1)
    outputs, _ = parts.outputs(lengths=lengths, checkpoint_every=every)
    wanted, _ = unstreamed(parts, lengths)
    assert outputs.shape == (STEPS, ROWS, TAGS) and outputs.dtype == real()
    if lengths is not None:
        assert not outputs.masked_select(~live(lengths)).any()
    steps = FULL if lengths is None else lengths
    agree(loss(outputs, steps), loss(wanted, steps), parts.parameters)


@on_reference
@nets
@pytest.mark.parametrize("loss", LOSSES)
def test_in_float64_it_is_the_net_that_stores_every_state(rev: Any, loss: Loss) -> None:
    """By plain autograd, with the library's own rounding alone."""
    parts = Parts.of(rev)
    outputs, _ = parts.outputs()
    named = {name.rsplit("_", 1)[0]: weight for name, weight in parts.rnn.named_parameters()}
    weights = {"ih": named["weight_ih"], "hh": named["weight_hh"], "bias": named["bias_ih"] + named["bias_hh"]}
    zeros = tuple(torch.zeros(ROWS, HIDDEN, dtype=torch.float64) for _ in parts.rnn.cell.states)
    y, _ = stored_scan(parts.rnn.cell, parts.x, zeros, weights=weights)
    agree(loss(outputs, FULL), loss(parts.head(y), FULL), parts.parameters, 1e-12)


@nets
def test_gradients_reach_inputs_first_states_and_encoders_and_come_from_last_states(rev: Any) -> None:
    parts = Parts.of(rev, 2)
    parts.x.requires_grad_()
    states = [torch.randn(2, ROWS, HIDDEN, dtype=torch.float64).tanh().requires_grad_() for _ in parts.rnn.cell.states]
    state = states[0] if len(states) == 1 else tuple(states)
    encode = nn.Linear(INPUTS, INPUTS, dtype=real())

    def loss(outputs: Tensor, last: Any) -> Tensor:
        finals = last if isinstance(last, tuple) else (last,)
        return differences(outputs, FULL) + torch.stack([one.double().square().sum() for one in finals]).sum()

    outputs, last = parts.outputs(encode=encode, state=state, checkpoint_every=5)
    y, final = parts.rnn(encode(parts.x), state)
    tensors = [parts.x, *states, *encode.parameters(), *parts.parameters]
    agree(loss(outputs, last), loss(parts.head(y), final), tensors)
    assert all(one.dtype == torch.float64 for one in (last if isinstance(last, tuple) else (last,)))


def test_the_last_state_alone_has_its_gradient() -> None:
    parts = Parts.of()
    _, last = parts.outputs(readout=lambda y: (parts.head(y),))
    _, wanted = parts.rnn(parts.x)
    agree(last.square().sum(), wanted.square().sum(), parts.parameters)


@nets
def test_batch_first(rev: Any) -> None:
    parts = Parts.of(rev)
    wanted, _ = unstreamed(parts, LENGTHS)
    parts.rnn.batch_first = True
    outputs, _ = rt.rewind_outputs(parts.rnn, parts.x.transpose(0, 1), readout=parts.head, lengths=LENGTHS)
    assert outputs.shape == (ROWS, STEPS, TAGS)
    agree(crf(outputs.transpose(0, 1), LENGTHS), crf(wanted, LENGTHS), parts.parameters)


def test_rows_that_end_before_the_last_chunk_of_all() -> None:
    parts, lengths = Parts.of(), torch.tensor([3, 1, 2])
    outputs, _ = parts.outputs(lengths=lengths)
    wanted = parts.head(parts.rnn(parts.x)[0]) * live(lengths)
    agree(outputs.square().sum(), wanted.square().sum(), parts.parameters)


def test_a_weight_tied_between_encoder_and_head_has_both_gradients() -> None:
    parts, table = Parts.of(), nn.Embedding(11, INPUTS, dtype=real())
    narrow, tokens = nn.Linear(HIDDEN, INPUTS, dtype=real()), torch.randint(11, (STEPS, ROWS))

    def read(y: Tensor) -> Tensor:
        return F.linear(narrow(y), table.weight)

    outputs, _ = rt.rewind_outputs(parts.rnn, tokens, encode=table, readout=read)
    wanted = read(parts.rnn(table(tokens))[0])
    tensors = [table.weight, *narrow.parameters(), *parts.rnn.parameters()]
    agree(differences(outputs, FULL), differences(wanted, FULL), tensors)


def test_weights_of_a_head_may_be_computed_outside() -> None:
    parts, half = Parts.of(), torch.randn(TAGS, HIDDEN, dtype=real(), requires_grad=True)
    weight = half.tanh()
    outputs, _ = parts.outputs(readout=lambda y: y @ weight.t())
    wanted = parts.rnn(parts.x)[0] @ weight.t()
    agree(differences(outputs, FULL), differences(wanted, FULL), [half, *parts.rnn.parameters()], retain_graph=True)


def test_a_weight_of_the_net_that_the_head_uses_too_has_both_gradients() -> None:
    parts = Parts.of()
    weight = parts.rnn.weight_hh_l0

    def read(y: Tensor) -> Tensor:
        return parts.head(y) + weight.square().sum()

    outputs, _ = parts.outputs(readout=read)
    agree(differences(outputs, FULL), differences(read(parts.rnn(parts.x)[0]), FULL), parts.parameters)


# Several heads


class Policy(NamedTuple):
    """What an actor and critic gives."""

    scores: Tensor
    value: Tensor


@pytest.mark.parametrize("kind", [tuple, list, dict, Policy])
def test_several_heads(kind: Any) -> None:
    """A policy and a value, with a loss of both (as PPO's): advantages are sums along time."""
    parts, value = Parts.of(), nn.Linear(HIDDEN, 1, dtype=real())

    def read(y: Tensor) -> Any:
        pair = (parts.head(y), value(y)[:, 0])
        return dict(zip("sv", pair, strict=True)) if kind is dict else Policy(*pair) if kind is Policy else kind(pair)

    def loss(given: Any) -> Tensor:
        scores, values = given.values() if kind is dict else given
        advantage = torch.linspace(1, 2, STEPS, dtype=real())[:, None] - values.detach().flip(0).cumsum(0).flip(0)
        log = scores.log_softmax(-1)[..., 2]
        ratio = (log - log.detach()).exp()
        return -torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean() + values.square().mean()

    outputs, _ = parts.outputs(readout=read)
    assert type(outputs) is kind
    y = parts.rnn(parts.x)[0]
    whole: Any = Policy(parts.head(y), value(y)[..., 0])
    agree(
        loss(outputs), loss(whole._asdict() if kind is dict else whole), [*parts.parameters, *value.parameters()]
    )  # fmt: skip


@pytest.mark.parametrize("kind", [tuple, list, dict, nn.ModuleList, nn.ModuleDict])
def test_a_container_of_heads_is_a_head(kind: Any) -> None:
    parts, value = Parts.of(), nn.Linear(HIDDEN, 1, dtype=real())
    named = kind in (dict, nn.ModuleDict)
    outputs: Any = parts.outputs(readout=kind({"s": parts.head, "v": value} if named else [parts.head, value]))[0]
    assert isinstance(outputs, dict if named else tuple)
    scores, values = outputs.values() if isinstance(outputs, dict) else outputs
    y = parts.rnn(parts.x)[0]
    total, whole = scores.square().sum() + values.sum(), parts.head(y).square().sum() + value(y).sum()
    agree(total, whole, [*parts.parameters, *value.parameters()])


class Gated(nn.ModuleDict):
    """A container that says itself what it gives."""

    def forward(self, y: Tensor) -> Tensor:
        gated: Tensor = self["a"](y) * self["b"](y).sigmoid()
        return gated


def test_a_container_with_a_forward_of_its_own_is_one_head() -> None:
    parts = Parts.of()
    head = Gated({name: nn.Linear(HIDDEN, TAGS, dtype=real()) for name in "ab"})
    outputs, _ = parts.outputs(readout=head)
    agree(outputs.sum(), head(parts.rnn(parts.x)[0]).sum(), [*parts.parameters, *head.parameters()])


@pytest.mark.parametrize("name", ["state", "reset_state"])
def test_a_state_changed_before_backward_is_named(name: str) -> None:
    parts, state = Parts.of(), torch.zeros(1, ROWS, HIDDEN, dtype=real(), requires_grad=True)
    resets = torch.zeros(STEPS, ROWS, dtype=torch.bool)
    resets[STEPS // 2] = True
    outputs, _ = parts.outputs(**{name: state, "resets": resets})
    with torch.no_grad():
        state += 1
    with pytest.raises(rt.ReversalError, match=f"rewind_outputs: {name} of shape"):
        outputs.sum().backward()


def test_a_head_that_no_loss_is_taken_of_has_no_gradient() -> None:
    parts, other = Parts.of(), nn.Linear(HIDDEN, 2, dtype=real())
    (outputs, _), _ = parts.outputs(readout=lambda y: (parts.head(y), other(y)))
    wanted = parts.head(parts.rnn(parts.x)[0])
    agree(differences(outputs, FULL), differences(wanted, FULL), [*parts.parameters, *other.parameters()])


def test_numbers_that_want_no_gradient_come_with_the_others() -> None:
    parts = Parts.of()
    given, _ = parts.outputs(readout=lambda y: {"scores": parts.head(y), "best": parts.head(y).argmax(-1), "y": y})
    apart, _ = parts.outputs(readout=lambda y: (parts.head(y), y.detach()))
    y = parts.rnn(parts.x)[0]
    assert given["best"].dtype == torch.int64 and torch.equal(given["best"], parts.head(y).argmax(-1))
    assert not given["best"].requires_grad and not apart[1].requires_grad
    agree(given["scores"].sin().sum() + given["y"].sum(), parts.head(y).sin().sum() + y.sum(), parts.parameters)


# Draws


@pytest.mark.parametrize("every", [None, 5])
def test_dropout_anywhere_is_met_again(every: int | None) -> None:
    """Gradients are those of finite differences under the same draws; a net that forgets nothing rounds no gate."""
    torch.manual_seed(3)
    rnn = rt.RevGRU(INPUTS, HIDDEN, 2, dtype=torch.float64, forgetting=False, dropout=0.2, input_dropout=0.2,
                    hidden_dropout=0.2, output_dropout=0.2)  # fmt: skip
    encode = nn.Sequential(nn.Dropout(0.3), rt.LockedDropout(0.2), nn.Linear(INPUTS, INPUTS)).double()
    head = nn.Sequential(nn.Dropout(0.5), nn.Linear(HIDDEN, TAGS), nn.Dropout(0.2)).double()
    x = torch.randn(STEPS, ROWS, INPUTS, dtype=torch.float64)

    @torch.enable_grad()
    def loss() -> Tensor:
        torch.manual_seed(9)
        outputs, last = rt.rewind_outputs(rnn, x, encode=encode, readout=head, checkpoint_every=every)
        assert isinstance(last, Tensor)
        return differences(outputs, FULL) + last.sum()

    parameters = [p for module in (rnn, encode, head) for p in module.parameters()]
    for parameter, grad in zip(parameters, torch.autograd.grad(loss(), parameters), strict=True):
        way = torch.randn_like(parameter)
        with torch.no_grad():
            parameter.add_(way, alpha=1e-4)
            up = loss().item()
            parameter.sub_(way, alpha=2e-4)
            down = loss().item()
            parameter.add_(way, alpha=1e-4)
        assert (up - down) / 2e-4 == pytest.approx(float((grad * way).sum()), rel=1e-4, abs=1e-5)


def test_draws_differ_from_chunk_to_chunk_and_follow_the_seed() -> None:
    parts = Parts.of()

    def drawn(seed: int) -> Tensor:
        torch.manual_seed(seed)
        given: Tensor = parts.outputs(readout=lambda y: F.dropout(torch.ones_like(y)))[0].detach()
        return given

    once = drawn(1)
    assert torch.equal(once, drawn(1)) and not torch.equal(once, drawn(2))
    assert not torch.equal(once[:4], once[4:8])


def test_a_head_that_draws_on_the_way_back_is_refused() -> None:
    parts, drop = Parts.of(), nn.Dropout(0.5)

    def read(y: Tensor) -> Tensor:
        checked: Tensor = torch.utils.checkpoint.checkpoint(lambda y: parts.head(drop(y)), y, use_reentrant=False)
        return checked

    outputs, _ = parts.outputs(readout=read)
    with pytest.raises(
        rt.ReversalError, match="readout draws random numbers while its gradient is taken .* rewind_out"
    ):
        outputs.sum().backward()


# Backward


def test_a_graph_kept_is_rewound_again() -> None:
    parts = Parts.of(layers=2)
    for every in (None, 4):
        outputs, last = parts.outputs(checkpoint_every=every)
        loss = ctc(outputs, FULL) + last.square().sum()
        once = torch.autograd.grad(loss, parts.parameters, retain_graph=True)
        again = torch.autograd.grad(loss, parts.parameters)
        assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


def test_a_second_backward_is_refused() -> None:
    outputs, _ = Parts.of().outputs()
    outputs.sum().backward()
    with pytest.raises(RuntimeError, match="rewind_outputs: backward a second time; the first call needs retain_graph"):
        outputs.sum().backward()


def test_double_backward_is_refused() -> None:
    parts = Parts.of()
    outputs, _ = parts.outputs()
    with pytest.raises(RuntimeError, match="rewind_outputs does not support double backward"):
        torch.autograd.grad(outputs.sum(), parts.parameters, create_graph=True)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_batches_of_gradients_and_forward_mode_are_refused() -> None:
    parts = Parts.of()
    outputs, _ = parts.outputs()
    with pytest.raises(RuntimeError, match="does not support batches of gradients here"):
        torch.autograd.grad(outputs, parts.parameters, torch.ones(2, *outputs.shape), is_grads_batched=True)
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="does not support forward-mode"):
        rt.rewind_outputs(parts.rnn, forward_ad.make_dual(parts.x, parts.x), readout=parts.head)


def _mul(tensor: Tensor, *, data: bool = True) -> None:
    (tensor.data if data else tensor.detach()).mul_(1.5)


CHANGES: dict[str, tuple[Callable[[Parts, Tensor], None], str]] = {
    "weight": (lambda parts, _: _mul(parts.rnn.weight_hh_l0), "weight_hh_l0 of shape .* was changed between rewind"),
    "head": (lambda parts, _: _mul(parts.head.weight), "weight of Linear in readout of shape .* was changed between"),
    "inputs": (lambda parts, _: _mul(parts.x), "inputs of shape .* was changed between"),
    "outputs": (lambda _, outputs: _mul(outputs[5:6]), "outputs of readout are not what they were"),
    "in place": (lambda _, outputs: _mul(outputs, data=False), "outputs of shape .* were changed in place"),
}  # fmt: skip
"""What is changed between the call and backward, and what is said of it."""


@pytest.mark.parametrize("what", CHANGES)
def test_what_changes_before_backward_is_named(what: str) -> None:
    change, told = CHANGES[what]
    parts = Parts.of()
    outputs, _ = parts.outputs()
    loss = outputs.sum()
    change(parts, outputs)
    with pytest.raises(rt.ReversalError, match=f"rewind_outputs: {told}.*no gradient was produced"):
        loss.backward()
    assert all(parameter.grad is None for parameter in parts.parameters)


def test_a_lengths_tensor_that_changes_is_named() -> None:
    lengths = LENGTHS.clone()
    outputs, _ = Parts.of().outputs(lengths=lengths)
    lengths[0] = 1
    with pytest.raises(rt.ReversalError, match="rewind_outputs: lengths of shape .* was changed"):
        outputs.sum().backward()


def test_a_head_that_reads_other_tensors_later_is_refused() -> None:
    parts, more = Parts.of(), nn.Linear(HIDDEN, TAGS, dtype=real())
    calls: list[int] = []

    def read(y: Tensor) -> Tensor:
        calls.append(len(y))
        return parts.head(y) if len(calls) < 12 else parts.head(y) + 0.0 * more(y)

    outputs, _ = parts.outputs(readout=read)
    with pytest.raises(rt.ReversalError, match="reads tensors for some steps that it did not read for the first"):
        outputs.sum().backward()


def test_hooks_of_leaves_run_once_on_the_whole_gradient() -> None:
    parts = Parts.of()
    seen: list[Tensor] = []
    parts.head.weight.register_hook(seen.append)
    outputs, _ = parts.outputs()
    outputs.sum().backward()
    (once,) = seen
    assert parts.head.weight.grad is not None and torch.equal(once, parts.head.weight.grad)


def test_hooks_on_computed_tensors_are_refused() -> None:
    parts = Parts.of()
    weight = parts.head.weight.tanh()
    weight.register_hook(lambda grad: grad)
    with pytest.raises(ValueError, match="rewind_outputs: a hook on the computed tensor .* that readout uses"):
        parts.outputs(readout=lambda y: y @ weight.t())


def test_frozen_parts_get_no_gradient_and_the_others_theirs() -> None:
    parts = Parts.of()
    wanted = unstreamed(parts)[0]
    parts.rnn.requires_grad_(False)
    outputs, last = parts.outputs()
    agree(outputs.sin().sum(), wanted.sin().sum(), list(parts.head.parameters()))
    parts.head.requires_grad_(False)
    assert not any(one.requires_grad for one in parts.outputs())


# Without gradients, autocast, memory


@nets
def test_without_gradients_it_is_an_evaluation(rev: Any) -> None:
    parts = Parts.of(rev)
    trained, last = parts.outputs(lengths=LENGTHS)
    with torch.no_grad(), rt.meter(peak=False) as used:
        outputs, state = parts.outputs(lengths=LENGTHS)
    assert not outputs.requires_grad and used.stored_bits == 0
    torch.testing.assert_close(outputs, trained.detach(), rtol=0, atol=1e-3)  # a forget gate may round the other way
    with torch.no_grad():
        wanted, _ = unstreamed(parts, LENGTHS)
    assert relative(outputs, wanted) < close()
    with torch.inference_mode():
        assert torch.equal(parts.outputs(lengths=LENGTHS)[0], outputs)


@on_native
def test_under_autocast_heads_are_cast_and_the_net_is_not(backend: str) -> None:
    parts = Parts.of()
    for grad in (True, False):
        with torch.set_grad_enabled(grad), torch.autocast("cpu", dtype=torch.bfloat16):
            outputs, _ = parts.outputs()
            assert outputs.dtype == torch.bfloat16
            wanted = parts.head(parts.rnn(parts.x)[0])
        if grad:
            agree(outputs.float().square().sum(), wanted.float().square().sum(), parts.parameters, 1e-2)


def test_no_more_than_the_present_chunks_outputs_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    set_stack_chunk_steps(monkeypatch, 1)
    alive = watch_outputs(monkeypatch, "forward", "record", "rewind", "infer", "preview")
    parts = Parts.of()
    parts.outputs(checkpoint_every=5)[0].sum().backward()
    with torch.no_grad():
        parts.outputs()
    assert len(alive) > 3 * STEPS and max(alive) <= 1


MEASURED = """
import sys, torch, revtune as rt
from revtune.program.bench.measuring import peak_of
torch.set_num_threads(1)
T, B, H, V = 2000, 8, 128, 20
net, head, x = getattr(rt, sys.argv[1])(16, H), torch.nn.Linear(H, V), torch.randn(T, B, 16)
letters, steps = torch.randint(1, V, (B, 5)), torch.full((B,), T)
def step(n):
    outputs, _ = rt.rewind_outputs(net, x[:n], readout=head)
    loss = outputs.diff(dim=0).square().mean()
    loss.backward()
step(64), step(64)
for part in (net, head):
    part.zero_grad(set_to_none=True)
peak = peak_of(lambda: step(T), torch.device("cpu"))
print(peak - sum(p.grad.nbytes for part in (net, head) for p in part.parameters()), 4 * T * B * V, 4 * T * B * H)
"""


@pytest.mark.slow
@on_native
@pytest.mark.parametrize("cell", ["RevGRU", "RevLSTM"])
def test_memory_is_outputs_buffer_and_a_chunk(cell: str, backend: str) -> None:
    """Outputs, and the same again for differences, their squares and gradients; the net's own outputs would not fit."""
    measured = []
    for _ in range(3):  # the middle one counts, as in benchmarks: what C's heap keeps differs from process to process
        done = subprocess.run([sys.executable, "-c", MEASURED, cell], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        measured.append([*map(int, done.stdout.split())])
    peak, outputs, wide = sorted(measured)[1]
    states = 2 if cell == "RevLSTM" else 1  # of two bits a unit and step at most
    buffer, chunk = states * wide // 16, 8 * 2**20  # with what C's heap keeps of chunks that are gone
    assert peak <= 5 * outputs + buffer + chunk


@on_native
def test_a_limit_of_memory_cuts_chunks_and_checkpoints(backend: str) -> None:
    rnn, head = rt.RevLSTM(INPUTS, 64, dtype=real()), nn.Linear(64, TAGS, dtype=real())
    x = torch.randn(200, ROWS, INPUTS, dtype=real())
    wanted = head(rnn(x)[0])
    parameters = [*rnn.parameters(), *head.parameters()]
    with pytest.MonkeyPatch.context() as patched:
        patched.undo()
        outputs, _ = rt.rewind_outputs(rnn, x, readout=head, max_memory="2500KB")
    agree(outputs.sin().sum(), wanted.sin().sum(), parameters)
    with pytest.raises(ValueError, match="rewind_outputs: max_memory must be at least"):
        rt.rewind_outputs(rnn, x, readout=head, max_memory="800KB")


# What does not stream, and bad input


class Normed(nn.Module):
    """A head with a norm over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.out = nn.BatchNorm1d(HIDDEN, dtype=real()), nn.Linear(HIDDEN, TAGS, dtype=real())

    def forward(self, y: Tensor) -> Tensor:
        scores: Tensor = self.out(self.norm(y))
        return scores


def _counting() -> Callable[[Tensor], Tensor]:
    """A head that gives other numbers with each call."""
    calls: list[Tensor] = []

    def read(y: Tensor) -> Tensor:
        calls.append(y)
        return y * len(calls)

    return read


UNSTREAMABLE: dict[str, tuple[Callable[[], Any], str]] = {
    "batch norm": (Normed, r"in two parts than together.*BatchNorm1d 'norm' takes each chunk for a batch"),
    "softmax over steps": (lambda: lambda y: y.softmax(0), "apply it to the outputs that rewind_outputs returns"),
    "convolution": (lambda: lambda y: F.avg_pool1d(y.t()[None], 3, 1, 1)[0].t(), "must work on each position by"),
    "counting": (_counting, "gave other numbers when it was given the same positions again"),
    "loss": (lambda: lambda y: y.mean(), r"must give a tensor \(N, ...\) of y \(N, H\).*got shape \(\)"),
    "fewer": (lambda: lambda y: y[1:], r"must give a tensor \(N, ...\).*got shape \(\d+, 8\) for N = \d+"),
    "nested": (lambda: lambda y: {"a": (y,)}, r"readout\['a'\] must give a tensor .*got tuple"),
    "nothing": (lambda: lambda y: (), "must give at least one tensor"),
    "none": (lambda: lambda y: None, "got NoneType"),
    "a head with its loss": (lambda: rt.LinearCrossEntropy(HIDDEN, TAGS), "gives a loss; give its logits"),
    "two parts": (lambda: rt.Readout(nn.Linear(HIDDEN, 2), nn.MSELoss()), "give the part of it that gives the pred"),
    "a loss among heads": (
        lambda: {"v": nn.Linear(HIDDEN, 1), "w": rt.LinearCrossEntropy(HIDDEN, TAGS)},
        r"readout\['w'\] must give outputs .* give its logits",
    ),
    "a container among heads": (
        lambda: {"a": nn.ModuleList([nn.Linear(HIDDEN, 1)])},
        r"readout\['a'\] must be a module or a function, got ModuleList",
    ),
    "a number among heads": (lambda: (torch.tanh, 3), r"readout\[1\] must be a module or a function, got int"),
    "number": (lambda: 3, "readout must be a module or a function, got int"),
}  # fmt: skip


@pytest.mark.parametrize("kind", UNSTREAMABLE)
@pytest.mark.parametrize("grad", [True, False])
def test_heads_that_do_not_stream_are_refused(kind: str, grad: bool) -> None:
    make, told = UNSTREAMABLE[kind]
    if kind == "counting" and not grad:
        told = "in two parts than together"
    with torch.set_grad_enabled(grad), pytest.raises((ValueError, rt.ReversalError), match=told):
        Parts.of().outputs(readout=make())


def test_heads_whose_shape_changes_are_refused() -> None:
    def read(y: Tensor) -> Tensor:
        return y if len(y) > ROWS else y[:, :3]  # of the last step, which is a chunk by itself

    with pytest.raises(ValueError, match=r"the same shapes and dtypes for all positions, got \(N, 8\) .* and \(N, 3\)"):
        Parts.of().outputs(readout=read)


def test_a_single_position_is_enough() -> None:
    parts = Parts.of()
    x = parts.x[:1, :1]
    outputs, _ = rt.rewind_outputs(parts.rnn, x, readout=parts.head)
    agree(outputs.sin().sum(), parts.head(parts.rnn(x)[0]).sin().sum(), parts.parameters)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"rnn": nn.GRU(INPUTS, HIDDEN)}, "wants a RevGRU or RevLSTM, got GRU"),
        ({"rnn": BOTH_WAYS, "checkpoint_every": 2}, "checkpoint_every must be None for a bidirectional net"),
        ({"rnn": rt.RevGRU(INPUTS, HIDDEN, output="last")}, "rewind_outputs reads out every step"),
        ({"inputs": torch.zeros(STEPS, ROWS, dtype=torch.long)}, "pass encode="),
        ({"inputs": torch.zeros(STEPS)}, r"inputs must be \(T, B, ...\)"),
        ({"inputs": torch.zeros(0, ROWS, INPUTS)}, "at least one step"),
        ({"inputs": [1.0]}, "inputs must be a padded tensor"),
        ({"lengths": torch.tensor([1, 2])}, "lengths must be 3 integers"),
        ({"lengths": torch.tensor([1, 2, 99])}, "lengths must lie in 1..13"),
        ({"state": torch.zeros(1, 2, HIDDEN)}, "state|hx|h_0"),
        ({"checkpoint_every": 0}, "checkpoint_every must be a positive number of steps"),
        ({"max_memory": "much"}, "max_memory must be a number of bytes"),
    ],
)  # fmt: skip
def test_bad_input_is_named(change: dict[str, Any], told: str) -> None:
    rnn, head, x = Parts.of()
    given = {"rnn": rnn, "inputs": x, "readout": head} | change
    with pytest.raises(ValueError, match=told):
        rt.rewind_outputs(given.pop("rnn"), given.pop("inputs"), **given)
