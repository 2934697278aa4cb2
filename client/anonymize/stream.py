"""The streaming core: frames in -> frames out, for any number of streams at once, in constant memory, failing closed.

A frame goes the way that the judge went: squashed whole to the model's square as the training frames were, through
f_A, and back to the size that it came in. A frame comes back anonymised or black; there is no third way, and nothing
here keeps a frame at a size larger than the model's square.

The predecessor of a frame is the one ``stride_frames`` earlier in its stream, counted in frames as in training. Where
frames are missing (the start, a loss) there is none, so the frames after it are black until there is one again.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray
from torch import Tensor

from client.video.decode import Frames, to_rgb
from spact_models.anonymizer import Anonymizer
from spact_models.bf16 import autocast
from spact_models.errors import UserError
from spact_models.speed import lay_passes
from spact_models.views import to_float_BCTHW

Precision = Literal["fp32", "bf16"]
Black = Literal["start", "lost", "after loss", "not finite"]
MOST_FRAMES = 32  # that go through the network together; above it a CPU gains nothing and memory grows


@dataclass(frozen=True)
class Anonymised:
    """One frame that may leave: ``uint8 (H, W, 3)``, and why it is black where it is (None: it is anonymised).

    "start": the stream had no earlier frames yet. "lost": the frame itself was not there. "after loss": its
    predecessor was not there. "not finite": the network's answer was no picture.
    """

    frame_HWC: Frames
    black: Black | None = None


class StreamState:
    """What one stream needs of its past: ``history × stride_frames`` small squares, and nothing larger."""

    def __init__(self, keep_squares: int, keep_smoothed: int) -> None:
        self.squares: deque[Frames] = deque(maxlen=keep_squares)  # uint8 (S,S,3), raw: they never leave
        self.smoothed: deque[NDArray[np.float32]] = deque(maxlen=keep_smoothed)
        self.interrupted = False
        self.scaler = VideoReformatter()  # one a stream: it keeps its tables while the size stays

    def reset(self) -> None:
        """After frames that never came (a loss, an outage): nothing before it is anybody's predecessor."""
        self.squares.clear()
        self.smoothed.clear()
        self.interrupted = True


class StreamAnonymizer:
    """f_A at work on streams. One object serves any number of them; it is not safe to call from two threads at once.

    ``working_px`` other than the model's own square is what nobody has judged: callers ask before they use it.
    ``smooth`` is the share of a frame's predecessor (one stride earlier, smoothed) that stays in it; 0 = off.

    Raises:
        UserError: a setting out of range, or a working size that the model's cells do not divide.
    """

    def __init__(
        self,
        anonymizer: Anonymizer,
        device: torch.device | str = "cpu",
        precision: Precision = "fp32",
        working_px: int | None = None,
        smooth: float = 0.0,
    ) -> None:
        if precision not in get_args(Precision):
            raise UserError(f'precision = "{precision}", must be "fp32" or "bf16"')
        if not 0.0 <= smooth < 1.0:
            raise UserError(f"smooth = {smooth}, must be at least 0 and below 1 (0 = off)")
        if working_px is not None and working_px != anonymizer.config.size_px:
            anonymizer = _at_size(anonymizer, working_px)
        self.device = torch.device(device)
        self.anonymizer = anonymizer.to(self.device).eval()
        lay_passes(self.anonymizer)
        self.precision = precision
        self.smooth = smooth
        self.size_px = anonymizer.config.size_px
        self.history = anonymizer.history
        self.stride = anonymizer.config.stride_frames

    def open(self) -> StreamState:
        """The state of a new stream, which has no past."""
        return StreamState(self.history * self.stride + 1, self.stride)

    def step(self, frames: Sequence[tuple[StreamState, Frames | None]]) -> list[Anonymised]:
        """Anonymise a batch: one answer for each frame, in order, at the frame's own size.

        Frames are ``uint8 (H, W, 3)`` of any size, from one stream or many; those of one stream in their order. None
        stands for a frame that was lost: it comes back as a black square, and its stream starts anew behind it.

        Raises ValueError: not ``uint8 (H, W, 3)``. After any error the states are to be reset before they go on.
        """
        windows: list[list[Frames]] = []
        plan: list[Black | None] = []
        for state, frame_HWC in frames:
            reason, window = self._take(state, frame_HWC)
            plan.append(reason)
            if reason is None:
                windows.append(window)
        answers = self._through(windows)
        done = []
        for (state, frame_HWC), reason in zip(frames, plan, strict=True):
            done.append(self._give(state, frame_HWC, reason, next(answers) if reason is None else None))
        return done

    def _take(self, state: StreamState, frame_HWC: Frames | None) -> tuple[Black | None, list[Frames]]:
        """The squares that the frame's answer is made from, oldest first, or why there can be none."""
        if frame_HWC is None:
            state.reset()
            return "lost", []
        state.squares.append(self._square(state, frame_HWC))
        needed = self.history * self.stride + 1
        if len(state.squares) < needed:
            return "after loss" if state.interrupted else "start", []
        return None, [state.squares[place] for place in range(-needed, 0, self.stride)]

    def _through(self, windows: Sequence[list[Frames]]) -> Iterator[NDArray[np.float32] | None]:
        """f_A over all windows: float (S,S,3) in 0…255 for each; None where the network's answer is no picture."""
        for first in range(0, len(windows), MOST_FRAMES):
            stacked_NTHWC = np.stack([np.stack(window) for window in windows[first : first + MOST_FRAMES]])
            for answer_HWC in self._anonymised(torch.from_numpy(stacked_NTHWC)).numpy():
                yield answer_HWC if np.isfinite(answer_HWC).all() else None

    @torch.inference_mode()
    def _anonymised(self, frames_NTHWC: Tensor) -> Tensor:
        clip_NCTHW = to_float_BCTHW(frames_NTHWC.to(self.device))
        with autocast(self.device, self.precision):
            # At the working size already: nothing is resized here. Noise comes from the operating system, not a seed.
            seen_NCHW = self.anonymizer.at_any_size(clip_NCTHW)[:, :, -1]
        return (seen_NCHW.float().clamp(0.0, 1.0) * 255.0).permute(0, 2, 3, 1).contiguous().cpu()

    def _give(
        self, state: StreamState, frame_HWC: Frames | None, reason: Black | None, answer: NDArray[np.float32] | None
    ) -> Anonymised:
        height, width = (self.size_px, self.size_px) if frame_HWC is None else frame_HWC.shape[:2]
        if answer is None:
            state.smoothed.clear()
            return Anonymised(np.zeros((height, width, 3), np.uint8), reason or "not finite")
        square = self._smoothed(state, answer).round().astype(np.uint8)
        return Anonymised(resized(state.scaler, square, height, width))

    def _smoothed(self, state: StreamState, answer: NDArray[np.float32]) -> NDArray[np.float32]:
        if not self.smooth:
            return answer
        if len(state.smoothed) == self.stride:
            answer = (1.0 - self.smooth) * answer + self.smooth * state.smoothed[0]
        state.smoothed.append(answer)
        return answer

    def _square(self, state: StreamState, frame_HWC: Frames) -> Frames:
        """Squashed whole with the training reader's own filter; a square of the right size is taken as it is."""
        if frame_HWC.dtype != np.uint8 or frame_HWC.ndim != 3 or frame_HWC.shape[2] != 3 or 0 in frame_HWC.shape:
            raise ValueError(f"a frame is {frame_HWC.dtype} {frame_HWC.shape}, must be uint8 (height, width, 3)")
        if frame_HWC.shape[:2] == (self.size_px, self.size_px):
            return frame_HWC.copy()
        picture = VideoFrame.from_ndarray(np.ascontiguousarray(frame_HWC), format="rgb24")
        return to_rgb(state.scaler, picture, self.size_px, self.size_px)


def resized(scaler: VideoReformatter, frame_HWC: Frames, height: int, width: int) -> Frames:
    """Bilinear, by libswscale: the way back to the size at which a frame is shown."""
    if frame_HWC.shape[:2] == (height, width):
        return frame_HWC
    picture = VideoFrame.from_ndarray(np.ascontiguousarray(frame_HWC), format="rgb24")
    return to_rgb(scaler, picture, width, height, Interpolation.BILINEAR)


def _at_size(anonymizer: Anonymizer, working_px: int) -> Anonymizer:
    """The same weights at another working size. The config refuses what cannot be."""
    if not 8 <= working_px <= 4096:
        raise UserError(f"working size = {working_px}, must be 8…4096 pixels")
    other = Anonymizer(dataclasses.replace(anonymizer.config, size_px=working_px))
    other.load_state_dict(anonymizer.state_dict())
    return other
