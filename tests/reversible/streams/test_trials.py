"""What does not stream is refused on the first call, by its name; what does gives the unstreamed gradients."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import revtune as rt
from revtune.reversible.cells.lane_buffer import LaneBuffer
from revtune.reversible.streams import trials
from revtune.reversible.streams.chunk_graph import Autocast
from revtune.reversible.streams.trials import ENCODED_STEPS, try_encoder
from tests.backends import close, real
from tests.chunking import set_stack_chunk_steps

BACKENDS = ("reference", "native")
WORDS, STEPS, ROWS, FEATURES = 11, 13, 3, 6


@pytest.fixture(autouse=True)
def _four_steps_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    set_stack_chunk_steps(monkeypatch, 4)
    trials._known.clear()
    trials._counted.clear()


class Parts:
    """An encoder, a net and a linear layer above it, on tokens."""

    def __init__(self) -> None:
        self.rnn, self.words = rt.RevGRU(FEATURES, 8, dtype=real()), nn.Embedding(WORDS, FEATURES, dtype=real())
        self.linear = nn.Linear(8, WORDS, dtype=real())
        self.ids, self.targets = torch.randint(WORDS, (2, STEPS, ROWS))

    def summed(self, y: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self.linear(y), targets, reduction="sum")

    def lose(self, encode: Any = None, readout: Any = None, **options: Any) -> Tensor:
        return rt.rewind_loss(
            self.rnn, self.ids, self.targets, encode=encode or self.words, readout=readout or self.summed, **options
        )[0]

    def agrees(self, loss: Tensor, encode: Any, *tensors: Tensor) -> None:
        """A mean loss has the gradients of the unstreamed one."""
        wanted = self.summed(self.rnn(encode(self.ids))[0].flatten(0, 1), self.targets.flatten()) / self.ids.numel()
        given = [*tensors, *self.rnn.parameters(), *self.linear.parameters()]
        got, right = (torch.autograd.grad(value, given) for value in (loss, wanted))
        for a, b in zip(got, right, strict=True):
            assert float((a - b).norm() / b.norm()) < close()


def by_step(z: Tensor) -> Tensor:
    return z.unflatten(0, (-1, ROWS))


NO_SUMS: dict[str, Callable[[nn.Linear], Callable[[Tensor, Tensor], Tensor]]] = {
    "mean": lambda linear: lambda y, t: F.cross_entropy(linear(y), t),
    "log of a mean": lambda linear: lambda y, t: -linear(y).softmax(-1).gather(1, t[:, None]).mean().log(),
    "softmax over positions": lambda linear: lambda y, t: F.cross_entropy(linear(y.softmax(0)), t, reduction="sum"),
    "differences of steps": lambda linear: lambda y, t: by_step(linear(y)).diff(dim=0).square().sum(),
    "a normaliser": lambda linear: lambda y, t: F.cross_entropy(linear(y), t, reduction="sum") / len(t),
    "a penalty": lambda linear: (
        lambda y, t: F.cross_entropy(linear(y), t, reduction="sum") + linear.weight.square().sum()
    ),
    "attention over positions": lambda linear: (
        lambda y, t: F.cross_entropy(linear(F.scaled_dot_product_attention(y, y, y)), t, reduction="sum")
    ),
    "CTC": lambda linear: (
        lambda y, t: F.ctc_loss(
            by_step(linear(y).log_softmax(-1)),
            torch.ones(ROWS, 1, dtype=torch.long),
            torch.full((ROWS,), len(y) // ROWS),
            torch.ones(ROWS, dtype=torch.long),
            reduction="sum",
        )
    ),
}


@pytest.mark.parametrize("kind", NO_SUMS)
@pytest.mark.parametrize("checkpoint_every", [None, 1])
@pytest.mark.parametrize("grad", [True, False])
def test_a_readout_that_is_no_sum_is_refused(kind: str, checkpoint_every: int | None, grad: bool) -> None:
    parts = Parts()
    with torch.set_grad_enabled(grad), pytest.raises(ValueError, match=r"readout.*must return the sum.*normalizer="):
        parts.lose(readout=NO_SUMS[kind](parts.linear), checkpoint_every=checkpoint_every)


@pytest.mark.parametrize("lengths", [None, torch.tensor([13, 1, 2])])
@pytest.mark.parametrize("checkpoint_every", [None, 1])
def test_sums_stream_however_few_positions_there_are(lengths: Tensor | None, checkpoint_every: int | None) -> None:
    parts = Parts()
    for summed in (
        parts.summed,
        lambda y, t: F.mse_loss(parts.linear(F.dropout(y)).amax(-1), t.to(y), reduction="sum"),
        lambda y, t: F.cross_entropy(parts.linear(y), t, ignore_index=1, reduction="sum"),
    ):
        parts.lose(readout=summed, lengths=lengths, checkpoint_every=checkpoint_every, normalizer=len).backward()


def test_positions_that_lose_nothing_tell_nothing() -> None:
    """A readout stays on trial until one of its positions counts."""
    parts = Parts()
    parts.targets[-5:] = 0
    with pytest.raises(ValueError, match="must return the sum"):
        parts.lose(readout=lambda y, t: (F.cross_entropy(parts.linear(y), t, reduction="none") * (t > 0)).mean())


class Batched(nn.Module):
    """An encoder, or part of a readout, around a module that may not stream."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.words, self.part = nn.Embedding(WORDS, FEATURES, dtype=real()), part.to(real())

    def forward(self, ids: Tensor) -> Tensor:
        rows = self.words(ids)
        return self.part(rows.flatten(0, 1)).view_as(rows)


def normed(features: int) -> nn.Module:
    return nn.utils.parametrizations.spectral_norm(nn.Linear(features, features))


def normed_of_old(features: int) -> nn.Module:
    return nn.utils.spectral_norm(nn.Linear(features, features))


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("make", [nn.BatchNorm1d, normed, normed_of_old])
def test_modules_that_change_or_take_a_chunk_for_a_batch_are_refused_by_name(make: Any) -> None:
    parts, encode = Parts(), Batched(make(FEATURES))
    name, before = "BatchNorm1d" if make is nn.BatchNorm1d else "spectral_norm", encode.state_dict()
    before = {key: value.clone() for key, value in before.items()}
    with pytest.raises(ValueError, match=f"encode .*{name} .*evaluation mode"):
        parts.lose(encode)
    assert all(torch.equal(value, before[key]) for key, value in encode.state_dict().items()), "no trace of the trial"
    encode.eval()
    parts.agrees(parts.lose(encode), encode, encode.words.weight)
    above = make(8).to(real())

    def readout(y: Tensor, targets: Tensor) -> Tensor:
        return parts.summed(above(y), targets)

    with pytest.raises(ValueError, match=f"readout.*{name} .*evaluation mode"):
        parts.lose(readout=readout)
    above.eval()
    parts.lose(readout=readout).backward()


class Counting(nn.Module):
    """An encoder whose noise falls with each call."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, FEATURES, dtype=real())
        self.register_buffer("calls", torch.zeros((), dtype=real()))

    def forward(self, ids: Tensor) -> Tensor:
        self.calls += 1
        return self.words(ids) / self.calls


def test_an_encoder_that_counts_its_calls_is_refused() -> None:
    with pytest.raises(rt.ReversalError, match="encode gave other numbers"):
        Parts().lose(Counting())


def test_an_encoder_that_changes_later_is_named_too() -> None:
    parts, calls = Parts(), [0]

    def encode(ids: Tensor) -> Tensor:
        calls[0] += 1
        return parts.words(ids) * (1 + max(0, calls[0] - 8))

    with pytest.raises(rt.ReversalError, match="encode gave other numbers") as error:
        parts.lose(encode)
    assert isinstance(error.value.__cause__, rt.ReversalError)


@pytest.mark.parametrize("pass_on", ["rewind_loss", "rewind_encode"])
def test_it_is_named_on_a_device_that_is_asked_once(pass_on: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the error is raised when the way back has ended."""
    monkeypatch.setattr("revtune.reversible.kernel.reference.buffer_for", lambda device: LaneBuffer)
    parts, factor = Parts(), [1.0]
    parts.rnn = rt.RevGRU(FEATURES, 8, dtype=real(), backend="reference")

    def encode(ids: Tensor) -> Tensor:
        factor[0] += 0.01 if factor[0] > 1 else 0
        return parts.words(ids) * factor[0]

    def readout(y: Tensor, targets: Tensor) -> Tensor:
        factor[0] = 1.5
        return parts.summed(y, targets)

    with pytest.raises(rt.ReversalError, match="encode gave other numbers"):
        if pass_on == "rewind_loss":
            parts.lose(encode, readout)
        else:
            annotations, _ = rt.rewind_encode(parts.rnn, parts.ids, encode=encode, units=2)
            factor[0] = 1.5
            annotations.sum().backward()


def along_time() -> dict[str, Callable[[Tensor], Tensor]]:
    words = nn.Embedding(WORDS, FEATURES, dtype=real())
    conv, gru = nn.Conv1d(FEATURES, FEATURES, 3).to(real()), nn.GRU(FEATURES, FEATURES).to(real())
    positions = torch.randn(STEPS, 1, FEATURES, dtype=real())
    layer = nn.TransformerEncoderLayer(FEATURES, 2, 8, 0.1).to(real())
    return {
        "attention": lambda ids: layer(words(ids)),
        "convolution": lambda ids: conv(F.pad(words(ids).permute(1, 2, 0), (2, 0))).permute(2, 0, 1),
        "positions": lambda ids: F.dropout(words(ids) + positions[: len(ids)]),
        "another net": lambda ids: gru(words(ids))[0],
        "a norm over time": lambda ids: words(ids) - words(ids).mean(0),
        "a reversible net": (lambda net: lambda ids: net(words(ids))[0])(rt.RevGRU(FEATURES, FEATURES, dtype=real())),
    }


@pytest.mark.parametrize("kind", along_time())
def test_an_encoder_that_looks_along_time_is_refused(kind: str) -> None:
    parts, encode = Parts(), along_time()[kind]
    with pytest.raises(ValueError, match=r"encode .*each step by itself.*pass its output as inputs"):
        parts.lose(encode)
    with torch.no_grad(), pytest.raises(ValueError, match="each step by itself"):
        parts.lose(encode)
    with pytest.raises(ValueError, match="each step by itself"):
        rt.rewind_encode(parts.rnn, parts.ids, encode=encode)


class Spelt(nn.Module):
    """Words spelt by a reversible net, whose numbers differ by roundings where no gradient is wanted."""

    def __init__(self) -> None:
        super().__init__()
        self.letters, self.net = nn.Embedding(5, 4, dtype=real()), rt.RevGRU(4, FEATURES, dtype=real())
        self.spelling = torch.randint(5, (9, WORDS))

    def forward(self, ids: Tensor) -> Tensor:
        return self.net(self.letters(self.spelling[:, ids.flatten()]))[0][-1].view(*ids.shape, -1)


def test_words_may_be_spelt_by_a_reversible_net() -> None:
    parts, encode = Parts(), Spelt()
    parts.agrees(parts.lose(encode), encode, *encode.parameters())


def test_attention_in_evaluation_mode_encodes() -> None:
    parts = Parts()
    layer = nn.TransformerEncoderLayer(FEATURES, 2, 8, 0.1, batch_first=True).to(real()).eval()

    def encode(ids: Tensor) -> Tensor:
        return layer(parts.words(ids).flatten(0, 1).unsqueeze(1)).view(*ids.shape, -1)

    parts.agrees(parts.lose(encode), encode, parts.words.weight)


def test_embedding_options_act_or_are_refused() -> None:
    parts = Parts()
    counting = nn.Embedding(WORDS, FEATURES, scale_grad_by_freq=True, dtype=real())
    with pytest.raises(ValueError, match="scale_grad_by_freq must be False in encode"):
        parts.lose(lambda ids: counting(ids))
    short = nn.Embedding(WORDS, FEATURES, max_norm=10.0, dtype=real())
    short.weight.data.mul_(30)
    parts.agrees(parts.lose(lambda ids: short(ids)), short, short.weight)


# Once, and without a trace


def test_a_function_made_anew_each_step_is_tried_once() -> None:
    parts, sizes = Parts(), list[int]()

    def noted(y: Tensor, targets: Tensor) -> Tensor:
        sizes.append(len(y))
        return parts.summed(y, targets)

    def step() -> int:
        sizes.clear()
        parts.lose(readout=lambda y, t: noted(y, t))
        return len(sizes)

    assert [step() for _ in range(3)] == [4 + 4, 4, 4]


def test_a_trial_draws_nothing_and_locks_no_mask() -> None:
    """A net with dropout everywhere loses the same whether its parts are tried or known."""
    parts, drop = Parts(), nn.Dropout(0.5)
    encode = nn.Sequential(parts.words, nn.Dropout(0.3), rt.LockedDropout(0.4))

    def loss() -> Tensor:
        torch.manual_seed(1)
        return parts.lose(encode, lambda y, t: parts.summed(drop(y), t))

    assert torch.equal(loss(), loss())


# What a mean divides by


def test_a_normaliser_is_a_number_or_a_function_of_targets() -> None:
    parts, lengths = Parts(), torch.tensor([13, 1, 2])
    total = parts.lose(lengths=lengths, reduction="sum").item()
    seen: list[Tensor] = []

    def counted(targets: Tensor) -> int:
        seen.append(targets)
        return int((targets != 1).sum())

    mean = parts.lose(lengths=lengths, normalizer=counted).item()
    assert seen[0].shape == (16,) and mean == pytest.approx(total / int((seen[0] != 1).sum()))
    assert parts.lose(lengths=lengths, normalizer=7).item() == pytest.approx(total / 7)
    with pytest.raises(ValueError, match="normalizer must be, or return, a positive number.*0"):
        parts.lose(normalizer=lambda targets: 0)
    with pytest.raises(ValueError, match="normalizer is what reduction=.*sum"):
        parts.lose(normalizer=2, reduction="sum")


class Around(nn.Module):
    """A wrapper of a readout, as parallel and compiled modules are."""

    def __init__(self, name: str, inner: nn.Module) -> None:
        super().__init__()
        setattr(self, name, inner)
        self.inner = name

    def forward(self, y: Tensor, targets: Tensor) -> Tensor:
        return getattr(self, self.inner)(y, targets)


def test_total_weight_is_found_through_wrappers() -> None:
    parts, head = Parts(), rt.LinearCrossEntropy(8, WORDS, ignore_index=1, dtype=real())
    wanted = parts.lose(readout=head).item()
    wrapped = Around("module", Around("_orig_mod", head))
    assert parts.lose(readout=wrapped).item() == pytest.approx(wanted)


# A forward of one's own


def patched(module: Any, before: Callable[..., Any], after: Callable[[Tensor], Tensor]) -> Any:
    forward = module.forward
    module.forward = lambda *args: after(forward(*before(*args)))
    return module


def test_a_forward_that_was_patched_is_called() -> None:
    parts = Parts()
    tripled = patched(parts.words, lambda *args: args, lambda y: 3 * y)
    parts.agrees(parts.lose(tripled), tripled, parts.words.weight)
    head = rt.LinearCrossEntropy(8, WORDS, dtype=real())
    head.weight, head.bias = parts.linear.weight, parts.linear.bias
    plain = parts.lose(readout=head).item()
    patched(head, lambda y, t: (0 * y, t), lambda loss: loss)
    head.bias.data.zero_()
    assert parts.lose(readout=head).item() == pytest.approx(torch.tensor(WORDS).log().item()) != plain


def test_hooks_of_all_modules_are_refused() -> None:
    parts = Parts()
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        with pytest.raises(ValueError, match="hooks would not run"):
            parts.lose()
    finally:
        handle.remove()
    parts.lose().backward()


def test_an_encoder_is_tried_on_more_steps_than_float32_counts() -> None:
    steps = 31_104_000  # a day at 360 Hz
    inputs = torch.zeros(1, 1, 1).expand(steps, 1, 1)
    tried: list[int] = []

    def encode(chunk: torch.Tensor) -> torch.Tensor:
        tried.append(len(chunk))
        return chunk.float()

    assert not try_encoder(encode, inputs, Autocast(torch.device("cpu")), graph=False)
    assert tried and max(tried) <= ENCODED_STEPS


# Remembered of a function as it stands


class Trainer:
    """What holds the parts of a readout, and is changed between steps."""

    def __init__(self) -> None:
        self.linear, self.red, self.pad, self.by = nn.Linear(8, WORDS, dtype=real()), "sum", -100, 0
        self.words = nn.Embedding(WORDS, FEATURES, dtype=real())
        self.nets: dict[str, nn.Module] = {"norm": nn.BatchNorm1d(8, dtype=real()).eval(), "linear": self.linear}
        self.loss = nn.CrossEntropyLoss(reduction="sum")
        self.readout = rt.Readout(self.linear, self.loss)

    def lose_normed(self, y: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self.nets["linear"](self.nets["norm"](y)), targets, reduction="sum")

    def lose(self, y: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self.linear(y), targets, reduction=self.red, ignore_index=self.pad)

    def set_nets(self) -> "Trainer":
        self.less = [nn.Identity() if self.by == 0 else Less()]
        return self

    def encode_by_net(self, ids: Tensor) -> Any:
        return self.less[0](self.words(ids))

    def encode(self, ids: Tensor) -> Tensor:
        return less_mean(self.words(ids), self.by)


def less_mean(z: Tensor, by: float, *, keep: bool = False) -> Tensor:
    """Not by each step itself, unless by 0."""
    return z - by * z.mean(0, keepdim=keep)


def read_by_keyword(trainer: Trainer, red: str) -> Any:
    def readout(y: Tensor, t: Tensor, *, red: str = red) -> Tensor:
        return F.cross_entropy(trainer.linear(y), t, reduction=red)

    return readout


def in_turn(attribute: str, function: Any) -> Any:
    """What sets an attribute, and gives the same function each time."""

    def given(trainer: Trainer, wanted: Any) -> Any:
        setattr(trainer.loss if attribute == "reduction" else trainer, attribute, wanted)
        return function(trainer)

    return given


def mode(trainer: Trainer, training: bool, function: Any) -> Any:
    trainer.nets["norm"].train(training)
    return function(trainer)


def in_mode(trainer: Trainer, training: bool) -> dict[str, nn.Module]:
    trainer.nets["norm"].train(training)
    return trainer.nets


def of_nets(first: Any, second: Any, nets: Any) -> Any:
    return lambda y, t: F.cross_entropy(nets[second](nets[first](y)), t, reduction="sum")


def of_loss(linear: nn.Module, loss: Any) -> Any:
    return lambda y, t: loss(linear(y), t)


READOUTS: dict[str, Any] = {
    "a default": lambda trainer, red: lambda y, t, red=red: F.cross_entropy(trainer.linear(y), t, reduction=red),
    "a keyword's default": read_by_keyword,
    "a closure": lambda trainer, red: lambda y, t: F.cross_entropy(trainer.linear(y), t, reduction=red),
    "a partial": lambda trainer, red: of_loss(trainer.linear, partial(F.cross_entropy, reduction=red)),
    "an object": in_turn("red", lambda trainer: trainer.lose),
    "a module": in_turn("reduction", lambda trainer: rt.Readout(trainer.linear, trainer.loss)),
    "the same module": in_turn("reduction", lambda trainer: trainer.readout),
    "a function's module": in_turn("reduction", lambda trainer: of_loss(trainer.linear, trainer.loss)),
}
HELD: dict[str, Any] = {
    "a dict": lambda trainer, training: of_nets("norm", "linear", in_mode(trainer, training)),
    "a list": lambda trainer, training: of_nets(0, 1, [*in_mode(trainer, training).values()]),
    "a dict in an object": lambda trainer, training: in_mode(trainer, training) and trainer.lose_normed,
}


@pytest.mark.parametrize("kind", [*READOUTS, *HELD])
def test_a_readout_is_tried_again_when_it_is_another(kind: str) -> None:
    parts, trainer = Parts(), Trainer()
    make, right, wrong = (READOUTS[kind], "sum", "mean") if kind in READOUTS else (HELD[kind], False, True)
    before = {key: value.clone() for key, value in trainer.nets["norm"].state_dict().items()}
    for _ in range(2):
        parts.lose(readout=make(trainer, right))
        with pytest.raises(ValueError, match="must return the sum"):
            parts.lose(readout=make(trainer, wrong))
    parts.lose(readout=make(trainer, right)).backward()
    assert all(torch.equal(value, before[key]) for key, value in trainer.nets["norm"].state_dict().items())


ENCODERS: dict[str, Any] = {
    "a default": lambda trainer, by: lambda ids, by=by: less_mean(trainer.words(ids), by),
    "a closure": lambda trainer, by: lambda ids: less_mean(trainer.words(ids), by),
    "a partial": lambda trainer, by: (lambda less: lambda ids: less(trainer.words(ids)))(partial(less_mean, by=by)),
    "a partial's argument": lambda trainer, by: (lambda less: lambda ids: less(trainer.words(ids), by))(
        partial(less_mean, keep=bool(by))
    ),
    "an object": in_turn("by", lambda trainer: trainer.encode),
    "a dict": lambda trainer, by: (
        lambda nets: lambda ids: nets["less"](trainer.words(ids))
    )({"less": nn.Identity() if by == 0 else Less()}),
    "a list in an object": in_turn("by", lambda trainer: trainer.set_nets().encode_by_net),
}  # fmt: skip


class Less(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return less_mean(z, 1.0)


@pytest.mark.parametrize("kind", ENCODERS)
def test_an_encoder_is_tried_again_when_it_is_another(kind: str) -> None:
    parts, trainer, make = Parts(), Trainer(), ENCODERS[kind]
    for _ in range(2):
        parts.lose(make(trainer, 0.0))
        with pytest.raises(ValueError, match="each step by itself"):
            parts.lose(make(trainer, 1.0))
    parts.lose(make(trainer, 0.0)).backward()


@pytest.mark.parametrize("hold", [list, tuple, lambda nets: dict(enumerate(nets)), lambda nets: [{0: nets}]])
def test_heads_are_tried_again_and_their_buffers_restored(hold: Any) -> None:
    parts, norm = Parts(), nn.BatchNorm1d(8, dtype=real()).eval()
    held = hold([norm, parts.linear])
    x = torch.randn(STEPS, ROWS, FEATURES, dtype=real())

    def heads(y: Tensor) -> Tensor:
        nets = held[0][0] if isinstance(held[0], dict) else held
        return nets[1](nets[0](y))

    rt.rewind_outputs(parts.rnn, x, readout=heads)
    norm.train()
    with pytest.raises(ValueError, match=r"same positions in two parts.*BatchNorm1d"):
        rt.rewind_outputs(parts.rnn, x, readout=heads)
    assert norm.num_batches_tracked == 0 and not norm.get_buffer("running_mean").any()


def test_an_encoder_in_a_list_keeps_its_buffers() -> None:
    parts, nets = Parts(), [Batched(nn.BatchNorm1d(FEATURES))]
    with pytest.raises(ValueError, match="encode .*BatchNorm1d"):
        parts.lose(lambda ids: nets[0](ids))
    assert nets[0].part.num_batches_tracked == 0


@pytest.mark.parametrize("first", [-100, 0])
def test_what_a_readout_counts_is_that_of_its_ignore_index(first: int) -> None:
    parts, trainer, weight = Parts(), Trainer(), torch.randn(WORDS, 8, dtype=real())
    parts.targets[:5] = 0

    def of(pad: int) -> Any:
        return lambda y, t: F.cross_entropy(F.linear(y, weight), t, ignore_index=pad, reduction="sum")

    def of_trainer(pad: int) -> Any:
        trainer.pad = pad
        return trainer.lose

    for make in (of, of_trainer):
        for pad in (first, -100 - first, first):
            if pad == 0:
                with pytest.raises(ValueError, match="leaves out targets that are 0"):
                    parts.lose(readout=make(pad))
            else:
                wanted = make(pad)(parts.rnn(parts.words(parts.ids))[0].flatten(0, 1), parts.targets.flatten())
                torch.testing.assert_close(parts.lose(readout=make(pad)), wanted / parts.targets.numel())


def test_what_a_readout_counts_is_that_of_its_weights() -> None:
    parts, weights = Parts(), torch.ones(WORDS, dtype=real())

    def readout(y: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(parts.linear(y), targets, weight=weights, reduction="sum")

    parts.lose(readout=readout)
    weights[0] = 2
    with pytest.raises(ValueError, match="weighs its classes"):
        parts.lose(readout=readout)


def test_what_has_no_key_is_tried_at_each_step() -> None:
    parts, sizes, opened = Parts(), list[int](), iter([1])

    def readout(y: Tensor, targets: Tensor) -> Tensor:
        sizes.append(len(y))
        return parts.summed(y, targets) + 0 * len(repr(opened))

    def step() -> int:
        sizes.clear()
        parts.lose(readout=readout)
        return len(sizes)

    assert [step() for _ in range(3)] == [4 + 4] * 3
    assert not trials._counted


def test_the_oldest_trial_is_forgotten() -> None:
    known: dict[Any, int] = {}
    for number in range(trials._MOST_KNOWN + 2):
        trials.remember(known, number, number)
    assert list(known) == list(range(2, trials._MOST_KNOWN + 2))
