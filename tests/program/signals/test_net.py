"""Nets that read signals: whole, checkpointed and truncated gradients, and how they begin."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from revtune.program.signals import net as nets
from revtune.program.signals.losses import PADDED, Loss, classes, notes, values
from revtune.program.signals.net import GATES, LAYERS, At, SignalNet, begin_lasting

STEPS, ROWS, HIDDEN = 30, 4, 8


def made(model: str, loss: Loss = classes, at: At = "step", outputs: int = 3, **how: Any) -> SignalNet:
    torch.manual_seed(0)
    return SignalNet(LAYERS[model](2, HIDDEN), outputs, loss, at=at, **how)


def given(loss: Loss, at: At) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    shape = (ROWS,) if at == "end" else (STEPS, ROWS)
    x = torch.randn(STEPS, ROWS, 2, generator=draw)
    if loss is classes:
        return x, torch.randint(3, shape, generator=draw)
    if loss is notes:
        return x, torch.randint(2, (*shape, 3), generator=draw, dtype=torch.uint8)
    return x, torch.randn(shape, generator=draw)


def gradients(net: SignalNet, x: Tensor, y: Tensor) -> tuple[float, list[Tensor]]:
    total = 0.0
    for loss in net.parts(x, y):
        loss.backward()
        total += loss.item()
    found = [weight.grad for weight in net.parameters()]
    assert all(gradient is not None for gradient in found)
    return total, [gradient for gradient in found if gradient is not None]


def by_torch(net: SignalNet, x: Tensor, y: Tensor) -> tuple[float, list[Tensor]]:
    """The same with nothing but the layer and autograd."""
    net = copy.deepcopy(net)
    outputs, _ = net.rnn(x)
    scores = outputs @ net.head.weight.T + net.head.bias
    loss = net.loss(scores[-1], y) if net.at == "end" else net.loss(scores.flatten(0, 1), y.flatten(0, 1))
    loss.backward()
    return loss.item(), [weight.grad for weight in net.parameters() if weight.grad is not None]


@pytest.mark.parametrize("model", LAYERS)
@pytest.mark.parametrize("at", ["step", "end"])
@pytest.mark.parametrize("loss", [classes, values])
@pytest.mark.parametrize("checkpoints", [False, True])
def test_whole_gradients_are_autograds(model: str, at: At, loss: Loss, checkpoints: bool) -> None:
    net = made(model, loss, at, outputs=1 if loss is values else 3, checkpoints=checkpoints)
    x, y = given(loss, at)
    wanted, found = by_torch(net, x, y), gradients(net, x, y)
    assert found[0] == pytest.approx(wanted[0], rel=1e-5)
    torch.testing.assert_close(found[1], wanted[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", LAYERS)
def test_padded_notes_do_not_count(model: str) -> None:
    net = made(model, notes)
    x, y = given(notes, "step")
    y[20:, 1] = PADDED
    whole = sum(gradients(net, x[:, [row]], y[:, [row]])[0] for row in (0, 2, 3))
    one = gradients(net, x[:20, [1]], y[:20, [1]])[0]
    assert gradients(net, x, y)[0] == pytest.approx(whole + one, rel=1e-5)


@pytest.mark.parametrize("model", LAYERS)
def test_a_truncated_gradient_is_that_of_segments_whose_states_go_on(model: str) -> None:
    net = made(model, truncate=12)
    x, y = given(classes, "step")
    parts = list(net.parts(x, y))
    assert len(parts) == 3
    whole = made(model)
    assert sum(part.item() for part in parts) == pytest.approx(gradients(whole, x, y)[0], rel=1e-5)
    state, other = None, made(model)
    for xs, ys in zip(x.split(12), y.split(12), strict=True):
        outputs, state = other.rnn(xs, state)
        state = state.detach() if isinstance(state, Tensor) else tuple(part.detach() for part in state)
        scores = outputs @ other.head.weight.T + other.head.bias
        classes(scores.flatten(0, 1), ys.flatten()).backward()
    wanted = [weight.grad for weight in other.parameters()]
    found = gradients(net, x, y)[1]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found[1], gradients(whole, x, y)[1][1] / 2, rtol=1e-3)


@pytest.mark.parametrize("model", LAYERS)
def test_at_the_end_a_truncated_gradient_is_that_of_the_last_steps(model: str) -> None:
    net = made(model, at="end", truncate=12)
    x, y = given(classes, "end")
    with torch.no_grad():
        _, state = net.rnn(x[:-12])
    other = copy.deepcopy(net)
    outputs, _ = other.rnn(x[-12:], state)
    classes(outputs[-1] @ other.head.weight.T + other.head.bias, y).backward()
    found = gradients(net, x, y)[1]
    torch.testing.assert_close(found, [weight.grad for weight in other.parameters()], rtol=1e-4, atol=1e-5)


def test_what_is_before_a_truncated_gradient_is_read_in_pieces_as_short() -> None:
    net, read = made("lstm", at="end", truncate=12), list[int]()
    net.rnn.register_forward_pre_hook(lambda _, given: read.append(len(given[0])))
    gradients(net, *given(classes, "end"))
    assert read == [12, STEPS - 24, 12]


@pytest.mark.parametrize("model", LAYERS)
@pytest.mark.parametrize("at", ["step", "end"])
def test_scores_do_not_depend_on_blocks(model: str, at: At, monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = made(model, at=at), given(classes, at)[0]
    whole = net.scores(x)
    assert whole.shape == ((ROWS, 3) if at == "end" else (STEPS, ROWS, 3))
    monkeypatch.setattr(nets, "BLOCK", 7)
    torch.testing.assert_close(net.scores(x), whole, rtol=1e-5, atol=1e-6)


def test_encoders_make_features_of_chunks() -> None:
    x, y = given(classes, "step")
    whole, halved = made("revgru"), made("revgru", encode=lambda x: x / 2)
    assert gradients(halved, 2 * x, y)[0] == pytest.approx(gradients(whole, x, y)[0], rel=1e-5)
    torch.testing.assert_close(halved.scores(2 * x), whole.scores(x))


@pytest.mark.parametrize("model", LAYERS)
def test_units_begin_lasting(model: str) -> None:
    """Where nothing is read, what an input left is still there after about as many steps as were asked for."""

    @torch.no_grad()
    def left(steps: int) -> float:
        torch.manual_seed(0)
        rnn: Any = LAYERS[model](1, 32)
        begin_lasting(rnn, steps)
        for name in ("weight_ih_l0", "weight_hh_l0"):
            nn.init.zeros_(rnn.get_parameter(name))
        kept = torch.full((1, 1, 32), 0.5, dtype=torch.float64 if model.startswith("rev") else torch.float32)
        state = kept if "gru" in model else (kept, kept)
        _, final = rnn(torch.zeros(50, 1, 1), state)
        _, empty = rnn(torch.zeros(50, 1, 1))
        final, empty = ((hc if "gru" in model else hc[1]) for hc in (final, empty))
        return float((final - empty).abs().mean())

    assert left(2) < 0.01 < 0.3 < left(10_000)


def test_every_layer_is_known_by_its_gates() -> None:
    assert set(GATES) == set(LAYERS.values())
