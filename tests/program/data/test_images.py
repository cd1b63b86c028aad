"""Images from files in their standard layouts, and from the hub."""

import gzip
import struct
import sys
from pathlib import Path

import pytest
import torch

from revtune.program.data import images
from revtune.program.errors import Problem


def write_idx(path: Path, *shape: int, packed: bool = True) -> bytes:
    """An idx file of bytes that count up."""
    count = torch.Size(shape).numel()
    content = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape) + bytes(i % 10 for i in range(count))
    path.parent.mkdir(exist_ok=True)
    if packed:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(content))
    else:
        path.write_bytes(content)
    return content


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("source", ["mnist", "fashion"])
def test_idx_files_are_read_packed_or_not(source: images.ImageSource, packed: bool, tmp_path: Path) -> None:
    folder = tmp_path / images.FOLDERS[source]
    for name, shape in zip(images.IDX_FILES, [(6, 4, 5), (6,), (3, 4, 5), (3,)], strict=True):
        write_idx(folder / name, *shape, packed=packed)
    found = images.load(source, tmp_path)
    assert found.train.shape == (6, 1, 4, 5) and found.test.shape == (3, 1, 4, 5)
    assert found.train[1, 0, 0].tolist() == [0, 1, 2, 3, 4] and found.test_labels.tolist() == [0, 1, 2]


def test_cifar_is_read_from_its_binary_layout(tmp_path: Path) -> None:
    folder = tmp_path / images.FOLDERS["cifar10"]
    folder.mkdir()
    record = [bytes([label]) + bytes([label]) * 1024 + bytes(1024) + bytes([7]) * 1024 for label in range(10)]
    for number in range(1, 6):
        (folder / f"data_batch_{number}.bin").write_bytes(record[number] + record[number + 1])
    (folder / "test_batch.bin").write_bytes(record[9])
    found = images.load("cifar10", tmp_path)
    assert found.train.shape == (10, 3, 32, 32) and found.train_labels.tolist() == [1, 2, 2, 3, 3, 4, 4, 5, 5, 6]
    assert found.train[0, :, 3, 4].tolist() == [1, 0, 7] and found.test_labels.tolist() == [9]


def test_damaged_files_are_told(tmp_path: Path) -> None:
    whole = write_idx(tmp_path / "a", 2, 3, packed=False)
    for content in (whole[:-1], whole + b"x", whole[:3], b"", b"\1" + whole[1:]):
        (tmp_path / "a").write_bytes(content)
        with pytest.raises(Problem, match="idx file"):
            images.idx(tmp_path / "a")
    (tmp_path / "b.gz").write_bytes(gzip.compress(whole)[:-9])
    with pytest.raises(Problem, match="no whole idx file"):
        images.idx(tmp_path / "b")
    with pytest.raises(Problem, match="cannot read"):
        images.idx(tmp_path / "missing")
    for content, told in ((bytes(images.RECORD - 1), "3072 bytes"), (b"", "0 bytes"), (b"\12" + bytes(3072), "10")):
        (tmp_path / "c").write_bytes(content)
        with pytest.raises(Problem, match=told):
            images.records(tmp_path / "c")


def test_without_a_folder_the_hub_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = {"img": [torch.full((2, 2, 3), 5, dtype=torch.uint8).numpy()] * 2, "label": [1, 0]}
    hub = type(sys)("datasets")
    monkeypatch.setattr(hub, "load_dataset", lambda *_, revision: {"train": part, "test": part}, raising=False)
    monkeypatch.setitem(sys.modules, "datasets", hub)
    found = images.load("cifar10", tmp_path)
    assert found.train.shape == (2, 3, 2, 2) and found.test_labels.tolist() == [1, 0]
