"""Checkpoints as safetensors: named tensors and JSON facts, nothing that runs when it is read.

A file holds a `Saved`. What a run consists of becomes one and comes back from it: a model's weights, an optimizer's
tensors, a recurrent state, or any nested state of dictionaries and lists.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from revtune.processes import Processes
from revtune.program import files
from revtune.program.errors import Problem
from revtune.program.files import regular

FACTS, SEALS, CHECKSUM = "revtune", "seals", "sha256"
"""Keys of a file's metadata."""

ADAM_KEYS, SGD_KEYS = ("exp_avg", "exp_avg_sq", "step"), ("momentum_buffer",)
"""What the two optimizers keep for a parameter."""

RecurrentState = Tensor | tuple[Tensor, ...] | None
"""h, or (h, c), or None before the first segment."""


LONGEST_REASON = 200
"""Characters told of torch's message on a state that does not fit, which may list every weight."""


@dataclass(frozen=True)
class Saved:
    """Named tensors and JSON facts, as one file holds them, and the digests of files that it is of use with alone."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]
    seals: Mapping[str, str] = field(default_factory=dict)


def pack(saved: Saved) -> bytes:
    """The content of a safetensors file, which has the facts and a checksum of everything in its metadata."""
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in saved.tensors.items()}
    facts, seals = json.dumps(saved.facts), json.dumps(dict(saved.seals)) if saved.seals else ""
    metadata = {FACTS: facts, CHECKSUM: checksum(tensors, facts + seals)}
    return save(tensors, metadata={**metadata, SEALS: seals} if seals else metadata)


def checksum(tensors: dict[str, Tensor], facts: str) -> str:
    """SHA-256 of facts, seals behind them, and of all tensors with their names, dtypes and shapes."""
    sha = hashlib.sha256(facts.encode())
    for name, tensor in sorted(tensors.items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def write(path: Path, saved: Saved) -> None:
    """Write a checkpoint, whole or not at all.

    Raises:
        Problem: it cannot be written.
    """
    files.write(path, pack(saved))


def read(path: Path) -> Saved:
    """What a file holds that `pack` gave the content of.

    Raises:
        Problem: it is missing, truncated, changed, or not of this program.
    """
    try:
        with safe_open(regular(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # the file is mapped memory
    except FileNotFoundError as error:
        raise Problem(f"{path} is not there") from error
    except (SafetensorError, OSError) as error:
        raise Problem(f"{path} is damaged or no safetensors file: {error}") from error
    facts, seals = _facts_and_seals(metadata, path)
    if metadata.get(CHECKSUM) != checksum(tensors, metadata[FACTS] + metadata.get(SEALS, "")):
        raise Problem(f"{path} is damaged: its contents do not match its checksum")
    return Saved(tensors, facts, seals)


def read_facts(path: Path) -> Saved:
    """As `read`, without the tensors, so that their part of the checksum is not compared."""
    try:
        with safe_open(regular(path), framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise Problem(f"{path} is damaged or no safetensors file: {error}") from error
    return Saved({}, *_facts_and_seals(metadata, path))


def _facts_and_seals(metadata: dict[str, str], path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        facts, seals = json.loads(metadata.get(FACTS, "")), json.loads(metadata.get(SEALS, "{}"))
    except (ValueError, RecursionError) as error:
        raise Problem(f"{path} was not written by revtune: its metadata has no facts of a run") from error
    if not isinstance(facts, dict) or not isinstance(seals, dict):
        raise Problem(f"{path} is damaged: its contents do not match its checksum")
    return facts, seals


def weights(model: nn.Module) -> dict[str, Tensor]:
    """A model's parameters and buffers by name, a tied one once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def check_alike(processes: Processes, model: nn.Module, step: int) -> None:
    """Raise `Problem` when the weights after a step are not those of all processes, to the last bit."""
    if processes.count == 1:
        return
    seen = zlib.crc32(b"")
    for tensor in weights(model).values():
        seen = zlib.crc32(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data, seen)
    of_each = processes.gathered([seen])[:, 0].tolist()
    if differing := [rank for rank, other in enumerate(of_each) if other != of_each[0]]:
        raise Problem(f"after step {step} the weights of process {differing[0]} are not those of process 0; "
                      "nothing was saved")  # fmt: skip


def untie(model: nn.Module, names: Collection[str]) -> None:
    """Replace a parameter that two modules share by one in each, where both are named.

    A tied network that STN has tuned is so: its responses differ by module, and so do the weights that freezing makes.
    """
    own = dict(model.named_parameters())
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        if name in names and name not in own:
            module, _, last = name.rpartition(".")
            model.get_submodule(module).register_parameter(last, nn.Parameter(parameter.detach().clone()))


def load_weights(model: nn.Module, saved: Saved, path: Path, *, prefix: str = "") -> None:
    """Copy saved tensors into a model of the same shapes.

    Raises:
        Problem: for the first name or shape that differs, or number that is not finite. The model is then unchanged.
    """
    given = fitting_weights(model, saved, path, prefix=prefix)
    with torch.no_grad():
        for name, tensor in weights(model).items():
            tensor.copy_(given[name])


def fitting_weights(model: nn.Module, saved: Saved, path: Path, *, prefix: str = "") -> dict[str, Tensor]:
    """The saved tensors of a model by its own names: all of them, of its shapes and dtypes, and finite.

    Raises:
        Problem: for the first tensor that is missing, left over, or not so.
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
    for what, saved, own in (
        ("shape", tuple(given.shape), tuple(tensor.shape)),
        ("dtype", given.dtype, tensor.dtype),
    ):
        if saved != own:
            raise Problem(f"{path} does not fit the model: {name} has {what} {saved} there and {own} here")


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
        Problem: for a tensor that belongs to no parameter, that this optimizer does not use, that has another shape or
            an impossible number, or that is missing: Adam has all its keys for each parameter, SGD all or none of its
            own. The optimizer is then unchanged.
    """
    parameters = dict(model.named_parameters())
    adam = isinstance(optimizer, torch.optim.Adam)
    keys = set(ADAM_KEYS) if adam else set()  # SGD without momentum, or before its first step, has none
    fitting: dict[tuple[str, str], Tensor] = {}
    for full, tensor in saved.tensors.items():
        if not full.startswith(prefix):
            continue
        name, _, key = full.removeprefix(prefix).rpartition("/")
        if name not in parameters:
            raise Problem(f"{path} does not fit the model: it has an optimizer's {key} for {name}, which is not here")
        if key not in (ADAM_KEYS if adam else SGD_KEYS):
            raise Problem(f"{path} does not fit the model: its optimizer has no {key!r}, which is there for {name}")
        own = torch.tensor(0.0) if key == "step" else parameters[name]  # step is a float32 number
        _check_like(tensor, own, f"the optimizer's {key} of {name}", path)
        if not tensor.isfinite().all() or (key != "exp_avg" and key in ADAM_KEYS and (tensor < 0).any()):
            raise Problem(f"{path} does not fit the model: the optimizer's {key} of {name} has an impossible number")
        fitting[name, key] = tensor.to(own.device)
        keys.add(key)
    for name, key in ((name, key) for name in parameters for key in sorted(keys)):
        if (name, key) not in fitting:
            raise Problem(f"{path} does not fit the model: the optimizer's {key} of {name} is missing")
    for (name, key), tensor in fitting.items():
        optimizer.state[parameters[name]][key] = tensor


def state_tensors(state: RecurrentState) -> dict[str, Tensor]:
    """A recurrent state as numbered tensors."""
    parts = () if state is None else (state,) if isinstance(state, Tensor) else state
    return {str(number): part for number, part in enumerate(parts)}


def state_of(
    saved: Saved, path: Path, device: torch.device, like: tuple[Tensor, ...], *, prefix: str
) -> RecurrentState:
    """The recurrent state that `state_tensors` numbered, or None where it saved none.

    Raises:
        Problem: its parts are not as many as those of `like`, or have other shapes or dtypes.
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


def not_of_this_run(path: Path, error: Exception) -> Problem:
    """What is said of a checkpoint whose state does not fit, by torch's or our own words for it."""
    reason = " ".join(str(error).split())[:LONGEST_REASON]
    return Problem(f"{path} is no checkpoint of this run: {reason}")


def packed(state: Any) -> Saved:
    """A nested state of dictionaries, lists, tuples, tensors, numbers and strings.

    Example:
        >>> packed({0: [torch.ones(2), None]}).facts
        {'state': {'dict': [[0, {'list': [{'tensor': '0'}, None]}]]}}
    """
    tensors: dict[str, Tensor] = {}

    def to_json(part: Any) -> Any:
        if isinstance(part, Tensor):
            tensors[str(len(tensors))] = part
            return {"tensor": str(len(tensors) - 1)}
        if isinstance(part, dict):  # pairs, as the keys of a JSON object are strings
            return {"dict": [[key, to_json(value)] for key, value in part.items()]}
        if isinstance(part, list | tuple):
            return {"tuple" if isinstance(part, tuple) else "list": [to_json(value) for value in part]}
        return part

    facts = {"state": to_json(state)}
    return Saved(tensors, facts)


def packed_as(name: str, state: Any) -> Saved:
    """A nested state under a name, to stand in one file with others."""
    saved = packed(state)
    return Saved({f"{name}/{key}": tensor for key, tensor in saved.tensors.items()}, {name: saved.facts})


def unpacked_as(name: str, saved: Saved) -> Any:
    """The state that `packed_as` was given with this name.

    Raises:
        KeyError, TypeError, ValueError: there is none.
    """
    start = f"{name}/"
    tensors = {key.removeprefix(start): tensor for key, tensor in saved.tensors.items() if key.startswith(start)}
    return unpacked(Saved(tensors, saved.facts[name]))


def unpacked(saved: Saved) -> Any:
    """The state that `packed` was given.

    Raises:
        KeyError, TypeError, ValueError: it is no such state.
    """

    def from_json(part: Any) -> Any:
        if not isinstance(part, dict):
            return part
        ((kind, value),) = part.items()
        if kind == "tensor":
            return saved.tensors[value]
        if kind == "dict":
            return {key: from_json(inner) for key, inner in value}
        return {"list": list, "tuple": tuple}[kind](from_json(inner) for inner in value)

    return from_json(saved.facts["state"])
