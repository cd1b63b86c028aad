"""A whole sequence as one operator: what autograd and torch.compile see of it, and what is refused on the way back."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import revtune as rt
from revtune.reversible.kernel import sequence_recall as recall
from revtune.reversible.kernel.kernel import Keep, Kernel
from revtune.reversible.kernel.sequence_arguments import SequenceArguments
from revtune.reversible.kernel.weights import Weights
from tests.stored import Leaves, Problem, differentiate, problem, random_loss, relative, response_pairs

BACKENDS = ("native",)
KINDS = ("RevGRU", "RevLSTM", "unbounded RevLSTM", "NF-RevGRU", "NF-RevLSTM")
kinds = pytest.mark.parametrize("kind", KINDS)
cells = pytest.mark.parametrize("kind", KINDS[:2])
nets = pytest.mark.parametrize("rev", [rt.RevGRU, rt.RevLSTM])

Rev = type[rt.RevGRU] | type[rt.RevLSTM]
FLOATS = 4 * 3 * 40
"""Bytes of the gates of a step of RevLSTM in a problem of usual size."""


@pytest.fixture(params=[0, 5 * FLOATS, 2**30], ids=["recalled", "some kept", "all kept"])
def kept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many bytes of gates are kept: the way back has no other gates, or evaluates all of them again."""
    monkeypatch.setattr(recall, "KEPT", request.param)


def leaves_and_loss(of: Problem, **options: Any) -> tuple[Leaves, Tensor]:
    leaves = Leaves(of)
    y, finals = rt.scan(of.cell, leaves.x, leaves.state, weights=leaves.weights, **options)
    return leaves, random_loss(y, finals)


# Autograd


@kinds
def test_a_retained_graph_gives_the_same_gradients_again(kind: str, kept: None) -> None:
    leaves, loss = leaves_and_loss(problem(kind, 12), chunk=5)
    tensors = list(leaves.named().values())
    passes = [torch.autograd.grad(loss, tensors, retain_graph=keep) for keep in (True, True, False)]
    for again in passes[1:]:
        assert all(map(torch.equal, passes[0], again))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, tensors)


@cells
def test_double_backward_is_refused(kind: str) -> None:
    leaves, loss = leaves_and_loss(problem(kind, 8))
    with pytest.raises(RuntimeError, match="revtune does not support double backward"):
        torch.autograd.grad(loss, leaves.x, create_graph=True)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_tangent_is_refused() -> None:
    of = problem("RevGRU", 6)
    with pytest.raises(RuntimeError, match="revtune does not support forward-mode differentiation"):
        torch.func.jvp(lambda x: rt.scan(of.cell, x, weights=of.weights)[0], (of.x,), (of.x,))


@kinds
@pytest.mark.parametrize("which", ["x", "state.0", "state.1", "ih", "hh", "bias", "hh.V", "hh.s", "ih.V", "ih.s"])
def test_what_alone_wants_a_gradient_gets_the_same(kind: str, which: str, kept: None) -> None:
    of = problem(kind, 12)
    pairs = response_pairs(of)
    wanted = differentiate(rt.scan, of, responses=pairs, chunk=5).grads
    if which not in wanted:
        return
    leaves = Leaves(of, pairs)
    for name, tensor in leaves.named().items():
        tensor.requires_grad_(name == which)
    y, finals = rt.scan(of.cell, leaves.x, leaves.state, weights=leaves.weights, responses=leaves.responses, chunk=5)
    random_loss(y, finals).backward()
    for name, tensor in leaves.named().items():
        assert (tensor.grad is None) == (name != which)
        assert tensor.grad is None or torch.equal(tensor.grad, wanted[name])


# What is not as it was


CHANGES = ["x", "state.0", "state.0, h2", "ih", "hh", "bias", "y", "y, masked", "hh.V", "hh.s", "mask", "final"]


@cells
@pytest.mark.parametrize("what", CHANGES)
def test_tensors_changed_through_data_are_refused_or_change_nothing(kind: str, what: str, kept: None) -> None:
    """Never a wrong gradient: what the way back reads is what the way there read."""
    of, masks = problem(kind, 12), {part: (torch.arange(12).view(3, 4) % 2) * 2.0 for part in ("h1", "h2")}
    pairs = {"hh": response_pairs(of)["hh"]}
    wanted = differentiate(rt.scan, of, responses=pairs, masks=masks, chunk=5).grads
    leaves = Leaves(of, pairs)
    y, finals = rt.scan(
        of.cell, leaves.x, leaves.state, weights=leaves.weights, responses=leaves.responses, masks=masks, chunk=5
    )
    loss = random_loss(y, finals)
    changed = {
        **leaves.named(), "state.0, h2": leaves.state[0][:, 4:], "y": y[6, 1, 1], "y, masked": y[6, 1, 0],
        "mask": masks["h1"], "final": finals[-1],
    }[what]  # fmt: skip
    changed.data += 0.25
    try:
        grads = leaves.gradients(loss)
    except rt.ReversalError as error:
        assert "o gradient was produced" in str(error)
    else:
        assert all(torch.equal(grad, wanted[name]) for name, grad in grads.items())


@cells
@pytest.mark.parametrize("what", ["x", "ih", "hh"])
def test_inputs_and_weights_changed_through_data_are_refused(kind: str, what: str, kept: None) -> None:
    of = problem(kind, 12)
    leaves = Leaves(of)
    y, finals = rt.scan(of.cell, leaves.x, leaves.state, weights=leaves.weights, chunk=5)
    loss = random_loss(y, finals)
    leaves.named()[what].data *= 1.01
    with pytest.raises(rt.ReversalError, match=f"{kind}.*o gradient was produced"):
        leaves.gradients(loss)


@cells
@pytest.mark.parametrize("what", ["x", "state.0", "ih", "hh", "bias", "hh.V", "hh.s", "mask", "lengths"])
def test_tensors_changed_in_place_are_refused_by_autograd(kind: str, what: str, kept: None) -> None:
    of = problem(kind, 12)
    leaves, masks = Leaves(of, response_pairs(of)), {"h1": torch.ones(3, 4)}
    lengths = torch.tensor([12, 3, 9])
    y, finals = rt.scan(
        of.cell, leaves.x, leaves.state, weights=leaves.weights, responses=leaves.responses, masks=masks,
        lengths=lengths, chunk=5,
    )  # fmt: skip
    loss = random_loss(y, finals)
    with torch.no_grad():
        {**leaves.named(), "mask": masks["h1"], "lengths": lengths}[what].mul_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        leaves.gradients(loss)


@cells
def test_outputs_may_be_written_to_before_the_way_back(kind: str, kept: None) -> None:
    of = problem(kind, 12)
    found = []
    for written in (False, True):
        leaves = Leaves(of)
        y, _ = rt.scan(of.cell, leaves.x, leaves.state, weights=leaves.weights, chunk=5)
        y = y.mul_(3.0) if written else y * 3.0
        found.append(torch.autograd.grad(y.square().sum(), list(leaves.named().values())))
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("now", ["reference", "auto"])
@cells
def test_a_sequence_goes_back_in_the_backend_that_ran_it(
    kind: str, now: str, kept: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = problem(kind, 12)
    wanted = differentiate(rt.scan, of, chunk=5).grads
    leaves, loss = leaves_and_loss(of, chunk=5)
    monkeypatch.setenv("REVTUNE_BACKEND", now)
    assert all(torch.equal(grad, wanted[name]) for name, grad in leaves.gradients(loss).items())


def test_a_backend_that_is_asked_for_runs_or_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def ran(**options: Any) -> str:
        y, _ = rt.scan(of.cell, of.x, weights=of.weights, **options)
        node: Any = y.grad_fn
        if type(node).__name__ == "LazyCloneBackward0":
            node = node.next_functions[0][0]
        return type(node).__name__

    of = problem("RevGRU", 6)
    of.x.requires_grad_()
    assert ran() == ran(backend="native") == "GeneratedBackwardFor_revtune_sequence_defaultBackward"
    assert ran(backend="reference") == "_RewindBackward"
    assert ran(masks={"h1": torch.ones(3, 4)}) == ran()
    monkeypatch.setenv("REVTUNE_BACKEND", "reference")
    assert ran() == ran(backend="reference") == "_RewindBackward"
    for wrong in (problem("RevGRU", 6, dtype=torch.float64), problem("minGRU", 6)):
        with pytest.raises(ValueError, match='backend="native" runs RevGRU and RevLSTM in float32 on the CPU'):
            rt.scan(wrong.cell, wrong.x, weights=wrong.weights, backend="native")


# torch.compile


class Tagger(nn.Module):
    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.first, self.rnn, self.last = nn.Linear(4, 5), rnn, nn.Linear(8, 2)

    def forward(self, x: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
        y, state = self.rnn(torch.tanh(self.first(x)), hx)
        return self.last(y), state


def results(model: Any, parameters: list[nn.Parameter], x: Tensor, hx: Any = None) -> list[Tensor]:
    """Outputs, final states and all gradients."""
    x = x.clone().requires_grad_()
    y, state = model(x, hx)
    states = (state,) if isinstance(state, Tensor) else tuple(state)
    loss = y.square().sum() + torch.stack([one.sin().sum() for one in states]).sum()
    return [y.detach(), *(one.detach() for one in states), *torch.autograd.grad(loss, [x, *parameters])]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@nets
@pytest.mark.parametrize(
    "options", [{}, {"num_layers": 2, "bidirectional": True, "max_forget_bits": None}, {"forgetting": False}]
)
def test_a_model_compiles_as_one_graph(rev: Rev, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    rnn = rev(5, 8 // (2 if options.get("bidirectional") else 1), **options)
    model, x = Tagger(rnn), torch.randn(6, 3, 4)
    wanted = results(model, list(model.parameters()), x)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for given, expected in zip(results(compiled, list(model.parameters()), x), wanted, strict=True):
        assert relative(given, expected) < 1e-5
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_model_compiles_by_inductor() -> None:
    torch.manual_seed(0)
    model, x = Tagger(rt.RevGRU(5, 8)), torch.randn(6, 3, 4)
    wanted = results(model, list(model.parameters()), x)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True)
    for given, expected in zip(results(compiled, list(model.parameters()), x), wanted, strict=True):
        assert relative(given, expected) < 1e-5
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_model_takes_other_lengths_and_evaluates() -> None:
    torch.manual_seed(0)
    model = Tagger(rt.RevLSTM(5, 8))
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=True)
    for steps in (6, 9, 14):
        x = torch.randn(steps, 3, 4)
        wanted = results(model, list(model.parameters()), x)
        for given, expected in zip(results(compiled, list(model.parameters()), x), wanted, strict=True):
            assert relative(given, expected) < 1e-5
        with torch.no_grad():
            assert torch.allclose(compiled(x)[0], model(x)[0], atol=1e-6)
    torch._dynamo.reset()


# The operators as torch wants them


def arguments(kind: str, *, train: bool, ragged: bool) -> tuple[Any, ...]:
    """Arguments of torch.ops.revtune.sequence."""
    of = problem(kind, 9)
    leaves = Leaves(of, response_pairs(of))
    if not train:
        for tensor in leaves.named().values():
            tensor.requires_grad_(False)
    h, c = (*leaves.state, None)[:2]
    pairs = [tensor for name in ("ih", "hh") for tensor in leaves.responses[name]]
    masks = (torch.full((3, 4), 2.0), None) if ragged else (None, None)
    lengths = torch.tensor([9, 1, 5]) if ragged else None
    weights = [leaves.weights[name] for name in ("ih", "bias", "hh")]
    later: tuple[Any, ...] = (None, None, None)
    if ragged:
        anew = [state[:1].detach().clone().requires_grad_(train) for state in leaves.state]
        later = (torch.eye(9, 3).bool() & torch.tensor([True, False, True]), *anew, None)[:3]
    settings = (4, None, 3.0, True, True, train, kind, True)
    return (leaves.x, h, c, *weights, *pairs, *masks, lengths, *settings, *later)


@cells
@pytest.mark.parametrize(("train", "ragged"), [(True, False), (True, True), (False, True)])
def test_the_sequence_is_an_operator_as_torch_wants_it(kind: str, train: bool, ragged: bool, kept: None) -> None:
    torch.library.opcheck(torch.ops.revtune.sequence.default, arguments(kind, train=train, ragged=ragged))


@cells
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_its_way_back_is_one_too(kind: str, ragged: bool, dtype: torch.dtype, kept: None) -> None:
    x, h, c, *others = arguments(kind, train=True, ragged=ragged)
    given: Any = [one.detach() if isinstance(one, Tensor) else one for one in (x, h.to(dtype), c, *others)]
    given[2] = None if c is None else given[2].to(dtype)
    y, final, *known = torch.ops.revtune.sequence(*given)
    wanted = [one is not None for one in SequenceArguments(*given).differentiable()]
    back = (torch.randn_like(y), torch.randn_like(final), y, final, *known, wanted, *given)
    torch.library.opcheck(torch.ops.revtune.sequence_backward.default, back)


@cells
def test_the_chunks_operators_change_what_their_schemas_say(kind: str) -> None:
    of = problem(kind, 5)
    weights = Weights(of.weights, {}, frozenset(), 4, kind, engine="native")
    kernel = Kernel(of.cell, weights, 4, {}, None)
    chunk, counts = kernel.chunk_buffers(of.x, recorded=True), torch.zeros(len(of.state), 2, 3, 4, dtype=torch.float64)
    heads, direction = kernel.heads(3, 5, None), torch.randn(len(of.state), 2, 3, 4)
    packed = torch.ops.revtune.pack(of.weights["hh"], of.cell.blocks // 2)
    reading = (packed, None, None, None, None)
    states = (chunk.y, chunk.y_start, chunk.c, chunk.c_start)

    def check(name: str, *arguments: Any) -> None:
        operator = getattr(torch.ops.revtune, name).default
        torch.library.opcheck(operator, arguments, test_utils="test_schema")

    check("pack", of.weights["hh"], of.cell.blocks // 2)
    limit = (1.0, True, True)
    for bias in (None, of.weights["bias"]):
        projected = torch.ops.revtune.pack_projection(of.weights["ih"])
        check("infer", of.x, projected, bias, counts, chunk.y, chunk.y_start, *reading, None, *limit)
    check("forward", chunk.gates, counts, heads, *states, chunk.rh, *reading, None, 0, *limit, Keep.EVERYTHING, None)
    words, _, _ = kernel.forward(chunk, counts, heads, 0, Keep.EVERYTHING)
    check("recall", chunk.gates, chunk.y, chunk.y_start, chunk.rh, *reading)
    check("rewind", chunk.gates, counts, heads, words, *states, chunk.rh, *reading, None, 0, 0.875, True, True)
    gradient = (chunk.gates, direction, *states, of.weights["hh"], *[None] * 5, chunk.y, 0, *limit)
    check("gradient", *gradient)
    if kind == "RevLSTM":
        check("recall_cells", chunk.gates, counts, heads, words, *states, None, 0, *limit)
    for name in ("gate_sigmoid", "gate_tanh"):
        check(name, of.x)
