"""What a translation run keeps of its data in vocabulary.json: vocabularies, what sentences look like, and a digest."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple, get_args

from revtune.program.data.moses import TextForm
from revtune.program.data.pair_sources import FILES
from revtune.program.data.pairs import Lexicon, lexicon
from revtune.program.errors import Problem
from revtune.program.translation.task import TranslationStudy, TranslationTask


class Known(NamedTuple):
    """What a run knows of its data without them; digests are None in runs of an earlier version.

    Attributes:
        source, target, form: vocabularies, and what sentences look like.
        digest, test: of pairs as token ids, and of the test's text.
        mark: what tells the first three, as the file has them, from others; weights belong to one.
    """

    source: Lexicon
    target: Lexicon
    form: TextForm
    digest: str | None
    test: str | None
    mark: str


def facts(task: TranslationTask) -> dict[str, Any]:
    """What `known` reads, ready for JSON."""
    sides = {"source": task.pairs.source.to_json(), "target": task.pairs.target.to_json()}
    return {**sides, "form": task.form, "digest": task.digest(), "test": task.pairs.test_digest()}


def known(folder: Path, study: TranslationStudy) -> Known:
    """What the run in a folder knows.

    Raises:
        Problem: its file is damaged or not there.
    """
    path = folder / "vocabulary.json"
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
        form = there.get("form", FILES[study.text.name][study.text.unit][0].form)
        if form not in get_args(TextForm):
            raise ValueError(f"form must be one of {', '.join(get_args(TextForm))}, got {form!r}")
        mark = hashlib.sha256(json.dumps([there["source"], there["target"], form]).encode()).hexdigest()
        sides = lexicon(there["source"]), lexicon(there["target"])
        return Known(*sides, form, there.get("digest"), there.get("test"), mark)
    except (OSError, AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise Problem(f"{path} holds no vocabularies: {error}") from error


def task_of(folder: Path, study: TranslationStudy) -> TranslationTask:
    """The data of the run in a folder, in its own vocabularies.

    Raises:
        Problem: they are not those that it was trained on.
    """
    there = known(folder, study)
    task = TranslationTask(study, (there.source, there.target))
    if there.digest is None:
        print(f"revtune: {folder} has no digest of its data; whether these are the same is not known", file=sys.stderr)
    elif there.digest != task.digest() or there.test not in (None, task.pairs.test_digest()):
        told = f"the data, or {folder / 'vocabulary.json'}, are not those that {folder} was trained on"
        raise Problem(f"{told}: their digest differs")
    return task
