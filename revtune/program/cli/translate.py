"""`revtune translate`."""

from __future__ import annotations

from revtune.program.cli.folders import kind_of
from revtune.program.cli.options import parse
from revtune.program.translation import translate as translation


def translate(arguments: list[str]) -> None:
    """Translate sentences with a run's best weights."""
    options: translation.Options = parse(translation.Options, arguments, "translate")
    kind_of(options.run, "translate")  # refuses the folder of a run that does not translate
    translation.translate(options)
