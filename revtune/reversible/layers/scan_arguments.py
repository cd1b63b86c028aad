"""What `scan` accepts: shapes, dtypes, names and lengths, each refused with a sentence of its own.

Shapes: T time, B batch, I input, H hidden, N units of a part, G gates.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from revtune.reversible.arguments import check_lengths, check_like, check_tensor, is_size
from revtune.reversible.cells.cell import Cell, Response, State
from revtune.reversible.cells.information_buffer import check_share
from revtune.reversible.kernel.tape import LayerTensors
from revtune.reversible.layers.layer import LayerSettings
from revtune.reversible.layers.resets import NO_RESETS, GivenResets

_OF_BUILT_IN = ("ih", "bias", "hh")
"""The weights of a RevGRU or RevLSTM; a cell of one's own may read any besides the projection's."""


def checked_inputs(
    cell: Cell,
    x: Tensor,
    state: State | None,
    weights: Mapping[str, Tensor],
    responses: Mapping[str, Response],
    hidden: int | None,
    settings: LayerSettings,
    given: GivenResets = NO_RESETS,
) -> tuple[LayerTensors, LayerSettings]:
    """The tensors that gradients flow to, the first state made where none is given, and settings with resets.

    Raises:
        ValueError: arguments of `scan` that are no tensors or do not fit together.
    """
    _check_kinds(cell, x, state, weights, responses, settings.masks)
    if settings.share is not None:
        check_share(settings.share, len(cell.parts))
    inputs = LayerTensors(_first_state(cell, x, state, weights, hidden), weights, responses)
    _check_shapes(cell, x, inputs, settings)
    resets = given.steps(cell.name, x, settings.lengths, carried=state is not None)
    return inputs._replace(anew=_reset_state(cell, x, inputs, given)), settings._replace(resets=resets)


def checked_cell(what: str, cell: object) -> Cell:
    """The cell that `scan` or `record` was given.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(cell, Cell):
        raise ValueError(f"{what}: cell must be a Cell, as rev_gru() gives, not a layer, got {type(cell).__name__}")
    return cell


def _check_kinds(
    cell: Cell,
    x: Tensor,
    state: State | None,
    weights: Mapping[str, Tensor],
    responses: Mapping[str, Response],
    masks: Mapping[str, Tensor],
) -> None:
    """Refuse what is no dense tensor where one is wanted, or no mapping of them."""
    name, count = cell.name, len(cell.states)
    check_tensor(f"{name}: x", x)
    for kind, mapping in (("weights", weights), ("responses", responses), ("masks", masks)):
        if not isinstance(mapping, Mapping):
            raise ValueError(f"{name}: {kind} must be a dict by name, got {type(mapping).__name__}")
    for key, weight in weights.items():
        check_tensor(f"{name}: weight {key!r}", weight)
        if key == "ih" and weight.dim() != 2:
            raise ValueError(f"{name}: weight 'ih' must be (G, I), got {tuple(weight.shape)}")
    for part, mask in masks.items():
        check_tensor(f"{name}: mask {part!r}", mask)
    for key, pair in responses.items():
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise ValueError(f"{name}: the response of {key!r} must be a pair (V, s), got {type(pair).__name__}")
        for symbol, tensor in zip("Vs", pair, strict=True):
            check_tensor(f"{name}: {symbol} of the response of {key!r}", tensor)
    if state is not None and not isinstance(state, tuple | list):
        raise ValueError(f"{name}: state must be a tuple of {count} tensors (B, H), got {type(state).__name__}")
    for tensor in state or ():
        check_tensor(f"{name}: a state", tensor)


def _first_state(
    cell: Cell, x: Tensor, state: State | None, weights: Mapping[str, Tensor], hidden: int | None
) -> State:
    """The state given, or zeros."""
    if x.dim() != 3 or 0 in x.shape[:2]:
        raise ValueError(f"{cell.name}: x must be (T, B, I) with T >= 1 and B >= 1, got {tuple(x.shape)}")
    if state is not None and len(state) != len(cell.states):
        raise ValueError(f"{cell.name}: state must be {len(cell.states)} tensors (B, H), got {len(state)}")
    for tensor in state or ():
        if tensor.dim() != 2:
            raise ValueError(f"{cell.name}: a state must be (B, H), got {tuple(tensor.shape)}")
    width, teller = _told_width(cell, x, state, weights)
    if hidden is not None:
        width = _checked_hidden(cell, hidden, width, teller)
    if state is not None:
        return state
    units = width // len(cell.states[0])
    return tuple(x.new_zeros(x.shape[1], units * len(group)) for group in cell.states)


def _told_width(cell: Cell, x: Tensor, state: State | None, weights: Mapping[str, Tensor]) -> tuple[int, str]:
    """H, and what tells it; "" for the features of x where nothing does."""
    parts = len(cell.states[0])
    if state is not None:
        return state[0].shape[1], "the state"
    if "ih" in weights:
        return weights["ih"].shape[0] // max(cell.blocks, 1) * parts, "weight 'ih'"
    return x.shape[-1] // max(cell.blocks, 1) * parts, "x" if cell.blocks else ""


def _checked_hidden(cell: Cell, hidden: int, width: int, teller: str) -> int:
    """H as the caller gives it, if it is that of what tells it."""
    parts = len(cell.states[0])
    if not is_size(hidden) or hidden % parts:
        raise ValueError(f"{cell.name}: hidden must be a positive multiple of a state's {parts} parts, got {hidden!r}")
    if teller and hidden != width:
        raise ValueError(f"{cell.name}: hidden must be {width}, as {teller} has it, got {hidden}")
    return hidden


def _reset_state(cell: Cell, x: Tensor, inputs: LayerTensors, given: GivenResets) -> State:
    """The states from which rows begin anew; none for zeros."""
    anew, what = given.reset_state, f"{cell.name}: reset_state"
    if anew is None:
        return ()
    if not isinstance(anew, tuple | list) or len(anew) != len(cell.states):
        got = f"{len(anew)} of them" if isinstance(anew, tuple | list) else type(anew).__name__
        raise ValueError(f"{what} must be a tuple of {len(cell.states)} tensors (B, H) or (1, H), got {got}")
    for tensor, first in zip(anew, inputs.state, strict=True):
        shapes = (tuple(first.shape), (1, first.shape[1]))
        if tuple(check_tensor(what, tensor).shape) not in shapes:
            raise ValueError(f"{what} must be {shapes[0]}, or {shapes[1]} for all rows, got {tuple(tensor.shape)}")
        if tensor.dtype not in (x.dtype, torch.float64) or tensor.device != x.device:
            raise ValueError(
                f"{what} must be {x.dtype} like x, or float64, on {x.device}, got {tensor.dtype} on {tensor.device}"
            )
    return tuple(anew)


def _check_shapes(cell: Cell, x: Tensor, inputs: LayerTensors, settings: LayerSettings) -> None:
    """Refuse tensors, and settings, that do not fit together."""
    name, (steps, rows) = cell.name, x.shape[:2]
    state, weights = inputs.state, inputs.weights
    if x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{name}: x must be float32 or float64 to rewind exactly, got {x.dtype}")
    if settings.chunk is not None and not is_size(settings.chunk):
        raise ValueError(f"{name}: chunk must be a positive number of steps, got {settings.chunk!r}")
    check_lengths(settings.lengths, steps, rows, x.device)
    units = state[0].shape[-1] // len(cell.states[0])
    if "ih" in weights:
        units = weights["ih"].shape[0] // cell.blocks
    for tensor, group in zip(state, cell.states, strict=True):
        if tensor.shape != (rows, units * len(group)):
            raise ValueError(f"{name}: a state must be {(rows, units * len(group))}, got {tuple(tensor.shape)}")
        if tensor.dtype not in (x.dtype, torch.float64):
            raise ValueError(f"{name}: a state must be {x.dtype} like x, or float64, got {tensor.dtype}")
        if tensor.device != x.device:
            raise ValueError(f"{name}: a state is on {tensor.device}, x on {x.device}")
    _check_weights(cell, x, weights, units)
    _check_responses(cell, x, weights, inputs.responses)
    if "bias" in weights and "ih" not in weights:
        raise ValueError(f"{name}: weight 'bias' is that of the input projection and needs weight 'ih'")
    _check_masks(cell, x, units, settings.masks)


def _check_masks(cell: Cell, x: Tensor, units: int, masks: Mapping[str, Tensor]) -> None:
    for part, mask in masks.items():
        what, shape = f"{cell.name}: mask {part!r}", (x.shape[1], units)
        if mask.requires_grad:
            raise ValueError(f"{what} must require no gradient, as it would get none, got one that requires it")
        check_like(what, mask, x.dtype, x.device, "x")
        if part not in cell.parts or mask.shape != shape:
            raise ValueError(
                f"{cell.name}: masks must be {shape} for one of {cell.parts}, got {part!r} {tuple(mask.shape)}"
            )


def _check_weights(cell: Cell, x: Tensor, weights: Mapping[str, Tensor], units: int) -> None:
    columns = cell.blocks * units
    for key, weight in weights.items():
        if cell.native is not None and key not in _OF_BUILT_IN:
            raise ValueError(f"{cell.name}: weights must be among {_OF_BUILT_IN} for this cell, got {key!r}")
        if weight.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"{cell.name}: weight {key!r} must be float32 or float64 to rewind exactly, got {weight.dtype}"
            )
        if weight.dtype != x.dtype or weight.device != x.device:
            raise ValueError(
                f"{cell.name}: x must be {weight.dtype} on {weight.device} like weight {key!r}, "
                f"got {x.dtype} on {x.device}"
            )
    if "ih" in weights:
        shape = tuple(weights["ih"].shape)
        if shape[0] != columns:
            raise ValueError(f"{cell.name}: weight 'ih' must be (G, I) with G a multiple of {cell.blocks}, got {shape}")
        if shape[1] != x.shape[-1]:
            raise ValueError(
                f"{cell.name}: x must have {shape[1]} features, the columns of weight 'ih', got {x.shape[-1]}"
            )
    if cell.native is not None and "hh" in weights and weights["hh"].shape != (columns, units):
        shape = tuple(weights["hh"].shape)
        raise ValueError(f"{cell.name}: weight 'hh' must be {(columns, units)} for this cell, got {shape}")
    by_row = (x.shape[1], columns)
    if "bias" in weights and tuple(weights["bias"].shape) not in ((columns,), by_row):
        given = tuple(weights["bias"].shape)
        raise ValueError(f"{cell.name}: weight 'bias' must be ({columns},), or {by_row} with a row's own, got {given}")
    if "ih" not in weights and x.shape[-1] != columns:
        raise ValueError(
            f"{cell.name}: without weight 'ih' x must have {columns} features, blocks times units, got {x.shape[-1]}"
        )


def _check_responses(cell: Cell, x: Tensor, weights: Mapping[str, Tensor], responses: Mapping[str, Response]) -> None:
    for key, (extra, scale) in responses.items():
        if key == "bias":
            raise ValueError(
                f"{cell.name}: weight 'bias' takes no pair (V, s); give it as (B, G), with what each row adds"
            )
        if key not in weights:
            raise ValueError(f"{cell.name}: a response names {key!r}, which is none of the weights {tuple(weights)}")
        shapes = (tuple(weights[key].shape), (x.shape[1], weights[key].shape[0]))
        if (tuple(extra.shape), tuple(scale.shape)) != shapes:
            given = (tuple(extra.shape), tuple(scale.shape))
            raise ValueError(f"{cell.name}: the response (V, s) of {key!r} must have shapes {shapes}, got {given}")
        for symbol, tensor in (("V", extra), ("s", scale)):
            check_like(f"{cell.name}: {symbol} of the response of {key!r}", tensor, x.dtype, x.device, "x")
