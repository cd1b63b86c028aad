"""Triton's arithmetic has no float64 and gives the bits of the float64 arithmetic that it stands for."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from revtune import Buffer
from revtune.reversible.cells import fixed
from revtune.reversible.kernel import backend
from tests.interpreted import fused
from tests.one_by_one import counts, forget_integers, gates, in_buffer

ENDS = torch.tensor([0.0, -0.0, 87.33, -87.33, 100.0, -100.0, 10.0, 0.35, -0.35, float("inf"), -float("inf")])


def random_gates(cases: int) -> tuple[Tensor, Tensor]:
    """Every forget integer many times, and heads that have room for it: of all sizes, at both ends too."""
    generator = torch.Generator().manual_seed(0)
    zi = torch.arange(1, 1025).repeat(-(-cases // 1024))
    high = (zi << 20).double()
    s = (16384 + torch.rand(len(zi), generator=generator, dtype=torch.float64) * (high - 16384)).floor()
    which = torch.randint(4, (len(zi),), generator=generator)
    s = torch.where(which == 0, 16384.0, torch.where(which == 1, high - 1, s))
    return zi.double(), s.clamp_max(2.0**30 - 1)


def random_counts(cases: int) -> Tensor:
    """Counts of all sizes below 2^52, and the ends."""
    generator = torch.Generator().manual_seed(1)
    size = 2.0 ** torch.randint(0, 53, (cases,), generator=generator).double()
    h = ((torch.rand(cases, generator=generator, dtype=torch.float64) * 2 - 1) * size).floor()
    h[:7] = torch.tensor([0, -1, 1, 2.0**52 - 1, 1 - 2.0**52, -1024, 1023])
    return h


def test_the_tests_own_multiply_add_rounds_once() -> None:
    generator = np.random.default_rng(0)
    a, b = (generator.standard_normal(2000).astype(np.float32) for _ in range(2))
    c = (-a * b * (1 + generator.standard_normal(2000) * 1e-7)).astype(np.float32)  # so that leading bits cancel
    exact = [Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z)) for x, y, z in zip(a, b, c, strict=True)]
    for found, wanted in zip(fused(a, b, c), exact, strict=True):
        below, above = (abs(Fraction(float(np.nextafter(found, np.float32(way)))) - wanted) for way in (-9e9, 9e9))
        assert abs(Fraction(float(found)) - wanted) <= min(below, above)


@pytest.mark.skipif(not backend.load() or backend.instructions() == "plain", reason="the CPU's kernel does not fuse")
def test_gates_are_those_of_the_cpu_kernel() -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.cat([torch.randn(40_000, generator=generator) * size for size in (0.1, 1, 10, 60)] + [ENDS])
    for found, wanted in zip(
        gates(x), (torch.ops.revtune.gate_sigmoid(x), torch.ops.revtune.gate_tanh(x)), strict=True
    ):
        assert torch.equal(found, wanted)
    assert all(bool(found.isnan()) for found in gates(torch.tensor([float("nan")])))


@pytest.mark.parametrize("top", [1023, 1024])
@pytest.mark.parametrize("bits", [None, 0.5, 3.0, 10.0])
def test_forget_integers_are_those_of_the_limit(bits: float | None, top: int) -> None:
    slope = 1.0 if bits is None else 1.0 - 2.0**-bits
    z = torch.cat([torch.linspace(0, 1, 20_001), (torch.arange(0, 2048) / 2048)])  # ties, too
    wanted = fixed.forget_integer(fixed.round_forget(z * slope + (1.0 - slope), top))
    assert torch.equal(forget_integers(z, slope, top).double(), wanted)


def test_counts_are_rounded_as_float64_rounds_them() -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(60_000, generator=generator) * 2.0 ** torch.randint(-45, 18, (60_000,), generator=generator)
    x[:8] = torch.tensor([0.0, -0.0, 2.0**-33, 3 * 2.0**-33, -(2.0**-33), 2.0**20 - 0.0625, 2.0**-10, 2.0**-130])
    near = (2.0**22 + torch.arange(0, 4096) / 2) * 2.0**-32  # halves, where a float32 stops having them
    x = torch.cat([x, near, -near])
    count, value = counts(x)
    assert torch.equal(count.double(), fixed.to_counts(x))
    assert torch.equal(value, fixed.from_counts(fixed.to_counts(x), torch.float32))


def test_push_and_pop_are_the_buffers() -> None:
    zi, s = random_gates(100_000)
    h = random_counts(len(zi))
    buffer = Buffer(1, len(zi))
    buffer.heads.copy_(s)
    wanted = buffer.multiply(h[None], zi[None])[0]
    assert not buffer.words
    count, head = in_buffer("push", h, s, zi)
    assert torch.equal(count.double(), wanted) and torch.equal(head.double(), buffer.heads[0])
    count, head = in_buffer("pop", count, head, zi)
    assert torch.equal(count.double(), h) and torch.equal(head.double(), s)


def test_popping_is_the_buffers_for_any_count_and_head() -> None:
    """Also where nothing was pushed, as after damage: two directions must go wrong in the same way, or none does."""
    zi, _ = random_gates(100_000)
    h, s = random_counts(len(zi)), torch.randint(2**14, 2**30, (len(zi),)).double()
    quotient = torch.floor(h / zi)
    a = s * zi + (h - quotient * zi)
    head = torch.floor(a / 1024)
    found = in_buffer("pop", h, s, zi)
    assert torch.equal(found[0].double(), quotient * 1024 + (a - head * 1024)) and torch.equal(found[1].double(), head)


def test_multiplying_without_a_buffer_rounds_as_float64_does() -> None:
    zi, s = random_gates(100_000)
    h = random_counts(len(zi))
    wanted = (h * zi).mul_(1 / 1024).round_()
    assert torch.equal(in_buffer("multiply_only", h, s, zi)[0].double(), wanted)
