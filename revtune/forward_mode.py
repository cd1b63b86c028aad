"""What is said of operations that Delta-STN's second pass, in forward mode, cannot go through."""

from __future__ import annotations

import contextlib
import re
import traceback
from collections.abc import Iterator

from torch import nn
from torch.autograd import forward_ad


@contextlib.contextmanager
def second_pass() -> Iterator[None]:
    """`forward_ad.dual_level()`, in which nobody else may use forward mode.

    Raises:
        RuntimeError: somebody does.
    """
    try:
        with forward_ad.dual_level():
            yield
    except RuntimeError as error:
        if "Nested forward mode" not in str(error):
            raise
        raise RuntimeError(
            "the network or its training loss differentiates forward itself, as torch.func.jvp does, which cannot be "
            "nested in Delta-STN's second pass; use torch.autograd.grad there, or method=\"stn\""
        ) from error


def without_formula(error: NotImplementedError, model: nn.Module) -> NotImplementedError:
    """torch's error in a sentence that names the operation, and the module that ran it, as far as they can be told."""
    places = [frame.f_locals for frame, _ in traceback.walk_tb(error.__traceback__)]
    names = {id(module): f"{name or 'the network'} ({type(module).__name__})" for name, module in model.named_modules()}
    owners = [names[id(place["self"])] for place in places if id(place.get("self")) in names]
    told, ours = re.search(r"forward AD with (\S+) that", str(error)), places[-1].get("ctx")
    operation = told[1] if told else "an operation" if ours is None else type(ours).__name__.removesuffix("Backward")
    where = f" of {owners[-1]}" if owners else ""
    also = ", or give it a jvp" if ours is not None else ""
    return NotImplementedError(
        f"{operation}{where} cannot be differentiated forward, as Delta-STN does in its second pass; use "
        f"method=\"stn\"{also}"
    )
