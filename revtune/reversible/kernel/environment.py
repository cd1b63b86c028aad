"""The settings that decide the last bit of a float32 product, recorded when a sequence runs, restored to rewind it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch

_PRECISIONS = ("none", "ieee", "tf32", "bf16")
"""torch's names of float32 precisions; an environment's numbers are indices into these."""

NUMBERS = 3
"""Numbers that tell an environment."""


class Environment(NamedTuple):
    """Thread count, the switch for oneDNN, and the precisions of matmuls under which a sequence ran."""

    threads: int
    onednn: bool
    cpu_precision: str
    cuda_precision: str

    @classmethod
    def current(cls) -> Environment:
        """The settings now in force."""
        return cls(
            threads=torch.get_num_threads(),
            onednn=torch._C._get_mkldnn_enabled(),
            cpu_precision=_cpu_matmul().fp32_precision,
            cuda_precision=torch.backends.cuda.matmul.fp32_precision,
        )

    def numbers(self) -> list[int]:
        """These settings as `NUMBERS` numbers, so that they fit in a tensor."""
        cpu, cuda = map(_PRECISIONS.index, (self.cpu_precision, self.cuda_precision))
        return [self.threads, int(self.onednn), len(_PRECISIONS) * cpu + cuda]

    @classmethod
    def of(cls, numbers: list[int]) -> Environment:
        """The settings that `numbers` encodes."""
        threads, onednn, precisions = numbers
        cpu, cuda = divmod(precisions, len(_PRECISIONS))
        return cls(threads, bool(onednn), _PRECISIONS[cpu], _PRECISIONS[cuda])

    def _apply(self) -> None:
        torch.set_num_threads(self.threads)
        # torch.backends.mkldnn.enabled refuses to be set once the user has called disable_global_flags.
        torch._C._set_mkldnn_enabled(self.onednn)
        _cpu_matmul().fp32_precision = self.cpu_precision
        torch.backends.cuda.matmul.fp32_precision = self.cuda_precision

    @contextmanager
    def restored(self, device: torch.device) -> Iterator[None]:
        """Run under these settings, without autocast, and put the present ones back."""
        now = Environment.current()
        with ExitStack() as stack:
            if now != self:
                self._apply()
                stack.callback(now._apply)
            stack.enter_context(torch.autocast(device.type, enabled=False))
            yield


def _cpu_matmul() -> Any:
    """torch's switch for the precision of matmuls on CPU, which its stubs leave out."""
    return torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
