"""Triton's kernels compiled for GPUs that are not here: what they take, and that nothing in them could differ."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

MOST_REGISTERS = 168
"""Of 128 threads a program, so that three of them at least stand on one processor of sm_80, sm_90 and sm_120."""

WRONG = ("LDL", "STL", "ATOM", "RED.", "DADD", "DMUL", "DFMA", "DSETP", "HMMA", "HGMMA", "UTCHMMA")
"""Local memory, atomics, float64, and tensor cores, whose order of summation is no chain."""

WITHOUT_PRODUCTS = (
    "digest", "update", "recall_cells", "lose", "regain", "cut", "add", "back", "lstm turn of c",
    "lstm turn of h back True sliced True",
)  # fmt: skip
"""Kernels that neither multiply matrices nor evaluate gates."""


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90, 120])
def test_kernels_compile_to_what_repeats(capability: int, tmp_path: Path) -> None:
    settings = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    settings.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-m", "tests.compiled", str(capability)]
    done = subprocess.run(command, env=settings, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) > 20 and [kernel for kernel in found if kernel["name"].endswith(" ones")]
    for kernel in found:
        name, instructions = kernel["name"], kernel["ptx"]
        assert kernel["registers"] <= MOST_REGISTERS and kernel["stack"] == 0, name
        assert not [operation for operation in kernel["operations"] if operation.startswith(WRONG)], name
        assert not [one for one in instructions if ".approx" in one or ".ftz" in one or ".f64" in one], name
        fused = [one for one in instructions if one.startswith("fma.rn.f32")]  # sm_120 has one for two at once
        assert fused or name.startswith(WITHOUT_PRODUCTS), name
        if name == "matmul from 0":  # one chain an output: nothing is added up apart and then together
            assert fused == [one for one in instructions if ".f32" in one]
