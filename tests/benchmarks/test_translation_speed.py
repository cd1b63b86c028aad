"""Times of training updates, contestants taking turns."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.translation_speed import timed
from revtune.program.translation.learner import TranslationLearner
from revtune.program.translation.task import Text, TranslationStudy
from revtune.program.translation.translator import Net
from tests.tiny_pairs import write_pairs


def test_contestants_take_turns_over_the_same_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = TranslationStudy(text=Text(data=write_pairs(tmp_path)), net=Net(embedding=8, hidden=8, attend="emb"))
    studies = {name: replace(base, net=replace(base.net, model=name)) for name in ("gru", "revgru")}
    seen: list[tuple[str, tuple[int, ...]]] = []
    original = TranslationLearner.learn

    def learn(self: Any, some: Any) -> float:
        seen.append((self.task.study.net.model, tuple(some.source.flatten().tolist())))
        return original(self, some)

    monkeypatch.setattr(TranslationLearner, "learn", learn)
    found = timed(studies, rounds=2, batches=2)
    assert [name for name, _ in seen[::2]] == ["gru", "revgru", "gru", "revgru", "revgru", "gru"]
    assert len({batch for _, batch in seen}) == 2 and seen[0][1] == seen[2][1]
    assert {name: len(seconds) for name, seconds in found.items()} == {"gru": 2, "revgru": 2}
    assert all(second > 0 for seconds in found.values() for second in seconds)
