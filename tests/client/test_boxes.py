"""Box files: what is written comes back, every mistake is named, masks cover what a box touches."""

from pathlib import Path

import numpy as np
import pytest

from client.video.boxes import Box, person_mask, read_boxes, write_boxes
from spact_models.errors import UserError

HEAD = "frame,left,top,right,bottom\n"


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    boxes = {7: [Box(0.0, 0.0, 1.0, 1.0)], 0: [Box(0.25, 0.1, 0.5, 0.9001), Box(0.6, 0.2, 0.75, 0.8)], 3: []}
    write_boxes(tmp_path / "b.csv", boxes)
    assert read_boxes(tmp_path / "b.csv") == {0: boxes[0], 7: boxes[7]}
    assert (tmp_path / "b.csv").read_text().splitlines()[1] == "0,0.2500,0.1000,0.5000,0.9001"
    write_boxes(tmp_path / "none.csv", {})
    assert read_boxes(tmp_path / "none.csv") == {}


def test_spreadsheet_habits_are_read(tmp_path: Path) -> None:
    path = tmp_path / "b.csv"
    path.write_text("\ufeffframe, left,top,right,bottom\r\n\r\n2, 0,0.5 ,1,1e0\r\n", encoding="utf-8")
    assert read_boxes(path) == {2: [Box(0.0, 0.5, 1.0, 1.0)]}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["line 1", "columns = ''", "frame,left,top,right,bottom"]),
        ("frame,x,y,w,h\n0,0,0,1,1\n", ["line 1", "'frame,x,y,w,h'"]),
        (HEAD + "0,0,0,1\n", ["line 2", "4 values, must be 5"]),
        (HEAD + "0,0,0,1,1\n-1,0,0,1,1\n", ["line 3", "frame = '-1'", "whole number from 0"]),
        (HEAD + "1.5,0,0,1,1\n", ["line 2", "frame = '1.5'"]),
        (HEAD + "0,0,zero,1,1\n", ["line 2", "top = 'zero'", "number from 0 to 1"]),
        (HEAD + "0,0,0,96,96\n", ["line 2", "right = 96", "from 0 to 1", "not pixels"]),
        (HEAD + "0,0,0,nan,1\n", ["line 2", "right = nan"]),
        (HEAD + "\n0,0.5,0,0.5,1\n", ["line 3", "left = 0.5", "below right = 0.5"]),
        (HEAD + "0,0,0.9,1,0.1\n", ["line 2", "top = 0.9", "below bottom = 0.1"]),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, parts: list[str]) -> None:
    path = tmp_path / "b.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as raised:
        read_boxes(path)
    for part in [str(path), *parts]:
        assert part in str(raised.value)


def test_files_that_cannot_be_read_or_written_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.csv: cannot be read \(No such file.*column boxes"):
        read_boxes(tmp_path / "none.csv")
    (tmp_path / "binary.csv").write_bytes(b"frame\xff")
    with pytest.raises(UserError, match=r"binary\.csv: not UTF-8"):
        read_boxes(tmp_path / "binary.csv")
    with pytest.raises(UserError, match=r"nowhere.*cannot be written"):
        write_boxes(tmp_path / "nowhere" / "b.csv", {})


def test_a_mask_covers_every_pixel_that_a_box_touches() -> None:
    boxes = {0: [Box(0.26, 0.0, 0.5, 0.51)], 2: [Box(0.0, 0.0, 0.1, 0.1), Box(0.9, 0.9, 1.0, 1.0)]}
    mask = person_mask(boxes, [[0, 1], [2, 0]], 4)
    assert mask.shape == (2, 2, 4, 4)
    assert mask.dtype == bool
    slow = np.zeros_like(mask)
    for place, frame in {(0, 0): 0, (0, 1): 1, (1, 0): 2, (1, 1): 0}.items():
        for y in range(4):
            for x in range(4):
                for box in boxes.get(frame, []):
                    apart = x + 1 <= box.left * 4 or x >= box.right * 4 or y + 1 <= box.top * 4 or y >= box.bottom * 4
                    slow[(*place, y, x)] |= not apart
    assert np.array_equal(mask, slow)
    assert mask[0, 0].sum() == 3  # one column, three rows
    assert not mask[0, 1].any()
    assert mask[1, 0].sum() == 2
