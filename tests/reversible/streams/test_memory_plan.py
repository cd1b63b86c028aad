"""`max_memory`: what is taken stays below it, shapes alone decide, and what cannot be is told."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

import revtune as rt
from revtune.reversible.layers.masks import BatchSpec
from revtune.reversible.layers.resets import Resets
from revtune.reversible.streams import stream
from revtune.reversible.streams.memory_plan import MemoryPlan, _lost_bytes, checked_memory, plan
from tests.backends import on_native, real

WORDS, ROWS = 50, 4


@pytest.mark.parametrize(
    ("given", "size"),
    [
        (None, None),
        (1000, 1000),
        ("20MB", 20_000_000),
        ("1.5 kb", 1500),
        ("2GiB", 2**31),
        ("64", 64),
        ("3mib", 3 * 2**20),
    ],
)
def test_memory_is_told_in_bytes_or_words(given: Any, size: int | None) -> None:
    assert checked_memory(given) == size


@pytest.mark.parametrize("given", [0, -1, 2.5, True, "MB", "20 bytes", "0MB", "1TB", "-3MB", "", [1]])
def test_no_memory_is_refused(given: Any) -> None:
    net, head = rt.RevGRU(6, 8, dtype=real()), rt.LinearCrossEntropy(8, WORDS, dtype=real())
    x, targets = torch.randn(5, ROWS, 6, dtype=real()), torch.randint(WORDS, (5, ROWS))
    with pytest.raises(ValueError, match=r"max_memory must be a number of bytes or a string such as .20MB."):
        rt.rewind_loss(net, x, targets, readout=head, max_memory=given)
    with pytest.raises(ValueError, match="max_memory"):
        rt.rewind_encode(net, x, max_memory=given)


def plans(
    rev: Any, steps: int, limits: list[int | str | None], monkeypatch: Any
) -> tuple[list[MemoryPlan], list[float]]:
    """How a sequence is cut under each limit, and its loss."""
    net, head = rev(6, 64, dtype=real()), rt.LinearCrossEntropy(64, WORDS, dtype=real())
    x, targets = torch.randn(steps, ROWS, 6, dtype=real()), torch.randint(WORDS, (steps, ROWS))
    made: list[MemoryPlan] = []

    def noted(*args: Any, **kwargs: Any) -> MemoryPlan:
        made.append(plan(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(stream, "plan", noted)
    losses = [rt.rewind_loss(net, x, targets, readout=head, max_memory=limit)[0].item() for limit in limits]
    return made, losses


@pytest.mark.parametrize("rev", [rt.RevGRU, rt.RevLSTM])
def test_less_memory_means_shorter_cuts_and_the_same_loss(rev: Any, monkeypatch: Any) -> None:
    made, losses = plans(rev, 400, [None, "1GB", "5MB", "2500KB"], monkeypatch)
    assert made[0][:2] == made[1][:2] and made[0].segment == 400
    assert made[3].chunk < made[2].chunk <= made[1].chunk
    assert all(loss == pytest.approx(losses[0], rel=1e-5) for loss in losses)


def test_both_directions_have_shorter_chunks_and_the_same_loss(monkeypatch: Any) -> None:
    made: list[MemoryPlan] = []
    monkeypatch.setattr(stream, "plan", lambda *a, **k: made.append(plan(*a, **k)) or made[-1])  # type: ignore[func-returns-value]
    net, head = rt.RevGRU(6, 64, bidirectional=True, dtype=real()), rt.LinearCrossEntropy(128, WORDS, dtype=real())
    x, targets = torch.randn(300, ROWS, 6, dtype=real()), torch.randint(WORDS, (300, ROWS))
    losses = [rt.rewind_loss(net, x, targets, readout=head, max_memory=limit)[0].item() for limit in (None, "3500KB")]
    assert made[1].chunk < made[0].chunk and made[1].segment == 300
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    with pytest.raises(ValueError, match="max_memory must be at least .* with no checkpoints"):
        rt.rewind_loss(net, x, targets, readout=head, max_memory="1MB")


class _Planned(Exception):
    """Raised in the place of running."""


@pytest.mark.parametrize("rev", [rt.RevGRU, rt.RevLSTM])
def test_checkpoints_are_made_where_the_whole_buffer_does_not_fit(rev: Any, monkeypatch: Any) -> None:
    net, head = rev(6, 64, dtype=real()), rt.LinearCrossEntropy(64, WORDS, dtype=real())
    x, targets = torch.zeros(20_000, ROWS, 6, dtype=real()), torch.zeros(20_000, ROWS, dtype=torch.long)
    made: list[MemoryPlan] = []

    def noted(*args: Any, **kwargs: Any) -> MemoryPlan:
        made.append(plan(*args, **kwargs))
        raise _Planned

    monkeypatch.setattr(stream, "plan", noted)
    for limit in ("20MB", "2500KB"):
        with pytest.raises(_Planned):
            rt.rewind_loss(net, x, targets, readout=head, max_memory=limit)
    assert made[0].segment == 20_000
    assert 100 < made[1].segment < 2000, "near sqrt(64 T / bits)"


@pytest.mark.parametrize("rev", [rt.RevGRU, rt.RevLSTM])
def test_too_little_memory_is_told_with_the_least_that_does(rev: Any, monkeypatch: Any) -> None:
    with pytest.raises(ValueError, match=r"max_memory must be at least (\d\.\d) MB .* a checkpoint every") as caught:
        plans(rev, 400, ["1MB"], monkeypatch)
    least = float(str(caught.value).split("at least ")[1].split()[0])
    plans(rev, 400, [int((least + 0.1) * 1e6)], monkeypatch)


def test_a_spacing_of_checkpoints_that_is_asked_for_is_kept(monkeypatch: Any) -> None:
    net, head = rt.RevGRU(6, 64, dtype=real()), nn.Linear(64, WORDS, dtype=real())
    x, targets = torch.randn(90, ROWS, 6, dtype=real()), torch.randint(WORDS, (90, ROWS))
    made: list[MemoryPlan] = []
    monkeypatch.setattr(stream, "plan", lambda *a, **k: made.append(plan(*a, **k)) or made[-1])  # type: ignore[func-returns-value]

    def read(y: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(head(y), wanted, reduction="sum")

    rt.rewind_loss(net, x, targets, readout=read, checkpoint_every=30, max_memory="3MB")[0].backward()
    assert made[0].segment == 30 and made[0].chunk <= 30


@pytest.mark.parametrize("rev", [rt.RevGRU, rt.RevLSTM])
def test_what_rows_lose_is_planned_for(rev: Any) -> None:
    steps, net = 2000, rev(6, 64, dtype=real())
    spec, at = BatchSpec(ROWS, real(), torch.device("cpu")), torch.zeros(steps, ROWS, dtype=torch.bool)
    at[::10] = True

    def segment(resets: Resets | None, limit: int) -> int:
        """The steps between checkpoints under a limit; 0 where it is not enough."""
        states, engine = net.first_states(spec, None, batched=True), net.engine_for(net.first_weight)
        stack = net.assemble(steps, spec, states, None, engine=engine, resets=resets).stack
        try:
            return plan("test", stack, steps, segment=None, max_memory=limit).segment
        except ValueError:
            return 0

    limit = next(size for size in range(10**6, 10**7, 10**5) if segment(None, size) == steps)
    assert segment(Resets(at & False), 2 * limit) == steps and segment(Resets(at), limit) < steps
    recording = rt.record(
        net.cell, torch.randn(steps, ROWS, net.cell.blocks * 32, dtype=real()), weights={"hh": net.weight_hh_l0},
        resets=at, chunk=steps,
    )  # fmt: skip
    parts, heads = len(net.cell.parts), recording.tape.buffer.heads.numel() // ROWS
    lost = _lost_bytes(recording.tape, steps)
    assert lost == int(at.sum()) * (8 * 32 * parts + 4 * heads) < 2 * recording.tape.buffer.words


def test_an_encoder_has_shorter_chunks_and_the_same_state() -> None:
    net, x = rt.RevLSTM(6, 64, dtype=real()), torch.randn(300, ROWS, 6, dtype=real())
    _, (wanted, _) = rt.rewind_encode(net, x)
    _, (h_n, _) = rt.rewind_encode(net, x, max_memory="1600KB")
    torch.testing.assert_close(h_n, wanted, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="rewind_encode: max_memory must be at least .* no checkpoints"):
        rt.rewind_encode(net, x, max_memory="1100KB")


MEASURED = """
import sys, torch, revtune as rt
from revtune.program.bench.measuring import peak_of
cell, limit, steps, rows, hidden, ways = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
torch.set_num_threads(1)
net, emb = getattr(rt, cell)(16, hidden, bidirectional=ways == 2), torch.nn.Embedding(256, 16)
head = rt.LinearCrossEntropy(ways * hidden, 256)
tokens = torch.randint(256, (steps + 1, rows))
parts = [net, emb, head]
def step(n, limit):
    rt.rewind_loss(net, tokens[:n], tokens[1:n + 1], encode=emb, readout=head, max_memory=limit)[0].backward()
for _ in range(2):
    step(8, None)
for part in parts:
    part.zero_grad(set_to_none=True)
peak = peak_of(lambda: step(steps, limit), torch.device("cpu"))
print(peak - sum(p.grad.nbytes for part in parts for p in part.parameters()))
"""


@on_native
@pytest.mark.parametrize("cell", ["RevGRU", "RevLSTM"])
@pytest.mark.parametrize(
    "case",
    [
        ("4MB", 1000, 20, 128, 1),
        ("8MB", 1000, 20, 128, 2),
        pytest.param(("8MB", 5000, 8, 256, 1), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_the_peak_in_a_plain_process_stays_below(cell: str, case: tuple[str, int, int, int, int]) -> None:
    done = subprocess.run([sys.executable, "-c", MEASURED, cell, *map(str, case)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= 1.1 * float(case[0][:-2]) * 1e6
