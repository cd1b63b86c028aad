"""Bits that translators store: positions counted by hand, and a slice's floats among them."""

from pathlib import Path

import pytest

from revtune.program.translation.stored_bits import counted, kept_units, saved, stored
from revtune.program.translation.task import Text, TranslationStudy, TranslationTask
from revtune.program.translation.translator import Net
from tests.tiny_pairs import write_pairs

NET = Net(embedding=8, hidden=8, attend="emb+slice:2")


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> TranslationTask:
    data = write_pairs(tmp_path_factory.mktemp("data"))
    return TranslationTask(TranslationStudy(text=Text(data=data), net=NET))


def test_positions_are_those_of_the_training_text(task: TranslationTask, tmp_path: Path) -> None:
    found = counted(task.pairs, 1, seed=1)
    words = sum(len(pair[0]) for pair in task.pairs.splits["train"].pairs)
    assert found["encoder"] == {"live": words, "padded": words, "unsorted": words}, "batches of one need no padding"
    longest = max(len(pair[1]) for pair in task.pairs.splits["train"].pairs)
    everything = counted(task.pairs, 200, seed=1)["decoder"]
    assert everything["padded"] == everything["unsorted"] == 200 * longest


def test_a_slice_is_counted_in_floats() -> None:
    positions = {"live": 10, "padded": 20}
    found, states = saved(NET, "encoder", 1.0, positions), 8 * 32
    assert found == {"live": 10 * states / (10 * 8 + 10 * 2 * 32), "padded": 20 * states / (10 * 8 + 20 * 2 * 32)}
    assert saved(NET, "decoder", 1.0, positions)["live"] == 32
    assert kept_units(Net(hidden=8, attend="full")) == 8 and kept_units(Net(hidden=8, attend="emb")) == 0


def test_what_a_buffer_takes_is_counted_for_reversible_layers_alone(task: TranslationTask) -> None:
    found = stored(task, task.net(), batches=2)
    for side in ("encoder", "decoder"):
        assert 0 < found[side]["forgotten"] < found[side]["stored"]
    ordinary = TranslationTask(
        TranslationStudy(text=task.study.text, net=Net(model="gru", embedding=8, hidden=8, attend="full"))
    )
    assert all(set(one) == {"positions"} for one in stored(ordinary, ordinary.net(), batches=2).values())


def test_a_slice_is_kept_at_padded_positions_too(task: TranslationTask) -> None:
    some = task.train_batch(0)
    annotations, _ = task.net().encoded(some.source, some.source_lengths)
    assert annotations.shape[:2] == some.source.shape and int(some.source_lengths.sum()) < some.source.numel()
