"""A chunk's launches as one CUDA graph, captured over rooms of its own and replayed for every chunk like it.

A chunk takes four to six launches a step. From Python each of them takes longer than the kernel of a small layer; a
graph is launched once a chunk. It reads and writes the memory that it was captured over, with the numbers of then. So
a chunk's tensors are copied into rooms that stay where they are, and what launches have changed is copied back: states,
weights and masks may move between two chunks. All else that decides a launch is in the graph's key (rooms.py).

A chunk is captured when one like it comes a second time, after its launches have run over the rooms, so that nothing is
compiled while a graph is captured. Where it cannot be captured, launches stay one by one, and stderr is told once.
"""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from revtune.reversible.kernel.triton.chunk import Chunk
from revtune.reversible.kernel.triton.rooms import Rooms, described
from revtune.sequences import setting

FEWEST_STEPS = 8
"""Steps of a chunk below which launches stay one by one: copies would take as long."""

MOST_GRAPHS = 12
"""Graphs that are kept: those of two shapes of layers, there, back and their gradients, in chunks of two lengths."""

MOST_BYTES = 256 * 2**20
"""Bytes of all rooms together. A chunk's gates take up to 96 MiB (kernel/chunks.py), beside them stand its outputs."""

MOST_SEEN = 64
"""Kinds of chunks that are remembered to have come once."""

Launches = Callable[..., None]


class Recording(Protocol):
    """Launches that were captured."""

    def replay(self) -> None:
        """Run them again, over the same memory."""


class CudaRecording:
    """Launches captured in a CUDA graph, which has a memory pool of its own for what they allocate.

    Args:
        launches: launches them, and asks the device nothing.
        device: where.
    """

    def __init__(self, launches: Callable[[], None], device: torch.device) -> None:
        self._graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream(device)
        # Other threads may allocate meanwhile, as a loader's does that pins memory
        with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
            launches()

    def replay(self) -> None:
        self._graph.replay()


RECORDERS: dict[str, Callable[[Callable[[], None], torch.device], Recording]] = {"cuda": CudaRecording}
"""What captures launches, by the type of device. A CPU, where Triton interprets, has nothing to capture."""


class Graph(NamedTuple):
    """Captured launches and what they work on."""

    rooms: Rooms
    recording: Recording


class Graphs:
    """Graphs by what decides their launches; those that were not used for longest are let go.

    Graphs of one device and stream share rooms, as they run one after another.
    """

    def __init__(self) -> None:
        self._graphs: OrderedDict[Hashable, Graph] = OrderedDict()
        self._seen: OrderedDict[Hashable, None] = OrderedDict()
        self._rooms: dict[Hashable, WeakValueDictionary[Hashable, Tensor]] = {}
        self._lock = threading.Lock()
        self.failure = ""

    def __len__(self) -> int:
        return len(self._graphs)

    @property
    def bytes(self) -> int:
        """How much memory all rooms have."""
        rooms = (room for graph in list(self._graphs.values()) for room in graph.rooms.whole)
        return sum({id(room): room.nbytes for room in rooms}.values())

    def forget(self) -> None:
        """Let go of all graphs and their memory."""
        with self._lock:
            self._graphs.clear()
            self._seen.clear()
            self.failure = ""

    def run(self, launches: Launches, chunk: Chunk, args: tuple[Any, ...], changed: list[Tensor]) -> bool:
        """Replay the graph of a chunk like this one, or run and capture it; whether either was done.

        Arguments as in `launch`.
        """
        device, given = chunk.gates.device, (chunk, *args)
        place = (device, _stream_of(device))
        key = (place, launches, described(given))
        with self._lock:  # rooms are those of one chunk at a time
            graph = self._graphs.get(key)
            if graph is None:
                come = not self.failure and self._came_before(key)
                return come and self._capture(place, key, launches, given, changed)
            self._graphs.move_to_end(key)
            graph.rooms.fill(given)
            graph.recording.replay()
            graph.rooms.empty(given, changed)
        return True

    def _came_before(self, key: Hashable) -> bool:
        """Whether a chunk like this one has come before; it is remembered from now on."""
        if key in self._seen:
            return True
        self._seen[key] = None
        if len(self._seen) > MOST_SEEN:
            self._seen.popitem(last=False)
        return False

    def _capture(
        self, place: Hashable, key: Hashable, launches: Launches, given: tuple[Any, ...], changed: list[Tensor]
    ) -> bool:
        """Run launches over rooms and capture them there; whether they have run."""
        shared = self._rooms.setdefault(place, WeakValueDictionary())
        try:
            rooms = Rooms(given, shared)
            if rooms.bytes > MOST_BYTES:  # those of a longer chunk, which would stay as long as these
                rooms = Rooms(given, {})
        except torch.OutOfMemoryError as error:
            self._give_up(error)
            return False
        if rooms.bytes > MOST_BYTES:
            return False
        rooms.fill(given)
        launches(*rooms.args)
        assert rooms.only(given, changed), f"{launches.__name__} changes a tensor that it is not said to change"
        rooms.empty(given, changed)
        try:
            recording = RECORDERS[given[0].gates.device.type](lambda: launches(*rooms.args), given[0].gates.device)
        except Exception as error:  # whatever CUDA, its driver or Triton has against it: the numbers are there already
            self._give_up(error)
            return True
        self._graphs[key] = Graph(rooms, recording)
        while len(self._graphs) > 1 and (len(self._graphs) > MOST_GRAPHS or self.bytes > MOST_BYTES):
            self._graphs.popitem(last=False)
        return True

    def _give_up(self, error: Exception) -> None:
        """Capture nothing from now on, and say so."""
        self.failure = f"{type(error).__name__}: {error}".partition("\n")[0]
        print(f"revtune: no CUDA graph can be captured, launches stay one by one: {self.failure}", file=sys.stderr)


graphs = Graphs()
"""Those of this process."""

_captured: ContextVar[bool] = ContextVar("revtune_captured", default=True)


def one_by_one() -> AbstractContextManager[None]:
    """Within this block nothing is captured or replayed."""
    return setting(_captured, False)


def launch(launches: Launches, chunk: Chunk, *args: Any, changed: list[Tensor | None]) -> None:
    """Run `launches(chunk, *args)`, or replay a graph of it.

    Args:
        launches: launches kernels and torch's operators, and asks the device nothing.
        chunk: what it works on.
        args: numbers, tensors and tuples of such.
        changed: the tensors among all these that it changes.
    """
    known = [tensor for tensor in changed if tensor is not None]
    if not (_may_capture(chunk) and graphs.run(launches, chunk, args, known)):
        launches(chunk, *args)


def _may_capture(chunk: Chunk) -> bool:
    """Whether a chunk's launches may be captured: not where somebody else records what runs."""
    device = chunk.gates.device
    if device.type not in RECORDERS or chunk.steps < FEWEST_STEPS or not _captured.get():
        return False
    return not (torch.is_grad_enabled() or torch.compiler.is_compiling() or _is_captured(device))


def _is_captured(device: torch.device) -> bool:
    """Whether the caller captures a graph of its own."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _stream_of(device: torch.device) -> int:
    """The stream that launches go to."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
