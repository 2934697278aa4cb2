"""The only writer of video files: H.264 in MP4, 4:2:0, which every player and browser opens.

Colours are BT.709 at every size and say so in the file, so that what is read back is what was written. The file
carries nothing of the source but its pictures: no sound, no metadata.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import OutputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation, VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from spact_models.errors import UserError
from spact_models.files import DISK_FULL, FREE_SPACE

Frames = NDArray[np.uint8]

PRESET = "veryfast"  # about twice x264's default speed for a tenth more bytes: encoding must not slow a live stream
ENCODER_THREADS = 4  # a fixed number: x264's output depends on it, and must not depend on the machine


def write_video(path: Path, frames: Iterable[Frames], fps: float, crf: int = 23) -> int:
    """Write ``uint8 (H, W, 3)`` RGB frames, all of one size, at a constant rate; returns how many.

    4:2:0 needs even sides: an odd one is padded by repeating its last line. ``crf`` is x264's quality, 0 (lossless
    but for colour) to 51; 23 is its default. The frames may be a stream: one at a time is held. The file appears
    under its name only when complete; the folder is made when missing.

    Raises:
        ValueError: no frames, frames of different sizes, not ``uint8 (H, W, 3)``, ``fps`` or ``crf`` out of range.
        UserError: the file cannot be written there.
    """
    if not 0 < fps < 1000:
        raise ValueError(f"fps = {fps}, must be above 0 and below 1000")
    if not 0 <= crf <= 51:
        raise ValueError(f"crf = {crf}, must be between 0 (best) and 51")
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_written(path, error) from error
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        count = _encode(path, part, frames, fps, crf)
        try:
            part.replace(path)
        except OSError as error:  # a folder has this name
            raise not_written(path, error) from error
    finally:
        with suppress(OSError):  # a read-only disk refuses that, too; what it said first is the error to tell
            part.unlink(missing_ok=True)
    return count


def _encode(path: Path, part: Path, frames: Iterable[Frames], fps: float, crf: int) -> int:
    """Only what the encoder and the disk do wrong is turned into a UserError, not what ``frames`` raises."""
    scaler = VideoReformatter()
    size: tuple[int, ...] = ()
    count = 0
    # +faststart puts the index in front: a browser plays at once, and a cut file still opens.
    try:
        container = av.open(str(part), "w", format="mp4", options={"movflags": "+faststart"})
    except av.error.FFmpegError as error:
        raise not_written(path, error) from error
    try:
        for frame_HWC in frames:
            if not count:
                size = frame_HWC.shape
                _check(frame_HWC, size)
                stream = add_stream(container, frame_HWC, fps, crf)
            _check(frame_HWC, size)
            picture = to_yuv(scaler, frame_HWC)
            picture.pts = count
            picture.time_base = stream.codec_context.time_base
            container.mux(stream.encode(picture))
            count += 1
        if not count:
            raise ValueError(f"{path}: no frames to write")
        container.mux(stream.encode(None))
        container.close()
    except av.error.FFmpegError as error:
        raise not_written(path, error) from error
    finally:
        close_quietly(container)
    return count


def add_stream(container: OutputContainer, frame_HWC: Frames, fps: float, crf: int) -> VideoStream:
    """The H.264 stream of a container for pictures as large as ``frame_HWC``, at a constant rate."""
    rate = Fraction(fps).limit_denominator(1001)  # 29.97 and its like are n / 1001
    # x264's macroblock tree gives different bytes for the same frames, also with one thread (1 to 35 % of 48 px clips)
    options = {"crf": str(crf), "preset": PRESET, "x264-params": "mbtree=0"}
    stream = container.add_stream("libx264", rate=rate, options=options)
    height, width = frame_HWC.shape[:2]
    stream.height, stream.width = height + height % 2, width + width % 2
    stream.pix_fmt = "yuv420p"
    context = stream.codec_context
    context.thread_count = ENCODER_THREADS
    context.time_base = 1 / rate
    context.colorspace, context.color_range = int(Colorspace.ITU709), int(ColorRange.MPEG)
    context.color_primaries, context.color_trc = int(ColorPrimaries.BT709), int(ColorTrc.BT709)
    return stream


def to_yuv(scaler: VideoReformatter, frame_HWC: Frames) -> VideoFrame:
    """``uint8 (H, W, 3)`` as the encoder takes it: 4:2:0, BT.709, even sides."""
    height, width = frame_HWC.shape[:2]
    if height % 2 or width % 2:
        frame_HWC = np.pad(frame_HWC, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    picture = VideoFrame.from_ndarray(np.ascontiguousarray(frame_HWC), format="rgb24")
    return scaler.reformat(
        picture,
        format="yuv420p",
        dst_colorspace=Colorspace.ITU709,
        dst_color_range=ColorRange.MPEG,
        interpolation=Interpolation.AREA,
        threads=1,
    )


def _check(frame_HWC: Frames, size: tuple[int, ...]) -> None:
    if frame_HWC.dtype != np.uint8 or frame_HWC.ndim != 3 or frame_HWC.shape[2] != 3 or 0 in frame_HWC.shape:
        raise ValueError(f"a frame is {frame_HWC.dtype} {frame_HWC.shape}, must be uint8 (height, width, 3)")
    if frame_HWC.shape != size:
        raise ValueError(f"a frame is {frame_HWC.shape}, the first one was {size}: all must have one size")


def close_quietly(container: OutputContainer) -> None:
    try:
        container.close()
    except (av.error.FFmpegError, ValueError):
        return  # after an error the file is thrown away; that error is the one to tell


def not_written(path: Path, error: Exception) -> UserError:
    """In words; what to do about it depends on what the disk has said."""
    reason = getattr(error, "strerror", None) or error
    full = getattr(error, "errno", None) in DISK_FULL
    return UserError(f"{path}: cannot be written ({reason}); {FREE_SPACE if full else ''}choose another place")
