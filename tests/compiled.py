"""Compiles Triton's kernels for GPUs that are not here, and tells what came out; no GPU is needed.

Run as a program in a process of its own, since Triton either interprets kernels or compiles them:
`python -m tests.compiled 80` prints a line of JSON for each kernel.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from itertools import chain
from itertools import product as product_of
from pathlib import Path
from typing import Any

FLOATS, WHOLE = "*fp32", "i32"
POINTERS = {
    "counts": "*i64", "base": "*i64", "lengths": "*i64", "sums": "*i64", "heads": "*i32", "depth": "*i32",
    "flags": "*i32", "bits": "*i32", "words": "*i16", "cells": "*i64", "heads_c": "*i32", "heads_h": "*i32",
    "resets": "*u8", "starts": "*i64", "fresh": "*i64", "index": "*i64",
}  # fmt: skip
"""What arguments point to that are no float32."""

NUMBERS = {"slope": "fp32", "floor": "fp32", "share": "fp32"}
WHOLES = {
    "positions", "rows", "units", "width", "capacity", "step", "inputs", "outputs", "numbers", "first",
    "source_stride", "c_stride", "rh_stride", "before_stride", "x_stride", "y_stride", "w_output", "w_input", "steps",
    "begin", "end", "d_stride",
}  # fmt: skip

ONE_ROW = {"positions", "rows", "width", "step", "steps", "w_input"}
"""Those that are 1 where B = 1 and H = 16."""


def cases() -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Every kernel as operators launch it: with nothing of what it may be given, and with all of it."""
    from revtune.reversible.kernel.triton import (
        digest,
        gru,
        gru_gradient,
        gru_tangent,
        lstm,
        lstm_gradient,
        lstm_tangent,
        product,
        resets,
        responses,
    )  # fmt: skip
    from revtune.reversible.kernel.triton.launching import DEPTH, ELEMENTS, FEW_INPUTS, FEW_ROWS, HEADS, ROWS, UNITS

    cut, depth = {"ROWS": ROWS, "UNITS": UNITS, "DEPTH": DEPTH}, {False: DEPTH, True: FEW_INPUTS}
    for start in (0, 1, 2):
        yield f"matmul from {start}", product.matmul, {"FROM": start, **cut}
    yield "digest", digest.mixed, {"SIZE": digest.SIZE}
    added = {"RESPONSE": responses.ADDED.value, **cut, "DEPTH": FEW_INPUTS}  # V's products are used, and not noted
    yield "propose with a response", gru.propose, added
    for name, kernel in (("evaluate", gru.evaluate), ("lstm evaluate", lstm.evaluate)):
        yield f"{name} with a response", kernel, {**added, "MASKED": True, "ANEW": True}
    for given in (False, True):  # nothing, or all that gates can be given
        responding = {"RESPONSE": responses.NOTED.value if given else 0, **cut}
        gates = {**responding, "DEPTH": depth[given]}
        yield f"propose given {given}", gru.propose, gates
        yield f"evaluate given {given}", gru.evaluate, {**gates, "MASKED": given, "ANEW": given}
        yield f"lstm evaluate given {given}", lstm.evaluate, {**gates, "MASKED": given, "ANEW": given}
        yield f"reset given {given}", gru_gradient.reset, {**responding, "MASKED": given, "ANEW": given}
        yield f"read given {given}", gru_gradient.read, {**responding, "MASKED": given}
        yield f"lstm read given {given}", lstm_gradient.read, {**responding, "MASKED": given}
        by, few = {"GIVEN": 15 * given}, {**cut, "DEPTH": FEW_INPUTS}
        yield f"tangent read given {given}", lstm_tangent.read, {**by, "MASKED": given, **few}
        for forgetting in (False, True):
            name, moving = f"given {given} forgetting {forgetting}", {**by, "FORGETTING": forgetting, "RAGGED": given}
            anew = {"MASKED": given, "ANEW": given, "READ_ANEW": given}
            yield f"tangent keep {name}", gru_tangent.keep, {**moving, **anew, **few}
            yield f"tangent propose {name}", gru_tangent.propose, {**moving, **few}
        yield f"add given {given}", responses.add, {"OWN": given, "INDEXED": given, "SIZE": ELEMENTS}
        yield f"back given {given}", responses.back, {"SUMMED": given, "SCALED": True, "SIZE": ELEMENTS}
    tile = {"RAGGED": True, "ROWS": ROWS, "HEADS": HEADS}
    small = {**tile, "ROWS": FEW_ROWS}
    for forgetting in (False, True):
        alone = {"FORGETTING": forgetting, "RAGGED": True, "ANEW": True, "SIZE": ELEMENTS}
        yield f"update forgetting {forgetting}", gru_gradient.update, alone
        yield f"lstm update forgetting {forgetting}", lstm_gradient.update, alone
        yield f"update of a tangent forgetting {forgetting}", lstm_tangent.update, alone
        for turns in (1, 2, 8):
            constants = {"FORGETTING": forgetting, "ANEW": forgetting, "TURNS": turns, **small}
            yield f"recall_cells of {turns} forgetting {forgetting}", lstm.recall_cells, constants
    for keep in (0, 1, 3):
        yield f"turn with a response, keep {keep}", gru.turn, {
            "RESPONSE": responses.ADDED.value, "DEPTH": FEW_INPUTS, "FORGETTING": True, "KEEP": keep, "BACK": False,
            "TURNS": 8, "SLICED": False, **tile,
        }  # fmt: skip
    for turns, (keep, back) in product_of((1, 8), ((0, False), (1, False), (2, False), (3, False), (3, True))):
        constants = {"FORGETTING": True, "KEEP": keep, "BACK": back, "TURNS": turns, "SLICED": False, **tile}
        name = f"turn of {turns} keep {keep} back {back}"
        for given in (False, True) if keep != 2 else ():
            responding = {"RESPONSE": responses.NOTED.value if given else 0, "DEPTH": depth[given]}
            yield f"{name} given {given}", gru.turn, {**responding, **constants}
        yield f"lstm {name}", lstm.turn, {**constants, "RECORDED": back, "CELL": True, "HIDDEN": True, **small}
    heads = {"TURNS": 8, "ROWS": ROWS, "HEADS": HEADS}
    for states in (1, 2):
        for keep in (0, 1, 2, 3):
            yield f"lose {states} keep {keep}", resets.lose, {"STATES": states, "KEEP": keep, **heads}
        yield f"regain {states}", resets.regain, {"STATES": states, **heads}
        yield f"cut {states}", resets.cut, {"PARTS": 2 * states, "ADDED": True, "SIZE": ELEMENTS}
    responding = {"RESPONSE": responses.NOTED.value, "DEPTH": FEW_INPUTS}
    for back in (False, True):
        constants = {"FORGETTING": False, "KEEP": 3, "BACK": back, "TURNS": 2, "SLICED": False, **tile}
        yield f"turn that forgets nothing, back {back}", gru.turn, {**responding, **constants}
        yield f"lstm turn that forgets nothing, back {back}", lstm.turn, {
            **constants, "RECORDED": True, "CELL": True, "HIDDEN": True, **small,
        }  # fmt: skip
    for back, sliced in product_of((False, True), (False, True)):  # some units of h1 are sliced
        constants = {"FORGETTING": True, "KEEP": 3, "BACK": back, "TURNS": 8, "SLICED": sliced, **tile}
        name = f"back {back} sliced {sliced}"
        yield f"turn {name}", gru.turn, {**responding, **constants}
        yield f"lstm turn of h {name}", lstm.turn, {
            **constants, "RECORDED": True, "CELL": False, "HIDDEN": True, **small,
        }  # fmt: skip
        yield f"lstm turn of c {name}", lstm.turn, {
            **constants, "SLICED": False, "RECORDED": True, "CELL": True, "HIDDEN": False, **small,
        }  # fmt: skip


def with_ones() -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Every kernel, for the most that it is compiled for, where numbers are 1: for those Triton compiles it anew.

    Those of one row of a layer of 16 units, whose heads have eight turns, at its second step.
    """
    last = {kernel.fn.__name__ + kernel.fn.__module__: (name, kernel, constants) for name, kernel, constants in cases()}
    for name, kernel, constants in last.values():
        found = [one.name for one in kernel.params if one.name in ONE_ROW and not one.do_not_specialize]
        if found:
            yield f"{name}, {len(found)} ones", kernel, {**constants, **dict.fromkeys(found, 1)}


def compiled(kernel: Any, constants: Mapping[str, Any], capability: int) -> Any:
    """A kernel for `sm_<capability>`, with the options of its launches."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from revtune.reversible.kernel.triton import lstm
    from revtune.reversible.kernel.triton.launching import OPTIONS, ROOMY

    names = [parameter.name for parameter in kernel.params]

    def kind(name: str) -> str:
        if name in constants:
            return "constexpr"
        return WHOLE if name in WHOLES else NUMBERS.get(name) or POINTERS.get(name, FLOATS)

    source = ASTSource(
        kernel, {name: kind(name) for name in names}, {(names.index(name),): value for name, value in constants.items()}
    )
    options = ROOMY if kernel is lstm.recall_cells else OPTIONS
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def facts(name: str, built: Any) -> dict[str, Any]:
    """What a kernel takes and what it is made of."""
    import triton

    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        usage = _output(tools / "cuobjdump", "--dump-resource-usage", file.name)
        code = _output(tools / "nvdisasm", "-c", file.name)
    found = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", usage))
    operations = re.findall(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\d+ )?([A-Z0-9_.]+)", code, re.M)
    return {
        "name": name,
        "registers": int(found["REG"]),
        "stack": int(found["STACK"]) + int(found["LOCAL"]),
        "shared": built.metadata.shared,
        "operations": sorted(set(operations)),
        "ptx": sorted(set(re.findall(r"^\s+(?:@!?%p\d+ )?([a-z][a-z0-9_.:]+)", built.asm["ptx"], re.M))),
    }


def _output(*command: Any) -> str:
    return subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    for name, kernel, constants in chain(cases(), with_ones()):
        print(json.dumps(facts(name, compiled(kernel, constants, int(sys.argv[1])))), flush=True)
