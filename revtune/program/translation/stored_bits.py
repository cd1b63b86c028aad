"""What a translator stores of its states, counted as its papers do: bits of states and buffers, and nothing else.

An ordinary layer keeps 32 bits of every state (h; of an LSTM also c) at every position. A reversible one keeps what its
buffer does, and 32 bits of each unit that the decoder attends to, as it is found in sentences of the training text.
Whatever else a step needs, `translation_memory` measures.
"""

from __future__ import annotations

import random
from typing import Any

import revtune as rt
from revtune.program.data.buckets import order
from revtune.program.data.pairs import Pairs
from revtune.program.translation.task import TranslationTask
from revtune.program.translation.translator import Net, Over, RewindingTranslator, Translator

Facts = dict[str, Any]


FLOAT = 32


BATCHES = 100


def stored(task: TranslationTask, model: Translator, batches: int = BATCHES) -> Facts:
    """Bits that a trained model stores, over the first batches of an epoch, masks drawn.

    Args:
        task: whose training pairs.
        model: the translator; of torch's own layers there is nothing to count but positions.
        batches: how many.

    Returns:
        For "encoder" and "decoder": `stored` and `forgotten`, bits a unit, state and word that the buffer took and that
        gates forgot, over all units, those sliced among them, which need none; `positions`, how many there are in all
        of the training text: `live` of words, `padded` in batches of like length, `unsorted` in batches as they come;
        and `saved`, how many times fewer bits are kept than by torch's layer, whose positions are counted in each of
        these ways, and so are those of our slices, which are padded too; our buffers take bits of words alone.
    """
    positions = counted(task.pairs, task.study.learning.batch, task.study.seed)
    if not isinstance(model, RewindingTranslator):
        return {side: {"positions": found} for side, found in positions.items()}
    bits = buffered(task, model, min(batches, task.epoch))
    return {
        side: bits[side] | {"positions": found, "saved": saved(model.net, side, bits[side]["stored"], found)}
        for side, found in positions.items()
    }


def buffered(task: TranslationTask, model: RewindingTranslator, batches: int) -> dict[str, dict[str, float]]:
    """Bits a unit, state and word that the buffers of both sides take, and that gates forget."""
    sums = {side: [0, 0.0, 0] for side in ("encoder", "decoder")}
    model.train()
    for number in range(batches):
        some = task.train_batch(number)
        with rt.meter(peak=False) as encoder:
            _, state = model.encoded(some.source, some.source_lengths)
        with rt.meter(peak=False) as decoder:  # as an encoder: `rewind_loss` keeps the last chunk's gates instead
            rt.rewind_encode(model.decoder, some.inputs, encode=model.decode, state=state, lengths=some.lengths)
        for side, used, lengths in (("encoder", encoder, some.source_lengths), ("decoder", decoder, some.lengths)):
            found = used.stored_bits, used.ideal_bits, int(lengths.sum()) * states(model.net)
            sums[side] = [a + b for a, b in zip(sums[side], found, strict=True)]
    return {side: {"stored": kept / count, "forgotten": lost / count} for side, (kept, lost, count) in sums.items()}


def saved(net: Net, side: str, stored: float, positions: dict[str, int]) -> dict[str, float]:
    """How many times fewer bits than torch's layer's states, whose positions are counted in different ways."""
    kept = kept_units(net) if side == "encoder" else 0
    buffer = positions["live"] * stored * states(net)
    return {name: FLOAT * states(net) * count / (buffer + FLOAT * kept * count) for name, count in positions.items()}


def states(net: Net) -> int:
    """Numbers that the state at one position has."""
    return (2 if net.model in ("lstm", "revlstm") else 1) * net.hidden * net.layers


def kept_units(net: Net) -> int:
    """Units of a position that are kept for the decoder to attend to."""
    units = Over.of(net.attend, net.hidden).units
    return net.hidden if units is None else units


def counted(pairs: Pairs, size: int, seed: int) -> dict[str, dict[str, int]]:
    """Positions of the training text: of words, and in batches of like length and as they come, padding included."""
    there, draw = pairs.splits["train"].pairs, random.Random(seed)
    ways = {"padded": order(there, size, seed, 0)}
    numbers = draw.sample(range(len(there)), len(there))
    ways["unsorted"] = [numbers[first : first + size] for first in range(0, len(numbers), size)]
    found: dict[str, dict[str, int]] = {}
    for place, side in enumerate(("encoder", "decoder")):
        lengths = [len(pair[place]) for pair in there]
        sums = {name: sum(len(some) * max(lengths[one] for one in some) for some in way) for name, way in ways.items()}
        found[side] = {"live": sum(lengths), **sums}
    return found
