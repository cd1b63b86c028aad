"""What the program knows of the launcher that has started it, `torchrun` or `accelerate launch`, and says by it."""

from __future__ import annotations

import contextlib
import os
from datetime import timedelta

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from revtune.program.errors import Problem

SOON = timedelta(seconds=5)
"""How long to look for a launcher's store, which may have gone."""

TOLD = "revtune/told"
"""What the launcher's store calls the count of processes that have said why they end."""


def launched() -> bool:
    """Whether a launcher has started this process beside others."""
    return {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys() and int(os.environ.get("WORLD_SIZE", "1")) > 1


def check_alone() -> None:
    """Raise `Problem` where `accelerate launch` was asked for several processes on CPUs and has started one, or MPI."""
    if "ACCELERATE_USE_CPU" in os.environ and "MASTER_PORT" in os.environ and "WORLD_SIZE" not in os.environ:
        raise Problem("accelerate launch starts several processes on CPUs by MPI alone, which runs do not speak; "
                      "torchrun --nproc-per-node N -m revtune train ... starts N", code=2)  # fmt: skip


def refuse_launched(what: str) -> None:
    """Raise `Problem` where several processes have been started for what one does."""
    if launched():
        count = os.environ["WORLD_SIZE"]
        raise Problem(
            f"{what} runs in one process, got {count}; start it without torchrun or accelerate launch", code=2
        )


def first_to_tell() -> bool:
    """Whether nobody of the processes has said yet why they end: one sentence is enough."""
    if not launched() or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return True
    with contextlib.suppress(RuntimeError, ValueError):  # the store has gone, as the launcher has
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(host, port, is_master=False, timeout=SOON)
        return store.add(f"{TOLD}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", 1) == 1
    return True
