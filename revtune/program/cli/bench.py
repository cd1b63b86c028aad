"""`revtune bench`."""

from __future__ import annotations

import importlib

from revtune.program.cli.options import parse
from revtune.program.errors import Problem


def bench(arguments: list[str]) -> None:
    """Run a measurement by name."""
    if arguments and arguments[0] in ("-h", "--help"):
        print("revtune bench memory [--help]: memory of whole training steps against torch's own layers")
        print("revtune bench speed [--help]: time of bare layers and whole training steps against torch's own layers")
        print("revtune bench steps [--help]: time of single steps of layers and cells against torch's own")
        print("revtune bench tuning [--help]: time and memory of steps that tune against those of the plain network")
        print("revtune bench joint [--help]: reversible layers that tune themselves against torch's own that do")
        print("revtune bench imports [--help]: time of importing revtune, and of its help, against importing torch")
        return
    if not arguments or arguments[0] not in BENCHES:
        known, given = " or ".join(BENCHES), arguments[0] if arguments else "nothing"
        raise Problem(f"revtune bench measures {known}, got {given}", code=2)
    module = importlib.import_module(BENCHES[arguments[0]])  # one of them, as each loads what it measures
    parse(getattr(module, arguments[0]), arguments[1:], f"bench {arguments[0]}")


BENCHES = {
    "memory": "revtune.program.bench.memory",
    "speed": "revtune.program.bench.speed",
    "steps": "revtune.program.bench.steps",
    "tuning": "revtune.program.bench.tuning",
    "joint": "revtune.program.bench.joint",
    "imports": "revtune.program.bench.imports",
}
"""What is measured, and the module whose function of that name does it."""
