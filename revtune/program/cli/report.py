"""`revtune report`."""

from __future__ import annotations

from revtune.program.cli.folders import is_contest, kind_of, settings_of
from revtune.program.cli.options import parse
from revtune.program.errors import Problem
from revtune.program.report.report import Options
from revtune.program.report.report import report as write_report
from revtune.program.runs.folder import config_of


def report(arguments: list[str]) -> None:
    """Write a page that shows runs side by side."""
    options: Options = parse(Options, arguments, "report")
    if not options.runs:
        raise Problem("revtune report takes the folder of a run, or several, got none", code=2)
    kinds = []
    for folder in options.runs:
        config_of(folder)  # refuses what is no folder of a run
        kind = kind_of(folder, "report")
        kinds.append("contest" if is_contest(settings_of(folder)) else kind)
    print(f"the report is in {write_report(options, kinds)}")
