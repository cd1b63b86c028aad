"""The matmuls over whole chunks: torch's numbers in any layout, and bits that depend on neither rows nor threads."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from revtune.reversible.kernel.matmuls import LARGEST_PACKED, KernelProducts, Products, products_for
from tests.stored import relative

BACKENDS = ("native",)
SHAPES = [(1, 1, 1), (1, 300, 7), (3, 5, 2), (12, 33, 64), (13, 257, 65), (40, 64, 300), (300, 31, 33), (600, 130, 97)]
"""Positions, inputs, outputs: around the widths of vectors, panels and blocks."""
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "dense": lambda t: t,
    "transposed": lambda t: t.t().contiguous().t(),
    "every second row": lambda t: t.repeat_interleave(2, 0)[::2],
    "every second column": lambda t: t.repeat_interleave(2, 1)[:, ::2],
    "columns of a wider one": lambda t: torch.cat([t, t, t], 1)[:, t.shape[1] : 2 * t.shape[1]],
    "not aligned": lambda t: torch.cat([t.flatten()[:1], t.flatten()])[1:].view(t.shape),
}
shapes = pytest.mark.parametrize(("positions", "inputs", "outputs"), SHAPES)
layouts = pytest.mark.parametrize("layout", LAYOUTS)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


@layouts
@shapes
def test_projections_are_torchs(positions: int, inputs: int, outputs: int, layout: str) -> None:
    lay = LAYOUTS[layout]
    x, weight, bias = normal(positions, inputs), normal(outputs, inputs, seed=1), normal(outputs)
    exact = x.double() @ weight.double().t()
    for products in (KernelProducts(), Products()):
        assert relative(products.linear(lay(x), lay(weight)), exact) < 1e-6
        assert relative(products.linear(lay(x), lay(weight), bias), exact + bias) < 1e-6
        into = torch.full((positions, outputs), float("nan"))
        assert relative(products.linear(lay(x), lay(weight), bias, out=into), exact + bias) < 1e-6


@shapes
def test_packed_weights_give_the_same_bits(positions: int, inputs: int, outputs: int) -> None:
    products, x, bias = KernelProducts(), normal(positions, inputs), normal(outputs)
    weight = normal(outputs, inputs, seed=1)
    packed = products.pack(weight)
    assert packed is not None
    assert torch.equal(products.linear(x, weight, bias, packed=packed), products.linear(x, weight, bias))
    assert torch.equal(products.linear(x, torch.zeros_like(weight), packed=packed), products.linear(x, weight))


def test_only_small_weights_are_packed() -> None:
    assert KernelProducts().pack(torch.zeros(1, LARGEST_PACKED // 4)) is not None
    assert KernelProducts().pack(torch.zeros(1, LARGEST_PACKED // 4 + 1)) is None
    assert Products().pack(torch.zeros(1, 1)) is None


@layouts
@shapes
def test_gradients_of_inputs_are_torchs(positions: int, inputs: int, outputs: int, layout: str) -> None:
    lay = LAYOUTS[layout]
    grad, weight = normal(positions, outputs), normal(outputs, inputs, seed=1)
    for products in (KernelProducts(), Products()):
        assert relative(products.back(lay(grad), lay(weight)), grad.double() @ weight.double()) < 1e-6


@layouts
@shapes
def test_gradients_of_weights_are_added(positions: int, inputs: int, outputs: int, layout: str) -> None:
    lay = LAYOUTS[layout]
    grad, value, start = normal(positions, outputs), normal(positions, inputs, seed=1), normal(outputs, inputs)
    wanted = start.double() + grad.double().t() @ value.double()
    for products in (KernelProducts(), Products()):
        into = start.clone()
        products.add_outer(into, lay(grad), lay(value))
        assert relative(into, wanted) < 1e-6
        rows = torch.cat([start, start, start])
        products.add_outer(rows[outputs : 2 * outputs], lay(grad), lay(value))
        assert relative(rows[outputs : 2 * outputs], wanted) < 1e-6
        assert torch.equal(rows[:outputs], start) and torch.equal(rows[2 * outputs :], start)


def test_a_lazy_clone_is_written_and_its_origin_is_not() -> None:
    grad, value, start = normal(3, 5), normal(3, 7, seed=1), normal(5, 7)
    before, into = start.clone(), torch._lazy_clone(start)
    KernelProducts().add_outer(into, grad, value)
    assert torch.equal(start, before) and relative(into, before + grad.t() @ value) < 1e-6
    out = torch._lazy_clone(start)
    assert KernelProducts().linear(normal(5, 4), normal(7, 4), out=out) is out
    assert torch.equal(start, before) and not torch.equal(out, before)


def test_steps_and_rows_may_stand_apart() -> None:
    x, weight = normal(4, 3, 50), normal(7, 50)
    for given in (x, x.transpose(0, 1), x.transpose(0, 1).contiguous().transpose(0, 1)):
        wanted = given.double() @ weight.double().t()
        assert relative(KernelProducts().linear(given, weight), wanted) < 1e-6
        assert relative(KernelProducts().back(wanted.float(), weight), wanted @ weight.double()) < 1e-6


@pytest.fixture
def threads() -> Iterator[None]:
    """Puts the number of threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("inputs", "outputs"), [(70, 33), (257, 130), (300, 600)])
def test_bits_depend_on_neither_rows_nor_threads(inputs: int, outputs: int, threads: None) -> None:
    products, x, weight = KernelProducts(), normal(60, inputs), normal(outputs, inputs, seed=1)
    grad, found = normal(60, outputs, seed=2), []
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        into = torch.zeros(outputs, inputs)
        products.add_outer(into, grad, x)
        found.append((products.linear(x, weight), products.back(grad, weight), into))
    for other in found[1:]:
        assert all(map(torch.equal, other, found[0]))
    for rows in (slice(0, 1), slice(7, 20), slice(59, 60)):
        assert torch.equal(products.linear(x[rows], weight), found[0][0][rows])
        assert torch.equal(products.back(grad[rows], weight), found[0][1][rows])


@pytest.mark.parametrize(("steps", "rows", "outputs"), [(1, 1, 1), (4, 3, 33), (7, 20, 600)])
@pytest.mark.parametrize("own", [False, True])
def test_a_response_is_added_in_one_form(steps: int, rows: int, outputs: int, own: bool) -> None:
    """That of plain torch over the same products, to the bit: gates must not depend on who projects."""
    products, x, weight = KernelProducts(), normal(steps, rows, 9), normal(outputs, 9, seed=1)
    extra, scale = normal(outputs, 9, seed=2), normal(rows, outputs, seed=3)
    bias, noted = normal(rows, outputs, seed=4) if own else normal(outputs, seed=4), torch.empty(steps, rows, outputs)
    given = products.answering(x, weight, bias, (extra, scale), products=noted)
    projected = products.linear(x, weight).add_(bias) if own else products.linear(x, weight, bias)
    assert torch.equal(noted, products.linear(x, extra))
    assert torch.equal(given, projected + scale * noted)


@pytest.mark.parametrize(("steps", "rows", "outputs"), [(1, 1, 1), (4, 3, 33), (7, 20, 600)])
def test_the_way_back_of_a_response(steps: int, rows: int, outputs: int, threads: None) -> None:
    products, grad, scale = KernelProducts(), normal(steps, rows, outputs), normal(rows, outputs, seed=1)
    noted, start, found = normal(steps, rows, outputs, seed=2), normal(rows, outputs, seed=3), []
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        room, sum = noted.clone(), start.clone()
        products.scale_back(room, grad, scale, sum, scaled=False)
        assert torch.equal(room, noted)
        products.scale_back(room, grad, scale, None, scaled=True)
        assert torch.equal(room, scale * grad)
        found.append(sum)
    assert relative(found[0], start + (grad.double() * noted).sum(0)) < 1e-6
    assert all(torch.equal(other, found[0]) for other in found)


@pytest.mark.parametrize(
    ("index", "outputs"), [([0], 1), ([2, 0, 2, 2, 1], 33), ([i * 7 % 20 for i in range(70)], 600)]
)
def test_the_response_of_positions_there_and_back(index: list[int], outputs: int, threads: None) -> None:
    """Whatever rows they are of, as plain torch gives it in float64; the same bits on any number of threads."""
    of, rows, positions = torch.tensor(index), max(index) + 1, len(index)
    y, product, grad = (normal(positions, outputs, seed=seed) for seed in (1, 2, 3))
    scale, bias, *sums = (normal(rows, outputs, seed=seed) for seed in (4, 5, 6, 7))
    found = []
    for number, products in ((1, Products()), (1, KernelProducts()), (2, KernelProducts()), (3, KernelProducts())):
        torch.set_num_threads(number)
        with_bias, without, room, (dscale, dbias) = y.clone(), y.clone(), product.clone(), [sum.clone() for sum in sums]
        products.add_answer(with_bias, product, scale, bias, of)
        products.add_answer(without, product, scale, None, of)
        products.answer_back(room, grad, scale, of, dscale, dbias, scaled=False)
        assert torch.equal(room, product)
        products.answer_back(room, grad, scale, of, dscale, dbias, scaled=True)
        assert torch.equal(room, scale[of] * grad)
        found.append((with_bias, without, dscale, dbias))
    answer = y.double() + scale.double()[of] * product
    wanted = [answer + bias[of], answer]
    for start, parts in zip(sums, (grad.double() * product, grad.double()), strict=True):
        wanted.append(start.double().index_add(0, of, 2 * parts))
    for given in found:
        assert all(relative(one, other) < 1e-6 for one, other in zip(given, wanted, strict=True))
    for given in found[2:]:
        assert all(map(torch.equal, given, found[1]))


def test_a_product_is_added_to_another() -> None:
    grad, weight, start = normal(9, 70), normal(70, 40, seed=1), normal(9, 40, seed=2)
    for products in (Products(), KernelProducts()):
        into = start.clone()
        products.add_back(into, grad, weight)
        assert relative(into, start + grad.double() @ weight.double()) < 1e-6


def test_the_kernels_are_taken_where_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert type(products_for(torch.zeros(1))) is KernelProducts
    assert type(products_for(torch.zeros(1, dtype=torch.float64))) is Products
    assert type(products_for(torch.zeros(1, device="meta"))) is Products
    monkeypatch.setenv("REVTUNE_BACKEND", "reference")
    assert type(products_for(torch.zeros(1))) is Products


ZERO, DOUBLE = torch.zeros, torch.float64
MISFITS = [
    ("project_back", (ZERO(3, 5), ZERO(6, 4))),
    ("project_back", (ZERO(3, 5).double(), ZERO(5, 4))),
    ("project_back", (ZERO(3), ZERO(5, 4))),
    ("project_back_into", (ZERO(3, 4), ZERO(3, 5), ZERO(6, 4))),
    ("project_back_into", (ZERO(2, 4), ZERO(3, 6), ZERO(6, 4))),
    ("project_back_into", (ZERO(4, 3).t(), ZERO(3, 6), ZERO(6, 4))),
    ("project_back_into", (ZERO(3, 4).double(), ZERO(3, 6), ZERO(6, 4))),
    ("project_into", (ZERO(3, 6), ZERO(3, 5), ZERO(6, 4), None)),
    ("project_into", (ZERO(3, 6), ZERO(2, 5), ZERO(6, 5), None)),
    ("project_into", (ZERO(3, 5), ZERO(3, 5), ZERO(6, 5), None)),
    ("project_into", (ZERO(3, 6).double(), ZERO(3, 5), ZERO(6, 5), None)),
    ("project_into", (ZERO(3, 6), ZERO(3, 5), ZERO(6, 5), ZERO(5))),
    ("project_into", (ZERO(3, 6), ZERO(5, 3).t(), ZERO(6, 5), None)),
    ("project_into", (ZERO(3, 6), ZERO(3, 5), ZERO(5, 6).t(), None)),
    ("project_into", (ZERO(3, 6), ZERO(3, 5), ZERO(6, 5), None, ZERO(6 * 5))),
    ("add_answer", (ZERO(6, 5), ZERO(6, 4), ZERO(3, 5), None)),
    ("add_answer", (ZERO(6, 5), ZERO(6, 5), ZERO(4, 5), None)),
    ("add_answer", (ZERO(6, 5), ZERO(6, 5), ZERO(0, 5), None)),
    ("add_answer", (ZERO(6, 5), ZERO(6, 5), ZERO(3, 5), ZERO(5))),
    ("add_answer", (ZERO(6, 5), ZERO(6, 5), ZERO(3, 5), None, torch.arange(6))),
    ("add_answer", (ZERO(6, 5), ZERO(6, 5), ZERO(3, 5), None, torch.arange(5))),
    ("add_answer", (ZERO(6, 5), ZERO(6, 5), ZERO(3, 5), None, -torch.arange(6))),
    ("answer_back", (ZERO(6, 5), ZERO(6, 5), ZERO(3, 5), torch.arange(6), ZERO(3, 5), ZERO(3, 5), True)),
    ("answer_back", (ZERO(6, 5), ZERO(6, 4), ZERO(3, 5), ZERO(6).long(), ZERO(3, 5), ZERO(3, 5), True)),
    ("answer_back", (ZERO(6, 5), ZERO(6, 5), ZERO(3, 5), ZERO(6).long(), ZERO(2, 5), ZERO(3, 5), True)),
    ("answer_back", (ZERO(6, 5), ZERO(6, 5), ZERO(3, 5), ZERO(6).long(), ZERO(3, 5), ZERO(5), True)),
    ("scale_back", (ZERO(6, 5), ZERO(6, 5), ZERO(4, 5), None, True)),
    ("scale_back", (ZERO(6, 5), ZERO(6, 4), ZERO(3, 5), None, True)),
    ("scale_back", (ZERO(6, 5), ZERO(6, 5), ZERO(3, 5), ZERO(5), True)),
    ("pack_projection", (ZERO(6),)),
    ("pack_projection", (ZERO(6, 5, dtype=DOUBLE),)),
    ("add_outer", (ZERO(6, 5), ZERO(3, 5), ZERO(3, 6))),
    ("add_outer", (ZERO(6, 5), ZERO(3, 6), ZERO(4, 5))),
    ("add_outer", (ZERO(6, 5), ZERO(3, 6), ZERO(3, 5, dtype=DOUBLE))),
    ("add_outer", (ZERO(5, 6).t(), ZERO(3, 6), ZERO(3, 5))),
]


@pytest.mark.parametrize(("name", "arguments"), MISFITS)
def test_what_does_not_fit_is_refused(name: str, arguments: tuple[Tensor | None, ...]) -> None:
    with pytest.raises(RuntimeError):
        getattr(torch.ops.revtune, name)(*arguments)
