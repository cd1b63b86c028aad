"""What a run computes by: it goes on by the same, or by what it was told to, and says so."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from revtune.program.errors import Problem
from revtune.program.runs.arithmetic import SAME_BITS, Arithmetic
from revtune.reversible.kernel import backend as native
from tests.backends import on_both

KERNEL = Arithmetic(backend="native", instructions="avx512", torch_version="2.13.0", processor="x86_64 AVX512")
PLAIN = dataclasses.replace(KERNEL, instructions="plain")
REFERENCE = dataclasses.replace(KERNEL, backend="reference", instructions="")
CHECKPOINT = Path("checkpoint.safetensors")


@on_both
def test_here_is_what_runs(backend: str) -> None:
    here = Arithmetic.here(torch.device("cpu"))
    assert here.backend == backend
    assert here.instructions == (native.instructions() if backend == "native" else "")
    assert torch.__version__.startswith(here.torch_version)
    assert Arithmetic.of(here.to_json(), CHECKPOINT) == here


@pytest.mark.parametrize(
    "stored", [1, {}, {**KERNEL.to_json(), "torch_version": 2}, {**KERNEL.to_json(), "threads": "1"}]
)
def test_anything_else_that_is_stored_is_refused(stored: Any) -> None:
    with pytest.raises(Problem, match=r"checkpoint\.safetensors does not tell what its run computed by, but "):
        Arithmetic.of(stored, CHECKPOINT)


@pytest.mark.parametrize(
    ("before", "here", "ways"),
    [
        (KERNEL, REFERENCE, "REVTUNE_BACKEND=native goes on as before, REVTUNE_BACKEND=reference all the same"),
        (REFERENCE, KERNEL, "REVTUNE_BACKEND=reference goes on as before, REVTUNE_BACKEND=native all the same"),
        (KERNEL, PLAIN, "REVTUNE_ISA=avx512 goes on as before, REVTUNE_ISA=plain all the same"),
    ],
)
def test_another_backend_or_instruction_set_is_refused_unless_it_is_asked_for(
    before: Arithmetic, here: Arithmetic, ways: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for unsaid in ("", "auto"):
        monkeypatch.setenv("REVTUNE_BACKEND", unsaid)
        with pytest.raises(Problem) as caught:
            here.go_on(before, Path("run"))
        assert str(caught.value) == f"run ran on {before}; on {here} its last digits would differ; {ways}"
    assert capsys.readouterr().err == ""
    name, _, value = ways.removesuffix(" all the same").rpartition(", ")[2].partition("=")
    monkeypatch.setenv(name, value)
    here.go_on(before, Path("run"))
    assert capsys.readouterr().err == f"revtune: run ran on {before}; its last digits may differ on {here}\n"


def test_another_torch_or_processor_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    here = dataclasses.replace(KERNEL, instructions="avx2", processor="x86_64 AVX2")
    here.go_on(KERNEL, Path("run"))
    assert capsys.readouterr().err == (
        "revtune: run ran on the native kernel (avx512) and torch 2.13.0 on x86_64 AVX512; its last digits may differ "
        "on the native kernel (avx2) and torch 2.13.0 on x86_64 AVX2\n"
    )


def test_what_gives_the_same_bits_goes_on_without_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    for before in (KERNEL, dataclasses.replace(KERNEL, instructions=SAME_BITS["avx512"])):
        KERNEL.go_on(before, Path("run"))
    assert capsys.readouterr() == ("", "")
