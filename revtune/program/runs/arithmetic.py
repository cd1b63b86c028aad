"""What decides the last digits of a run besides its configuration, and whether it may go on with another.

The C++ kernel and plain torch give the same results up to rounding, not to the last bit. So do the kernel's instruction
sets, except for the two that differ in the width of their vectors alone, whose bits are the same. A checkpoint names
what its run computed by. On resuming, another backend or instruction set is refused unless the environment asks for it
by name; then, and where torch itself or the processor is another, a line on stderr says so.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from revtune.program.errors import Problem
from revtune.reversible.kernel import backend as native

SAME_BITS = {"avx512": "avx2"}
"""Instruction sets of the kernel that give the bits of another: docs/kernel.md, "Why its bits repeat"."""

DECIDES = {"REVTUNE_BACKEND": "backend", "REVTUNE_ISA": "instructions"}
"""The field of `Arithmetic` that an environment variable decides."""


@dataclass(frozen=True)
class Arithmetic:
    """What a run computes by.

    Attributes:
        backend: native or reference.
        instructions: the instruction set of the native kernel; empty for the reference.
        torch_version: such as 2.13.0.
        processor: of torch's own operators: the kind of machine and its vectors, or the name of a CUDA device.
    """

    backend: str
    instructions: str
    torch_version: str
    processor: str

    @classmethod
    def here(cls, device: torch.device) -> Arithmetic:
        """What this process computes by on a device.

        Raises:
            BackendError: the environment asks for a backend that cannot be had.
            SettingError: it asks for one that does not exist.
        """
        kernel = device.type == "cpu" and native.load()
        vectors = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
        return cls(
            backend="native" if kernel else "reference",
            instructions=native.instructions() if kernel else "",
            torch_version=torch.__version__.partition("+")[0],
            processor=torch.cuda.get_device_name(device) if device.type == "cuda" else vectors,
        )

    @classmethod
    def of(cls, stored: object, path: Path) -> Arithmetic:
        """What a run computed by, as a file has stored it.

        Raises:
            Problem: it is not what `to_json` gives.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if isinstance(stored, dict) and stored.keys() == names and all(isinstance(v, str) for v in stored.values()):
            return cls(**stored)
        raise Problem(f"{path} does not tell what its run computed by, but {stored!r}")

    def to_json(self) -> dict[str, str]:
        """The fields by name, as checkpoints store them."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        kernel = f"the native kernel ({self.instructions}) and" if self.backend == "native" else "plain"
        return f"{kernel} torch {self.torch_version} on {self.processor}"

    def same_bits(self, field: str) -> str:
        """A field's value, or that of another instruction set with the same bits."""
        value: str = getattr(self, field)
        return SAME_BITS.get(value, value)

    def go_on(self, before: Arithmetic, folder: Path) -> None:
        """Let the run in a folder go on, with a line on stderr when it computed by something else before.

        Raises:
            Problem: the backend or the instruction set was another, and the environment does not name the one here.
        """
        differs = [name for name in self.to_json() if self.same_bits(name) != before.same_bits(name)]
        if not differs:
            return
        variable = next((name for name, decides in DECIDES.items() if decides in differs), None)
        if variable is not None:
            was, now = (getattr(arithmetic, DECIDES[variable]) for arithmetic in (before, self))
            if os.environ.get(variable) != now:
                ways = f"{variable}={was} goes on as before, {variable}={now} all the same"
                raise Problem(f"{folder} ran on {before}; on {self} its last digits would differ; {ways}")
        print(f"revtune: {folder} ran on {before}; its last digits may differ on {self}", file=sys.stderr)
