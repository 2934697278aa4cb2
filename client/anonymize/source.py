"""What comes out of a source: :class:`Taken` frames in rising time, wherever they come from.

Pictures are squashed to the model's square straight from the codec's own format, by the same reader, filter and turn
as in training (client/video/decode.py), so the raw picture at its full size never exists outside the codec.
"""

from __future__ import annotations

import contextlib
import logging
import time as clock
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import IO

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from client.anonymize.opening import is_address, is_camera, opener, without_secret
from client.anonymize.reading import Lost, Reading
from client.video.decode import (
    DECODER_THREADS,
    Frames,
    Turn,
    UnreadableVideo,
    promised_seconds,
    to_rgb,
    video_stream,
)
from spact_models.errors import UserError

logger = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 15.0  # between attempts to reach an address again, doubling
BLACK_EVERY_SECONDS = 1.0  # while an address is silent: whoever watches sees that nothing comes
FINEST_CLOCK = 1_000_000  # ticks a second; encoders do not count faster


@dataclass(frozen=True)
class Taken:
    """One frame, or the place of one that was lost (``square_HWC`` None).

    ``time`` is seconds from the start of the source, ``seconds`` how long the frame is shown, where that is known.
    ``picture_HWC`` is the raw frame as displayed, only where a preview was asked for.
    """

    time: Fraction
    seconds: Fraction | None
    square_HWC: Frames | None
    picture_HWC: Frames | None = None


@dataclass(frozen=True)
class Layout:
    """How a source wants to be shown, after its turn. Sizes in pixels."""

    height: int
    width: int
    rate: Fraction
    time_base: Fraction
    sample_aspect: Fraction


@dataclass
class Losses:
    """What did not arrive."""

    packets: int = 0
    damaged: int = 0
    cut_off: str = ""
    reconnects: int = 0

    @property
    def any(self) -> bool:
        return bool(self.damaged or self.cut_off or self.reconnects)


@dataclass
class Source:
    """A source that :func:`open_source` opened. ``layout`` is known once the first event has come.

    ``shown`` is its name for messages and files, without secrets; ``name`` itself may hold a camera's password.
    """

    name: str
    reopen: Callable[[], InputContainer]
    container: InputContainer
    size_px: int
    live: bool = False
    retry_seconds: float = 0.0  # how long an address may stay silent; 0: what breaks off has ended
    keep_audio: bool = False
    picture_height: int = 0  # of raw pictures for a preview; 0: none are made
    losses: Losses = field(default_factory=Losses)
    layout: Layout | None = None
    seconds: Fraction | None = None  # as the header promises
    audio: AudioStream | None = None
    _turn: Turn | None = None
    _scaler: VideoReformatter = field(default_factory=VideoReformatter)
    _picture_scaler: VideoReformatter = field(default_factory=VideoReformatter)
    _end: Fraction = Fraction(0)  # when the last frame's time is over
    _last: Fraction | None = None
    _base: Fraction | None = None  # the stream's own clock at our zero
    _resume_at: Fraction = Fraction(0)

    @property
    def shown(self) -> str:
        return without_secret(self.name)

    def events(self) -> Generator[Taken | Packet[AudioStream], None, None]:
        """Frames and losses to the end; audio packets (times shifted like the frames') where they are kept.

        Raises:
            UnreadableVideo: no frame in it can be decoded.
        """
        began = clock.monotonic()
        while True:
            reading = self._read(began)
            try:
                yield from self._of(reading)
            finally:  # also where whoever asks has enough, and closes this
                self.losses.packets += reading.packets
                self.losses.damaged += reading.damaged
            self.container.close()
            if not self.retry_seconds or not (yield from self._reconnect(reading.broke_off)):
                break
        if self.layout is None:
            raise UnreadableVideo(Path(self.shown), "no frame in it can be decoded")
        self._see_what_is_missing(reading.broke_off)

    def close(self) -> None:
        """Let go of the file or device, wherever reading stands; never while another thread is reading in it."""
        with contextlib.suppress(av.error.FFmpegError, ValueError):
            self.container.close()

    def _read(self, began: float) -> Reading:
        stream = video_stream(Path(self.shown), self.container)
        self.audio = next(iter(self.container.streams.audio), None) if self.keep_audio else None
        promised = promised_seconds(self.container, stream)
        self.seconds = Fraction(promised) if promised and not self.live else None
        reading = Reading(self.container, stream, DECODER_THREADS, self.audio)
        self._base = _start(stream, self.audio)
        if self.losses.reconnects:  # time goes on while nothing comes
            self._base = None
            self._resume_at = max(self._end, Fraction(clock.monotonic() - began).limit_denominator(1000))
        return reading

    def _of(self, reading: Reading) -> Generator[Taken | Packet[AudioStream], None, None]:
        time_base = reading.stream.time_base or Fraction(1, 90000)
        waiting: list[Packet[AudioStream] | Lost] = []  # before the first picture tells the size
        for event in reading.events():
            if isinstance(event, VideoFrame) and self.layout is None:
                self._turn = Turn.of(event)
                self.layout = _layout(event, reading.stream, self._turn, time_base)
                for early in waiting:
                    yield self._lost(early.pts * time_base) if isinstance(early, Lost) else self._shifted(early)
            if self.layout is None:
                waiting.append(event)  # type: ignore[arg-type]
            elif isinstance(event, VideoFrame):
                yield self._taken(event, time_base)
            else:
                yield self._lost(event.pts * time_base) if isinstance(event, Lost) else self._shifted(event)

    def _taken(self, frame: VideoFrame, time_base: Fraction) -> Taken:
        assert self._turn is not None
        assert frame.pts is not None
        seconds = frame.duration * time_base if frame.duration else None
        time = self._time(frame.pts * time_base, seconds)
        try:
            square = self._turn.apply(to_rgb(self._scaler, frame, self.size_px, self.size_px))
            picture = self._picture(frame) if self.picture_height else None
        except (av.error.FFmpegError, ValueError):  # a pixel format that nobody can read: closed, not raw
            self.losses.damaged += 1
            return Taken(time, seconds, None)
        return Taken(time, seconds, square, picture)

    def _lost(self, at: Fraction) -> Taken:
        return Taken(self._time(at, None), None, None)

    def _time(self, at: Fraction, seconds: Fraction | None) -> Fraction:
        """Seconds from the start. A clock that jumps back goes on where it was."""
        assert self.layout is not None
        if self._base is None:
            self._base = at - self._resume_at
        time = at - self._base
        if self._last is not None and time <= self._last:
            self._base -= self._end - time
            time = self._end
        self._last, self._end = time, time + (seconds or 1 / self.layout.rate)
        return time

    def _picture(self, frame: VideoFrame) -> Frames:
        """As displayed, no higher than ``picture_height``, even sides."""
        assert self.layout is not None
        assert self._turn is not None
        height, width = bounded(self.layout.height, self.layout.width, self.picture_height)
        if self._turn.swap:
            height, width = width, height
        return self._turn.apply(to_rgb(self._picture_scaler, frame, width, height))

    def _shifted(self, packet: Packet[AudioStream]) -> Packet[AudioStream]:
        shift = round((self._base or 0) / packet.time_base)
        packet.pts = None if packet.pts is None else packet.pts - shift
        packet.dts = None if packet.dts is None else packet.dts - shift
        return packet

    def _reconnect(self, reason: str) -> Generator[Taken, None, bool]:
        """Black frames while an address is silent, pauses that double; returns whether it was reached again."""
        logger.warning("%s: the stream dropped (%s); trying to reach it again", self.shown, reason or "it ended")
        began, pause = clock.monotonic(), FIRST_PAUSE_SECONDS
        while clock.monotonic() - began < self.retry_seconds:
            for _ in range(max(1, round(pause / BLACK_EVERY_SECONDS))):
                if self.layout is not None:
                    yield self._silent(pause)
                clock.sleep(min(pause, BLACK_EVERY_SECONDS))
            try:
                self.container = self.reopen()
            except UserError as error:
                logger.info("%s", error)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
                continue
            self.losses.reconnects += 1
            return True
        self.losses.cut_off = f"silent for {self.retry_seconds:g} s ({reason or 'it ended'})"
        return False

    def _silent(self, pause: float) -> Taken:
        self._last = self._end
        self._end += Fraction(min(pause, BLACK_EVERY_SECONDS)).limit_denominator(1000)
        return Taken(self._last, None, None)

    def _see_what_is_missing(self, broke_off: str) -> None:
        """A file that ends before its header says so was cut off, with or without an error."""
        frame_seconds = 1 / self.layout.rate if self.layout else Fraction(0)
        if self.seconds and self._end < Fraction(99, 100) * self.seconds - frame_seconds:
            self.losses.cut_off = f"{float(self._end):.1f} s of {float(self.seconds):.1f} s are there"
        elif broke_off and not self.losses.cut_off:
            self.losses.cut_off = broke_off


def open_source(
    name: str,
    size_px: int,
    retry_seconds: float = 0.0,
    keep_audio: bool = False,
    picture_height: int = 0,
    pipe: IO[bytes] | None = None,
) -> Source:
    """A path, "-" for ``pipe`` (standard input), a video device or an address.

    Raises:
        UserError: an address or camera that cannot be reached, or standard input that is no video.
        UnreadableVideo: a file that cannot be read.
    """
    reopen = opener(name, pipe)
    live = is_address(name) or is_camera(name)
    retry = retry_seconds if is_address(name) else 0.0
    return Source(name, reopen, reopen(), size_px, live, retry, keep_audio, picture_height)


def bounded(height: int, width: int, most: int) -> tuple[int, int]:
    """Even sides, no higher than ``most``, in the same proportion."""
    scale = min(1.0, most / height)
    return max(2, 2 * round(height * scale / 2)), max(2, 2 * round(width * scale / 2))


def _start(stream: VideoStream, audio: AudioStream | None) -> Fraction | None:
    """The earliest time in the container, in seconds of its own clock; None: it does not say."""
    known = [one for one in (stream, audio) if one is not None and one.start_time is not None]
    times = [Fraction(one.start_time * one.time_base) for one in known if one.start_time is not None and one.time_base]
    return min(times, default=None)


def _layout(frame: VideoFrame, stream: VideoStream, turn: Turn, time_base: Fraction) -> Layout:
    height, width = (frame.width, frame.height) if turn.swap else (frame.height, frame.width)
    aspect = stream.sample_aspect_ratio or Fraction(1)
    rate = stream.average_rate or stream.guessed_rate or Fraction(25)
    rate = min(max(Fraction(rate), Fraction(1, 10)), Fraction(1000))
    time_base = max(time_base, Fraction(1, FINEST_CLOCK))
    return Layout(height, width, rate, time_base, 1 / aspect if turn.swap and aspect else aspect or Fraction(1))
