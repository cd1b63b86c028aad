"""What is told of a run's folder: commands that a shell takes, and checkpoints only where there are some."""

import shlex
from pathlib import Path

import pytest

from revtune.program.errors import Problem
from revtune.program.runs.folder import command_line, intact, refuse_taken
from revtune.program.runs.metrics import Metrics


def test_commands_are_quoted_for_a_shell(tmp_path: Path) -> None:
    folder = tmp_path / "my run; rm -rf 'x'"
    words = ["revtune", "train", "--resume", str(folder)]
    assert shlex.split(command_line("train", "--resume", folder)) == words
    folder.mkdir()
    (folder / "config.json").touch()
    with pytest.raises(Problem) as caught:
        refuse_taken(folder)
    hint = str(caught.value).removeprefix(f"{folder} already holds a run; ").removesuffix(" goes on with it")
    assert shlex.split(hint) == words


def test_a_checkpoint_is_said_to_be_intact_only_where_there_is_one(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl", 0)
    metrics.file.close()
    metrics.file = open("/dev/full", "ab", buffering=0)
    for told in (
        "cannot write .*: No space left on device$",
        "No space left on device; the last checkpoint is intact$",
    ):
        with pytest.raises(Problem, match=told):
            metrics.add({"step": 1})
        (tmp_path / "checkpoint.safetensors").touch()
    assert intact(tmp_path / "other") == ""
    metrics.close()
