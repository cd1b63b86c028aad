"""WikiText-2, word level (the <unk> version); --size paper for MacKay et al. 2018, section 5.1."""

from __future__ import annotations

from revtune.program.language.config import Config
from revtune.program.language.task import LanguageTask
from revtune.program.recipes import ptb
from revtune.program.tasks.task import Size

kind = "text"

task = LanguageTask


def recipe(size: Size = "small") -> Config:
    """The settings of `ptb` over 33,278 words and 1,492 steps an epoch."""
    build = ptb.paper if size == "paper" else ptb.small
    return build("wikitext2", "wikitext2", epoch=1492)
