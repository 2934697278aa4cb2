"""Where people stand in a video: a small CSV file beside it, named in the manifest's column ``boxes``.

::

    frame,left,top,right,bottom
    0,0.31,0.12,0.62,0.97

Frames count from 0. Edges are shares of the displayed picture's width and height, 0 = left or top, 1 = right or
bottom, so that a box means the same at every size. Any number of boxes a frame; a frame without a line has nobody in
it. Only the judge reads boxes (people blackened, people alone, places alone): training needs none.
"""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spact_models.errors import UserError

HEADER = ("frame", "left", "top", "right", "bottom")
DIGITS = 4  # a tenth of a pixel at 1000 px


@dataclass(frozen=True)
class Box:
    """One person in one frame; edges in 0…1. Raises ValueError, saying the rule, for edges that bound no area."""

    left: float
    top: float
    right: float
    bottom: float

    def __post_init__(self) -> None:
        for name, value in zip(HEADER[1:], astuple(self), strict=True):
            if not 0.0 <= value <= 1.0:  # nan fails too
                raise ValueError(f"{name} = {value:g}, must be from 0 to 1 (a share of the picture, not pixels)")
        for low, high in (("left", "right"), ("top", "bottom")):
            if getattr(self, low) >= getattr(self, high):
                raise ValueError(f"{low} = {getattr(self, low):g}, must be below {high} = {getattr(self, high):g}")


def read_boxes(path: Path) -> dict[int, list[Box]]:
    """The boxes of a video by frame number; frames without any are absent.

    Raises UserError, naming file, line, value and rule: not there, not UTF-8, another header, a line of the wrong
    length, a frame that is no whole number from 0, an edge outside 0…1, edges that bound no area.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")  # spreadsheets put a byte-order mark first
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); correct the manifest's column boxes, or leave it empty"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text; save the table as CSV, UTF-8") from error
    records = [
        (line, [cell.strip() for cell in record])
        for line, record in enumerate(csv.reader(io.StringIO(text)), start=1)
        if record
    ]
    if not records or tuple(records[0][1]) != HEADER:
        found = ",".join(records[0][1]) if records else ""
        raise UserError(f"{path}: line 1: columns = {found!r}, must be {','.join(HEADER)!r}")
    boxes: dict[int, list[Box]] = {}
    for line, cells in records[1:]:
        frame, box = _parsed(f"{path}: line {line}", cells)
        boxes.setdefault(frame, []).append(box)
    return boxes


def write_boxes(path: Path, boxes: Mapping[int, Sequence[Box]]) -> None:
    """Write what read_boxes reads back, to four digits. Raises UserError for a place that cannot be written."""
    lines = [",".join(HEADER)]
    for frame in sorted(boxes):
        lines += [f"{frame}," + ",".join(f"{edge:.{DIGITS}f}" for edge in astuple(box)) for box in boxes[frame]]
    try:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another place") from error


def person_mask(boxes: Mapping[int, Iterable[Box]], frame_numbers: ArrayLike, size_px: int) -> NDArray[np.bool_]:
    """True where a person may be: bool, the shape of ``frame_numbers`` × ``size_px`` × ``size_px``.

    Every pixel that a box touches belongs to it: what is to be hidden must not show at an edge.
    """
    numbers = np.asarray(frame_numbers, dtype=np.int64)
    mask = np.zeros((*numbers.shape, size_px, size_px), dtype=bool)
    for place in np.ndindex(numbers.shape):
        for box in boxes.get(int(numbers[place]), ()):
            rows = slice(math.floor(box.top * size_px), math.ceil(box.bottom * size_px))
            columns = slice(math.floor(box.left * size_px), math.ceil(box.right * size_px))
            mask[(*place, rows, columns)] = True
    return mask


def _parsed(where: str, cells: Sequence[str]) -> tuple[int, Box]:
    if len(cells) != len(HEADER):
        raise UserError(f"{where}: {len(cells)} values, must be {len(HEADER)}: {','.join(HEADER)}")
    frame, *edges = cells
    if not (frame.isascii() and frame.isdigit()):
        raise UserError(f"{where}: frame = {frame!r}, must be a whole number from 0")
    numbers = []
    for name, edge in zip(HEADER[1:], edges, strict=True):
        try:
            numbers.append(float(edge))
        except ValueError:
            raise UserError(f"{where}: {name} = {edge!r}, must be a number from 0 to 1") from None
    try:
        return int(frame), Box(*numbers)
    except ValueError as error:
        raise UserError(f"{where}: {error}; correct the line") from error
