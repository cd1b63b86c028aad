"""What `gpu_check` checks and measures, case by case; each case stands alone, and gives rows of its table.

Bits are compared with those of the C++ kernel on the same machine's CPU. Memory and time are those of whole training
steps, ours beside cuDNN's, at the same precision where nothing else is said.

Shapes: T steps, B rows, H hidden, V words.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import revtune as rt
from benchmarks.gpu_processes import gradients_apart
from revtune.program.bench.contestants import CELLS, Contestant, ContestantNet, Shape
from revtune.program.bench.measuring import peak_of
from revtune.reversible.cells.cell import Cell
from revtune.reversible.kernel.backend import chosen
from revtune.reversible.kernel.tape import LayerTensors
from revtune.reversible.layers.layer import LayerSettings, build_tape
from revtune.reversible.layers.rnn import RevRNN

NETS = {"RevGRU": rt.RevGRU, "RevLSTM": rt.RevLSTM}
TWINS = {"RevGRU": "nn.GRU", "RevLSTM": "nn.LSTM"}
CPU = torch.device("cpu")

MEMORY_GOAL = 0.3
"""GB of a streamed step at the large shape, above its inputs."""

STEP_GOALS = {"RevGRU": 2.0, "RevLSTM": 1.5}
"""Times cuDNN's, of a layer's training step of H=512, B=64, both at float32's full precision."""

CHUNK = 16
"""Steps of a chunk where sums over chunks are compared."""

EXACT = 1e-5
"""How far gradients of two processes may be from one process's, relatively: sums are in another order."""


class Row(NamedTuple):
    """A line of the table.

    Attributes:
        what: what was found.
        figure: a number, whether something holds, or what else there is to say.
        unit: of the number.
        goal: the most that the number should be, if there is a goal.
    """

    what: str
    figure: bool | float | str
    unit: str = ""
    goal: float | None = None


class Case(NamedTuple):
    """What stands alone, and may fail alone."""

    what: str
    measure: Callable[[], list[Row]]


class Sizes(NamedTuple):
    """How large the checks are: shapes, and how often steps are repeated or timed."""

    device: torch.device
    same: tuple[Shape, ...]
    repeats: int
    long: Shape
    large: Shape
    layers: tuple[Shape, ...]
    models: tuple[Shape, ...]
    rounds: int


def shape(steps: int, rows: int, hidden: int, words: int) -> Shape:
    """T, B, H and V."""
    return Shape(steps=steps, batch=rows, hidden=hidden, vocabulary=words)


MANY_WORDS = 10_000
"""Words of the language models whose step should take no longer than nn.LSTM's."""

LARGE = shape(512, 2048, 128, 100)
"""That of published recurrent kernels in Triton."""

REAL = Sizes(
    torch.device("cuda"),
    same=(shape(50, 3, 40, 50), shape(100, 64, 512, 50), shape(70, 5, 200, 50)),
    repeats=20,
    long=shape(100_000, 2, 32, 50),  # cuDNN stops at 65,535
    large=LARGE,
    layers=(*(shape(70, rows, hidden, 1) for hidden in (128, 256, 512, 1024) for rows in (64, 512)), LARGE),
    models=tuple(shape(70, 64, hidden, MANY_WORDS) for hidden in (256, 512, 1024)),
    rounds=3,
)
DRY = Sizes(
    CPU, same=(shape(3, 2, 6, 5),), repeats=1, long=shape(4, 1, 4, 5), large=shape(3, 2, 4, 5),
    layers=(shape(2, 2, 4, 1),), models=(shape(2, 2, 4, 5),), rounds=1,
)  # fmt: skip


def same_bits(sizes: Sizes) -> Iterator[Case]:
    """Whether a layer has the CPU kernel's bits, also with responses and tangents, and a streamed step its states."""
    whole = slice(None)
    for name in NETS:
        for shape in sizes.same:
            for run, compared in ((layer, whole), (streamed, slice(1, -1)), (stn, whole), (delta_stn, whole)):

                def measure(
                    run: Run = run, name: str = name, shape: Shape = shape, compared: slice = compared
                ) -> list[Row]:
                    ours, theirs = run(name, shape, sizes.device, "triton"), run(name, shape, CPU, "native")
                    same = all(map(torch.equal, ours[compared], theirs[compared]))
                    return [Row(f"{name} {run.__name__}, {shape}", same)]

                yield Case(f"{name} {run.__name__}, {shape}", measure)


def repeats(sizes: Sizes) -> Iterator[Case]:
    """Whether steps give the same bits each time: launched, captured and replayed."""
    for name in NETS:
        for shape in sizes.same:
            for run in (layer, streamed, stn, delta_stn):
                what = f"{name} {run.__name__}, {shape}, {sizes.repeats} times"

                def measure(run: Run = run, name: str = name, shape: Shape = shape, what: str = what) -> list[Row]:
                    first, *again = (run(name, shape, sizes.device, "triton") for _ in range(1 + sizes.repeats))
                    return [Row(what, all(all(map(torch.equal, first, one)) for one in again))]

                yield Case(what, measure)
    yield Case("CUDA graphs", lambda: captured(sizes))


def captured(sizes: Sizes) -> list[Row]:
    """How many graphs there are after all that was repeated.

    Raises:
        RuntimeError: no graph could be captured.
    """
    from revtune.reversible.kernel.triton.graphs import graphs

    if sizes.device.type == "cpu":
        return [Row("CUDA graphs", "none, where Triton interprets")]
    if graphs.failure or not len(graphs):
        raise RuntimeError(graphs.failure or "no chunk was captured")
    return [Row("CUDA graphs", len(graphs)), Row("their rooms", graphs.bytes / 1e9, "GB")]


def long_sequence(sizes: Sizes) -> Iterator[Case]:
    """A streamed step over more steps than cuDNN takes, which comes back or raises."""

    def ours() -> list[Row]:
        return [
            Row(
                f"RevGRU, {sizes.long}",
                seconds(lambda: streamed("RevGRU", sizes.long, sizes.device, "triton"), sizes),
                "s",
            )
        ]

    def theirs() -> list[Row]:
        net = nn.GRU(sizes.long.hidden, sizes.long.hidden).to(sizes.device)
        x = torch.randn(sizes.long.steps, sizes.long.batch, sizes.long.hidden, device=sizes.device)
        try:
            return [Row(f"nn.GRU's outputs, {sizes.long}", seconds(lambda: net(x), sizes), "s")]
        except RuntimeError as error:
            return [Row(f"nn.GRU's outputs, {sizes.long}", f"raises: {error}".partition("\n")[0])]

    return iter([Case("RevGRU", ours), Case("nn.GRU", theirs)])


def memory(sizes: Sizes) -> Iterator[Case]:
    """Peak bytes of a step above what was there before, on a GPU; elsewhere resident ones, which say nothing."""
    for contestant in contestants():
        what = f"{contestant.name}, {sizes.large}"

        def measure(contestant: Contestant = contestant, what: str = what) -> list[Row]:
            step = model(contestant, sizes.large, sizes.device)
            for _ in range(3):  # with the third all graphs are there
                step()
            peak = peak_of(step, sizes.device) + (room_bytes() if contestant.reversible else 0)
            known = contestant.reversible and sizes.large == LARGE
            return [Row(what, peak / 1e9, "GB", MEMORY_GOAL if known else None)]

        yield Case(what, measure)


def layers(sizes: Sizes) -> Iterator[Case]:
    """Microseconds of a step of a layer in training: ours, and cuDNN's at float32's full precision and in TF32.

    Our recurrence has no TF32, which would reach what rewinding reads; in TF32 are the gradients of its weights.
    """
    for name, twin in TWINS.items():
        for shape in sizes.layers:

            def measure(name: str = name, twin: str = twin, shape: Shape = shape) -> list[Row]:
                rows, at = [], f"{shape}"
                for precision in ("ieee", "tf32"):
                    with matmuls_in(precision):
                        ours, theirs = (
                            microseconds(alone(which, shape, sizes.device), sizes) / shape.steps
                            for which in (name, twin)
                        )
                    rows += [
                        Row(f"{name} {precision}, {at}", ours, "us"),
                        Row(f"{twin} {precision}, {at}", theirs, "us"),
                    ]
                    rows += [Row(f"{name} / {twin} {precision}, {at}", ours / theirs, "", goal(name, shape, precision))]
                return rows

            yield Case(f"{name}, {shape}", measure)
    yield Case("launches one by one", lambda: one_by_one(sizes))


def goal(name: str, shape: Shape, precision: str) -> float | None:
    """The most of cuDNN's time that a layer's step should take."""
    if (shape.hidden, shape.batch, precision) == (512, 64, "ieee"):
        return STEP_GOALS[name]
    return 1.0 if (shape.hidden, shape.batch, precision) == (1024, 512, "tf32") else None


def one_by_one(sizes: Sizes) -> list[Row]:
    """What graphs gain: the time of a step whose launches stay one by one."""
    from revtune.reversible.kernel.triton.graphs import one_by_one as launching

    shape, rows = sizes.layers[min(4, len(sizes.layers) - 1)], []
    for what, context in (("one by one", launching), ("replayed", nullcontext)):
        with context():
            taken = microseconds(alone("RevGRU", shape, sizes.device), sizes) / shape.steps
        rows.append(Row(f"RevGRU, launches {what}, {shape}", taken, "us"))
    return rows


def models(sizes: Sizes) -> Iterator[Case]:
    """Microseconds of a step of a whole language model: embedding, net, readout and cross entropy."""
    for shape in sizes.models:
        for name, twin in TWINS.items():

            def measure(name: str = name, twin: str = twin, shape: Shape = shape) -> list[Row]:
                found = {
                    each.name: microseconds(model(each, shape, sizes.device), sizes) / shape.steps
                    for each in contestants((name,))
                }
                rows = [Row(f"{what}, {shape}", taken, "us") for what, taken in found.items()]
                most = 1.0 if name == "RevLSTM" and shape.vocabulary == MANY_WORDS else None
                return [*rows, Row(f"{name} / {twin}, {shape}", found[name] / found[twin], "", most)]

            yield Case(f"{name}, {shape}", measure)


def processes(sizes: Sizes) -> Iterator[Case]:
    """Two processes that take a step together, by NCCL on two GPUs."""

    def measure() -> list[Row]:
        if sizes.device.type == "cuda" and torch.cuda.device_count() < 2:
            return [Row("two processes by NCCL", f"not run: {torch.cuda.device_count()} GPU")]
        by = "NCCL" if sizes.device.type == "cuda" else "gloo"
        return [Row(f"gradients of two processes by {by}, relatively", gradients_apart(sizes.device.type), "", EXACT)]

    return iter([Case("two processes", measure)])


PARTS: dict[str, Callable[[Sizes], Iterator[Case]]] = {
    "the CPU kernel's bits": same_bits, "repeats": repeats, "a long sequence": long_sequence, "memory": memory,
    "layers": layers, "language models": models, "processes": processes,
}  # fmt: skip

Run = Callable[[str, Shape, torch.device, str], list[Tensor]]


def layer(name: str, shape: Shape, device: torch.device, backend: str) -> list[Tensor]:
    """Outputs, final state and the input's gradient of a layer."""
    torch.manual_seed(0)
    net = NETS[name](shape.hidden, shape.hidden, backend=backend).to(device)
    x = torch.randn(shape.steps, shape.batch, shape.hidden).to(device).requires_grad_()
    y, final = net(x)
    (y * y.detach().cpu().sin().to(device)).sum().backward()  # the same sines on every device
    assert x.grad is not None
    return [y.detach().cpu(), *(state.cpu() for state in states_of(final)), x.grad.cpu()]


def streamed(name: str, shape: Shape, device: torch.device, backend: str) -> list[Tensor]:
    """The loss of a streamed step over words, the final state, and the gradient of the bias."""
    torch.manual_seed(0)
    net = ContestantNet(Contestant(cell=name, backend=backend), shape)
    tokens = torch.randint(shape.vocabulary, (shape.steps + 1, shape.batch)).to(device)
    net = net.to(device)
    assert isinstance(net.rnn, RevRNN)
    loss, final = rt.rewind_loss(net.rnn, tokens[:-1], tokens[1:], encode=net.embedding, readout=net.readout)
    loss.backward()
    bias = dict(net.rnn.named_parameters())["bias_ih_l0"].grad
    assert bias is not None
    return [loss.detach().cpu(), *(state.cpu() for state in states_of(final)), bias.cpu()]


def stn(name: str, shape: Shape, device: torch.device, backend: str) -> list[Tensor]:
    """Outputs and final state of a layer whose products respond, and gradients of the input and of each s."""
    cell, x, layer = responding(name, shape, device)
    scales = [scale.requires_grad_() for _, scale in layer.responses.values()]
    x.requires_grad_()
    y, final = rt.scan(  # of chunks that are as long on every device, as those of s are added up chunk by chunk
        cell, x, layer.state, weights=layer.weights, responses=layer.responses, chunk=CHUNK, backend=backend
    )
    (y * y.detach().cpu().sin().to(device)).sum().backward()
    grads = [one.grad for one in (x, *scales) if one.grad is not None]
    assert len(grads) == 1 + len(scales)
    return [one.detach().cpu() for one in (y, *final, *grads)]


def delta_stn(name: str, shape: Shape, device: torch.device, backend: str) -> list[Tensor]:
    """Outputs of a layer whose products do not respond, and the tangents of outputs and state, had they done so."""
    cell, x, layer = responding(name, shape, device)
    settings = LayerSettings(name, chosen(backend, cell, x, layer.weights, {}), answering=False)
    found: list[Tensor] = []
    with torch.no_grad():
        tape = build_tape(cell, layer, settings, shape.steps, x.dtype)
        y, dy, moved = tape.ahead(x, 0, x.flip(0), None, {}, keep=False)
        found += [y, dy, *moved.values()]
    return [one.cpu() for one in found]


def responding(name: str, shape: Shape, device: torch.device) -> tuple[Cell, Tensor, LayerTensors]:
    """A cell, inputs, and a layer's tensors with responses that are not zero; all are drawn on the CPU."""
    torch.manual_seed(0)
    net = NETS[name](shape.hidden, shape.hidden)
    named = {which: getattr(net, f"weight_{which}_l0").detach() for which in ("ih", "hh")}
    x = torch.randn(shape.steps, shape.batch, shape.hidden)
    pairs = {
        which: (0.1 * torch.randn_like(weight), torch.randn(shape.batch, len(weight)))
        for which, weight in named.items()
    }
    state = tuple(torch.zeros(shape.batch, shape.hidden, device=device) for _ in net.cell.states)
    weights = {which: weight.to(device) for which, weight in named.items()}
    there = {which: (extra.to(device), scale.to(device)) for which, (extra, scale) in pairs.items()}
    return net.cell, x.to(device), LayerTensors(state, weights, there)


def states_of(final: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    """h, or h and c."""
    return [state.detach() for state in ((final,) if isinstance(final, Tensor) else final)]


def contestants(names: tuple[str, ...] = tuple(TWINS)) -> Iterator[Contestant]:
    """Ours, torch's net, and that one checkpointed, by the names of ours."""
    for name in names:
        yield Contestant(cell=name, backend="triton")
        yield from (Contestant(cell=TWINS[name], segments=segments) for segments in (False, True))


def model(contestant: Contestant, shape: Shape, device: torch.device) -> Callable[[], object]:
    """A training step of a language model."""
    tokens = torch.randint(shape.vocabulary, (shape.steps + 1, shape.batch), device=device)
    net = ContestantNet(contestant, shape).to(device)

    def step() -> None:
        net.zero_grad(set_to_none=True)
        net.step(tokens[:-1], tokens[1:])

    return step


def alone(name: str, shape: Shape, device: torch.device) -> Callable[[], object]:
    """A training step of a layer that returns all its outputs."""
    options: dict[str, Any] = {"backend": "triton"} if name in NETS else {}
    net = CELLS[name](shape.hidden, shape.hidden, **options).to(device)
    x = torch.randn(shape.steps, shape.batch, shape.hidden, device=device, requires_grad=True)

    def step() -> None:
        net.zero_grad(set_to_none=True)
        net(x)[0].sum().backward()

    return step


def room_bytes() -> int:
    """What graphs keep between steps, and a peak above what was there before leaves out."""
    from revtune.reversible.kernel.triton.graphs import graphs

    return graphs.bytes


@contextmanager
def matmuls_in(precision: str) -> Iterator[None]:
    """Within this block torch's matmuls and cuDNN's nets read float32 so, "ieee" whole or "tf32" in part."""
    switches: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn.rnn)
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = precision
        yield
    finally:
        for switch, was in zip(switches, before, strict=True):
            switch.fp32_precision = was


def microseconds(step: Callable[[], object], sizes: Sizes) -> float:
    """The least of some rounds, after three that do not count: in the third all graphs are there."""
    for _ in range(3 if sizes.device.type == "cuda" else 0):
        step()
    return min(seconds(step, sizes) for _ in range(sizes.rounds)) * 1e6


def seconds(step: Callable[[], object], sizes: Sizes) -> float:
    """How long a step takes."""
    wait(sizes.device)
    began = time.perf_counter()
    step()
    wait(sizes.device)
    return time.perf_counter() - began


def wait(device: torch.device) -> None:
    """Wait until a GPU has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
