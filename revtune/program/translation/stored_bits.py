"""What a translator stores of its states, counted as its papers do: bits of states and buffers, and nothing else.

An ordinary layer keeps 32 bits of every state (h; of an LSTM also c) at every position. A reversible one keeps what its
buffer does, and 32 bits of each unit that the decoder attends to, as it is found in sentences of the training text.
What else a step needs is measured by `benchmarks.translation_memory`.
"""

from __future__ import annotations

import random
from typing import Any

import revtune as rt
from revtune.program.data.buckets import order
from revtune.program.data.pairs import Pairs
from revtune.program.translation.task import TranslationTask
from revtune.program.translation.translator import Attended, Net, RewindingTranslator, Translator

FLOAT = 32
"""Bits of a float, which torch's layers keep for every number of a state."""

BATCHES = 100
"""That bits are averaged over: of Multi30K more than a fifth of a pass."""


def stored(task: TranslationTask, model: Translator, batches: int = BATCHES) -> dict[str, Any]:
    """Bits that a trained model stores in training mode, dropout included, over the first batches of an epoch.

    Args:
        task: whose training pairs.
        model: the translator; of torch's own layers there is nothing to count but positions.
        batches: how many.

    Returns:
        For "encoder" and "decoder" these figures. The last two are of reversible layers alone.

        positions: how many the training text has; `live` are those of words, `padded` those in batches of like length,
            `unsorted` those in batches as they come.
        stored, forgotten: bits a unit, state and word that the buffer took, and that gates forgot. The mean is over all
            units, sliced ones included, which need no buffer.
        saved: how many times fewer bits are kept than by torch's layer, whose positions are counted in each of these
            three ways. Slices are padded too, and counted likewise; buffers take bits of words alone.
    """
    positions = counted(task.pairs, task.study.learning.batch, task.study.seed)
    if not isinstance(model, RewindingTranslator):
        return {side: {"positions": counts} for side, counts in positions.items()}
    bits = buffered(task, model, min(batches, task.epoch))
    return {
        side: bits[side] | {"positions": counts, "saved": saved(model.net, side, bits[side]["stored"], counts)}
        for side, counts in positions.items()
    }


def buffered(task: TranslationTask, model: RewindingTranslator, batches: int) -> dict[str, dict[str, float]]:
    """Bits a unit, state and word that the buffers of both sides take, and that gates forget."""
    sums = {side: [0, 0.0, 0] for side in ("encoder", "decoder")}
    model.train()
    for number in range(batches):
        batch = task.train_batch(number)
        with rt.meter(peak=False) as encoder:
            _, state = model.encoded(batch.source, batch.source_lengths)
        # run as an encoder: `rewind_loss` never stores the last chunk's bits, as it keeps that chunk's gates
        with rt.meter(peak=False) as decoder:
            rt.rewind_encode(model.decoder, batch.inputs, encode=model.decode, state=state, lengths=batch.lengths)
        for side, used, lengths in (("encoder", encoder, batch.source_lengths), ("decoder", decoder, batch.lengths)):
            more = used.stored_bits, used.ideal_bits, int(lengths.sum()) * states(model.net)
            sums[side] = [total + part for total, part in zip(sums[side], more, strict=True)]
    return {side: {"stored": kept / count, "forgotten": lost / count} for side, (kept, lost, count) in sums.items()}


def saved(net: Net, side: str, stored: float, positions: dict[str, int]) -> dict[str, float]:
    """How many times fewer bits than torch's layer keeps of its states, by the way that positions are counted."""
    kept = kept_units(net) if side == "encoder" else 0
    buffer = positions["live"] * stored * states(net)
    return {name: FLOAT * states(net) * count / (buffer + FLOAT * kept * count) for name, count in positions.items()}


def states(net: Net) -> int:
    """Numbers that the state at one position has; c of an LSTM among them."""
    return (2 if net.model in ("lstm", "revlstm") else 1) * net.hidden * net.layers


def kept_units(net: Net) -> int:
    """Units of a position that are kept for the decoder to attend to."""
    units = Attended.of(net.attend, net.hidden).units
    return net.hidden if units is None else units


def counted(pairs: Pairs, size: int, seed: int) -> dict[str, dict[str, int]]:
    """Positions of the training text: of words, and in batches of like length and as they come, padding included."""
    train, draw = pairs.splits["train"].pairs, random.Random(seed)
    by_length = order(train, size, seed, 0)
    numbers = draw.sample(range(len(train)), len(train))
    unsorted = [numbers[first : first + size] for first in range(0, len(numbers), size)]
    counts: dict[str, dict[str, int]] = {}
    for index, side in enumerate(("encoder", "decoder")):
        lengths = [len(pair[index]) for pair in train]
        counts[side] = {"live": sum(lengths)}
        for name, batches in (("padded", by_length), ("unsorted", unsorted)):
            counts[side][name] = sum(len(batch) * max(lengths[number] for number in batch) for batch in batches)
    return counts
