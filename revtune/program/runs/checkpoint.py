"""Models, optimizers and facts as safetensors: numbers with names, nothing that runs when read."""

from __future__ import annotations

from typing import Any
from pathlib import Path
from safetensors import SafetensorError
from torch import Tensor
from dataclasses import dataclass
import hashlib
import json
from torch import nn
from safetensors import safe_open
from safetensors.torch import save
import torch
from revtune.program.errors import Problem
from revtune.program.files import regular


KINDS = {"list": list, "tuple": tuple, "dict": dict}


State = Tensor | tuple[Tensor, ...] | None


FACTS = "revtune"


CHECKSUM = "sha256"


ADAM_KEYS = ("exp_avg", "exp_avg_sq", "step")


SGD_KEYS = ("momentum_buffer",)


@dataclass(frozen=True)
class Saved:
    """Named tensors and JSON facts, as one file holds them."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]


def pack(saved: Saved) -> bytes:
    """The content of a safetensors file, facts and a checksum of everything in its metadata."""
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in saved.tensors.items()}
    facts = json.dumps(saved.facts)
    return save(tensors, metadata={FACTS: facts, CHECKSUM: checksum(tensors, facts)})


def checksum(tensors: dict[str, Tensor], facts: str) -> str:
    """SHA-256 of facts and of all tensors with their names, dtypes and shapes."""
    sha = hashlib.sha256(facts.encode())
    for name, tensor in sorted(tensors.items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def read(path: Path) -> Saved:
    """What `pack` wrote to a file.

    Raises:
        Problem: when the file is missing, truncated, changed, or not of this program.
    """
    try:
        with safe_open(regular(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
    except FileNotFoundError as error:
        raise Problem(f"{path} is not there") from error
    except (SafetensorError, OSError) as error:
        raise Problem(f"{path} is damaged or no safetensors file: {error}") from error
    try:
        facts = json.loads(metadata.get(FACTS, ""))
    except (ValueError, RecursionError) as error:
        raise Problem(f"{path} was not written by revtune: its metadata has no facts of a run") from error
    if metadata.get(CHECKSUM) != checksum(tensors, metadata[FACTS]) or not isinstance(facts, dict):
        raise Problem(f"{path} is damaged: its contents do not match its checksum")
    return Saved(tensors, facts)


def weights(model: nn.Module) -> dict[str, Tensor]:
    """A model's parameters and buffers by name, one that stands in two places once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def load_weights(model: nn.Module, saved: Saved, path: Path, *, prefix: str = "") -> None:
    """Copy saved tensors into a model of the same shapes.

    Raises:
        Problem: for the first name or shape that differs, or number that is not finite; the model is then as it was.
    """
    given = fitting_weights(model, saved, path, prefix=prefix)
    with torch.no_grad():
        for name, tensor in weights(model).items():
            tensor.copy_(given[name])


def fitting_weights(model: nn.Module, saved: Saved, path: Path, *, prefix: str = "") -> dict[str, Tensor]:
    """Saved tensors by the names of a model's own, each of its shape, its dtype, and finite.

    Raises:
        Problem: for the first that is not.
    """
    own = weights(model)
    given = {name.removeprefix(prefix): tensor for name, tensor in saved.tensors.items() if name.startswith(prefix)}
    if missing := own.keys() ^ given.keys():
        name = min(missing)
        raise Problem(f"{path} does not fit the model: {name} is only in the {'model' if name in own else 'file'}")
    for name, tensor in own.items():
        _check_like(given[name], tensor, name, path)
        if not given[name].isfinite().all():
            raise Problem(f"{path} does not fit the model: {name} holds a number that is not finite")
    return given


def _check_like(given: Tensor, tensor: Tensor, name: str, path: Path) -> None:
    sides = (tuple(given.shape), tuple(tensor.shape)), (given.dtype, tensor.dtype)
    for what, (found, wanted) in zip(("shape", "dtype"), sides, strict=True):
        if wanted != found:
            raise Problem(f"{path} does not fit the model: {name} has {what} {found} there and {wanted} here")


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """An optimizer's tensors as `<parameter>/<key>`."""
    return {
        f"{name}/{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state[parameter].items()
        if value is not None
    }


def load_optimizer(
    optimizer: torch.optim.Optimizer, model: nn.Module, saved: Saved, path: Path, *, prefix: str
) -> None:
    """Give an optimizer the tensors that `optimizer_tensors` named.

    Raises:
        Problem: for a tensor of no parameter here or with no use for this optimizer, one of another shape, or one that
            is missing: what the file or Adam has for one parameter it must have for each. The optimizer is then as it
            was.
    """
    parameters = dict(model.named_parameters())
    adam = isinstance(optimizer, torch.optim.Adam)
    keys = set(ADAM_KEYS) if adam else set()
    found: dict[tuple[str, str], Tensor] = {}
    for full, tensor in saved.tensors.items():
        if not full.startswith(prefix):
            continue
        name, _, key = full.removeprefix(prefix).rpartition("/")
        if name not in parameters:
            raise Problem(f"{path} does not fit the model: it has an optimizer's {key} for {name}, which is not here")
        if key not in (ADAM_KEYS if adam else SGD_KEYS):
            raise Problem(f"{path} does not fit the model: its optimizer has no {key!r}, which is there for {name}")
        own = torch.tensor(0.0) if key == "step" else parameters[name]
        _check_like(tensor, own, f"the optimizer's {key} of {name}", path)
        if not tensor.isfinite().all() or (key != "exp_avg" and key in ADAM_KEYS and (tensor < 0).any()):
            raise Problem(f"{path} does not fit the model: the optimizer's {key} of {name} has an impossible number")
        found[name, key] = tensor.to(own.device)
        keys.add(key)
    for name, key in ((name, key) for name in parameters for key in sorted(keys)):
        if (name, key) not in found:
            raise Problem(f"{path} does not fit the model: the optimizer's {key} of {name} is missing")
    for (name, key), tensor in found.items():
        optimizer.state[parameters[name]][key] = tensor


def state_tensors(state: State) -> dict[str, Tensor]:
    """A recurrent state as numbered tensors."""
    parts = () if state is None else (state,) if isinstance(state, Tensor) else state
    return {str(number): part for number, part in enumerate(parts)}


def state_of(saved: Saved, path: Path, device: torch.device, like: tuple[Tensor, ...], *, prefix: str) -> State:
    """The recurrent state that `state_tensors` numbered, or None where it saved none.

    Raises:
        Problem: when its parts are not as many as those of `like`, or have other shapes or dtypes.
    """
    names = sorted(name for name in saved.tensors if name.startswith(prefix))
    if not names:
        return None
    if names != [f"{prefix}{number}" for number in range(len(like))]:
        raise Problem(f"{path} does not fit the model: it has {', '.join(names)} for a state of {len(like)} tensors")
    for name, part in zip(names, like, strict=True):
        _check_like(saved.tensors[name], part, name, path)
    parts = tuple(saved.tensors[name].to(device) for name in names)
    return parts[0] if len(parts) == 1 else parts


def packed(state: Any) -> Saved:
    """A state of dictionaries, lists, tuples, tensors, numbers and words.

    Example:
        >>> packed({0: [torch.ones(2), None]}).facts
        {'state': {'dict': [[0, {'list': [{'tensor': '0'}, None]}]]}}
    """
    held: dict[str, Tensor] = {}

    def seen(one: Any) -> Any:
        if isinstance(one, Tensor):
            held[str(len(held))] = one
            return {"tensor": str(len(held) - 1)}
        if isinstance(one, dict):
            return {"dict": [[key, seen(value)] for key, value in one.items()]}
        if isinstance(one, list | tuple):
            return {"tuple" if isinstance(one, tuple) else "list": [seen(value) for value in one]}
        return one

    facts = {"state": seen(state)}
    return Saved(held, facts)


def unpacked(saved: Saved) -> Any:
    """The state that `packed` was given.

    Raises:
        KeyError, TypeError, ValueError: it is no such state.
    """

    def seen(one: Any) -> Any:
        if not isinstance(one, dict):
            return one
        ((kind, value),) = one.items()
        if kind == "tensor":
            return saved.tensors[value]
        if kind == "dict":
            return {key: seen(part) for key, part in value}
        return KINDS[kind](seen(part) for part in value)

    return seen(saved.facts["state"])
