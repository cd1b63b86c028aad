"""Masks drawn once a sequence."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import revtune as rt
from revtune.reversible.layers.masks import drop_mask, one_sequence
from revtune.reversible.streams.dropout import look_up, plain_embedding


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@given(st.floats(0, 1), st.integers(0, 2**31))
def test_a_mask_drops_or_scales(p: float, seed: int) -> None:
    torch.manual_seed(seed)
    mask = drop_mask((50, 8), p, torch.zeros((), dtype=torch.float64))
    kept = mask[mask != 0]
    assert mask.shape == (50, 8) and mask.dtype == torch.float64 and mask.isfinite().all()
    assert torch.allclose(kept, torch.full_like(kept, 1 / (1 - p) if p < 1 else 0.0))


def test_a_mask_keeps_its_share_and_the_mean() -> None:
    mask = drop_mask((400, 500), 0.3, torch.zeros(()))
    assert (mask == 0).float().mean().item() == pytest.approx(0.3, abs=0.01)
    assert mask.mean().item() == pytest.approx(1.0, abs=0.02)
    assert drop_mask((3,), 1.0, mask).tolist() == [0, 0, 0] and drop_mask((3,), 0.0, mask).tolist() == [1, 1, 1]


def test_locked_dropout_drops_the_same_units_at_every_step() -> None:
    drop = rt.LockedDropout(0.5)
    x = torch.rand(6, 4, 20, requires_grad=True)
    y = drop(x)
    ratio = (y / x).detach()
    assert torch.allclose(ratio, ratio[:1].expand_as(ratio)) and not torch.equal(ratio[0, 0], ratio[0, 1])
    assert set(ratio.round(decimals=4).unique().tolist()) == {0.0, 2.0}
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert torch.allclose(grad, ratio)
    assert not torch.equal(drop(x), y)


def test_locked_dropout_is_off_in_evaluation_and_at_rate_zero() -> None:
    x = torch.rand(6, 4, 20)
    assert rt.LockedDropout(0.5).eval()(x) is x and rt.LockedDropout(0.0)(x) is x
    assert float(rt.LockedDropout(1.0)(x).abs().sum()) == 0
    assert repr(rt.LockedDropout(0.25)) == "LockedDropout(p=0.25)"


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan"), float("inf")])
def test_a_rate_outside_0_to_1_is_refused(p: float) -> None:
    with pytest.raises(ValueError, match=r"p must lie in 0\.\.1, .* got"):
        rt.LockedDropout(p)
    with pytest.raises(ValueError, match=r"dropout must lie in 0\.\.1, .* got"):
        rt.Embedding(5, 3, dropout=p)


def test_locked_dropout_wants_time_batch_and_features() -> None:
    with pytest.raises(ValueError, match=r"wants \(T, B, F\), got \(4, 20\).* output_dropout"):
        rt.LockedDropout(0.5)(torch.rand(4, 20))


def test_within_a_sequence_every_module_keeps_its_own_mask() -> None:
    one, other, x = rt.LockedDropout(0.5), rt.LockedDropout(0.5), torch.ones(2, 4, 20)
    with one_sequence():
        first = one(x)
        assert torch.equal(one(x[:1])[0], first[0]) and not torch.equal(other(x), first)
        with one_sequence():
            assert not torch.equal(one(x), first)
        assert torch.equal(one(x), first)
    with one_sequence():
        assert not torch.equal(one(x), first)


def test_what_is_drawn_beside_a_kept_mask_does_not_depend_on_its_being_kept() -> None:
    """A chunk that runs again must see the noise it saw first, though its locked masks are drawn only once."""
    net, x = nn.Sequential(rt.LockedDropout(0.5), nn.Dropout(0.5)), torch.ones(3, 4, 20)
    with one_sequence():
        torch.manual_seed(1)
        first = net(x)
        torch.manual_seed(1)
        assert torch.equal(net(x), first)


def test_locked_masks_follow_the_seed() -> None:
    drop, x = rt.LockedDropout(0.5), torch.ones(2, 4, 20)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        first = drop(x)
        torch.manual_seed(3)
        assert torch.equal(drop(x), first)


def test_an_embedding_without_dropout_is_torchs() -> None:
    ours, theirs = rt.Embedding(9, 4, padding_idx=2), nn.Embedding(9, 4, padding_idx=2)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    ids = torch.randint(9, (5, 3))
    assert torch.equal(ours(ids), theirs(ids)) and torch.equal(ours(ids.int()), theirs(ids))
    grads = [torch.autograd.grad(e(ids).square().sum(), e.weight)[0] for e in (ours, theirs)]
    assert torch.equal(*grads) and float(grads[0][2].abs().sum()) == 0
    assert repr(rt.Embedding(9, 4, dropout=0.1)) == "Embedding(9, 4, dropout=0.1)"
    assert copy.deepcopy(ours).dropout == 0.0


@pytest.mark.parametrize("freeze", [True, False])
def test_an_embedding_from_a_weight_is_torchs(freeze: bool) -> None:
    weight, ids = torch.randn(10, 4), torch.tensor([[1, 2], [9, 2]])
    state = torch.get_rng_state()
    ours = rt.Embedding.from_pretrained(weight, freeze=freeze, padding_idx=2, dropout=0.5)
    assert torch.equal(torch.get_rng_state(), state)
    plain = nn.Embedding.from_pretrained(weight, freeze=freeze, padding_idx=2)
    assert type(ours) is rt.Embedding and ours.dropout == 0.5 and ours.padding_idx == 2
    assert ours.weight.data_ptr() == weight.data_ptr() and ours.weight.requires_grad == plain.weight.requires_grad
    assert torch.equal(ours.eval()(ids), plain(ids))
    with pytest.raises(ValueError, match=r"embeddings must be \(num_embeddings, embedding_dim\), got \(4,\)"):
        rt.Embedding.from_pretrained(weight[0])


def test_embedding_dropout_drops_whole_words_wherever_they_stand() -> None:
    embedding, ids = rt.Embedding(40, 4, dropout=0.5), torch.arange(40).repeat(3, 1)
    rows = embedding(ids)
    ratio = (rows / embedding.weight).detach()
    assert torch.equal(rows[0], rows[1]) and torch.equal(rows[0], rows[2])
    words = ratio[0].round(decimals=4)
    assert torch.equal(words, words[:, :1].expand_as(words)) and set(words.unique().tolist()) == {0.0, 2.0}
    (grad,) = torch.autograd.grad(rows.sum(), embedding.weight)
    assert torch.allclose(grad, 3 * words)
    assert not torch.equal(embedding(ids), rows)
    assert torch.equal(embedding.eval()(ids)[0], embedding.weight)


def test_only_an_ordinary_embedding_is_looked_up_in_its_place() -> None:
    class Own(nn.Embedding):
        pass

    hooked = nn.Embedding(5, 3)
    hooked.register_forward_hook(lambda *_: None)
    special = [
        Own(5, 3),
        nn.Embedding(5, 3, max_norm=1.0),
        nn.Embedding(5, 3, sparse=True),
        nn.Embedding(5, 3, scale_grad_by_freq=True),
        rt.Embedding(5, 3),
        hooked,
    ]
    assert plain_embedding(nn.Embedding(5, 3)) and not any(map(plain_embedding, special)) and not plain_embedding(None)


@pytest.mark.parametrize("wrong", [-1, 9, 1000])
def test_ids_outside_the_vocabulary_are_named(wrong: int) -> None:
    for embedding in (rt.Embedding(9, 4), nn.Embedding(9, 4)):
        with pytest.raises(ValueError, match=rf"token ids must lie in 0\.\.8, the vocabulary, got {wrong}$"):
            look_up(embedding, torch.tensor([[1, wrong]]))


def test_ids_that_are_no_integers_are_refused() -> None:
    with pytest.raises(ValueError, match="token ids must be int64 or int32, got torch.float32"):
        rt.Embedding(9, 4)(torch.zeros(2, 2))
    assert rt.Embedding(9, 4)(torch.zeros(0, 2, dtype=torch.int64)).shape == (0, 2, 4)
