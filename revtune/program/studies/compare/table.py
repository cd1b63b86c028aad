"""A contest's figures: best held-out loss over time, losses at the end, trials, and what they say."""

from __future__ import annotations

import json
import platform
from statistics import median

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

import revtune as rt
from revtune.program import recipes
from revtune.program.files import write
from revtune.program.studies.compare.contest import CONTESTANTS, NAMES, TUNERS, Contest, Contestant
from revtune.program.studies.compare.curves import at, curve, goal, middle, reached
from revtune.program.studies.compare.plot import plot
from revtune.program.studies.json_files import Facts

SHARES = (0.125, 0.25, 0.5, 1.0)


TRIALS = 30


QUARTER = 0.25


def finish(contest: Contest, console: Console) -> None:
    """Write figures, table and plot of who is through, and print the table."""
    found = figures(contest)
    write(contest.folder / "results.json", json.dumps(found, indent=1).encode() + b"\n")
    write(contest.folder / "table.md", markdown(found).encode())
    write(contest.folder / "compare.png", plot(found))
    console.print(f"\n{title(found)}", markup=False, soft_wrap=True)
    console.print(table(found))
    for line in verdicts(found):
        console.print(line, markup=False, soft_wrap=True)
    console.print(f"\nFigures, table and plot are in {contest.folder}", markup=False, soft_wrap=True)


def figures(contest: Contest) -> Facts:
    """All that is told of a contest, as JSON has it."""
    options = contest.options
    rows: list[Facts] = []
    quoted = recipes.find(contest.recipe).task.measure
    for one in CONTESTANTS:
        runs = [run(contest, seed, one) for seed in contest.seeds() if contest.result(seed, one) is not None]
        if runs:
            rows.append({"contestant": one, "runs": runs})
    for row in rows:
        for this in row["runs"]:
            this["reached"] = reached(this, goal(rows, this["seed"]))
    facts = {"recipe": contest.recipe, "budget": options.budget, "clock": options.clock, "quoted": quoted}
    versions = {"revtune": rt.__version__, "torch": torch.__version__, "python": platform.python_version()}
    return {**versions, **facts, "rows": rows}


def run(contest: Contest, seed: int, one: Contestant) -> Facts:
    """One contestant's run at one seed."""
    result = contest.result(seed, one)
    assert result is not None
    validations = contest.validations(seed, one)
    return {"seed": seed, **result, "curve": curve(validations, contest.options.clock)}


def title(found: Facts) -> str:
    """What the table holds."""
    seeds = max((len(row["runs"]) for row in found["rows"]), default=0)
    whose = {"wall": "seconds", "cpu": "seconds of the processor"}[found["clock"]]
    each = f"median of {seeds} seeds" if seeds > 1 else "one seed"
    time = f"{found['budget']:.0f} {whose} each"
    return f"{found['recipe']}: best held-out loss after shares of {time}, and test loss; {each}"


def heads(found: Facts) -> list[str]:
    """The table's column heads."""
    told = [] if found["quoted"] == "loss" else [found["quoted"]]
    return ["", "1/8", "1/4", "1/2", "1", "end", "test", *told, "trials"]


def cells(found: Facts, digits: int) -> list[list[str]]:
    """The table's rows, losses to so many digits after the point."""
    rows = []
    for row in found["rows"]:
        budget, quoted = found["budget"], found["quoted"]
        losses = [median(at(this["curve"], share * budget) for this in row["runs"]) for share in SHARES]
        test = [f"{middle(row, 'test', 'loss'):.{digits}f}"]
        test += [] if quoted == "loss" else [f"{middle(row, 'test', quoted):.4g}"]
        searcher = "trials" in row["runs"][0]
        trials = " + ".join(f"{middle(row, name):.0f}" for name in ("trials", "pruned")) if searcher else ""
        shown = ["" if loss == float("inf") else f"{loss:.{digits}f}" for loss in losses]
        rows.append([NAMES[row["contestant"]], *shown, f"{middle(row, found['clock']):.0f}", *test, trials])
    return rows


def table(found: Facts) -> Table:
    """The table for a terminal of 80 columns."""
    drawn = Table(box=SIMPLE, padding=(0, 1, 0, 0), caption="end: seconds; trials: whole + cut short")
    for head in heads(found):
        drawn.add_column(head, justify="right" if head else "left", no_wrap=True)
    for row in cells(found, 3):
        drawn.add_row(*row)
    return drawn


def markdown(found: Facts) -> str:
    """The table for a page, and what it says."""
    lines = [title(found) + ".", "", "| " + " | ".join(heads(found)) + " |"]
    lines.append("|---|" + "---:|" * (len(heads(found)) - 1))
    lines += ["| " + " | ".join(row) + " |" for row in cells(found, 4)]
    return "\n".join([*lines, "", *(f"- {line}" for line in verdicts(found))]) + "\n"


def verdicts(found: Facts) -> list[str]:
    """What the figures say of the better of STN and Delta-STN, by its held-out loss, against each other contestant."""
    rows = {row["contestant"]: row for row in found["rows"]}
    tuners = [one for one in TUNERS if one in rows]
    if not tuners:
        return []
    best = min(tuners, key=lambda one: middle(rows[one], "valid", "loss"))
    lines = []
    for split in ("valid", "test"):
        own, name = middle(rows[best], split, "loss"), {"valid": "held-out", "test": "test"}[split]
        for one, row in rows.items():
            if one not in TUNERS:
                other = middle(row, split, "loss")
                how = "below" if own < other else "equal to" if own == other else "ABOVE"
                lines.append(f"{NAMES[best]}'s {name} loss {own:.4f} is {how} {other:.4f}, {NAMES[one]}")
    few = [NAMES[one] for one, row in rows.items() if "trials" in row["runs"][0] and middle(row, "trials") < TRIALS]
    if few:
        lines.append(f"fewer than {TRIALS} whole trials: {', '.join(few)}")
    return [*lines, *when_reached(found, rows[best])]


def when_reached(found: Facts, row: Facts) -> list[str]:
    """After which share of the budget a method was as good as the best searcher was at its end."""
    if not any("trials" in other["runs"][0] for other in found["rows"]):
        return []
    never = [this["seed"] for this in row["runs"] if this["reached"] is None]
    name = NAMES[row["contestant"]]
    if 2 * len(never) >= len(row["runs"]) and never:
        return [f"{name} NEVER reached the best searcher's held-out loss at seeds {', '.join(map(str, never))}"]
    share = median(found["budget"] if (r := this["reached"]) is None else r for this in row["runs"]) / found["budget"]
    return [f"{name} reached the best searcher's held-out loss after {share:.0%} of the time"]
