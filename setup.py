"""A wheel with the compiled kernel, when REVTUNE_LIBRARY names one; for all else pyproject.toml is the whole story."""

import os
import shutil
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

LIBRARY = os.environ.get("REVTUNE_LIBRARY")


class WithKernel(Distribution):
    """A distribution of one platform."""

    def has_ext_modules(self) -> bool:
        return True


class CopyKernel(build_py):
    """The package with the compiled kernel beside its modules."""

    def run(self) -> None:
        super().run()
        shutil.copy(str(LIBRARY), Path(self.build_lib, "revtune", "reversible", "kernel"))


class AnyPython(bdist_wheel):
    """A wheel for every Python 3: the kernel uses torch's stable interface, and none of Python's."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


if LIBRARY:
    commands = {"build_py": CopyKernel, "bdist_wheel": AnyPython}
    setup(distclass=WithKernel, cmdclass=commands, options={"build": {"build_base": "build/wheel"}})
else:
    setup()
