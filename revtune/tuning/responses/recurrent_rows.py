"""Whose the sequences of a recurrent layer's input are, padded or packed, and so whose its outputs and states are."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import TorchFunctionMode

from revtune.tuning.hypers.hyperparameters import Pass
from revtune.tuning.responses.following import Following
from revtune.tuning.responses.owners import Owners
from revtune.tuning.responses.probing import Probe
from revtune.tuning.responses.rows import Laid, laid_in, of_dimension
from revtune.tuning.trees import mapped, tensors


def laid_sequences(layer: Any, input: Tensor | PackedSequence, size: int, memory: Any, advice: str) -> Laid:
    """How B examples lie among the sequences of a layer's input.

    Raises:
        ValueError: it cannot be told.
    """
    if layer.rows == "all":
        raise ValueError(f'{layer._name}: a recurrent layer has sequences of examples, so rows cannot say "all"')
    named = {"unit_dim": -1, "name": layer._name, "advice": advice, "memory": memory}
    if isinstance(input, Tensor):
        axis = 0 if layer.batch_first else 1
        return laid_in(layer, input, input.shape, size, axis=axis, **named)
    sequences = torch.empty(int(input.batch_sizes[0]), 1)
    if memory is not None and memory.following is not None:
        memory.following.set(sequences, _of_sequences(memory.following, input))
    return laid_in(layer, sequences, sequences.shape, size, axis=0, **named)


def refuse_unbatched(layer: Any, input: Tensor) -> None:
    """Refuse a sequence (T, I) in a pass.

    Raises:
        ValueError: names the layer.
    """
    raise ValueError(
        f"{layer._name}: in a pass every example has hyperparameters of its own, so that the input must have a "
        f"batch and three dimensions, got {tuple(input.shape)}"
    )


def run_in_pass(layer: Any, input: Any, bound: Pass, advice: str, run: Callable[[Laid], Any]) -> tuple[Any, Any]:
    """What a recurrent layer gives in a pass, once it is known whose its sequences are, which its outputs then are."""
    following = None if bound.rows is None else bound.rows.following
    laid = laid_sequences(layer, input, bound.size, bound.rows, advice)
    with contextlib.nullcontext() if following is None else following.pause():
        out: tuple[Any, Any] = run(laid)
        if bound.rows is not None and bound.rows.probe is not None:
            out = probed(bound.rows.probe, layer, out, laid, bound.size)
        if following is not None:
            follow_on(following, layer, input, out, laid, bound.size)
    return out


def _of_sequences(following: Following, input: PackedSequence) -> Owners | None:
    """Whose each packed sequence is, in the order of the batch."""
    owners, count = following.owners(input.data), int(input.batch_sizes[0])
    if owners is None:
        return None
    vector = of_dimension(owners.of, 0).expand(len(input.data) if len(owners.of) == 1 else -1)[:count]
    if input.unsorted_indices is None:
        return Owners(vector[:, None], owners.fixed_sequences)
    vector = vector[input.unsorted_indices.cpu()]
    # torch sorted them, and sorts them back: where the batch comes out, it does for every batch
    return Owners(vector[:, None], torch.equal(vector, torch.arange(count, dtype=vector.dtype)))


def follow_on(following: Following, layer: Any, input: Any, out: tuple[Any, Any], laid: Laid, size: int) -> None:
    """Say whose a recurrent layer's outputs and last states are."""
    y, finals = out
    source = following.owners(input.data if isinstance(input, PackedSequence) else input)
    fixed = source is None or source.fixed or isinstance(input, PackedSequence)
    for state in tensors(finals):
        following.set(state, Owners(_along(laid, size, state, 1), fixed))
    if isinstance(y, PackedSequence):
        following.set(y.data, Owners(_packed(laid, size, y), False, fixed_sequences=y.sorted_indices is None))
    else:
        following.set(y, Owners(_along(laid, size, y, _examples(layer, y)), fixed))


def probed(probe: Probe, layer: Any, out: tuple[Any, Any], laid: Laid, size: int) -> tuple[Any, Any]:
    """A recurrent layer's outputs and last states, with what is to be measured added to them."""
    y, finals = out
    finals = mapped(lambda state: probe.added(layer, state, _along(laid, size, state, 1), axis=1), finals)
    if isinstance(y, PackedSequence):
        return y._replace(data=probe.added(layer, y.data, _packed(laid, size, y))), finals
    axis = _examples(layer, y)
    return probe.added(layer, y, _along(laid, size, y, axis), axis=axis), finals


def _examples(layer: Any, y: Tensor) -> int:
    """Which dimension of a recurrent layer's outputs is sequences; the last one's alone, (B, H), have the first."""
    return 0 if layer.batch_first or y.dim() == 2 else 1


def _along(laid: Laid, size: int, x: Tensor, axis: int) -> Tensor:
    """Whose the sequences along a dimension are."""
    vector = laid.each(_numbers(size), x.shape[axis])[:, 0]
    return vector.reshape([-1 if dim == axis else 1 for dim in range(x.dim())])


def _packed(laid: Laid, size: int, y: PackedSequence) -> Tensor:
    """Whose the steps of packed sequences are."""
    sizes: list[int] = y.batch_sizes.tolist()
    vector = laid.each(_numbers(size), sizes[0])[:, 0]
    vector = vector if y.sorted_indices is None else vector[y.sorted_indices.cpu()]
    return torch.cat([vector[:count] for count in sizes])[:, None]


def _numbers(size: int) -> Tensor:
    return torch.arange(size, dtype=torch.int32)[:, None]


@contextlib.contextmanager
def hooked(model: nn.Module, following: Following, answering: type[nn.Module]) -> Iterator[None]:
    """Recurrent layers without response say whose their outputs are, which their kernels do not show.

    They are told by what torch's have: `batch_first`, `hidden_size` and `num_layers`.
    """
    kinds = ("batch_first", "hidden_size", "num_layers")
    layers = [m for m in model.modules() if not isinstance(m, answering) and all(hasattr(m, kind) for kind in kinds)]

    def pass_on(layer: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        if any(layer is own for own in layers):
            _pass_on(following, layer, args, out)

    pass_on.only_looks = True  # type: ignore[attr-defined]  # streams, which call no forward, refuse other hooks
    handle = register_module_forward_hook(pass_on) if layers else None
    try:
        with _Unpacking(following):
            yield
    finally:
        if handle is not None:
            handle.remove()


class _Unpacking(TorchFunctionMode):
    """Says whose packed sequences are that are padded again, which torch puts together by copies of their steps.

    All steps of a sequence are whose its first is, those of its padding too.
    """

    def __init__(self, following: Following) -> None:
        super().__init__()
        self._following = following

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What the function gives."""
        out = function(*args, **(kwargs or {}))
        if getattr(function, "__name__", "") == "_pad_packed_sequence":
            rows, sizes, batch_first, *_ = args
            owners, count = self._following.owners(rows), int(sizes[0])
            if owners is not None and owners.of.shape[0] == len(rows) and owners.of.numel() == len(rows):
                axis = 0 if batch_first else 1
                of = owners.of[:count].reshape([-1 if dim == axis else 1 for dim in range(out[0].dim())])
                self._following.set(out[0], Owners(of, owners.fixed_sequences, sorted=True))
        return out


def _pass_on(following: Following, layer: Any, args: tuple[Any, ...], out: Any) -> None:
    if not (args and isinstance(args[0], Tensor) and args[0].dim() == 3 and isinstance(out, tuple) and len(out) == 2):
        return
    owners, axis = following.owners(args[0]), 0 if layer.batch_first else 1
    if owners is None or not isinstance(out[0], Tensor):
        return
    vector = of_dimension(owners.of, axis)
    for result, dim in [(out[0], axis), *((state, 1) for state in tensors(out[1]))]:
        if result.dim() == 3 and result.shape[dim] == args[0].shape[axis]:
            following.set(result, Owners(vector.reshape([-1 if d == dim else 1 for d in range(3)]), owners.fixed))
