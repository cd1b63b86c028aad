"""The house rules on imports: the core needs torch alone, and each of its modules only those before it."""

import ast
import sys
from pathlib import Path

import revtune

CORE = """
    errors values fixed buffer cells checks patience compiling native fakes products weights moments metering tape
    reference kernel native_tape sinks dropout stack environment arguments transforms operands recall sequence
    layer_inputs rewind scan rnn layers readout replay outside ends stream_checks stream encode attention
    meter
""".split()

SELF_TUNING = """
    errors hyper hyperparameters trees generators linearized forward_mode response response_norm ranges noise
    response_steps response_gates response_loop response_rnn drawn loader
    penalties weight_norm regularize regularize_weights augment regularize_images bilevel bypasses response_kinds
    response_own convert freeze rated_rnn
    streams history_plot history carried optimizer_checks state_checks tuner_checks tuner constants
""".split()
LAZY = {"augment": {"kornia"}, "history_plot": {"matplotlib"}}


def imports(module: Path) -> set[str]:
    """What a module imports when it runs, `revtune.x` as `x` behind a dot."""
    tree = ast.parse(module.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"revtune.{name.name}" for name in node.names} if node.module == "revtune" else {node.module}
    return {name.removeprefix("revtune") if name.startswith("revtune") else name.split(".")[0] for name in found}


def test_the_core_imports_torch_and_what_comes_before() -> None:
    package = Path(revtune.__file__).parent
    allowed = {"torch", *sys.stdlib_module_names}
    for name in CORE:
        assert imports(package / f"{name}.py") <= allowed, name
        allowed.add(f".{name}")


def test_self_tuning_imports_torch_what_comes_before_and_nothing_of_the_recurrent_half() -> None:
    package = Path(revtune.__file__).parent
    allowed = {"torch", *sys.stdlib_module_names}
    for name in SELF_TUNING:
        assert imports(package / f"{name}.py") <= allowed | LAZY.get(name, set()), name
        allowed.add(f".{name}")


def test_the_face_imports_both_halves_alone() -> None:
    allowed = {f".{name}" for name in CORE + SELF_TUNING}
    assert imports(Path(revtune.__file__)) <= allowed
