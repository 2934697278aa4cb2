"""From a manifest's rows to what the judge holds in memory: clips, views, labels, person masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.video.boxes import person_mask, read_boxes
from client.video.cache import FrameCache
from client.video.decode import Frames
from client.video.rows import SHOWN_EXAMPLES, Row
from client.video.sampling import reflect, test_clips
from spact_models.game_settings import ClipConfig
from spact_models.judge_set import JudgeSet, room
from spact_models.networks import anonymizer_config
from spact_models.settings import Settings

LEAST_LEAD_IN = 1  # frames in front of every judged clip: baselines need the frame before
VIEWS = 8  # single views of each video, from its start to its end, for the retrieval attacker
ABSENT = "0"  # an attribute's value that says no: VISPR's, and PA-HMDB51's "absent or unidentifiable"
BOTH = "+"  # 1+2: both values at once


@dataclass(frozen=True)
class Read:
    """What is to be read of each row beside its clips."""

    clips: int
    lead_in: int = LEAST_LEAD_IN  # frames in front of every clip and view; see lead_in_of
    halves: bool = False  # a clip of each half, for video-level retrieval
    masks: bool = False  # where the clips show somebody; every row must have boxes
    blackened: bool = False  # people painted over before anything else sees the frames; every row must have boxes


def lead_in_of(settings: Settings) -> int:
    """Frames in front of every judged clip: as many as the settings' f_A consumes, and those of the baselines."""
    return max(LEAST_LEAD_IN, anonymizer_config(settings).history)


def build_set(
    rows: Sequence[Row],
    cache: FrameCache,
    clip: ClipConfig,
    read: Read,
    labels: Mapping[str, Tensor],
    attributes_VA: Tensor | None = None,
) -> JudgeSet:
    """Read each row's uniform clips and ``VIEWS`` views into memory, as 8-bit frames at working size.

    A still image is a video of one frame: its clip is that frame alone, without lead-in.
    """
    if rows and all(row.is_image for row in rows):
        return _of_images(rows, cache, labels, attributes_VA)
    size, frames_each = cache.size_px, read.lead_in + clip.frames
    clips_MTHWC = room((len(rows) * read.clips, frames_each, size, size, 3))
    views_VKTHWC = room((len(rows), VIEWS, read.lead_in + 1, size, size, 3))
    halves_V2THWC = room((len(rows), 2, frames_each, size, size, 3)) if read.halves else None
    masks = torch.zeros(clips_MTHWC.shape[:-1], dtype=torch.bool) if read.masks else None
    for place, row in enumerate(rows):
        frames = _frames(row, cache, read.blackened)
        index = test_clips(len(frames), clip.frames, clip.stride_frames, read.lead_in, read.clips)
        mine = slice(place * read.clips, (place + 1) * read.clips)
        clips_MTHWC[mine] = torch.from_numpy(frames[index])
        views_VKTHWC[place] = torch.from_numpy(frames[_view_frames(len(frames), clip.stride_frames, read.lead_in)])
        if halves_V2THWC is not None:
            halves_V2THWC[place] = torch.from_numpy(frames[_half_frames(len(frames), clip, read.lead_in)])
        if masks is not None and row.boxes is not None:
            masks[mine] = torch.from_numpy(person_mask(read_boxes(row.boxes), index, size))
    return JudgeSet(
        clips_MTHWC=clips_MTHWC,
        video_M=torch.arange(len(rows)).repeat_interleave(read.clips),
        views_VKTHWC=views_VKTHWC,
        labels=labels,
        group_V=_sources(rows),
        lead_in_frames=read.lead_in,
        halves_V2THWC=halves_V2THWC,
        person_MTHW=masks,
        attributes_VA=attributes_VA,
    )


def labels_of(rows: Sequence[Row], task: str, names: Sequence[str]) -> Tensor:
    """(V,) class numbers of ``action`` or of an attribute column; -1 where unknown."""
    number = {name: place for place, name in enumerate(names)}
    return torch.tensor([number.get(value_of(row, task) or "", -1) for row in rows])


def value_of(row: Row, task: str) -> str | None:
    """A row's action, source, site or private attribute by its column's name."""
    if task in ("action", "source", "site"):
        value: str | None = getattr(row, task)
        return value
    return row.attributes.get(task)


def single_clips(train: Sequence[Row], test: Sequence[Row], column: str) -> str:
    """In words, a column's values with one clip in all: they cannot be both learned and asked for. "" where none."""
    clips = Counter(value_of(row, column) for row in (*train, *test))
    names = sorted(name for name, count in clips.items() if name and count == 1)
    if not names:
        return ""
    shown = f"{column} = {', '.join(map(repr, names[:SHOWN_EXAMPLES]))}"
    if len(names) == 1:
        return f"{shown} has one clip, needs one in training and one in test: add one or take it out"
    more = f" and {len(names) - SHOWN_EXAMPLES} more" if len(names) > SHOWN_EXAMPLES else ""
    return f"{shown}{more} have one clip each, need one in training and one in test: add one to each or take them out"


def attackable(train: Sequence[Row], test: Sequence[Row], task: str) -> list[str]:
    """The class names of a column that can be learned on train and asked for on test; empty: it cannot."""
    seen = {value_of(row, task) for row in train} - {None, ""}
    asked = {value_of(row, task) for row in test} - {None, ""}
    return sorted(str(name) for name in seen) if len(seen) >= 2 and asked and asked <= seen else []


def attribute_labels(rows: Sequence[Row], columns: Sequence[str]) -> list[str]:
    """The yes-or-no labels that columns hold: ``face`` of a column of 0 and 1, ``gender=2`` for each value of others.

    0 says no to all of a column's labels; ``1+2`` says yes to both.
    """
    labels = []
    for column in columns:
        values = {part for row in rows for part in row.attributes.get(column, "").split(BOTH)} - {"", ABSENT}
        labels += [column] if values == {"1"} else [f"{column}={value}" for value in sorted(values)]
    return labels


def attributes_of(rows: Sequence[Row], labels: Sequence[str]) -> Tensor:
    """(V, A) int8: 1, 0, or -1 where the column says nothing."""

    def answer(row: Row, label: str) -> int:
        column, _, value = label.partition("=")
        told = row.attributes.get(column)
        return -1 if not told else int((value or "1") in told.split(BOTH))

    answers = [[answer(row, label) for label in labels] for row in rows]
    return torch.tensor(answers, dtype=torch.int8).reshape(len(rows), len(labels))


def _frames(row: Row, cache: FrameCache, blackened: bool) -> Frames:
    frames = cache.frames(row.path)
    if not blackened or row.boxes is None:
        return frames
    hidden_THW = person_mask(read_boxes(row.boxes), np.arange(len(frames)), cache.size_px)
    return np.where(hidden_THW[..., None], np.uint8(0), frames)


def _view_frames(frames: int, stride: int, lead_in: int) -> NDArray[np.int64]:
    """(VIEWS, lead-in + 1): even moments from start to end, each behind frames a stride apart.

    At the start, where there are none before, the next frame stands for the one before, and further ones are
    reflected.
    """
    moments = np.linspace(0, frames - 1, VIEWS).round().astype(np.int64)
    back = stride * np.arange(lead_in, 0, -1)
    before = reflect(moments[:, None] - back, frames)
    before[:, -1] = np.where(moments >= stride, moments - stride, np.minimum(moments + 1, frames - 1))
    return np.concatenate([before, moments[:, None]], axis=1)


def _half_frames(frames: int, clip: ClipConfig, lead_in: int) -> NDArray[np.int64]:
    """(2, lead-in + T): the middle clip of each half; no frame is in both unless the video has only one."""
    middle = frames // 2
    parts: list[tuple[int, int]] = [(0, max(1, middle)), (middle, frames - middle)]
    place: Callable[[int], NDArray[np.int64]] = lambda count: test_clips(  # noqa: E731
        count, clip.frames, clip.stride_frames, lead_in, 1
    )[0]
    return np.stack([start + place(count) for start, count in parts])


def _of_images(
    rows: Sequence[Row], cache: FrameCache, labels: Mapping[str, Tensor], attributes_VA: Tensor | None
) -> JudgeSet:
    frames = torch.from_numpy(np.stack([cache.frames(row.path) for row in rows]))
    return JudgeSet(
        clips_MTHWC=frames,
        video_M=torch.arange(len(rows)),
        views_VKTHWC=frames[:, None],
        labels=labels,
        group_V=_sources(rows),
        lead_in_frames=0,
        attributes_VA=attributes_VA,
    )


def _sources(rows: Sequence[Row]) -> Tensor:
    names = {name: number for number, name in enumerate(sorted({row.source for row in rows if row.source}))}
    return torch.tensor([names.get(row.source or "", -1) for row in rows])
