"""A streamed step of a self-tuning net is that of the same net with all its outputs, in training and on held-out data.

The unstreamed net is made of the same modules, called as layers; its readout's logits go to torch's cross entropy.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import revtune as rt
from revtune.joint.embeddings import ResponseDroppedEmbedding
from revtune.joint.linear_stream import linear_rewind_loss
from revtune.joint.readouts import ResponseLinearCrossEntropy
from revtune.penalties import activation_penalty, temporal_penalty
from revtune.reversible.kernel.weights import Weights
from revtune.tuning.hypers.hyperparameters import Pass
from revtune.tuning.responses.layers import ResponseLinear
from tests.backends import on_native
from tests.chunking import set_stack_chunk_steps
from tests.stored import relative

BACKENDS = ("reference", "native")
ROWS, STEPS, WORDS, WIDTH = 3, 11, 9, 6
nets = pytest.mark.parametrize("rev", [rt.RevGRU, rt.RevLSTM])


class Language(nn.Module):
    """Embedding, recurrent layer and readout."""

    def __init__(self, rev: Any, dtype: torch.dtype, head: nn.Module, words: nn.Module, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        hidden = 4 if options.get("bidirectional") else 8  # outputs have 8 numbers either way
        self.words = words.to(dtype)
        self.rnn, self.head = rev(WIDTH, hidden, dtype=dtype, **{"num_layers": 2} | options), head.to(dtype)

    def logits(self, tokens: Tensor, resets: Tensor | None = None) -> Tensor:
        """Scores of all positions, by the modules as layers."""
        y, _ = self.rnn(self.words(tokens), resets=resets)
        return self.head.logits(y) if isinstance(self.head, rt.LinearCrossEntropy) else self.head(y)


def converted(rev: Any, dtype: torch.dtype, head: nn.Module, words: nn.Module, **options: Any) -> Any:
    """A self-tuning net with responses that are not zero."""
    named = rt.Hyperparameters(a=rt.Rate(0.2), b=rt.Rate(0.3))
    net: Any = rt.self_tuning(Language(rev, dtype, head, words, **options), named, batch_dim=1)
    torch.manual_seed(1)
    for name, parameter in net.named_parameters():
        if "response_s" in name:
            nn.init.normal_(parameter, std=0.2)
    return net


def of_parts(rev: Any, own: bool, backend: str, **options: Any) -> Any:
    """A self-tuning net with our own parts around the layers, or torch's."""
    head = rt.LinearCrossEntropy(8, WORDS) if own else nn.Linear(8, WORDS)
    words = rt.Embedding(WORDS, WIDTH) if own else nn.Embedding(WORDS, WIDTH)
    return converted(rev, torch.float64 if backend == "reference" else torch.float32, head, words, **options)


def passing(net: Any, d: Tensor) -> Any:
    """A training pass at these departures."""
    return net.hypers.bound(Pass(len(d), d, net.hypers.raw.detach() + d))


def stream(
    net: Any, tokens: Tensor, lengths: Tensor | None = None, *, penalized: bool = False, **options: Any
) -> Tensor:
    """The summed streamed loss; penalties are read from hyperparameters."""
    if penalized:
        options["penalties"] = rt.ActivationPenalties(activation=net.hypers["a"], temporal=net.hypers["b"])

    def summed(y: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(net.head(y), targets, reduction="sum")

    own = isinstance(net.head, rt.LinearCrossEntropy)
    return rt.rewind_loss(
        net.rnn, tokens[:-1], tokens[1:], encode=net.words, readout=net.head if own else summed, lengths=lengths,
        reduction="sum", **options,
    )[0]  # fmt: skip


def layers(net: Any, tokens: Tensor, lengths: Tensor | None = None, *, penalized: bool = False) -> Tensor:
    """The same of all outputs at once; the padding of a row moves nothing before it."""
    losses = F.cross_entropy(net.logits(tokens[:-1]).movedim(-1, 1), tokens[1:], reduction="none")
    live = torch.ones_like(losses) if lengths is None else (torch.arange(len(losses))[:, None] < lengths).to(losses)
    return (losses * live).sum() + (penalty(net, tokens, lengths) if penalized else 0.0)


def penalty(net: Any, tokens: Tensor, lengths: Tensor | None) -> Tensor:
    """AR and TAR of each row's own steps, added up."""
    y, _ = net.rnn(net.words(tokens[:-1]))
    rows = [y[:steps, b : b + 1] for b, steps in enumerate([STEPS] * ROWS if lengths is None else lengths.tolist())]
    ar = [activation_penalty(row, net.hypers["a"][b], batch_dim=1) for b, row in enumerate(rows)]
    tar = [temporal_penalty(row, net.hypers["b"][b], batch_dim=1) for b, row in enumerate(rows)]
    return torch.cat([*ar, *tar]).sum()


def agree(
    net: Any, close: float, *, training: bool = True, lengths: Tensor | None = None, penalized: bool = False,
    **options: Any,
) -> None:  # fmt: skip
    """Losses and all gradients are alike, those of the departures too."""
    tokens = torch.randint(WORDS, (STEPS + 1, ROWS), generator=torch.Generator().manual_seed(2))
    d = torch.randn(ROWS, 2, generator=torch.Generator().manual_seed(3)).to(net.hypers.raw).requires_grad_()
    bound = Pass(ROWS, d, (net.hypers.raw + d).detach() if training else None, training=training)
    parameters = dict(net.named_parameters()) if training else {}
    for parameter in net.parameters():
        parameter.requires_grad_(training)
    found = []
    for run in (stream, layers):
        with net.hypers.bound(bound):
            loss = run(net, tokens, lengths, penalized=penalized, **(options if run is stream else {}))
            found.append((loss.detach(), torch.autograd.grad(loss, [*parameters.values(), d], allow_unused=True)))
    (one, ones), (other, others) = found
    assert relative(one, other) < close
    for name, a, b in zip([*parameters, "d"], ones, others, strict=True):
        assert (a is None) == (b is None) or not (a if b is None else b).any(), name
        assert a is None or b is None or relative(a, b) < close, name
    assert ones[-1].any()


@nets
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("training", [True, False])
def test_a_streamed_pass(
    rev: Any, own: bool, ragged: bool, training: bool, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_stack_chunk_steps(monkeypatch, 4)
    net = of_parts(rev, own, backend)
    assert type(net.head) is (ResponseLinearCrossEntropy if own else ResponseLinear)
    assert type(net.words) is ResponseDroppedEmbedding or not own
    lengths = torch.tensor([11, 4, 7]) if ragged else None
    agree(net, 1e-12 if backend == "reference" else 2e-5, training=training, lengths=lengths)


@nets
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("training", [True, False])
def test_a_streamed_pass_in_both_directions(
    rev: Any, own: bool, num_layers: int, training: bool, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_stack_chunk_steps(monkeypatch, 4)
    net = of_parts(rev, own, backend, num_layers=num_layers, bidirectional=True)
    agree(net, 1e-11 if backend == "reference" else 2e-5, training=training)


def test_delta_stn_refuses_both_directions() -> None:
    net = of_parts(rt.RevGRU, True, "native", bidirectional=True)
    tokens = torch.zeros(5, 3, dtype=torch.int64)
    given = {"rnn": net.rnn, "inputs": tokens, "targets": tokens, "encode": net.words, "readout": net.head}
    with passing(net, torch.zeros(3, 2)), pytest.raises(ValueError, match="Delta-STN streams nets of one direction"):
        linear_rewind_loss(net.hypers, **given)


@nets
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("ragged", [False, True])
def test_a_penalized_pass(rev: Any, own: bool, ragged: bool, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Penalties at each row's own coefficients, over chunks and checkpoints."""
    set_stack_chunk_steps(monkeypatch, 4)
    net = of_parts(rev, own, backend)
    lengths = torch.tensor([11, 1, 7]) if ragged else None
    agree(net, 1e-12 if backend == "reference" else 2e-5, lengths=lengths, penalized=True, checkpoint_every=6)


@nets
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("training", [True, False])
def test_losses_of_rows(
    rev: Any, own: bool, ragged: bool, training: bool, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each at its own hyperparameters; with the gradients of the mean, those of the departures too."""
    set_stack_chunk_steps(monkeypatch, 4)
    dtype, close = (torch.float64, 1e-12) if backend == "reference" else (torch.float32, 2e-5)
    net = converted(rev, dtype, rt.LinearCrossEntropy(8, WORDS) if own else nn.Linear(8, WORDS),
                    nn.Embedding(WORDS, WIDTH))  # fmt: skip
    tokens = torch.randint(WORDS, (STEPS + 1, ROWS), generator=torch.Generator().manual_seed(2))
    lengths = torch.tensor([11, 4, 7]) if ragged else None
    d = torch.randn(ROWS, 2, generator=torch.Generator().manual_seed(3)).to(net.hypers.raw).requires_grad_()
    bound = Pass(ROWS, d, (net.hypers.raw + d).detach() if training else None, training=training)

    def each(y: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(net.head(y), targets, reduction="none")

    def rows() -> Tensor:
        return rt.rewind_loss(
            net.rnn, tokens[:-1], tokens[1:], encode=net.words, readout=net.head if own else each, lengths=lengths,
            reduction="rows", normalizer=float(ROWS),
        )[0]  # fmt: skip

    with net.hypers.bound(bound):
        losses, summed = rows(), stream(net, tokens, lengths)
        for mode in (torch.enable_grad, torch.no_grad):  # which round states otherwise
            with mode():
                wanted = F.cross_entropy(net.logits(tokens[:-1]).movedim(-1, 1), tokens[1:], reduction="none")
                live = torch.arange(STEPS)[:, None] < (torch.tensor([STEPS]) if lengths is None else lengths)
                assert relative(rows().detach(), (wanted * live).sum(0).detach()) < close
    tensors = [d, *net.rnn.parameters(), *net.words.parameters(), *net.head.parameters()]
    found = [torch.autograd.grad(loss, tensors, allow_unused=True) for loss in (losses.sum(), summed)]
    assert found[0][0].any()
    for a, b in zip(*found, strict=True):
        assert (a is None and b is None) or relative(a, b) < close


def test_a_chunk_with_one_position_left_is_no_row_of_all_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    set_stack_chunk_steps(monkeypatch, 2)
    net = converted(rt.RevGRU, torch.float64, nn.Linear(8, WORDS), nn.Embedding(WORDS, WIDTH))
    agree(net, 1e-12, lengths=torch.tensor([11, 1, 7]))


def test_with_checkpoints_and_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    set_stack_chunk_steps(monkeypatch, 2)
    net = converted(rt.RevLSTM, torch.float64, rt.LinearCrossEntropy(8, WORDS), rt.Embedding(WORDS, WIDTH))
    agree(net, 1e-12, checkpoint_every=5)


def test_a_readout_between_outputs_and_head_answers_by_rows() -> None:
    """Modules of a readout of one's own, one on another: each is handed positions."""
    head = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, WORDS))
    net = converted(rt.RevGRU, torch.float64, head, nn.Embedding(WORDS, WIDTH))
    agree(net, 1e-12)


@pytest.mark.parametrize("lengths", [None, [11, 4, 7]])
def test_a_readout_that_leaves_positions_out_is_refused(lengths: list[int] | None) -> None:
    """Whose the others are cannot be told, also where their number is a multiple of the rows."""
    net = converted(rt.RevGRU, torch.float64, nn.Linear(8, WORDS), nn.Embedding(WORDS, WIDTH))
    tokens = (torch.arange(STEPS + 1)[:, None] % 2).expand(-1, ROWS).contiguous()

    def summed(y: Tensor, targets: Tensor) -> Tensor:
        kept = targets == 1  # every other step
        return F.cross_entropy(net.head(y[kept]), targets[kept], reduction="sum")

    ragged = None if lengths is None else torch.tensor(lengths)
    with passing(net, torch.zeros(ROWS, 2, dtype=torch.float64)), pytest.raises(ValueError, match="head: in a stream"):
        rt.rewind_loss(
            net.rnn, tokens[:-1], tokens[1:], encode=net.words, readout=summed, lengths=ragged, normalizer=1.0
        )


@pytest.mark.parametrize("bias", [True, False])
def test_a_head_gives_the_same_loss_where_no_gradient_is_wanted(bias: bool) -> None:
    net: Any = rt.self_tuning(nn.Sequential(rt.LinearCrossEntropy(4, 7, bias)), rt.Hyperparameters(a=rt.Rate(0.2)))
    for name, parameter in net.named_parameters():
        nn.init.normal_(parameter) if "response_s" in name else None
    y, targets = torch.randn(5, 4), torch.tensor([0, 3, 2, 6, 1])
    with passing(net, torch.randn(5, 1)):
        wanted = net[0](y, targets)
        with torch.no_grad():
            assert torch.equal(net[0](y, targets), wanted.detach())


@pytest.mark.parametrize("bias", [True, False])
def test_a_head_by_itself_answers_for_rows(bias: bool) -> None:
    head = rt.LinearCrossEntropy(4, 7, bias, class_weights=torch.rand(7), label_smoothing=0.1, ignore_index=3)
    net: Any = rt.self_tuning(nn.Sequential(head), rt.Hyperparameters(a=rt.Rate(0.2)))
    for name, parameter in net.named_parameters():
        nn.init.normal_(parameter) if "response_s" in name else None
    y, targets = torch.randn(5, 4, requires_grad=True), torch.tensor([0, 3, 2, 6, 1])
    d = torch.randn(5, 1, requires_grad=True)
    tensors = [y, d, *(p for name, p in net.named_parameters() if "hyper" not in name)]
    with net.hypers.bound(Pass(5, d, d.detach())):
        loss = 0.5 * head(y, targets)
        found = torch.autograd.grad(loss, tensors)
        smooth = {"weight": head.class_weights, "label_smoothing": 0.1, "ignore_index": 3, "reduction": "sum"}
        wanted = 0.5 * F.cross_entropy(head.logits(y), targets, **smooth)  # type: ignore[arg-type]
        expected = torch.autograd.grad(wanted, tensors)
    assert relative(loss.detach(), wanted.detach()) < 1e-5
    for a, b in zip(found, expected, strict=True):
        assert relative(a, b) < 1e-5


@nets
@pytest.mark.parametrize("wanted", [True, False])
def test_an_input_takes_no_gradient_where_nobody_wants_it(
    rev: Any, wanted: bool, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a validation step, unless the embedding responds; upper layers' inputs need theirs."""
    dtype = torch.float64 if backend == "reference" else torch.float32
    net, asked = converted(rev, dtype, rt.LinearCrossEntropy(8, WORDS), nn.Embedding(WORDS, WIDTH)), []
    back, x = Weights.project_back, torch.randn(STEPS, ROWS, WIDTH, dtype=dtype, requires_grad=wanted)
    d = torch.randn(ROWS, 2, dtype=dtype, requires_grad=True)

    def noted(self: Weights, *arguments: Any) -> Tensor:
        asked.append(self.tensors["ih"].shape[1])
        return back(self, *arguments)

    monkeypatch.setattr(Weights, "project_back", noted)
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    targets = torch.randint(WORDS, (STEPS, ROWS))
    with net.hypers.bound(Pass(ROWS, d, None, training=False)):
        loss, _ = rt.rewind_loss(net.rnn, x, targets, readout=net.head)
        loss.backward()
    assert set(asked) == ({WIDTH, 8} if wanted else {8})
    assert (x.grad is not None) == wanted and d.grad is not None and d.grad.any()


def test_a_tied_head_stays_plain() -> None:
    words = rt.Embedding(WORDS, 8)
    modules = nn.ModuleDict({"words": words, "head": rt.LinearCrossEntropy(8, WORDS, tie=words)})
    net: Any = rt.self_tuning(modules, rt.Hyperparameters(a=rt.Rate(0.2)))
    assert type(net["head"]) is rt.LinearCrossEntropy
    assert net.conversion.left["head"] == "its weight is tied to another module's"


def test_words_are_dropped_at_a_tuned_rate_and_by_one_mask() -> None:
    net: Any = rt.self_tuning(nn.ModuleDict({"words": rt.Embedding(WORDS, 4, dropout=0.4)}))
    assert net.hypers.values() == {"words.dropout": 0.4} and net.hypers.spec("words.dropout").per == "batch"
    with net.hypers.bound(Pass(2, torch.zeros(2, 1), torch.full((2, 1), 15.0))):
        assert not net["words"](torch.arange(WORDS).expand(2, -1)).any()
    plain: Any = rt.frozen(net)
    assert type(plain["words"]) is rt.Embedding and plain["words"].dropout == pytest.approx(0.4)


@on_native
def test_a_stream_tunes_itself() -> None:
    """A whole run by today's tuner, its prediction the streamed loss."""
    torch.manual_seed(0)
    model = Language(rt.RevGRU, torch.float32, rt.LinearCrossEntropy(8, WORDS), rt.Embedding(WORDS, WIDTH, dropout=0.2))
    net: Any = rt.self_tuning(model, batch_dim=1)
    tokens = [torch.randint(WORDS, (1, 6)).expand(STEPS + 1, -1).contiguous() for _ in range(8)]
    tuner = rt.Tuner(
        net, lambda out, batch, h: out, lambda out, batch: out, method="stn",
        predict=lambda model, batch: stream(model, batch) / (STEPS * 6),
        optimizer=lambda params: torch.optim.Adam(params, 0.02),
    )  # fmt: skip
    losses = [tuner.step(tokens[i % 6], tokens[6 + i % 2])[0] for i in range(40)]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert not tuner.unread and tuner.valid_steps == 20
    plain: Any = rt.frozen(net).eval()
    with torch.no_grad():
        assert float(stream(plain, tokens[0])) == pytest.approx(float(stream(net.eval(), tokens[0])), rel=1e-3)
