"""Draws from a seed of one's own, whoever draws them."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import revtune as rt
from revtune.reversible.streams.replay import NoDraws, Replay
from tests.chunking import set_stack_chunk_steps

X = torch.full((3, 4), 0.5)
DRAWS: dict[str, Callable[[], Tensor]] = {
    "dropout": lambda: F.dropout(X),
    "feature dropout": lambda: F.dropout1d(X[None]),
    "alpha dropout": lambda: F.alpha_dropout(X, training=True),
    "dropout in one operator": lambda: torch.native_dropout(X, 0.5, True)[0],
    "leaky relu": lambda: F.rrelu(-X, training=True),
    "attention": lambda: F.scaled_dot_product_attention(X[None], X[None], X[None], dropout_p=0.5),
    "uniform": lambda: torch.rand(5),
    "uniform in place": lambda: torch.empty(5).uniform_(),
    "normal, an odd number": lambda: torch.randn(3),
    "normal like": lambda: torch.randn_like(X),
    "normal about": lambda: torch.normal(X, X),
    "integers": lambda: torch.randint(2, 2**40, (4,)),
    "integers like": lambda: torch.randint_like(X, 9),
    "order": lambda: torch.randperm(20),
    "classes": lambda: torch.multinomial(X, 2),
    "counts": lambda: torch.poisson(X),
    "gumbel": lambda: F.gumbel_softmax(X),
    "gamma": lambda: torch.distributions.Gamma(X, X).sample(),
    "weights": lambda: nn.Linear(3, 2).weight.detach(),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_draws_are_those_of_torchs_generator_under_that_seed(draw: Callable[[], Tensor]) -> None:
    torch.manual_seed(11)
    wanted = [draw() for _ in range(3)]
    assert not torch.equal(wanted[0], wanted[1])
    state = torch.get_rng_state()
    for _ in range(2):
        with Replay(11):
            assert all(torch.equal(draw(), one) for one in wanted)
        assert torch.equal(torch.get_rng_state(), state)


def test_a_generator_that_is_given_is_used() -> None:
    ways: list[Callable[[torch.Generator], Tensor]] = [
        lambda own: torch.rand(4, generator=own),
        lambda own: torch.empty(4).bernoulli_(0.5, generator=own),
        lambda own: torch.ops.aten.rrelu_with_noise(-X, torch.empty_like(X), 0.1, 0.9, True, own),
    ]
    for draw in ways:
        wanted = draw(torch.Generator().manual_seed(3))
        with Replay(11):
            assert torch.equal(draw(torch.Generator().manual_seed(3)), wanted)
        with NoDraws("rewind_loss", "encode"):
            assert torch.equal(draw(torch.Generator().manual_seed(3)), wanted)


def test_gradients_pass_through() -> None:
    x = X.clone().requires_grad_()
    with Replay(2):
        y = F.dropout(x)
    with NoDraws("rewind_loss", "encode"):
        (grad,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(grad, y.detach() / X)


def test_an_operator_that_fails_leaves_torchs_generator_as_it_was() -> None:
    state = torch.get_rng_state()
    with Replay(2), pytest.raises(RuntimeError, match="bernoulli_ expects p"):
        torch.native_dropout(X, 2.0, True)
    assert torch.equal(torch.get_rng_state(), state)


def test_other_threads_draw_as_if_nothing_were_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that draws while a chunk is encoded neither sees the encoder's numbers nor disturbs them."""
    set_stack_chunk_steps(monkeypatch, 4)
    embedding, dropout, drawn = nn.Embedding(9, 6), nn.Dropout(0.5), []
    with ThreadPoolExecutor(1) as thread:

        def encode(ids: Tensor) -> Tensor:
            drawn.append(thread.submit(lambda: torch.rand(()).item()).result())
            rows = dropout(embedding(ids))
            drawn.append(thread.submit(lambda: torch.rand(()).item()).result())
            return rows

        rnn, head, ids = rt.RevGRU(6, 8), rt.LinearCrossEntropy(8, 9), torch.randint(9, (12, 2))
        torch.manual_seed(5)
        loss, _ = rt.rewind_loss(rnn, ids, ids, encode=encode, readout=head)
    torch.manual_seed(5)
    alone, _ = rt.rewind_loss(rnn, ids, ids, encode=nn.Sequential(embedding, dropout), readout=head)
    assert torch.equal(loss, alone) and len(drawn) == 2 * (5 + 5), "five calls, and the five of the trial"
    assert drawn == torch.stack([torch.rand(()) for _ in drawn]).tolist()


def test_checkpoints_that_would_draw_again_are_refused() -> None:
    rnn, head, ids = rt.RevGRU(6, 8), rt.LinearCrossEntropy(8, 9), torch.randint(9, (5, 2))
    embedding = nn.Embedding(9, 6)

    def encode(ids: Tensor) -> Tensor:
        rows: Tensor = checkpoint(between, embedding(ids), use_reentrant=False)
        return rows

    between: nn.Module = nn.Tanh()
    rt.rewind_loss(rnn, ids, ids, encode=encode, readout=head)[0].backward()
    assert embedding.weight.grad is not None
    between = nn.Dropout(0.5)
    with pytest.raises(
        rt.ReversalError, match="encode draws random numbers while its gradient.*bernoulli_.*torch.utils"
    ):
        rt.rewind_loss(rnn, ids, ids, encode=encode, readout=head)
