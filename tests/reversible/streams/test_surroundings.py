"""What is changed while a stream runs: named, with no gradient given."""

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

import revtune as rt
from revtune.reversible.kernel.checksum import fingerprint_there
from revtune.reversible.layers.rnn import RevRNN
from revtune.reversible.streams.same_draws import SameDraws
from revtune.reversible.streams.surroundings import Surroundings
from tests.backends import real
from tests.chunking import set_stack_chunk_steps
from tests.questions import counting

BACKENDS = ("reference", "native")
both = pytest.mark.parametrize("rev", [rt.RevGRU, rt.RevLSTM])
Rev = type[rt.RevGRU] | type[rt.RevLSTM]
Change = Callable[[Tensor], object]


@pytest.fixture(autouse=True)
def _four_steps_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    set_stack_chunk_steps(monkeypatch, 4)


def scaled(tensor: Tensor) -> None:
    """Change a tensor as an optimizer does."""
    with torch.no_grad():
        tensor.copy_(tensor * 2 if tensor.is_floating_point() else tensor.flip(0))


def scaled_unseen(tensor: Tensor) -> None:
    """Change a tensor so that autograd's version counter does not move."""
    scaled(tensor.data)


def freed(tensor: Tensor) -> None:
    tensor.untyped_storage().resize_(0)


def on_trial() -> bool:
    """Whether a function is tried, as one is anew that has begun to do something else."""
    return any(isinstance(mode, SameDraws) for mode in _get_current_dispatch_mode_stack())


class Problem:
    """A training step over 14 steps, 4 a chunk, and something done when a chunk is encoded or read out.

    Attributes:
        at: what is done at which call of encode (0 to 6) and of readout (0 to 3).
    """

    def __init__(self, rev: Rev) -> None:
        self.net: RevRNN = rev(5, 6, 2, dtype=real())
        self.table, self.head = nn.Embedding(7, 5).to(real()), nn.Linear(6, 7).to(real())
        ids = torch.randint(7, (15, 3))
        self.inputs, self.targets = ids[:-1].clone(), ids[1:].clone()
        self.lengths, self.context = torch.tensor([14, 9, 12]), torch.randn(7, dtype=real())
        self.at: dict[tuple[str, int], Callable[[], object]] = {}
        self._calls = {"encode": 0, "readout": 0}

    def tensor(self, name: str) -> Tensor:
        owner, _, rest = name.rpartition(".")
        found: Tensor = getattr(getattr(self, owner) if owner else self, rest)
        return found

    def called(self, what: str) -> None:
        if on_trial():
            return
        self.at.get((what, self._calls[what]), lambda: None)()
        self._calls[what] += 1

    def encoder(self) -> Callable[[Tensor], Tensor]:
        def encode(ids: Tensor, table: nn.Embedding = self.table) -> Tensor:
            self.called("encode")
            encoded: Tensor = table(ids)
            return encoded

        return encode

    def reader(self) -> Callable[..., Tensor]:
        def readout(y: Tensor, targets: Tensor, bias: Tensor, head: nn.Linear = self.head) -> Tensor:
            loss = F.cross_entropy(head(y) + bias, targets, reduction="sum")
            self.called("readout")
            return loss

        return readout

    def run(self, **options: Any) -> Tensor:
        """The step's loss; encoder and readout have their trials undisturbed."""
        self._calls = {"encode": 0, "readout": 0}
        loss, _ = rt.rewind_loss(
            self.net, self.inputs, self.targets, encode=self.encoder(), readout=self.reader(),
            lengths=self.lengths, context=[self.context], **options,
        )  # fmt: skip
        return loss


@both
@pytest.mark.parametrize("change", [scaled, scaled_unseen])
@pytest.mark.parametrize("when", [("encode", 1), ("readout", 0), ("readout", 3)])
@pytest.mark.parametrize("name", ["weight_hh_l1", "bias_ih_l1"])
def test_a_weight_changed_on_the_way_is_named(rev: Rev, change: Change, when: tuple[str, int], name: str) -> None:
    problem = Problem(rev)
    problem.at[when] = lambda: change(getattr(problem.net, name))
    with pytest.raises(rt.ReversalError, match=rf"rewind_loss: {name} .*was changed while rewind_loss ran"):
        problem.run()


@pytest.mark.parametrize("change", [scaled, scaled_unseen])
@pytest.mark.parametrize(
    "name, called, when",
    [
        ("inputs", "inputs", ("encode", 2)), ("targets", "targets", ("readout", 1)),
        ("lengths", "lengths", ("encode", 2)), ("context", "one of context", ("readout", 0)),
        ("table.weight", "encode", ("encode", 2)), ("table.weight", "encode", ("readout", 1)),
        ("head.weight", "readout", ("readout", 1)), ("head.bias", "readout", ("readout", 3)),
    ],
)  # fmt: skip
def test_whatever_else_is_changed_is_named(change: Change, name: str, called: str, when: tuple[str, int]) -> None:
    problem = Problem(rt.RevGRU)
    problem.at[when] = lambda: change(problem.tensor(name))
    with pytest.raises(rt.ReversalError, match=f"{called}.* was changed while rewind_loss ran"):
        problem.run()


@pytest.mark.parametrize("every", [None, 5])
def test_segments_are_watched_too(every: int | None) -> None:
    problem = Problem(rt.RevLSTM)
    problem.at["readout", 1] = lambda: scaled(problem.net.weight_hh_l0)
    with pytest.raises(rt.ReversalError, match="weight_hh_l0"):
        problem.run(checkpoint_every=every)


@pytest.mark.parametrize("when", [("encode", 1), ("readout", 0)])
@pytest.mark.parametrize("name", ["net.weight_hh_l0", "net.weight_ih_l1", "inputs", "targets"])
def test_memory_that_goes_away_is_an_error_and_no_end_of_the_process(when: tuple[str, int], name: str) -> None:
    problem = Problem(rt.RevGRU)
    problem.at[when] = lambda: freed(problem.tensor(name))
    with pytest.raises(rt.ReversalError, match=f"{name.removeprefix('net.')} .*has lost its memory"):
        problem.run()


def test_another_threads_optimizer_is_found() -> None:
    problem = Problem(rt.RevGRU)
    optimizer = torch.optim.SGD(problem.net.parameters(), lr=0.1)
    for parameter in problem.net.parameters():
        parameter.grad = torch.ones_like(parameter)

    def step() -> None:
        thread = threading.Thread(target=optimizer.step)
        thread.start()
        thread.join()

    problem.at["readout", 1] = step
    with pytest.raises(rt.ReversalError, match="another thread's optimizer"):
        problem.run()


@both
def test_what_a_function_reads_from_elsewhere_is_watched_from_its_first_call(rev: Rev) -> None:
    net, head = rev(5, 6, dtype=real()), nn.Linear(6, 7).to(real())
    hidden, calls = {"head": head}, list[int]()
    x, targets = torch.randn(14, 3, 5, dtype=real()), torch.randint(7, (14, 3))

    def readout(y: Tensor, targets: Tensor) -> Tensor:
        if not on_trial():
            calls.append(1)
        if len(calls) == 3:
            scaled(hidden["head"].weight)
        return F.cross_entropy(hidden["head"](y), targets, reduction="sum")

    with pytest.raises(rt.ReversalError, match="readout or encode reads.* was changed"):
        rt.rewind_loss(net, x, targets, readout=readout)


def test_in_place_writes_that_change_nothing_pass() -> None:
    problem = Problem(rt.RevGRU)
    wanted = problem.run()
    problem.at["readout", 1] = lambda: problem.lengths.add_(0)
    assert torch.equal(problem.run(), wanted)


@pytest.mark.parametrize("where", ["encode", "readout"])
def test_an_embedding_that_scales_its_rows_down_may_do_so(where: str) -> None:
    net, head = rt.RevGRU(5, 6), rt.LinearCrossEntropy(6, 7)
    table = nn.Embedding(7, 5 if where == "encode" else 6, max_norm=0.5)
    ids, x = torch.arange(28).view(14, 2) % 7, torch.randn(14, 2, 5)

    def loss() -> Tensor:
        if where == "encode":
            return rt.rewind_loss(net, ids, ids, encode=table, readout=head)[0]
        return rt.rewind_loss(net, x, ids, readout=lambda y, t: head(y + table(t), t))[0]

    first = loss().item()
    assert first == pytest.approx(loss().item())  # the second time no row is too long


@pytest.mark.parametrize("shared", ["rnn", "encode", "readout"])
def test_weights_in_shared_memory_are_refused(shared: str) -> None:
    """Data may come in it, from a loader's workers, and evaluation reads weights once."""
    net, table, head = rt.RevGRU(5, 6), nn.Embedding(7, 5), rt.LinearCrossEntropy(6, 7)
    ids = (torch.arange(28).view(14, 2) % 7).share_memory_()

    def loss() -> Tensor:
        return rt.rewind_loss(net, ids, ids, encode=table, readout=lambda y, t: head(y, t))[0]

    loss().backward()
    part: nn.Module = {"rnn": net, "encode": table, "readout": head}[shared]
    part.share_memory()
    with pytest.raises(ValueError, match=r"rewind_loss: .*memory that processes share.*deepcopy.*wrap or shard"):
        loss()
    if shared != "readout":
        with pytest.raises(ValueError, match="rewind_encode: .*memory that processes share"):
            rt.rewind_encode(net, ids, encode=table)
    with torch.no_grad():
        loss()
        rt.rewind_encode(net, ids, encode=table)
    net, table, head = copy.deepcopy((net, table, head))
    loss().backward()


@both
def test_evaluation_watches_nothing(rev: Rev) -> None:
    problem = Problem(rev)
    problem.at["readout", 3] = lambda: scaled(problem.net.weight_hh_l0)
    with torch.no_grad():
        problem.run()


@both
@pytest.mark.parametrize("change", [scaled, scaled_unseen, freed])
def test_a_weight_changed_while_an_encoder_goes_back_is_named(rev: Rev, change: Change) -> None:
    problem = Problem(rev)
    annotations, _ = rt.rewind_encode(problem.net, problem.inputs, encode=problem.encoder(), units=2)
    forward = problem._calls["encode"]
    problem.at["encode", forward + 2] = lambda: change(problem.net.weight_hh_l0)
    with pytest.raises(rt.ReversalError, match="weight 'hh' .*(was changed while rewind_encode|has lost its memory)"):
        annotations.square().sum().backward()


@both
def test_a_layers_weight_whose_memory_is_gone_is_named(rev: Rev) -> None:
    net = rev(5, 6, dtype=real())
    y, _ = net(torch.randn(9, 3, 5, dtype=real()))
    freed(net.weight_hh_l0)
    with pytest.raises(rt.ReversalError, match="weight 'hh' .*has lost its memory"):
        y.sum().backward()


def test_a_device_is_asked_once_for_all_that_is_watched() -> None:
    """Its fingerprints are compared there; a host that asked for each would wait each time."""
    watched = Surroundings("f", fingerprint_there)
    tensors = [torch.randn(3), torch.randn(2, 2), torch.randn(1)]
    with counting() as questions:
        watched.watch("a tensor", tensors)
        watched.compare()
    assert questions.asked == ["tolist"]
    tensors[1].data[0] += 1
    tensors[2].data[0] += 1
    with pytest.raises(rt.ReversalError, match=r"f: a tensor of shape \(2, 2\) was changed while f ran"):
        watched.compare()
