"""What a contest's table says where contestants have run at different seeds."""

from typing import Any

from revtune.program.studies.compare.curves import goal, reached
from revtune.program.studies.compare.table import markdown, title, verdicts


def results_of(**losses: dict[int, float]) -> dict[str, Any]:
    """A contest's results from each contestant's held-out losses by seed; those on the test are 0.1 above them."""
    rows: list[dict[str, Any]] = [
        {"contestant": name, "runs": [run_of(name, seed, loss) for seed, loss in by_seed.items()]}
        for name, by_seed in losses.items()
    ]
    for row in rows:
        for run in row["runs"]:
            run["reached"] = reached(run, goal(rows, run["seed"]))
    return {"recipe": "x", "budget": 10.0, "clock": "wall", "quoted": "perplexity", "rows": rows}


def run_of(contestant: str, seed: int, loss: float) -> dict[str, Any]:
    run = {"seed": seed, "valid": {"loss": loss}, "test": {"loss": loss + 0.1, "perplexity": 1234.5}, "wall": 10.0}
    trials = {"trials": 40, "pruned": 100} if contestant == "random" else {}
    return {**run, "curve": [(1.0, loss + 1), (5.0, loss)], **trials}


PLAIN = {1: 2.0, 2: 2.0, 3: 2.0}


def test_contestants_are_compared_at_the_seeds_that_both_have() -> None:
    told = verdicts(results_of(plain=PLAIN, stn={1: 1.8, 2: 1.0, 3: 1.0}, random={1: 1.5}))
    assert "STN's held-out loss 1.0000 is below 2.0000, plain, start" in told
    assert "STN's held-out loss 1.8000 is ABOVE 1.5000, random, at seed 1" in told
    assert "STN's test loss 1.9000 is ABOVE 1.6000, random, at seed 1" in told
    assert verdicts(results_of(stn={1: 1.0}, plain={2: 2.0})) == ["seeds: STN 1; plain, start 1"]


def test_the_better_tuner_is_so_at_the_seeds_of_both() -> None:
    told = verdicts(results_of(plain=PLAIN, stn={1: 1.8, 2: 1.0, 3: 1.0}, delta={1: 1.7}))
    assert told[1] == "Delta-STN's held-out loss 1.7000 is below 2.0000, plain, start, at seed 1"
    told = verdicts(results_of(plain=PLAIN, stn={1: 1.8, 2: 1.0}, delta={3: 1.7}))
    assert told[1] == "STN's held-out loss 1.4000 is below 2.0000, plain, start, at seeds 1, 2"


def test_seeds_without_a_rival_count_for_nothing() -> None:
    told = verdicts(results_of(plain=PLAIN, stn={1: 1.0, 2: 1.0, 3: 1.0}, random={1: 1.5}))
    assert told[-1] == "STN reached the best searcher's held-out loss after 50% of the time, at seed 1"
    told = verdicts(results_of(stn={1: 1.0, 2: 1.0, 3: 1.0}, random={1: 0.5}))
    assert told[-1] == "STN NEVER reached the best searcher's held-out loss at seeds 1"
    told = verdicts(results_of(stn={2: 1.0}, plain={2: 1.5}, random={1: 0.5}))
    assert not any("reached" in line for line in told)
    told = verdicts(results_of(stn={1: 1.0, 2: 1.0}, random={1: 1.5, 2: 1.5}))
    assert told[-1] == "STN reached the best searcher's held-out loss after 50% of the time"


def test_it_is_said_how_many_seeds_each_has_where_these_differ() -> None:
    found = results_of(plain=PLAIN, stn=PLAIN, random={1: 1.5})
    assert title(found).endswith("; median of the seeds that each has")
    assert "\n- seeds: plain, start 3; STN 3; random 1\n" in markdown(found)
    assert verdicts(results_of(plain=PLAIN, random={1: 1.5})) == ["seeds: plain, start 3; random 1"]
    found = results_of(plain=PLAIN, stn=PLAIN)
    assert title(found).endswith("; median of 3 seeds") and "seeds:" not in markdown(found)
