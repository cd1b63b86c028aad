"""A wheel with the kernel in it if REVTUNE_LIBRARY names it or its folder; else pyproject.toml is the whole story."""

import os
import shutil
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

LIBRARY = os.environ.get("REVTUNE_LIBRARY")


def kernel(place: Path) -> Path:
    """The kernel, or the one in a folder."""
    found = sorted(place.glob("kernel-*.so")) if place.is_dir() else [place]
    if len(found) != 1:
        raise SystemExit(f"REVTUNE_LIBRARY must name a kernel or a folder with one, and {place} has {len(found)}")
    return found[0]


class WithKernel(Distribution):
    """A distribution of one platform."""

    def has_ext_modules(self) -> bool:
        return True


class CopyKernel(build_py):
    """The package with the compiled kernel beside its modules."""

    def run(self) -> None:
        super().run()
        shutil.copy(kernel(Path(str(LIBRARY))), Path(self.build_lib, "revtune", "reversible", "kernel"))


class AnyPython(bdist_wheel):
    """A wheel for every Python 3: the kernel uses torch's stable interface, and none of Python's."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


if LIBRARY:
    commands = {"build_py": CopyKernel, "bdist_wheel": AnyPython}
    setup(distclass=WithKernel, cmdclass=commands, options={"build": {"build_base": "build/wheel"}})
else:
    setup()
