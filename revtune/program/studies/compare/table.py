"""A contest's figures: best held-out loss over time, losses at the end, trials, and what they say."""

from __future__ import annotations

import json
from statistics import median

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from revtune.program import recipes, tables
from revtune.program.files import write
from revtune.program.machine import versions
from revtune.program.studies.compare.contest import CONTESTANTS, NAMES, RIVALS, TUNERS, Contest, Contestant
from revtune.program.studies.compare.curves import best_after, curve, goal, median_of, reached, seeds_differ, seeds_of
from revtune.program.studies.compare.plot import plot
from revtune.program.studies.json_files import JsonObject

SHARES = (0.125, 0.25, 0.5, 1.0)
"""Of the budget, at which the table tells losses; `headings` names them."""

TRIALS = 30
"""Whole trials that a searcher has at least in a fair contest; fewer are told."""


def finish(contest: Contest, console: Console) -> None:
    """Write figures, table and plot of all that have results, and print the table."""
    results = figures(contest)
    write(contest.folder / "results.json", json.dumps(results, indent=1).encode() + b"\n")
    write(contest.folder / "table.md", markdown(results).encode())
    write(contest.folder / "compare.png", plot(results))
    console.print(f"\n{title(results)}", markup=False, soft_wrap=True)
    console.print(table(results))
    for line in verdicts(results):
        console.print(line, markup=False, soft_wrap=True)
    console.print(f"\nFigures, table and plot are in {contest.folder}", markup=False, soft_wrap=True)


def figures(contest: Contest) -> JsonObject:
    """All that is told of a contest, as JSON has it."""
    options = contest.options
    rows: list[JsonObject] = []
    quoted = recipes.find(contest.recipe).task.measure
    for contestant in CONTESTANTS:
        seeds = [seed for seed in contest.seeds() if contest.result(seed, contestant) is not None]
        if seeds:
            rows.append({"contestant": contestant, "runs": [run_at(contest, seed, contestant) for seed in seeds]})
    for row in rows:
        for run in row["runs"]:
            run["reached"] = reached(run, goal(rows, run["seed"]))
    facts = {"recipe": contest.recipe, "budget": options.budget, "clock": options.clock, "quoted": quoted}
    return {**versions(), **facts, "rows": rows}


def run_at(contest: Contest, seed: int, contestant: Contestant) -> JsonObject:
    """What is told of a contestant's run at a seed."""
    result = contest.result(seed, contestant)
    assert result is not None
    validations = contest.validations(seed, contestant)
    return {"seed": seed, **result, "curve": curve(validations, contest.options.clock)}


def title(results: JsonObject) -> str:
    """What the table holds."""
    rows = results["rows"]
    seeds = max((len(row["runs"]) for row in rows), default=0)
    whose = {"wall": "seconds", "cpu": "seconds of the processor"}[results["clock"]]
    each = f"median of {seeds} seeds" if seeds > 1 else "one seed"
    each = "median of the seeds that each has" if seeds_differ(rows) else each
    time = f"{results['budget']:.0f} {whose} each"
    return f"{results['recipe']}: best held-out loss after shares of {time}, and test loss; {each}"


def headings(results: JsonObject) -> list[str]:
    """The table's column heads."""
    quoted = [] if results["quoted"] == "loss" else [results["quoted"]]
    return ["", "1/8", "1/4", "1/2", "1", "end", "test", *quoted, "trials"]


def cells(results: JsonObject, digits: int) -> list[list[str]]:
    """The table's rows, losses to so many digits after the point."""
    rows = []
    for row in results["rows"]:
        budget, quoted = results["budget"], results["quoted"]
        losses = [median(best_after(run["curve"], share * budget) for run in row["runs"]) for share in SHARES]
        test = [f"{median_of(row, 'test', 'loss'):.{digits}f}"]
        test += [] if quoted == "loss" else [f"{median_of(row, 'test', quoted):.4g}"]
        searcher = "trials" in row["runs"][0]
        trials = " + ".join(f"{median_of(row, name):.0f}" for name in ("trials", "pruned")) if searcher else ""
        shown = ["" if loss == float("inf") else f"{loss:.{digits}f}" for loss in losses]
        rows.append([NAMES[row["contestant"]], *shown, f"{median_of(row, results['clock']):.0f}", *test, trials])
    return rows


def table(results: JsonObject) -> Table:
    """The table for a terminal of 80 columns."""
    shown = Table(box=SIMPLE, padding=(0, 1, 0, 0), caption="end: seconds; trials: whole + cut short")
    for heading in headings(results):
        shown.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for row in cells(results, 3):
        shown.add_row(*row)
    return shown


def markdown(results: JsonObject) -> str:
    """The table for a page, and what it says."""
    lines = [title(results) + ".", "", tables.markdown(headings(results), cells(results, 4)), ""]
    return "\n".join([*lines, *(f"- {line}" for line in verdicts(results))]) + "\n"


def verdicts(results: JsonObject) -> list[str]:
    """What the figures say of the better of STN and Delta-STN, by held-out loss, beside each contestant but these.

    Two contestants are compared at the seeds that both have.
    """
    rows = {row["contestant"]: row for row in results["rows"]}
    counts = [f"{NAMES[name]} {len(row['runs'])}" for name, row in rows.items()]
    seeds = [f"seeds: {'; '.join(counts)}"] if seeds_differ(results["rows"]) else []
    if (best := better_tuner(rows)) is None:
        return seeds
    others = [row for name, row in rows.items() if name not in TUNERS and seeds_of(row) & seeds_of(best)]
    lines = [beside(best, row, split) for split in ("valid", "test") for row in others]
    searchers = {name: row for name, row in rows.items() if "trials" in row["runs"][0]}
    few = [NAMES[name] for name, row in searchers.items() if median_of(row, "trials") < TRIALS]
    if few:
        lines.append(f"fewer than {TRIALS} whole trials: {', '.join(few)}")
    return [*seeds, *lines, *when_reached(results, best)]


def better_tuner(rows: dict[str, JsonObject]) -> JsonObject | None:
    """The row of the better of STN and Delta-STN, by held-out loss at the seeds that both have; of one, that."""
    tuners = [rows[tuner] for tuner in TUNERS if tuner in rows]
    if not tuners:
        return None
    both = set.intersection(*map(seeds_of, tuners))
    if not both:
        return max(tuners, key=lambda row: len(row["runs"]))
    return min(tuners, key=lambda row: median_of(row, "valid", "loss", seeds=both))


def beside(best: JsonObject, row: JsonObject, split: str) -> str:
    """A method's loss beside that of another contestant."""
    both = seeds_of(best) & seeds_of(row)
    own, other = (median_of(each, split, "loss", seeds=both) for each in (best, row))
    how = "below" if own < other else "equal to" if own == other else "ABOVE"
    names = [NAMES[each["contestant"]] for each in (best, row)]
    told = f"{names[0]}'s {'held-out' if split == 'valid' else split} loss {own:.4f} is {how} {other:.4f}, {names[1]}"
    return told + at_seeds(both, seeds_of(best) | seeds_of(row))


def at_seeds(seeds: set[int], all_seeds: set[int]) -> str:
    """Which seeds a sentence is of, where these are not all."""
    which = ", ".join(map(str, sorted(seeds)))
    return "" if seeds == all_seeds else f", at {'seed' if len(seeds) == 1 else 'seeds'} {which}"


def when_reached(results: JsonObject, row: JsonObject) -> list[str]:
    """After which share of the budget a method was as good as the best searcher, or PBT, was at its end.

    Seeds at which none of these has run are left out.
    """
    rivals = set[int]().union(*(seeds_of(other) for other in results["rows"] if other["contestant"] in RIVALS))
    runs = [run for run in row["runs"] if run["seed"] in rivals]
    if not runs:
        return []
    never = [run["seed"] for run in runs if run["reached"] is None]
    name = NAMES[row["contestant"]]
    if 2 * len(never) >= len(runs) and never:
        return [f"{name} NEVER reached the best searcher's held-out loss at seeds {', '.join(map(str, never))}"]
    budget = results["budget"]
    share = median(budget if run["reached"] is None else run["reached"] for run in runs) / budget
    which = at_seeds(rivals & seeds_of(row), seeds_of(row))
    return [f"{name} reached the best searcher's held-out loss after {share:.0%} of the time{which}"]
