"""What is tuned of a language model, and what its losses are told."""

import pytest
import torch

import revtune as rt
from revtune.program.data.text import Segment
from revtune.program.language import regularizers
from revtune.program.language.config import Config, Net
from revtune.program.language.model import Out, build
from revtune.program.layers import Model
from revtune.program.tuning import Tuning
from revtune.tuning.hypers.constants import Numbers

H = Numbers(activation=0.5, temporal=2.0)


def batch(*, first: bool = False) -> Segment:
    return Segment(torch.randint(5, (6, 3)), torch.randint(5, (6, 3)), first)


@pytest.mark.parametrize(("model", "hidden"), [("revgru", True), ("lstm", False)])
def test_a_net_has_the_rates_that_act_in_it(model: Model, hidden: bool) -> None:
    one, two = (regularizers.rates_of(Net(model=model, layers=layers)) for layers in (1, 2))
    assert ("hidden_dropout" in one) == hidden
    assert set(two) - set(one) == {"dropout"}


def test_rates_start_where_they_are_and_from_0_elsewhere() -> None:
    config = Config(recipe="x", net=Net(dropout=0.3, output_dropout=0.2, embedding_dropout=0.1), tuned_from=0.02)
    starts = regularizers.starts(config.net, config.tuned_from)
    hypers = Tuning(scale=0.7, tune_scales=False).hyperparameters(starts)
    values = regularizers.by_option(hypers.values())
    assert values == pytest.approx({
        "output_dropout": 0.2, "embedding_dropout": 0.1, "input_dropout": 0.02, "hidden_dropout": 0.02,
        "weight_drop": 0.02, "activation": 0.02, "temporal": 0.02,
    })  # fmt: skip
    assert [name for name in hypers.names if hypers.spec(name).per == "batch"] == ["encode.dropout", "weight_drop"]
    assert list(hypers.scales().values()) == pytest.approx([0.7] * 7)
    at = regularizers.in_force(config.net, values)
    assert (at.embedding_dropout, at.hidden_dropout, at.dropout) == pytest.approx((0.1, 0.02, 0.3))


def test_a_streamed_loss_is_told_of_penalties_and_of_where_the_text_begins() -> None:
    net = build(Net(model="revgru", embedding=4, hidden=4), 5)
    given = regularizers.stream(net, batch(), H)
    assert (given["penalties"].activation, given["penalties"].temporal) == (0.5, 2.0)
    assert "state" not in given
    held_out = regularizers.stream(net, batch(first=True), None)
    assert held_out["state"] is None and "penalties" not in held_out


def test_penalties_of_a_stored_net_are_those_of_a_streamed_one() -> None:
    """On the same outputs: a reversible net's, which a stored loss is given as well."""
    torch.manual_seed(0)
    net, text = build(Net(model="revgru", embedding=4, hidden=4), 5), batch(first=True)
    streamed, _ = rt.rewind_loss(**{**regularizers.stream(net, text, H), "state": None})
    y, _ = net.rnn(net.encode(text.inputs))
    out = Out(net.readout.logits(y), y, y)
    assert regularizers.train_loss(out, text, H).mean().item() == pytest.approx(streamed.item(), rel=1e-5)
    assert regularizers.valid_loss(out, text).item() < streamed.item()
