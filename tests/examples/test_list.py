"""Every example is listed for users, and run by a test."""

from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
FILES = sorted((ROOT / "examples").glob("*.py")) + sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))


def test_every_example_is_listed_and_tested() -> None:
    listed = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
    tests = [path.name for path in Path(__file__).parent.glob("test_*.py")]
    for path in FILES:
        assert f"](../{path.relative_to(ROOT).as_posix()})" in listed, path.name
        alone = path.suffix == ".py" and path.stem != "min_gru"  # which tests of cells run, as one of their cells
        assert f"test_{path.stem if alone else 'notebooks'}.py" in tests, path.name


def test_every_program_says_how_it_is_run() -> None:
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert path.suffix != ".py" or f"    python examples/{path.name}" in text.split('"""')[1], path.name
