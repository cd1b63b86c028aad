"""The documentation site: built strictly, without network, with every public name in its reference."""

import importlib
import os
import re
import subprocess
import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path

import pytest

import revtune

pytest.importorskip("mkdocs", reason="the extra docs is not installed")

ROOT = Path(__file__).parent.parent
DOORS = ("attention", "loader", "penalties", "regularize_images", "regularize_weights")


def public_names() -> set[str]:
    """Of the package and of the modules that are imported by name."""
    doors = {f"revtune.{door}.{name}" for door in DOORS for name in importlib.import_module(f"revtune.{door}").__all__}
    return {f"revtune.{name}" for name in revtune.__all__} | doors


def test_the_reference_asks_for_every_public_name() -> None:
    asked = re.findall(r"^::: (\S+)$", (ROOT / "docs/api.md").read_text("utf-8"), re.M)
    assert sorted(asked) == sorted(public_names())


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built with every warning an error, where no proxy leads out."""
    out = tmp_path_factory.mktemp("site")
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **nowhere}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.slow
def test_the_reference_renders_every_public_name(site: Path) -> None:
    inventory = zlib.decompress((site / "objects.inv").read_bytes().split(b"zlib.\n", 1)[1]).decode()
    rendered = {line.split()[0] for line in inventory.splitlines()}
    assert public_names() <= rendered
    assert {name for name in rendered if name.count(".") == 1} == {f"revtune.{name}" for name in revtune.__all__}
    text = (site / "api.html").read_text("utf-8")
    for name in public_names():
        assert f'id="{name}"' in text, name


@pytest.mark.slow
def test_every_page_is_there_and_none_asks_elsewhere(site: Path) -> None:
    pages = [path.relative_to(ROOT / "docs").with_suffix(".html") for path in ROOT.glob("docs/**/*.md")]
    assert not [page for page in pages if not (site / page).exists()]
    for path in site.rglob("*.html"):
        (asked := Asked()).feed(path.read_text("utf-8"))
        assert not asked.elsewhere, path
        assert "$$" not in asked.text, f"{path.name} has a formula that was not rendered"


class Asked(HTMLParser):
    """What a page has loaded from elsewhere, and its words outside code."""

    def __init__(self) -> None:
        super().__init__()
        self.elsewhere: list[str] = []
        self.text = ""
        self._code = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        link = given.get("src") or (given.get("href") if tag == "link" else None) or ""
        if link.startswith(("http:", "https:", "//")) and given.get("rel") != "canonical":
            self.elsewhere.append(link)
        self._code += tag in ("code", "script")

    def handle_endtag(self, tag: str) -> None:
        self._code -= tag in ("code", "script")

    def handle_data(self, data: str) -> None:
        self.text += "" if self._code else data
