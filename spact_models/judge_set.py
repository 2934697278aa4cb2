"""What the judge holds of a set of videos: 8-bit clips and views, raw or released, with their labels."""

from __future__ import annotations

import copy
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from spact_models.anonymizer import ClipTransform, represent
from spact_models.errors import UserError
from spact_models.seeds import seeded
from spact_models.views import to_float_BCTHW

MID_GREY = 128  # what a crop puts where it hides something: neither a person's colour nor a difference's black
LARGE_BYTES = 4 * 2**30  # of frames at once; more lie on a disk


@dataclass(frozen=True)
class JudgeSet:
    """Held videos as 8-bit clips: M clips of V videos, and K single views of each video from its start to its end.

    ``labels`` holds class numbers per video, -1 where unknown; the class lists are the caller's. ``group_V`` tells
    which videos share a source (-1: unknown). What the last three hold is asked for by some protocols only.
    """

    clips_MTHWC: Tensor  # uint8, lead_in_frames + T frames
    video_M: Tensor
    views_VKTHWC: Tensor  # uint8, lead_in_frames + 1 frames
    labels: Mapping[str, Tensor]
    group_V: Tensor
    lead_in_frames: int
    halves_V2THWC: Tensor | None = None  # uint8: a clip of each video's first half and one of its second
    person_MTHW: Tensor | None = None  # bool: where the clips show somebody
    attributes_VA: Tensor | None = None  # yes-or-no attributes: 1, 0, -1 unknown

    @property
    def videos(self) -> int:
        return len(self.views_VKTHWC)

    @property
    def size_px(self) -> int:
        return self.clips_MTHWC.shape[-2]

    def through(self, transform: ClipTransform, device: torch.device, batch: int = 16) -> JudgeSet:
        """What an attacker gets: every clip and view transformed, rounded to 8 bits, no lead-in left."""
        transform = copy.deepcopy(transform).to(device).eval()  # not the caller's: its device is its own business
        with seeded("release"):  # a transform may add noise
            return self._released(transform, device, batch)

    def _released(self, transform: ClipTransform, device: torch.device, batch: int) -> JudgeSet:
        def release(clips_MTHWC: Tensor) -> Tensor:
            shape = list(clips_MTHWC.shape)
            shape[1] -= self.lead_in_frames
            released_MTHWC = room(shape)
            for start in range(0, len(clips_MTHWC), batch):
                part = clips_MTHWC[start : start + batch].to(device)
                with torch.inference_mode():
                    clip_BCTHW = represent(transform, to_float_BCTHW(part), self.lead_in_frames)
                    levels = clip_BCTHW.clamp(0, 1).mul(255).round().to(torch.uint8)
                released_MTHWC[start : start + batch] = levels.permute(0, 2, 3, 4, 1).cpu()
            return released_MTHWC

        def of_each_video(clips_VKTHWC: Tensor) -> Tensor:
            released_NTHWC = release(clips_VKTHWC.flatten(0, 1))
            return released_NTHWC.reshape(*clips_VKTHWC.shape[:2], *released_NTHWC.shape[1:])

        return replace(
            self,
            clips_MTHWC=release(self.clips_MTHWC),
            views_VKTHWC=of_each_video(self.views_VKTHWC),
            halves_V2THWC=None if self.halves_V2THWC is None else of_each_video(self.halves_V2THWC),
            person_MTHW=self._shown(transform.history),
            lead_in_frames=0,
        )

    def _shown(self, history: int) -> Tensor | None:
        """Where released frames show somebody: a frame made of several shows where people stood in any of them."""
        if self.person_MTHW is None:
            return None
        frames = self.person_MTHW.shape[1]
        shown_MTHW = self.person_MTHW[:, self.lead_in_frames :]
        for back in range(1, history + 1):
            shown_MTHW = shown_MTHW | self.person_MTHW[:, self.lead_in_frames - back : frames - back]
        return shown_MTHW

    def cropped(self, person: bool) -> JudgeSet:
        """Only the person left in the clips (``person``), or only what is around: the rest is mid-grey.

        The masks are those of the raw footage: an attacker who knows where somebody stands. Views stay as they are.
        """
        if self.person_MTHW is None:
            raise ValueError("these clips carry no person masks")
        hidden_MTHW = ~self.person_MTHW if person else self.person_MTHW
        clips_MTHWC = self.clips_MTHWC.masked_fill(hidden_MTHW[..., None], MID_GREY)
        return replace(self, clips_MTHWC=clips_MTHWC)


def room(shape: Sequence[int]) -> Tensor:
    """An uninitialised uint8 tensor; above ``LARGE_BYTES`` in a file that nobody else sees and that goes with it.

    UCF101's training clips at paper size take 57 GB: they belong on a disk (``TMPDIR`` says which), not in memory.

    Raises:
        UserError: that disk has no room.
    """
    size = math.prod(shape)
    if size <= LARGE_BYTES:
        return torch.empty(list(shape), dtype=torch.uint8)
    try:
        with tempfile.NamedTemporaryFile(prefix="fedspact-") as file:
            os.posix_fallocate(file.fileno(), 0, size)  # a full disk is said now, not as a bus error later
            return torch.from_numpy(np.memmap(file.name, np.uint8, "r+", shape=tuple(shape)))
    except OSError as error:
        raise UserError(
            f"{size / 2**30:.1f} GiB of frames to judge: {tempfile.gettempdir()} has no room ({error.strerror}); "
            "set TMPDIR to a larger disk, or judge.train_clips lower"
        ) from error
