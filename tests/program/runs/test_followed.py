"""Schedules that plain runs take from tuned ones, and folders that have none."""

import json
from pathlib import Path

import pytest

from revtune.program.errors import Problem
from revtune.program.runs.followed import Followed, at_the_end, check_fits, keep, schedule_of, whose
from revtune.tuning.hypers.kinds import Between, Hyper, Integer, Positive, Rate

SCHEDULE = {"steps": [0, 4], "values": {"drop": [0.1, 0.3]}, "rates": {"drop": ["drop.p"]}}
RECORDS = [{"step": step, "values": {"drop": value}} for step, value in ((4, 0.2), (4, 0.3), (6, 0.4))]


def test_a_schedule_or_its_end_is_taken(tmp_path: Path) -> None:
    (tmp_path / "schedule.json").write_text(json.dumps(SCHEDULE))
    whole, last = Followed(replay=tmp_path).schedule(), Followed(values_of=tmp_path).schedule()
    assert whole == {**SCHEDULE, "of": {"run": str(tmp_path), "step": None}}
    end = {**SCHEDULE, "steps": [0], "values": {"drop": [0.3]}}
    assert last == {**end, "of": {"run": str(tmp_path), "step": 4}}
    assert whose(whole) == f"the schedule of {tmp_path}" and whose(SCHEDULE) == "the schedule of another run"
    assert whose(last) == f"the last values of {tmp_path}, which it had from step 4 on"
    assert Followed().schedule() is None
    assert at_the_end(SCHEDULE)["values"] == {"drop": [0.3]} and SCHEDULE["values"] == {"drop": [0.1, 0.3]}


def test_what_a_run_has_followed_can_be_followed_again(tmp_path: Path) -> None:
    (tmp_path / "schedule.json").write_text(json.dumps(SCHEDULE))
    for followed in (Followed(replay=tmp_path), Followed(values_of=tmp_path)):
        (tmp_path / "again").mkdir(exist_ok=True)
        schedule = followed.schedule() or {}
        keep(schedule, tmp_path / "again")
        assert Followed(replay=tmp_path / "again").schedule() == schedule
        with pytest.raises(Problem, match="again has no schedule to follow: schedule.json is not there"):
            Followed(values_of=tmp_path / "again").schedule()


def test_a_tasks_schedule_is_its_history(tmp_path: Path) -> None:
    (tmp_path / "history.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    found = schedule_of(tmp_path, {"drop": 0.1})
    assert found == {"steps": [0, 4, 6], "values": {"drop": [0.1, 0.3, 0.4]}, "rates": {"drop": []}}


def test_what_cannot_be_followed_is_told(tmp_path: Path) -> None:
    with pytest.raises(Problem, match="has no schedule to follow: schedule.json is not there"):
        schedule_of(tmp_path)
    with pytest.raises(Problem, match="has no schedule to follow: neither schedule.json nor history.jsonl is there"):
        schedule_of(tmp_path, {"drop": 0.1})
    with pytest.raises(Problem, match="--replay and --values-of cannot both be followed"):
        Followed(replay=tmp_path, values_of=tmp_path).schedule()
    for content in ("", "{}", "[1]", json.dumps({**SCHEDULE, "steps": [1, 4]})):
        (tmp_path / "schedule.json").write_text(content)
        with pytest.raises(Problem, match=r"schedule.json holds no schedule: "):
            schedule_of(tmp_path, {"drop": 0.1})
    (tmp_path / "schedule.json").unlink()
    for line in ("{}", '{"step": 1, "values": {"other": 1}}', '{"step": -1, "values": {"drop": 0.1}}', "x"):
        (tmp_path / "history.jsonl").write_text(line + "\n")
        with pytest.raises(Problem, match="history.jsonl is no history of this run's hyperparameters: "):
            schedule_of(tmp_path, {"drop": 0.1})


def test_a_run_that_tunes_follows_nobody(tmp_path: Path) -> None:
    Followed().check_untuned("--tune stn")
    Followed(replay=tmp_path).check_untuned(None)
    with pytest.raises(Problem, match="--values-of is for a run that tunes nothing itself, got --tune stn"):
        Followed(values_of=tmp_path).check_untuned("--tune stn")
    with pytest.raises(Problem, match="it has the hyperparameters drop, and this run a, b"):
        check_fits(SCHEDULE, {"b": Rate(0.1), "a": Rate(0.1)})


@pytest.mark.parametrize(
    ("hyper", "told"),
    [
        (Rate(0.2), "drop must be from 0 to 1, got 1.5"), (Positive(0.2), "drop must be from 0 to inf, got -1"),
        (Between(0.2, 0.1, 1.2), "drop must be from 0.1 to 1.2, got 1.5"), (Integer(1, 0, 1), "from 0 to 1, got 1.5"),
    ],
)  # fmt: skip
def test_values_that_none_can_have_are_told(hyper: Hyper, told: str) -> None:
    value = -1 if isinstance(hyper, Positive) else 1.5
    with pytest.raises(Problem, match=told):
        check_fits({**SCHEDULE, "values": {"drop": [1.0, value]}}, {"drop": hyper})
    check_fits({**SCHEDULE, "values": {"drop": [1.0, 1.0]}}, {"drop": hyper})
