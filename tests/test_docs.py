"""The examples in public docstrings and documents run as written."""

import dataclasses
import doctest
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import revtune

REFERS = {"RevLSTM": "RevGRU", "RevLSTMCell": "RevGRUCell", "record": "scan"}
ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
EXAMPLES = sorted(path for path in (ROOT / "revtune").rglob("*.py") if ">>> " in path.read_text())


class Finder(doctest.DocTestFinder):
    """Finds the examples of public names too, whose `__module__` is the face."""

    def _from_module(self, module: Any, thing: Any) -> bool:
        own = getattr(thing, "__dict__", {}).get("_module_source")
        return own == module.__name__ or super()._from_module(module, thing)  # type: ignore[misc]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_run(path: Path) -> None:
    torch.manual_seed(0)
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    names = {key: getattr(revtune, key) for key in revtune.__all__} | {"torch": torch, "nn": nn, "F": nn.functional}
    names["__name__"] = "__example__"  # what an example defines is no class of the module's own
    runner = doctest.DocTestRunner()
    for example in Finder(exclude_empty=True).find(module, extraglobs=names):
        runner.run(example)
    assert runner.tries and not runner.failures


@pytest.mark.parametrize("name", sorted(revtune.__all__))
def test_public_names_are_documented(name: str) -> None:
    public = getattr(revtune, name)
    text = public.__doc__ or ""
    assert len(text) > 20 and text.split("(")[0] != name
    if name in REFERS:
        assert REFERS[name] in text
        text += getattr(revtune, REFERS[name]).__doc__
    if dataclasses.is_dataclass(public) or hasattr(public, "_fields"):
        text = "".join(re.split(r"^ *(?:Args|Attributes):$", text, flags=re.M)[1:])
    missing = [key for key in parameters(public) if not re.search(rf"(?<![\w.]){key}(?!\w)", text)]
    assert not missing, f"{name} does not document {', '.join(missing)}"


def parameters(public: Any) -> list[str]:
    """The names of a function's or a class's parameters, those taken as *args and **kwargs left out."""
    if issubclass(public if inspect.isclass(public) else object, Exception):
        return []
    found = inspect.signature(public).parameters.values()
    return [p.name for p in found if p.name != "self" and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_documents_run(path: Path) -> None:
    torch.manual_seed(0)
    names = {"__name__": "__document__"}
    for block in re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.S):
        exec(compile(block, str(path), "exec"), names)


def test_the_readme_is_a_page_that_is_read() -> None:
    """Everything else is the site's."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 130
    assert all(command in text for command in ("make demo", "make test"))
    assert not [link for link in re.findall(r"\]\(([^)#:]+)\)", text) if not (ROOT / link).exists()]
