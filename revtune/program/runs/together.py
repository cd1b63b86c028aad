"""Runs that several processes train together, as `torchrun` or `accelerate launch` starts them.

    torchrun --nproc-per-node 2 -m revtune train ptb

Each has its rows of every batch, and all hold the same weights. The first one alone writes and is heard. Accelerate
joins them, by gloo on CPUs and NCCL on GPUs. If one ends, so do the others, and one of them says so.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from revtune.processes import Processes
from revtune.program.errors import Problem
from revtune.program.launcher import check_alone, launched
from revtune.program.machine import processors
from revtune.program.runs.tracking import flat
from revtune.tuning.trees import mapped

REFUSED = {
    "ACCELERATE_USE_FSDP": ("fsdp", "false", "each process holds all weights, which rewinding reads as they are"),
    "ACCELERATE_USE_DEEPSPEED": ("deepspeed", "false", "each process holds all weights"),
    "ACCELERATE_MIXED_PRECISION": ("mixed precision", "no", "runs compute in float32"),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("gradient accumulation", "1", "--batch is that of all processes"),
}
"""Settings of `accelerate launch` that a run does not follow: their names, what leaves them out, and why."""


@contextlib.contextmanager
def together(device: str, threads: int) -> Iterator[Processes]:
    """The processes that train a run, joined within this block, where the first one alone is heard.

    Args:
        device: as the run's settings name it.
        threads: of torch in each process.

    Raises:
        Problem: Accelerate is not there, or its launcher was given settings that runs do not follow; the processes
            would share a GPU.
    """
    if not launched():
        check_alone()
        yield Processes()
        return
    if importlib.util.find_spec("accelerate") is None:
        raise Problem("several processes need accelerate; pip install 'revtune[processes]' installs it", code=2)
    for variable, (name, without, why) in REFUSED.items():
        if (given := os.environ.get(variable, without).lower()) != without:
            raise Problem(f"accelerate launch: {name} must be {without}, got {given}: {why}", code=2)
    own_device(device)  # to refuse it before others wait
    from accelerate import PartialState  # an extra, and only where there are several processes

    state = PartialState(cpu=device == "cpu")
    processes, wanted = Processes(), threads * int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if processes.rank == 0 and wanted > processors():
        many = f"{wanted} threads, {threads} in each process"
        print(f"revtune: {many}, share {processors()} processors; fewer --threads are faster", file=sys.stderr)
    with unheard() if processes.rank else contextlib.nullcontext():
        yield processes
    state.destroy_process_group()  # not where one has ended, as it waits for all


@contextlib.contextmanager
def unheard() -> Iterator[None]:
    """Within this block nothing is printed, and nobody is warned: the first process says the same."""
    with contextlib.ExitStack() as stack:
        nowhere = stack.enter_context(open(os.devnull, "w"))
        stack.enter_context(contextlib.redirect_stdout(nowhere))
        stack.enter_context(contextlib.redirect_stderr(nowhere))
        stack.enter_context(warnings.catch_warnings(action="ignore"))
        yield


def own_device(device: str) -> str:
    """The device of this process: of several that are launched on one machine, each has a GPU of its own.

    Raises:
        Problem: a GPU is named by its number, or there are too few.
    """
    if not launched() or not device.startswith("cuda"):
        return device
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if device != "cuda":
        raise Problem(f"--device must be cuda with several processes, which each take one, got {device}", code=2)
    if local >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise Problem(f"--device cuda: each process on a machine needs a GPU, and there are {count}", code=2)
    return f"cuda:{local}"


def texts(processes: Processes, own: str) -> list[str]:
    """What each process says."""
    content = torch.tensor(list(own.encode()), dtype=torch.uint8)
    lengths = processes.gathered([len(content)])[:, 0].long().tolist()
    return [bytes(part.tolist()).decode() for part in processes.joined(content, 0).split(lengths)]


def agree(processes: Processes, settings: Mapping[str, Any]) -> None:
    """Raise `Problem` when a setting differs between processes, by its name."""
    if processes.count == 1:
        return
    first, *others = map(json.loads, texts(processes, json.dumps(flat(dict(settings), between="."), default=str)))
    for rank, other in enumerate(others, 1):
        for name in sorted({*first, *other}):
            here, there = (each.get(name, "nothing") for each in (first, other))
            if here != there:
                both = f"{here} in process 0 and {there} in process {rank}"
                raise Problem(f"{name} must be the same in all processes, got {both}", code=2)


def own_columns(processes: Processes, columns: int) -> slice:
    """Which columns, streams or examples, of so many this process has; sizes differ by one at most."""
    return slice(*(columns * number // processes.count for number in (processes.rank, processes.rank + 1)))


def joined_state(processes: Processes, state: Any) -> Any:
    """The recurrent state of all processes' streams, of this one's, (L, B, H) or a pair of it, or None."""
    return mapped(lambda part: processes.joined(part, 1), state)


def own_state(processes: Processes, state: Any) -> Any:
    """That of this process's streams, of all."""
    if processes.count == 1:
        return state
    return mapped(lambda part: part[:, own_columns(processes, part.shape[1])].contiguous(), state)
