"""Accelerate's loop and saved states around a loss that is rewound."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

NEEDS = ("accelerate",)
TWO = """
import sys
from examples import accelerate_loop as example
losses, run = example.train(sys.argv[1], 12, units=16, columns=4, steps=20, text=example.MANUAL[: 4 * 401])
run.accelerator.print(run.accelerator.num_processes, *losses)
"""


def test_a_run_goes_on_from_what_was_saved(example: Any, tmp_path: Path) -> None:
    sizes = {"units": 16, "columns": 4, "steps": 20, "text": example.MANUAL[: 4 * 401]}
    first, _ = example.train(str(tmp_path / "parts"), 6, **sizes)
    second, parts = example.train(str(tmp_path / "parts"), 16, resume=True, **sizes)
    losses, whole = example.train(str(tmp_path / "whole"), 16, **sizes)
    assert first + second == losses and losses[-1] < losses[0]
    assert all(torch.equal(*pair) for pair in zip(parts.model.parameters(), whole.model.parameters(), strict=True))
    assert torch.equal(parts.state, whole.state) and parts.state.dtype == torch.float64


@pytest.mark.slow
def test_two_processes_read_their_own_rows_of_each_segment(example: Any, tmp_path: Path) -> None:
    """And one goes on from where two stopped."""
    sizes = {"units": 16, "columns": 4, "steps": 20, "text": example.MANUAL[: 4 * 401]}
    root = Path(__file__).parent.parent.parent
    (tmp_path / "two.py").write_text(TWO, encoding="utf-8")
    # not by `accelerate launch --cpu`, which starts several processes by MPI alone
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, str(tmp_path / "two.py"), str(tmp_path / "two")], check=True, capture_output=True, text=True,
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    losses, _ = example.train(str(tmp_path / "one"), 16, **sizes)
    count, *told = done.stdout.split()[-13:]
    assert count == "2" and [float(loss) for loss in told] == pytest.approx(losses[:12], rel=1e-4)
    after, _ = example.train(str(tmp_path / "two"), 16, resume=True, **sizes)
    assert after == pytest.approx(losses[12:], rel=1e-4)
