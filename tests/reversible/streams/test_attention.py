"""Attention as its equations say; as a readout it streams, with the gradients of one that runs at once."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import revtune as rt
from revtune.reversible.streams.attention import Attention, AttentionReadout, numbered
from tests.backends import real
from tests.chunking import set_stack_chunk_steps

BACKENDS = ("reference", "native")
T, S, B, V, E, H, D = 13, 7, 4, 11, 6, 8, 5


def test_it_is_the_equations() -> None:
    torch.manual_seed(1)
    attention = Attention(H, D, 3).double()
    queries, keys = torch.randn(B, T, H).double(), torch.randn(B, S, D).double()
    lengths = torch.tensor([7, 1, 3, 6])
    out, weights = attention(queries, keys, lengths)
    for b in range(B):
        for t in range(T):
            scores = torch.stack([attention.score.weight @ queries[b, t] @ keys[b, s] for s in range(lengths[b])])
            a = torch.softmax(scores, 0)
            read = sum(a[s] * keys[b, s] for s in range(lengths[b]))
            wanted = torch.tanh(attention.combine.weight @ torch.cat([torch.as_tensor(read), queries[b, t]]))
            torch.testing.assert_close(out[b, t], wanted)
            torch.testing.assert_close(weights[b, t, : lengths[b]], a)
            assert not weights[b, t, lengths[b] :].any()


def test_a_mask_is_one_on_keys() -> None:
    attention, keys, mask = Attention(H, D).double(), torch.randn(B, S, D).double(), torch.rand(B, D).double()
    queries, lengths = torch.randn(B, T, H).double(), torch.tensor([7, 1, 3, 6])
    masked = attention(queries, keys, lengths, mask), attention(queries, keys * mask[:, None], lengths)
    for one, other in zip(*masked, strict=True):
        torch.testing.assert_close(one, other)


def test_its_gradients_are_those_of_differences() -> None:
    attention, mask, lengths = Attention(3, 4, 2).double(), torch.rand(2, 4).double(), torch.tensor([3, 2])
    queries, keys = torch.randn(2, 3, 3).double().requires_grad_(), torch.randn(2, 3, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda q, k: attention(q, k, lengths, mask), (queries, keys))


def test_padding_has_no_part_in_it() -> None:
    attention, keys = Attention(H, D), torch.randn(B, S, D)
    queries, lengths = torch.randn(B, T, H), torch.tensor([3, 3, 2, 1])
    out, _ = attention(queries, keys, lengths)
    other = keys.clone()
    other[:, 3:] = 1e9
    assert torch.equal(out, attention(queries, other, lengths)[0])
    assert torch.equal(attention(queries, keys)[0], attention(queries, keys, torch.full((B,), S))[0])


@pytest.mark.parametrize("lengths", [None, torch.tensor([13, 2, 1, 9])])
def test_as_a_readout_it_streams(lengths: Tensor | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and gradients, also of what it attends to, are those of the whole at once."""
    set_stack_chunk_steps(monkeypatch, 4)
    monkeypatch.setattr("revtune.reversible.streams.attention.PART_ROWS", 3)
    torch.manual_seed(2)
    rnn, attention = rt.RevGRU(E, H, dtype=real()), Attention(H, D).to(real())
    head = rt.LinearCrossEntropy(H, V, dtype=real())
    x, kept = torch.randn(T, B, E, dtype=real()), torch.randn(S, B, D, dtype=real(), requires_grad=True)
    tokens, sources = torch.randint(V, (T, B)), torch.tensor([7, 1, 3, 6])
    readout = AttentionReadout(attention, lambda rows, keys: keys[:, rows].transpose(0, 1), sources, head)
    annotations = kept * 2
    loss, _ = rt.rewind_loss(
        rnn, x, numbered(tokens), readout=readout, lengths=lengths, context=[annotations], reduction="sum"
    )
    y, _ = rnn(x)
    out, _ = attention(y.transpose(0, 1), (kept * 2).transpose(0, 1), sources)
    live = torch.arange(T)[:, None] < (torch.full((B,), T) if lengths is None else lengths)
    wanted = F.cross_entropy(head.logits(out.transpose(0, 1)[live]), tokens[live], reduction="sum")
    most = {torch.float64: 1e-9, torch.float32: 1e-4}[real()]
    assert loss.item() == pytest.approx(wanted.item(), rel=most)
    parameters = [kept, *rnn.parameters(), *attention.parameters(), *head.parameters()]
    mine, theirs = torch.autograd.grad(loss, parameters), torch.autograd.grad(wanted, parameters)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=10 * most, atol=most)


@pytest.mark.parametrize("lengths", [None, torch.tensor([13, 2, 1, 9])])
def test_a_mean_counts_as_the_head_does(lengths: Tensor | None) -> None:
    """Left-out classes and class weights too, as if the head were the readout."""
    rnn, attention, weights = rt.RevGRU(E, H), Attention(H, D), torch.rand(V) + 0.5
    head = rt.LinearCrossEntropy(H, V, ignore_index=0, class_weights=weights)
    x, kept, tokens = torch.randn(T, B, E), torch.randn(S, B, D), torch.randint(V, (T, B))
    sources = torch.full((B,), S)
    readout = AttentionReadout(attention, lambda rows, keys: keys[:, rows].transpose(0, 1), sources, head)
    run = partial(rt.rewind_loss, rnn, x, numbered(tokens), readout=readout, lengths=lengths, context=[kept])
    (mean, _), (total, _) = run(), run(reduction="sum")
    live = torch.arange(T)[:, None] < (torch.full((B,), T) if lengths is None else lengths)
    counted = weights[tokens[live & (tokens != 0)]].sum()
    assert mean.item() == pytest.approx(total.item() / counted.item(), rel=1e-5)


def test_the_graph_of_what_is_attended_to_runs_once() -> None:
    runs = []
    kept = torch.randn(S, B, D, requires_grad=True)
    annotations = kept * 1
    annotations.register_hook(lambda grad: runs.append(grad))
    head, sources = rt.LinearCrossEntropy(H, V), torch.full((B,), S)
    readout = AttentionReadout(Attention(H, D), lambda rows, keys: keys[:, rows].transpose(0, 1), sources, head)
    loss, _ = rt.rewind_loss(
        rt.RevGRU(E, H), torch.randn(T, B, E), numbered(torch.zeros(T, B, dtype=torch.long)), readout=readout,
        context=[annotations],
    )  # fmt: skip
    loss.backward()
    assert len(runs) == 1 and kept.grad is not None


def test_under_autocast_it_learns_what_it_evaluates() -> None:
    """Features come in bfloat16 there; the loss is taken in the head's own dtype, with gradients and without."""
    rnn, attention, head = rt.RevGRU(E, H), Attention(H, D), rt.LinearCrossEntropy(H, V)
    kept, sources, tokens = torch.randn(S, B, D, requires_grad=True), torch.full((B,), S), torch.randint(V, (T, B))
    readout = AttentionReadout(attention, lambda rows, keys: keys[:, rows].transpose(0, 1), sources, head)
    run = partial(rt.rewind_loss, rnn, torch.randn(T, B, E), numbered(tokens), readout=readout, context=[kept])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = run()
        loss.backward()
        with torch.no_grad():
            again, _ = run()
    assert loss.item() == pytest.approx(again.item(), rel=1e-3)
    assert kept.grad is not None and bool(kept.grad.isfinite().all()) and bool(kept.grad.any())


@pytest.mark.parametrize(("queries", "keys", "lengths", "told"), [
    ((B, T, H + 1), (B, S, D), None, r"queries must be \(B, steps, 8\), got \(4, 13, 9\)"),
    ((B, T, H), (S, B, D + 1), None, r"keys must be \(B, steps, 5\), got \(7, 4, 6\)"),
    ((B, T, H), (S, B, D), None, "queries and keys must be of as many rows, got 4 and 7"),
    ((B, T, H), (B, S, D), [S, 1, 0, 2], r"source lengths must lie in 1\.\.7, the positions of the keys, got 0"),
    ((B, T, H), (B, S, D), [S, 1, 8, 2], r"source lengths must lie in 1\.\.7, the positions of the keys, got 8"),
    ((B, T, H), (B, S, D), [S], "lengths must be 4 integers, one a row"),
])  # fmt: skip
def test_what_does_not_fit_is_told(
    queries: tuple[int, ...], keys: tuple[int, ...], lengths: list[int] | None, told: str
) -> None:
    """Silently wrong or NaN otherwise."""
    with pytest.raises(ValueError, match=told):
        Attention(H, D)(torch.randn(queries), torch.randn(keys), None if lengths is None else torch.tensor(lengths))


MASKS: list[tuple[Any, str]] = [
    (torch.rand(D), r"floats \(4, {width}\), a row's for its keys, got torch.float32 \(5,\)"),
    (torch.rand(1, D), r"floats \(4, {width}\), a row's for its keys, got torch.float32 \(1, 5\)"),
    (torch.rand(B + 5, D), r"floats \(4, {width}\), a row's for its keys, got torch.float32 \(9, 5\)"),
    (torch.rand(B, S, D), r"floats \(4, {width}\), a row's for its keys, got torch.float32 \(4, 7, 5\)"),
    (torch.ones(B, D).bool(), r"floats \(4, {width}\), a row's for its keys, got torch.bool \(4, 5\)"),
    ([1.0] * B, "a tensor, got list"),
]
"""What is no mask (B, D), and what is told of it."""


@pytest.mark.parametrize(("mask", "told"), MASKS)
def test_a_mask_that_does_not_fit_is_told(mask: Any, told: str) -> None:
    """Of some shapes it would lie over other dimensions, silently."""
    attention = Attention(H, D)
    with pytest.raises(ValueError, match="^Attention: mask must be " + told.format(width=D)):
        attention(torch.randn(B, T, H), torch.randn(B, S, D), None, mask)
    with pytest.raises(ValueError, match="^AttentionReadout: mask must be " + told.format(width="D")):
        AttentionReadout(attention, lambda rows: torch.randn(B, S, D), torch.full((B,), S),
                         rt.LinearCrossEntropy(H, V), mask=mask)  # fmt: skip


def test_a_mask_of_another_width_or_dtype_is_told() -> None:
    attention, queries, keys = Attention(H, D), torch.randn(B, T, H), torch.randn(B, S, D)
    with pytest.raises(ValueError, match=r"^Attention: mask must be floats \(4, 5\), .*got torch.float32 \(4, 1\)"):
        attention(queries, keys, None, torch.rand(B, 1))
    with pytest.raises(ValueError, match="^Attention: mask must be torch.float32 on cpu like the keys, got .*float64"):
        attention(queries, keys, None, torch.rand(B, D).double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert attention(queries, keys.bfloat16(), None, torch.rand(B, D))[0].shape == (B, T, H)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize(("lengths", "plain", "told"), [
    ([S] * 2, False, "lengths must be of the batch's 4 rows, got 2"),
    ([S] * 6, False, "lengths must be of the batch's 4 rows, got 6"),
    ([S] * 4, True, r"targets must be \(\.\.\., 3\), as `numbered` gives them, got \(52,\)"),
    ([S] * 3 + [S + 20], False, r"source lengths must lie in 1\.\.7, the positions of the keys, got 27 in row 3"),
])  # fmt: skip
def test_a_readout_of_another_batch_is_told(lengths: list[int], plain: bool, told: str, grad: bool) -> None:
    tokens, head = torch.randint(V, (T, B)), rt.LinearCrossEntropy(H, V)
    kept, targets = torch.randn(S, B, D), tokens if plain else numbered(tokens)

    def keys(rows: slice, kept: Tensor) -> Tensor:
        return kept[:, rows].transpose(0, 1)

    readout = AttentionReadout(Attention(H, D), keys, torch.tensor(lengths), head)
    with torch.set_grad_enabled(grad), pytest.raises(ValueError, match=told):
        rt.rewind_loss(rt.RevGRU(E, H), torch.randn(T, B, E), targets, readout=readout, context=[kept])


def test_targets_numbered_rows_first_are_told() -> None:
    """As many rows as steps would be read silently the wrong way."""
    head, tokens = rt.LinearCrossEntropy(H, V), torch.randint(V, (B, B))
    readout = AttentionReadout(Attention(H, D), lambda rows: torch.randn(B, S, D), torch.full((B,), S), head)
    with pytest.raises(ValueError, match=r"targets must be numbered time first, \(T, B\), but their steps fall"):
        rt.rewind_loss(rt.RevGRU(E, H, batch_first=True), torch.randn(B, B, E), numbered(tokens), readout=readout)


def test_some_positions_can_be_read_out_by_themselves() -> None:
    """Those of a mask, for which not every row has begun."""
    torch.manual_seed(1)
    head, tokens, keys = rt.LinearCrossEntropy(H, V), torch.randint(V, (T, B)), torch.randn(B, S, D)
    readout = AttentionReadout(Attention(H, D), lambda rows: keys[rows], torch.full((B,), S), head)
    y, live = torch.randn(T, B, H), torch.rand(T, B) > 0.5
    live[0, 0] = False
    apart = [readout(y[t, b][None], numbered(tokens)[t, b][None]) for t, b in live.nonzero().tolist()]
    assert readout(y[live], numbered(tokens)[live]).item() == pytest.approx(sum(one.item() for one in apart), rel=1e-5)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # dynamo's own
def test_it_compiles_whole() -> None:
    attention, keys, lengths = Attention(H, D), torch.randn(B, S, D), torch.tensor([7, 1, 3, 6])
    compiled = torch.compile(attention, fullgraph=True, backend="eager")
    queries = torch.randn(B, T, H)
    for one, other in zip(compiled(queries, keys, lengths), attention(queries, keys, lengths), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("lengths", [None, [3, 4], torch.ones(2), torch.ones(2, 2, dtype=torch.long)])
def test_a_readout_s_lengths_are_integers_one_a_row(lengths: Any) -> None:
    with pytest.raises(ValueError, match=r"AttentionReadout: lengths must be integers \(B,\), one a row of the source"):
        AttentionReadout(Attention(H, D), lambda rows: torch.randn(2, S, D), lengths, rt.LinearCrossEntropy(H, V))


@pytest.mark.parametrize(("sizes", "told"), [((0, 3), "query_size"), ((3, -1), "key_size"), ((3, 3, 0), "output_size")])
def test_sizes_are_positive(sizes: tuple[int, ...], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Attention(*sizes)


@pytest.mark.parametrize("tokens", [torch.zeros(2, 3, 4), torch.zeros(3)])
def test_tokens_to_be_numbered_are_of_two_dimensions(tokens: Tensor) -> None:
    with pytest.raises(ValueError, match=rf"numbered: tokens must be \(T, B\), got \({tokens.shape[0]},"):
        numbered(tokens)
