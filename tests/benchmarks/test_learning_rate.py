"""The benchmark of learning rates runs each way once, and goes on where its file ends."""

import json
import math
from pathlib import Path

import pytest

from benchmarks.learning_rate import OFF, WAYS, jobs, main
from tests.tiny_runs import write_sums


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "ptb").mkdir()
    write_sums(tmp_path / "ptb/ptb.valid.txt")
    return tmp_path


@pytest.mark.parametrize("way", WAYS)
def test_each_way_takes_its_runs_once(way: str, data: Path) -> None:
    out = data / "runs.jsonl"
    given = ["--data", str(data), "--out", str(out), "--steps", "6", "--seeds", "1", "--only", way]
    main(given)
    runs = [json.loads(line) for line in out.read_text().splitlines()]
    assert {run["way"] for run in runs} == {way}
    most = math.inf if way == "share-0.3" else 6  # which is far too high on purpose, and soon explodes
    assert all(0 < run["loss"] < most and len(run["rates"]) == 6 for run in runs)
    main(given)
    assert len(out.read_text().splitlines()) == len(runs)


def test_the_kept_way_begins_a_tenth_and_ten_times_off_with_each_seed() -> None:
    kept = [
        job for job in jobs([1, 2, 3]) if job.way == "mechanic" and job.optimizer == "sgd" and job.model == "revgru"
    ]
    assert sorted({job.lr for job in kept}) == [8.0 * off for off in OFF]
    assert {job.seed for job in kept} == {1, 2, 3}
