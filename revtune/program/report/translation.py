"""The story of a translator's run."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

from revtune.program import recipes
from revtune.program.errors import Problem
from revtune.program.files import read_bytes
from revtune.program.layers import REVERSIBLE
from revtune.program.report.common import RATE
from revtune.program.report.metrics import column, is_number, later
from revtune.program.report.settings import repeating
from revtune.program.report.story import Attended, Line, Story, Table
from revtune.program.report.task import METHODS, RESULT, finish, tune, validated
from revtune.program.runs.folder import command_line
from revtune.program.studies.json_files import parsed
from revtune.program.translation import run
from revtune.program.translation.interpreter import Decoding, Interpreter
from revtune.program.translation.saved_vocabulary import task_of
from revtune.program.translation.task import TranslationStudy

SENTENCES = 4
"""Of the test that are translated."""

LONGEST = 60
"""Tokens of a sentence whose attention is drawn: more would be no picture."""


def story(folder: Path, name: str, *, accept_edits: bool = False) -> Story:
    """What the run of a translator in a folder tells.

    Raises:
        Problem: its settings are not of this version, or its result is damaged.
    """
    recipe, study = run.stored(folder)
    text, net = study.text, study.net
    how = "" if study.tune == "off" else f", {METHODS[study.tune]}"
    told = Story(folder, name, f"translator, {text.source} to {text.target}, {net.model}{how}")
    lines, elapsed = validated(told, "perplexity")
    if study.tune == "off":
        rates = column(lines, "values", "lr")
        told.draw(RATE, Line("learning rate", rates, later(rates, elapsed)))
        told.note("hyperparameters", "Nothing was tuned: dropout rates stayed as the configuration has them.")
    else:
        tune(told, lines, elapsed, perturbed=True)
    finish(told, "perplexity", study.learning.steps)
    add_bits(told, reversible=net.model in REVERSIBLE, model=net.model)
    add_translations(told, study, accept_edits=accept_edits)
    told.commands = [again(recipe, study), *told.commands, command_line("translate", folder)]
    return told


def again(recipe: str, study: TranslationStudy) -> str:
    """The command that repeats a run."""
    first, kind = recipes.find(recipe).recipe(), {"model": study.net.model, "unit": study.text.unit}
    usual = {"model": first.net.model, "unit": first.text.unit}
    words = [word for name, value in kind.items() if value != usual[name] for word in (f"--{name}", value)]
    return repeating(["train", recipe, *words], study, recipes.find(recipe).recipe(**kind))


def add_bits(told: Story, *, reversible: bool, model: str) -> None:
    """Tell BLEU and the bits of both sides, which a run counts at its end."""
    path = told.folder / "result.json"
    result: dict[str, Any] = parsed(read_bytes(path), RESULT, path) if path.exists() else {}
    if is_number(result.get("bleu")):
        told.facts["BLEU"] = f"{result['bleu']:.2f} by beam, {result.get('greedy_bleu', 0):.2f} greedy"
    sides = result.get("bits", {}) if reversible else {}
    rows = [
        (side, f"{facts['stored']:.3f}", f"{facts['forgotten']:.3f}", f"{facts['saved']['live']:.1f}x")
        for side, facts in sides.items()
        if isinstance(facts, dict) and {"stored", "forgotten", "saved"} <= facts.keys()
    ]
    if rows:
        headings = ("", "stored", "forgotten", "fewer bits than torch's layer keeps")
        told.tables.append(Table("bits", "Bits a unit, state and word, at the end of the run", headings, rows))
    if not reversible:
        told.note("bits", f"nn.{model.upper()} has no buffer: it keeps every state, 32 bits each.")
    elif not rows:
        told.note("bits", "Bits by side are missing: a run counts them at its end.")


def add_translations(told: Story, study: TranslationStudy, *, accept_edits: bool) -> None:
    """Have the best weights translate the test's first sentences, or say why they do not."""
    try:
        learned = run.opened(told.folder, accept_edits=accept_edits)
        with contextlib.redirect_stderr(io.StringIO()) as said:
            task = task_of(told.folder, run.with_place(study, told.folder))
    except Problem as error:
        told.note("samples", f"No translations: {error}.")
        return
    if said.getvalue():
        told.note("samples", said.getvalue().strip().removeprefix("revtune: ") + ".")
    sentences = task.pairs.splits["test"].lines.source[:SENTENCES]
    vocabulary = learned.vocabulary
    translate = Interpreter(learned.model, vocabulary.source, vocabulary.target, Decoding(), longest=LONGEST)
    for sentence, one in zip(sentences, translate(sentences), strict=True):
        down, weights = one.target[:LONGEST], one.attention[:LONGEST].tolist()
        if down:
            told.translations.append(Attended(sentence, one.text, one.source, down, weights))
        else:
            told.note("samples", f"No word was found for: {sentence}")
