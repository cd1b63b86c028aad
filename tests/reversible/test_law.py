"""Bits stored over bits forgotten: 1 + 24.3 / (k T b), for k units a head, T steps and b forgotten bits a step."""

from collections.abc import Callable

import pytest
import torch

import revtune as rt

BACKENDS = ("reference", "native")


def stored_over_ideal(cell: rt.Cell, steps: int, share: int, *, rows: int, hidden: int) -> tuple[float, float]:
    """Stored over ideal bits, and forgotten bits a unit and step, of a net with random weights on random words."""
    generator = torch.Generator().manual_seed(steps + share)
    units, inputs = hidden // 2, hidden
    weights = {
        "ih": torch.randn(cell.blocks * units, inputs, generator=generator) / inputs**0.5,
        "hh": torch.randn(cell.blocks * units, units, generator=generator) / units**0.5,
    }
    with rt.meter() as used:
        rt.record(cell, torch.randn(steps, rows, inputs, generator=generator), weights=weights, share=share)
    return used.stored_bits / used.ideal_bits, used.ideal_bits / used.unit_steps


@pytest.mark.parametrize(
    ("limit", "steps", "share", "rows", "hidden", "most"),
    [
        (None, 20, 16, 20, 650, 1.3),
        (None, 70, 16, 20, 650, 1.07),
        (None, 70, 4, 8, 256, 1.3),
        (None, 1000, 16, 4, 64, 1.01),
        (None, 1000, 4, 4, 64, 1.02),
        (3.0, 20, 16, 20, 650, 1.3),
        (3.0, 70, 16, 20, 650, 1.07),
    ],
)
@pytest.mark.parametrize("make", [rt.rev_gru, rt.rev_lstm])
@pytest.mark.covering(1)
def test_stored_bits_obey_the_law(
    make: Callable[[float | None], rt.Cell],
    limit: float | None,
    steps: int,
    share: int,
    rows: int,
    hidden: int,
    most: float,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ratio, bits = stored_over_ideal(make(limit), steps, share, rows=rows, hidden=hidden)
    law = 1 + 24.3 / (share * steps * bits)
    with capsys.disabled():
        where = f"limit {limit}, T {steps}, k {share}, {bits:.2f} bits a step"
        print(f"\n{where}: stored / ideal {ratio:.3f}, law {law:.3f}", end="")
    assert 1 < ratio <= most
    assert abs(ratio - law) < 0.25 * (law - 1) + 0.002
