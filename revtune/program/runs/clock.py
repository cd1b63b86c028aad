"""Time spent on a run, by the wall's clock and by the processor's, over all the processes that it took."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal
import contextlib
from dataclasses import dataclass
from dataclasses import field
import time


Kind = Literal["wall", "cpu"]


@dataclass
class Clock:
    """Seconds that count, from when it is made on, those that it is given among them.

    Args:
        wall: by the wall's clock.
        cpu: by the processor's, of all threads of this process.

    Example:
        >>> clock = Clock(wall=60.0)
        >>> with clock.stopped():
        ...     time.sleep(0.01)
        >>> 60 <= clock.read("wall") < 60.01
        True
    """

    wall: float = 0.0
    cpu: float = 0.0
    _since: tuple[float, float] = field(default_factory=lambda: (time.perf_counter(), time.process_time()))

    def now(self) -> dict[str, float]:
        """Seconds of both kinds so far."""
        wall, cpu = self._since
        return {
            "wall": round(self.wall + time.perf_counter() - wall, 3),
            "cpu": round(self.cpu + time.process_time() - cpu, 3),
        }

    def read(self, kind: Kind) -> float:
        """Seconds of one kind so far."""
        return self.now()[kind]

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """What happens in here does not count."""
        spent = self.now()
        try:
            yield
        finally:
            self.wall, self.cpu = spent["wall"], spent["cpu"]
            self._since = time.perf_counter(), time.process_time()
