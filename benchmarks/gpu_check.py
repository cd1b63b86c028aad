"""Does what was verified without a GPU hold on one, and what does a step cost there? `make gpu-check`, in five minutes.

    python -m benchmarks.gpu_check [--out FILE.json]     on a machine with an NVIDIA GPU
    python -m benchmarks.gpu_check --dry                 tiny shapes in Triton's interpreter; its times say nothing

Each check stands alone: one that fails is told with its error, and the next one runs. A line is printed for each, and
all is written as JSON. Bits are compared with those of the C++ kernel on the same machine's CPU. Memory and time are
those of whole training steps, embedding, net, readout and cross entropy, ours beside cuDNN's.

Shapes: T steps, B rows, H hidden, V words.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import revtune as rt
from revtune.program.bench.contestants import Contestant, ContestantNet, Shape
from revtune.program.bench.measuring import peak_of
from revtune.program.files import write
from revtune.reversible.layers.rnn import RevRNN

Figures = dict[str, Any]
Run = Callable[[str, Shape, torch.device, str], list[Tensor]]

NETS = {"RevGRU": rt.RevGRU, "RevLSTM": rt.RevLSTM}
TWINS = {"RevGRU": "nn.GRU", "RevLSTM": "nn.LSTM"}
CPU = torch.device("cpu")


def shape(steps: int, rows: int, hidden: int, words: int) -> Shape:
    """T, B, H and V."""
    return Shape(steps=steps, batch=rows, hidden=hidden, vocabulary=words)


class Sizes(NamedTuple):
    """How large the checks are: shapes, and how often steps are repeated or timed."""

    device: torch.device
    same: tuple[Shape, ...]
    repeats: int
    long: Shape
    large: Shape
    timed: tuple[Shape, ...]
    rounds: int


REAL = Sizes(
    torch.device("cuda"),
    same=(shape(50, 3, 40, 50), shape(100, 64, 512, 50), shape(70, 5, 200, 50)),
    repeats=20,
    long=shape(100_000, 2, 32, 50),  # cuDNN stops at 65,535
    large=shape(512, 2048, 128, 100),  # that of published recurrent kernels in Triton
    timed=tuple(shape(70, rows, hidden, 10_000) for hidden in (128, 256, 512, 1024) for rows in (64, 512)),
    rounds=3,
)
DRY = Sizes(
    CPU, same=(shape(3, 2, 6, 5),), repeats=1, long=shape(4, 1, 4, 5), large=shape(3, 2, 4, 5),
    timed=(shape(2, 2, 4, 5),), rounds=1,
)  # fmt: skip


def layer(name: str, shape: Shape, device: torch.device, backend: str) -> list[Tensor]:
    """Outputs, final state and the input's gradient of a layer."""
    torch.manual_seed(0)
    net = NETS[name](shape.hidden, shape.hidden, backend=backend).to(device)
    x = torch.randn(shape.steps, shape.batch, shape.hidden).to(device).requires_grad_()
    y, final = net(x)
    (y * y.detach().sin()).sum().backward()
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


def states_of(final: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    """h, or h and c."""
    return [state.detach() for state in ((final,) if isinstance(final, Tensor) else final)]


def same_bits(sizes: Sizes) -> Figures:
    """Whether a layer has the CPU kernel's bits, and a streamed step its final state."""

    def same(run: Run, name: str, shape: Shape, compared: slice) -> bool:
        ours, theirs = run(name, shape, sizes.device, "triton"), run(name, shape, CPU, "native")
        return all(map(torch.equal, ours[compared], theirs[compared]))

    found: Figures = {}
    for name in NETS:
        for shape in sizes.same:
            found[f"{name} {shape} layer"] = same(layer, name, shape, slice(None))
            found[f"{name} {shape} streamed"] = same(streamed, name, shape, slice(1, -1))
    return found


def repeats(sizes: Sizes) -> Figures:
    """Whether steps give the same bits each time."""
    found: Figures = {}
    for name in NETS:
        for run in (layer, streamed):
            first, *again = (run(name, sizes.same[-1], sizes.device, "triton") for _ in range(1 + sizes.repeats))
            same = all(all(map(torch.equal, first, one)) for one in again)
            found[f"{name} {run.__name__}, {sizes.repeats} times"] = same
    return found


def long_sequence(sizes: Sizes) -> Figures:
    """Seconds of a streamed step over more steps than cuDNN takes, which comes back or raises."""
    began = time.perf_counter()
    streamed("RevGRU", sizes.long, sizes.device, "triton")
    return {f"seconds of {sizes.long}": time.perf_counter() - began}


def memory(sizes: Sizes) -> Figures:
    """Peak bytes of a step above what was there before, on a GPU; elsewhere resident ones, which say nothing."""
    found: Figures = {}
    for name in NETS:
        for what, step in steps(name, sizes.large, sizes.device):
            step()
            found[f"{what}, {sizes.large}"] = peak_of(step, sizes.device)
    return found


def speed(sizes: Sizes) -> Figures:
    """Microseconds of a step of the sequence, and the ratio of ours to cuDNN's."""
    found: Figures = {}
    for name in NETS:
        for shape in (*sizes.timed, sizes.large):
            taken = {what: microseconds(step, sizes) / shape.steps for what, step in steps(name, shape, sizes.device)}
            found[f"{name} {shape}"] = {**taken, "ratio": taken[name] / taken[TWINS[name]]}
    return found


def steps(name: str, shape: Shape, device: torch.device) -> Iterator[tuple[str, Callable[[], object]]]:
    """Training steps of ours, of torch's net, and of that one checkpointed, by their names."""
    tokens = torch.randint(shape.vocabulary, (shape.steps + 1, shape.batch), device=device)
    contestants = [Contestant(cell=name, backend="triton")]
    contestants += [Contestant(cell=TWINS[name], segments=segments) for segments in (False, True)]
    for contestant in contestants:
        net = ContestantNet(contestant, shape).to(device)

        def step(net: ContestantNet = net) -> None:
            net.zero_grad(set_to_none=True)
            net.step(tokens[:-1], tokens[1:])

        yield contestant.name, step


def microseconds(step: Callable[[], object], sizes: Sizes) -> float:
    """The least of some rounds, after one that does not count."""
    taken = []
    for _ in range(1 + sizes.rounds):
        began = time.perf_counter()
        step()
        if sizes.device.type == "cuda":
            torch.cuda.synchronize(sizes.device)
        taken.append(time.perf_counter() - began)
    return min(taken[1:]) * 1e6


CHECKS: dict[str, Callable[[Sizes], Figures]] = {
    "the CPU kernel's bits": same_bits, "repeats": repeats, "a long sequence": long_sequence, "memory": memory,
    "speed": speed,
}  # fmt: skip


def run(sizes: Sizes) -> Figures:
    """All checks, each told as it ends."""
    found: Figures = {"torch": torch.__version__, "device": _name(sizes.device)}
    for title, check in CHECKS.items():
        began = time.perf_counter()
        try:
            found[title] = check(sizes)
        except Exception as error:  # so that the others run
            found[title] = {"failed": f"{type(error).__name__}: {error}"}
        print(f"{title} ({time.perf_counter() - began:.0f} s)", flush=True)
        for what, figure in found[title].items():
            print(f"    {what}: {json.dumps(figure)}", flush=True)
    return found


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "Triton's interpreter"


def main(args: Sequence[str] | None = None) -> Figures:
    """Run all checks and write what they found."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/gpu_check.json"))
    parser.add_argument("--dry", action="store_true")
    asked = parser.parse_args(args)
    if asked.dry:
        os.environ["TRITON_INTERPRET"] = "1"  # read when the kernel is first imported
    elif not torch.cuda.is_available():
        parser.error("no NVIDIA GPU is here; --dry runs tiny shapes in Triton's interpreter")
    found = run(DRY if asked.dry else REAL)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    write(asked.out, f"{json.dumps(found, indent=2)}\n".encode())
    return found


if __name__ == "__main__":
    main()
