"""Several processes that take each training step together, every one with some rows of one batch.

What is drawn for rows, such as masks and perturbations, each process draws for the whole batch and takes its own rows
of, so that how many processes there are changes no draw. Gradients are added up, each process's by the share of its
rows, which makes them those of one process on the whole batch.
"""

from __future__ import annotations

import operator
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, distributed

from revtune.errors import ProcessError
from revtune.sequences import setting


class Share(NamedTuple):
    """The rows of a batch that a process has: so many from `first` on, of `whole`."""

    first: int
    rows: int
    whole: int


_present: ContextVar[Share | None] = ContextVar("revtune_share", default=None)

_ever_shared = False
"""Whether there was a share yet: torch.compile cannot look into a `ContextVar`, and need not where there was none."""


def share_of_batch() -> Share | None:
    """Which rows of a batch of several processes the present one is; None where it is the whole batch."""
    return _present.get() if _ever_shared else None


def having(share: Share | None) -> AbstractContextManager[None]:
    """Within this block the batch is these rows of one of several processes, or whole."""
    return setting(_present, share) if _ever_shared else nullcontext()


def refuse_share(what: str, why: str) -> None:
    """Refuse what cannot be drawn for some rows of a batch alone.

    Raises:
        ValueError: the batch is of several processes.
    """
    if share_of_batch() is not None:
        raise ValueError(f"{what} has no part in a batch of several processes (Processes.share): {why}")


def drawn_rows(shape: Sequence[int], dim: int | None, draw: Callable[[Sequence[int]], Tensor]) -> Tensor:
    """What `draw` gives of a shape, one dimension of which is the rows of the batch; None where none is.

    Raises:
        ValueError: within `Processes.share`, that dimension is not as long as the share.
    """
    share = share_of_batch()
    if share is None or dim is None:
        return draw(shape)
    rows = shape[dim] if dim < len(shape) else 1
    if rows != share.rows:
        raise ValueError(
            f"within Processes.share of {share.rows} rows, what is drawn must be for these, got {rows} rows"
        )
    whole = draw([*shape[:dim], share.whole, *shape[dim + 1 :]])
    return whole.narrow(dim, share.first, share.rows).clone()  # which lets the others' go


def laid_as(x: Tensor, shape: Sequence[int]) -> Tensor:
    """A tensor of a shape that is not filled yet, its dimensions in the order that those of x have in memory, in which
    draws like x come.
    """
    strides = x.stride()
    order = sorted(range(x.dim()), key=lambda dim: -strides[dim])
    return torch.empty_permuted(tuple(shape), order, dtype=x.dtype, device=x.device)


class Processes:
    """Processes that take each step together, as torchrun starts them: data in parallel, with one process's results.

    Without torch.distributed it is one process alone, so that a loop needs no case of its own.

    Args:
        group: of torch.distributed; all processes by default.

    Attributes:
        rank: the number of this process.
        count: how many there are.

    Example:
        >>> net, together = nn.Linear(4, 1), Processes()
        >>> x = torch.randn(6, 4)                         # this process's rows
        >>> with together.share(len(x)) as weight:
        ...     (weight * net(x).square().mean()).backward()
        >>> together.add_gradients(net.parameters())
    """

    def __init__(self, group: distributed.ProcessGroup | None = None) -> None:
        running = distributed.is_available() and distributed.is_initialized()
        self.group = group
        self.rank = distributed.get_rank(group) if running else 0
        self.count = distributed.get_world_size(group) if running else 1

    @contextmanager
    def share(self, rows: int, *generators: torch.Generator) -> Iterator[float]:
        """Within this block this process has so many rows of a batch, those after the rows of the processes before it.

        It gives the share of its rows in the batch, by which its mean loss counts where that is a mean over rows, or
        over as many positions of each; one over the positions of padded rows is the sum over `total` of their numbers.
        Masks of this library's layers and regularizers are those of the whole batch; modules that draw by themselves,
        such as nn.Dropout, know nothing of others' rows, and draw the same numbers in each process.

        Args:
            rows: of this process.
            generators: that must stand at one place in all processes, besides torch's own.

        Raises:
            TypeError: rows are no whole number.
            ValueError: there are no rows, or generators differ between processes, which seed them differently.
        """
        rows = whole_rows(rows)
        if self.count == 1:
            _check_rows([rows])
            yield 1.0
            return
        drawn = torch.cat([torch.get_rng_state(), *(generator.get_state() for generator in generators)])
        told = self.gathered([rows, zlib.crc32(drawn.numpy().data)])
        counts, states = (told[:, column].long().tolist() for column in (0, 1))
        _check_rows(counts)  # of all, so that none waits for one that has raised
        if differing := [rank for rank, state in enumerate(states) if state != states[0]]:
            raise ValueError(
                f"generators must stand at one place in all processes, those of process {differing[0]} differ from "
                "those of process 0: seed all alike (torch.manual_seed, Tuner(seed=)), and draw alike"
            )
        global _ever_shared
        own, _ever_shared = Share(sum(counts[: self.rank]), rows, sum(counts)), True
        with having(own):
            yield own.rows / own.whole

    def add_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Make the gradient of each parameter the sum of all processes'; one that some have none of counts as zero.

        Raises:
            ValueError: a gradient is sparse.
        """
        if self.count == 1:
            return
        wanted = [parameter for parameter in parameters if parameter.requires_grad or parameter.grad is not None]
        for parameter in wanted:
            if parameter.grad is not None and parameter.grad.is_sparse:
                shape = tuple(parameter.shape)
                raise ValueError(f"Processes adds dense gradients up, that of a parameter of shape {shape} is sparse")
        has = torch.tensor([parameter.grad is not None for parameter in wanted], dtype=torch.float64)
        some = self.gathered(has).amax(0).bool().tolist()
        reached = [parameter for parameter, one in zip(wanted, some, strict=True) if one]
        for parameter in reached:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.add([parameter.grad for parameter in reached if parameter.grad is not None])

    @torch.no_grad()
    def add(self, tensors: Sequence[Tensor]) -> None:
        """Make each tensor, in place, the sum of all processes'; those of a dtype and device travel together."""
        if self.count == 1:
            return
        kinds = dict.fromkeys((tensor.dtype, tensor.device) for tensor in tensors)
        for kind in kinds:
            some = [tensor for tensor in tensors if (tensor.dtype, tensor.device) == kind]
            flat = torch.cat([tensor.reshape(-1) for tensor in some]).to(self._carried_on(kind[1]))
            self._exchange(partial(distributed.all_reduce, flat, group=self.group))
            for tensor, part in zip(some, flat.split([tensor.numel() for tensor in some]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def total(self, *numbers: float) -> list[float]:
        """The sum over all processes of each number."""
        return self.gathered(numbers).sum(0).tolist() if self.count > 1 else list(numbers)

    def gathered(self, numbers: Sequence[float] | Tensor) -> Tensor:
        """The numbers of each process, (count, n), float64 on the CPU; all give as many.

        Raises:
            ProcessError: another process has ended; so it is for all that processes do together.
        """
        own = torch.as_tensor(numbers, dtype=torch.float64)
        if self.count == 1:
            return own[None]
        return torch.stack(self._of_each(own)).cpu()

    def joined(self, own: Tensor, dim: int) -> Tensor:
        """The tensors of all processes as one, along a dimension in which they may differ."""
        if self.count == 1:
            return own
        sizes = [int(size) for size in self.gathered([own.shape[dim]])[:, 0]]
        padded = own.new_zeros([*own.shape[:dim], max(sizes), *own.shape[dim + 1 :]])
        padded.narrow(dim, 0, own.shape[dim]).copy_(own)
        parts = [part.narrow(dim, 0, size) for part, size in zip(self._of_each(padded), sizes, strict=True)]
        return torch.cat(parts, dim).to(own.device)

    def _of_each(self, own: Tensor) -> list[Tensor]:
        own = own.to(self._carried_on(own.device)).contiguous()
        parts = [torch.empty_like(own) for _ in range(self.count)]
        self._exchange(partial(distributed.all_gather, parts, own, group=self.group))
        return parts

    def _exchange(self, act: Callable[[], object]) -> None:
        try:
            act()
        except RuntimeError as error:  # gloo has no other, and NCCL's are such
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ProcessError(
                f"another of {self.count} processes has ended, or does not answer process {self.rank}: {reason}"
            ) from error

    def _carried_on(self, device: torch.device) -> torch.device:
        """Where tensors of a device must lie to travel: those on the CPU by NCCL on the present GPU."""
        if device.type == "cpu" and distributed.get_backend(self.group) == "nccl":
            return torch.device("cuda", torch.cuda.current_device())
        return device


def whole_rows(rows: int) -> int:
    """A number of rows, if it is a whole one."""
    try:
        return operator.index(rows)
    except TypeError as error:
        raise TypeError(f"rows must be a whole number, got {rows!r}") from error


def _check_rows(counts: Sequence[int]) -> None:
    for rank, rows in enumerate(counts):
        if rows < 1:
            raise ValueError(f"each process must have a row of the batch at least, process {rank} has {rows}")
