"""The only reader of video and image files.

Frames come out as ``uint8`` RGB, height × width × colour, turned the way the display matrix (or EXIF) asks for.
For training they are scaled in one step by libswscale, from the codec's own pixel format to a ``size_px`` square:
the whole frame, squashed, nothing cropped. Every frame of a file is one frame here; a variable frame rate is not
evened out. Samples that are not square stay as they are stored.

**What happens to bad files.** A file either gives its frames or raises :class:`UnreadableVideo` with the reason.
Damage inside a file is weighed against ``DAMAGE_LIMIT``: up to that share the frames that decode are used and a
warning names the file and the damage; above it the file is refused, because clips from the rest would stand for a
video that nobody has seen whole. Wrong bits that the codec can conceal are not damage.
How many frames around a damaged place survive may depend on the number of threads; sound files do not.

Only the file itself is read: demuxers that open other files or the network (playlists), or that make a film of
any text, are not on the list of formats.
"""

from __future__ import annotations

import logging
import math
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
from av.codec.context import ThreadType
from av.container import InputContainer
from av.packet import Packet
from av.sidedata.sidedata import SideData
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL import Image, ImageOps

Frames = NDArray[np.uint8]
logger = logging.getLogger(__name__)

DAMAGE_LIMIT = 0.1  # share of a video that may be lost before it is refused: a dropped second, not a dropped half
DECODER_THREADS = min(4, os.cpu_count() or 1)  # each thread holds frames of its own; above 4 the gain is small
# The mean over what a pixel covers. Without the second flag two neighbouring pixels share one colour, which at 32 px
# is five times the error for 5 % of the time.
SCALING = Interpolation.AREA | Interpolation.FULL_CHR_H_INT
FORMATS = (  # libavformat's names; what cameras, phones and the published data sets write
    "mov,mp4,matroska,webm,avi,mpeg,mpegts,mpegvideo,flv,live_flv,asf,ogg,h264,hevc,av1,obu,ivf,m4v,mjpeg,mpjpeg,"
    "h261,h263,dv,gif,rm,mxf,wtv,nut,dhav,vc1,yuv4mpegpipe"
)


class UnreadableVideo(Exception):
    """A file that gives no usable frames: which, and why in words for its owner."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class VideoInfo:
    """What a file says of itself, with its first frame decoded to see that it can be.

    ``frames`` is as the file states it, or counted (without decoding) where it does not. ``width`` and ``height``
    are pixels as displayed, after the turn. ``rotation_degrees`` is that turn, counterclockwise: 0, 90, 180, 270.
    """

    frames: int
    fps: float
    width: int
    height: int
    seconds: float
    rotation_degrees: int


def probe(path: Path) -> VideoInfo:
    """Size, rate and length of a video.

    Raises:
        UnreadableVideo: not a video, or no first frame.
    """
    with open_video(path) as container:
        stream = video_stream(path, container)
        reading = _Reading()
        frame = next(_decoded(container, stream, reading, threads=1), None)
        if frame is None:
            raise UnreadableVideo(path, "no frame in it can be decoded")
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        seconds = promised_seconds(container, stream)
        counted = 0
        if not stream.frames or seconds is None:
            for packet in _packets(container, stream):
                reading.add(packet)
            counted, seconds = reading.packets, seconds or reading.seconds or None
    frames = stream.frames or counted
    rate = rate or (frames / seconds if seconds else 25.0)  # 25: a lone frame without any clock
    turn = Turn.of(frame)
    width, height = (frame.height, frame.width) if turn.swap else (frame.width, frame.height)
    return VideoInfo(frames, rate, width, height, seconds or frames / rate, turn.degrees)


def decode_video(path: Path, size_px: int, threads: int = DECODER_THREADS) -> Frames:
    """All frames of a video, squashed to a square: ``uint8 (T, size_px, size_px, 3)``, T ≥ 1.

    Raises:
        UnreadableVideo: see the module's text.
    """
    return np.stack(list(stream_square(path, size_px, threads)))


def decode_image(path: Path, size_px: int) -> Frames:
    """One image as a video of one frame: ``uint8 (1, size_px, size_px, 3)``, turned as EXIF says.

    Raises:
        UnreadableVideo: missing, not readable, not an image, or cut off.
    """
    check_file(path)
    try:
        with Image.open(path) as image:
            image.draft("RGB", (2 * size_px, 2 * size_px))  # a JPEG decodes straight to about the size
            turned = ImageOps.exif_transpose(image)
            if turned.mode.startswith("I"):  # 16-bit grey; PIL's own conversion clips it to white
                turned = Image.fromarray((np.asarray(turned) >> 8).clip(0, 255).astype(np.uint8))
            square = turned.convert("RGB").resize((size_px, size_px), Image.Resampling.BILINEAR)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UnreadableVideo(path, f"not an image, or damaged ({first_line(error)})") from error
    return np.asarray(square)[None]


def stream_square(path: Path, size_px: int, threads: int = DECODER_THREADS) -> Iterator[Frames]:
    """The frames of :func:`decode_video` one at a time, each ``uint8 (size_px, size_px, 3)`` in memory of its own.

    Raises:
        UnreadableVideo: also after the last frame, when too much of the file was lost.
    """
    return _stream(path, (size_px, size_px), threads)


def stream_video(path: Path, threads: int = DECODER_THREADS) -> Iterator[Frames]:
    """The frames of a video at the size at which it is displayed, ``uint8 (H, W, 3)``, one at a time.

    All have the first frame's size, should the stream change its own on the way.

    Raises:
        UnreadableVideo: also after the last frame, when too much of the file was lost.
    """
    return _stream(path, None, threads)


def check_file(path: Path) -> os.stat_result:
    """The file's status, after a look whether it can be read at all.

    Raises:
        UnreadableVideo: missing, not a file, empty, or not permitted.
    """
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise UnreadableVideo(path, "is a folder, not a file")
        if not stat.S_ISREG(status.st_mode):  # before opening: a pipe would wait for ever
            raise UnreadableVideo(path, "is not a regular file")
        path.open("rb").close()
    except FileNotFoundError as error:
        raise UnreadableVideo(path, "no such file") from error
    except PermissionError as error:
        raise UnreadableVideo(path, "no permission to read it") from error
    except OSError as error:
        raise UnreadableVideo(path, f"cannot be read ({error.strerror})") from error
    if status.st_size == 0:
        raise UnreadableVideo(path, "the file is empty")
    return status


def _stream(path: Path, size: tuple[int, int] | None, threads: int) -> Iterator[Frames]:
    """Decode, scale (to ``size`` = width, height; None = as stored), turn; then judge what was lost."""
    with open_video(path) as container:
        stream = video_stream(path, container)
        reading = _Reading()
        scaler = VideoReformatter()
        turn: Turn | None = None
        for frame in _decoded(container, stream, reading, threads):
            if turn is None:
                turn = Turn.of(frame)
                width, height = size or (frame.width, frame.height)
            try:
                frame_HWC = to_rgb(scaler, frame, width, height)
            except av.error.FFmpegError as error:
                raise UnreadableVideo(path, f"its pictures cannot be converted ({first_line(error)})") from error
            yield turn.apply(frame_HWC)
        _judge(path, turn is not None, reading, promised_seconds(container, stream))


def open_video(path: Path) -> InputContainer:
    check_file(path)
    try:
        # Absolute, so that no name is taken for a protocol ("concat:a.mp4").
        return av.open(str(path.absolute()), options={"protocol_whitelist": "file", "format_whitelist": FORMATS})
    except av.error.InvalidDataError as error:
        raise UnreadableVideo(path, "not a video, or cut off or damaged in its header") from error
    except av.error.EOFError as error:
        raise UnreadableVideo(path, "cut off, or no video: it ends before any frame") from error
    except av.error.ArgumentError as error:
        raise UnreadableVideo(path, "not a video, or not in a format that is read here") from error
    except (av.error.FFmpegError, OSError) as error:
        raise UnreadableVideo(path, f"cannot be opened ({error.strerror or first_line(error)})") from error


def video_stream(path: Path, container: InputContainer) -> VideoStream:
    # A cover picture of a sound file is also a "video stream".
    videos = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not videos:
        found = sorted({container.streams[index].type for index in range(len(container.streams))})
        raise UnreadableVideo(path, f"holds no video (only: {', '.join(found) or 'nothing'})")
    if videos[0].codec_context is None:
        raise UnreadableVideo(path, "its video codec is not known here")
    return videos[0]


def _decoded(container: InputContainer, stream: VideoStream, reading: _Reading, threads: int) -> Iterator[VideoFrame]:
    stream.thread_type = ThreadType.AUTO
    stream.codec_context.thread_count = threads
    for packet in _packets(container, stream):
        reading.add(packet)
        try:
            frames = packet.decode()
        except av.error.FFmpegError:
            reading.damaged += 1
            continue
        yield from frames


def _packets(container: InputContainer, stream: VideoStream) -> Iterator[Packet[VideoStream]]:
    try:
        yield from container.demux(stream)
    except av.error.FFmpegError:
        return  # the container breaks off here; _judge sees what is missing


@dataclass
class _Reading:
    """What came out of a container: the other half of what it promised."""

    packets: int = 0
    damaged: int = 0
    start: float = field(default=math.inf)
    end: float = field(default=-math.inf)

    def add(self, packet: Packet[VideoStream]) -> None:
        if not packet.size:
            return  # the flush at the end
        self.packets += 1
        time = packet.pts if packet.pts is not None else packet.dts
        if time is not None and packet.time_base is not None:
            self.start = min(self.start, float(time * packet.time_base))
            self.end = max(self.end, float((time + (packet.duration or 0)) * packet.time_base))

    @property
    def seconds(self) -> float:
        return max(0.0, self.end - self.start)


def promised_seconds(container: InputContainer, stream: VideoStream) -> float | None:
    """How long the header says that the video is, where it says so of the video alone."""
    stated = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else None
    if container.format.name.startswith("mov"):
        return stated  # its frame count also counts what an edit list has cut away
    if stream.frames and stream.average_rate:
        return float(stream.frames / stream.average_rate)  # AVI: the duration is only guessed from the file's length
    if stated is None and container.duration and len(container.streams) == 1:
        return container.duration / 1_000_000  # Matroska; with sound this may be the sound's
    return stated


def _judge(path: Path, any_frame: bool, reading: _Reading, promised_seconds: float | None) -> None:
    if not any_frame:
        raise UnreadableVideo(path, "no frame in it can be decoded")
    found = []
    missing = 1 - reading.seconds / promised_seconds if promised_seconds else 0.0
    broken = reading.damaged / max(1, reading.packets)
    if missing > 0.01:  # below: rounding of clocks
        found.append(f"cut off: {reading.seconds:.1f} s of {promised_seconds:.1f} s are there")
    if broken > 0:
        found.append(f"damaged: {reading.damaged} of {reading.packets} packets cannot be decoded")
    if max(missing, broken) > DAMAGE_LIMIT:
        raise UnreadableVideo(path, "; ".join(found))
    if found:
        logger.warning("%s: %s; the rest is used", path, "; ".join(found))


def to_rgb(
    scaler: VideoReformatter, frame: VideoFrame, width: int, height: int, interpolation: int = SCALING
) -> Frames:
    """A decoded picture as ``uint8 (height, width, 3)`` RGB, in memory of its own."""
    # One thread: libswscale would start a pool of its own for every video, which costs more than it gains.
    rgb = scaler.reformat(frame, width, height, format="rgb24", interpolation=interpolation, threads=1)
    plane = rgb.planes[0]
    lines: Frames = np.frombuffer(memoryview(plane), np.uint8).reshape(height, plane.line_size)  # padded on the right
    return np.ascontiguousarray(lines[:, : 3 * width]).reshape(height, width, 3)


@dataclass(frozen=True)
class Turn:
    """One of the eight ways to lay a picture on its sides: a transposition, then flips."""

    swap: bool = False
    flip_x: bool = False
    flip_y: bool = False
    degrees: int = 0

    @classmethod
    def of(cls, frame: VideoFrame) -> Turn:
        """From the display matrix: ``x' = a x + c y``, ``y' = b x + d y``, y downwards, to the nearest right angle."""
        side = frame.side_data.get("DISPLAYMATRIX")
        if not isinstance(side, SideData):
            return cls()
        a, b, _, c, d = (int(value) for value in np.frombuffer(memoryview(side), np.int32)[:5])
        degrees = round(math.degrees(math.atan2(-b, a)) / 90) % 4 * 90
        if abs(b) + abs(c) > abs(a) + abs(d):
            return cls(True, c < 0, b < 0, degrees)
        return cls(False, a < 0, d < 0, degrees)

    def apply(self, frame_HWC: Frames) -> Frames:
        if not (self.swap or self.flip_x or self.flip_y):
            return frame_HWC
        turned = frame_HWC.swapaxes(0, 1) if self.swap else frame_HWC
        turned = turned[:, ::-1] if self.flip_x else turned
        turned = turned[::-1] if self.flip_y else turned
        return np.ascontiguousarray(turned)


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
