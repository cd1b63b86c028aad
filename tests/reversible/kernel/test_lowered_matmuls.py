"""Products of factors that are rounded: those of the rounded factors, in float32."""

import pytest
import torch
from torch import Tensor

from revtune.reversible.kernel.lowered_matmuls import LoweredProducts, Precision, _tensor_cores, check_precision
from tests.stored import relative

X, WEIGHT, GRAD = (
    torch.randn(shape, generator=torch.Generator().manual_seed(0)) for shape in ((2, 30, 9), (7, 9), (60, 7))
)
DIGITS: dict[Precision, int] = {"bfloat16": 8, "float16": 11}


def read(x: Tensor, digits: int) -> Tensor:
    """The nearest number of so many binary digits, in float64."""
    mantissa, exponent = torch.frexp(x.double())
    return torch.ldexp((mantissa * 2.0**digits).round(), exponent - digits)


@pytest.mark.parametrize("precision", DIGITS)
@pytest.mark.parametrize("size", [1.0, 1e-9, 1e9])
def test_products_are_those_of_rounded_factors(precision: Precision, size: float) -> None:
    """Numbers far from 1 keep as many digits, though float16 has none of them."""
    x, weight, grad = (read(tensor * size, DIGITS[precision]) for tensor in (X, WEIGHT, GRAD))
    products = LoweredProducts(precision, X)
    assert relative(products.linear(X * size, WEIGHT * size), x @ weight.t()) < 1e-6
    assert relative(products.back(GRAD * size, WEIGHT * size), grad @ weight) < 1e-6
    bias, out, into = torch.arange(7.0), torch.empty(2, 30, 7), torch.ones(7, 9)
    assert products.linear(X, WEIGHT, bias, out=out) is out
    assert relative(out - bias, read(X, DIGITS[precision]) @ read(WEIGHT, DIGITS[precision]).t()) < 1e-6
    products.add_outer(into, GRAD, X)
    wanted = read(GRAD, DIGITS[precision]).t() @ read(X, DIGITS[precision]).flatten(0, 1)
    assert relative(into, 1 + wanted) < 1e-6
    rows = torch.ones(60, 9)
    products.add_back(rows, GRAD, WEIGHT)
    assert torch.equal(rows, 1 + products.back(GRAD, WEIGHT))


@pytest.mark.parametrize("value", [0.0, 1e-42, 3e38, float("nan"), float("inf")])
def test_the_ends_of_float32_and_what_is_no_number_stay_what_they_are(value: float) -> None:
    product = LoweredProducts("float16", X).linear(torch.full((1, 1), value), torch.ones(1, 1))
    if torch.tensor(value).isfinite():
        assert product.item() == pytest.approx(value, rel=0.05, abs=0)
    else:
        assert not product.isfinite().any()


def test_tf32_is_torchs_switch_for_a_block() -> None:
    before = torch.backends.cuda.matmul.fp32_precision
    with _tensor_cores():
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    assert torch.backends.cuda.matmul.fp32_precision == before


def test_what_cannot_be_lowered_is_refused() -> None:
    with pytest.raises(ValueError, match='precision must be "tf32", "bfloat16", "float16" or None for float32, got 16'):
        check_precision(16)
    with pytest.raises(ValueError, match='precision="bfloat16" lowers products of float32, got torch.float64'):
        LoweredProducts("bfloat16", X.double())
    with pytest.raises(ValueError, match='precision="tf32" is one of NVIDIA GPUs, got tensors on cpu'):
        LoweredProducts("tf32", X)
