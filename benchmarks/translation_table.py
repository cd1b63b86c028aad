"""The document of the translation study's results, made from the figures that are kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from statistics import median

from benchmarks.jobs import NAMES, Figures
from benchmarks.translation_jobs import Job

MEGABYTE = 1e6
Times = dict[str, list[float]]


def readme(done: dict[Job, Figures], times: Times) -> str:
    """How they came about, the tables, and each run's command.

    Args:
        done: figures of the runs that are done.
        times: seconds of an update by name of a job and round, if they have been measured.
    """
    commands = "\n".join(f"    {found['command']}" for found in done.values())
    tables = "\n".join([*quality(done, times), "", MEMORY, *memory(done)])
    return ABOUT + tables + "\n\nThe commands, each with `--out` and a folder:\n\n" + commands + "\n"


ABOUT = """# Translation, Multi30K from English to German

    python -m benchmarks.translation
    python -m benchmarks.translation --time

One layer of 300 units each, the same recipe, data order and budget for all, one seed; a JSON for each run has its
command, settings and figures. The first command trains what is missing and goes on with what was begun. What is
tested is the network with the lowest perplexity on the validation text, the one told here; BLEU is of the test of
2016, by beam search and greedy, sacrebleu's signature being in the JSON. Reversible models always have their loss in
blocks of positions, so they are compared with torch's layers twice: with all logits at once, as these are written as
a rule, and with that same loss in blocks. Seconds of an epoch are the second command's: medians of updates on the
same batches, all contestants in turns; ratios are medians of a round's, to the one and to the other.

"""
MEMORY = """Memory of a training step of 64 sentences of 26 words, in MB, measured: the most that the whole step, the
encoder by itself and the decoder by itself take at one time beside weights and gradients, and what the encoder holds
once it has gone forward; in brackets how many times less than torch's layer with all logits, and with its loss in
blocks. Then bits a unit, state and word that the buffers take, and that gates forgot; then how many times fewer bits
than the states of torch's layer, all else left out, as the papers count: padding of states and slices left out, with
batches of like length, and with batches as they come, as in the papers.
"""


def quality(done: dict[Job, Figures], times: Times) -> Iterator[str]:
    """The lines of the table of BLEU, perplexity and time, a row a run."""
    yield "| model | attends to | limit | BLEU | greedy | perplexity | best at update | seconds an epoch | ratios |"
    yield "|---|---|---|---:|---:|---:|---:|---:|---:|"
    for job, found in done.items():
        scores = f"{found['bleu']:.2f} | {found['greedy_bleu']:.2f} | {found['valid']['perplexity']:.2f}"
        seconds = f"{median(times[job.name]) * found['epoch']:.0f}" if job.name in times else ""
        ratios = ", ".join(f"{one:.2f}" for one in time_ratios(job, times))
        yield f"| {NAMES[job.model]} | {job.attend} | {job.limit} | {scores} | {found['step']} | {seconds} | {ratios} |"


def time_ratios(job: Job, times: Times) -> list[float]:
    """A reversible run's time over that of torch's layer, with all logits and in blocks."""
    theirs = [job.counterpart.name, replace(job.counterpart, blocks=True).name]
    if not job.reversible or not {job.name, *theirs} <= times.keys():
        return []
    return [median(own / other for own, other in zip(times[job.name], times[one], strict=True)) for one in theirs]


def memory(done: dict[Job, Figures]) -> Iterator[str]:
    """The lines of the table of memory, measured and counted."""
    heads = ["model", "attends to", "limit", "step", "encoder", "held", "decoder"]
    heads += [f"{side} {what}" for side in ("encoder", "decoder") for what in ("bits, forgotten", "counted")]
    yield "| " + " | ".join(heads) + " |"
    yield "|---" * len(heads) + "|"
    for job, found in done.items():
        theirs = done.get(job.counterpart, {}) if job.reversible else {}
        others = [theirs[name] for name in ("bytes", "bytes_in_blocks") if name in theirs]
        cells = [bytes_of(found["bytes"], others, part) for part in ("step", "encoder", "held", "decoder")]
        for side in ("encoder", "decoder"):
            bits = found["bits"][side]
            cells += [f"{bits['stored']:.2f}, {bits['forgotten']:.2f}" if "stored" in bits else ""]
            cells += [" / ".join(f"{one:.1f}" for one in bits.get("saved", {}).values())]
        yield f"| {NAMES[job.model]} | {job.attend} | {job.limit} | " + " | ".join(cells) + " |"
        if blocks := found.get("bytes_in_blocks"):
            cells = [bytes_of(blocks, [], part) for part in ("step", "encoder", "held", "decoder")] + [""] * 4
            yield f"| {NAMES[job.model]}, loss in blocks | {job.attend} | | " + " | ".join(cells) + " |"


def bytes_of(found: Figures, others: list[Figures], part: str) -> str:
    """What a part takes, and how many times less than others."""
    if part not in found:
        return "failed"
    less = ", ".join(f"{other[part] / found[part]:.1f}x" for other in others if part in other)
    return f"{found[part] / MEGABYTE:.1f}" + (f" ({less})" if less else "")
