"""What a translation run keeps of its data in vocabulary.json: vocabularies, what sentences look like, and digests."""

from __future__ import annotations

import hashlib
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, get_args

from revtune.program.data.moses import TextForm
from revtune.program.data.pair_sources import FILES
from revtune.program.data.pairs import Lexicon, lexicon
from revtune.program.data.readings import as_learnt
from revtune.program.errors import Problem
from revtune.program.files import read_text
from revtune.program.translation.task import TranslationStudy, TranslationTask
from revtune.program.typed import reason


class SavedVocabulary(NamedTuple):
    """What a run can be used by without its data; digests are None in runs of an earlier version.

    Attributes:
        source, target, form: vocabularies, and what sentences look like.
        digest, test: of pairs as token ids, and of the test's text.
        mark: a digest of the first three as the file has them; weights are of use with these alone.
    """

    source: Lexicon
    target: Lexicon
    form: TextForm
    digest: str | None
    test: str | None
    mark: str


def vocabulary_json(task: TranslationTask) -> dict[str, Any]:
    """What `read_vocabulary` reads."""
    sides = {"source": task.pairs.source.to_json(), "target": task.pairs.target.to_json()}
    return {**sides, "form": task.form, "digest": task.digest(), "test": task.pairs.test_digest()}


def read_vocabulary(folder: Path, study: TranslationStudy) -> SavedVocabulary:
    """What the run in a folder keeps of its data.

    Raises:
        Problem: the file is damaged or not there.
    """
    path = folder / "vocabulary.json"
    try:
        content = json.loads(read_text(path))
        # runs of an earlier version do not name it; they read the first of a data set's layouts
        form = content.get("form", FILES[study.text.name][study.text.unit][0].form)
        if form not in get_args(TextForm):
            raise ValueError(f"form must be one of {', '.join(get_args(TextForm))}, got {form!r}")
        mark = hashlib.sha256(json.dumps([content["source"], content["target"], form]).encode()).hexdigest()
        sides = lexicon(content["source"]), lexicon(content["target"])
        return SavedVocabulary(*sides, form, content.get("digest"), content.get("test"), mark)
    except (OSError, AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise Problem(f"{path} holds no vocabularies: {reason(error)}") from error


def task_of(folder: Path, study: TranslationStudy) -> TranslationTask:
    """The data of the run in a folder, in its own vocabularies.

    Raises:
        Problem: they are not those that it was trained on.
    """
    saved = read_vocabulary(folder, study)
    task = as_learnt(saved.digest, partial(TranslationTask, study, (saved.source, saved.target)))
    if saved.digest is None:
        print(f"revtune: {folder} has no digest of its data; whether these are the same is not known", file=sys.stderr)
    elif saved.digest != task.digest() or saved.test not in (None, task.pairs.test_digest()):
        either = f"the data, or {folder / 'vocabulary.json'}, are not those that {folder} was trained on"
        raise Problem(f"{either}: their digest differs")
    return task
