"""Which frames of a video make a clip or a view: whole numbers only, no pixels.

Frame numbers count from 0. A clip is ``lead_in_frames + clip_frames`` numbers, ``stride_frames`` apart; the lead-in
comes first and is what a ``motion`` anonymizer consumes to see the frame before. A video shorter than that is
extended by reflection: forwards, backwards, forwards (0 1 2 1 0 1 ...), so no frame is repeated twice in a row and
motion stays smooth.

SPAct section 4.2: clips of 16 frames at stride 2, a random start in training, 5 uniform clips in test.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Indices = NDArray[np.int64]


def reflect(indices: ArrayLike, n_frames: int) -> Indices:
    """Bring any frame numbers, negative ones too, into ``0 .. n_frames - 1`` by reflection at both ends.

    Raises:
        ValueError: ``n_frames`` is below 1.
    """
    _check(n_frames=n_frames)
    period = max(1, 2 * (n_frames - 1))
    folded = np.asarray(indices, dtype=np.int64) % period
    return np.where(folded < n_frames, folded, period - folded)


def train_clip(
    n_frames: int, clip_frames: int, stride_frames: int, lead_in_frames: int, rng: np.random.Generator
) -> Indices:
    """One clip with a uniformly random start, ``(lead_in + clip,)``; a short video starts at 0 and is reflected.

    Raises:
        ValueError: a length or stride is below 1, or the lead-in below 0.
    """
    offsets = _offsets(n_frames, clip_frames, stride_frames, lead_in_frames)
    start = rng.integers(_last_start(n_frames, offsets) + 1)
    return reflect(start + offsets, n_frames)


def test_clips(
    n_frames: int,
    clip_frames: int,
    stride_frames: int,
    lead_in_frames: int,
    clips: int = 5,  # noqa: PT028  # the name is the field's; pytest never looks in here
) -> Indices:
    """``clips`` clips with evenly spaced starts, ``(clips, lead_in + clip)``, from the first start to the last.

    One clip alone is the middle one. A short video gives the same reflected clip every time.

    Raises:
        ValueError: a length, stride or ``clips`` is below 1, or the lead-in below 0.
    """
    _check(clips=clips)
    offsets = _offsets(n_frames, clip_frames, stride_frames, lead_in_frames)
    last = _last_start(n_frames, offsets)
    # Rounded to the nearest frame in whole numbers, so that every machine reads the same frames.
    starts = (2 * np.arange(clips) * last + clips - 1) // (2 * (clips - 1)) if clips > 1 else np.array([last // 2])
    return reflect(starts[:, None] + offsets, n_frames)


def view_pair(
    n_frames: int, stride_frames: int, lead_in_frames: int, rng: np.random.Generator, view_frames: int = 1
) -> Indices:
    """Two views of one video at two different times, each behind its own lead-in: ``(2, lead_in + view_frames)``.

    Times that leave no room for the lead-in or the view are taken only where there are not two others; what lies
    outside is reflected. A video of one frame gives that frame twice.

    Raises:
        ValueError: a length or stride is below 1, or the lead-in below 0.
    """
    offsets = _offsets(n_frames, view_frames, stride_frames, lead_in_frames) - stride_frames * lead_in_frames
    earliest, times = -int(offsets[0]), n_frames + int(offsets[0]) - int(offsets[-1])
    if times < 2:
        earliest, times = 0, n_frames
    first = int(rng.integers(times))
    second = int(rng.integers(times - 1)) if times > 1 else first
    second += times > 1 and second >= first  # every ordered pair of different times is equally likely
    moments = np.array([first, second]) + earliest
    return reflect(moments[:, None] + offsets, n_frames)


def _offsets(n_frames: int, clip_frames: int, stride_frames: int, lead_in_frames: int) -> Indices:
    _check(n_frames=n_frames, clip_frames=clip_frames, stride_frames=stride_frames)
    if lead_in_frames < 0:
        raise ValueError(f"lead_in_frames = {lead_in_frames}, must be at least 0")
    return stride_frames * np.arange(lead_in_frames + clip_frames, dtype=np.int64)


def _last_start(n_frames: int, offsets: Indices) -> int:
    return max(0, n_frames - 1 - int(offsets[-1]))


def _check(**at_least_one: int) -> None:
    for name, value in at_least_one.items():
        if value < 1:
            raise ValueError(f"{name} = {value}, must be at least 1")
