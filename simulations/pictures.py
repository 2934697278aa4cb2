"""Before and after: a sheet of stills and a short film, drawn from held-out videos."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from client.video.decode import stream_video
from client.video.encode import write_video
from client.video.rows import Row
from spact_models.anonymizer import Anonymizer
from spact_models.views import to_float_BCTHW

TILE_PX = 120  # height of one still
GAP_PX = 6
INK, PAPER = (28, 28, 30), (252, 252, 250)


def anonymized_frames(anonymizer: Anonymizer, frames_THWC: np.ndarray) -> np.ndarray:
    """A whole video through f_A at its working size and back: uint8 (T,H,W,3), neighbours ``stride_frames`` apart.

    The frames that have no neighbour yet (a motion anonymizer's first ones) are black, never raw.
    """
    stride = anonymizer.config.stride_frames if anonymizer.history else 1
    out = np.zeros_like(frames_THWC)
    with torch.inference_mode():
        for offset in range(min(stride, len(frames_THWC))):
            clip_BCTHW = to_float_BCTHW(torch.from_numpy(frames_THWC[offset::stride].copy())[None])
            seen_BCTHW = anonymizer.at_any_size(clip_BCTHW).clamp(0, 1)
            out[offset::stride] = (seen_BCTHW[0].permute(1, 2, 3, 0) * 255).round().to(torch.uint8).numpy()
    return out


def choose_rows(rows: Sequence[Row], count: int) -> list[Row]:
    """Held-out rows that differ: every action once before any twice, and people (or sources) taking turns."""
    test = sorted((row for row in rows if row.split == "test"), key=lambda row: str(row.path))
    chosen: list[Row] = []
    while test and len(chosen) < count:
        actions = [row.action for row in chosen]
        people = [_person(row) for row in chosen]
        places = [(actions.count(row.action), people.count(_person(row))) for row in test]
        best = test[places.index(min(places))]
        chosen.append(best)
        test.remove(best)
    return chosen


def before_after_sheet(
    anonymizer: Anonymizer, rows: Sequence[Row], path: Path, stills: int = 4, columns: int = 2
) -> None:
    """A PNG: for each row its stills as they are, and below them what f_A makes of them."""
    blocks = [_block(anonymizer, row, stills) for row in rows]
    width = max(block.width for block in blocks)
    height = max(block.height for block in blocks)
    lines = -(-len(blocks) // columns)
    sheet = Image.new("RGB", (columns * (width + 3 * GAP_PX) + GAP_PX, lines * (height + 3 * GAP_PX) + GAP_PX), PAPER)
    for place, block in enumerate(blocks):
        left = 2 * GAP_PX + (place % columns) * (width + 3 * GAP_PX)
        sheet.paste(block, (left, 2 * GAP_PX + (place // columns) * (height + 3 * GAP_PX)))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)


def before_after_film(anonymizer: Anonymizer, rows: Sequence[Row], path: Path, fps: float = 12.5) -> int:
    """An MP4: raw on the left, anonymised on the right, one row after the other. Returns the number of frames."""
    return write_video(path, _film(anonymizer, rows), fps)


def inversion_sheet(
    raw_NHWC: np.ndarray,
    restored: Mapping[str, tuple[np.ndarray, np.ndarray]],
    path: Path,
    captions: Mapping[str, str] | None = None,
    tile_px: int = TILE_PX,
) -> None:
    """A PNG: the raw frames above, and for each representation what was seen of them and what an attacker restored.

    ``restored`` maps a representation's name to (seen, restored), each uint8 (N,H,W,3) like ``raw_NHWC``, one column a
    frame; ``captions`` adds a line of figures under a restored row's name.

    Raises ValueError: rows of different shapes.
    """
    lines = [("raw", "", raw_NHWC)]
    for name, both in restored.items():
        for frames_NHWC in both:
            if frames_NHWC.shape != raw_NHWC.shape or frames_NHWC.dtype != np.uint8:
                raise ValueError(f"{name}: {frames_NHWC.dtype} {frames_NHWC.shape}, must be uint8 {raw_NHWC.shape}")
        lines += [(name, "", both[0]), ("restored", (captions or {}).get(name, ""), both[1])]
    font, small = ImageFont.load_default(14), ImageFont.load_default(12)
    words = max(font.getlength(name) for name, _, _ in lines)
    margin = int(max(words, *(small.getlength(line) for _, line, _ in lines))) + 3 * GAP_PX
    tiles = [[_fit(frame, tile_px) for frame in frames_NHWC] for _, _, frames_NHWC in lines]
    wide, high = tiles[0][0].width + GAP_PX, tiles[0][0].height + GAP_PX
    between = 2 * GAP_PX  # before each representation
    tops = [GAP_PX + place * high + (place + 1) // 2 * between for place in range(len(lines))]
    sheet = Image.new("RGB", (margin + len(raw_NHWC) * wide, tops[-1] + high), PAPER)
    pencil = ImageDraw.Draw(sheet)
    for top, (name, figures, _), row in zip(tops, lines, tiles, strict=True):
        pencil.text((GAP_PX, top + high / 2 - 18), name, fill=INK, font=font)
        pencil.text((GAP_PX, top + high / 2), figures, fill=INK, font=small)
        for place, tile in enumerate(row):
            sheet.paste(tile, (margin + place * wide, top))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)


def _film(anonymizer: Anonymizer, rows: Sequence[Row]) -> Iterator[np.ndarray]:
    for row in rows:
        raw_THWC = np.stack(list(stream_video(row.path)))
        for before, after in zip(raw_THWC, anonymized_frames(anonymizer, raw_THWC), strict=True):
            pair = [np.asarray(_fit(frame, 2 * TILE_PX, square=True)) for frame in (before, after)]
            yield np.concatenate([pair[0], np.full((pair[0].shape[0], 8, 3), 255, np.uint8), pair[1]], axis=1)


def _block(anonymizer: Anonymizer, row: Row, stills: int) -> Image.Image:
    raw_THWC = np.stack(list(stream_video(row.path)))
    seen_THWC = anonymized_frames(anonymizer, raw_THWC)
    first = min(len(raw_THWC) - 1, anonymizer.history * anonymizer.config.stride_frames)
    index = np.linspace(first, len(raw_THWC) - 1, stills).round().astype(int)
    lines = [[_fit(frames[i], TILE_PX) for i in index] for frames in (raw_THWC, seen_THWC)]
    tile = lines[0][0]
    title = 18
    block = Image.new("RGB", (stills * (tile.width + GAP_PX) - GAP_PX, title + 2 * tile.height + GAP_PX), PAPER)
    words = [row.action or "unlabelled", _person(row)]
    ImageDraw.Draw(block).text((0, 1), "  ·  ".join(filter(None, words)), fill=INK, font=ImageFont.load_default(13))
    for line, tiles in enumerate(lines):
        for place, still in enumerate(tiles):
            block.paste(still, (place * (tile.width + GAP_PX), title + line * (tile.height + GAP_PX)))
    return block


def _person(row: Row) -> str:
    return row.attributes.get("identity") or row.source or ""


def _fit(frame_HWC: np.ndarray, height: int, square: bool = False) -> Image.Image:
    image = Image.fromarray(frame_HWC)
    width = height if square else max(1, round(image.width * height / image.height))
    return image.resize((width, height), Image.Resampling.LANCZOS)
