"""What building the site needs beside mkdocs.yml: pages that appear, links out of docs/, docstrings as markdown."""

import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
OUTSIDE = re.compile(r"\]\(\.\./([^)#\s]+)")
"""A link to a file or folder of the repository that lies outside docs/."""


def on_config(config: MkDocsConfig) -> None:
    """Put pages that `nav` does not name under "More"."""
    named = set(re.findall(r"[\w/-]+\.md", str(config.nav)))
    pages = (path.relative_to(config.docs_dir).as_posix() for path in Path(config.docs_dir).rglob("*.md"))
    if more := sorted(set(pages) - named):
        config.nav = [*(config.nav or []), {"More": more}]


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Take what pages link to outside docs/ into the site."""
    texts = [Path(page.abs_src_path).read_text("utf-8") for page in files.documentation_pages() if page.abs_src_path]
    for place in sorted({inside(link) for text in texts for link in OUTSIDE.findall(text)}):
        files.append(File.generated(config, place, abs_src_path=str(ROOT / place)))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links out of docs/ at what `on_files` took in."""
    if page.file.generated_by:
        return markdown
    return OUTSIDE.sub(lambda link: f"]({inside(link[1])}", markdown)


def inside(link: str) -> str:
    """The file that a link leads to; of a folder, its README.md or table.md."""
    place = ROOT / link
    if place.is_dir():
        place = next(path for name in ("README.md", "table.md") if (path := place / name).exists())
    return place.relative_to(ROOT).as_posix()


class PlainDocstrings(griffe.Extension):
    """Docstrings as markdown has them: examples as a section, and a colon before what is set apart."""

    def on_instance(self, *, obj: Any, **kwargs: Any) -> None:
        """Called of each module, class and function that is read."""
        if obj.docstring:
            text = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.M)
            obj.docstring.value = re.sub(r"::$", ":", text, flags=re.M)
