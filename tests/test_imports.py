"""The rules of the house: who may import whom. CONTRIBUTING.md draws it."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import revtune

HOUSE = Path(revtune.__file__).parent
FLOORS = {
    "reversible": ["storage own_pages", "arguments transforms meter", "cells", "kernel", "layers", "streams"],
    "tuning": ["random_states own_generators trees hypers", "noise", "responses", "regularizers", "conversion tuner"],
    "joint": [
        "embeddings encoding linear_layer locked_dropout readouts tangent_starts", "rev_layers linear_parts",
        "linear_stream", "entries",
    ],
    "program": [
        "errors machine figures progress tables", "files typed layers launcher", "tuning", "data runs", "tasks",
        "language signals", "translation", "recipes", "studies bench", "report", "cli",
    ],
}  # fmt: skip
"""The rooms of each wing from the ground up: a room imports rooms of lower floors alone."""
SHARED = {"errors", "processes", "sequences"}
WINGS = {"reversible": SHARED, "tuning": SHARED, "joint": SHARED | {"reversible", "tuning"}}
"""What a wing of the library imports of the house besides itself."""
LAZY = {
    "revtune.tuning.regularizers.augment": {"kornia"},
    "revtune.tuning.tuner.history": {"matplotlib"},
}
"""Packages of extras that the library imports when they are asked for."""
IN_TRITON, DOOR = "revtune.reversible.kernel.triton", "revtune.reversible.kernel.engine"
"""What is written in Triton, and the one module that imports it, when it is asked for."""
LIGHT = {"shlex", "torch.nn.utils.prune"}
"""What `import revtune` loads that is neither of the house nor loaded by `import torch`."""


def dotted(path: Path) -> str:
    """The name of the module in a file."""
    return ".".join(("revtune", *path.relative_to(HOUSE).with_suffix("").parts)).removesuffix(".__init__")


MODULES = {dotted(path): path for path in sorted(HOUSE.rglob("*.py"))}


@cache
def imports(module: str) -> frozenset[str]:
    """The modules that one imports, wherever in it, but for annotations alone."""
    return frozenset(imported_names(ast.parse(MODULES[module].read_text(encoding="utf-8"))))


def imported_names(node: ast.AST) -> Iterator[str]:
    """The modules, or names of modules from outside, in import statements; strings such as cli's commands are none."""
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    if isinstance(node, ast.Import):
        yield from (name.name for name in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.module and not node.level, "imports are absolute"
        names = [f"{node.module}.{name.name}" for name in node.names]
        yield from (name if name in MODULES else node.module for name in names)
    for child in ast.iter_child_nodes(node):
        yield from imported_names(child)


def within(module: str) -> set[str]:
    """What a module imports of the house."""
    return {name for name in imports(module) if name.partition(".")[0] == "revtune"}


def wing_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def room_of(module: str) -> str:
    return (module.split(".")[2:] or [""])[0]


def test_the_library_needs_torch_alone() -> None:
    for module in MODULES:
        if wing_of(module) not in ("program", "__main__"):
            outside = {name.partition(".")[0] for name in imports(module)} - {"torch", "revtune"}
            allowed = {"triton"} if module.startswith(IN_TRITON) else LAZY.get(module, set())
            assert outside - sys.stdlib_module_names <= allowed, module


def test_what_is_written_in_triton_has_one_door() -> None:
    outside = {module for module in MODULES if not module.startswith(IN_TRITON)}
    doors = {module for module in outside if any(name.startswith(IN_TRITON) for name in within(module))}
    assert doors == {DOOR}
    top = {name for node in ast.parse(MODULES[DOOR].read_text()).body if isinstance(node, ast.ImportFrom | ast.Import)
           for name in imported_names(node)}  # fmt: skip
    assert not any(name.startswith(IN_TRITON) for name in top)


def test_the_halves_never_meet_outside_joint() -> None:
    for module in MODULES:
        wing = wing_of(module)
        if wing in WINGS:
            assert {wing_of(name) for name in within(module)} <= WINGS[wing] | {wing}, module


def test_nothing_imports_the_program_but_its_start() -> None:
    outside = {module for module in MODULES if wing_of(module) != "program"}
    assert {module for module in outside if any(map(is_program, within(module)))} == {"revtune.__main__"}


def is_program(module: str) -> bool:
    return wing_of(module) == "program"


@pytest.mark.parametrize("wing", FLOORS)
def test_a_room_imports_rooms_of_lower_floors_alone(wing: str) -> None:
    floor = {room: number for number, rooms in enumerate(FLOORS[wing]) for room in rooms.split()}
    own = [module for module in MODULES if wing_of(module) == wing and room_of(module)]
    assert {room_of(module) for module in own} == set(floor), "a room without a floor, or a floor without its room"
    for module in own:
        below = {room_of(name) for name in within(module) if wing_of(name) == wing} - {room_of(module)}
        assert all(floor[room] < floor[room_of(module)] for room in below), f"{module} imports from {below}"


def test_recipes_describe_and_never_run() -> None:
    runners = {"trainer", "train", "run", "loop", "studies", "cli", "runs"}
    runners |= {"learner", "plain_learner", "tuned_learner", "weight_learner"}
    for module in MODULES:
        if module.startswith("revtune.program.recipes"):
            assert not {part for name in within(module) for part in name.split(".")} & runners, module


def test_every_wing_has_floors() -> None:
    wings = {wing_of(module) for module in MODULES if room_of(module)}
    assert wings == set(FLOORS) and set(WINGS) == wings - {"program"}


def test_no_circle() -> None:
    """Nor one that an import in a function hides."""
    order = TopologicalSorter({module: within(module) for module in MODULES})
    assert set(order.static_order()) == set(MODULES)


def test_doors_of_rooms_do_nothing() -> None:
    """So that no function hides a module of its name; the face and the list of recipes are more than doors."""
    doors = [module for module, path in MODULES.items() if path.name == "__init__.py"]
    assert {door for door in doors if imports(door)} == {"revtune", "revtune.program.recipes"}


@pytest.mark.parametrize("then", ["", "from revtune.program.cli.main import main; main(['--help'])"])
def test_importing_the_library_loads_little_besides_torch(then: str) -> None:
    """Time is kept by `revtune bench imports`; torch's compiler alone, loaded here, would double it."""
    code = f"import sys, torch; before = set(sys.modules); import revtune; {then}\nprint(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    foreign = {name for name in loaded if name.partition(".")[0] != "revtune"}
    assert "revtune.errors" in loaded and foreign <= LIGHT
