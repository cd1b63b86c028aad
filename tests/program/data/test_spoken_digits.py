"""Recordings of digits: from a folder and a zip, and what is no recording."""

import os
import zipfile
from pathlib import Path

import pytest
import torch

from revtune.program.data.spoken_digits import recordings
from revtune.program.errors import Problem
from tests.tiny_signals import write_digit

pytest.importorskip("soundfile", reason="soundfile is not installed")
DATA = Path(os.environ.get("REVTUNE_DATA") or ".")


def test_a_folder_and_its_zip_hold_the_same(tmp_path: Path) -> None:
    paths = [write_digit(tmp_path, digit, "ann", take) for digit in (3, 0) for take in (5, 12)]
    unpacked = recordings(tmp_path)
    assert [(each.digit, each.speaker, each.take) for each in unpacked] == [
        (0, "ann", 12), (0, "ann", 5), (3, "ann", 12), (3, "ann", 5)
    ]  # fmt: skip
    assert unpacked[0].samples.dtype == torch.int16 and len(unpacked[0].samples) == 212
    with zipfile.ZipFile(tmp_path / "spoken-digits" / "recordings.zip", "w") as archive:
        for path in paths:
            archive.write(path, f"recordings/{path.name}")
            path.unlink()
    for one, other in zip(recordings(tmp_path), unpacked, strict=True):
        assert one[:3] == other[:3] and torch.equal(one.samples, other.samples)


def test_another_rate_and_several_channels_are_refused(tmp_path: Path) -> None:
    path = write_digit(tmp_path, 3, "ann", 5, rate=16_000)
    with pytest.raises(Problem, match="3_ann_5.wav must have 8,000 samples a second, it has 16,000; resample it"):
        recordings(tmp_path)
    write_digit(tmp_path, 3, "ann", 5, channels=2)
    with pytest.raises(Problem, match="3_ann_5.wav must have samples of one channel, it has 235 of 2"):
        recordings(tmp_path)
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(
        Problem, match="3_ann_5.wav must have the 984 bytes that it states, it has been cut off: 30 are there"
    ):
        recordings(tmp_path)


def test_what_is_wrong_in_a_zip_is_named_as_it_lies_there(tmp_path: Path) -> None:
    path = write_digit(tmp_path, 3, "ann", 5, rate=16_000)
    with zipfile.ZipFile(tmp_path / "spoken-digits" / "recordings.zip", "w") as archive:
        archive.write(path, "recordings/3_ann_5.wav")
    with pytest.raises(Problem, match="spoken-digits/recordings.zip/recordings/3_ann_5.wav must have 8,000 samples"):
        recordings(tmp_path)
    with zipfile.ZipFile(tmp_path / "spoken-digits" / "recordings.zip", "w") as archive:
        archive.writestr("recordings/3_ann_5.wav", b"no sound")
    with pytest.raises(Problem, match=r"3_ann_5.wav is no WAV file that can be read: [^<]*$"):
        recordings(tmp_path)


def test_missing_and_damaged_archives(tmp_path: Path) -> None:
    with pytest.raises(Problem, match="^spoken-digits was not found: spoken-digits is not in "):
        recordings(tmp_path)
    (tmp_path / "spoken-digits").mkdir()
    with pytest.raises(Problem, match="holds no recordings, in recordings.zip or in recordings/, named like"):
        recordings(tmp_path)
    (tmp_path / "spoken-digits" / "recordings.zip").write_bytes(b"PK no zip")
    with pytest.raises(Problem, match="recordings.zip is no whole zip file: "):
        recordings(tmp_path)


@pytest.mark.skipif(not (DATA / "spoken-digits").is_dir(), reason="REVTUNE_DATA has no spoken-digits")
def test_the_published_recordings_are_all_read() -> None:
    lengths = sorted(len(each.samples) for each in recordings(DATA))
    assert (len(lengths), lengths[0], lengths[len(lengths) // 2], lengths[-1]) == (2_700, 1_149, 3_357, 18_262)


def test_a_file_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    path = write_digit(tmp_path, 1, "ann", 5)
    size = len(content := path.read_bytes())
    path.write_bytes(content[: size // 2])
    with pytest.raises(
        Problem, match=rf"1_ann_5.wav must have the {size:,} bytes that it states, .* {size // 2:,} are"
    ):
        recordings(tmp_path)
