"""What the tests of Triton's kernel share: problems small enough for its interpreter, and results that must agree."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import revtune as rt
from revtune.reversible.cells.cell import Response
from revtune.reversible.kernel.engine import Engine
from revtune.reversible.kernel.native_tape import NativeTape
from revtune.reversible.kernel.tape import LayerTensors
from revtune.reversible.layers.layer import LayerSettings, build_tape
from revtune.reversible.layers.scan import Recording
from tests.joint.test_linear_stream import gradients, streamed
from tests.stored import Problem, Result, State, differentiate, relative

BOTH: tuple[Engine, ...] = ("triton", "native")
"""The two kernels."""


def some_slow(*cases: tuple[Any, ...], quick: int) -> list[Any]:
    """Cases of which the first ones are quick enough for every run."""
    return [pytest.param(*case, marks=() if i < quick else pytest.mark.slow) for i, case in enumerate(cases)]


def masks_of(of: Problem) -> dict[str, Tensor]:
    """Locked masks on what both halves read."""
    generator, (rows, width) = torch.Generator().manual_seed(5), of.state[0].shape
    return {part: 2.0 * torch.randint(0, 2, (rows, width // 2), generator=generator) for part in ("h1", "h2")}


def recorded(engine: str, of: Problem, **options: Any) -> tuple[Recording, NativeTape]:
    """A sequence that can be rewound, and its tape."""
    recording = rt.record(of.cell, of.x, of.state, weights=of.weights, backend=engine, **options)
    assert isinstance(recording.tape, NativeTape)
    return recording, recording.tape


def there_and_back(of: Problem, **options: Any) -> NativeTape:
    """The tape of a sequence that both kernels ran and rewound: states, heads and the number of words are the same."""
    (found, tape), (wanted, twin) = (recorded(engine, of, **options) for engine in BOTH)
    assert torch.equal(found.y, wanted.y) and all(map(torch.equal, found.state, wanted.state))
    assert torch.equal(tape.buffer.heads, twin.buffer.heads) and tape.buffer.words == twin.buffer.words
    y, first = rt.unscan(found)
    assert torch.equal(y, found.y) and all(map(torch.equal, first, rt.unscan(wanted)[1]))
    return tape


def results(of: Problem, **options: Any) -> tuple[Result, Result]:
    """A layer's outputs, final states and gradients in both kernels."""
    found, wanted = (differentiate(rt.scan, of, backend=engine, **options) for engine in BOTH)
    return found, wanted


def agree(found: dict[str, Tensor], wanted: dict[str, Tensor], *, torchs: tuple[str, ...]) -> None:
    """The same bits; of gradients that are torch's sums over positions, the same but for their order."""
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        if name in torchs:
            assert relative(tensor, wanted[name]) < 1e-6, name
        else:
            assert torch.equal(tensor, wanted[name]), name


def layers_agree(of: Problem, **options: Any) -> Result:
    """A layer's results, the same in both kernels; weights' gradients are torch's."""
    found, wanted = results(of, **options)
    assert torch.equal(found.y, wanted.y) and all(map(torch.equal, found.finals, wanted.finals))
    agree(found.grads, wanted.grads, torchs=("ih", "hh", "ih.V", "hh.V"))
    return found


def joined(states: Tensor | State) -> Tensor:
    """h, or h and c, as one tensor."""
    return states.detach() if isinstance(states, Tensor) else torch.stack([state.detach() for state in states])


def joined_graph(states: Tensor | tuple[Tensor, ...]) -> Tensor:
    """h, or h and c, as one tensor with its graph."""
    return states if isinstance(states, Tensor) else torch.stack(states)


def moved(
    engine: Engine, of: Problem, chunk: int, responses: dict[str, Response] | None = None, **settings: Any
) -> dict[str, Tensor]:
    """What a tape comes to, chunk by chunk, there and back again, with its gradient."""
    state, weights = (tuple(one.clone().requires_grad_() for one in of.state),
                      {name: one.clone().requires_grad_() for name, one in of.weights.items()})  # fmt: skip
    layer, given = LayerTensors(state, weights, responses or {}), LayerSettings("tape", engine, **settings)
    with torch.no_grad():
        start = build_tape(of.cell, layer, given, len(of.x), of.x.dtype)
    tape = build_tape(of.cell, layer, given, len(of.x), of.x.dtype)
    assert isinstance(tape, NativeTape)
    found: dict[str, Tensor] = {}
    with torch.no_grad(), rt.meter():
        for first in range(0, len(of.x), chunk):
            found[f"y {first}"] = tape.forward(of.x[first : first + chunk], first).clone()
        found |= {f"last {part}": count.clone() for part, count in tape.counts.items()}
        found |= {"heads": tape.buffer.heads.clone(), "slices": tape.slices.clone()}
        usage = tape.usage()
        found["told"] = torch.tensor([tape.buffer.words, usage.ideal_bits, usage.unit_steps], dtype=torch.float64)
        for first in reversed(range(0, len(of.x), chunk)):
            part = of.x[first : first + chunk]
            assert torch.equal(tape.rewind(part, first), found[f"y {first}"])
            dx = tape.gradient(part, found[f"y {first}"].sin())
            assert dx is not None
            found[f"dx {first}"] = dx.clone()
        assert all(torch.equal(count, start.counts[part]) for part, count in tape.counts.items())
    assert tape.buffer.words == 0
    return found | {f"d {part}": grad for part, grad in tape.direction.items()} | tape.weights.gradients


class Words(nn.Module):
    """A net over words, in a kernel."""

    def __init__(self, rev: Any, engine: str) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(5, 4), rt.LinearCrossEntropy(6, 5)
        self.rnn = rev(
            4, 6, max_forget_bits=3.0, input_dropout=0.2, hidden_dropout=0.3, weight_drop=0.2, backend=engine
        )


def tuners_step(rev: Any, engine: str, method: str, level: str) -> dict[str, Tensor]:
    """The loss and the gradients of a tuner's step over words, of a net whose responses are not zero."""
    torch.manual_seed(0)
    net: Any = rt.self_tuning(Words(rev, engine), batch_dim=1)
    for name, parameter in net.named_parameters():
        if "response_s" in name:
            nn.init.normal_(parameter, std=0.2)
    loss, grads = gradients(net, method, level, torch.randint(5, (5, 3)), stream=streamed())
    return {"loss": torch.tensor(loss), **{name: grad for name, grad in grads.items() if grad is not None}}


def tuners_steps_agree(rev: Any, method: str, level: str) -> None:
    """A tuner's step, the same in both kernels; weights' gradients are torch's."""
    found, wanted = (tuners_step(rev, engine, method, level) for engine in BOTH)
    agree(found, wanted, torchs=tuple(name for name in found if "weight_" in name and "rnn" in name))
