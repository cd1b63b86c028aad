"""Places that commands write to."""

from pathlib import Path

import pytest

from revtune.places import check_apart, check_place, same
from revtune.problem import Problem


def test_the_same_file_is_known_by_any_of_its_names(tmp_path: Path) -> None:
    one, other, link, hard = (tmp_path / name for name in ("one", "other", "link", "hard"))
    one.touch()
    other.touch()
    link.symlink_to(one)
    hard.hardlink_to(one)
    assert same(link, one) and same(hard, one) and same(tmp_path / "new", tmp_path / "x" / ".." / "new")
    assert not same(other, one) and not same(tmp_path / "new", one)
    with one.open() as file:
        assert same(hard, file.fileno()) and not same(other, file.fileno())
    with open("/dev/null") as nothing:
        assert not same(Path("/dev/null"), nothing.fileno()), "what is written there is not kept"


def test_what_is_taken_is_told_by_the_option_s_name(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    check_apart({"out": one, "plot": other, "more": None}, [(tmp_path / "read", "is read")])
    with pytest.raises(Problem, match=f"--plot must be a file of its own, but {one} is what --out goes to"):
        check_apart({"out": one, "plot": one}, [])
    with pytest.raises(Problem, match=f"--out must be a file of its own, but {one} is read"):
        check_apart({"out": one}, [(one, "is read")])


def test_only_files_are_written_over(tmp_path: Path) -> None:
    check_place(tmp_path / "new")
    for place in (tmp_path, Path("/dev/null")):
        with pytest.raises(Problem, match=f"cannot write {place}: it is no regular file"):
            check_place(place)
