"""Runs of several processes by torchrun: one process's losses, a worker that dies, a resume on another number."""

import json
import math
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("accelerate")

from revtune.program.cli.main import main
from revtune.program.language import trainer
from revtune.program.runs import checkpoint
from tests.program.language.launched import DIES_AT, runs
from tests.tiny_runs import Silent, losses, write_sums

pytestmark = pytest.mark.slow
HOUSE = Path(__file__).parents[3]
EXACT = 1e-5
"""How far the losses of 50 steps may be from one process's, relatively: float32 sums are in another order, and each
step goes on from the last one's."""

TINY = [
    "--embedding", "8", "--hidden", "8", "--layers", "2", "--dropout", "0.3", "--batch", "4", "--length", "24",
    "--steps", "16", "--warmup", "2", "--valid-every", "8", "--valid-batch", "4", "--save-every", "3", "--tune", "off",
]  # fmt: skip


def launched(*command: str, launcher: list[str] | None = None, **more: str) -> subprocess.CompletedProcess[str]:
    """What two processes say."""
    start = launcher or ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(HOUSE), "OMP_NUM_THREADS": "1", **more}
    return subprocess.run([sys.executable, *start, *command], env=environment, capture_output=True, text=True)


def task(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return launched(str(HOUSE / "tests/program/language/launched.py"), name, *arguments)


def assert_close(one: Path, other: Path, *, tolerance: float = EXACT) -> None:
    ours, theirs = losses(one), losses(other)
    assert [told[:2] for told in ours] == [told[:2] for told in theirs] and ours
    for (step, name, loss), (*_, expected) in zip(ours, theirs, strict=True):
        assert math.isclose(loss, expected, rel_tol=tolerance), (step, name, loss, expected)


def told(lines: str) -> list[str]:
    return [line for line in lines.splitlines() if line.startswith("revtune: ")]


def test_two_processes_learn_as_one(tmp_path: Path) -> None:
    write_sums(tmp_path / "text")
    done = task("learn", str(tmp_path))
    assert done.returncode == 0, done.stderr
    for name, each in runs(tmp_path).items():
        alone = trainer.start(each, tmp_path / "one" / name, Silent()).folder
        assert_close(tmp_path / "two" / name, alone)
        files = [checkpoint.read(folder / "checkpoint.safetensors") for folder in (tmp_path / "two" / name, alone)]
        shapes = [{key: tensor.shape for key, tensor in file.tensors.items()} for file in files]
        assert shapes[0] == shapes[1]  # states of all streams, whichever process had them


def test_what_processes_must_share_is_refused_by_name(tmp_path: Path) -> None:
    write_sums(tmp_path / "text")
    done = task("refuse", str(tmp_path))
    assert done.returncode == 0, done.stderr


def test_a_killed_worker_ends_the_run_in_one_sentence_and_another_number_goes_on(tmp_path: Path) -> None:
    write_sums(tmp_path / "text")
    options = ["train", "text", "--file", str(tmp_path / "text"), *TINY]
    done = task("dying", *options, "--out", str(tmp_path / "two"))
    assert done.returncode not in (0, 2)
    (sentence,) = told(done.stderr)
    saved = DIES_AT // 3 * 3
    assert "another of 2 processes has ended" in sentence and f"goes on after step {saved}, on any number" in sentence
    assert main([*options, "--out", str(tmp_path / "one")]) == 0
    assert main(["train", "--resume", str(tmp_path / "two")]) == 0
    assert_close(tmp_path / "two", tmp_path / "one")
    # and the other way round: begun by one process, gone on with by two
    steps = options.index("--steps") + 1
    half = [*options[:steps], "6", *options[steps + 1 :]]
    assert main([*half, "--out", str(tmp_path / "half")]) == 0
    config = json.loads((tmp_path / "half" / "config.json").read_text())
    config["learning"]["steps"] = 16
    (tmp_path / "half" / "config.json").write_text(json.dumps(config))
    done = launched("-m", "revtune", "train", "--resume", str(tmp_path / "half"), "--accept-edits")
    assert done.returncode == 0, done.stderr
    assert len([line for line in losses(tmp_path / "half") if line[1] == "loss"]) == 16
    assert done.stdout.count("the run is in") == 1


def test_accelerate_launches_it_and_its_settings_are_refused(tmp_path: Path) -> None:
    write_sums(tmp_path / "text")
    accelerate = ["-m", "accelerate.commands.launch", "--num_processes", "2", "--num_machines", "1"]
    options = ["-m", "revtune", "train", "text", "--file", str(tmp_path / "text"), *TINY]
    done = launched(*options, "--out", str(tmp_path / "two"), launcher=[*accelerate, "--cpu"])
    (sentence,) = told(done.stderr)
    assert "starts several processes on CPUs by MPI alone" in sentence and "torchrun --nproc-per-node N" in sentence
    several = [*accelerate, "--multi_gpu", "--mixed_precision"]  # by torchrun, be there GPUs or not
    done = launched(*options, "--out", str(tmp_path / "two"), launcher=[*several, "bf16"])
    (sentence,) = told(done.stderr)
    assert sentence == "revtune: accelerate launch: mixed precision must be no, got bf16: runs compute in float32"
    done = launched(*options, "--out", str(tmp_path / "two"), launcher=[*several, "no"])
    assert done.returncode == 0, done.stderr
    assert main([*options[2:], "--out", str(tmp_path / "one")]) == 0
    assert_close(tmp_path / "two", tmp_path / "one")


@pytest.fixture
def machines() -> Iterator[list[str]]:
    """Two network namespaces with a cable between them, 10.77.0.1 and 10.77.0.2."""
    names = [f"rt{uuid.uuid4().hex[:6]}{end}" for end in "ab"]
    made = subprocess.run(["ip", "netns", "add", names[0]], capture_output=True)
    if made.returncode:
        pytest.skip("network namespaces cannot be made here: they need root and iproute2")
    try:
        subprocess.run(["ip", "netns", "add", names[1]], check=True)
        cable = ["type", "veth", "peer", "name", "cable", "netns", names[1]]
        subprocess.run(["ip", "link", "add", "cable", "netns", names[0], *cable], check=True)
        for number, name in enumerate(names, 1):
            inside = ["ip", "netns", "exec", name, "ip"]
            subprocess.run([*inside, "address", "add", f"10.77.0.{number}/24", "dev", "cable"], check=True)
            for link in ("cable", "lo"):
                subprocess.run([*inside, "link", "set", link, "up"], check=True)
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def test_two_machines_learn_as_one(tmp_path: Path, machines: list[str]) -> None:
    write_sums(tmp_path / "text")
    options = ["train", "text", "--file", str(tmp_path / "text"), *TINY]
    environment = {**os.environ, "PYTHONPATH": str(HOUSE), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "cable"}
    nodes = []
    for rank, name in enumerate(machines):
        launch = ["--nnodes", "2", "--node-rank", str(rank), "--nproc-per-node", "1", "--master-addr", "10.77.0.1"]
        command = [sys.executable, "-m", "torch.distributed.run", *launch, "-m", "revtune", *options]
        command += ["--out", str(tmp_path / "two")]
        nodes.append(
            subprocess.Popen(
                ["ip", "netns", "exec", name, *command],
                env=environment,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )  # fmt: skip
        )
    said = [node.communicate() for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert [out.count("the run is in") for out, _ in said] == [1, 0]
    assert main([*options, "--out", str(tmp_path / "one")]) == 0
    assert_close(tmp_path / "two", tmp_path / "one")
