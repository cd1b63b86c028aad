"""What is installed: a wheel with the kernel or without it; and the files that say how it is released and cited."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml

import revtune

ROOT = Path(__file__).parent.parent
RELEASE, CITATION = ".github/workflows/release.yml", "CITATION.cff"
BUILD = "import sys; from setuptools.build_meta import build_wheel; print(build_wheel(sys.argv[1]))"

pytest.importorskip("setuptools", minversion="77", reason="pyproject.toml asks for setuptools 77")


@pytest.mark.parametrize("file, kind", [(RELEASE, "github-workflows"), (CITATION, "citation-file-format")])
def test_a_file_is_of_its_kind(file: str, kind: str) -> None:
    pytest.importorskip("check_jsonschema", reason="check-jsonschema is not installed")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{kind}", file]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_version_is_told_alike_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    citation = yaml.safe_load((ROOT / CITATION).read_text("utf-8"))
    assert project["version"] == str(citation["version"]) == revtune.__version__
    assert project["license"] == citation["license"] and project["keywords"] == citation["keywords"]


def test_the_release_tries_every_python_and_the_oldest_torch() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    matrix = yaml.safe_load((ROOT / RELEASE).read_text("utf-8"))["jobs"]["try"]["strategy"]["matrix"]
    assert project["requires-python"] == f">={matrix['python'][0]}"
    assert project["dependencies"] == [f"torch>={matrix['torch'][0].removesuffix('.*')}"]


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """What a wheel is made of, in a folder where building leaves its traces."""
    place = tmp_path / "sources"
    shutil.copytree(ROOT / "revtune", place / "revtune", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, place)
    return place


def built(sources: Path, library: Path | None) -> subprocess.CompletedProcess[str]:
    """Build a wheel into the folder of sources."""
    named = {"REVTUNE_LIBRARY": str(library)} if library else {}
    surroundings = {name: value for name, value in os.environ.items() if name != "REVTUNE_LIBRARY"} | named
    command = [sys.executable, "-W", "ignore", "-c", BUILD, "."]
    return subprocess.run(command, cwd=sources, env=surroundings, capture_output=True, text=True)


def names_of(sources: Path) -> set[str]:
    """The names of the files of the one wheel in a folder."""
    (wheel,) = sources.glob("*.whl")
    with ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.partition("/")[0].endswith(".dist-info")}


def expected() -> set[str]:
    """The files of the package that are kept by git."""
    listed = subprocess.run(["git", "ls-files", "revtune"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is no clone")
    return set(listed.stdout.split())


def test_a_wheel_without_the_kernel_is_for_any_platform(sources: Path) -> None:
    assert (done := built(sources, None)).returncode == 0, done.stderr
    assert next(sources.glob("*.whl")).name == f"revtune-{revtune.__version__}-py3-none-any.whl"
    assert names_of(sources) == expected()


@pytest.mark.parametrize("folder", [False, True])
def test_a_wheel_with_the_kernel_is_for_every_python_of_a_platform(sources: Path, tmp_path: Path, folder: bool) -> None:
    library = tmp_path / "kernel/kernel-0123456789abcdef.so"
    library.parent.mkdir()
    library.write_bytes(b"a library")
    assert (done := built(sources, library.parent if folder else library)).returncode == 0, done.stderr
    assert next(sources.glob("*.whl")).name.startswith(f"revtune-{revtune.__version__}-py3-none-")
    assert not list(sources.glob("*-any.whl"))
    assert names_of(sources) == expected() | {f"revtune/reversible/kernel/{library.name}"}


def test_a_folder_of_two_kernels_is_refused(sources: Path, tmp_path: Path) -> None:
    for name in ("kernel-0.so", "kernel-1.so"):
        (tmp_path / name).touch()
    done = built(sources, tmp_path)
    assert f"REVTUNE_LIBRARY must name a kernel or a folder with one, and {tmp_path} has 2" in done.stderr
    assert not list(sources.glob("*.whl"))
