"""Two processes: a module whose forward calls `rewind_loss`, wrapped or sharded, and parts that are by themselves."""

import os
import socket
from contextlib import nullcontext
from functools import partial, update_wrapper
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

import revtune as rt

WORDS, STEPS, ROWS = 20, 40, 4


class Model(nn.Module):
    """A language model whose forward is a whole training step but for backward."""

    def __init__(self, rev: type[rt.RevGRU] | type[rt.RevLSTM] = rt.RevGRU) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.rnn = nn.Embedding(WORDS, 8), rev(8, 16, 2)
        self.head = rt.LinearCrossEntropy(16, WORDS)

    def look_up(self, ids: Tensor) -> Tensor:
        rows: Tensor = self.words(ids)
        return rows

    def forward(self, ids: Tensor, way: str = "module") -> Tensor:
        """The mean loss; the encoder is the embedding, or a method of the model's own; or of all scores at once."""
        encode = self.words if way == "module" else self.look_up
        if way == "outputs":
            scores, _ = rt.rewind_outputs(self.rnn, ids[:-1], encode=encode, readout=self.head.logits)
            return nn.functional.cross_entropy(scores.flatten(0, 1), ids[1:].flatten())
        return rt.rewind_loss(self.rnn, ids[:-1], ids[1:], encode=encode, readout=self.head)[0]


def batches() -> Tensor:
    """Two batches of both processes' rows."""
    return torch.randint(WORDS, (2, STEPS + 1, 2 * ROWS), generator=torch.Generator().manual_seed(1))


def accumulated(model: Any, given: Tensor, way: str) -> None:
    """Gradients of the mean over two batches, told to the other process with the second one alone."""
    model.zero_grad()
    with model.no_sync() if isinstance(model, DistributedDataParallel | FullyShardedDataParallel) else nullcontext():
        if isinstance(model, FSDPModule):
            model.set_requires_gradient_sync(False)
        (model(given[0], way) / 2).backward()
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(True)
    (model(given[1], way) / 2).backward()


def sharded(model: nn.Module, mesh: DeviceMesh) -> Any:
    return fully_shard(model, mesh=mesh)


def gradients(model: Any) -> list[Tensor]:
    """Whole ones, of sharded parameters too."""
    if isinstance(model, FullyShardedDataParallel):
        with FullyShardedDataParallel.summon_full_params(model, with_grads=True):
            return [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return [p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad for p in model.parameters()]


def check_gradients(rank: int, mesh: DeviceMesh) -> None:
    joined = batches()
    replicated = init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicate", "shard"))
    for rev in (rt.RevGRU, rt.RevLSTM):
        one = Model(rev)
        accumulated(one, joined, "module")
        models: list[Any] = [
            DistributedDataParallel(Model(rev)),
            sharded(Model(rev), mesh),
            sharded(Model(rev), replicated),
            FullyShardedDataParallel(Model(rev), device_id=torch.device("cpu"), use_orig_params=True),
        ]
        for model in models:
            for way in ("module", "method", "outputs"):
                accumulated(model, joined[..., rank * ROWS : (rank + 1) * ROWS], way)
                for got, wanted in zip(gradients(model), gradients(one), strict=True):
                    assert float((got - wanted).norm() / wanted.norm()) < 1e-6


def check_refusals(rank: int, mesh: DeviceMesh) -> None:
    ids = batches()[0][..., :ROWS]
    for name, argument in (("words", "encode"), ("head", "readout"), ("rnn", "rnn")):
        for root in (False, True):
            model = Model()
            sharded(getattr(model, name), mesh)
            whole: Any = fully_shard(model, mesh=mesh) if root else model
            with pytest.raises(
                ValueError, match=f"rewind_loss: {argument} is sharded .*wrap or shard the module whose"
            ):
                whole(ids)
    model = Model()
    parallel: Any = DistributedDataParallel(model.rnn)
    with pytest.raises(ValueError, match="got DistributedDataParallel: wrap or shard the module whose forward calls"):
        rt.rewind_loss(parallel, ids[:-1], ids[1:], encode=model.words, readout=model.head)
    lowered: Any = fully_shard(Model(), mesh=mesh, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="parameters must be float32 or float64 to rewind exactly"):
        lowered(ids)
    flat: Any = FullyShardedDataParallel(Model().words, device_id=torch.device("cpu"))
    with pytest.raises(ValueError, match="encode is wrapped .FullyShardedDataParallel. by itself"):
        rt.rewind_loss(model.rnn, ids[:-1], ids[1:], encode=flat, readout=model.head)
    head, words = DistributedDataParallel(model.head), DistributedDataParallel(model.words)
    with pytest.raises(ValueError, match="readout is wrapped .* by itself"):
        rt.rewind_loss(model.rnn, ids[:-1], ids[1:], encode=model.words, readout=head)
    with pytest.raises(ValueError, match="rewind_encode: encode is wrapped .* by itself"):
        rt.rewind_encode(model.rnn, ids, encode=lambda ids: words(ids))


def process(rank: int, port: int, home: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    check_gradients(rank, mesh)
    check_refusals(rank, mesh)
    Path(home, f"{rank}").touch()
    dist.destroy_process_group()


def test_a_net_whose_forward_was_patched_is_refused() -> None:
    """As accelerate prepares a model, and hooks it; the module around the call may be patched so."""
    model, ids = Model(), batches()[0][..., :ROWS]
    wanted = model(ids).item()
    forward = model.forward
    model.forward = MethodType(torch.autocast("cpu", enabled=False)(type(model).forward), model)  # type: ignore[method-assign]
    assert model(ids).item() == wanted
    model.forward = update_wrapper(partial(lambda module, *args: forward(*args), model), forward)  # type: ignore[method-assign]
    assert model(ids).item() == wanted
    rnn: Any = model.rnn
    rnn.forward = MethodType(torch.autocast("cpu", dtype=torch.bfloat16)(type(rnn).forward), rnn)
    with pytest.raises(ValueError, match="does not call the net's forward.*patch that of the module around it"):
        model(ids)


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")
def test_gradients_of_two_processes_are_those_of_one_on_the_joined_batch(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(process, (port, str(tmp_path)), 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]
