"""Short strips of held-out videos that play in the page: raw beside anonymized, or anonymized alone.

Raw pictures leave the run folder only where they show nobody: in videos that the run drew itself or that carry the mark
of ``fedspact synth``, or when the one who makes the page says so (``--show-raw``). Captions name a person only where
raw pictures may be shown too.
"""

from __future__ import annotations

import io
import itertools
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from client.video.decode import UnreadableVideo, probe, stream_video
from client.video.encode import Frames, write_video
from client.video.rows import Row, read_rows
from server.runs import RunFolder
from simulations.pictures import anonymized_frames, choose_rows
from simulations.report.collect import RunStory, present_anonymizer
from simulations.synthetic_mark import is_marked
from spact_models.anonymizer import Anonymizer
from spact_models.errors import UserError
from spact_models.networks import load_anonymizer

STRIPS = 6
TILE_PX = 192  # height of a picture in a strip
LONGEST_PX = 480  # of what is read: larger frames are made smaller before anything else, to bound memory
SECONDS = 4.0  # of a strip at most
MAX_BYTES = 200_000
QUALITIES = (23, 28, 33, 38, 44)  # x264's crf, tried until a strip is small enough
GAP = (128, 128, 128)
MANIFESTS = ("data.csv", "synthetic/manifest.csv")  # where a run keeps its rows
SYNTHETIC = "synthetic"  # the folder of the videos that a run drew for itself


@dataclass(frozen=True)
class Strip:
    """One strip: MP4 and JPEG as bytes, and its words."""

    video: bytes
    poster: bytes
    width: int
    height: int
    seconds: float
    action: str
    person: str  # empty where it may not be told
    raw: bool  # raw pictures on the left


@dataclass(frozen=True)
class Strips:
    """The strips of a run and a sentence about what they show, or why there are none."""

    strips: Sequence[Strip]
    note: str
    all_synthetic: bool = False  # every one of them was drawn, not filmed


def make_strips(run: RunStory, show_raw: bool = False, count: int = STRIPS) -> Strips:
    """Strips of ``count`` different held-out videos, as many of them as can be read."""
    rows = run_rows(run.path)
    if rows is None:
        return Strips((), f"No strips: the run keeps no list of its videos ({MANIFESTS[0]}).")
    chosen = choose_rows([row for row in rows if not row.is_image], count)
    if not chosen:
        return Strips((), "No strips: the run has no held-out videos.")
    try:
        anonymizer = run_anonymizer(run)
    except UserError as error:  # of another version, or damaged: the figures can be shown all the same
        return Strips((), f"No strips: the anonymizer cannot be opened. {error}")
    strips, lost = [], 0
    drawn = {row.path for row in chosen if is_synthetic(run.path, row.path)}
    for row in chosen:
        try:
            strips.append(_strip(anonymizer, row, show_raw or row.path in drawn))
        except (UnreadableVideo, OSError):
            lost += 1
    return Strips(strips, _note(strips, lost), all(row.path in drawn for row in chosen))


def run_rows(run: Path) -> list[Row] | None:
    """The run's own videos with their splits; None: it keeps no list."""
    found = next((run / name for name in MANIFESTS if (run / name).is_file()), None)
    return None if found is None else read_rows(found, must_exist=False)


def is_synthetic(run: Path, video: Path) -> bool:
    """Whether a video, links followed, was drawn by the run for itself or by ``fedspact synth``: it shows nobody."""
    return video.resolve().is_relative_to((run / SYNTHETIC).resolve()) or is_marked(video)


def run_anonymizer(run: RunStory) -> Anonymizer:
    """The exported anonymizer, or that of the last checkpoint while the run goes on."""
    model = present_anonymizer(RunFolder.open(run.path))
    if model is None:
        raise UserError(f"{run.path}: has no checkpoint yet.")
    return load_anonymizer(model)[0]


def _strip(anonymizer: Anonymizer, row: Row, with_raw: bool) -> Strip:
    fps = min(60.0, max(1.0, probe(row.path).fps))
    limit = max(2, round(SECONDS * fps))
    raw_THWC = np.stack([_bounded(frame) for frame in itertools.islice(stream_video(row.path), limit)])
    first = min(len(raw_THWC) - 1, anonymizer.history * anonymizer.config.stride_frames)  # before it all is black
    seen_THWC = anonymized_frames(anonymizer, raw_THWC)[first:]
    pictures = [_tile(frame) for frame in seen_THWC]
    if with_raw:
        pictures = [_beside(_tile(frame), seen) for frame, seen in zip(raw_THWC[first:], pictures, strict=True)]
    height, width = pictures[0].shape[:2]
    person = row.attributes.get("identity", "") if with_raw else ""
    seconds = len(pictures) / fps
    return Strip(
        _encoded(pictures, fps), _poster(pictures), width, height, seconds, row.action or "unlabelled", person, with_raw
    )


def _bounded(frame_HWC: Frames) -> Frames:
    height, width = frame_HWC.shape[:2]
    scale = LONGEST_PX / max(height, width)
    if scale >= 1:
        return frame_HWC
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(frame_HWC).resize(size, Image.Resampling.BOX))


def _tile(frame_HWC: Frames) -> Frames:
    """At the strip's height and an even width."""
    height, width = frame_HWC.shape[:2]
    wide = max(2, 2 * round(width * TILE_PX / height / 2))
    return np.asarray(Image.fromarray(frame_HWC).resize((wide, TILE_PX), Image.Resampling.LANCZOS))


def _beside(left_HWC: Frames, right_HWC: Frames) -> Frames:
    gap = np.full((left_HWC.shape[0], 4, 3), GAP, np.uint8)
    return np.concatenate([left_HWC, gap, right_HWC], axis=1)


def _encoded(pictures: Sequence[Frames], fps: float) -> bytes:
    """H.264 in MP4, at the best quality that is small enough; half the length where none is."""
    with tempfile.TemporaryDirectory(prefix="fedspact-report-") as folder:
        path = Path(folder) / "strip.mp4"
        for crf in QUALITIES:
            write_video(path, iter(pictures), fps, crf)
            if path.stat().st_size <= MAX_BYTES or (len(pictures) == 1 and crf == QUALITIES[-1]):
                return path.read_bytes()
    return _encoded(pictures[: len(pictures) // 2], fps)


def _poster(pictures: Sequence[Frames]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pictures[len(pictures) // 2]).save(out, "JPEG", quality=72, optimize=True)
    return out.getvalue()


def _note(strips: Sequence[Strip], lost: int) -> str:
    if not strips:
        return f"No strips: none of the {lost} chosen held-out videos can be read any more."
    raw = sum(strip.raw for strip in strips)
    if raw == len(strips):
        told = "Held-out videos; on the left raw, on the right what the anonymizer makes of them."
    elif raw:
        told = "Held-out videos; raw pictures are shown only of those that are drawn, not filmed."
    else:
        told = (
            "Held-out videos as the anonymizer shows them. Raw footage is not part of this page: nothing marks these "
            "videos as drawn, and what they show is not known (--show-raw would include it)."
        )
    return told + (f" {lost} more could not be read." if lost else "")
