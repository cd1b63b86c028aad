"""What figures depend on: the processors of this machine, and versions; and the memory that this process holds."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import sys
from pathlib import Path

import torch

import revtune as rt


def versions() -> dict[str, str]:
    """Versions that all figures depend on."""
    return {"revtune": rt.__version__, "torch": torch.__version__, "python": platform.python_version()}


def environment() -> dict[str, str]:
    """What a run begins in, in words: versions, system and processors."""
    system = f"{platform.system()} {platform.machine()}"
    return {**versions(), "system": system, "processor": processor(), "processors": str(processors())}


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def resident_bytes() -> int:
    """Memory that this process holds now, or held at most where the system does not tell what it holds now."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()  # size, resident, ...
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)  # Linux: KiB
