"""`revtune translate`."""

from __future__ import annotations

from revtune.program.cli.folders import refuse_other
from revtune.program.cli.options import parse


def translate(arguments: list[str]) -> None:
    """Translate sentences with a run's best weights."""
    from revtune.program.translation.translate import Options
    from revtune.program.translation.translate import translate as translated

    options: Options = parse(Options, arguments, "translate")
    refuse_other(options.run, "translate")
    translated(options)
