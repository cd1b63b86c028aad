"""What a block of code keeps and peaks at."""

import os
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import revtune as rt
from revtune.reversible import meter as metering
from revtune.reversible.meter import Reading
from tests.backends import on_native, on_reference
from tests.chunking import set_budget, set_stack_chunk_steps
from tests.mapped import mapped

BACKENDS = ("reference", "native")

WEIGHTS = {"ih": torch.randn(24, 5), "hh": torch.randn(24, 4)}


@pytest.fixture(autouse=True)
def _chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    set_budget(monkeypatch, 20_000)


def peak(used: Reading) -> int:
    """The peak of a block, which must be known wherever the system tells it."""
    if used.peak_bytes is None:
        assert sys.platform != "linux" or not os.access("/proc/self/clear_refs", os.W_OK), "the gauge is broken"
        pytest.skip("this system does not tell a peak")
    return used.peak_bytes


def test_bits_are_those_of_the_buffer_and_at_least_what_was_forgotten(backend: str) -> None:
    with rt.meter() as used:
        recording = rt.record(rt.rev_gru(3.0), torch.randn(200, 3, 5), weights=WEIGHTS, chunk=50)
    buffer = recording.tape.buffer
    counts = 4 * 3 if backend == "native" else 0  # of words, one for each of the four chunks and its three rows
    assert used.stored_bits == buffer.stored_bits == 16 * buffer.words + 32 * (buffer.heads.numel() + counts)
    assert used.unit_steps == 200 * 3 * 8
    assert 0 < used.ideal_bits <= used.stored_bits < 1.2 * used.ideal_bits + 32 * (buffer.heads.numel() + counts)
    assert used.bits_per_unit_step == used.stored_bits / used.unit_steps


def test_ideal_bits_are_the_logarithms_of_the_gates() -> None:
    """With a forget gate that stays closed up to the limit, each unit forgets exactly that many bits a step."""
    weights = {"ih": torch.zeros(24, 5), "hh": torch.zeros(24, 4), "bias": torch.full((24,), -1e3)}
    with rt.meter() as used:
        rt.record(rt.rev_gru(2.0), torch.zeros(50, 3, 5), weights=weights)
    assert used.ideal_bits == pytest.approx(2.0 * 50 * 3 * 8)


def test_padding_costs_nothing_and_is_not_counted() -> None:
    with rt.meter() as used:
        rt.record(rt.rev_gru(3.0), torch.randn(200, 3, 5), weights=WEIGHTS, lengths=torch.tensor([200, 5, 60]))
    with rt.meter() as whole:
        rt.record(rt.rev_gru(3.0), torch.randn(200, 3, 5), weights=WEIGHTS)
    assert used.unit_steps == 265 * 8
    assert used.ideal_bits == pytest.approx(whole.ideal_bits * 265 / 600, rel=0.1)


def test_layers_are_told_apart_and_add_up() -> None:
    rnn = rt.RevLSTM(5, 8, 2, bidirectional=True)
    with rt.meter() as used:
        rnn(torch.randn(120, 3, 5))
        rnn(torch.randn(120, 3, 5))
    assert list(used.layers) == [
        "RevLSTM layer 0",
        "RevLSTM layer 0, reverse",
        "RevLSTM layer 1",
        "RevLSTM layer 1, reverse",
    ]
    for name in ("stored_bits", "ideal_bits", "unit_steps"):
        assert getattr(used, name) == pytest.approx(sum(getattr(layer, name) for layer in used.layers.values()))
    assert 0 < used.layers["RevLSTM layer 1"].bits_per_unit_step < 32


@on_reference
def test_the_last_chunk_is_not_counted_because_nothing_of_it_is_spilled(monkeypatch: pytest.MonkeyPatch) -> None:
    set_stack_chunk_steps(monkeypatch, 30)
    with rt.meter() as used:
        rt.RevGRU(5, 8)(torch.randn(120, 3, 5))
    assert used.unit_steps == 90 * 3 * 8
    with rt.meter() as short:
        rt.RevGRU(5, 8)(torch.randn(30, 3, 5))
    assert (short.stored_bits, short.ideal_bits, short.unit_steps, short.bits_per_unit_step) == (0, 0.0, 0, 0.0)


@on_native
def test_outputs_tell_all_but_what_a_lstm_keeps_in_c() -> None:
    x = torch.randn(120, 3, 5)
    with rt.meter() as used:
        rt.RevGRU(5, 8)(x)
    assert (used.stored_bits, used.ideal_bits, used.unit_steps) == (0, 0.0, 0)
    with rt.meter() as used:
        rt.RevLSTM(5, 8)(x)
    assert used.unit_steps == 120 * 3 * 8 and 0 < used.ideal_bits < used.stored_bits


def test_without_forgetting_nothing_is_forgotten() -> None:
    with rt.meter() as used:
        rt.RevGRU(5, 8, forgetting=False, output="last")(torch.randn(120, 3, 5))
    assert used.ideal_bits == 0 and used.unit_steps > 0


@pytest.mark.parametrize("every", [None, 40])
def test_a_stream_reports_the_bits_of_its_segments(every: int | None) -> None:
    rnn, head = rt.RevGRU(5, 8), rt.LinearCrossEntropy(8, 7)
    x, targets = torch.randn(120, 3, 5), torch.randint(7, (120, 3))
    with rt.meter() as used:
        rt.rewind_loss(rnn, x, targets, readout=head, checkpoint_every=every)[0].backward()
    assert 0 < used.unit_steps < 120 * 3 * 8 and used.stored_bits > used.ideal_bits > 0


def test_no_gradient_stores_nothing() -> None:
    with rt.meter() as used, torch.no_grad():
        rt.RevGRU(5, 8)(torch.randn(120, 3, 5))
        rt.rewind_loss(
            rt.RevGRU(5, 8), torch.randn(9, 2, 5), torch.zeros(9, 2).long(), readout=rt.LinearCrossEntropy(8, 7)
        )
    assert used.stored_bits == 0 and used.layers == {}


def test_metering_changes_no_number() -> None:
    rnn, x = rt.RevGRU(5, 8, 2), torch.randn(120, 3, 5)
    plain = torch.autograd.grad(rnn(x)[0].square().sum(), list(rnn.parameters()))
    with rt.meter():
        metered = torch.autograd.grad(rnn(x)[0].square().sum(), list(rnn.parameters()))
    assert all(map(torch.equal, plain, metered))


def test_peak_bytes_are_those_of_the_most_that_was_alive() -> None:
    with rt.meter() as used:
        for _ in range(3):
            mapped(64 * 2**20)
    assert 63 * 2**20 < peak(used) < 80 * 2**20
    with rt.meter() as after:
        pass
    assert peak(after) < 4 * 2**20


def test_where_the_system_does_not_tell_the_peak_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(metering, "_CLEAR_REFS", tmp_path / "missing" / "clear_refs")
    with rt.meter() as used:
        nn.Linear(2, 2)
    assert used.peak_bytes is None


def test_bits_alone_are_counted_without_a_look_at_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    rnn, x = rt.RevLSTM(5, 8), torch.randn(120, 3, 5)
    with rt.meter() as whole:
        with rt.meter(peak=False) as used:
            rnn(x)
    assert used.peak_bytes is None and whole.peak_bytes is not None
    assert used.stored_bits == whole.stored_bits > 0 and used.ideal_bits == whole.ideal_bits
    monkeypatch.setattr(metering, "_gauge", lambda: pytest.fail("memory was looked at"))
    with rt.meter(peak=False):
        pass


def test_a_meter_of_bits_between_two_others_hides_no_peak() -> None:
    with rt.meter() as whole, rt.meter(peak=False):
        mapped(200_000_000)
        with rt.meter():
            pass
    assert whole.peak_bytes is not None and whole.peak_bytes > 190_000_000


def test_a_block_that_fails_ends_its_metering() -> None:
    with pytest.raises(KeyError), rt.meter():
        assert metering.active()
        raise KeyError("stop")
    assert not metering.active()


def test_an_outer_meter_hears_what_an_inner_one_hears() -> None:
    with rt.meter() as outer:
        rt.record(rt.rev_gru(3.0), torch.randn(50, 3, 5), weights=WEIGHTS)
        with rt.meter() as inner:
            rt.record(rt.rev_gru(3.0), torch.randn(50, 3, 5), weights=WEIGHTS)
            mapped(64 * 2**20)
        assert metering.active()
    assert outer.unit_steps == 2 * inner.unit_steps and outer.stored_bits > inner.stored_bits > 0
    assert peak(outer) > 63 * 2**20


def test_a_reading_is_plain_numbers_by_name() -> None:
    with rt.meter(peak=False) as used:
        rt.record(rt.rev_gru(3.0), torch.randn(50, 3, 5), weights=WEIGHTS)
    numbers, (layer,) = used.numbers(), used.layers
    assert numbers["stored_bits"] == used.stored_bits == numbers[f"{layer}/stored_bits"] > 0
    assert "peak_bytes" not in numbers and all(type(value) in (int, float) for value in numbers.values())
    with rt.meter() as used:
        pass
    assert used.numbers().keys() == {"stored_bits", "ideal_bits", "bits_per_unit_step", "peak_bytes"}


@pytest.mark.parametrize("kept", [False, True])
def test_an_outer_meter_remembers_what_peaked_before_an_inner_one(kept: bool) -> None:
    with rt.meter() as outer:
        large = [mapped(100_000_000)]
        if not kept:
            large.clear()
        with rt.meter() as inner:
            mapped(16 * 2**20)
    assert 15 * 2**20 < peak(inner) < 32 * 2**20
    assert 99_000_000 < peak(outer) < 150_000_000


def test_where_cuda_is_in_use_its_allocator_tells_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above what was allocated before, since the peak was reset."""
    allocated = {"now": 1000, "peak": 9000}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: allocated.update(peak=allocated["now"]))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: allocated["now"])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: allocated["peak"])
    with rt.meter() as used:
        allocated.update(now=1500, peak=4000)
    assert used.peak_bytes == 3000
