"""Chunks that are captured and replayed: the bits of launches one by one, whatever moves between two chunks."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor

import revtune as rt
from revtune.reversible.kernel import backend
from revtune.reversible.kernel.triton import graphs
from revtune.reversible.kernel.triton.chunk import Chunk, Course, Limit
from revtune.reversible.kernel.triton.gru_chunk import GruChunk
from revtune.reversible.kernel.triton.rooms import LEAST_WORDS, Rooms, described, tensors_in
from tests.chunking import set_stack_chunk_steps
from tests.in_triton import BOTH, agree, joined, joined_graph, moved
from tests.replayed import Replayed, replaying
from tests.stored import Problem, problem

pytestmark = pytest.mark.skipif(not backend.load(), reason="there is no C++ kernel to compare with")


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Replayed]:
    """What stands for a CUDA graph."""
    return replaying(monkeypatch)


def streamed(engine: str, of: Problem, **options: Any) -> list[Tensor]:
    """Outputs there and back, the first state as it came back, and how many words were spilled."""
    recording = rt.record(of.cell, of.x, of.state, weights=of.weights, backend=engine, **options)
    y, first = rt.unscan(recording)
    return [recording.y, *recording.state, y, *first]


def trained(engine: str, of: Problem, **options: Any) -> list[Tensor]:
    """Outputs, final state and the gradients of inputs and first state."""
    x, state = of.x.detach().requires_grad_(), tuple(one.detach().requires_grad_() for one in of.state)
    y, final = rt.scan(of.cell, x, state, weights=of.weights, backend=engine, **options)
    (y.square().sum() + torch.stack(final).sin().sum()).backward()
    return [y.detach(), *(one.detach() for one in final), *(one.grad for one in (x, *state) if one.grad is not None)]


@pytest.mark.parametrize(("kind", "bits"), [("RevGRU", 3.0), pytest.param("RevLSTM", None, marks=pytest.mark.slow)])
@pytest.mark.parametrize("run", [streamed, trained])
def test_replayed_chunks_have_the_same_bits(
    kind: str, bits: float | None, run: Callable[..., list[Tensor]], recorder: type[Replayed]
) -> None:
    """Three sequences of two chunks, whose states, weights, masks and lengths lie elsewhere each time."""
    for seed in range(3):
        of = problem(kind, 4, bits=bits, hidden=4, inputs=2, rows=2)
        torch.manual_seed(seed)
        weights = {name: weight + 0.1 * torch.randn_like(weight) for name, weight in of.weights.items()}
        moved = Problem(of.cell, torch.randn_like(of.x), tuple(map(torch.randn_like, of.state)), weights)
        masks = {part: 2.0 * torch.randint(0, 2, (2, 2)).float() for part in ("h1", "h2")}
        options = {"masks": masks, "lengths": torch.tensor([4, 2 + seed // 2]), "chunk": 2}
        assert all(map(torch.equal, run("triton", moved, **options), run("native", moved, **options)))
    assert recorder.captured == len(graphs.graphs) == 2  # there, and back or the gradient
    assert recorder.replays == 2 * 3 * 2 - 2 * recorder.captured


@pytest.mark.parametrize("kind", ["RevGRU", pytest.param("RevLSTM", marks=pytest.mark.slow)])
@pytest.mark.parametrize("what", ["starts", "sliced"])
def test_late_starts_and_kept_units_are_replayed(kind: str, what: str, recorder: type[Replayed]) -> None:
    """Two sequences of two chunks; rows start at other steps, and other units are kept, in the second one."""
    for seed in range(2):
        of = problem(kind, 4, bits=None, hidden=4, inputs=2, rows=2, seed=seed)
        settings: dict[str, Any] = {"starts": torch.tensor([seed, 3])} if what == "starts" else {"sliced": 1}
        found, wanted = (moved(engine, of, 2, **settings) for engine in BOTH)
        agree(found, wanted, torchs=("ih", "hh"))
    assert recorder.captured == len(graphs.graphs) == 3 and recorder.replays == 3 * 2  # there, back and the gradient


@pytest.mark.parametrize(
    "rev", [pytest.param(rt.RevGRU, marks=pytest.mark.slow), pytest.param(rt.RevLSTM, marks=pytest.mark.slow)]
)
def test_streams_of_ragged_rows_in_both_directions_are_replayed(
    rev: type[rt.RevGRU] | type[rt.RevLSTM], recorder: type[Replayed], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of a net with other weights and lengths each time, and what an encoder keeps."""
    set_stack_chunk_steps(monkeypatch, 2)

    def step(engine: str, seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        net, head = rev(2, 4, bidirectional=True, backend=engine), rt.LinearCrossEntropy(8, 5)
        x, lengths = torch.randn(4, 2, 2), torch.tensor([4, 1 + seed])
        loss, _ = rt.rewind_loss(net, x, torch.randint(5, (4, 2)), readout=head, lengths=lengths)
        kept, last = rt.rewind_encode(net, x, lengths=lengths, units=1)
        assert kept is not None
        (loss + kept.sin().sum() + joined_graph(last).cos().sum()).backward()
        grads = {name: one.grad for name, one in net.named_parameters() if one.grad is not None}
        return {"loss": loss.detach(), "kept": kept.detach(), "last": joined(last), **grads}

    torchs = tuple(f"weight_{which}_l0{way}" for which in ("ih", "hh") for way in ("", "_reverse"))
    for seed in range(2):
        agree(step("triton", seed), step("native", seed), torchs=torchs)
    assert not graphs.graphs.failure and recorder.replays > recorder.captured > 0


def test_what_is_asked_for_otherwise_is_another_graph(recorder: type[Replayed]) -> None:
    of = problem("RevGRU", 1, hidden=4, inputs=2, rows=2)
    masked = {"masks": {"h1": torch.ones(2, 2)}}
    ragged = {"lengths": torch.tensor([1, 1])}
    limited = problem("RevGRU", 1, bits=1.0, hidden=4, inputs=2, rows=2)
    for case, options in ((of, {}), (of, masked), (of, ragged), (limited, {}), (of, {"share": 2})):
        before = recorder.captured
        for _ in range(2):
            rt.record(case.cell, case.x, case.state, weights=case.weights, backend="triton", **options)
        assert recorder.captured == before + 1, options


@pytest.mark.parametrize("kind", ["RevGRU", pytest.param("NF-RevLSTM", marks=pytest.mark.slow)])
def test_chunks_share_a_graph_however_often_rows_begin_anew(kind: str, recorder: type[Replayed]) -> None:
    """Two times, and then three, of another row."""
    of = problem(kind, 4, hidden=4, inputs=2, rows=2)
    few, many = torch.zeros(4, 2, dtype=torch.bool), torch.zeros(4, 2, dtype=torch.bool)
    few[[0, 2], 0] = many[1:, 1] = True
    for resets in (few, few, many):
        assert all(
            map(torch.equal, streamed("triton", of, resets=resets), streamed("native", of, resets=resets))
        )  # fmt: skip
    assert recorder.captured == len(graphs.graphs) == 2 and recorder.replays == 2


def test_few_graphs_are_kept(recorder: type[Replayed], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "MOST_GRAPHS", 2)
    for rows in (1, 2, 3):
        of = problem("RevGRU", 1, hidden=2, inputs=2, rows=rows)
        for _ in range(2):
            streamed("triton", of)
    assert len(graphs.graphs) == 2 and recorder.captured == 6
    assert 0 < graphs.graphs.bytes < 100_000
    monkeypatch.setattr(graphs, "MOST_BYTES", 10)
    of = problem("RevGRU", 1, hidden=2, inputs=2, rows=4)
    for _ in range(2):
        streamed("triton", of)
    assert recorder.captured == 6  # rooms would take too much
    graphs.graphs.forget()
    assert not len(graphs.graphs) and not graphs.graphs.bytes


@pytest.mark.parametrize("why", ["short", "switched off", "a graph of the caller's", "grad mode", "compiled"])
def test_where_nothing_is_captured(why: str, recorder: type[Replayed], monkeypatch: pytest.MonkeyPatch) -> None:
    chunk = _chunk()
    if why == "short":
        monkeypatch.setattr(graphs, "FEWEST_STEPS", 3)
    if why == "a graph of the caller's":
        monkeypatch.setattr(graphs, "_is_captured", lambda device: True)
    if why == "compiled":
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    context: dict[str, Callable[[], AbstractContextManager[Any]]] = {
        "switched off": graphs.one_by_one, "grad mode": torch.enable_grad
    }  # fmt: skip
    with torch.no_grad(), context.get(why, torch.no_grad)():
        for _ in range(3):
            graphs.launch(_doubled, chunk, changed=[chunk.gates])
    assert torch.equal(chunk.gates, torch.full((2, 1, 6), 8.0)) and not recorder.captured


def test_a_capture_that_fails_is_told_once(
    recorder: type[Replayed], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(launches: Callable[[], None], device: torch.device) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nat line 1")

    monkeypatch.setitem(graphs.RECORDERS, "cpu", fails)
    of = problem("RevGRU", 2, hidden=4, inputs=2, rows=2)
    wanted = streamed("native", of)
    for _ in range(3):
        assert all(map(torch.equal, streamed("triton", of), wanted))
    assert capsys.readouterr().err == (
        "revtune: no CUDA graph can be captured, launches stay one by one: "
        "RuntimeError: operation not permitted when stream is capturing\n"
    )
    assert not len(graphs.graphs)


def test_launches_that_change_what_they_do_not_say_are_found(recorder: type[Replayed]) -> None:
    chunk = _chunk()
    with torch.no_grad():
        graphs.launch(_doubled, chunk, changed=[])
        with pytest.raises(AssertionError, match="_doubled changes a tensor that it is not said to change"):
            graphs.launch(_doubled, chunk, changed=[])


def test_a_tensor_with_nan_in_it_is_as_it_was(recorder: type[Replayed]) -> None:
    """As the gradient of a loss may be that is scaled too much."""
    chunk = _chunk()
    chunk.y[0] = torch.nan
    with torch.no_grad():
        for _ in range(2):
            graphs.launch(_doubled, chunk, changed=[chunk.gates])
    assert recorder.captured == 1


def test_every_tensor_of_a_chunk_has_a_room_of_its_own() -> None:
    chunk = _chunk()
    given = (chunk, (torch.ones(3), None, 2), torch.zeros(5, dtype=torch.int16))
    rooms = Rooms(given, {})
    rooms.fill(given)
    moved, (ones, _, number), words = rooms.args
    assert number == 2 and len(words) == LEAST_WORDS and torch.equal(ones, torch.ones(3)) and type(moved) is GruChunk
    theirs = {tensor.data_ptr() for tensor in tensors_in(given)}
    own = [tensor.data_ptr() for tensor in tensors_in(rooms.args)]
    assert not theirs & set(own) and len(set(own)) == len(own)
    assert all(map(torch.equal, tensors_in(moved), tensors_in(chunk)))


def test_fewer_steps_have_their_rooms_in_those_of_more() -> None:
    shared: dict[Any, Tensor] = {}
    long, short, longer = (Rooms((_chunk(steps=steps),), shared) for steps in (3, 2, 4))
    same = [one.data_ptr() == other.data_ptr() for one, other in zip(long.whole, short.whole, strict=True)]
    assert all(same) and short.bytes == long.bytes < longer.bytes  # whole rooms, which it keeps
    assert longer.args[0].gates.data_ptr() != long.args[0].gates.data_ptr()
    given = (_chunk(steps=2),)
    short.fill(given)
    assert all(map(torch.equal, tensors_in(short.args), tensors_in(given)))
    assert torch.equal(long.args[0].gates[:2], given[0].gates)


def test_what_decides_launches_is_described() -> None:
    chunk = _chunk()
    same, *others = (
        described((chunk, one)) for one in (torch.zeros(3), torch.ones(4), torch.zeros(3).double(), None, 3, 3.0)
    )
    assert same == described((_chunk(), torch.ones(3))) and len({same, *others}) == 6
    assert described((_chunk(slope=0.5),)) != described((_chunk(),))
    with pytest.raises(TypeError, match="tensors, numbers, tuples and chunks, got list"):
        described(([1],))


def _chunk(slope: float = 1.0, steps: int = 2) -> GruChunk:
    """A chunk of so many steps."""
    y = torch.zeros(steps, 1, 2)
    states = (y, y[0].clone(), None, None)
    return GruChunk(torch.ones(steps, 1, 6), states, y.clone(), (None, None), Course(), Limit(slope, True))


def _doubled(chunk: Chunk) -> None:
    """What stands for launches."""
    chunk.gates.mul_(2)
