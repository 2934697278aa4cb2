"""Where anonymized frames go: one video file or a pipe, with the times of its source and nothing else of it.

Colours, padding and speed are those of client/video/encode.py; what is new here is time (variable rates, gaps), other
codecs and containers, and copied sound. A file has its name only when it is complete.
"""

from __future__ import annotations

import os
import uuid
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO, Literal

import av
import numpy as np
from av.audio.stream import AudioStream
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation, VideoReformatter
from av.video.stream import VideoStream

from client.anonymize.source import Layout
from client.video.decode import Frames
from client.video.encode import ENCODER_THREADS, PRESET, close_quietly, not_written
from spact_models.errors import UserError

Codec = Literal["h264", "hevc", "vp9", "av1", "ffv1"]
CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}
PIPED = "matroska"  # needs no way back in the file, and holds every codec


@dataclass(frozen=True)
class _Encoder:
    name: str
    crf: int  # about the same quality for each, as their makers advise
    most_crf: int
    options: dict[str, str]
    containers: frozenset[str]


ENCODERS: dict[str, _Encoder] = {
    "h264": _Encoder("libx264", 23, 51, {"preset": PRESET}, frozenset({"mp4", "mov", "matroska"})),
    "hevc": _Encoder(
        "libx265",
        28,
        51,
        {"preset": "veryfast", "x265-params": "log-level=error"},
        frozenset({"mp4", "mov", "matroska"}),
    ),
    "vp9": _Encoder(
        "libvpx-vp9",
        32,
        63,
        {"b": "0", "deadline": "good", "cpu-used": "5", "row-mt": "1"},
        frozenset({"webm", "mp4", "matroska"}),
    ),
    "av1": _Encoder("libsvtav1", 35, 63, {"preset": "10"}, frozenset({"mp4", "matroska", "webm"})),
    "ffv1": _Encoder("ffv1", 0, 0, {}, frozenset({"matroska"})),  # lossless
}


@dataclass(frozen=True)
class Encoding:
    """How the output is written. Without ``codec`` and ``crf``: the container's usual one, at its usual quality."""

    codec: Codec | None = None
    crf: int | None = None
    height: int | None = None  # of the output as displayed; None = the input's

    def chosen(self, container: str) -> tuple[str, int]:
        """Codec and quality for a container.

        Raises:
            UserError: they do not go together.
        """
        codec = self.codec or ("vp9" if container == "webm" else "h264")
        if codec not in ENCODERS:
            raise UserError(f"--codec {codec}: not known; choose one of {', '.join(ENCODERS)}")
        encoder = ENCODERS[codec]
        if container not in encoder.containers:
            fitting = ", ".join(name for name, one in ENCODERS.items() if container in one.containers)
            raise UserError(
                f"--codec {codec}: not held by {container}, which holds {fitting}; choose another of the two"
            )
        if encoder.name not in av.codecs_available:
            raise UserError(f"--codec {codec}: this build of PyAV has no {encoder.name}; choose another codec")
        crf = encoder.crf if self.crf is None else self.crf
        if not 0 <= crf <= encoder.most_crf:
            raise UserError(f"--crf {crf}: must be 0 (best) … {encoder.most_crf} for {codec}")
        if self.height is not None and not 16 <= self.height <= 8192:
            raise UserError(f"--height {self.height}: must be 16…8192 pixels")
        return codec, crf


def container_of(path: Path) -> str:
    """libavformat's name by the file's suffix.

    Raises:
        UserError: a suffix that is not written here.
    """
    if path.suffix.lower() not in CONTAINERS:
        raise UserError(f"{path}: cannot be written in this format; name it {', '.join(CONTAINERS)}")
    return CONTAINERS[path.suffix.lower()]


def output_size(layout: Layout, height: int | None) -> tuple[int, int]:
    """Height and width of the output: the input's or scaled with it, rounded up to even sides (4:2:0 needs them)."""
    scale = Fraction(height, layout.height) if height else Fraction(1)
    tall, wide = round(layout.height * scale), max(1, round(layout.width * scale))
    return tall + tall % 2, wide + wide % 2


class Sink:
    """Writes one video. ``target`` is a path, or a binary file that is written from front to back.

    Raises:
        UserError: it cannot be written there, or sound that the container does not hold.
    """

    def __init__(
        self,
        target: Path | IO[bytes],
        layout: Layout,
        encoding: Encoding,
        audio: AudioStream | None = None,
        live: bool = False,
    ) -> None:
        self.path = target if isinstance(target, Path) else None
        self.part = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex}.part") if self.path else None
        self.frames = 0
        self.retimed = 0  # frames whose time was not after the one before, and was moved
        self.height, self.width = output_size(layout, encoding.height)
        self._clock = layout.time_base
        self._scaler = VideoReformatter()
        self._last_tick: int | None = None
        self._durations: dict[int, int] = {}
        container = container_of(self.path) if self.path else PIPED
        codec, crf = encoding.chosen(container)
        options = {"movflags": "+faststart"} if container in ("mp4", "mov") else {}
        try:
            if self.path:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            self._container = av.open(str(self.part) if self.part else target, "w", format=container, options=options)
        except (av.error.FFmpegError, OSError) as error:
            raise self._not_written(error) from error
        try:
            self._video = self._video_stream(layout, codec, crf, live)
            self._audio = self._audio_stream(audio, container) if audio is not None else None
        except BaseException:
            self.abort()
            raise

    def write(self, square_HWC: Frames, time: Fraction, seconds: Fraction | None) -> None:
        """One anonymized frame at the model's square; it is stretched to the output's size on the way."""
        tick = round(time / self._clock)
        if self._last_tick is not None and tick <= self._last_tick:
            self.retimed += 1
            tick = self._last_tick + 1
        self._last_tick = tick
        if seconds:
            self._durations[tick] = max(1, round(seconds / self._clock))
        picture = VideoFrame.from_ndarray(np.ascontiguousarray(square_HWC), format="rgb24")
        picture = self._scaler.reformat(
            picture,
            self.width,
            self.height,
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
            interpolation=Interpolation.BILINEAR,
            threads=1,
        )
        picture.pts, picture.time_base = tick, self._clock
        self.frames += 1
        self._encode(picture)

    def copy(self, packet: Packet[AudioStream]) -> None:
        """A packet of sound, as it is."""
        if self._audio is None or packet.dts is None:
            return
        packet.stream = self._audio
        try:
            self._container.mux(packet)
        except av.error.FFmpegError as error:
            raise self._not_written(error) from error

    def close(self) -> None:
        """Everything is written and on the disk; the name is still the temporary one."""
        self._encode(None)
        try:
            self._container.close()
            if self.part:
                with self.part.open("rb") as file:
                    os.fsync(file.fileno())
        except (av.error.FFmpegError, OSError) as error:
            raise self._not_written(error) from error

    def publish(self) -> None:
        """Give the file its name."""
        if self.part and self.path:
            try:
                self.part.replace(self.path)
            except OSError as error:
                raise self._not_written(error) from error

    def abort(self) -> None:
        """Leave nothing. Harmless after :meth:`publish`."""
        close_quietly(self._container)
        if self.part:
            with suppress(OSError):  # a read-only disk refuses that, too; what it said first is the error to tell
                self.part.unlink(missing_ok=True)

    def _encode(self, picture: VideoFrame | None) -> None:
        try:
            for packet in self._video.encode(picture):
                duration = self._durations.pop(packet.pts, None) if packet.pts is not None else None
                if duration:  # encoders forget how long the last frame is shown
                    packet.duration = duration
                self._container.mux(packet)
        except av.error.FFmpegError as error:
            raise self._not_written(error) from error

    def _video_stream(self, layout: Layout, codec: str, crf: int, live: bool) -> VideoStream:
        encoder = ENCODERS[codec]
        options = dict(encoder.options) | ({} if codec == "ffv1" else {"crf": str(crf)})
        if live and codec in ("h264", "hevc"):
            options["tune"] = "zerolatency"
        stream = self._container.add_stream(encoder.name, rate=layout.rate, options=options)
        assert isinstance(stream, VideoStream)
        stream.height, stream.width, stream.pix_fmt = self.height, self.width, "yuv420p"
        context = stream.codec_context
        context.thread_count = ENCODER_THREADS
        context.time_base = self._clock
        context.sample_aspect_ratio = layout.sample_aspect
        context.colorspace, context.color_range = int(Colorspace.ITU709), int(ColorRange.MPEG)
        context.color_primaries, context.color_trc = int(ColorPrimaries.BT709), int(ColorTrc.BT709)
        if codec == "hevc" and self._container.format.name in ("mp4", "mov"):
            context.codec_tag = "hvc1"  # what Apple's players ask for
        return stream

    def _audio_stream(self, template: AudioStream, container: str) -> AudioStream:
        try:
            return self._container.add_stream_from_template(template)
        except ValueError:
            raise UserError(
                f"{self.path or 'standard output'}: {container} does not hold the input's sound "
                f"({template.codec_context.name}); name the output .mkv, or leave --keep-audio out"
            ) from None

    def _not_written(self, error: Exception) -> UserError:
        return not_written(self.path or Path("standard output"), error)
