"""Two processes that take each step together, with uneven shares of the rows: their draws and their gradients."""

import math
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn import functional as F

import revtune as rt
from revtune.errors import NonFiniteError
from revtune.penalties import mixup
from revtune.processes import drawn_rows, share_of_batch

WORDS, STEPS, ROWS, OWN = 20, 90, 8, (slice(0, 3), slice(3, 8))
EXACT = 1e-5
"""How far weights may differ from those of one process after a few steps, relatively: sums are in another order."""


class Model(nn.Module):
    """A language model that draws wherever it can."""

    def __init__(self, kind: type[rt.RevGRU] | type[rt.RevLSTM]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.drop = rt.Embedding(WORDS, 8, dropout=0.2), rt.LockedDropout(0.3)
        self.rnn = kind(8, 16, 2, **RATES)
        self.head = rt.LinearCrossEntropy(16, WORDS)

    def encode(self, ids: Tensor) -> Tensor:
        rows: Tensor = self.drop(self.words(ids))
        return rows

    def forward(self, ids: Tensor) -> Tensor:
        return rt.rewind_loss(self.rnn, ids[:-1], ids[1:], encode=self.encode, readout=self.head)[0]


RATES: Any = {"dropout": 0.3, "input_dropout": 0.1, "hidden_dropout": 0.2, "output_dropout": 0.3, "weight_drop": 0.2}


def batch(number: int) -> Tensor:
    return torch.randint(WORDS, (STEPS + 1, ROWS), generator=torch.Generator().manual_seed(number))


def check_equal(ours: nn.Module, one: nn.Module) -> None:
    with torch.no_grad():
        for (name, got), wanted in zip(ours.named_parameters(), one.parameters(), strict=True):
            assert float((got - wanted).norm() / wanted.norm().clamp(min=1e-3)) < EXACT, name


def check_plain(together: rt.Processes) -> None:
    """A user's own loop, streamed and with all outputs; a chunk of all rows is shorter than one of some."""

    def outputs(model: Any, ids: Tensor) -> Tensor:
        return F.cross_entropy(model.head.logits(model.rnn(model.encode(ids[:-1]))[0]).flatten(0, 1), ids[1:].flatten())

    steps: list[Callable[[Any, Tensor], Tensor]] = [lambda model, ids: model(ids), outputs]
    for kind in (rt.RevGRU, rt.RevLSTM):
        for step in steps:
            one, ours = Model(kind), Model(kind)
            optimizers = [torch.optim.SGD(model.parameters(), 0.5) for model in (one, ours)]
            torch.manual_seed(1)
            for number in range(3):
                state = torch.get_rng_state()
                step(one, batch(number)).backward()
                after = torch.get_rng_state()
                torch.set_rng_state(state)
                own = batch(number)[:, OWN[together.rank]]
                with together.share(own.shape[1]) as weight:
                    loss = step(ours, own) * weight
                loss.backward()  # outside, as the masks know whose they are
                assert torch.equal(torch.get_rng_state(), after)
                together.add_gradients(ours.parameters())
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
            check_equal(ours, one)


def streamed(method: Any, together: rt.Processes | None) -> rt.Tuner:
    model = Model(rt.RevGRU).double()  # in float32 the smallest responses differ by more than EXACT in rounding alone
    whole = {name: rt.Rate(0.2, per="batch") for name in ("words.dropout", "rnn.weight_drop")}
    rates = {name: rt.Rate(0.2) for name in ("rnn.dropout", "drop", "rnn.hidden_dropout", "rnn.output_dropout")}
    hypers = rt.Hyperparameters(**whole, **rates, activation=rt.Positive(0.5))

    def stream(model: Any, given: Tensor, h: Any) -> dict[str, Any]:
        penalties = {} if h is None else {"penalties": rt.ActivationPenalties(activation=h.activation)}
        return {
            "rnn": model.rnn, "inputs": given[:-1], "targets": given[1:], "encode": model.encode,
            "readout": model.head, **penalties,
        }  # fmt: skip

    net = rt.self_tuning(model, hypers.double(), batch_dim=1)
    return tuner(net, together, method=method, stream=stream, carry=True)


def stored(method: Any, together: rt.Processes | None, spoilt: float = 1.0) -> rt.Tuner:
    """Layers of torch's whose dropouts are tuned, examples first; the training loss is multiplied by a number."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WORDS, 16), nn.Tanh(), nn.Dropout(0.3), nn.Linear(16, WORDS))
    return tuner(
        rt.self_tuning(model), together, method=method,
        train_loss=lambda out, given, h: F.cross_entropy(out, given[1], reduction="none") * spoilt,
        valid_loss=lambda out, given: F.cross_entropy(out, given[1]),
    )  # fmt: skip


def examples(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Batches of `stored`: which word comes after a step's."""
    return F.one_hot(ids[0], WORDS).float(), ids[1]


def tuner(model: nn.Module, together: rt.Processes | None, **options: Any) -> rt.Tuner:
    return rt.Tuner(
        model, optimizer=lambda params: torch.optim.SGD(params, 0.5), ratio=1, clip=0.5, accumulate=2,
        hyper_optimizer=lambda params: torch.optim.SGD(params, 0.5), processes=together, **options,
    )  # fmt: skip


def check_tuned(together: rt.Processes) -> None:
    own = OWN[together.rank]
    for make, to in ((streamed, torch.clone), (stored, examples)):
        for method in ("stn", "delta"):
            losses = []
            one, ours = make(method, None), make(method, together)
            for each, rows in ((one, slice(None)), (ours, own)):
                torch.manual_seed(1)
                losses.append([each.step(to(batch(n)[:, rows]), to(batch(n + 9)[:, rows])) for n in range(4)])
            assert torch.tensor(losses[0]).sub(torch.tensor(losses[1])).abs().max() < EXACT
            check_equal(ours.model, one.model)
            assert one.values() != make(method, None).values()


def check_failures(together: rt.Processes) -> None:
    """What is wrong in one process is told in all, or refused before anyone waits."""
    ours = stored("stn", together, math.inf if together.rank else 1.0)
    before = [parameter.detach().clone() for parameter in ours.model.parameters()]
    with pytest.raises(NonFiniteError, match="training loss is|loss of another process is not finite"):
        ours.step(*(examples(batch(number)[:, OWN[together.rank]]) for number in range(2)))
    for parameter, was in zip(ours.model.parameters(), before, strict=True):
        assert torch.equal(parameter, was)
    assert ours._together.all_of([True, together.rank == 0]) == [True, False]
    with pytest.raises(ValueError, match="normalise by examples, as nn.GroupNorm does"):
        tuner(rt.self_tuning(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout())), together,
              train_loss=lambda *_: None, valid_loss=lambda *_: None)  # fmt: skip
    with together.share(4):
        with pytest.raises(ValueError, match="share of 4 rows, what is drawn must be for these, got 3 rows"):
            drawn_rows((2, 3), 1, torch.rand)
        with pytest.raises(ValueError, match="mixup has no part in a batch of several processes"):
            mixup(torch.rand(4, 2), torch.arange(4), 0.3)
    assert share_of_batch() is None
    torch.manual_seed(together.rank)
    with pytest.raises(ValueError, match="those of process 1 differ from those of process 0: seed all alike"):
        with together.share(4):
            pass
    sparse = nn.Embedding(5, 2, sparse=True)
    sparse(torch.tensor([together.rank])).sum().backward()
    with pytest.raises(ValueError, match=r"dense gradients up, that of a parameter of shape \(5, 2\) is sparse"):
        together.add_gradients(sparse.parameters())
    alone = nn.ModuleList([nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)])
    alone[0](torch.ones(1, 2)).sum().backward() if together.rank else None
    together.add_gradients(alone.parameters())
    found = [weight.grad for weight in alone.parameters()]
    assert found[0] is not None and torch.equal(found[0], torch.ones(1, 2)) and found[1] is None


def check_padded(together: rt.Processes) -> None:
    """A mean over positions of padded rows; a process without rows makes all raise."""
    ours, one, ids = Model(rt.RevGRU).eval(), Model(rt.RevGRU).eval(), batch(5)
    lengths, own = torch.arange(STEPS, STEPS - ROWS * 9, -9), OWN[together.rank]
    with together.share(len(lengths[own])):
        summed, _ = rt.rewind_loss(ours.rnn, ids[:-1, own], ids[1:, own], encode=ours.encode, readout=ours.head,
                                   lengths=lengths[own], reduction="sum")  # fmt: skip
    (summed / together.total(int(lengths[own].sum()))[0]).backward()
    together.add_gradients(ours.parameters())
    rt.rewind_loss(one.rnn, ids[:-1], ids[1:], encode=one.encode, readout=one.head, lengths=lengths)[0].backward()
    for (name, got), wanted in zip(ours.named_parameters(), one.parameters(), strict=True):
        assert got.grad is not None and wanted.grad is not None
        torch.testing.assert_close(got.grad, wanted.grad, rtol=EXACT, atol=1e-6, msg=name)
    with pytest.raises(ValueError, match="process 1 has 0"), together.share(1 - together.rank):
        pass


def process(rank: int, port: int, home: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    together = rt.Processes()
    assert (together.rank, together.count) == (rank, 2)
    check_plain(together)
    check_padded(together)
    check_tuned(together)
    check_failures(together)
    dist.destroy_process_group()
    Path(home, f"{rank}").touch()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_two_processes_take_one_process_s_steps(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    spawn(process, (port, str(tmp_path)), nprocs=2)
    assert {path.name for path in tmp_path.iterdir()} == {"0", "1"}


def test_alone_nothing_is_asked() -> None:
    together, layer = rt.Processes(), nn.Linear(2, 1)
    with together.share(3) as weight:
        assert weight == 1.0 and share_of_batch() is None
    with pytest.raises(ValueError, match="each process must have a row of the batch at least, process 0 has 0"):
        with together.share(0):
            pass
    with pytest.raises(TypeError, match=r"rows must be a whole number, got 2\.5"):
        with together.share(2.5):  # type: ignore[arg-type]
            pass
    together.add_gradients(layer.parameters())
    assert layer.weight.grad is None and together.total(2.0, 3.0) == [2.0, 3.0]
