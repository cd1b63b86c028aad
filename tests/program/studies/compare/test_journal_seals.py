"""A search that was stopped knows its journal, its measurements, its terms and its data again, and nothing edited."""

import dataclasses
import json
import os
import signal
from pathlib import Path

import pytest

from revtune.program.errors import Problem
from revtune.program.recipes import find
from revtune.program.runs.seals import Seals
from revtune.program.studies.compare.journal_seals import JOURNAL, METRICS, last_seal
from revtune.program.studies.compare.search import Search
from revtune.program.tasks.image_task import ImageStudy
from tests.tiny_contests import quiet, tiny_options, tiny_study


@pytest.fixture
def searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a search of some trials, with terms that it is begun on."""
    options = tiny_options(tmp_path, monkeypatch)
    folder = tmp_path / "search"
    folder.mkdir()
    (folder / "terms.json").write_text('{"steps": 4}')
    search = opened(folder, options.study)
    search.learn(20.0, "wall", quiet())
    search.close()
    return folder


def opened(folder: Path, study: ImageStudy | None = None, *, accept_edits: bool = False) -> Search:
    study = study or tiny_study(folder.parent / "data")
    seals = Seals.of(folder, ("terms.json",), accept_edits=accept_edits)
    return Search(find("mnist").task(study), "random", folder, 4, "again", seals)


def test_a_journal_that_was_cut_off_in_a_line_goes_on(searched: Path) -> None:
    whole = (searched / JOURNAL).read_bytes()
    search = opened(searched)
    search.close()
    trials = len(search.ended())
    for rest in (b'{"op_code": 4, "wor', whole.splitlines()[-1][:40]):
        with open(searched / JOURNAL, "ab") as file:
            file.write(rest)
        search = opened(searched)
        search.close()
        assert len(search.ended()) == trials


def test_the_last_seal_covers_all_trials(searched: Path) -> None:
    search = opened(searched)
    search.close()
    seal = last_seal(searched / JOURNAL)
    assert seal is not None and {JOURNAL, METRICS, "terms.json", "data"} == seal.digests.keys()
    before = (searched / JOURNAL).read_bytes()[: seal.before]
    records = [json.loads(line) for line in before.splitlines()]
    told = {record.get("trial_id") for record in records if "state" in record}
    assert {trial.number for trial in search.ended()} <= told


@pytest.mark.parametrize("name", [JOURNAL, METRICS, "terms.json"])
def test_an_edited_file_is_refused_by_name_or_taken(searched: Path, name: str) -> None:
    path = searched / name
    whole = path.read_text()
    old = {JOURNAL: '"user_attr":{"loss":', METRICS: '"wall": ', "terms.json": '"steps": '}[name]
    path.write_text(whole.replace(old, f"{old}1", 1))
    assert path.read_text() != whole
    with pytest.raises(Problem, match=f"{path} (is not the file that .* was written with|was edited).*--accept-edits"):
        opened(searched)
    opened(searched, accept_edits=True).close()
    opened(searched).close()  # it is sealed anew


def test_a_journal_that_lost_trials_is_refused(searched: Path) -> None:
    lines = (searched / JOURNAL).read_bytes().splitlines(keepends=True)
    seals = [number for number, line in enumerate(lines) if b'"seals"' in line]
    assert len(seals) > 2
    (searched / JOURNAL).write_bytes(b"".join(lines[: seals[-3] + 1]))
    with pytest.raises(Problem, match=r"journal.log is damaged: it lacks trials \d \d, which metrics.jsonl has"):
        opened(searched)


def test_other_data_are_refused(searched: Path) -> None:
    study = tiny_study(searched.parent / "data")
    with pytest.raises(Problem, match="the data are not those that .*search was searched on"):
        opened(searched, dataclasses.replace(study, images=30))


def test_journals_of_earlier_versions_have_no_seals(searched: Path) -> None:
    lines = (searched / JOURNAL).read_bytes().splitlines(keepends=True)
    (searched / JOURNAL).write_bytes(b"".join(line for line in lines if b'"seals"' not in line))
    assert last_seal(searched / JOURNAL) is None
    search = opened(searched)
    trials = len(search.ended())
    search.learn(search.clock.wall + 8, "wall", quiet())
    search.close()
    assert len(search.ended()) > trials and last_seal(searched / JOURNAL) is not None


def test_a_search_that_is_stopped_while_a_trial_ends_is_not_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = tiny_options(tmp_path, monkeypatch).study
    (tmp_path / "search").mkdir()
    search = opened(tmp_path / "search", study)
    seal = search._seal

    def stopped() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        seal()

    monkeypatch.setattr(search, "_seal", stopped)
    with pytest.raises(Problem, match="stopped in trial 0 of random; again goes on") as caught:
        search.learn(20.0, "wall", quiet())
    search.close()
    assert caught.value.code == 130 and len(search.ended()) == 1
    search = opened(tmp_path / "search", study)
    search.learn(20.0, "wall", quiet())
    search.close()
    assert len(search.ended()) > 1 and search.clock.now()["wall"] >= 20.0
