"""The choice of Triton's kernel: by name alone, refused in a sentence where it cannot run."""

import importlib.util
import inspect
import shutil
import sys
from importlib.util import find_spec

import pytest
import torch

import revtune as rt
from revtune.errors import BackendError
from revtune.program.cli.doctor import lines
from revtune.reversible.kernel import backend, engine

needs_triton = pytest.mark.skipif(not find_spec("triton"), reason="triton is not installed")


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton as it is at a user's, who has a GPU or not, whatever the tests of its kernel have imported."""
    monkeypatch.setattr(backend, "triton_takes", lambda device: device.type == "cuda")


@pytest.mark.usefixtures("on_a_gpu")
@pytest.mark.parametrize(
    ("net", "x", "got"),
    [
        (rt.RevGRU, torch.zeros(3, 2, 4), "RevGRU, torch.float32 on cpu"),
        (rt.RevGRU, torch.zeros(3, 2, 4, dtype=torch.float64), "RevGRU, torch.float64 on cpu"),
        (rt.RevLSTM, torch.zeros(3, 2, 4), "RevLSTM, torch.float32 on cpu"),
    ],
)
def test_what_it_does_not_run_is_refused(net: type[rt.RevGRU] | type[rt.RevLSTM], x: torch.Tensor, got: str) -> None:
    layer = net(4, 6, backend="triton", dtype=x.dtype)
    with pytest.raises(ValueError, match=f'backend="triton" runs RevGRU and RevLSTM in float32 on .*; got {got}'):
        layer(x)
    with pytest.raises(ValueError, match=f"got {got}"):
        rt.rewind_outputs(layer, x, readout=torch.nn.Linear(6, 1))


@pytest.mark.usefixtures("on_a_gpu")
def test_a_gpu_gets_it_only_where_it_is_asked_for() -> None:
    """It has not run on hardware yet."""
    like = torch.empty(1, device="meta")
    cuda = type("OnCuda", (), {"device": torch.device("cuda"), "dtype": torch.float32})()
    weights = dict.fromkeys(("ih", "hh"), like)
    for cell in (rt.rev_gru(), rt.rev_lstm()):
        assert backend.chosen("triton", cell, cuda, weights, {}) == "triton"
        assert backend.chosen("auto", cell, cuda, weights, {}) == ""
    with pytest.raises(ValueError, match='backend="triton" runs RevGRU'):
        backend.chosen("triton", rt.rev_gru(), cuda, {**weights, "peephole": like}, {})


def test_without_the_package_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.startswith("revtune.reversible.kernel.triton")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(BackendError, match=r'backend="triton" needs the package triton, as revtune\[gpu\] has it'):
        rt.RevGRU(4, 6, backend="triton")(torch.zeros(3, 2, 4))


@pytest.mark.parametrize("there", [False, True])
def test_the_doctor_says_what_a_gpu_runs(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if there else None)
    monkeypatch.setattr(backend, "version", lambda name: "3.7.1")
    told = {line.partition(":")[0]: line for line in lines()}["backend on a GPU"]
    assert ("triton 3.7.1 where" in told) == there and ("extra gpu" in told) != there


def test_the_doctor_says_which_gpus_there_are_or_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert backend.explain_gpu().endswith("; this torch has no CUDA")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert backend.explain_gpu().endswith("; CUDA finds no GPU")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: f"NVIDIA {number}")
    assert backend.explain_gpu().endswith("; cuda:0 is NVIDIA 0, cuda:1 is NVIDIA 1")


@needs_triton
def test_the_doctor_misses_a_c_compiler_where_triton_would_need_one(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = "it would need a C compiler, and there is none"
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/gcc" if name == "gcc" else None)
    assert missing not in backend.explain_gpu()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert missing in backend.explain_gpu()


@needs_triton
@pytest.mark.skipif(not backend.load(), reason="there is no C++ kernel")
def test_its_operators_take_what_those_of_the_cpu_kernel_take() -> None:
    """Under the same names, in the same order, with the same defaults."""
    operators = engine.operators("triton")
    shared = [name for name in operators.__all__ if name != "stacks"]  # which a CPU does not need
    assert {"forward", "rewind", "recall", "gradient", "digest", "project_into"} <= set(shared)
    for name in shared:
        schema = getattr(torch.ops.revtune, name).default._schema
        parameters = inspect.signature(getattr(operators, name)).parameters.values()
        assert [parameter.name for parameter in parameters] == [argument.name for argument in schema.arguments], name
        for parameter, argument in zip(parameters, schema.arguments, strict=True):
            assert (parameter.default is inspect.Parameter.empty) == (not argument.has_default_value()), name
