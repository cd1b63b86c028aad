"""The C++ kernel compiled from its source, and the user's cache of compiled kernels.

A library's name holds two digests. The first is of all that it was made from: sources, options, compiler, machine. The
second is of its own bytes, so that a file cut short is never loaded, and processes that race write the same file.
Torch's version is in neither: the kernel uses the stable interface of torch 2.10 and runs under any later torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shlex
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path

import torch

from revtune.errors import BackendError
from revtune.reversible.kernel.compiler_process import answer, told_if_long

COMPILERS = ("g++", "clang++", "c++")
"""The commands that are tried, in this order, where CXX is not set."""

SCRATCH = ".build-"
"""How the names of folders begin in which a compilation is under way."""

OPTIONS = (
    "-std=c++20",
    "-O3",
    "-ffp-contract=off",  # a multiply-add is fused only where the source says so: gates must repeat bit for bit
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
    "-DTORCH_TARGET_VERSION=0x020a000000000000",  # the stable interface of torch 2.10
)
"""The compiler's options. They are part of the build key: a change here makes every user's kernel compile again."""

PATIENCE, ANSWER_PATIENCE = 600.0, 60.0
"""The most seconds that a compilation may take, and that the compiler may take to tell its version."""


def compiler() -> list[str]:
    """The command of the C++ compiler: CXX, which may hold arguments, or else the first of g++, clang++ and c++."""
    words = setting("CXX")
    names = words[:1] or COMPILERS
    found = next(filter(None, map(shutil.which, names)), None)
    if found:
        return [os.path.abspath(found), *words[1:]]
    if words:
        raise BackendError(f"CXX names {words[0]}, which is not found")
    raise BackendError(f"no C++ compiler is found, none of {', '.join(COMPILERS)}; install g++ or set CXX")


def options() -> list[str]:
    """The compiler's options. Those of REVTUNE_CXXFLAGS come last, where they win."""
    return [*OPTIONS, *setting("REVTUNE_CXXFLAGS")]


def setting(name: str) -> list[str]:
    """The words of an environment variable, split as a shell does."""
    try:
        return shlex.split(os.environ.get(name, ""))
    except ValueError as error:
        raise BackendError(f"{name} cannot be read: {error}") from error


def source_key(source: Path) -> str:
    """A digest of the sources, the options and the kind of machine."""
    files = [path for pattern in ("*.cpp", "*.h") for path in sorted(source.glob(pattern))]
    if source / "revtune.cpp" not in files:
        raise BackendError(f"{source / 'revtune.cpp'} is missing")
    texts = [text for path in files for text in (path.name, path.read_text(encoding="utf-8"))]
    return digest("\0".join([platform.system(), platform.machine(), *options(), *texts]).encode())


def build_key(source: Path, command: list[str]) -> str:
    """A digest of all that a compiled kernel depends on: `source_key`, the compiler with its version, the C library."""
    name = Path(command[0]).name
    with told_if_long(f"waiting for {name} to tell its version, for {ANSWER_PATIENCE:g} seconds at most"):
        version = answer([*command, "--version"], source, dict(os.environ), patience=ANSWER_PATIENCE)
    return digest("\0".join([source_key(source), *command, version, *platform.libc_ver()]).encode())


def digest(data: bytes) -> str:
    """Sixteen hexadecimal digits of the data's SHA-256."""
    return hashlib.sha256(data).hexdigest()[:16]


def folders() -> list[Path]:
    """Where compiled kernels are kept: the user's cache, or else a folder of the user's own among temporary files."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    cache = cache if os.path.isabs(cache) else os.path.expanduser("~/.cache")
    own = [Path(os.path.realpath(cache), "revtune")] if os.path.isabs(cache) else []  # without a home `~` stays
    return [*own, Path(tempfile.gettempdir(), f"revtune-{os.geteuid()}")]


def safe(folder: Path) -> bool:
    """Whether a folder is the user's own and nobody else may write there, since what lies in it will be run."""
    try:
        status = folder.lstat()  # of a link itself, not of the folder that it leads to
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022


def cached(key: str) -> Iterator[Path]:
    """The libraries of a key; those cut short or changed are passed over."""
    for folder in filter(safe, folders()):
        for path in sorted(folder.glob(f"revtune-{key}-*.so")):
            with contextlib.suppress(OSError):
                if path.stem.endswith(digest(path.read_bytes())):
                    yield path


def library(source: Path, command: list[str], key: str, *, broken: Collection[Path] = ()) -> Path:
    """The compiled kernel, compiled into the first folder that serves, once however many processes ask.

    Args:
        source: folder of the sources.
        command: the compiler.
        key: `build_key` of both.
        broken: libraries of this key that do not load, to be compiled again.
    """
    folder = next(filter(writable, folders()), None)
    if folder is None:
        raise BackendError(f"the compiled kernel cannot be kept in {' or '.join(map(str, folders()))}")
    with locked(folder):
        # Another process may have compiled it while this one waited for the lock.
        whole = (path for path in cached(key) if path not in broken)
        return next(whole, None) or compile_into(folder, source, command, key)


def writable(folder: Path) -> bool:
    """Whether compiled kernels can be kept in a folder, made if it is not there."""
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return safe(folder) and os.access(folder, os.W_OK | os.X_OK)


def compile_into(folder: Path, source: Path, command: list[str], key: str) -> Path:
    """Compile under a name of our own, and move the finished library to its place in one step."""
    sweep(folder)
    name = Path(command[0]).name
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=folder) as scratch, locked(Path(scratch)):
        made = Path(scratch, "revtune.so")
        preloads = ("LD_PRELOAD", "DYLD_INSERT_LIBRARIES")  # a sanitizer preloaded here would run in the compiler too
        environment = {name: value for name, value in os.environ.items() if name not in preloads}
        environment |= {"LC_ALL": "C", "TMPDIR": scratch}  # errors in English, leavings where `sweep` finds them
        command = [*command, *options(), "revtune.cpp", "-o", str(made), *torch_options()]
        with told_if_long(f"compiling the kernel by {name}, once; this takes half a minute or so"):
            answer(command, source, environment, patience=PATIENCE)
        if not made.is_file():
            raise BackendError(f"{name} made no library, though it reported no error")
        return made.replace(folder / f"revtune-{key}-{digest(made.read_bytes())}.so")


def sweep(folder: Path) -> None:
    """Remove what killed compilations left in a folder; one that still runs holds a lock on its own."""
    for scratch in folder.glob(SCRATCH + "*"):
        with contextlib.suppress(OSError):
            descriptor = os.open(scratch, os.O_RDONLY)
            try:
                if try_lock(descriptor):
                    shutil.rmtree(scratch)
            finally:
                os.close(descriptor)


def give_up(library: Path) -> None:
    """Note that a library just compiled does not load, so that not every process compiles it again."""
    with contextlib.suppress(OSError):
        library.with_suffix(".broken").touch()


def given_up(library: Path) -> bool:
    """Whether this library has been compiled again and still did not load."""
    return library.with_suffix(".broken").exists()


def torch_options() -> list[str]:
    """Where torch's headers and its library are."""
    root = Path(torch.__file__).parent
    paths = ["-isystem", str(root / "include"), f"-L{root / 'lib'}"]
    if sys.platform == "darwin":
        return [*paths, f"-Wl,-rpath,{root / 'lib'}", "-ltorch_cpu"]
    return [*paths, "-Wl,--no-as-needed", "-ltorch_cpu"]  # some linkers drop a library that they see no use of


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder. Where there are no locks, go on: at worst they compile a second time."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        wait(descriptor)
        yield
    finally:
        os.close(descriptor)


def wait(descriptor: int) -> None:
    """Take the lock on an open folder, or give up when there are no locks or one is held for too long."""
    until = time.monotonic() + PATIENCE
    with told_if_long("waiting for another process that compiles the kernel"), contextlib.suppress(OSError):
        while not try_lock(descriptor) and time.monotonic() < until:
            time.sleep(0.05)


def try_lock(descriptor: int) -> bool:
    """Take the lock on an open folder unless another process has it.

    Raises:
        OSError: there are no locks.
    """
    if sys.platform == "win32":
        raise OSError("there are no locks")
    import fcntl  # a module that Windows does not have

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
