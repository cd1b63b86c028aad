"""Does what was verified without a GPU hold on one, and what does a step cost there? `make gpu-check`, in five minutes.

    python -m benchmarks.gpu_check [--out FILE.json]     on a machine with an NVIDIA GPU
    python -m benchmarks.gpu_check --dry                 here: tiny shapes in Triton's interpreter, whose times say nothing

Each check stands alone: one that fails is told with its error, and the next one runs. A line is printed for each, and
all is written as JSON. Bits are compared with the C++ kernel on the same machine's CPU.

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
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint_sequential

import revtune as rt
from revtune.program.bench.measuring import peak_of
from revtune.program.files import write

Figures = dict[str, Any]
Rev = type[rt.RevGRU] | type[rt.RevLSTM]

NETS: dict[str, Rev] = {"RevGRU": rt.RevGRU, "RevLSTM": rt.RevLSTM}
TWINS: dict[str, type[nn.GRU] | type[nn.LSTM]] = {"RevGRU": nn.GRU, "RevLSTM": nn.LSTM}
WORDS = 50


class Shape(NamedTuple):
    """T, B and H of a net whose inputs are as wide as it is."""

    steps: int
    rows: int
    hidden: int

    def __str__(self) -> str:
        return f"T {self.steps} B {self.rows} H {self.hidden}"


class Sizes(NamedTuple):
    """How large the checks are."""

    device: torch.device
    same: tuple[Shape, ...]
    repeats: int
    long: Shape
    memory: Shape
    speed: tuple[Shape, ...]


REAL = Sizes(
    torch.device("cuda"),
    same=(Shape(50, 3, 40), Shape(100, 64, 512), Shape(70, 5, 200)),
    repeats=20,
    long=Shape(100_000, 2, 32),  # cuDNN stops at 65,535
    memory=Shape(512, 2048, 128),  # the shape of published recurrent kernels in Triton
    speed=tuple(Shape(70, rows, hidden) for hidden in (128, 256, 512, 1024) for rows in (64, 512)),
)
DRY = Sizes(
    torch.device("cpu"), same=(Shape(3, 2, 6),), repeats=1, long=Shape(4, 1, 4), memory=Shape(3, 2, 4),
    speed=(Shape(2, 2, 4),),
)  # fmt: skip


def net_of(name: str, hidden: int, device: torch.device, backend: str) -> rt.RevGRU | rt.RevLSTM:
    """A net of random weights, the same ones on every device."""
    torch.manual_seed(0)
    return NETS[name](hidden, hidden, backend=backend).to(device)


def layer(name: str, shape: Shape, device: torch.device, backend: str) -> list[Tensor]:
    """Outputs, final state and the input's gradient of a layer."""
    net = net_of(name, shape.hidden, device, backend)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device).requires_grad_()
    y, final = net(x)
    (y * y.detach().sin()).sum().backward()
    states = [final] if isinstance(final, Tensor) else list(final)
    assert x.grad is not None
    return [tensor.detach().cpu() for tensor in (y, *states, x.grad)]


def streamed(name: str, shape: Shape, device: torch.device, backend: str) -> list[Tensor]:
    """Loss, final state and bias gradient of a streamed step over words."""
    net = net_of(name, shape.hidden, device, backend)
    words = nn.Embedding(WORDS, shape.hidden).to(device)
    head = rt.LinearCrossEntropy(shape.hidden, WORDS).to(device)
    x = torch.randint(WORDS, (shape.steps + 1, shape.rows), generator=torch.Generator().manual_seed(1)).to(device)
    loss, final = rt.rewind_loss(net, x[:-1], x[1:], encode=words, readout=head)
    loss.backward()
    states = [final] if isinstance(final, Tensor) else list(final)
    assert net.bias_ih_l0.grad is not None
    return [tensor.detach().cpu() for tensor in (loss, *states, net.bias_ih_l0.grad)]


def same_bits(sizes: Sizes) -> Figures:
    """Whether a layer has the CPU kernel's bits, and a streamed step its final state."""
    found: Figures = {}
    for name in NETS:
        for shape in sizes.same:
            ours, theirs = layer(name, shape, sizes.device, "triton"), layer(name, shape, torch.device("cpu"), "native")
            found[f"{name} {shape} layer"] = all(map(torch.equal, ours, theirs))
            ours, theirs = (
                streamed(name, shape, device, backend)
                for device, backend in ((sizes.device, "triton"), (torch.device("cpu"), "native"))
            )
            found[f"{name} {shape} streamed"] = all(map(torch.equal, ours[1:-1], theirs[1:-1]))
    return found


def repeats(sizes: Sizes) -> Figures:
    """Whether steps give the same bits each time."""
    found: Figures = {}
    for name in NETS:
        for run in (layer, streamed):
            first = run(name, sizes.same[-1], sizes.device, "triton")
            again = (run(name, sizes.same[-1], sizes.device, "triton") for _ in range(sizes.repeats))
            found[f"{name} {run.__name__}, {sizes.repeats} times"] = all(
                all(map(torch.equal, first, one)) for one in again
            )
    return found


def long_sequence(sizes: Sizes) -> Figures:
    """Seconds of a streamed step over more steps than cuDNN takes, which comes back or raises."""
    began = time.perf_counter()
    streamed("RevGRU", sizes.long, sizes.device, "triton")
    return {f"seconds of {sizes.long}": time.perf_counter() - began}


def memory(sizes: Sizes) -> Figures:
    """Peak bytes of whole steps above what was there before, of ours, of cuDNN's and of cuDNN's checkpointed."""
    return {
        f"{name}, {what}": peak_of(step, sizes.device) if sizes.device.type == "cuda" else bool(step() is None)
        for name in NETS
        for what, step in _steps(name, sizes.memory, sizes.device)
    }


def speed(sizes: Sizes) -> Figures:
    """Microseconds of a step of the sequence, forward and backward, and the ratio to cuDNN's."""
    found: Figures = {}
    for name in NETS:
        for shape in (*sizes.speed, sizes.memory):
            taken = {
                what: _microseconds(step, sizes.device) / shape.steps
                for what, step in _steps(name, shape, sizes.device)
            }
            found[f"{name} {shape}"] = {**taken, "ratio": taken["streamed"] / taken["torch's"]}
    return found


def _steps(name: str, shape: Shape, device: torch.device) -> Iterator[tuple[str, Callable[[], None]]]:
    """Training steps, by what they are: ours streamed and as a layer, torch's net, and that one checkpointed."""
    x = torch.randn(shape, device=device)
    net, head = net_of(name, shape.hidden, device, "triton"), nn.Linear(shape.hidden, 1).to(device)
    twin = TWINS[name](shape.hidden, shape.hidden).to(device)

    def loss(y: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(head(y).squeeze(-1), targets, reduction="sum")

    def ours() -> None:
        rt.rewind_loss(net, x, x[..., 0], readout=loss)[0].backward()

    def as_layer() -> None:
        loss(net(x)[0], x[..., 0]).backward()

    def torchs() -> None:
        loss(twin(x)[0], x[..., 0]).backward()

    def checkpointed() -> None:
        parts = [_Part(twin, part) for part in x.split(max(1, round(shape.steps**0.5)))]
        y, _ = checkpoint_sequential(
            parts, len(parts), (x.new_zeros(0, *x.shape[1:], requires_grad=True), None), use_reentrant=False
        )
        loss(y, x[..., 0]).backward()

    yield from (("streamed", ours), ("layer", as_layer), ("torch's", torchs), ("torch's checkpointed", checkpointed))


class _Part(nn.Module):
    """A net over some steps, after those whose outputs and state it is given."""

    def __init__(self, net: nn.GRU | nn.LSTM, x: Tensor) -> None:
        super().__init__()
        self.net, self.x = net, x

    def forward(self, before: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
        y, state = self.net(self.x, before[1])
        return torch.cat([before[0], y]), state


def _microseconds(step: Callable[[], None], device: torch.device, rounds: int = 3) -> float:
    """The least of some rounds, after one that does not count."""
    taken = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
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
    write(asked.out, json.dumps(found, indent=2) + "\n")
    return found


if __name__ == "__main__":
    main()
