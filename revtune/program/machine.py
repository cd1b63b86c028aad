"""What figures depend on: the processors of this machine, and versions."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

import revtune as rt


def versions() -> dict[str, str]:
    """Versions that all figures depend on."""
    return {"revtune": rt.__version__, "torch": torch.__version__, "python": platform.python_version()}


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
