"""The benchmark of bidirectional taggers measures training steps of all nets, and ours take less memory."""

from pathlib import Path

import pytest
import torch

from benchmarks.both_directions import INPUTS, PAIRS, TAGS, Job, Net, Shape, Tagger, compared, main


@pytest.mark.parametrize("net", [net for pair in PAIRS for net in pair])
def test_each_net_learns(net: Net) -> None:
    model = Tagger(Job(net=net, layers=2, steps=5, rows=2, hidden=8, threads=1))
    model(torch.randn(5, 2, INPUTS), torch.randint(TAGS, (5, 2))).backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in model.parameters())


def test_a_step_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match="RevLSTM: .*hidden_size"):
        compared(Shape(1, 5, 2, 7), PAIRS[0], 1)


@pytest.mark.slow
def test_ours_takes_less_memory_and_the_table_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--rounds", "1", "--shapes", "1,600,8,128", "2,600,8,128", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert (tmp_path / "table.md").read_text() == printed
    times_less = [float(line.split("|")[5]) for line in printed.splitlines()[2:]]
    assert len(times_less) == 4 and min(times_less[:2]) > 5 and min(times_less[2:]) > 2
