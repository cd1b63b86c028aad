"""What a block of code keeps and peaks at: memory, and the bits of its information buffers."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


class Usage(NamedTuple):
    """What one layer stores: bits, the bits that its gates forgot (while a meter runs), and units times steps."""

    name: str
    stored_bits: int
    ideal_bits: float
    unit_steps: int


@dataclass
class LayerReading:
    """What one layer stored.

    Attributes:
        stored_bits: bits of its buffer, 16 a spilled word and 32 a head.
        ideal_bits: bits that its gates forgot, the sum of -log2 z: the least any buffer could store.
        unit_steps: units times steps that were spilled. The last chunk of a training pass keeps its gates instead and
            is not counted.
    """

    stored_bits: int = 0
    ideal_bits: float = 0.0
    unit_steps: int = 0

    @property
    def bits_per_unit_step(self) -> float:
        """Stored bits a unit and step; 0 where nothing was spilled."""
        return self.stored_bits / self.unit_steps if self.unit_steps else 0.0


@dataclass
class Reading(LayerReading):
    """What a block used; complete when the block ends.

    Attributes:
        peak_bytes: the most memory in use during the block above what was in use when it began: allocated bytes on
            CUDA, resident anonymous memory on Linux. None where the system does not tell, or it was not asked.
        layers: what each layer stored, by its name.
    """

    peak_bytes: int | None = None
    layers: dict[str, LayerReading] = field(default_factory=dict)
    _outer: Reading | None = field(default=None, repr=False)
    _gauge: CudaGauge | ResidentGauge | None = field(default=None, repr=False)

    def numbers(self) -> dict[str, float]:
        """Bits and memory as numbers by name, "RevGRU layer 0/stored_bits" for a layer's, as any logger takes them.

        Memory that was not measured is left out.
        """
        found = _numbers(self) | ({} if self.peak_bytes is None else {"peak_bytes": self.peak_bytes})
        for name, layer in self.layers.items():
            found |= {f"{name}/{key}": value for key, value in _numbers(layer).items()}
        return found

    def add(self, usages: list[Usage]) -> None:
        """Add what layers store now, here and in the meters around this one."""
        if self._outer:
            self._outer.add(usages)
        for name, stored, ideal, unit_steps in usages:
            for reading in (self, self.layers.setdefault(name, LayerReading())):
                reading.stored_bits += stored
                reading.ideal_bits += ideal
                reading.unit_steps += unit_steps

    def note_peak(self) -> None:
        """Take the peak so far into account, here and in the next meter around this one that measures memory.

        That one cannot read it itself: there is one peak a process, which this meter's gauge reset when it was made.
        """
        if self._gauge:
            self.peak_bytes = max(self._gauge.peak(), self.peak_bytes or 0)
        outer = self.next_gauged()
        if outer and self._gauge and outer._gauge:
            outer.peak_bytes = max(
                (self.peak_bytes or 0) + self._gauge.before - outer._gauge.before, outer.peak_bytes or 0
            )

    def next_gauged(self) -> Reading | None:
        """The nearest meter around this one that measures memory."""
        outer = self._outer
        while outer and not outer._gauge:
            outer = outer._outer
        return outer


def _numbers(reading: LayerReading) -> dict[str, float]:
    return {name: getattr(reading, name) for name in ("stored_bits", "ideal_bits", "bits_per_unit_step")}


_running: ContextVar[Reading | None] = ContextVar("revtune_meter", default=None)


def active() -> bool:
    """Whether somebody is metering, so that ideal bits are worth counting."""
    return _running.get() is not None


def report(usages: Iterable[Usage]) -> None:
    """Tell the running meter, if any, what these layers store."""
    reading = _running.get()
    if reading is not None:
        reading.add(list(usages))


@contextmanager
def meter(*, peak: bool = True) -> Iterator[Reading]:
    """Measure a block: peak memory, stored and ideal bits, bits a unit and step, for each layer.

    The peak is that of the current CUDA device once CUDA is in use, whose peak statistics are reset; else of the
    process. Bits add up over the calls in the block; with `checkpoint_every`, over its segments, of which one at a time
    is kept. The last chunk keeps its gates instead of spilling, so a net and sequence small enough to be one chunk show
    0 bits; so does, on the kernel, a RevGRU that returns all its outputs, which tell every state.

    Args:
        peak: whether to measure memory, which takes a few tenths of a second where much is alive; bits take little.

    Example:
        >>> rnn = RevGRU(8, 16, output="last")
        >>> with meter() as used:
        ...     y, h_n = rnn(torch.randn(500, 64, 8))
        >>> used.stored_bits > used.ideal_bits > 0, list(used.layers)
        (True, ['RevGRU layer 0'])
    """
    reading = Reading(_outer=_running.get())
    if peak and (outer := reading.next_gauged()):
        outer.note_peak()  # before the new gauge resets it
    token = _running.set(reading)
    reading._gauge = _gauge() if peak else None
    try:
        yield reading
    finally:
        _running.reset(token)
        reading.note_peak()


class CudaGauge:
    """Peak of the bytes allocated on the current CUDA device since the gauge was made."""

    def __init__(self) -> None:
        torch.cuda.reset_peak_memory_stats()
        self.before = torch.cuda.memory_allocated()

    def peak(self) -> int:
        """The most bytes allocated since, above those allocated when the gauge was made."""
        return torch.cuda.max_memory_allocated() - self.before


class ResidentGauge:
    """Peak resident anonymous memory of this process since the gauge was made, on Linux."""

    def __init__(self) -> None:
        # Freed memory that stays resident could be used again without showing
        gc.collect()
        _trim()
        _CLEAR_REFS.write_text("5")  # resets VmHWM, the peak that Linux counts
        self.before = self._read("RssAnon")

    def peak(self) -> int:
        """Bytes above those resident when the gauge was made; file pages do not count."""
        # Linux keeps a peak of all resident pages alone, so those of files and shared memory are taken off as they are
        return max(0, self._read("VmHWM") - self._read("RssFile") - self._read("RssShmem") - self.before)

    def now(self) -> int:
        """Bytes resident now above those resident when the gauge was made."""
        _trim()
        return max(0, self._read("RssAnon") - self.before)

    @staticmethod
    def _read(field_name: str) -> int:
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field_name + ":"))
        return int(line.split()[1]) * 1024


def _gauge() -> CudaGauge | ResidentGauge | None:
    """The gauge for where tensors live; None where the system does not tell."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return CudaGauge()
    try:
        return ResidentGauge()
    except OSError:
        return None


def _trim() -> None:
    """Give freed memory back to the system, where the C library can."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):
        pass
