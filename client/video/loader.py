"""From a site's rows to batches: which videos, which frames, and no pixel touched but by copying.

All randomness comes from the seed given to :meth:`ClipLoader.training`; the same rows, settings and seed give the
same batches. Clips and views are drawn independently of each other, each in shuffled epochs in which every video
comes once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from client.video import sampling
from client.video.cache import FrameCache
from client.video.decode import Frames
from client.video.rows import Row
from spact_models.errors import UserError
from spact_models.views import FrameBatch

if TYPE_CHECKING:
    from spact_models.game_settings import BatchConfig, ClipConfig

UNLABELLED = -1


class ClipLoader:
    """Batches of one site's training rows, and the clips of any rows for testing.

    ``rows`` are the rows to train on and nothing else: the caller has chosen the split and has taken out the videos
    that :meth:`FrameCache.prepare` found unreadable. A video that turns unreadable later raises
    :class:`~client.video.decode.UnreadableVideo`.

    ``view_rows`` are the videos or images of the privacy views; left out, the clips' own. An image is a video of one
    frame: both views hold its pixels, and augmentation makes two crops of them. In a video the two views are two
    different times.

    A view holds ``view_frames`` frames, one stride apart.

    Each clip carries ``lead_in_frames`` frames in front, one stride apart, for an anonymizer that sees the frame
    before.

    Raises:
        UserError: no rows, fewer than two different videos for views, or an action that is not in ``classes``.
        ValueError: the cache's size is not the clip's.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        classes: Sequence[str],
        cache: FrameCache,
        clip: ClipConfig,
        batch: BatchConfig,
        lead_in_frames: int,
        view_rows: Sequence[Row] | None = None,
        view_frames: int = 1,
    ) -> None:
        if cache.size_px != clip.size_px:
            raise ValueError(f"the cache holds {cache.size_px} px, clip.size_px = {clip.size_px}: must be the same")
        self.rows = list(rows)
        # A file may stand in several rows; two pairs of one video in a batch would be false negatives.
        self.view_rows = list({row.path: row for row in (rows if view_rows is None else view_rows)}.values())
        self.classes = list(classes)
        self.cache = cache
        self.clip = clip
        self.batch = batch
        self.lead_in_frames = lead_in_frames
        self.view_frames = view_frames
        self._check()

    def label(self, row: Row) -> int:
        """The row's class number, -1 when it has no action.

        Raises:
            UserError: the action is not one of the classes.
        """
        if row.action is None:
            return UNLABELLED
        if row.action not in self.classes:
            self._check_actions([row])
        return self.classes.index(row.action)

    def training(self, seed: int) -> Iterator[FrameBatch]:
        """Batches without end, as :class:`FrameBatch` describes them.

        A batch holds ``batch.clips`` clips and ``batch.views`` pairs, or as many as there are videos when these are
        fewer. The videos of a batch's pairs all differ.
        """
        clip_order, view_order, times = (np.random.default_rng(part) for part in np.random.SeedSequence(seed).spawn(3))
        clip_turns = _turns(len(self.rows), min(self.batch.clips, len(self.rows)), clip_order)
        view_turns = _turns(len(self.view_rows), min(self.batch.views, len(self.view_rows)), view_order)
        for clips, views in zip(clip_turns, view_turns, strict=True):
            yield self.batch_of([self.rows[i] for i in clips], [self.view_rows[i] for i in views], times)

    def test_clips(self, rows: Sequence[Row], clips_per_video: int = 5) -> Iterator[tuple[Row, Frames]]:
        """Evenly spaced clips of each row, in order: ``uint8 (clips, lead_in + T, S, S, 3)``."""
        for row in rows:
            frames_THWC = self.cache.frames(row.path)
            chosen = sampling.test_clips(
                len(frames_THWC), self.clip.frames, self.clip.stride_frames, self.lead_in_frames, clips_per_video
            )
            yield row, np.asarray(frames_THWC[chosen])

    def batch_of(self, clip_rows: Sequence[Row], view_rows: Sequence[Row], times: np.random.Generator) -> FrameBatch:
        """The batch of these rows, whose frames ``times`` draws; either list may be empty."""
        size = self.clip.size_px
        clips = np.empty((len(clip_rows), self.lead_in_frames + self.clip.frames, size, size, 3), np.uint8)
        views = np.empty((2, len(view_rows), self.lead_in_frames + self.view_frames, size, size, 3), np.uint8)
        for place, row in zip(clips, clip_rows, strict=True):
            frames = self.cache.frames(row.path)
            chosen = sampling.train_clip(
                len(frames), self.clip.frames, self.clip.stride_frames, self.lead_in_frames, times
            )
            _copy(frames, chosen, place)
        for n, row in enumerate(view_rows):
            frames = self.cache.frames(row.path)
            pair = sampling.view_pair(
                len(frames), self.clip.stride_frames, self.lead_in_frames, times, self.view_frames
            )
            for place, chosen in zip(views[:, n], pair, strict=True):
                _copy(frames, chosen, place)
        return FrameBatch(
            clips_BTHWC=torch.from_numpy(clips),
            labels_B=torch.tensor([self.label(row) for row in clip_rows], dtype=torch.int64),
            first_NTHWC=torch.from_numpy(views[0]),
            second_NTHWC=torch.from_numpy(views[1]),
        )

    def _check(self) -> None:
        if not self.rows:
            raise UserError("training rows = 0, must be at least 1 readable video; look at the manifest's split column")
        if len(self.view_rows) < 2:
            raise UserError(
                f"videos for views = {len(self.view_rows)}, must be at least 2 different ones "
                "(a pair of views needs another video to differ from); add videos or images to the manifest"
            )
        self._check_actions(self.rows)

    def _check_actions(self, rows: Sequence[Row]) -> None:
        here = sorted({row.action for row in rows if row.action is not None})
        unknown = [action for action in here if action not in self.classes]
        if unknown:
            raise UserError(
                f"action = {', '.join(map(repr, unknown))}, must be one of the agreed classes; rename it in the "
                f"manifest or agree on another list. The classes: {', '.join(self.classes) or 'none'}. "
                f"The actions here: {', '.join(here)}"
            )


def _copy(frames_THWC: Frames, chosen: NDArray[np.int64], place_THWC: Frames) -> None:
    # mode="clip" only because numpy then writes straight into place; sampling never leaves the range.
    np.take(frames_THWC, chosen, axis=0, out=place_THWC, mode="clip")


def _turns(count: int, size: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Endless groups of ``size`` different numbers below ``count``, each number once an epoch.

    A group may span two epochs; the new epoch's order then puts what the group already holds last.
    """
    waiting = np.empty(0, np.int64)
    while True:
        if len(waiting) < size:
            fresh = rng.permutation(count)
            held = np.isin(fresh, waiting)
            waiting = np.concatenate([waiting, fresh[~held], fresh[held]])
        yield waiting[:size]
        waiting = waiting[size:]
