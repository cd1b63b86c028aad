"""Encoder and readout are asked chunk by chunk: what cannot be is found by a trial on its first call, and refused.

A trial draws nothing from torch's generators, opens no sinks and leaves buffers as they were. It is made once of a
function or module as it stands, and again when anything that `keys` looks at is another: a number or string that its
code names, a module, its mode. So a readout that reads a counter is tried at each step, for some milliseconds.

Shapes: K steps, B batch, N positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from revtune.errors import ReversalError
from revtune.reversible.kernel.inner_graph import inner_graph
from revtune.reversible.layers.masks import SequenceMasks, one_sequence
from revtune.reversible.streams.chunk_graph import Autocast
from revtune.reversible.streams.gradient_sinks import Sinks, opened
from revtune.reversible.streams.held import held_parts
from revtune.reversible.streams.keys import Key, key_of
from revtune.reversible.streams.mean import Counted, noted
from revtune.reversible.streams.memory import Memory, spectral
from revtune.reversible.streams.same_draws import SameDraws
from revtune.sequences import Nobody, handing

T = TypeVar("T")

ENCODED_STEPS = 16
"""Steps that an encoder is tried on, spread over the sequence, since its first ones may be padding or silence."""

READ_POSITIONS = 8
"""Positions that a readout is tried on, but two steps of them at least."""

_MOST_KNOWN = 256
"""Trials that are remembered, some kilobytes each; with one more the oldest is forgotten, which only costs its time."""

_known: dict[Hashable, bool] = {}
_counted: dict[Hashable, Counted] = {}


def try_encoder(encode: Callable[[Tensor], Tensor], inputs: Tensor, autocast: Autocast, *, graph: bool) -> bool:
    """Whether a chunk must be encoded with a graph even where none is wanted, since without one its numbers differ.

    Args:
        encode: the user's encoder.
        inputs: (T, B, ...), of which some steps are encoded, together and in two parts.
        autocast: the caller's setting.
        graph: whether gradients will be wanted, for which chunks are encoded again.

    Raises:
        ValueError: steps come out otherwise in parts.
        ReversalError: they come out otherwise a second time.
    """
    steps = min(len(inputs), ENCODED_STEPS)
    if steps < 2:
        return False
    # float32 would round the last step of more than 2^24 up to one that is not there
    chosen = torch.linspace(0, len(inputs) - 1, steps, dtype=torch.float64, device=inputs.device).long()
    block = inputs[chosen].detach()

    def run(chunk: Tensor, graph: bool) -> list[Any]:
        with torch.set_grad_enabled(graph):
            encoded = encode(chunk.detach().requires_grad_(graph and inputs.requires_grad))
        fits = isinstance(encoded, Tensor) and encoded.dim() == 3 and encoded.shape[:2] == chunk.shape[:2]
        return [encoded] if fits else []  # which the first chunk tells

    return _try_parts("encode", encode, key_of(encode), run, block, autocast, graph=graph)


def try_heads(
    readout: Callable[[Tensor], Any], standing: Key | None, heads: Callable[[Any, int], list[Tensor]], y: Tensor,
    autocast: Autocast, *, graph: bool,
) -> None:  # fmt: skip
    """Check that heads give of some positions what they give of two parts of them.

    Args:
        readout: the user's readout.
        standing: its key.
        heads: the tensors among what it gives for so many positions.
        y: outputs of positions, (N, H).
        autocast: the caller's setting.
        graph: whether gradients will be wanted.

    Raises:
        ValueError: positions come out otherwise in parts.
        ReversalError: they come out otherwise a second time.
    """
    block = y[:: max(1, len(y) // ENCODED_STEPS)][:ENCODED_STEPS].detach()
    block = torch.cat([block, block / 2]) if len(block) < 2 else block  # a single one, and another made from it

    def run(positions: Tensor, graph: bool) -> list[Tensor]:
        with torch.set_grad_enabled(graph):
            return heads(readout(positions.clone().requires_grad_(graph)), len(positions))

    _try_parts("readout", readout, standing, run, block, autocast, graph=graph)


def _try_parts(
    name: str, function: Any, standing: Key | None, run: Callable[[Tensor, bool], list[Any]], block: Tensor,
    autocast: Autocast, *, graph: bool,
) -> bool:  # fmt: skip
    """Whether a function's numbers differ where no graph is wanted.

    Args:
        name: "encode" or "readout".
        function: the user's.
        standing: its key; with None the trial is not remembered.
        run: what it gives for some steps, or positions, with a graph or without; nothing where it cannot be tried.
        block: some of them.
        autocast: the caller's setting.
        graph: whether gradients will be wanted, for which it is asked again.

    Raises:
        ValueError: they come out otherwise in parts.
        ReversalError: they come out otherwise a second time.
    """
    key = standing and (name, graph, standing)
    if key in _known:
        return _known[key]
    cut = len(block) // 2
    with trial(function, autocast) as draws:
        whole = run(block, graph)
        draws.first_called(function)
        if not whole:
            return False
        again = run(block, graph) if graph else whole
        plain = run(block, False) if graph else whole
        parts = [run(part, graph) for part in (block[:cut], block[cut:])]
    _refuse_spectral_norm(name, function, draws)
    for one, second, *halves in zip(whole, again, *parts, strict=False):
        if draws.conclusive and one.is_floating_point() and one.isfinite().all():
            _check_same(name, function, one.detach(), second.detach())
            _check_parts(name, function, one.detach(), halves, tolerance(one, autocast))
    _refuse_memory(name, draws)
    pairs = zip(whole, plain, strict=True)
    return remember(_known, key, not all(torch.equal(one.detach(), other.detach()) for one, other in pairs))


def _refuse_spectral_norm(name: str, function: Any, draws: SameDraws) -> None:
    if draws.normed:
        raise ValueError(f"{name} is called chunk by chunk and must not change with each call{_suspects(function)}")


def _refuse_memory(name: str, draws: SameDraws) -> None:
    if draws.changed:
        raise ValueError(
            f"{name} is called chunk by chunk, perhaps two or three times, and must not change with each call, but "
            f"{draws.changed} does; change it once a step, outside, or put the module in evaluation mode"
        )
    if draws.kept:
        raise ValueError(
            f"{name} is called chunk by chunk, at first without a graph, but {draws.kept} keeps a computed tensor for "
            f"the next call, which would have none; compute it in each call, or before rewind_loss"
        )


_GIVEN = {"encode": ("steps", "encoded two or three times"), "readout": ("positions", "read out twice")}
"""What a function is given, and how often, for messages."""

_ALONG_TIME = {
    "encode": (
        "what looks along time (a convolution, positions, another net, a norm over the sequence) goes before: pass its "
        "output as inputs, with encode=None, or call the net as a layer"
    ),
    "readout": (
        "what looks along time (a convolution, a softmax over steps, a norm over the sequence) goes behind: apply it "
        "to the outputs that rewind_outputs returns"
    ),
}
"""What to do with a function that does not work on each step by itself."""


def _check_same(name: str, function: Any, first: Tensor, second: Tensor) -> None:
    if not torch.equal(first, second):
        given, often = _GIVEN[name]
        raise ReversalError(
            f"{name} gave other numbers when it was given the same {given} again, but every chunk is {often} and must "
            f"come out the same{_suspects(function)}; let it depend on nothing but its input, its weights and what "
            "torch draws"
        )


def _check_parts(name: str, function: Any, whole: Tensor, parts: Sequence[Any], most: float) -> None:
    if any(not isinstance(part, Tensor) or part.shape[1:] != whole.shape[1:] for part in parts):
        return
    joined = torch.cat([part.detach() for part in parts])
    if len(joined) != len(whole) or not _apart(joined, whole, most):
        return
    given, _ = _GIVEN[name]
    raise ValueError(
        f"{name} gave other numbers for the same {given} in two parts than together, but it is given chunks and must "
        f"work on each {given[:-1]} by itself{_suspects(function)}; {_ALONG_TIME[name]}"
    )


def _apart(got: Tensor, wanted: Tensor, most: float) -> bool:
    return bool(((got - wanted).abs().amax() > most * wanted.abs().amax()).item())


def try_readout(
    readout: Callable[..., Tensor], standing: Key | None, loss: Callable[[Tensor, Tensor], Tensor], y: Tensor,
    targets: Tensor, live: Tensor | None, autocast: Autocast, *, graph: bool, each: bool = False,
) -> tuple[bool, Counted]:  # fmt: skip
    """Check that a readout's loss of some positions is the sum, or the row, of its losses of two parts of them.

    Args:
        readout: the user's readout.
        standing: its key; with None the trial is not remembered.
        loss: what calls it; the summed loss of positions, 0-d float64, or each one's.
        y, targets: of a chunk's steps, (K, B, H) and (K, B, ...).
        live: which positions are no padding, (K, B); None for all.
        autocast: the caller's setting.
        graph: whether gradients will be wanted.
        each: whether the loss of each position is wanted, in their order.

    Returns:
        Whether that is known now, since these positions may all lose nothing, and what the losses count.

    Raises:
        ValueError: it is not, or comes out otherwise a second time.
    """
    key = standing and (graph, each, standing)
    if key in _counted:
        return True, _counted[key]
    for steps in dict.fromkeys((max(2, READ_POSITIONS // y.shape[1]), len(y))):
        parts = _two_parts(y[:steps].detach(), targets[:steps], None if live is None else live[:steps])
        if parts is None:
            return False, Counted()
        whole = tuple(torch.cat(pair) for pair in zip(*parts, strict=True))
        # With a graph if gradients are wanted: a readout may take some of its own, or hang hooks in it
        with trial(readout, autocast) as draws, torch.set_grad_enabled(graph), noted() as counted:
            losses = [loss(whole[0].requires_grad_(graph).clone(), whole[1]).detach()]
            draws.first_called(readout)
            losses += [loss(y.requires_grad_(graph).clone(), targets).detach() for y, targets in (whole, *parts)]
        values = [float(one.sum()) for one in losses]
        counted.given(whole[1])
        _refuse_spectral_norm("readout", readout, draws)
        if math.isfinite(sum(values)) or math.isfinite(values[0]):  # a loss of whole sequences may need many steps
            if draws.conclusive:
                _check_again(readout, len(whole[0]), values, tolerance(y, autocast))
                if each:
                    _check_each(readout, losses, tolerance(y, autocast))
                else:
                    _check_sum(readout, len(whole[0]), values, tolerance(y, autocast))
            _refuse_memory("readout", draws)
            return any(values) and bool(remember(_counted, key, counted)), counted
    return False, counted


def _check_again(readout: Any, count: int, values: Sequence[float], most: float) -> None:
    together, again, first, second = values
    if abs(together - again) > most * (abs(together) + abs(first) + abs(second)):
        raise ValueError(
            f"readout gave {together:.6g} for the loss of {count} positions and {again:.6g} when it was asked again"
            f"{_suspects(readout)}; let it depend on nothing but what it is given, its weights and what torch draws"
        )


def _check_each(readout: Any, losses: Sequence[Tensor], most: float) -> None:
    together, parts = losses[0], torch.cat(list(losses[2:]))
    if not bool((together - parts).abs().amax() <= most * (together.abs() + parts.abs()).sum()):
        raise ValueError(
            'with reduction="rows", readout(y, targets) must return the losses of its positions in their order, each '
            f"of one position alone, since it is given chunks of them: what it gave for {len(together)} positions is "
            f"not what it gave for two parts of them{_suspects(readout)}"
        )


def _check_sum(readout: Any, count: int, values: Sequence[float], most: float) -> None:
    together, _, first, second = values
    scale = abs(together) + abs(first) + abs(second)
    if not abs(together - first - second) <= min(most * scale, 1e300):
        raise ValueError(_not_a_sum(readout, count, together, first, second))


def _not_a_sum(readout: Any, count: int, together: float, first: float, second: float) -> str:
    return (
        f"readout(y, targets) must return the sum of its positions' losses, each of one position alone, since it is "
        f"given chunks of them: it gave {together:.6g} for {count} positions, and {first:.6g} and {second:.6g} for two "
        f'parts of them{_suspects(readout)}; F.cross_entropy and its like want reduction="sum", whose mean rewind_loss '
        "takes (normalizer= says what it divides by); a penalty on weights is added outside; a loss of a whole "
        "sequence (CTC, CRF, differences between steps) needs all outputs at once, which rewind_outputs gives"
    )


def _two_parts(
    y: Tensor, targets: Tensor, live: Tensor | None
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """The positions of the first and of the last steps; of a single step, those and others made from them."""
    cut = len(y) // 2
    halves = [slice(0, cut), slice(cut, len(y))] if cut else [slice(0, 1)]
    parts = []
    for half in halves:
        every = torch.ones(targets[half].shape[:2], dtype=torch.bool, device=y.device)
        alive = every if live is None else live[half]
        if bool(alive.any()):
            parts.append((y[half][alive], targets[half][alive]))
    if not parts:
        return None
    return (parts[0], parts[1]) if len(parts) > 1 else (parts[0], (parts[0][0] / 2, parts[0][1]))


def tolerance(like: Tensor, autocast: Autocast) -> float:
    """How far sums of these numbers may lie apart by rounding, relative to their size."""
    if autocast.enabled or like.dtype in (torch.float16, torch.bfloat16):
        return 3e-2
    if like.dtype == torch.float64:
        return 1e-10
    return 1e-5 if like.device.type == "cpu" else 3e-3  # TF32


@contextmanager
def trial(function: Any, autocast: Autocast) -> Iterator[SameDraws]:
    """A block that leaves no trace in what a function holds, but for what Python code keeps itself."""
    before, draws = Memory(function), SameDraws()
    try:
        graph = inner_graph()  # hooks that a function which is checkpointed has see what is kept, and no trials
        with one_sequence(SequenceMasks(seed=0)), opened(Sinks()), autocast.again(), handing(Nobody()), draws, graph:
            yield draws
        draws.normed = before.spectral_norm_moved()
        if draws.memory:
            draws.changed, draws.kept = draws.memory.changed(), draws.memory.kept_since(before)
    finally:
        before.restore()


def _suspects(function: Any) -> str:
    """The modules that a function holds and that are known not to stream, in brackets."""
    for name, module in held_parts(function):
        kind = type(module).__name__
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            return f" ({kind} {name!r} takes each chunk for a batch: put it in evaluation mode, or use nn.LayerNorm)"
        if isinstance(module, nn.Module) and module.training and spectral(module):
            return f" (spectral_norm {name!r} changes with each call: put it in evaluation mode, or leave it out)"
    return ""


def remember(known: dict[Hashable, T], key: Hashable, answer: T) -> T:
    """Keep an answer, unless there is no key for it; the oldest is forgotten where there are too many."""
    if key is not None:
        if len(known) >= _MOST_KNOWN:
            known.pop(next(iter(known)), None)
        known[key] = answer
    return answer
