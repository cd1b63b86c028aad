"""The settings of a recipe that ways of tuning compete on."""

from __future__ import annotations

import dataclasses
from types import ModuleType

from revtune.program.language.config import Config, LanguageStudy
from revtune.program.tasks.task import Settings, Size


def study_of(recipe: ModuleType, size: Size) -> Settings:
    """A recipe's settings; those of a language model without what says how a run tunes, as all ways compete."""
    if recipe.kind == "tuned":
        tuned: Settings = recipe.study(size)
        return tuned
    config: Config = recipe.recipe(size)
    return LanguageStudy(**{field.name: getattr(config, field.name) for field in dataclasses.fields(LanguageStudy)})
