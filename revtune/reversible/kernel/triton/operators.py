"""All operators of Triton's kernel, under the names and with the arguments that torch.ops.revtune has."""

from revtune.reversible.kernel.triton.chunk_operators import (
    forward,
    gradient,
    pack_into,
    packed_size,
    recall,
    recall_cells,
    rewind,
    stacks,
)
from revtune.reversible.kernel.triton.digest import digest
from revtune.reversible.kernel.triton.product import add_outer, project_back, project_back_into, project_into

__all__ = [
    "add_outer", "digest", "forward", "gradient", "pack_into", "packed_size", "project_back", "project_back_into",
    "project_into", "recall", "recall_cells", "rewind", "stacks",
]  # fmt: skip
