"""Does what was verified without a GPU hold on one, and what does a step cost? `make gpu-check`, in five minutes.

    python -m benchmarks.gpu_check [--out FILE.json]     on a machine with an NVIDIA GPU
    python -m benchmarks.gpu_check --dry                 tiny shapes in Triton's interpreter; its times say nothing

Each case stands alone (gpu_parts.py): one that fails is a row with its error, and the next one runs. All rows are
written as JSON, and printed as a table, with the goals beside the figures. The exit code is 1 where a case failed or
bits were not the same; a goal that is missed is told, and changes no exit code.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import sys
import time
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_parts import DRY, PARTS, REAL, Case, Row, Sizes
from revtune.program.files import write
from revtune.program.tables import markdown

SECONDS = 280
"""After so many no case begins any more."""


class Found:
    """The rows of all parts.

    Args:
        until: when the last case may begin, by `time.monotonic`.
    """

    def __init__(self, until: float) -> None:
        self._until = until
        self.rows: list[dict[str, Any]] = []

    def run(self, part: str, case: Case) -> None:
        """Take a case's rows, or the error that it ended with."""
        if time.monotonic() > self._until:
            self._take(part, [Row(case.what, "not begun: time is up")], failed=True)
            return
        began = time.monotonic()
        try:
            self._take(part, case.measure())
        except Exception as error:  # so that the others run
            told = f"{type(error).__name__}: {error}".partition("\n")[0]
            self._take(part, [Row(case.what, told)], failed=True)
        print(f"{part}, {case.what} ({time.monotonic() - began:.1f} s)", flush=True)
        gc.collect()  # a net's memory is the next case's

    def _take(self, part: str, rows: Iterable[Row], *, failed: bool = False) -> None:
        for row in rows:
            self.rows.append({"part": part, **row._asdict(), "verdict": verdict(row, failed=failed)})

    @property
    def failed(self) -> list[str]:
        """What failed, or did not hold."""
        return [row["what"] for row in self.rows if row["verdict"] in ("FAILED", "NOT SO")]


def verdict(row: Row, *, failed: bool) -> str:
    """What a row's figure means."""
    if failed:
        return "FAILED"
    if isinstance(row.figure, bool):
        return "so" if row.figure else "NOT SO"
    if row.goal is None or isinstance(row.figure, str):
        return ""
    return "reached" if row.figure <= row.goal else "missed"


def table(rows: Iterable[dict[str, Any]]) -> str:
    """All rows, with goals."""
    return markdown(
        ("what", "figure", "goal", ""),
        [
            (f"{row['part']}: {row['what']}", told(row["figure"], row["unit"]), told(row["goal"], row["unit"]),
             row["verdict"])
            for row in rows
        ],
    )  # fmt: skip


def told(figure: bool | float | str | None, unit: str) -> str:
    """A figure with its unit."""
    if figure is None or isinstance(figure, bool):
        return ""
    return figure if isinstance(figure, str) else f"{figure:.4g} {unit}".rstrip()


def machine(device: torch.device) -> dict[str, str]:
    """What the figures are of."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else "none: Triton's interpreter"
    versions = {"torch": torch.__version__, "triton": version("triton"), "CUDA": str(torch.version.cuda)}
    return {"GPU": gpu, "processor": platform.processor() or platform.machine(), **versions}


def run(sizes: Sizes, seconds: float = SECONDS) -> Found:
    """All parts, case by case."""
    found = Found(time.monotonic() + seconds)
    for part, cases in PARTS.items():
        for case in cases(sizes):
            found.run(part, case)
    return found


def main(args: Sequence[str] | None = None) -> int:
    """Run all parts, print and write what they found; 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/gpu_check.json"))
    parser.add_argument("--seconds", type=float, default=SECONDS, help="after so many no case begins any more")
    parser.add_argument("--dry", action="store_true")
    asked = parser.parse_args(args)
    if asked.dry:
        interpret()
    elif not torch.cuda.is_available():
        parser.error("no NVIDIA GPU is here; --dry runs tiny shapes in Triton's interpreter")
    sizes = DRY if asked.dry else REAL
    found, known = run(sizes, asked.seconds), machine(sizes.device)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    write(asked.out, f"{json.dumps({**known, 'rows': found.rows}, indent=2)}\n".encode())
    print(table(found.rows))
    print(", ".join(f"{what} {name}" for what, name in known.items()))
    print(f"{asked.out}: " + (f"FAILED: {'; '.join(found.failed)}" if found.failed else "nothing failed"))
    return int(bool(found.failed))


def interpret() -> None:
    """Have Triton interpret, with multiply-adds that round once, as a GPU's do."""
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernel is first imported
    from tests import interpreted

    interpreted.prepare()


if __name__ == "__main__":
    sys.exit(main())
