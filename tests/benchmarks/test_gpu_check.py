"""The check for GPUs runs without one at tiny shapes, where it finds the CPU kernel's bits too."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_check
from tests import interpreted


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("triton"), reason="triton is not installed")
def test_every_check_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interpreted.prepare()
    monkeypatch.setenv("TRITON_INTERPRET", "")  # so that what main sets is gone afterwards
    out = tmp_path / "found.json"
    gpu_check.main(["--dry", "--out", str(out)])
    found = json.loads(out.read_text())
    assert set(gpu_check.CHECKS) < set(found)
    assert all("failed" not in found[check] for check in gpu_check.CHECKS), found
    for check in ("the CPU kernel's bits", "repeats"):
        assert found[check] and all(found[check].values()), found[check]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu_check.main([])
    assert "no NVIDIA GPU is here; --dry runs tiny shapes" in capsys.readouterr().err


def test_a_check_that_fails_is_told_and_the_others_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(sizes: gpu_check.Sizes) -> gpu_check.Figures:
        raise RuntimeError("oh")

    monkeypatch.setattr(gpu_check, "CHECKS", {"one": fails, "other": lambda sizes: {"number": 1}})
    found = gpu_check.run(gpu_check.DRY)
    assert found["one"] == {"failed": "RuntimeError: oh"} and found["other"] == {"number": 1}
    assert "failed" in capsys.readouterr().out
