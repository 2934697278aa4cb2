"""The comparison with a face blurrer: its parts that need no face blurrer."""

import shutil
import sys
from pathlib import Path

import pytest

from client.video.rows import read_rows
from simulations.benchmarks.side_by_side import blinks, damage, frames_of, main, run_process, side_by_side
from spact_models.errors import UserError


@pytest.mark.parametrize(
    ("faces", "count"),
    [
        ([], 0),
        ([0, 0, 0], 0),
        ([1, 1, 1], 0),
        ([0, 0, 1, 0, 0], 0),  # before the first and after the last nobody knows
        ([1, 0, 2, 0, 0, 1], 3),
        ([1, 0, 0, 0, 0, 0, 1], 5),
        ([1, 0, 0, 0, 0, 0, 0, 1], 0),  # six in a row: gone, not missed
    ],
)
def test_a_detector_that_blinked_is_told_from_a_person_who_left(faces, count):
    assert blinks(faces) == count


def test_damaged_copies_are_damaged_and_the_video_is_not(squares, tmp_path):
    video = read_rows(squares)[0].path
    whole, content = frames_of(video), video.read_bytes()
    paths = damage(video, tmp_path / "damaged")
    assert video.read_bytes() == content
    assert whole > 0
    assert frames_of(paths["no video"]) == 0
    assert frames_of(tmp_path / "nowhere.mp4") == 0
    assert paths["cut off"].stat().st_size < len(content)
    assert paths["spoiled"].read_bytes() != content


def test_a_process_is_timed_with_its_own_cpu_seconds():
    ran = run_process([sys.executable, "-c", "sum(range(10**6)); print('done'); raise SystemExit(3)"])
    assert (ran.status, ran.said) == (3, "done")
    assert ran.cpu_seconds > 0


def test_mistakes_are_told(squares, tmp_path, capsys):
    video = read_rows(squares)[0].path
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(video, other / video.name)
    with pytest.raises(UserError, match="two videos of one name"):
        side_by_side(Path(sys.executable), tmp_path, [video, other / video.name], tmp_path / "out")
    with pytest.raises(SystemExit) as ended:
        main(["--deface-python", sys.executable, "--data", str(squares), "--model", str(tmp_path), "--out", str(other)])
    assert ended.value.code == 2
    assert "cannot import deface" in capsys.readouterr().err
