"""The options of each command, typed; their docstrings are the program's help."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from revtune.config import Config, Size


@dataclass(frozen=True, kw_only=True)
class Train:
    """Learn a text."""

    config: Config
    out: Path | None = None
    """Folder of the run; by default the next free runs/<recipe>-<n>."""
    size: Size = "small"
    """small is made for two cores; paper has the settings of the paper that the recipe is from."""
    resume: Path | None = None
    """Go on with the run in this folder as it was told; no other option goes with this one."""


@dataclass(frozen=True, kw_only=True)
class Generate:
    """Write text with the best weights of a run."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    prompt: str = ""
    """Text to go on from; without it, a new line begins."""
    length: int = 600
    """Tokens to write: bytes, or words at word level."""
    temperature: float = 0.7
    """Below 1 is safer than what was learned, above 1 wilder; 0 takes the likeliest token always."""
    seed: int = 1
    """Seed of the draws."""


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Measure the best weights of a run on held-out text."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    split: Literal["valid", "test", "both"] = "both"
    """Which text."""
