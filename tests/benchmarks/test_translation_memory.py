"""Memory of translators: what it falls into, and that the reversible one takes less."""

import pytest

from benchmarks.translation_memory import Job, measured
from revtune.program.translation.translator import Net

LONG = {"source_words": 50, "target_words": 50, "steps": 200, "batch": 64}


@pytest.fixture(scope="module")
def figures() -> dict[str, dict[str, int]]:
    nets = {
        "ours": Net(hidden=64, embedding=16, attend="emb"),
        "torch": Net(model="gru", hidden=64, embedding=16, attend="full"),
    }
    return {name: measured(Job(net=net, **LONG)) for name, net in nets.items()}


@pytest.mark.slow
def test_parts_are_no_more_than_the_whole(figures: dict[str, dict[str, int]]) -> None:
    for found in figures.values():
        assert 0 < found["held"] <= found["encoder"] and max(found["encoder"], found["decoder"]) < 1.2 * found["step"]


@pytest.mark.slow
def test_rewinding_takes_less(figures: dict[str, dict[str, int]]) -> None:
    ours, theirs = figures["ours"], figures["torch"]
    assert all(3 * ours[part] < theirs[part] for part in ("step", "held", "decoder"))


def test_one_that_fails_says_why() -> None:
    told = measured(Job(net=Net(hidden=8, attend="slice:100"), **LONG))
    assert "--attend must be" in str(told["error"])
