"""Whose loss the rows of each layer move, found out in a tuner's first training step: at an example's hyperparameters
may be only what moves that example's own loss.

It is measured (`probing`) in a pass of its own, after which all is as it was. Rows that move another example's loss are
refused, be they as a user says, the batch by their number alone, or followed from a dimension of the batch that is not
the examples'.

A network or a loss may mix examples, as batch statistics and contrastive losses do. Batch normalisations take the
statistics for constants in that pass. Before any other mixing a row moves several losses, which says nothing of it.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from revtune.tuning.hypers.hyperparameters import Pass, Values
from revtune.tuning.regularizers.regularizer import TunedRegularizer
from revtune.tuning.responses.owners import SEVERAL
from revtune.tuning.responses.probing import Probe, Probed, Weighted, losses_moved
from revtune.tuning.responses.responding import ADVICE
from revtune.tuning.responses.rows import WAYS, Laid, RowsMemory
from revtune.tuning.trees import tensors
from revtune.tuning.tuner import bilevel
from revtune.tuning.tuner.bilevel import BilevelProblem
from revtune.tuning.tuner.followed import followed
from revtune.tuning.tuner.untouched import untouched

LOSSES = (
    "train_loss must give losses (B,), one an example, in the order of the batch, whose examples are in dimension 0 or "
    "another by self_tuning(batch_dim=)"
)
FAILED = "the pass that would show it fails"
MEAN = "train_loss gives a mean: with losses (B,), one an example, it could be"
MIXED = "they move the losses of several examples each"


def check_rows(problem: BilevelProblem, batch: Any, per_example: bool) -> list[str]:
    """Sentences for the user: of which layers it could not be checked.

    Args:
        problem: what is learnt.
        batch: of training data.
        per_example: whether the training loss gives a loss an example; of a mean, predictions tell instead.

    Raises:
        ValueError: rows are at one example's hyperparameters and move another one's loss.
    """
    with untouched(problem):
        try:
            _, batch, raw = problem.perturbed(batch)
            found = _measured(problem, batch, raw, per_example)
        except Exception:  # the step's own passes have told what fails in them; here only the check does
            return _unchecked(problem.rows.assumed, FAILED)
        finally:
            problem.rows.probe = None
    return _unchecked(problem.rows.assumed, MEAN) if found is None else _judged(problem.rows, found, len(raw))


def _measured(
    problem: BilevelProblem, batch: Any, raw: Tensor, per_example: bool
) -> list[tuple[Probed, Tensor]] | None:
    """Each probed output, with whose loss each row moves; None where nothing tells."""
    size, hypers, probe = len(raw), problem.hypers, Probe()
    if size == 1:
        return []
    base, added = problem.parameters()
    bound = Pass(size, hypers.departure(raw), raw, rows=problem.rows)
    with bilevel.without_grad([*base, *added]), hypers.bound(bound), bilevel.uncompiled(), _precise(problem):
        problem.rows.probe = probe
        with StatisticsConstant():
            weighted = _by_losses(problem, batch, raw) if per_example else _by_predictions(problem, batch, size)
        outputs = list(probe.outputs)  # checkpointed code adds more when it runs again
        return None if weighted is None else list(zip(outputs, losses_moved(outputs, weighted, size), strict=True))


@contextlib.contextmanager
def _precise(problem: BilevelProblem) -> Iterator[None]:
    """The step's autocast, but for float16, in which small gradients are no exact multiples."""
    kind = problem.hypers.raw.device.type
    with problem.autocast():
        half = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
        with torch.autocast(kind, enabled=False) if half else contextlib.nullcontext():
            yield


def _by_losses(problem: BilevelProblem, batch: Any, raw: Tensor) -> Weighted:
    losses = problem.train_loss(problem.predicted(batch), batch, Values(problem.hypers, raw)).float()
    return lambda weights: (losses * weights.to(losses)).sum()


def _by_predictions(problem: BilevelProblem, batch: Any, size: int) -> Weighted | None:
    """Numbers of the prediction in the place of losses, those of which it is known whose they are."""
    run = functools.partial(problem.predict, problem.model, batch)
    out, following = followed(run, problem.model, batch, size, problem.rows, problem.batch_dim)
    generator, told = torch.Generator().manual_seed(0), list[tuple[Tensor, Tensor]]()
    for y in tensors(out):
        owners = following.owners(y)
        if y.requires_grad and owners is not None and bool((owners.of >= 0).all()):
            # not their plain sum, which is constant for probabilities
            told.append((y.float() * torch.randn(y.shape, generator=generator).to(y.device), owners.of.long()))
    if not told:
        return None
    return lambda weights: torch.stack([(y * weights[of].to(y)).sum() for y, of in told]).sum()


def _judged(rows: RowsMemory, found: list[tuple[Probed, Tensor]], size: int) -> list[str]:
    unknown = rows.assumed | rows.believed
    known = [pair for pair in found if pair[0].owner not in unknown]
    order = _order(known, size)
    for output, moved in [*known, *found]:
        expected = output.said.expand(moved.shape)
        expected = expected if order is None else order[expected]
        if (wrong := (moved >= 0) & (moved != expected)).any():
            advice = _advice(output, moved) if output.owner in unknown else LOSSES
            raise ValueError(f"{_name(output.owner)}: {_instance(output, moved, wrong)}; {advice}")
    mixed = (output.owner for output, moved in found if (moved == SEVERAL).any())
    return _unchecked((owner for owner in mixed if owner in rows.assumed), MIXED)


def _order(known: list[tuple[Probed, Tensor]], size: int) -> Tensor | None:
    """The loss that each example moves, where rows that are known agree in it and it is no other's: losses may be
    sorted, of which the mean is the same. None where all are in order, or there is no such order.
    """
    moves = torch.zeros(size, size, dtype=torch.bool)
    for output, moved in known:
        moves[output.said.expand(moved.shape)[moved >= 0].long(), moved[moved >= 0]] = True
    if bool((moves.sum(0) > 1).any()) or bool((moves.sum(1) > 1).any()) or not moves.any():
        return None
    order = moves.int().argmax(1)
    return torch.where(moves.any(1), order, torch.arange(size))


def _unchecked(owners: Iterable[Any], why: str) -> list[str]:
    names = sorted({_name(owner) for owner in owners})
    return [f"{name}: its rows are taken for the batch, which could not be checked, as {why}" for name in names]


def _instance(output: Probed, moved: Tensor, wrong: Tensor) -> str:
    index = tuple(wrong.nonzero()[0].tolist())
    row = tuple(place for dim, place in enumerate(index) if dim != output.unit_dim)
    said, loss = int(output.said.expand(moved.shape)[index]), int(moved[index])
    return f"row {row} of its output is at the hyperparameters of example {said} and moves the loss of example {loss}"


def _advice(output: Probed, moved: Tensor) -> str:
    """What to write: how rows lie, where one word says it."""
    numbers = torch.arange(int(output.said.max()) + 1)[:, None]
    for way in WAYS[:2] if moved.shape[output.axis] > len(numbers) else ():
        said = Laid(output.axis, way).spread(numbers, moved.shape, output.unit_dim)
        if not ((moved >= 0) & (moved != said)).any():
            return f'self_tuning(rows={{{_place(output.owner)!r}: "{way}"}}) says how they lie'
    advice = output.owner.advice if isinstance(output.owner, TunedRegularizer) else ADVICE
    return str(advice).format(name=_name(output.owner))


def _name(owner: Any) -> str:
    """What messages call a module."""
    return str(owner._own_name if isinstance(owner, TunedRegularizer) else owner._name)


def _place(owner: Any) -> str:
    """Its name in the network."""
    return str(owner._where if isinstance(owner, TunedRegularizer) else owner._name)


class StatisticsConstant(TorchFunctionMode):
    """Batch normalisations take the batch's statistics for constants, by which examples do not mix."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What the function gives."""
        kwargs = kwargs or {}
        if function is not F.batch_norm:
            return function(*args, **kwargs)
        given = inspect.signature(function).bind(*args, **kwargs).arguments
        if given.get("training"):
            x = given["input"].detach()
            variance, mean = torch.var_mean(x, [dim for dim in range(x.dim()) if dim != 1], correction=0)
            given |= {"running_mean": mean, "running_var": variance, "training": False}
        return function(**given)
