"""The settings that decide the last bit of a float32 product: recorded when a sequence runs, restored when it is rewound."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Environment:
    """Thread count, matmul precision and backend switches under which a sequence ran."""

    threads: int
    precision: str
    onednn: bool
    tf32: bool
    cudnn: bool

    @classmethod
    def current(cls) -> Environment:
        """The settings now in force."""
        return cls(
            threads=torch.get_num_threads(),
            precision=torch.get_float32_matmul_precision(),
            onednn=torch._C._get_mkldnn_enabled(),
            tf32=torch.backends.cuda.matmul.allow_tf32,
            cudnn=torch.backends.cudnn.enabled,
        )

    def _apply(self) -> None:
        torch.set_num_threads(self.threads)
        torch.set_float32_matmul_precision(self.precision)
        torch._C._set_mkldnn_enabled(self.onednn)
        torch.backends.cuda.matmul.allow_tf32 = self.tf32
        torch.backends.cudnn.enabled = self.cudnn

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
