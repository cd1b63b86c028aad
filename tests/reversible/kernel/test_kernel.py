"""The C++ kernel beside plain torch: the same equations, the buffer's arithmetic, bits that depend on little."""

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import revtune as rt
from revtune.reversible.arguments import running
from revtune.reversible.cells import fixed
from revtune.reversible.kernel import sequence_recall as recall
from revtune.reversible.kernel.chunk_buffers import ChunkBuffers
from revtune.reversible.kernel.kernel import Keep, Kernel
from revtune.reversible.kernel.weights import Weights
from tests.stored import Pairs, Problem, differentiate, problem, random_loss, relative, response_pairs, stored_scan

BACKENDS = ("native",)
KINDS = ("RevGRU", "RevLSTM", "unbounded RevLSTM", "NF-RevGRU", "NF-RevLSTM")
kinds = pytest.mark.parametrize("kind", KINDS)

FORGET_GATES = {"RevGRU": 1, "RevLSTM": 2, "NF-RevGRU": 0, "NF-RevLSTM": 0}
"""How many blocks of a half, the first ones, are rounded."""


class Case(NamedTuple):
    """A problem, and with what it is run."""

    of: Problem
    responses: Pairs
    options: dict[str, Any]


def case(number: int) -> Case:
    """A random one of the cases that the kernel is for.

    Weights are small enough that gradients do not grow with time: what grows, grows from the last bit too.
    """
    pick = random.Random(number)
    units, rows = pick.choice((1, 3, 31, 32, 33, 65)), pick.choice((1, 2, 13, 30))
    steps = pick.choice((1, 2, 9, 70, 200))
    bits, chunk = pick.choice((1.0, 2.0, 3.0, 5.0, None)), pick.choice((1, 2, 7, steps))
    kind = KINDS[number % len(KINDS)]
    spread = (0.5 if kind in ("RevGRU", "RevLSTM") else 0.1) / (3 + units) ** 0.5
    of = problem(kind, steps, bits=bits, rows=rows, hidden=2 * units, seed=number, spread=spread)
    of = of._replace(state=tuple(state.float() if pick.random() < 0.3 else state for state in of.state))
    drop = {"ih", "bias"} if pick.random() < 0.15 else {"bias"} if pick.random() < 0.2 else set()
    of = of._replace(weights={name: weight for name, weight in of.weights.items() if name not in drop})
    generator = torch.Generator().manual_seed(number)
    if "ih" in drop:
        of = of._replace(x=torch.randn(steps, rows, of.cell.blocks * units, generator=generator))
    answering = tuple(name for name in ("ih", "hh") if name in of.weights and pick.random() < 0.4)
    options: dict[str, Any] = {"chunk": chunk}
    if pick.random() < 0.5:
        options["lengths"] = torch.randint(1, steps + 1, (rows,), generator=generator)
    if pick.random() < 0.5:
        halves = pick.choice((("h1",), ("h2",), ("h1", "h2")))
        kept = torch.full((rows, units), 0.7)
        options["masks"] = {half: torch.bernoulli(kept, generator=generator) / 0.7 for half in halves}
    pairs = response_pairs(of, names=answering)
    return Case(of, {name: (extra / (1 + units) ** 0.5, scale) for name, (extra, scale) in pairs.items()}, options)


def kernel_of(of: Problem, responses: Pairs | None = None, **options: Any) -> Kernel:
    units = of.state[0].shape[-1] // 2
    weights = Weights(of.weights, responses or {}, frozenset(), units, of.cell.name, engine="native")
    return Kernel(of.cell, weights, units, options.get("masks", {}), options.get("lengths"))


def counts_of(of: Problem) -> Tensor:
    """The first state in counts, (S, 2, B, N)."""
    return torch.stack([torch.stack(fixed.to_counts(state).chunk(2, -1)) for state in of.state])


def run(kernel: Kernel, of: Problem, keep: Keep = Keep.EVERYTHING) -> tuple[ChunkBuffers, Tensor, Tensor, Tensor]:
    """All steps as one chunk: gates and states, counts and heads at the end, words."""
    chunk, counts = kernel.chunk_buffers(of.x, recorded=True), counts_of(of)
    heads = kernel.heads(of.x.shape[1], of.x.shape[0], None)
    words, _, fine = kernel.forward(chunk, counts, heads, 0, keep)
    assert fine
    return chunk, counts, heads, words


def with_kernel_roundings(of: Problem, gates: Tensor) -> rt.Cell:
    """The cell with its forget gates rounded as the kernel rounded them; derivatives are the cell's own.

    A sum in another order may round a gate to the next 1024th. With the kernel's own roundings nothing is left by which
    two ways of computing may differ but the last bits of float32, however long the sequence.
    """
    calls, units = iter(range(10**9)), of.state[0].shape[-1] // 2
    native, blocks = of.cell.native, of.cell.blocks // 2
    assert native is not None
    top = 1024 if blocks == 3 else 1023

    def wrapped(stage: rt.Stage, half: int) -> rt.Stage:
        def rounded_alike(step: rt.Step) -> tuple[Tensor, ...]:
            own, kernels = list(stage.gates(step)), gates[next(calls) // 2]
            for block in range(FORGET_GATES[of.cell.name]):
                column = (half * blocks + block) * units
                rounded = rt.forget_gate(kernels[:, column : column + units], native.max_forget_bits, top=top)
                own[block] = rounded.double() + (own[block] - own[block].detach())
            return tuple(own)

        return replace(stage, gates=rounded_alike)

    return replace(of.cell, stages=tuple(map(wrapped, of.cell.stages, range(2))))


def in_float64(given: Any) -> Any:
    """Tensors of float32 within tuples and dictionaries, as float64."""
    if isinstance(given, Tensor):
        return given.double() if given.is_floating_point() else given
    if isinstance(given, dict):
        return {name: in_float64(value) for name, value in given.items()}
    return tuple(map(in_float64, given)) if isinstance(given, tuple) else given


# The same as in plain torch


@pytest.fixture(params=[0, 40_000, 2**30], ids=["recalled", "some kept", "all kept"])
def kept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many bytes of gates are kept: the way back has no other gates, or evaluates all of them again."""
    monkeypatch.setattr(recall, "KEPT", request.param)


@pytest.mark.parametrize(("number", "kept"), [(n, (0, 40_000, 2**30)[n % 3]) for n in range(66)], indirect=["kept"])
def test_outputs_states_and_gradients_are_those_of_the_equations_in_float64(number: int, kept: None) -> None:
    of, responses, options = case(number)
    gates = run(kernel_of(of, responses, **options), of)[0].gates
    exact = Problem(with_kernel_roundings(of, gates), of.x.double(), in_float64(of.state), in_float64(of.weights))
    given = differentiate(rt.scan, of, responses=responses, **options)
    wanted = differentiate(stored_scan, exact, responses=in_float64(responses), **in_float64(options))
    for value, expected in zip((given.y, *given.finals), (wanted.y, *wanted.finals), strict=True):
        assert relative(value, expected) < 1e-5
    assert given.grads.keys() == wanted.grads.keys()
    for name, grad in wanted.grads.items():
        assert relative(given.grads[name], grad) < 1e-5, name


@pytest.mark.parametrize("share", [None, 4, 12])
@pytest.mark.parametrize("bits", [1.0, 3.0, None])
@pytest.mark.parametrize("kind", ["RevGRU", "RevLSTM"])
def test_counts_heads_and_words_are_those_of_the_buffer(kind: str, bits: float | None, share: int | None) -> None:
    """Given the same gates: every row is a buffer of its own, and c has one beside h's."""
    of = problem(kind, 60, bits=bits, rows=3, hidden=14, spread=1.5)
    kernel = kernel_of(of, lengths=torch.tensor([60, 17, 40]))
    chunk, counts = kernel.chunk_buffers(of.x, recorded=True), counts_of(of)
    heads = kernel.heads(3, 60, share)
    words, _, _ = kernel.forward(chunk, counts, heads, 0, Keep.EVERYTHING)
    stored = 0
    for row, steps in enumerate((60, 17, 40)):
        buffers = [rt.Buffer(1, 7, parts=2, share=share or rt.default_share(60, 2)) for _ in of.state]
        parts = {part: counts_of(of)[g, i, row : row + 1] for g, group in enumerate(of.cell.states)
                 for i, part in enumerate(group)}  # fmt: skip
        for gates in chunk.gates[:steps, row]:
            for half in range(2):
                follow(of.cell, gates.view(2, -1, 1, 7)[half], parts, buffers, half)
        for g, group in enumerate(of.cell.states):
            assert torch.equal(heads[g, row], buffers[g].heads[0])
            for i, part in enumerate(group):
                assert torch.equal(counts[g, i, row], parts[part][0])
        stored += sum(buffer.words for buffer in buffers)
    assert words.numel() == stored + 2 * 3


def follow(cell: rt.Cell, gates: Tensor, parts: dict[str, Tensor], buffers: list[rt.Buffer], half: int) -> None:
    """Half a step of one row with these gates, (blocks, 1, N), in the buffer's arithmetic."""
    assert cell.native is not None
    bits, h, c = cell.native.max_forget_bits, f"h{half + 1}", f"c{half + 1}"
    if len(buffers) == 1:
        z, _, g = gates
        z = rt.forget_gate(z, bits)
        parts[h] = buffers[0].multiply(parts[h], fixed.forget_integer(z)) + fixed.to_counts((1.0 - z) * g)
        return
    f, p, i, o, g = gates
    f, p = (rt.forget_gate(gate, bits, top=1023) for gate in (f, p))
    parts[c] = buffers[1].multiply(parts[c], fixed.forget_integer(f)) + fixed.to_counts(i * g)
    tanh: Tensor = torch.ops.revtune.gate_tanh(fixed.from_counts(parts[c], torch.float32))
    taken = (1.0 - p) * o if cell.native.bounded else o
    parts[h] = buffers[0].multiply(parts[h], fixed.forget_integer(p)) + fixed.to_counts(taken * tanh)


# Rewinding


@st.composite
def chunks(draw: st.DrawFn) -> tuple[Problem, dict[str, Any], int, int]:
    """A small chunk whose gates are anything, with a state and heads of anywhere in their range."""
    kind, seed = draw(st.sampled_from(KINDS)), draw(st.integers(0, 2**31))
    steps, rows, units = draw(st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(1, 9)))
    bits = draw(st.sampled_from((0.01, 1.0, 2.0, 3.0, 10.0, None)))
    of = problem(kind, steps, bits=bits, rows=rows, inputs=2, hidden=2 * units, seed=seed, spread=draw(
        st.sampled_from((0.1, 1.0, 8.0))))  # fmt: skip
    size = draw(st.sampled_from((0.0, 1.0, 1000.0, 2.0**19)))
    options: dict[str, Any] = {}
    if draw(st.booleans()):
        options["lengths"] = torch.tensor([draw(st.integers(1, steps + 3)) for _ in range(rows)])
    return of._replace(state=tuple(size * state for state in of.state)), options, seed, draw(st.integers(1, 5))


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None, derandomize=True, database=None)
@given(chunks())
def test_any_chunk_comes_back_bit_for_bit(drawn: tuple[Problem, dict[str, Any], int, int]) -> None:
    of, options, seed, turns = drawn
    kernel, other = kernel_of(of, **options), kernel_of(of, **options)
    heads = kernel.heads(of.x.shape[1], 1000, turns * len(of.cell.parts))
    heads = torch.randint(2**14, 2**30, heads.shape, generator=torch.Generator().manual_seed(seed)).double()
    counts, (chunk, back) = counts_of(of), (one.chunk_buffers(of.x, recorded=True) for one in (kernel, other))
    ends, first = (counts.clone(), heads.clone()), seed % 3
    words, check, fine = kernel.forward(chunk, *ends, first, Keep.EVERYTHING)
    assert bool((ends[1] >= 2**14).all()) and bool((ends[1] < 2**30).all())
    if not fine:
        assert float(ends[0].abs().max()) >= 2**52 or not of.cell.bounded
        return
    assert other.rewind(back, *ends, words, first) == (check, True)
    assert torch.equal(ends[0], counts) and torch.equal(ends[1], heads)
    assert all(map(torch.equal, present(chunk), present(back)))


def present(chunk: ChunkBuffers) -> list[Tensor]:
    """The tensors that a chunk has."""
    return [tensor for tensor in chunk if tensor is not None]


# What bits depend on


@pytest.fixture
def threads() -> Iterator[None]:
    """Puts the number of threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@kinds
@pytest.mark.parametrize("rows", [2, 13, 30])
def test_bits_do_not_depend_on_threads(kind: str, rows: int, threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recall, "KEPT", 0)
    of = problem(kind, 20, rows=rows, hidden=130, inputs=70, spread=0.15)
    results = []
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        results.append(differentiate(rt.scan, of, chunk=8, responses=response_pairs(of)))
    for other in results[1:]:
        assert torch.equal(other.y, results[0].y)
        assert all(torch.equal(other.grads[name], grad) for name, grad in results[0].grads.items())


@kinds
@pytest.mark.parametrize("units", [1, 15, 16, 33, 70])
def test_a_row_in_a_batch_is_what_it_is_alone(kind: str, units: int) -> None:
    of = problem(kind, 11, rows=14, hidden=2 * units, spread=0.3)
    pairs = response_pairs(of)
    y, finals, dx = run_row(of, pairs, slice(None))
    for row in (0, 5, 13):
        one = slice(row, row + 1)
        y_alone, finals_alone, dx_alone = run_row(of, pairs, one)
        assert torch.equal(y_alone, y[:, one]) and torch.equal(dx_alone, dx[:, one])
        assert all(torch.equal(alone, whole[one]) for alone, whole in zip(finals_alone, finals, strict=True))


def run_row(of: Problem, pairs: Pairs, rows: slice) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
    """Outputs, final states and the gradient of the input for some rows of a problem."""
    x, scales = of.x[:, rows].clone().requires_grad_(), {name: (v, s[rows]) for name, (v, s) in pairs.items()}
    state = tuple(one[rows] for one in of.state)
    y, finals = rt.scan(of.cell, x, state, weights=of.weights, responses=scales, chunk=4)
    return y.detach(), finals, torch.autograd.grad(y.square().sum(), x)[0]


@kinds
def test_recalled_gates_are_those_of_the_forward_pass(kind: str) -> None:
    of = problem(kind, 40, rows=13, hidden=66, spread=0.3)
    chunk, *_ = run(kernel_of(of, response_pairs(of)), of)
    kernel = kernel_of(of, response_pairs(of))
    again = kernel.chunk_buffers(of.x, chunk.y, recorded=True)._replace(y_start=chunk.y_start)
    kernel.recall(again)
    assert torch.equal(again.gates, chunk.gates)
    assert chunk.rh is None or (again.rh is not None and torch.equal(again.rh, chunk.rh))


@kinds
def test_what_responses_give_is_noted_alike(kind: str) -> None:
    """Forward, rewound, recalled, and by products over whole chunks."""
    of = problem(kind, 12, rows=13, hidden=66, spread=0.3)
    masks = {"h1": torch.bernoulli(torch.full((13, 33), 0.7), generator=torch.Generator().manual_seed(1))}
    wanted = frozenset({"ih.s", "hh.s"})
    weights = Weights(of.weights, response_pairs(of), wanted, 33, of.cell.name, engine="native")
    ran, back, recalled, plain = (Kernel(of.cell, weights, 33, masks, None) for _ in range(4))
    chunk, counts, heads, words = run(ran, of)
    rewound = back.chunk_buffers(of.x, recorded=True)
    assert back.rewind(rewound, counts, heads, words, 0)[1]
    again = recalled.chunk_buffers(of.x, chunk.y, recorded=True)._replace(y_start=chunk.y_start)
    recalled.recall(again)
    known = plain.answered(chunk._replace(ih_answer=None, hh_answer=None), of.x)
    for other in (rewound, again, known):
        assert torch.equal(present(other)[-2], present(chunk)[-2]) and torch.equal(
            present(other)[-1], present(chunk)[-1]
        )


@kinds
def test_without_a_buffer_states_are_rounded_and_with_one_exchanged(kind: str) -> None:
    """2^-22 of a state at most, as long as no gate rounds to the next 1024th."""
    of = problem(kind, 8)
    kept, heads_only, nothing = (run(kernel_of(of), of, keep) for keep in (Keep.EVERYTHING, Keep.HEADS, Keep.NOTHING))
    assert torch.equal(kept[1], heads_only[1]) and torch.equal(kept[2], heads_only[2])
    assert heads_only[3].numel() == nothing[3].numel() == 0
    assert float((kept[1] - nothing[1]).abs().max()) < 2**14


@pytest.mark.parametrize("number", range(60))
def test_inference_is_the_way_there_in_any_chunks(number: int) -> None:
    """Without a buffer gates are kept nowhere, and a state's lowest bits are rounded: now and then a gate with them."""
    of, responses, options = case(number)
    options.pop("chunk")

    def through(chunk: int) -> list[Tensor]:
        y, finals = rt.scan(of.cell, of.x, of.state, weights=of.weights, responses=responses, chunk=chunk, **options)
        return [y, *finals]

    trained = differentiate(rt.scan, of, responses=responses, **options)
    with torch.no_grad():
        found = [through(chunk) for chunk in (3, 7, 1000)]
    for other in found[1:]:
        assert all(map(torch.equal, other, found[0]))
    for inferred, wanted in zip(found[0], (trained.y, *trained.finals), strict=True):
        assert float((inferred - wanted).abs().max()) < 2**-7 * max(1.0, float(wanted.abs().max()))


@pytest.mark.parametrize("number", range(60))
def test_a_sequence_at_once_is_its_chunks(number: int) -> None:
    """`infer` projects and runs some steps at a time, and is what `forward` without a buffer is, to the bit."""
    of, responses, options = case(number)
    options.pop("chunk")
    if "ih" not in of.weights or "ih" in responses:
        return
    kernel, (steps, rows) = kernel_of(of, responses, **options), of.x.shape[:2]
    chunk, counts = kernel.chunk_buffers(of.x, recorded=False), counts_of(of)
    kernel.forward(chunk, counts, kernel.heads(rows, steps, None), 0, Keep.NOTHING)
    for x in (of.x, of.x.transpose(0, 1).contiguous().transpose(0, 1), of.x.repeat_interleave(2, 2)[:, :, ::2]):
        y, states = torch.full_like(chunk.y, float("nan")), counts_of(of)
        assert kernel.infer(x, y, states)
        assert torch.equal(y, chunk.y) and torch.equal(states, counts)


def test_one_series_is_inferred_in_any_layout() -> None:
    rnn = rt.RevGRU(1, 4)
    x = torch.randn(1, 5, 3).movedim(0, -1)
    with torch.no_grad():
        assert torch.equal(rnn(x)[0], rnn(x.clone(memory_format=torch.contiguous_format))[0])


@pytest.mark.parametrize("kind", KINDS[:2])
def test_long_wide_sequences_are_inferred_some_steps_at_a_time(kind: str) -> None:
    of = problem(kind, 300, rows=3, hidden=130, inputs=40, spread=0.1)
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        y, states = of.x.new_empty(300, 3, 130), counts_of(of)
        assert kernel_of(of).infer(of.x, y, states)
        found.append((y, states))
    torch.set_num_threads(1)
    kernel, counts = kernel_of(of), counts_of(of)
    chunk = kernel.chunk_buffers(of.x, recorded=False)
    kernel.forward(chunk, counts, kernel.heads(3, 300, None), 0, Keep.NOTHING)
    assert all(torch.equal(y, chunk.y) and torch.equal(states, counts) for y, states in found)


@pytest.mark.parametrize("number", range(30))
def test_inference_with_and_without_memory_for_c(number: int) -> None:
    of, responses, options = case(number)
    options.pop("chunk")
    found = []
    for recorded in (True, False):
        kernel = kernel_of(of, responses, **options)
        chunk, counts = kernel.chunk_buffers(of.x, recorded=recorded), counts_of(of)
        kernel.forward(chunk, counts, kernel.heads(of.x.shape[1], of.x.shape[0], None), 0, Keep.NOTHING)
        found.append((chunk.y, counts))
    assert all(map(torch.equal, *found))


# Memory


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Memory that nobody has written holds NaN."""
    switch: Any = torch.utils.deterministic
    before = switch.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    switch.fill_uninitialized_memory = True
    assert torch.empty(3).isnan().all()
    yield
    switch.fill_uninitialized_memory = before
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("number", [*range(8), 29, 30])
def test_memory_that_nobody_has_written_is_not_read(number: int, kept: None, request: pytest.FixtureRequest) -> None:
    of, responses, options = case(number)
    wanted = differentiate(rt.scan, of, responses=responses, **options)
    request.getfixturevalue("poisoned")
    given = differentiate(rt.scan, of, responses=responses, **options)
    assert torch.equal(given.y, wanted.y)
    assert all(torch.equal(given.grads[name], grad) for name, grad in wanted.grads.items())
    recording = rt.record(of.cell, of.x, of.state, weights=of.weights, responses=responses, **options)
    assert torch.equal(rt.unscan(recording)[0], recording.y) and not recording.y.isnan().any()


@pytest.mark.parametrize("kind", ["RevGRU", "RevLSTM"])
def test_lazy_clones_are_written_and_their_origins_are_not(kind: str) -> None:
    of = problem(kind, 9)
    kernel, counts, heads = kernel_of(of), counts_of(of), kernel_of(of).heads(3, 9, None)
    ends, before = (torch._lazy_clone(counts), torch._lazy_clone(heads)), (counts.clone(), heads.clone())
    kernel.forward(kernel.chunk_buffers(of.x, recorded=True), *ends, 0, Keep.EVERYTHING)
    assert torch.equal(counts, before[0]) and torch.equal(heads, before[1])
    assert torch.equal(ends[0], run(kernel_of(of), of)[1]) and torch.equal(ends[1], run(kernel_of(of), of)[2])


def test_padding_gets_no_gradient_and_costs_no_words() -> None:
    of, lengths = problem("RevLSTM", 30, rows=4), torch.tensor([30, 1, 7, 30])
    live = running(lengths, 0, 30)
    grads = differentiate(rt.scan, of, lengths=lengths, chunk=7).grads
    assert not grads["x"][~live].any() and grads["x"][live].all()
    short = of._replace(x=of.x[:7, 2:3], state=tuple(state[2:3] for state in of.state))
    alone = run(kernel_of(short), short)[3].numel() - 2
    kernel = kernel_of(of, lengths=lengths)
    sizes = run(kernel, of)[3][:8].view(torch.int32).tolist()
    assert sizes[2] <= alone + 4 and min(sizes[0], sizes[3]) > sizes[2] > sizes[1]


# Arguments that do not fit


def arguments(of: Problem) -> dict[str, Any]:
    """What torch.ops.revtune.forward is handed."""
    kernel, chunk, counts = kernel_of(of), kernel_of(of).chunk_buffers(of.x, recorded=True), counts_of(of)
    return {
        "gates": chunk.gates, "counts": counts, "heads": kernel.heads(3, 5, None), "y": chunk.y,
        "y_start": chunk.y_start, "c": chunk.c, "c_start": chunk.c_start, "rh": chunk.rh,
        "packed": torch.ops.revtune.pack(of.weights["hh"], of.cell.blocks // 2), "response": None, "scale": None,
        "mask1": None, "mask2": None, "lengths": None, "first": 0, "slope": 1.0, "forgetting": True, "bounded": True,
        "keep": Keep.EVERYTHING, "tally": None,
    }  # fmt: skip


TENSORS = ("gates", "counts", "heads", "y", "y_start", "c", "c_start", "rh", "packed")
MISFITS: dict[str, Any] = {
    "too small": lambda t: t.flatten()[:-1],
    "too large": lambda t: torch.cat([t, t]),
    "empty": lambda t: t[:0],
    "of another type": lambda t: t.to(torch.float32 if t.dtype == torch.float64 else torch.float64),
    "of whole numbers": lambda t: t.int(),
    "with gaps": lambda t: t.repeat_interleave(2, -1)[..., ::2],
    "a scalar": lambda t: torch.zeros((), dtype=t.dtype),
}


@pytest.mark.parametrize("misfit", MISFITS)
@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("kind", ["RevGRU", "RevLSTM"])
def test_tensors_that_do_not_fit_are_refused(kind: str, name: str, misfit: str) -> None:
    given = arguments(problem(kind, 5))
    if given[name] is None:
        return
    given[name] = MISFITS[misfit](given[name])
    with pytest.raises(RuntimeError):
        torch.ops.revtune.forward(**given)
    backward = {key: value for key, value in given.items() if key not in ("keep", "tally")}
    with pytest.raises(RuntimeError):
        torch.ops.revtune.rewind(**backward, words=torch.zeros(0, dtype=torch.int16))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("c_start", None), ("scale", torch.zeros(3, 40)), ("response", torch.zeros(384)),
        ("mask1", torch.zeros(3, 5)), ("mask2", torch.zeros(12).double()), ("lengths", torch.ones(2).long()),
        ("lengths", torch.ones(3, dtype=torch.int32)), ("tally", torch.zeros(1024, dtype=torch.int64)),
        ("tally", torch.zeros(1025)), ("rh", torch.zeros(1)), ("heads", torch.zeros(2, 3, 5, dtype=torch.float64)),
    ],
)  # fmt: skip
def test_what_may_be_left_out_must_fit_or_go_together(name: str, value: Tensor | None) -> None:
    given = {**arguments(problem("RevLSTM", 5)), name: value}
    with pytest.raises(RuntimeError):
        torch.ops.revtune.forward(**given)


@pytest.mark.parametrize("kind", ["RevGRU", "RevLSTM"])
def test_answers_must_fit_and_have_a_response(kind: str) -> None:
    of = problem(kind, 5)
    given = arguments(of)
    packed, scale = given["packed"], torch.zeros(3, len(of.weights["hh"]))
    for answers, response in ((torch.zeros_like(given["gates"]), {}), (given["gates"][1:], {"response": packed})):
        scaled = {"scale": scale} if response else {}
        with pytest.raises(RuntimeError, match="answers"):
            torch.ops.revtune.forward(**{**given, **response, **scaled}, answers=answers)


@pytest.mark.parametrize("misfit", MISFITS)
@pytest.mark.parametrize(
    "name", ["projected", "shift", "ih_answer", "ih_scale", "hh_answer", "hh_scale", "dy", "state"]
)
def test_a_tangent_of_what_does_not_fit_is_refused(name: str, misfit: str) -> None:
    of = problem("RevLSTM", 5)
    given = {key: value for key, value in arguments(of).items() if key not in {
        "counts", "heads", "rh", "response", "scale", "keep", "tally"}}  # fmt: skip
    gates, shift = given["gates"].zero_(), torch.zeros(3, len(of.weights["hh"]))
    given |= {"projected": gates.clone(), "shift": shift, "ih_answer": gates.clone(), "ih_scale": shift,
              "hh_answer": gates.clone(), "hh_scale": shift, "dy": torch.zeros_like(given["y"]),
              "state": torch.zeros(2, 2, 3, 4)}  # fmt: skip
    torch.ops.revtune.tangent(**given)
    given[name] = MISFITS[misfit](given[name])
    with pytest.raises(RuntimeError):
        torch.ops.revtune.tangent(**given)


@pytest.mark.parametrize("missing", [("c",), ("c_start",), ("c", "c_start")])
def test_a_lstm_is_not_rewound_without_c(missing: tuple[str, ...]) -> None:
    given = {**arguments(problem("RevLSTM", 5)), **dict.fromkeys(missing)}
    del given["keep"], given["tally"]
    with pytest.raises(RuntimeError, match="c is RevLSTM's"):
        torch.ops.revtune.rewind(**given, words=torch.zeros(0, dtype=torch.int16))


@pytest.mark.parametrize(
    ("weight", "blocks"),
    [
        (torch.zeros(24, 4), 5), (torch.zeros(24, 4), 4), (torch.zeros(24), 3), (torch.zeros(24, 4).double(), 3),
        (torch.zeros(4, 24).t(), 3), (torch.zeros(24, 4, dtype=torch.int32), 3), (torch.zeros(25, 4), 3),
    ],
)  # fmt: skip
def test_weights_that_cannot_be_packed_are_refused(weight: Tensor, blocks: int) -> None:
    with pytest.raises(RuntimeError):
        torch.ops.revtune.pack(weight, blocks)
    with pytest.raises(RuntimeError):
        torch.ops.revtune.pack_into(torch.zeros(2**14), weight, blocks)


def test_a_weight_of_another_shape_is_named() -> None:
    of = problem("RevGRU", 5)
    with pytest.raises(ValueError, match=r"weight 'hh' must be \(24, 4\) for this cell, got \(24, 3\)"):
        rt.scan(of.cell, of.x, weights={**of.weights, "hh": torch.zeros(24, 3)})


def test_a_loss_through_the_kernel_alone() -> None:
    """Nothing but outputs, or nothing but the final state, may be used."""
    of = problem("RevLSTM", 9)
    for pick in (lambda y, finals: y, lambda y, finals: finals[1]):
        leaf = of.x.clone().requires_grad_()
        y, finals = rt.scan(of.cell, leaf, of.state, weights=of.weights, chunk=4)
        (grad,) = torch.autograd.grad(random_loss(pick(y, finals), ()), leaf)
        assert grad.isfinite().all() and grad.abs().max() > 0
