"""Which backend runs, a kernel or plain torch, and why; and the C++ kernel, loaded.

REVTUNE_BACKEND says what is wanted: `auto`, the default, takes the kernel if there is one; `native` needs it;
`reference` leaves it alone. The kernel comes from the wheel, from the cache, or from a C++ compiler, once a process.
REVTUNE_ISA names an instruction set for it. Without, the kernel takes the widest one that the processor has.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from revtune.errors import BackendError, SettingError
from revtune.reversible.cells.cell import Cell
from revtune.reversible.kernel import build
from revtune.reversible.kernel.engine import Engine, triton_takes
from revtune.reversible.kernel.untraced import constant

BACKENDS = ("auto", "native", "reference")
"""What REVTUNE_BACKEND may ask for."""

CHOICES = (*BACKENDS, "triton")
"""What `backend=` may ask for. Triton's kernel has not run on hardware yet, so that only who asks for it gets it."""

INSTRUCTION_SETS = ("avx512", "avx2", "plain")

KERNEL_WEIGHTS = frozenset(("ih", "bias", "hh"))
"""The weights that the kernel knows. A layer with others runs in plain torch."""

SOURCE = Path(__file__).with_name("csrc")


@dataclass(frozen=True)
class KernelLookup:
    """What came of looking for the kernel: the loaded library and its origin, or why there is none."""

    library: Path | None = None
    origin: str = ""
    reason: str = ""


_lock = threading.Lock()
"""Held by the thread that looks for the kernel, and by whoever changes what follows."""

_lookup: KernelLookup | None = None
"""The result of this process's one lookup."""

_fallback_told = False
"""Whether stderr has been told that plain torch runs instead."""

_waiting: list[Callable[[], None]] = []
"""What is to be called once the operators are there."""


def check_backend(backend: str) -> None:
    """Refuse a backend that there is not.

    Raises:
        ValueError: names those that there are.
    """
    if backend not in CHOICES:
        raise ValueError(f'backend must be "auto", "native", "reference" or "triton", got {backend!r}')


def chosen(
    backend: str, cell: Cell, like: Tensor, weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]
) -> Engine:
    """Which kernel is to run this layer, if any.

    Args:
        backend: one of `CHOICES`, as users name it: `scan` leaves the check of it to this function.
        cell, weights, masks: of the layer.
        like: any tensor with the device and dtype of its input.

    Raises:
        BackendError: a kernel is asked for and cannot be had.
        ValueError: it is asked for and does not have this cell, dtype, device or mask; or there is no such backend.
    """
    check_backend(backend)
    if backend == "reference":
        return ""
    fits = "hh" in weights and set(weights) <= KERNEL_WEIGHTS and set(masks) <= set(cell.states[0])
    if backend == "triton":
        return in_triton(cell, like, fits)
    float32_on_cpu = like.device.type == "cpu" and like.dtype == torch.float32
    if cell.native is not None and float32_on_cpu and fits:
        return "native" if load() or (backend == "native" and insist()) else ""
    if backend == "native":
        raise ValueError(
            f'backend="native" runs RevGRU and RevLSTM in float32 on the CPU, with masks on h alone; got {cell.name}, '
            f"{like.dtype} on {like.device}, weights {tuple(weights)}, masks {tuple(masks)}"
        )
    return ""


def in_triton(cell: Cell, like: Tensor, fits: bool) -> Engine:
    """Triton's kernel, which has been asked for.

    Args:
        cell: of the layer.
        like: as in `chosen`.
        fits: whether its weights and masks are such as kernels take.

    Raises:
        BackendError: the package triton is not there.
        ValueError: the kernel does not run such a layer.
    """
    if cell.native is not None and fits and like.dtype == torch.float32 and triton_takes(like.device):
        return "triton"
    raise ValueError(
        'backend="triton" runs RevGRU and RevLSTM in float32 on an NVIDIA GPU, with masks on h alone; '
        f"got {cell.name}, {like.dtype} on {like.device}"
    )


@constant  # else torch.compile would trace the search for a library
def load() -> bool:
    """Whether the operators torch.ops.revtune.* are there and to be used. The first call may compile them.

    Raises:
        BackendError: if REVTUNE_BACKEND is `native` and the kernel cannot be had, or if it can be had and does not have
            the instruction set that REVTUNE_ISA names.
        SettingError: if REVTUNE_BACKEND is none of the three, or REVTUNE_ISA names no instruction set.
    """
    global _fallback_told
    wanted = backend()
    if wanted == "reference":
        return False
    kernel = find()
    if kernel.library:
        return True
    if wanted == "native":
        raise BackendError(f"REVTUNE_BACKEND is native, but {kernel.reason}")
    with _lock:
        told, _fallback_told = _fallback_told, True
    if not told:
        print(f"revtune: plain torch runs, slower: {first_line(kernel.reason)}; see revtune doctor", file=sys.stderr)
    return False


def at_hand() -> bool:
    """Whether the operators are there, or `load` brings them: for a program that was traced in another process."""
    return bool(_lookup and _lookup.library) or load()


@constant
def insist() -> bool:
    """Load the kernel even where REVTUNE_BACKEND would leave it alone.

    Raises:
        BackendError: it cannot be had.
    """
    kernel = find()
    if not kernel.library:
        raise BackendError(f'backend="native" cannot be had: {kernel.reason}')
    return True


def backend() -> str:
    """What REVTUNE_BACKEND asks for."""
    wanted = os.environ.get("REVTUNE_BACKEND") or "auto"
    if wanted not in BACKENDS:
        raise SettingError(f"REVTUNE_BACKEND must be one of {', '.join(BACKENDS)}, got {wanted!r}")
    return wanted


def wanted_instructions() -> str:
    """The instruction set that REVTUNE_ISA asks for; empty when it asks for none."""
    wanted = os.environ.get("REVTUNE_ISA") or ""
    if wanted and wanted not in INSTRUCTION_SETS:
        raise SettingError(f"REVTUNE_ISA must be one of {', '.join(INSTRUCTION_SETS)}, got {wanted!r}")
    return wanted


def when_loaded(then: Callable[[], None]) -> None:
    """Call `then` once the operators are there, now or later."""
    with _lock:
        if _lookup is None or not _lookup.library:
            _waiting.append(then)
            return
    then()


def find() -> KernelLookup:
    """Load the kernel, once a process, or find out why it cannot be.

    Raises:
        BackendError, SettingError: for the instruction set that REVTUNE_ISA names, as in `load`.
    """
    global _lookup
    if _lookup is None:
        with _lock:
            if _lookup is None:  # no other thread has looked since
                wanted = wanted_instructions()
                kernel = load_first()
                if kernel.library:
                    check_instructions(wanted)
                while kernel.library and _waiting:
                    _waiting[-1]()
                    _waiting.pop()  # only now: a call that raises is made again by the next lookup
                _lookup = kernel
    return _lookup


def check_instructions(wanted: str) -> None:
    """Refuse a kernel that has chosen another instruction set than the wanted one.

    Raises:
        BackendError: names both.
    """
    if wanted and (given := instructions()) != wanted:
        raise BackendError(f"REVTUNE_ISA asks for {wanted}, which this processor or compiler lacks; {given} can be had")


def load_first() -> KernelLookup:
    """Load the first library that loads; where those in the cache do not, one is compiled in their place."""
    reasons = []
    try:
        for origin, library in libraries():
            try:
                load_library(library)
                return KernelLookup(library, origin)
            except OSError as error:
                reasons.append(f"{library} does not load: {error.__cause__ or error}")
    except (BackendError, OSError, UnicodeDecodeError) as error:
        reasons.append(str(error))
    return KernelLookup(reason="; ".join(reasons))


def load_library(library: Path) -> None:
    """Have torch load a library.

    Raises:
        OSError: it does not load, or has no operators of revtune.
    """
    torch.ops.load_library(library)
    if not hasattr(torch.ops.revtune, "instruction_set"):
        raise OSError("it has no operators of revtune")


def libraries() -> Iterator[tuple[str, Path]]:
    """Each library that may serve, with its origin: from the wheel, from the cache, compiled now.

    To ask for the next one is to say that the last did not load.
    """
    if sys.platform == "win32":
        raise BackendError("there is no kernel for Windows")
    shipped = Path(__file__).with_name(shipped_name())
    if shipped.is_file():
        yield "from the wheel", shipped
    command = build.compiler()
    key = build.build_key(SOURCE, command)
    broken = []
    for library in build.cached(key):
        yield "from the cache", library
        broken.append(library)
    if any(map(build.given_up, broken)):  # a process before this one has been here
        raise BackendError(f"it was compiled again, in vain; without {broken[0].parent} that is tried once more")
    library = build.library(SOURCE, command, key, broken=broken)
    yield f"compiled by {Path(command[0]).name}", library
    build.give_up(library)


def shipped_name() -> str:
    """The file name of a wheel's library. It holds the digest of the source, so that no other source's is loaded."""
    return f"kernel-{build.source_key(SOURCE)}.so"


def explain() -> str:
    """Which backend runs and why, in a line."""
    wanted = backend()
    if wanted == "reference":
        return "reference (plain torch): REVTUNE_BACKEND asks for it"
    kernel = find()
    if kernel.library:
        return f"native ({instructions()}, {kernel.origin}, {kernel.library})"
    if wanted == "native":
        return f"none, as REVTUNE_BACKEND is native, but {first_line(kernel.reason)}"
    return f"reference (plain torch): {first_line(kernel.reason)}"


def explain_gpu() -> str:
    """Which backend runs tensors on a GPU and why, in a line."""
    if importlib.util.find_spec("triton") is None:
        asked = 'backend="triton" would need the package triton, extra gpu'
    else:
        asked = f'triton {version("triton")} where backend="triton" asks for it, which was never run on hardware'
        if not any(map(shutil.which, ("cc", "gcc", "clang"))):
            asked += "; it would need a C compiler, and there is none"
    return f"reference (plain torch); {asked}; {gpus()}"


def gpus() -> str:
    """The GPUs of this machine, or why there are none."""
    if torch.version.cuda is None:
        return "this torch has no CUDA"
    if not torch.cuda.is_available():
        return "CUDA finds no GPU"
    return ", ".join(
        f"cuda:{number} is {torch.cuda.get_device_name(number)}" for number in range(torch.cuda.device_count())
    )


def instructions() -> str:
    """The instruction set that the loaded kernel chose on this machine."""
    chosen: str = torch.ops.revtune.instruction_set()
    return chosen


def first_line(text: str) -> str:
    """A message's first line."""
    return text.partition("\n")[0]


def ship(folder: Path) -> Path:
    """Compile the kernel for a wheel, into a folder under the name that a wheel's library has."""
    command = build.compiler()
    library = build.library(SOURCE, command, build.build_key(SOURCE, command))
    folder.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy(library, folder / shipped_name()))
