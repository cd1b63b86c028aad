"""Two processes that take a step together, compared with one process on all rows."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

import revtune as rt
from revtune.program.bench.contestants import Contestant, ContestantNet, Shape
from revtune.reversible.layers.rnn import RevRNN

SHAPE = Shape(steps=60, batch=8, hidden=64, vocabulary=50)
OWN = (slice(0, 3), slice(3, 8))
"""The rows of each process."""


def gradients_apart(device: str) -> float:
    """How far the gradients of two processes are from one process's, relatively; on two GPUs, or on a CPU."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    with TemporaryDirectory() as folder:
        found = Path(folder) / "apart"
        spawn(_work, (port, device, found), nprocs=2)
        return float(found.read_text())


def _work(rank: int, port: int, device: str, found: Path) -> None:
    """One of the processes; the first writes what was found."""
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    here = torch.device(device, rank) if device == "cuda" else torch.device(device)
    if here.type == "cuda":
        torch.cuda.set_device(here)
    dist.init_process_group("nccl" if here.type == "cuda" else "gloo", rank=rank, world_size=2)
    torch.manual_seed(0)
    net = ContestantNet(Contestant(cell="RevGRU", backend="triton" if here.type == "cuda" else "auto"), SHAPE).to(here)
    tokens = torch.randint(SHAPE.vocabulary, (SHAPE.steps + 1, SHAPE.batch)).to(here)
    together = rt.Processes()
    own = tokens[:, OWN[rank]]
    with together.share(own.shape[1]) as weight:
        loss = _loss(net, own)
    (weight * loss).backward()
    together.add_gradients(net.parameters())
    joined = _taken(net)
    _loss(net, tokens).backward()
    whole = _taken(net)
    if not rank:
        found.write_text(str(float((joined - whole).norm() / whole.norm())))
    dist.destroy_process_group()


def _loss(net: ContestantNet, tokens: Tensor) -> Tensor:
    assert isinstance(net.rnn, RevRNN)
    return rt.rewind_loss(net.rnn, tokens[:-1], tokens[1:], encode=net.embedding, readout=net.readout)[0]


def _taken(net: ContestantNet) -> Tensor:
    """All gradients as one vector, taken away from the net."""
    grads = torch.cat([weight.grad.flatten() for weight in net.parameters() if weight.grad is not None])
    net.zero_grad(set_to_none=True)
    return grads
