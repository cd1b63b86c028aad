"""What a process knows of those beside it before it joins them."""

import pytest
import torch

from revtune.processes import Processes
from revtune.program.cli.main import main
from revtune.program.errors import Problem
from revtune.program.runs.together import own_columns, own_device, own_state, together

LAUNCHED = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["doctor"], "revtune doctor"), (["compare", "mnist"], "revtune compare"),
        (["train", "mnist"], "revtune train mnist"),
    ],
)  # fmt: skip
def test_what_one_process_does_is_refused_to_several(
    arguments: list[str], what: str, launched: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    expected = f"revtune: {what} runs in one process, got 3; start it without torchrun or accelerate launch\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("ACCELERATE_USE_FSDP", "true", "fsdp must be false, got true: each process holds all weights"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "deepspeed must be false, got true"),
        ("ACCELERATE_MIXED_PRECISION", "fp16", "mixed precision must be no, got fp16: runs compute in float32"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "accumulation must be 1, got 4: --batch is that of all"),
    ],
)
def test_settings_of_accelerate_are_refused(
    variable: str, value: str, expected: str, launched: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("accelerate")
    launched.setenv(variable, value)
    with pytest.raises(Problem, match=expected), together("cpu", 1):
        pass


def test_each_process_has_a_gpu_of_its_own(launched: pytest.MonkeyPatch) -> None:
    assert own_device("cpu") == "cpu"
    with pytest.raises(Problem, match="--device must be cuda with several processes, which each take one, got cuda:1"):
        own_device("cuda:1")
    launched.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(Problem, match="each process on a machine needs a GPU, and there are 1"):
        own_device("cuda")
    launched.setattr(torch.cuda, "device_count", lambda: 2)
    assert own_device("cuda") == "cuda:1"
    launched.setenv("WORLD_SIZE", "1")
    assert own_device("cuda:1") == "cuda:1"


def test_columns_are_shared_as_evenly_as_can_be() -> None:
    processes = Processes()
    processes.count = 3
    state, found = torch.arange(7.0).expand(2, 7), []
    for processes.rank in range(3):
        found.append(own_columns(processes, 7))
        assert torch.equal(own_state(processes, (state, None))[0], state[:, found[-1]])
    assert [one.stop - one.start for one in found] == [2, 2, 3] and found[-1].stop == 7
