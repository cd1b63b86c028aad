"""Whose the entries of tensors are, followed through operations: what the same operation makes of marks."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from revtune.tuning.responses.following import Following

B, T, D = 4, 6, 8

EACH = [0] * T + [1] * T + [2] * T + [3] * T
TWO = [0, 0, 1, 1, 2, 2, 3, 3]


def of_node(nodes: int, times: int) -> Tensor:
    """The node to which each of so many messages a node goes."""
    return torch.arange(nodes)[:, None].expand(nodes, times).flatten()


OPERATIONS: dict[str, tuple[Callable[[Tensor], Tensor], list[int]]] = {
    "flatten": (lambda x: x.flatten(0, 1), EACH),
    "time first": (lambda x: x.transpose(0, 1).reshape(-1, D), [0, 1, 2, 3] * 6),
    "cat": (lambda x: torch.cat([x[:, 0], x[:, 1]]), [0, 1, 2, 3, 0, 1, 2, 3]),
    "a product and a softmax": (lambda x: (x @ x.transpose(1, 2)).softmax(-1).flatten(0, 1)[::3], TWO),
    "windows": (lambda x: x.unfold(1, 3, 3).flatten(0, 1), TWO),
    "a sum over time": (lambda x: x.transpose(0, 1).sum(0), [0, 1, 2, 3]),
    "what is written in place": (
        lambda x: x.new_zeros(2 * B, D).copy_(
            torch.stack([x[:, 0], x[:, 1]], 1).flatten(0, 1)
        ),
        TWO,
    ),
    "convolutions": (lambda x: F.conv1d(x.flatten(0, 1)[:, None], torch.ones(2, 1, 3))[:, :, 0], EACH),
    "sums by index": (
        lambda x: x.new_zeros(5, D).index_add_(0, of_node(4, T), x.flatten(0, 1)), [0, 1, 2, 3, -1]
    ),
    "sums of two by index": (lambda x: torch.zeros(2, D).index_add(0, of_node(2, 2), x[:, 0]), [-2, -2]),
    "sums by scattering": (
        lambda x: x.new_zeros(4, D).scatter_add_(0, of_node(4, T)[:, None].expand(-1, D), x.flatten(0, 1)),
        [0, 1, 2, 3],
    ),
    "a largest by scattering": (
        lambda x: torch.zeros(2, D).scatter_reduce(0, of_node(2, 3)[:, None].expand(-1, D), x[1], "amax"), [1, 1]
    ),
    "one hot": (lambda x: F.one_hot((x[..., 0] > 0).long(), 2).flatten(0, 1), EACH),
    "places of nobody": (
        lambda x: torch.zeros(B * T, D).index_add(0, torch.arange(B * T) // 3, x.flatten(0, 1))[: 2 * B], TWO
    ),
    "rows written by number": (
        lambda x: x.new_zeros(2 * B, D).index_put_((torch.arange(2 * B).flip(0),), x[:, :2].flatten(0, 1)), TWO[::-1]
    ),
    "a triangle": (lambda x: x.tril().flatten(0, 1), EACH),
    "real parts": (lambda x: torch.fft.fft(x, dim=1).real.flatten(0, 1), EACH),
    "distances": (lambda x: torch.cdist(x[:, :2], x).flatten(0, 1), TWO),
    "bags": (lambda x: F.embedding_bag((x[..., 0] > 0).long(), torch.ones(2, 3)), [0, 1, 2, 3]),
    "a sum of examples": (lambda x: x.sum(0), [-2] * 6),
    "a mean that is taken off": (lambda x: (x - x.mean(0))[:, 0], [-2] * 4),
}  # fmt: skip


PICKING = ("a product and a softmax", "a largest by scattering", "places of nobody")
"""Those that take examples by numbers of Python's, which may be others in the next batch."""


def marked(shape: tuple[int, ...], dim: int = 0) -> tuple[Following, Tensor]:
    following, x = Following(), torch.randn(shape)
    following.mark(x, dim)
    return following, x


@pytest.mark.parametrize("name", OPERATIONS)
def test_owners_go_where_entries_go(name: str) -> None:
    run, expected = OPERATIONS[name]
    following, x = marked((B, T, D))
    with following:
        y = run(x)
    owners = following.owners(y)
    assert owners is not None and owners.fixed == (name not in PICKING)
    assert owners.of.expand(y.shape).reshape(len(y), -1)[:, 0].tolist() == expected


def test_rows_that_numbers_of_the_batch_choose_are_not_fixed() -> None:
    following, x = marked((B, T, D))
    with following:
        y, z = x[x[:, :, 0] > 0], x[:, torch.arange(3)]
    chosen, first = following.owners(y), following.owners(z)
    assert chosen is not None and not chosen.fixed
    assert chosen.of[:, 0].tolist() == [b for b in range(B) for t in range(T) if x[b, t, 0] > 0]
    assert first is not None and first.fixed


MOVED = {
    "roll by nothing": (lambda x: x.roll(0, 0), False),
    "roll of all dimensions": (lambda x: x.roll(B * T * D), False),
    "a diagonal": (lambda x: x[:, :B].diagonal(0, 0, 1), False),
    "padding before examples": (lambda x: F.pad(x, (0, 0, 0, 0, 1, 0)), False),
    "indices made here": (lambda x: x[torch.arange(B)], False),
    "padding in time": (lambda x: F.pad(x, (0, 0, 2, 0)), True),
    "steps by indices made here": (lambda x: x[:, torch.arange(3)], True),
    "a step": (lambda x: x[:, 2], True),
    "steps rolled": (lambda x: x.roll(1, 1), True),
    "all of it": (lambda x: x[:], True),
}


@pytest.mark.parametrize("name", MOVED)
def test_what_moves_examples_by_numbers_is_not_fixed(name: str) -> None:
    run, fixed = MOVED[name]
    following, x = marked((B, T, D))
    with following:
        owners = following.owners(run(x))
    assert owners is not None and owners.fixed == fixed


def test_examples_chosen_by_a_tensor_of_the_model_are_fixed() -> None:
    following, x = marked((B, T, D))
    order = torch.tensor([2, 0, 1, 3])
    following.constant(order)
    with following:
        own, moved = following.owners(x[order]), following.owners(x[(order + 1) % B])
    assert own is not None and own.fixed and own.of[:, 0].flatten().tolist() == [2, 0, 1, 3]
    assert moved is not None and not moved.fixed


def test_what_is_written_into_a_view_is_in_the_whole() -> None:
    following, x = marked((B, D))
    with following:
        whole = torch.zeros(2 * B, D)
        whole[0::2] = x
        half = following.owners(whole)
        whole[1::2] = torch.relu(x)
    owners = following.owners(whole)
    assert half is not None and half.of[:, 0].tolist() == [0, -1, 1, -1, 2, -1, 3, -1]
    assert owners is not None and owners.of[:, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_layers_of_torch_hand_owners_on() -> None:
    following, x = marked((B, T, D))
    layer = nn.TransformerEncoderLayer(D, 2, 16, batch_first=True)
    for parameter in layer.parameters():
        following.constant(parameter)
    with following:
        y = layer(x)
        positions = torch.arange(T)[:, None] - torch.arange(T)
    owners, nobody = following.owners(y), following.owners(positions)
    assert owners is not None and owners.of.flatten().tolist() == [0, 1, 2, 3]
    assert nobody is not None and nobody.constant


def test_entries_of_nobody_are_theirs_who_choose_them() -> None:
    following, x = marked((B, T, D))
    table = torch.randn(5, 3)
    following.constant(table)
    with following:
        numbers = (x[..., 0] > 0).long()
        found = [table[numbers], table.index_select(0, numbers.flatten()), table[numbers, numbers[:, :1]]]
        drawn, product = torch.empty(B, D).normal_(), table @ torch.from_numpy(x[:, 0, :3].numpy().copy()).t()
    owners = [following.owners(y) for y in found]
    assert [None if of is None else of.of.expand(y.shape[:1] + (1,) * (y.dim() - 1)).flatten().tolist()
            for of, y in zip(owners, found, strict=True)] == [[0, 1, 2, 3], EACH, [0, 1, 2, 3]]  # fmt: skip
    assert following.owners(drawn) is None and following.owners(product) is None


def test_of_what_it_does_not_know_it_says_nothing() -> None:
    following, x = marked((B, D))
    with following:
        y = torch.from_numpy(x.numpy()[::-1].copy())
        z = torch.linalg.inv(x[:, :B])
    assert following.owners(y) is None and following.owners(z) is None
