"""The kernel is found, compiled and loaded; or plain torch runs, and one line says why."""

import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
import torch

import revtune as rt
from revtune.errors import BackendError, SettingError
from revtune.program.cli import doctor
from revtune.reversible.kernel import backend as native
from revtune.reversible.kernel import build, compiler_process

STUB = 'extern "C" int revtune_stub() { return 1; }\n'
"""It serves in this process, where the kernel's operators are already."""
OPERATOR = """
#include <string>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
int64_t twice(int64_t x) { return 2 * x; }
std::string instruction_set() { return "plain"; }
STABLE_TORCH_LIBRARY(NAMESPACE, m) { m.def("twice(int x) -> int"); m.def("instruction_set() -> str"); }
STABLE_TORCH_LIBRARY_IMPL(NAMESPACE, CompositeExplicitAutograd, m) {
  m.impl("twice", TORCH_BOX(&twice));
  m.impl("instruction_set", TORCH_BOX(&instruction_set));
}
"""
"""It serves in a process of its own, as NAMESPACE revtune."""
PROGRAM = """
import os, sys, types
from pathlib import Path
sys.modules["revtune"] = types.ModuleType("revtune")  # not the layers, which take as long to import as torch
sys.modules["revtune"].__path__ = [sys.argv[2]]
from revtune.reversible.kernel import backend as native, compiler_process
native.SOURCE, compiler_process.SILENCE = Path(sys.argv[1]), 600
others = []
for _ in range(int(sys.argv[3])):
    others.append(os.fork())
    if not others[-1]:
        others = []
        break
os.write(1, f"{native.load()} {native.load()}\\n".encode())
for other in others:
    os.waitpid(other, 0)
"""


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source that compiles in no time, an empty cache, and a process that has not looked for a kernel yet."""
    folder = tmp_path / "csrc"
    folder.mkdir()
    (folder / "revtune.cpp").write_text(STUB)
    native.find()
    for name in ("CXX", "REVTUNE_CXXFLAGS", "REVTUNE_BACKEND", "REVTUNE_ISA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(native, "SOURCE", folder)
    monkeypatch.setattr(native, "_lookup", None)
    monkeypatch.setattr(native, "_fallback_told", False)
    monkeypatch.setattr(native, "_waiting", [])
    return folder


def origin() -> str:
    """Where the kernel comes from in a process that has not looked for it yet."""
    native._lookup = None
    assert native.load()
    return native.find().origin


def kept(source: Path) -> list[Path]:
    """What lies in the cache."""
    return sorted((source.parent / "cache/revtune").iterdir())


def elsewhere(source: Path, *, others: int = 0, **environment: str) -> tuple[str, str]:
    """What a process prints, and complains of, that loads the kernel twice, and so do its children."""
    command = [sys.executable, "-c", PROGRAM, str(source), str(Path(rt.__file__).parent), str(others)]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=True)
    return done.stdout, done.stderr


def test_it_is_compiled_once_and_kept(source: Path) -> None:
    assert origin().startswith("compiled by ")
    assert origin() == "from the cache"
    (library,) = kept(source)
    assert not (source.parent / f"revtune-{os.geteuid()}").exists()
    assert native.explain().startswith("native (")
    assert native.explain().endswith(f"from the cache, {library})")


def test_an_operator_of_the_stable_interface(source: Path) -> None:
    (source / "revtune.cpp").write_text(OPERATOR.replace("NAMESPACE", "revtune_stub"))
    assert native.load()
    assert torch.ops.revtune_stub.twice(21) == 42


def test_the_kernel_itself_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    if not (native.SOURCE / "revtune.cpp").exists():
        pytest.skip("there is no kernel yet")
    monkeypatch.setenv("REVTUNE_BACKEND", "native")
    assert native.load()
    assert str(native.find().library) in native.explain()


def test_without_a_compiler_one_line_is_said(source: Path) -> None:
    told, complaint = elsewhere(source, PATH=str(source))
    assert told == "False False\n"
    assert complaint == (
        "revtune: plain torch runs, slower: no C++ compiler is found, none of g++, clang++, c++; "
        "install g++ or set CXX; see revtune doctor\n"
    )


def test_a_source_that_does_not_compile(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (source / "revtune.cpp").write_text('#include "other.h"\nint x = oh;\n')
    (source / "other.h").touch()
    assert not native.load() and not native.load()
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "failed: revtune.cpp:2:9: error: " in said
    assert "reference (plain torch): " in native.explain()
    monkeypatch.setenv("REVTUNE_BACKEND", "native")
    with pytest.raises(BackendError, match=r"REVTUNE_BACKEND is native, but .*\n(.*\n)*.*int x = oh;"):
        native.load()
    assert native.explain().startswith("none, as REVTUNE_BACKEND is native, but ")
    assert kept(source) == []


@pytest.mark.parametrize(
    "name, value, told",
    [
        ("CXX", "no-such-compiler -O2", "CXX names no-such-compiler, which is not found"),
        ("CXX", "sh -c 'exit 1'", "sh failed: it printed nothing"),
        ("CXX", "true", "true made no library, though it reported no error"),
        ("CXX", "g++ 'oh", "CXX cannot be read: No closing quotation"),
        ("REVTUNE_CXXFLAGS", "-no-such-option", "-no-such-option"),
    ],
)
def test_compilers_that_cannot_serve(
    source: Path,
    name: str,
    value: str,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(name, value)
    assert not native.load()
    said = capsys.readouterr().err
    assert told in said and said.count("\n") == 1


def test_the_compiler_may_have_arguments(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source / "revtune.cpp").write_text(f"#if STUB != 2\n#error\n#endif\n{STUB}")
    monkeypatch.setenv("CXX", f"{build.compiler()[0]} -DSTUB=2")
    assert native.load()


@pytest.mark.slow
def test_processes_that_race_make_one_library_beside_one_that_has_no_operators(source: Path, tmp_path: Path) -> None:
    (source / "revtune.cpp").write_text(OPERATOR.replace("NAMESPACE", "revtune"))
    folder, command, other = build.folders()[0], build.compiler(), tmp_path / "other"
    for made in (folder, other):
        made.mkdir(parents=True)
    (other / "revtune.cpp").write_text(STUB)
    build.compile_into(folder, other, command, build.build_key(source, command))
    assert elsewhere(source, others=3) == ("True True\n" * 4, "")
    assert len(kept(source)) == 2


def test_without_locks_a_race_makes_one_library_too(source: Path) -> None:
    folder, command = build.folders()[0], build.compiler()
    folder.mkdir(parents=True)
    libraries = {build.compile_into(folder, source, command, "0") for _ in range(2)}
    assert kept(source) == list(libraries)


def test_threads_compile_once(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, compile_into = [], build.compile_into

    def counted(folder: Path, source: Path, command: list[str], key: str) -> Path:
        calls.append(key)
        return compile_into(folder, source, command, key)

    monkeypatch.setattr(build, "compile_into", counted)
    threads = [threading.Thread(target=native.load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert native.load() and len(calls) == 1


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_library_cut_short_is_compiled_again(source: Path, share: float) -> None:
    assert origin().startswith("compiled by ")
    (library,) = kept(source)
    whole = library.read_bytes()
    library.unlink()
    library.write_bytes(whole[: int(share * len(whole))])
    assert origin().startswith("compiled by ")
    assert kept(source) == [library] and library.read_bytes() == whole


def broken(source: Path) -> Path:
    """A whole file in the cache that is no library."""
    content = b"no library"
    key = build.build_key(source, build.compiler())
    path = source.parent / f"cache/revtune/revtune-{key}-{build.digest(content)}.so"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path


def test_a_cached_library_that_does_not_load_is_compiled_again(source: Path) -> None:
    path = broken(source)
    assert origin().startswith("compiled by ")
    assert origin() == "from the cache"
    assert len(kept(source)) == 2 and path in kept(source)


def test_compiling_again_in_vain_is_done_once(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(library: Path) -> None:
        raise OSError("no library")

    monkeypatch.setattr(native, "load_library", fails)
    assert native.explain().count(" does not load: no library") == 1
    for _ in range(2):
        native._lookup = None
        monkeypatch.setattr(build, "compile_into", None)
        told = native.find().reason
        assert told.count(" does not load: no library") == 1
        assert told.endswith(
            f"; it was compiled again, in vain; without {kept(source)[0].parent} that is tried once more"
        )


def test_what_killed_compilations_left_is_removed(source: Path) -> None:
    dead, alive = (source.parent / f"cache/revtune/.build-{name}" for name in ("dead", "alive"))
    for folder in (dead, alive):
        folder.mkdir(parents=True)
        (folder / "revtune.so").touch()
    with build.locked(alive):
        assert origin().startswith("compiled by ")
        assert not dead.exists() and alive.exists()


def test_a_compiler_that_hangs_is_told_and_stopped(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compiler_process, "SILENCE", 0.01)
    monkeypatch.setattr(build, "ANSWER_PATIENCE", 0.2)
    monkeypatch.setenv("CXX", "sh -c 'sleep 100; true'")
    assert not native.load()
    waiting, given_up = capsys.readouterr().err.splitlines()
    assert waiting == "revtune: waiting for sh to tell its version, for 0.2 seconds at most"
    assert "sh did not finish within 0.2 seconds and was stopped; see revtune doctor" in given_up


def test_what_a_library_is_made_from_makes_its_name(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for change in (
        lambda: (source / "revtune.cpp").write_text(STUB + "\n"),
        lambda: (source / "lanes.h").write_text("\n"),
        lambda: monkeypatch.setenv("REVTUNE_CXXFLAGS", "-O1 -g -DREVTUNE_SANITIZED"),
        lambda: monkeypatch.setenv("CXX", f"{build.compiler()[0]} -O2"),
    ):
        assert origin().startswith("compiled by ")
        change()
    names = {path.name.split("-")[1] for path in kept(source)}
    assert len(names) == 4


def test_the_backends(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REVTUNE_BACKEND", "reference")
    assert not native.load()
    assert native.explain() == "reference (plain torch): REVTUNE_BACKEND asks for it"
    assert not (source.parent / "cache").exists()
    monkeypatch.setenv("REVTUNE_BACKEND", "fast")
    with pytest.raises(ValueError, match="REVTUNE_BACKEND must be one of auto, native, reference, got 'fast'"):
        native.load()
    for name in ("native", "auto", ""):
        monkeypatch.setenv("REVTUNE_BACKEND", name)
        assert native.load()


def test_the_instruction_sets(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = native.instructions()
    monkeypatch.setenv("REVTUNE_ISA", "sse2")
    for use in (native.load, native.insist):
        with pytest.raises(SettingError, match="REVTUNE_ISA must be one of avx512, avx2, plain, got 'sse2'"):
            use()
    missing = "plain" if there != "plain" else "avx2"
    monkeypatch.setenv("REVTUNE_ISA", missing)
    with pytest.raises(BackendError, match=f"REVTUNE_ISA asks for {missing}, which .* lacks; {there} can be had"):
        native.load()
    monkeypatch.setenv("REVTUNE_ISA", there)
    assert native.load() and native.explain().startswith(f"native ({there}, ")


def test_the_doctor_tells_the_backend(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def told() -> str:
        return next(line for line in doctor.lines() if line.startswith("backend: "))

    assert told().startswith("backend: native (")
    monkeypatch.setenv("REVTUNE_BACKEND", "reference")
    assert told() == "backend: reference (plain torch): REVTUNE_BACKEND asks for it"
    monkeypatch.setenv("REVTUNE_BACKEND", "fast")
    assert told() == "backend: REVTUNE_BACKEND must be one of auto, native, reference, got 'fast'"


def test_a_library_from_the_wheel(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert origin().startswith("compiled by ")
    monkeypatch.setattr(native, "__file__", str(tmp_path / "native.py"))
    shipped = tmp_path / native.shipped_name()
    kept(source)[0].rename(shipped)
    monkeypatch.setenv("PATH", "")
    assert origin() == "from the wheel"


def test_a_library_from_the_wheel_that_does_not_load(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "__file__", str(tmp_path / "native.py"))
    (tmp_path / native.shipped_name()).write_bytes(b"not a library")
    assert origin().startswith("compiled by ")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(native, "_lookup", None)
    assert "kernel-" in native.explain() and "does not load: " in native.explain()
    assert native.explain().endswith("; no C++ compiler is found, none of g++, clang++, c++; install g++ or set CXX")


def test_a_cache_that_cannot_be_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cache").touch()
    assert origin().startswith("compiled by ")
    assert origin() == "from the cache"
    folder = tmp_path / f"revtune-{os.geteuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700 and len(list(folder.iterdir())) == 1
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "cache"))
    native._lookup = None
    assert not native.load()
    assert f"the compiled kernel cannot be kept in {tmp_path / 'cache/revtune'} or " in capsys.readouterr().err


def test_a_cache_that_others_could_write(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared, own = build.folders()
    shared.mkdir(parents=True)
    shared.chmod(0o777)
    assert (build.writable(shared), build.writable(own)) == (False, True)
    own.rmdir()
    own.symlink_to(source)
    assert not build.writable(own)
    shared.chmod(0o700)
    assert build.writable(shared)
    monkeypatch.setattr(os, "geteuid", lambda: shared.stat().st_uid + 1)
    assert not build.writable(shared)
