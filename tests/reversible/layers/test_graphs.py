"""Layers in graphs: torch.compile, torch.export, ONNX, torch.jit and torch.fx see them as torch's own."""

import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import revtune as rt
from revtune.reversible.layers.stack_arguments import StackArguments
from tests.chunking import set_stack_chunk_steps

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
]
nets = pytest.mark.parametrize("rev", [rt.RevGRU, rt.RevLSTM])
ways = pytest.mark.parametrize(
    "options",
    [
        {},
        {"output": "last", "num_layers": 2},
        {"output": "last", "bidirectional": True},
        {"backend": "reference", "num_layers": 2, "bias": False},
        {"backend": "reference", "output": "last"},
    ],
    ids=str,
)
FREE = ({0: torch.export.Dim("batch"), 1: torch.export.Dim("time")},)


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Graphs of this test alone."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Tagger(nn.Module):
    def __init__(self, rev: Any, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.rnn = nn.Embedding(30, 6), rev(6, 8, batch_first=True, **options)
        self.head = nn.Linear(8 * self.rnn.directions, 5)

    def forward(self, tokens: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
        y, state = self.rnn(self.words(tokens), hx)
        return self.head(y), state


def tokens(rows: int, steps: int) -> Tensor:
    return torch.randint(30, (rows, steps))


def results(model: Any, net: nn.Module, x: Tensor) -> list[Tensor]:
    """Outputs, final states and all gradients."""
    y, state = model(x)
    loss = y.square().sum() + torch.stack([one.sin().sum() for one in tree_leaves(state)]).sum()
    return [
        y.detach(),
        *(one.detach() for one in tree_leaves(state)),
        *torch.autograd.grad(loss, list(net.parameters())),
    ]


def apart(found: Any, wanted: Any) -> float:
    pairs = [(one.detach(), other.detach()) for one, other in zip(tree_leaves(found), tree_leaves(wanted), strict=True)]
    return max(float((one - other).abs().max() / other.abs().max().clamp_min(1e-3)) for one, other in pairs)


# torch.compile


@ways
@nets
@pytest.mark.covering(1)
def test_one_graph_holds_for_all_batches(rev: Any, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    set_stack_chunk_steps(monkeypatch, 4)
    model = Tagger(rev, **options)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=True)
    results(compiled, model, tokens(3, 9))
    with torch.compiler.set_stance("fail_on_recompile"):
        for x in (tokens(5, 9), tokens(40, 21), tokens(2, 4)):
            assert apart(results(compiled, model, x), results(model, model, x)) < 1e-5


@pytest.mark.slow
@nets
def test_inductor_takes_a_net_whose_last_output_alone_is_wanted(rev: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # there Inductor refuses operators that have a decomposition
    monkeypatch.setenv("CI", "1")
    model = Tagger(rev, output="last", num_layers=2)
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    for x in (tokens(3, 9), tokens(17, 12)):
        assert apart(results(compiled, model, x), results(model, model, x)) < 1e-4


def test_dropout_is_drawn_in_the_graph_and_replayed_on_the_way_back() -> None:
    options: dict[str, Any] = {
        name: 0.4 for name in ("input_dropout", "hidden_dropout", "output_dropout", "weight_drop", "dropout")
    }
    torch.manual_seed(0)
    # without forgetting, since no difference shows the gradient of rounding a gate, which is 1
    net = rt.RevGRU(
        6, 8, num_layers=2, forgetting=False, output="last", dtype=torch.float64, backend="reference", **options
    )
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    x, step = torch.randn(9, 3, 6, dtype=torch.float64, requires_grad=True), 1e-4
    losses = []
    for moved in (x, x + step, x - step):
        torch.manual_seed(7)
        losses.append(compiled(moved)[0].sum())
    slope = float(torch.autograd.grad(losses[0], x)[0].sum())
    assert abs(slope) > 1e-3 and float((losses[1] - losses[2]).detach()) / (2 * step) == pytest.approx(slope, rel=1e-2)


# The operator as torch wants it


@pytest.mark.parametrize("backend_", ["auto", "reference"])
@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("states", [1, 2])
def test_a_stack_is_an_operator_as_torch_wants_it(backend_: str, every: bool, states: int) -> None:
    torch.manual_seed(0)
    rows = {1: 6, 2: 10}[states] * 4
    weights = [torch.randn(rows, n).mul_(0.3).requires_grad_() for n in (6, 4, 8, 4)]
    state = [torch.zeros(2, 3, 8, requires_grad=True) for _ in range(states)]
    given = StackArguments(
        torch.randn(9, 3, 6, requires_grad=True), state, weights, [], torch.tensor([5]), torch.tensor([9, 1, 5]), 0.3,
        3.0, True, True, backend_, every, True, "one\ntwo",
    )  # fmt: skip
    torch.library.opcheck(torch.ops.revtune.stack.default, tuple(given))


@nets
def test_a_record_that_was_changed_is_refused(rev: Any) -> None:
    net = rev(6, 8, output="last")
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    y, _ = compiled(torch.randn(9, 3, 6))
    net.weight_hh_l0.data.mul_(1.01)
    with pytest.raises(rt.ReversalError, match="weight 'hh' was changed .* no gradient was produced"):
        y.sum().backward()


# torch.export


@ways
@nets
def test_batch_and_time_are_free_in_an_exported_program(rev: Any, options: dict[str, Any]) -> None:
    model, saved = Tagger(rev, **options).eval(), io.BytesIO()
    with torch.no_grad():
        torch.export.save(torch.export.export(model, (tokens(3, 9),), dynamic_shapes=FREE), saved)
        saved.seek(0)
        program = torch.export.load(saved).module()
        for x in (tokens(3, 9), tokens(5, 21), tokens(2, 2)):
            assert apart(program(x), model(x)) < 1e-5


@nets
def test_a_program_that_was_exported_with_gradients_trains(rev: Any) -> None:
    model = Tagger(rev)
    program = torch.export.export(model, (tokens(3, 9),), dynamic_shapes=FREE).module()
    wanted = results(model, model, x := tokens(5, 13))
    names = [name for name, _ in program.named_parameters()]
    found = dict(zip(names, results(program, program, x)[-len(names) :], strict=True))
    for name, grad in zip(dict(model.named_parameters()), wanted[-len(names) :], strict=True):
        assert apart(found[name], grad) < 1e-5


LOAD = """
import sys, torch, revtune
program, x, wanted = torch.export.load(sys.argv[1]).module(), *torch.load(sys.argv[2])
print(float((program(x)[0] - wanted).abs().max()))
"""


@pytest.mark.parametrize("where", ["auto", "reference"])
def test_programs_load_once_revtune_is_imported(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process that has made no layer; where plain torch is asked for, they run in it."""
    model, x = rt.RevGRU(6, 8, num_layers=2).eval(), torch.randn(9, 3, 6)
    with torch.no_grad():
        torch.export.save(torch.export.export(model, (x,)), tmp_path / "net.pt2")
        torch.save((x, model(x)[0]), tmp_path / "x.pt")
    monkeypatch.setenv("REVTUNE_BACKEND", where)
    command = [sys.executable, "-c", LOAD, str(tmp_path / "net.pt2"), str(tmp_path / "x.pt")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1e-5


# ONNX


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore:# The axis name:UserWarning")
@pytest.mark.parametrize("given", [False, True], ids=["zeros", "hx"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"num_layers": 2, "bidirectional": True}, marks=pytest.mark.slow),
        {"output": "last", "num_layers": 2},
        {"dtype": torch.float64, "forgetting": False},
        {"dtype": torch.float64, "max_forget_bits": None, "bidirectional": True, "output": "last"},
    ],
    ids=str,
)
@nets
@pytest.mark.covering(1)
def test_onnxruntime_runs_a_layer(rev: Any, options: dict[str, Any], given: bool, tmp_path: Path) -> None:
    """To 1e-5; the seed is one with which no gate of float32 falls between two multiples of 1/1024."""
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    torch.manual_seed(3)
    net = rev(6, 8, **options).eval()
    dtype, states = options.get("dtype", torch.float32), 1 if rev is rt.RevGRU else 2

    def arguments(rows: int, steps: int) -> tuple[Any, ...]:
        x = torch.randn(steps, rows, 6, dtype=dtype)
        hx = tuple(torch.rand(net.num_layers * net.directions, rows, 8, dtype=dtype) for _ in range(states))
        return (x, hx if states == 2 else hx[0]) if given else (x,)

    rows = torch.export.Dim("rows")
    of_hx: Any = {1: rows} if states == 1 else ({1: rows},) * 2
    free = ({0: torch.export.Dim("steps"), 1: rows}, *([of_hx] if given else []))
    program = torch.onnx.export(net, arguments(3, 9), dynamo=True, verbose=False, dynamic_shapes=free)
    assert program is not None
    program.save(tmp_path / "net.onnx")
    session = ort.InferenceSession(tmp_path / "net.onnx")
    for shape in ((3, 9), (5, 17)):
        values = tree_leaves(one := arguments(*shape))
        names = [value.name for value in session.get_inputs()]
        found = session.run(None, {name: value.numpy() for name, value in zip(names, values, strict=True)})
        with torch.no_grad():
            wanted = tree_leaves(net(*one))
        for got, expected in zip(found, wanted, strict=True):
            assert (torch.from_numpy(got) - expected).abs().max() < (1e-5 if dtype == torch.float32 else 1e-9)


# torch.jit and torch.fx


@ways
@nets
@pytest.mark.parametrize("grad", [False, True])
def test_a_trace_holds_for_other_shapes(rev: Any, options: dict[str, Any], grad: bool) -> None:
    model, saved = Tagger(rev, **options), io.BytesIO()
    with torch.set_grad_enabled(grad):
        torch.jit.save(torch.jit.trace(model, (tokens(3, 9),)), saved)
        saved.seek(0)
        traced, x = torch.jit.load(saved), tokens(5, 12)
        assert apart(traced(x), model(x)) < 1e-5
    traced(x)[0].sum().backward()
    assert all(parameter.grad is not None for parameter in traced.parameters())


@nets
def test_torch_jit_script_is_refused(rev: Any) -> None:
    for module in (rev(6, 8), nn.Sequential(rev(6, 8))):
        with pytest.raises(RuntimeError, match=f"{rev.__name__} cannot be compiled by torch.jit.script; use torch"):
            torch.jit.script(module)


@nets
def test_a_layer_is_a_leaf_of_torch_fx(rev: Any) -> None:
    model, x = Tagger(rev), tokens(5, 12)
    graph = torch.fx.symbolic_trace(model, concrete_args={"hx": None})
    assert [node.target for node in graph.graph.nodes if node.op == "call_module"] == ["words", "rnn", "head"]
    assert apart(graph(x), model(x)) == 0.0
    with pytest.raises(RuntimeError, match=f"{rev.__name__} is a leaf of torch.fx's graphs: trace a module around it"):
        torch.fx.symbolic_trace(model.rnn)
