"""Where rows of a batch begin anew: episodes that end in the middle of a row, and documents packed into one.

Before step t of row b, where `resets[t, b]` is true, the row's state gives way to zeros, or to a `reset_state`.
Rewinding crosses this exactly, since what is lost goes into the buffer whole; gradients do not cross it. Packed
documents are the same thing, with their cumulative lengths, `offsets`, in place of steps.

Shapes: T time, B batch, H hidden, L layers, D directions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from revtune.reversible.arguments import check_tensor
from revtune.reversible.cells.cell import State
from revtune.reversible.kernel.traced import is_traced
from revtune.reversible.layers.masks import BatchSpec
from revtune.reversible.layers.rnn_arguments import Hx, check_states


class Resets(NamedTuple):
    """Where rows begin anew, and from what.

    Attributes:
        at: before which steps each row does, (T, B) bool.
        state: from which state, one tensor for each of the cell's: (B, H) or (1, H) of a layer, (L * D, B, H) or
            (L * D, 1, H) of a net; none for zeros.
        carried: whether a first state is given.
    """

    at: Tensor
    state: State = ()
    carried: bool = False


def of_layer(resets: Resets | None, number: int) -> Resets | None:
    """Where rows of one layer in one direction of a net begin anew."""
    return None if resets is None else resets._replace(state=tuple(state[number] for state in resets.state))


def both_ways(
    resets: Resets | None, lengths: Tensor | None, *, late: bool = False
) -> tuple[Resets | None, Resets | None]:
    """Where rows begin anew, and where they do read from their last steps on: there an episode begins at its end.

    Args:
        resets: where they do in the sequence's order.
        lengths: steps of each row, or None for T.
        late: whether shorter rows start late where they are read backward, so that all end together.
    """
    return (None, None) if resets is None else (resets, resets._replace(at=_reversed(resets, lengths, late)))


class GivenResets(NamedTuple):
    """What a user says of where rows begin anew; as in RevGRU's call."""

    resets: Tensor | None = None
    reset_state: Hx | None = None
    offsets: Tensor | None = None

    @property
    def nothing(self) -> bool:
        """Whether nothing is said, as in most calls."""
        return self.resets is None and self.reset_state is None and self.offsets is None

    def steps(
        self, what: str, x: Tensor, lengths: Tensor | None, *, carried: bool, batch_first: bool = False
    ) -> Tensor | None:
        """Before which steps rows begin anew, (T, B) bool; None for never.

        Args:
            what: whose they are, for messages.
            x: any tensor (T, B, ...) on the input's device.
            lengths: steps of each row, or None for T.
            carried: whether a first state is given, from which the first of packed documents then goes on.
            batch_first: whether `resets` is (B, T).

        Raises:
            ValueError: says what does not fit.
        """
        if self.resets is None and self.offsets is None:
            if self.reset_state is not None:
                raise ValueError(f"{what}: reset_state is what rows begin anew from, so it needs resets or offsets")
            return None
        if is_traced(x):
            raise ValueError(
                f"{what}: resets and offsets cannot be traced into a graph (torch.export, torch.jit.trace), since rows "
                "begin anew by their values; call the net as it is, or under torch.compile, which leaves it out"
            )
        if self.offsets is None:
            assert self.resets is not None
            return _checked(what, self.resets, x, lengths, batch_first)
        if self.resets is not None:
            raise ValueError(f"{what}: resets and offsets say the same thing, so give one of them, got both")
        if lengths is not None:
            raise ValueError(f"{what}: offsets are those of one packed row, which has no padding; got lengths too")
        return _of_offsets(what, self.offsets, x, first=not carried and self.reset_state is not None)

    def of_net(
        self, what: str, x: Tensor, lengths: Tensor | None, batch: BatchSpec, states: int, shape: tuple[int, ...], *,
        carried: bool, batched: bool, batch_first: bool,
    ) -> Resets | None:  # fmt: skip
        """Where rows of a net's batch begin anew, and from what; None for never.

        Args:
            what, x, lengths, carried, batch_first: as in `steps`.
            batch: the net's rows, dtype and device.
            states: how many states its cell has.
            shape: of each, (L * D, B, H).
            batched: whether what is given has the dimension B.

        Raises:
            ValueError: as in `steps`.
        """
        given = self
        if not batched and self.resets is not None:
            resets = check_tensor(f"{what}: resets", self.resets)
            if resets.shape != x.shape[:1] or resets.dtype != torch.bool:
                raise ValueError(
                    f"{what}: resets must be bool (T,) = {tuple(x.shape[:1])}, one at each step of an unbatched input, "
                    f"got {resets.dtype} of shape {tuple(resets.shape)}"
                )
            given = self._replace(resets=resets.unsqueeze(1))
        at = given.steps(what, x, lengths, carried=carried, batch_first=batch_first)
        if at is None or self.reset_state is None:
            return None if at is None else Resets(at, carried=carried)
        return Resets(at, check_states(what, self.reset_state, states, shape, batch, batched=batched,
                                       what="reset_state", shared=True), carried)  # fmt: skip


NO_RESETS = GivenResets()
"""What most calls say."""


def _checked(what: str, resets: Tensor, x: Tensor, lengths: Tensor | None, batch_first: bool) -> Tensor:
    """Resets that fit, time first."""
    shape, dims = tuple(x.shape[:2]), "(T, B)"
    if batch_first:
        shape, dims = shape[::-1], "(B, T)"
    given = check_tensor(f"{what}: resets", resets)
    if given.dtype != torch.bool or given.shape != shape:
        raise ValueError(
            f"{what}: resets must be bool {dims} = {shape}, a row's at each step, got {given.dtype} of shape "
            f"{tuple(given.shape)}"
        )
    if given.device != x.device:
        raise ValueError(f"{what}: resets are on {given.device}, the input on {x.device}")
    at = (given.t() if batch_first else given).contiguous()
    if lengths is not None:
        beyond = at & (torch.arange(len(at), device=at.device).unsqueeze(1) >= lengths)
        if bool(beyond.any()):
            step, row = (int(index) for index in beyond.nonzero()[0])
            raise ValueError(
                f"{what}: resets must lie within each row's steps, got one at step {step} of row {row}, which has "
                f"{int(lengths[row])} steps"
            )
    return at


def _of_offsets(what: str, offsets: Tensor, x: Tensor, *, first: bool) -> Tensor:
    """Resets (T, 1) at the beginnings of documents, at that of the first too if `first`."""
    steps, rows = x.shape[:2]
    must = f"{what}: offsets must be the cumulative lengths of documents in one packed row, integers (D + 1,) from 0"
    given = check_tensor(f"{what}: offsets", offsets)
    if rows != 1:
        raise ValueError(f"{must}, got them for a batch of {rows} rows")
    if given.dim() != 1 or len(given) < 2 or given.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"{must} to T = {steps}, got {given.dtype} of shape {tuple(given.shape)}")
    if given.device != x.device:
        raise ValueError(f"{what}: offsets are on {given.device}, the input on {x.device}")
    ends = given.long()
    if int(ends[0]) or int(ends[-1]) != steps or bool((ends.diff() < 0).any()):
        falls = ", which fall in between" if bool((ends.diff() < 0).any()) else ""
        raise ValueError(f"{must} to T = {steps}, never falling, got {int(ends[0])} to {int(ends[-1])}{falls}")
    if steps and int(ends[-2]) == steps:
        raise ValueError(
            f"{what}: offsets end in an empty document, which has no last step whose state could be returned; leave it "
            f"out, as the last two are {steps} and {steps}"
        )
    at = torch.zeros(steps + 1, 1, dtype=torch.bool, device=given.device)
    at[ends[1:]] = True  # where the first document is empty the second begins at step 0, and anew
    at[0] |= first
    return at[:steps]


def _reversed(resets: Resets, lengths: Tensor | None, late: bool) -> Tensor:
    """Resets (T, B) of rows that are read backward: what begins at step t ends, read so, before step n - t.

    Without a first state a row whose first episode begins from the reset state begins from it read backward too.
    """
    at = resets.at
    steps, rows = torch.zeros_like(at), torch.arange(at.shape[1], device=at.device)
    ends = torch.full_like(rows, len(at)) if lengths is None else lengths.long()
    origin = torch.full_like(rows, len(at)) if late else ends  # of a row's steps, read backward
    time, row = at[1:].nonzero(as_tuple=True)
    steps[origin[row] - time - 1, row] = True
    if resets.state and not resets.carried:
        anew = at[0] & (ends > 0)
        steps[(origin - ends)[anew], rows[anew]] = True
    return steps
