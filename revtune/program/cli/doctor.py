"""What this machine and this installation offer, and what is missing."""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from revtune.errors import BackendError
from revtune.program.data.named_sets import SPLITS, TEXT_FILES, data_folder
from revtune.program.errors import Problem
from revtune.reversible.kernel import backend, build

EXTRAS = {
    "program": ("tyro", "rich", "safetensors", "datasets", "matplotlib"),
    "report": ("plotly",),
    "search": ("optuna", "cmaes", "scipy"),
    "translate": ("tokenizers", "sacrebleu"),
    "augment": ("kornia",),
    "signals": ("wfdb", "soundfile", "scipy"),
    "processes": ("accelerate",),
    "track": ("accelerate", "tensorboard"),
    "dev": ("ruff", "mypy", "pytest", "hypothesis"),
}


def lines() -> Iterator[str]:
    """The findings, a line each."""
    yield f"revtune {version('revtune')}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    precision = torch.get_float32_matmul_precision()
    yield f"torch {torch.__version__}, {torch.get_num_threads()} threads, matmul precision {precision}"
    yield f"device: {torch.cuda.get_device_name(0) if torch.cuda.is_available() else 'cpu'}"
    yield f"compiler: {found_or_why(lambda: Path(build.compiler()[0]).name)}"
    yield f"backend: {found_or_why(backend.explain)}"
    yield f"backend on a GPU: {backend.explain_gpu()}"
    yield from data_lines()
    for extra, packages in EXTRAS.items():
        yield extra_line(extra, packages)


def found_or_why(find: Callable[[], str]) -> str:
    """What is found, or why nothing is."""
    try:
        return find()
    except (BackendError, ValueError) as error:
        return str(error)


def data_lines() -> Iterator[str]:
    """Where data sets are looked for and which are there."""
    folder = data_folder()
    if folder is None:
        yield "data: REVTUNE_DATA is not set; data sets by name come from --data or the hub"
        return
    if not folder.is_dir():
        yield f"data: REVTUNE_DATA is {folder}, which is no folder"
        return
    yield f"data: REVTUNE_DATA is {folder}"
    for name, layout in TEXT_FILES.items():
        missing = [file for file in map(layout.format, SPLITS) if not (folder / file).is_file()]
        yield f"  {name}: {'missing ' + ', '.join(missing) if missing else 'found'}"


def extra_line(extra: str, packages: tuple[str, ...]) -> str:
    """An extra's packages with their versions, or how to install those that are missing."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        return f"extra {extra}: {', '.join(missing)} missing; install with pip install 'revtune[{extra}]'"
    return f"extra {extra}: " + ", ".join(f"{name} {version(name)}" for name in packages)


def version(package: str) -> str:
    """A package's version, or that it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def doctor(arguments: list[str]) -> None:
    """Print what this machine and installation offer."""
    if arguments:
        raise Problem(f"revtune doctor takes no arguments, got {' '.join(arguments)}", code=2)
    for line in lines():
        print(line)
