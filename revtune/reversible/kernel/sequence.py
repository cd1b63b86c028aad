"""A RevGRU or RevLSTM over a sequence whose outputs are all returned, as one operator: torch.ops.revtune.sequence.

The operator is functional, with a fake and a backward of its own, so that torch.compile sees one node. What it does is
in recall.py; what the way back must find as it was goes from there to here as a tensor of facts.

Shapes: T time, B batch, H hidden, S states of the cell (h, or h and c), C chunks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from revtune.errors import ReversalError
from revtune.reversible.cells.cell import Cell, Response, State
from revtune.reversible.kernel import backend as native
from revtune.reversible.kernel.environment import Environment
from revtune.reversible.kernel.kernel import PARTS
from revtune.reversible.kernel.sequence_arguments import DIFFERENTIABLE, Operands
from revtune.reversible.kernel.sequence_recall import Known, Ran, RecalledLayer, chunk_steps, kept_steps
from revtune.reversible.transforms import wants_gradient

_WEIGHTS = {
    "ih": "ih", "bias": "bias", "hh": "hh", "ih_v": "ih.V", "ih_s": "ih.s", "hh_v": "hh.V", "hh_s": "hh.s",
}  # fmt: skip
"""What `Weights` calls the operands that it adds up gradients of."""


_SETTINGS = 4
"""Numbers of an environment."""


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
) -> tuple[Tensor, State]:
    """Outputs (T, B, H) and the final state, in the dtypes of the first one; arguments, checked, as in `scan`."""
    assert cell.native is not None
    h, c = state[0], state[1] if len(state) > 1 else None
    (ih_v, ih_s), (hh_v, hh_s) = [(responses or {}).get(key, (None, None)) for key in ("ih", "hh")]
    mask1, mask2 = [(masks or {}).get(part) for part in cell.states[0]]
    given = Operands(
        x, h, c, weights.get("ih"), weights.get("bias"), weights["hh"], ih_v, ih_s, hh_v, hh_s, mask1, mask2, lengths,
        chunk=0, share=share, bits=cell.native.max_forget_bits, forgetting=cell.native.forgetting,
        bounded=cell.native.bounded, train=False, name=name or cell.name,
    )  # fmt: skip
    train = torch.is_grad_enabled() and any(one is not None and wants_gradient(one) for one in given.differentiable())
    chunk = chunk or chunk_steps(x.shape[1], (cell.blocks + PARTS) * (h.shape[-1] // PARTS), train)
    y, final, *_ = torch.ops.revtune.sequence(*given._replace(train=train, chunk=chunk))
    return y, tuple(one.to(first.dtype) for one, first in zip(final.unbind(), state, strict=True))


class Facts(NamedTuple):
    """What the way back must find as it was.

    Attributes:
        environment: the settings under which the sequence ran.
        digests: a number for each tensor that is read again, x left out.
        chunks: what is known of each chunk.
    """

    environment: Environment
    digests: list[int]
    chunks: list[Known]

    def tensor(self) -> Tensor:
        """These facts as numbers."""
        known = [number for chunk in self.chunks for number in chunk]
        return torch.tensor([*self.environment.numbers(), *self.digests, *known])

    @classmethod
    def of(cls, numbers: list[int], tensors: int) -> Facts:
        """The facts that `tensor` gave, with so many digests."""
        first = _SETTINGS + tensors
        chunks = [Known(*pair) for pair in zip(numbers[first::2], numbers[first + 1 :: 2], strict=True)]
        return cls(Environment.of(numbers[:_SETTINGS]), numbers[_SETTINGS:first], chunks)


def _sequence(*arguments: Any) -> tuple[Tensor, ...]:
    """torch.ops.revtune.sequence on a CPU: outputs, final state, gates, words and facts."""
    given, environment = Operands(*arguments), Environment.current()
    with torch.no_grad(), environment.restored(torch.device("cpu")):
        ran = RecalledLayer(given).forward()
    digests = list(_digests(given).values()) if given.train else []
    return ran.y, ran.final, ran.kept, ran.words, Facts(environment, digests, ran.chunks).tensor()


def _sequence_backward(
    dy: Tensor | None, dfinal: Tensor | None, y: Tensor, final: Tensor, kept: Tensor, words: Tensor, facts: Tensor,
    wanted: list[bool], *arguments: Any,
) -> list[Tensor]:  # fmt: skip
    """torch.ops.revtune.sequence_backward on a CPU: gradients of `DIFFERENTIABLE`, empty where not wanted."""
    given, want = Operands(*arguments), dict(zip(DIFFERENTIABLE, wanted, strict=True))
    known = Facts.of(facts.tolist(), len(given.read_again()))
    with torch.no_grad(), known.environment.restored(torch.device("cpu")):
        _check_unchanged(given, known.digests)
        layer = RecalledLayer(given, frozenset(name for field, name in _WEIGHTS.items() if want[field]))
        dx, dstate = layer.backward(Ran(y, final, kept, words, known.chunks), dy, dfinal, want_dx=want["x"])
    grads = {field: layer.weights.gradients.get(name) for field, name in _WEIGHTS.items()}
    grads |= {"x": dx, **dict(zip(("h", "c"), dstate, strict=False))}
    found = [grads.get(field) for field in DIFFERENTIABLE]
    return [y.new_empty(0) if grad is None else grad for grad in found]


def _digests(given: Operands) -> dict[str, int]:
    """A number for each tensor that is read again, by what it is."""
    return {what: torch.ops.revtune.digest([one.contiguous()]) for what, one in given.read_again().items()}


def _check_unchanged(given: Operands, known: list[int]) -> None:
    for (what, number), before in zip(_digests(given).items(), known, strict=True):
        if number != before:
            raise ReversalError(
                f"{given.name}: {what} was changed (through .data?) between forward and backward; "
                "no gradient was produced"
            )


def _fake(*arguments: Any) -> tuple[Tensor, ...]:
    given = Operands(*arguments)
    x, h, steps, kept = given.x, given.h, given.x.shape[0], kept_steps(given)
    size = torch.library.get_ctx().new_dynamic_size() if given.train and given.c is not None else 0
    facts = _SETTINGS
    if given.train:
        chunks = -(-(steps - kept) // given.chunk) - (-kept // given.chunk)
        facts += len(given.read_again()) + len(Known._fields) * chunks
    return (
        x.new_empty(*x.shape[:2], h.shape[-1]),
        x.new_empty(len(given.state), *h.shape, dtype=torch.float64),
        x.new_empty(kept, x.shape[1], given.hh.shape[0]),
        x.new_empty(size, dtype=torch.int16),
        x.new_empty(facts, dtype=torch.int64),
    )


def _fake_backward(
    dy: Tensor | None, dfinal: Tensor | None, y: Tensor, final: Tensor, kept: Tensor, words: Tensor, facts: Tensor,
    wanted: list[bool], *arguments: Any,
) -> list[Tensor]:  # fmt: skip
    tensors = zip(Operands(*arguments).differentiable(), wanted, strict=True)
    return [torch.empty_like(one) if want and one is not None else y.new_empty(0) for one, want in tensors]


def _set_up(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    given = Operands(*inputs)
    ctx.set_materialize_grads(False)
    _, _, *others = output
    ctx.mark_non_differentiable(*others)
    ctx.save_for_backward(*output, *given.tensors())
    ctx.settings = given.settings()


def _backward(ctx: Any, dy: Tensor | None, dfinal: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(
            "revtune does not support double backward: a rewound gradient has no graph; use create_graph=False"
        )
    y, final, kept, words, facts, *tensors = ctx.saved_tensors
    wanted = list(ctx.needs_input_grad[: len(DIFFERENTIABLE)])
    found = torch.ops.revtune.sequence_backward(
        dy, dfinal, y, final, kept, words, facts, wanted, *tensors, *ctx.settings
    )
    grads = [grad if want else None for grad, want in zip(found, wanted, strict=True)]
    return (*grads, *[None] * (len(Operands._fields) - len(grads)))


def _register() -> None:
    """Give the operators, whose schemas are in csrc/, what they do."""
    torch.library.register_autograd("revtune::sequence", _backward, setup_context=_set_up)
    for name, run, fake in (
        ("sequence_backward", _sequence_backward, _fake_backward), ("sequence", _sequence, _fake),
    ):  # fmt: skip
        torch.library.register_fake(f"revtune::{name}")(fake)
        torch.library.impl(f"revtune::{name}", "CPU")(run)


native.when_loaded(_register)
