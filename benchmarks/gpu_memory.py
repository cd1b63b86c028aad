"""What a streamed step would take of a GPU's memory: a calculation on a CPU, where no kernel computes anything.

The step runs at its real shape, cut into chunks as on a GPU. Its launches do nothing, and a recorder stands for a CUDA
graph. Counted is every tensor that is there at once: chunks, states, gradients, logits, and the rooms of graphs. What
would be spilled is added, at the most that the limit on forgetting allows. Not counted is what a GPU takes besides:
what an allocator rounds up, work space of cuBLAS, the CUDA context, compiled kernels.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.gpu_parts import CPU, model
from revtune.program.bench.contestants import Contestant, Shape
from revtune.reversible.kernel.chunks import DEVICE_FACTOR

STEPS = 3
"""With the third all graphs are there."""

BUDGETS = tuple(f"revtune.reversible.{module}.budget_on" for module in ("layers.stack", "streams.readout"))
"""What decides how much a chunk, or a block of logits, takes."""

FORGOTTEN = 3.01
"""Bits that a unit loses a step at most, under the default limit of 3: forget gates are whole 1024ths."""


class Live(TorchDispatchMode):
    """Counts the bytes of tensors that operators have given out and somebody holds; `most` of them at once."""

    def __init__(self) -> None:
        super().__init__()
        self._storages = weakref.WeakSet[torch.UntypedStorage]()
        self.present = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return found

    def _note(self, storage: torch.UntypedStorage) -> None:
        if storage in self._storages:
            return
        self._storages.add(storage)
        size = storage.nbytes()
        self.present += size
        self.most = max(self.most, self.present)
        weakref.finalize(storage, self._gone, size)

    def _gone(self, size: int) -> None:
        self.present -= size


class Nothing:
    """What stands for a CUDA graph whose kernels compute nothing."""

    def __init__(self, launches: Callable[[], None], device: torch.device) -> None:
        launches()

    def replay(self) -> None:
        pass


def calculated(contestant: Contestant, shape: Shape) -> int:
    """The most bytes of one step, of its rooms and its words at the most, above its weights and tokens."""
    with _idle() as graphs:
        with Live() as live:
            step = model(contestant, shape, CPU)
            before = live.present
            for _ in range(STEPS):
                live.most = live.present
                step()
        assert len(graphs) and not graphs.failure
        return live.most - before + int(shape.steps * shape.batch * shape.hidden * FORGOTTEN / 8)


@contextmanager
def _idle() -> Iterator[Any]:
    """Within this block launches do nothing, and chunks are cut and captured as on a GPU; yields the graphs."""
    chunk_operators, operators, graphs = (
        import_module(f"revtune.reversible.kernel.triton.{name}") for name in ("chunk_operators", "operators", "graphs")
    )
    interpreter = import_module("triton.runtime.interpreter")
    with ExitStack() as stack:
        enter = stack.enter_context
        enter(mock.patch.object(interpreter.GridExecutor, "__call__", lambda *args, **options: None))
        for module in (chunk_operators, operators):
            enter(mock.patch.object(module, "digest", _no_digest))
        for budget in BUDGETS:
            enter(mock.patch(budget, lambda device, on_cpu: DEVICE_FACTOR * on_cpu))
        enter(mock.patch.dict(graphs.RECORDERS, cpu=Nothing))
        enter(mock.patch.object(graphs, "graphs", graphs.Graphs()))
        yield graphs.graphs


def _no_digest(tensors: list[Tensor]) -> Tensor:
    return tensors[0].new_zeros((), dtype=torch.int64)
