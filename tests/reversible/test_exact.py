"""Rewinding gives back every state bit for bit and leaves the buffer as it began, or says that it could not."""

import copy
import itertools
import pickle
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import revtune as rt
from revtune.reversible.kernel import sequence_recall as recall
from revtune.reversible.kernel.checksum import checksum
from revtune.reversible.kernel.tape import LayerTensors
from revtune.reversible.layers.layer import LayerSettings, build_tape
from revtune.reversible.layers.stack import Stack
from tests.backends import in_kernel, on_reference
from tests.stored import KINDS, Leaves, Problem, differentiate, problem, random_loss

BACKENDS = ("reference", "native")
CELLS = KINDS[:4]
FORGETTING = ("RevGRU", "RevLSTM", "minGRU")
GRID = [(kind, bits) for kind in FORGETTING for bits in (1.0, 2.0, 3.0, 5.0, None)]
GRID += [("unbounded RevLSTM", 3.0), ("NF-RevGRU", 3.0), ("NF-RevLSTM", 3.0)]
BOTH_GRIDS = [(*case, "reference") for case in GRID] + [(*case, "native") for case in GRID if case[0] in CELLS]
every_cell = pytest.mark.parametrize(
    ("kind", "backend"), [(kind, "reference") for kind in KINDS] + [(kind, "native") for kind in CELLS],
    indirect=["backend"],
)  # fmt: skip

Standing = list[tuple[tuple[Tensor, ...], Tensor, int]]


@pytest.fixture(autouse=True)
def _gates_are_evaluated_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the kernel's way back, which keeps them where they are few."""
    monkeypatch.setattr(recall, "KEPT", 0)


def layers(kind: str, number: int, steps: int, bits: float | None) -> tuple[Stack, Tensor]:
    """Some layers of a cell that stand at random states, and their input; the rows are ragged."""
    problems = [problem(kind, steps, bits=bits, inputs=8 if n else 5, spread=1.0, seed=n) for n in range(number)]
    lengths = torch.tensor([steps // 3, steps, 1])
    inputs = [LayerTensors(of.state, of.weights, {}) for of in problems]
    tapes = [
        build_tape(of.cell, tensors, LayerSettings(kind, in_kernel(of), lengths=lengths), steps, of.x.dtype)
        for of, tensors in zip(problems, inputs, strict=True)
    ]
    return Stack(tapes), problems[0].x


def standing(stack: Stack) -> Standing:
    """States, heads and words of every layer."""
    return [(tape.state(), tape.buffer.heads.clone(), tape.buffer.words) for tape in stack.tapes]


def same(given: Standing, wanted: Standing) -> bool:
    """Whether two standings are the same to the last bit."""
    return all(
        words == others and torch.equal(heads, other) and all(map(torch.equal, state, kept))
        for (state, heads, words), (kept, other, others) in zip(given, wanted, strict=True)
    )


def rewinds(stack: Stack, x: Tensor, chunk: int) -> bool:
    """Whether every state at a chunk's end, every output and the buffer come back, chunk by chunk."""
    spans = [(first, x[first : first + chunk]) for first in range(0, x.shape[0], chunk)]
    marks, outputs = [], []
    for first, part in spans:
        marks.append(standing(stack))
        outputs.append(stack.forward(part, first))
    assert all(heads.unique().tolist() == [2.0**14] and words == 0 for _, heads, words in marks[0])
    back = stack.copy()
    for (first, part), mark, y in zip(reversed(spans), reversed(marks), reversed(outputs), strict=True):
        if not (torch.equal(back.rewind(part, first), y) and same(standing(back), mark)):
            return False
    return True


@pytest.mark.parametrize(("number", "steps", "chunk"), [(1, 200, 64), (2, 90, 16), (3, 40, 1)])
@pytest.mark.parametrize(("kind", "bits", "backend"), BOTH_GRIDS, indirect=["backend"])
@pytest.mark.covering(1)
def test_rewinding_is_exact(kind: str, bits: float | None, number: int, steps: int, chunk: int) -> None:
    stack, x = layers(kind, number, steps, bits)
    with torch.no_grad():
        assert rewinds(stack, x, chunk)
    if not kind.startswith("NF"):
        assert all(tape.buffer.words > 0 for tape in stack.tapes)
    else:
        assert all(tape.buffer.words == 0 for tape in stack.tapes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "backend"), [("minGRU", "reference"), ("RevLSTM", "reference"), *((kind, "native") for kind in CELLS)],
    indirect=["backend"],
)  # fmt: skip
def test_rewinding_is_exact_over_ten_thousand_steps(kind: str) -> None:
    of = problem(kind, 10_000, rows=2, hidden=4, inputs=2)
    recording = rt.record(of.cell, of.x, of.state, weights=of.weights, chunk=1000)
    y, first = rt.unscan(recording)
    assert torch.equal(y, recording.y)
    for given, wanted in zip(first, of.state, strict=True):
        assert torch.equal(given, (wanted * 2**32).round() / 2**32)


@pytest.mark.parametrize("share", [1, 2, 3])
@every_cell
def test_a_recording_can_be_rewound_again_whatever_the_share(kind: str, share: int) -> None:
    of = problem(kind, 25, hidden=12)
    recording = rt.record(
        of.cell, of.x, weights=of.weights, chunk=7, share=share * len(of.cell.parts), lengths=torch.tensor([25, 2, 17])
    )
    for _ in range(2):
        y, first = rt.unscan(recording)
        assert torch.equal(y, recording.y)
        assert not any(state.any() for state in first)


@every_cell
def test_a_copy_of_a_recording_goes_its_own_way(kind: str) -> None:
    """It rewinds after the tensors of the first have changed, and that one not: its weights are not the same."""
    of, lengths = problem(kind, 25, hidden=12), torch.tensor([25, 2, 17])
    recording = rt.record(of.cell, of.x, of.state, weights=of.weights, chunk=7, lengths=lengths)
    wanted, first = rt.unscan(recording)
    same, other = copy.copy(recording), copy.deepcopy(recording)
    assert torch.equal(rt.unscan(same)[0], wanted) and same.x is recording.x
    for weight in of.weights.values():
        weight.mul_(0.5)
    of.x.zero_()
    y, again = rt.unscan(other)
    assert torch.equal(y, wanted) and all(map(torch.equal, again, first))
    with pytest.raises(rt.ReversalError):
        rt.unscan(recording)
    with pytest.raises(TypeError, match="a Recording cannot be pickled, .* record again"):
        pickle.dumps(other)


@on_reference
@pytest.mark.parametrize("kind", KINDS)
def test_rewinding_is_exact_in_float64(kind: str) -> None:
    of = problem(kind, 40, dtype=torch.float64, bits=None)
    recording = rt.record(of.cell, of.x, weights=of.weights, chunk=9)
    assert torch.equal(rt.unscan(recording)[0], recording.y)


@every_cell
def test_training_and_recording_give_the_same_bits(kind: str) -> None:
    of = problem(kind, 30)
    recording = rt.record(of.cell, of.x, of.state, weights=of.weights, chunk=7)
    trained = differentiate(rt.scan, of, chunk=7)
    assert torch.equal(recording.y, trained.y)
    assert all(map(torch.equal, recording.state, trained.finals))


# What differs between the two directions


def nudged(cell: rt.Cell, call: int, gate: int, change: Callable[[Tensor], Tensor]) -> rt.Cell:
    """The cell, with one gate changed the `call`-th time that gates are computed, counted from 0."""
    calls = iter(range(10**9))

    def wrapped(stage: rt.Stage) -> rt.Stage:
        def gates(step: rt.Step) -> tuple[Tensor, ...]:
            found = list(stage.gates(step))
            if next(calls) == call:
                found[gate] = change(found[gate])
            return tuple(found)

        return replace(stage, gates=gates)

    return replace(cell, stages=tuple(wrapped(stage) for stage in cell.stages))


def one_bit(value: Tensor) -> Tensor:
    """Every element one representable number towards zero."""
    return value + (torch.nextafter(value.detach(), torch.zeros_like(value)) - value.detach())


def one_bit_of_one_unit(value: Tensor) -> Tensor:
    chosen = torch.zeros_like(value, dtype=torch.bool)
    chosen[1, 2] = True
    return torch.where(chosen, one_bit(value), value)


def one_forget_step(value: Tensor) -> Tensor:
    """One unit's forget gate 1/1024 lower."""
    lower = torch.zeros_like(value)
    lower[1, 2] = 1 / 1024
    return value - lower


@pytest.mark.parametrize("undone", [0, 3, 4, 9, 14])
@on_reference
@pytest.mark.parametrize("kind", KINDS)
def test_a_gate_that_differs_in_one_bit_is_refused(kind: str, undone: int) -> None:
    """Steps 14 down to 0 of 20 are rewound; the step undone after `undone` others is disturbed."""
    of = problem(kind, 20)
    stages, step = len(of.cell.stages), 14 - undone
    chunk = f"{of.cell.name}, steps {step - step % 5}..{step - step % 5 + 4}: rewinding failed"
    for stage in range(stages):
        call = (20 + undone) * stages + stage
        with pytest.raises(rt.ReversalError, match=chunk):
            differentiate(rt.scan, of._replace(cell=nudged(of.cell, call, -1, one_bit)), chunk=5)


@on_reference
@pytest.mark.parametrize("kind", KINDS)
def test_a_gate_that_differs_between_recording_and_unscanning_is_refused(kind: str) -> None:
    of = problem(kind, 20)
    stages = len(of.cell.stages)
    for undone in (0, 6, 19):
        cell = nudged(of.cell, (20 + undone) * stages, -1, one_bit)
        step = (19 - undone) // 5 * 5
        with pytest.raises(rt.ReversalError, match=f"{cell.name}, steps {step}..{step + 4}: rewinding failed"):
            rt.unscan(rt.record(cell, of.x, of.state, weights=of.weights, chunk=5))


@on_reference
@pytest.mark.parametrize("kind", FORGETTING)
def test_one_forget_gate_that_differs_in_its_last_place_is_refused(kind: str) -> None:
    of = problem(kind, 20)
    for undone in (0, 7, 14):
        cell = nudged(of.cell, (20 + undone) * len(of.cell.stages), 0, one_forget_step)
        with pytest.raises(rt.ReversalError, match=cell.name):
            differentiate(rt.scan, of._replace(cell=cell), chunk=5)


@on_reference
@pytest.mark.parametrize("kind", KINDS)
def test_one_bit_of_one_unit_is_refused_or_smaller_than_the_grid(kind: str) -> None:
    """A last bit that leaves every state as it was changes gradients by no more than a last bit."""
    of = problem(kind, 20)
    wanted, refused = differentiate(rt.scan, of, chunk=5), 0
    gates = range(1, 5) if "LSTM" in kind else (1,)
    for gate, call in itertools.product(gates, (25, 27, 30)):
        cell = nudged(of.cell, call * len(of.cell.stages), gate, one_bit_of_one_unit)
        try:
            given = differentiate(rt.scan, of._replace(cell=cell), chunk=5)
        except rt.ReversalError:
            refused += 1
        else:
            for name, grad in given.grads.items():
                assert float((grad - wanted.grads[name]).norm()) <= 2**-22 * float(wanted.grads[name].norm())
    assert refused


@on_reference
def test_backward_after_a_refused_backward_gives_no_wrong_gradient() -> None:
    of, leaves = problem("RevGRU", 20), Leaves(problem("RevGRU", 20))
    wanted = differentiate(rt.scan, of, chunk=5)
    cell = nudged(of.cell, (20 + 7) * 2, -1, one_bit)
    loss = random_loss(*rt.scan(cell, leaves.x, leaves.state, weights=leaves.weights, chunk=5))
    with pytest.raises(rt.ReversalError):
        leaves.gradients(loss)
    try:
        grads = leaves.gradients(loss)
    except RuntimeError as error:
        assert "second" in str(error)
    else:
        assert all(torch.equal(grad, wanted.grads[name]) for name, grad in grads.items())


def test_compensating_changes_do_not_pass() -> None:
    of = problem("NF-RevGRU", 10)
    recording = rt.record(of.cell, of.x, (of.state[0] + 1000.0,), weights=of.weights, chunk=5)
    counts = recording.tape.counts["h1"]
    counts[0, 0] += 3
    counts[0, 1] -= 1
    with pytest.raises(rt.ReversalError, match="steps 5..9"):
        rt.unscan(recording)


def test_the_checksum_sees_places_order_and_small_differences() -> None:
    values = torch.arange(12, dtype=torch.float64).view(3, 4) * 2.0**30
    small = torch.zeros_like(values)
    small[0, :2] = torch.tensor([3.0, -1.0])
    changed = [[values.flip(0)], [values.flip(1)], [values + small], [-values]]
    changed += [[values, values + 1], [values + 1, values]]
    sums = [checksum(0, tensors) for tensors in ([values], *changed)] + [checksum(1, [values])]
    assert len(set(sums)) == len(sums)
    assert checksum(0, [values * 0]) == checksum(0, [values * -0.0])


@pytest.mark.parametrize("part", ["h1", "c2"])
def test_a_changed_state_is_refused(part: str) -> None:
    of = problem("RevLSTM", 12)
    recording = rt.record(of.cell, of.x, weights=of.weights, chunk=6)
    recording.tape.counts[part][2, 1] += 1
    with pytest.raises(rt.ReversalError, match="RevLSTM, steps 6..11"):
        rt.unscan(recording)


def test_a_changed_head_is_refused() -> None:
    of = problem("RevGRU", 12)
    recording = rt.record(of.cell, of.x, weights=of.weights, chunk=6)
    recording.tape.buffer.heads[0, 0] += 1
    with pytest.raises(rt.ReversalError, match="RevGRU, steps 6..11"):
        rt.unscan(recording)


# Settings


@pytest.fixture
def settings() -> Iterator[None]:
    """Puts the settings back."""
    threads, precision, onednn = in_force()
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)
    torch._C._set_mkldnn_enabled(onednn)


SWITCHES: dict[str, Callable[[], Any]] = {
    "threads": lambda: torch.set_num_threads(2),
    "precision": lambda: torch.set_float32_matmul_precision("medium"),
    "oneDNN": lambda: torch._C._set_mkldnn_enabled(False),
}


ONEDNN: Any = torch.backends.mkldnn


def in_force() -> tuple[int, str, bool]:
    """Thread count, precision, and whether oneDNN is on."""
    return torch.get_num_threads(), torch.get_float32_matmul_precision(), torch._C._get_mkldnn_enabled()


def reading() -> float:
    """A number that depends on the settings in force."""
    threads, _, onednn = in_force()
    coarse = ONEDNN.matmul.fp32_precision == "bf16"
    return 0.01 * threads + 0.02 * coarse + 0.03 * onednn + 0.04 * torch.is_autocast_enabled("cpu")


def telltale(of: Problem, read: Callable[[], float] = reading) -> Problem:
    """A problem whose updates depend on the settings in force: it cannot be rewound unless they are put back."""

    def wrapped(stage: rt.Stage) -> rt.Stage:
        def gates(step: rt.Step) -> tuple[Tensor, ...]:
            found = stage.gates(step)
            return (*found[:-1], found[-1] + read())

        return replace(stage, gates=gates)

    return of._replace(cell=replace(of.cell, stages=tuple(wrapped(stage) for stage in of.cell.stages)))


@on_reference
@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("kind", ["RevGRU", "RevLSTM"])
def test_settings_are_put_back_to_rewind(kind: str, switch: str, settings: None) -> None:
    of = telltale(problem(kind, 12))
    wanted = differentiate(rt.scan, of, chunk=5)
    recording = rt.record(of.cell, of.x, weights=of.weights, chunk=5)
    leaves = Leaves(of)
    loss = random_loss(*rt.scan(of.cell, leaves.x, leaves.state, weights=leaves.weights, chunk=5))
    SWITCHES[switch]()
    now = in_force()
    grads = leaves.gradients(loss)
    assert torch.equal(rt.unscan(recording)[0], recording.y)
    assert in_force() == now
    assert all(torch.equal(grad, wanted.grads[name]) for name, grad in grads.items())


@pytest.mark.parametrize("around", ["forward", "backward", "both"])
def test_autocast_does_not_reach_inside(around: str, backend: str) -> None:
    of, leaves = problem("RevGRU", 12), Leaves(problem("RevGRU", 12))
    of = telltale(of) if backend == "reference" else of
    wanted = differentiate(rt.scan, of, chunk=5)
    with torch.autocast("cpu", torch.bfloat16, enabled=around != "backward"):
        y, finals = rt.scan(of.cell, leaves.x, leaves.state, weights=leaves.weights, chunk=5)
    loss = random_loss(y, finals)
    with torch.autocast("cpu", torch.bfloat16, enabled=around != "forward"):
        grads = leaves.gradients(loss)
    assert y.dtype == torch.float32
    assert torch.equal(y.detach(), wanted.y)
    assert all(torch.equal(grad, wanted.grads[name]) for name, grad in grads.items())


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("kind", ["RevGRU", "RevLSTM"])
def test_real_products_under_settings_that_change_before_backward(kind: str, switch: str, settings: None) -> None:
    of = problem(kind, 9, rows=20, hidden=128, inputs=128, spread=0.1)
    wanted = differentiate(rt.scan, of, chunk=4)
    leaves = Leaves(of)
    loss = random_loss(*rt.scan(of.cell, leaves.x, leaves.state, weights=leaves.weights, chunk=4))
    SWITCHES[switch]()
    assert all(torch.equal(grad, wanted.grads[name]) for name, grad in leaves.gradients(loss).items())


def test_backward_on_another_python_thread() -> None:
    of = problem("RevLSTM", 12)
    wanted, leaves, found = differentiate(rt.scan, of, chunk=5), Leaves(of), []
    loss = random_loss(*rt.scan(of.cell, leaves.x, leaves.state, weights=leaves.weights, chunk=5))
    thread = threading.Thread(target=lambda: found.append(leaves.gradients(loss)))
    thread.start()
    thread.join()
    assert all(torch.equal(grad, wanted.grads[name]) for name, grad in found[0].items())


@on_reference
@pytest.mark.parametrize("module", ["mkldnn", "cuda"])
def test_new_precision_switches_are_put_back_to_rewind(module: str) -> None:
    """torch's precision by backend; once it is set, the older getters refuse to read."""
    matmul = getattr(torch.backends, module).matmul
    of = telltale(problem("RevGRU", 12), lambda: 0.1 * (matmul.fp32_precision == "tf32"))
    leaves, before = Leaves(of), matmul.fp32_precision
    with ExitStack() as stack:
        stack.callback(setattr, matmul, "fp32_precision", before)
        matmul.fp32_precision = "tf32"
        wanted = differentiate(rt.scan, of, chunk=5)
        loss = random_loss(*rt.scan(of.cell, leaves.x, leaves.state, weights=leaves.weights, chunk=5))
        matmul.fp32_precision = "ieee"
        grads = leaves.gradients(loss)
        assert matmul.fp32_precision == "ieee"
    assert all(torch.equal(grad, wanted.grads[name]) for name, grad in grads.items())


# Weights and graphs


def traded(values: Tensor) -> Tensor:
    """Values whose bits, as whole numbers, have the same sums along every dimension: four of them trade."""
    bits = values.clone().view(torch.int32)
    corner = bits.flatten(1)[:2, :2] if bits.dim() > 1 else bits[:4].view(2, 2)
    corner += torch.tensor([[1, -1], [-1, 1]], dtype=torch.int32) << 16
    return bits.view(values.dtype)


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "scaled": lambda values: values * 1.01,
    "flipped": lambda values: values.flip(0),
    "traded": traded,
}


@pytest.mark.parametrize("name", ["ih", "hh", "bias"])
@pytest.mark.parametrize("chunk", [4, 12])
@pytest.mark.parametrize("change", sorted(CHANGES))
def test_weights_changed_through_data_are_refused(name: str, chunk: int, change: str) -> None:
    of, leaves = problem("RevGRU", 12), Leaves(problem("RevGRU", 12))
    loss = random_loss(*rt.scan(of.cell, leaves.x, leaves.state, weights=leaves.weights, chunk=chunk))
    data = leaves.weights[name].data
    data.copy_(CHANGES[change](data))
    with pytest.raises(rt.ReversalError, match="RevGRU"):
        leaves.gradients(loss)


@pytest.mark.parametrize("name", ["x", "state.0", "ih", "hh", "bias"])
@pytest.mark.parametrize("chunk", [4, 12])
def test_tensors_changed_in_place_are_refused_by_autograd(name: str, chunk: int) -> None:
    of, leaves = problem("RevGRU", 12), Leaves(problem("RevGRU", 12))
    loss = random_loss(*rt.scan(of.cell, leaves.x, leaves.state, weights=leaves.weights, chunk=chunk))
    with torch.no_grad():
        leaves.named()[name].mul_(1.01)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        leaves.gradients(loss)


@pytest.mark.parametrize("chunk", [4, 12])
def test_masks_changed_in_place_are_refused_by_autograd(chunk: int) -> None:
    of, leaves, mask = problem("RevGRU", 12), Leaves(problem("RevGRU", 12)), torch.ones(3, 4)
    loss = random_loss(
        *rt.scan(of.cell, leaves.x, leaves.state, weights=leaves.weights, masks={"h1": mask}, chunk=chunk)
    )
    mask.mul_(0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        leaves.gradients(loss)


@pytest.mark.parametrize("run", [rt.scan, rt.record])
def test_a_mask_that_wants_a_gradient_is_refused(run: Callable[..., Any]) -> None:
    of = problem("RevGRU", 12)
    masks = {"h1": torch.ones(3, 4, requires_grad=True)}
    with pytest.raises(ValueError, match="mask 'h1' must .*require no gradient"):
        run(of.cell, of.x, of.state, weights=of.weights, masks=masks)


@pytest.mark.parametrize("chunk", [4, 12])
@pytest.mark.parametrize("change", sorted(CHANGES))
def test_inputs_changed_through_data_are_refused(chunk: int, change: str) -> None:
    of, leaves = problem("RevGRU", 12), Leaves(problem("RevGRU", 12))
    loss = random_loss(*rt.scan(of.cell, leaves.x, leaves.state, weights=leaves.weights, chunk=chunk))
    data = leaves.x.data
    data.copy_(CHANGES[change](data))
    with pytest.raises(rt.ReversalError, match="RevGRU"):
        leaves.gradients(loss)


def test_double_backward_is_refused() -> None:
    of, leaves = problem("RevGRU", 8), Leaves(problem("RevGRU", 8))
    y, _ = rt.scan(of.cell, leaves.x, leaves.state, weights=leaves.weights, chunk=3)
    with pytest.raises(RuntimeError, match="revtune does not support double backward"):
        torch.autograd.grad(y.sum(), leaves.x, create_graph=True)


@every_cell
@pytest.mark.parametrize("chunk", [4, 12])
def test_a_retained_graph_gives_the_same_gradients_again(kind: str, chunk: int) -> None:
    of, leaves = problem(kind, 12), Leaves(problem(kind, 12))
    loss = random_loss(*rt.scan(of.cell, leaves.x, leaves.state, weights=leaves.weights, chunk=chunk))
    tensors = list(leaves.named().values())
    passes = [torch.autograd.grad(loss, tensors, retain_graph=keep) for keep in (True, True, False)]
    for again in passes[1:]:
        assert all(map(torch.equal, passes[0], again))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, tensors)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_forwards_do_not_disturb_each_other(order: tuple[int, int]) -> None:
    problems = [problem("RevLSTM", 12, seed=seed) for seed in (0, 1)]
    problems[1] = problems[1]._replace(weights=problems[0].weights, cell=problems[0].cell)
    wanted = [differentiate(rt.scan, of, chunk=5).grads for of in problems]
    leaves = [Leaves(of) for of in problems]
    leaves[1].weights = leaves[0].weights
    losses = [random_loss(*rt.scan(problems[0].cell, one.x, one.state, weights=one.weights, chunk=5)) for one in leaves]
    for which in order:
        grads = leaves[which].gradients(losses[which])
        assert all(torch.equal(grad, wanted[which][name]) for name, grad in grads.items())


@pytest.fixture
def buffers(monkeypatch: pytest.MonkeyPatch) -> weakref.WeakSet[rt.Buffer]:
    """The buffers that are alive."""
    alive: weakref.WeakSet[rt.Buffer] = weakref.WeakSet()
    start, copy = rt.Buffer.__init__, rt.Buffer.copy

    def started(self: rt.Buffer, *args: Any, **options: Any) -> None:
        start(self, *args, **options)
        alive.add(self)

    def copied(self: rt.Buffer) -> rt.Buffer:
        other = copy(self)
        alive.add(other)
        return other

    monkeypatch.setattr(rt.Buffer, "__init__", started)
    monkeypatch.setattr(rt.Buffer, "copy", copied)
    return alive


def forward(of: Problem) -> tuple[Leaves, Tensor]:
    leaves = Leaves(of)
    return leaves, random_loss(*rt.scan(of.cell, leaves.x, leaves.state, weights=leaves.weights, chunk=5))


@on_reference
def test_the_buffer_is_freed_with_its_graph(buffers: weakref.WeakSet[rt.Buffer]) -> None:
    _, loss = forward(problem("RevGRU", 12))
    assert len(buffers) == 1
    del loss
    assert len(buffers) == 0


@on_reference
def test_the_buffer_is_freed_by_backward(buffers: weakref.WeakSet[rt.Buffer]) -> None:
    leaves, loss = forward(problem("RevGRU", 12))
    torch.autograd.grad(loss, leaves.x, retain_graph=True)
    assert len(buffers) == 1
    torch.autograd.grad(loss, leaves.x)
    assert len(buffers) == 0


def test_a_product_repeats() -> None:
    """What everything rests on: the same product of the same shape and layout comes out the same."""
    x, weight = torch.randn(20, 325), torch.randn(1950, 325)
    assert torch.equal(F.linear(x, weight[:650]), F.linear(x, weight[:650].detach()))
