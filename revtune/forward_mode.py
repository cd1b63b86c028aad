"""What is said of an operation without a forward-mode formula, which Delta-STN's second pass wants of all."""

from __future__ import annotations

import re
import traceback

from torch import nn


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
