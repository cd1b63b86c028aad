"""The recurrent layers that the program's nets can have, by name."""

from __future__ import annotations

from typing import Literal

Model = Literal["revgru", "revlstm", "gru", "lstm"]
"""Reversible layers, and torch's own, which store every state."""

REVERSIBLE: tuple[Model, ...] = ("revgru", "revlstm")
"""Those that rewind; their losses are streamed."""
