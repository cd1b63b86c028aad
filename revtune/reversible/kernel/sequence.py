"""A RevGRU or RevLSTM over a sequence whose outputs are all returned, as one operator: torch.ops.revtune.sequence.

The operator is functional, with a fake and a backward of its own, so that torch.compile and torch.export see one node.
It is there once revtune is imported, for programs that were saved with it, and asks for the kernel when it first runs.
It runs the layer in sequence_recall.py, and in plain torch (sequence_plain.py) where a program has come to a machine
without the kernel. An operator can return nothing but tensors, so what backward has to compare with travels
as one int64 tensor, `facts`, which `SequenceRecord` packs and unpacks.

Shapes: T time, B batch, H hidden, S states of the cell (h, or h and c), C chunks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from revtune.errors import BackendError, ReversalError
from revtune.reversible.cells.cell import Cell, Response, State
from revtune.reversible.kernel.asked_once import asking_once, numbers
from revtune.reversible.kernel.backend import at_hand
from revtune.reversible.kernel.checksum import BETWEEN, MEANWHILE, chained, signed
from revtune.reversible.kernel.engine import Engine, operators, triton_takes
from revtune.reversible.kernel.environment import NUMBERS, Environment
from revtune.reversible.kernel.inductor import run_whole
from revtune.reversible.kernel.sequence_arguments import DIFFERENTIABLE, BackwardArguments, SequenceArguments
from revtune.reversible.kernel.sequence_plain import run_plainly
from revtune.reversible.kernel.sequence_recall import ChunkRecord, RecalledLayer, SequenceRun, kept_steps, longest_chunk
from revtune.reversible.kernel.traced import free_size, is_traced, may_go_back
from revtune.reversible.storage import check_all_stored, naming_lost
from revtune.reversible.transforms import refuse_double_backward

_ARGUMENTS = (
    "Tensor x, Tensor h, Tensor? c, Tensor? ih, Tensor? bias, Tensor hh, Tensor? ih_v, Tensor? ih_s, Tensor? hh_v, "
    "Tensor? hh_s, Tensor? mask1, Tensor? mask2, Tensor? lengths, int chunk, int? share, float? bits, bool forgetting, "
    "bool bounded, bool train, str name, bool answering=True, Tensor? resets=None, Tensor? anew_h=None, "
    "Tensor? anew_c=None, str engine='native'"
)
_BACKWARD = "Tensor? dy, Tensor? dfinal, Tensor y, Tensor final, Tensor kept, Tensor words, Tensor facts, bool[] wanted"

UNRECORDED = 1
"""Numbers of the facts of a sequence that was to be recorded by the kernel and ran without it; none are lost ones."""

_WEIGHTS = {
    "ih": "ih", "bias": "bias", "hh": "hh", "ih_v": "ih.V", "ih_s": "ih.s", "hh_v": "hh.V", "hh_s": "hh.s",
}  # fmt: skip
"""The arguments whose gradients `Weights` adds up, and its names for them."""

_ANEW = ("anew_h", "anew_c")
"""The arguments from which rows begin anew."""

SIZES = 5
"""Tensors whose sizes are recorded."""


def sequence(
    cell: Cell,
    x: Tensor,
    state: State,
    weights: Mapping[str, Tensor],
    *,
    responses: Mapping[str, Response] | None = None,
    masks: Mapping[str, Tensor] | None = None,
    lengths: Tensor | None = None,
    chunk: int | None = None,
    share: int | None = None,
    name: str = "",
    answering: bool = True,
    resets: Tensor | None = None,
    anew: State = (),
    engine: Engine = "native",
) -> tuple[Tensor, State]:
    """Outputs (T, B, H) and the final state, in the dtypes of the first one; arguments, checked, as in `scan`."""
    assert cell.native is not None
    h, c = state[0], state[1] if len(state) > 1 else None
    (ih_v, ih_s), (hh_v, hh_s) = [(responses or {}).get(key, (None, None)) for key in ("ih", "hh")]
    anew_h, anew_c = (*anew, None, None)[:2]
    mask1, mask2 = [(masks or {}).get(part) for part in cell.states[0]]
    given = SequenceArguments(
        x, h, c, weights.get("ih"), weights.get("bias"), weights["hh"], ih_v, ih_s, hh_v, hh_s, mask1, mask2, lengths,
        chunk=chunk or 0, share=share, bits=cell.native.max_forget_bits, forgetting=cell.native.forgetting,
        bounded=cell.native.bounded, train=False, name=name or cell.name, answering=answering,
        resets=resets, anew_h=anew_h, anew_c=anew_c, engine=engine,
    )  # fmt: skip
    train = may_go_back(tensor for tensor in given.differentiable() if tensor is not None)
    y, final, *_ = torch.ops.revtune.sequence(*given._replace(train=train))
    if train and y.requires_grad and not is_traced(x):
        # Backward reads y, and the caller may write to it: it shares its memory until somebody does (private, as yet)
        y = torch._lazy_clone(y)
    return y, tuple(last.to(first.dtype) for last, first in zip(final.unbind(), state, strict=True))


class SequenceRecord(NamedTuple):
    """What backward compares with: the same settings, tensors and chunks as in the forward pass.

    Attributes:
        environment: the settings under which the sequence ran.
        sizes: how many numbers its input has, and its outputs, final state, gates and words that are kept.
        digests: a digest of each tensor that backward reads again, in the order of `read_again`.
        chunks: the record of each chunk.
    """

    environment: Environment
    sizes: list[int]
    digests: list[int]
    chunks: list[ChunkRecord]

    @staticmethod
    def size(tensors: int, chunks: int) -> int:
        """How many numbers a record of so many digests and chunks has."""
        return NUMBERS + SIZES + tensors + len(ChunkRecord._fields) * chunks + 1

    def tensor(self) -> Tensor:
        """This record as int64 numbers."""
        chunks = numbers(number for chunk in self.chunks for number in chunk)
        record = [*self.environment.numbers(), *self.sizes, *self.digests, *chunks]
        return torch.tensor([*record, _sealing(record)])

    @classmethod
    def of(cls, facts: Tensor, tensors: int) -> SequenceRecord:
        """The record, with so many digests, that `tensor` packed.

        Raises:
            ReversalError: its numbers are not those that were packed.
        """
        *recorded, seal = facts.tolist() or [0]
        if seal != _sealing(recorded):
            raise ReversalError("the record of a sequence is not the one that was made; no gradient was produced")
        found = iter(recorded)
        environment = Environment.of([next(found) for _ in range(NUMBERS)])
        sizes, digests = ([next(found) for _ in range(count)] for count in (SIZES, tensors))
        chunks = [ChunkRecord(*three) for three in zip(found, found, found, strict=True)]
        return cls(environment, sizes, digests, chunks)


def _sealing(record: list[int]) -> int:
    """A number that seals a record: any change of the others almost surely changes it."""
    return signed(chained([1, *record]))


def _sequence(*arguments: Any) -> tuple[Tensor, ...]:
    """torch.ops.revtune.sequence: outputs, final state, gates, words and facts."""
    given, environment = SequenceArguments(*arguments), Environment.current()
    check_all_stored(given.read())
    if not _in_kernel(given):
        nothing = SequenceRecord(environment, [0] * SIZES, [], []).tensor()
        return run_plainly(given, (nothing[:UNRECORDED] if given.train else nothing).to(given.x.device))
    digests = _digests(given) if given.train else []  # before it runs: what changes meanwhile is found by backward
    with torch.no_grad(), environment.restored(given.x.device), naming_lost(given.read):
        run = RecalledLayer(given).forward()
    record = SequenceRecord(environment, _sizes(given.x, run), digests, run.chunks)
    return run.y, run.final, run.kept, run.words, record.tensor().to(given.x.device)


def _sequence_backward(*arguments: Any) -> list[Tensor]:
    """torch.ops.revtune.sequence_backward: gradients of `DIFFERENTIABLE`, empty where not wanted."""
    call = BackwardArguments.of(arguments)
    given, want = call.sequence, dict(zip(DIFFERENTIABLE, call.wanted, strict=True))
    if not given.x.shape[1]:
        return [torch.zeros_like(grad) for grad in _fake_backward(*arguments)]
    if call.facts.numel() == UNRECORDED:
        raise BackendError(
            f"{given.name}: this program was traced to be trained by the C++ kernel, and it has run without; "
            'trace it with backend="reference", or see revtune doctor'
        )
    record = SequenceRecord.of(call.facts, len(given.read_again()))
    if _sizes(given.x, call) != record.sizes:
        raise ReversalError(
            f"{given.name}: input, outputs, final state, gates and words must have {record.sizes} numbers "
            f"as in forward, got {_sizes(given.x, call)}; no gradient was produced"
        )
    run = SequenceRun(call.y, call.final, call.kept, call.words, record.chunks)
    with torch.no_grad(), record.environment.restored(given.x.device):
        _check_unchanged(given, record.digests, BETWEEN)
        wanted = frozenset(name for field, name in _WEIGHTS.items() if want[field])
        learns_anew = any(want[field] for field in _ANEW)
        layer = RecalledLayer(given, wanted, learns_anew=learns_anew, kept=len(call.kept))
        try:
            with asking_once():
                dx, dstate, danew = layer.backward(run, call.dy, call.dfinal, want_dx=want["x"])
        finally:  # a change is the reason for other errors too
            _check_unchanged(given, record.digests, MEANWHILE)
    grads = {field: layer.weights.gradients.get(name) for field, name in _WEIGHTS.items()}
    grads |= {"x": dx, **dict(zip(("h", "c"), dstate, strict=False)), **dict(zip(_ANEW, danew, strict=False))}
    ordered = [grads.get(field) for field in DIFFERENTIABLE]
    return [call.y.new_empty(0) if grad is None else grad for grad in ordered]


def _sizes(x: Tensor, run: SequenceRun | BackwardArguments) -> list[int]:
    """How many numbers the input has, and each tensor that a run keeps."""
    return [tensor.numel() for tensor in (x, run.y, run.final, run.kept, run.words)]


def _digests(given: SequenceArguments) -> list[int]:
    """A digest of each tensor that backward reads again."""
    digest = operators(given.engine).digest
    return numbers(digest([tensor.contiguous()]) for tensor in given.read_again().values())


def _check_unchanged(given: SequenceArguments, recorded: list[int], when: str) -> None:
    check_all_stored(given.read())
    for label, digest, before in zip(given.read_again(), _digests(given), recorded, strict=True):
        if digest != before:
            raise ReversalError(f"{given.name}: {label} was changed {when}; no gradient was produced")


def _in_kernel(given: SequenceArguments) -> bool:
    """Whether the kernel runs this sequence."""
    if given.engine == "triton":
        return bool(given.x.shape[1]) and triton_takes(given.x.device)
    return bool(given.x.shape[1]) and given.x.device.type == "cpu" and at_hand()


def _kept_sizes(given: SequenceArguments) -> tuple[int, int]:
    """How many steps' gates, and how many numbers of facts, a sequence keeps."""
    if not given.train:
        return 0, SequenceRecord.size(0, 0)
    if not all(type(size) is int for size in given.x.shape):
        # Computed from symbols they would be guarded, and a graph would hold for some sizes of batch alone
        return free_size(), free_size()
    steps = given.x.shape[0]
    kept, longest = kept_steps(given), longest_chunk(given)
    chunks = -(-(steps - kept) // longest) - (-kept // longest)  # rounded up on each side of the kept steps
    return kept, SequenceRecord.size(len(given.read_again()), chunks)


def shapes(*arguments: Any) -> tuple[Tensor, ...]:
    """Tensors like those that the operator returns, without running it."""
    given = SequenceArguments(*arguments)
    x, h, (kept, facts) = given.x, given.h, _kept_sizes(given)
    # How many words a RevLSTM spills depends on its gates, so the size is a symbol of its own.
    words = free_size() if given.train and given.c is not None else 0
    return (
        x.new_empty(*x.shape[:2], h.shape[-1]),
        x.new_empty(len(given.state), *h.shape, dtype=torch.float64),
        x.new_empty(kept, x.shape[1], given.hh.shape[0]),
        x.new_empty(words, dtype=torch.int16),
        x.new_empty(facts, dtype=torch.int64),
    )


def _fake_backward(*arguments: Any) -> list[Tensor]:
    call = BackwardArguments.of(arguments)
    tensors = zip(call.sequence.differentiable(), call.wanted, strict=True)
    return [
        torch.empty_like(
            tensor, memory_format=torch.preserve_format if tensor is call.sequence.x else torch.contiguous_format
        )
        if want and tensor is not None
        else call.y.new_empty(0)
        for tensor, want in tensors
    ]


def _set_up(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    given = SequenceArguments(*inputs)
    ctx.set_materialize_grads(False)  # a missing gradient stays None: no zeros of the size of the outputs
    _, _, *others = output
    ctx.mark_non_differentiable(*others)
    ctx.save_for_backward(*output, *given.tensors())
    ctx.settings = given.settings()


def _backward(ctx: Any, dy: Tensor | None, dfinal: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if not torch.compiler.is_compiling():
        refuse_double_backward("revtune")
    y, final, kept, words, facts, *tensors = ctx.saved_tensors
    needed = dict(zip(SequenceArguments._fields, ctx.needs_input_grad, strict=False))  # torch leaves out last defaults
    wanted = [needed.get(field, False) for field in DIFFERENTIABLE]
    computed = torch.ops.revtune.sequence_backward(
        dy, dfinal, y, final, kept, words, facts, wanted, *SequenceArguments.of(tensors, ctx.settings)
    )
    grads = {field: grad for field, grad, want in zip(DIFFERENTIABLE, computed, wanted, strict=True) if want}
    return tuple(grads.get(field) for field in SequenceArguments._fields)


torch.library.define("revtune::sequence", f"({_ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)")
torch.library.define(
    "revtune::sequence_backward", f"({_BACKWARD}, {_ARGUMENTS}) -> ({', '.join(['Tensor'] * len(DIFFERENTIABLE))})"
)
torch.library.register_autograd("revtune::sequence", _backward, setup_context=_set_up)
for _name, _run, _shapes in (
    ("sequence", _sequence, shapes), ("sequence_backward", _sequence_backward, _fake_backward),
):  # fmt: skip
    torch.library.register_fake(f"revtune::{_name}")(run_whole(f"revtune::{_name}", _shapes))
    torch.library.impl(f"revtune::{_name}", ("CPU", "CUDA"))(_run)
