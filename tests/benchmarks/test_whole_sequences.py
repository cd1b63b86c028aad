"""The benchmark of losses over whole sequences measures training steps of both nets, and ours takes less memory."""

import pytest
import torch

from benchmarks.whole_sequences import INPUTS, LOSSES, NETS, Contestant, Job, Loss, Net, compared, main


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("loss", LOSSES)
def test_each_net_learns_from_each_loss(net: Net, loss: Loss) -> None:
    job = Job(net=net, loss=loss, steps=12, rows=2, hidden=8, given=5, letters=3, threads=1)
    model = Contestant(job)
    LOSSES[loss](job)(model(torch.randn(12, 2, INPUTS))).backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in model.parameters())


def test_a_step_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match="RevGRU under ctc: .*hidden_size"):
        compared("ctc", 1, hidden=7, threads=1)


@pytest.mark.slow
def test_ours_takes_less_memory_and_the_table_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert compared("policy", 1, steps=600, timed=1, threads=1)["memory"] < 0.2
    main(["--rounds", "1", "--steps", "100"])
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == list(LOSSES)
