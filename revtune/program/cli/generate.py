"""`revtune generate`."""

from __future__ import annotations

import math
import sys

from revtune.program.cli.folders import kind_of, opened
from revtune.program.cli.options import Generate, parse
from revtune.program.errors import Problem
from revtune.program.language import sample
from revtune.program.typed import SEEDS


def generate(arguments: list[str]) -> None:
    """Write text with a run's best weights."""
    options: Generate = parse(Generate, arguments, "generate")
    kind_of(options.run, "generate")  # refuses the folder of a run that is no language model's
    if options.length < 1 or not 0 <= options.temperature < math.inf:
        raise Problem("--length must be at least 1 and --temperature at least 0", code=2)
    if options.seed not in SEEDS:
        raise Problem(f"--seed must be from -2^63 to 2^63 - 1, got {options.seed}", code=2)
    run = opened(options.run, accept_edits=options.accept_edits)
    model, vocabulary = run.model(), run.vocabulary()
    if unknown := vocabulary.unknown(options.prompt):
        print(f"revtune: read as <unk>, not in the vocabulary: {' '.join(unknown)}", file=sys.stderr)
    print(options.prompt, end=" " if vocabulary.unit == "word" and options.prompt else "")
    for piece in sample.text(
        model, vocabulary, options.prompt, length=options.length, temperature=options.temperature, seed=options.seed
    ):
        print(piece, end="", flush=True)
    print()
