"""One container, read to its end: every picture, every loss, in the order in which they are shown.

A packet that will not decode, or a picture that the codec itself calls corrupt, becomes a :class:`Lost` at its time;
whoever asks gets black there and not the last good picture held, and never a guess of the codec's.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
from av.audio.stream import AudioStream
from av.codec.context import ThreadType
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from client.anonymize.opening import reason_of

MOST_WAITING = 256  # packets without a picture: no codec reorders so far, so the oldest of them is lost


@dataclass(frozen=True)
class Lost:
    """A picture that should be here: its time in the stream's clock."""

    pts: int


class Reading:
    """Reads ``stream`` (and packets of ``audio``, where one is given) of an open container.

    ``broke_off`` says afterwards why the container ended early, where it did.
    """

    def __init__(
        self, container: InputContainer, stream: VideoStream, threads: int, audio: AudioStream | None = None
    ) -> None:
        self.container = container
        self.stream = stream
        self.audio = audio
        stream.thread_type = ThreadType.AUTO
        stream.codec_context.thread_count = threads
        self.packets = 0
        self.damaged = 0
        self.broke_off = ""
        self._waiting: list[int] = []  # a heap: times of packets whose picture has not come
        self._missing = False  # an error was reported, so what is overtaken is lost
        self._owed = 0  # errors whose picture's time has not come; with threads an error names no packet
        self._last: int | None = None

    def events(self) -> Iterator[VideoFrame | Lost | Packet[AudioStream]]:
        """Pictures and losses by rising time; audio packets between them as they lie in the container."""
        for packet in self._packets():
            if packet.stream.type == "audio":
                yield packet
            else:
                yield from self._video(packet)
        yield from self._overtaken(None)

    def _packets(self) -> Iterator[Packet[Any]]:
        streams = [self.stream, *([self.audio] if self.audio is not None else [])]
        try:
            yield from self.container.demux(streams)
        except (av.error.FFmpegError, OSError) as error:
            self.broke_off = reason_of(error)
            flush: Packet[Any] = Packet()  # pictures that the decoder still holds came before the break
            flush.stream = self.stream
            yield flush

    def _video(self, packet: Packet[VideoStream]) -> Iterator[VideoFrame | Lost]:
        if packet.size:
            self.packets += 1
            self._missing |= packet.is_corrupt
            time = packet.pts if packet.pts is not None else packet.dts
            if time is not None and not packet.is_discard:
                heapq.heappush(self._waiting, time)
        try:
            frames = packet.decode()
        except av.error.FFmpegError:
            self.damaged += 1
            self._missing = True
            self._owed += 1
            frames = []
        for frame in frames:
            frame.pts = self._time_of(frame)
            yield from self._overtaken(frame.pts)
            if frame.is_corrupt:
                self.damaged += 1
                yield Lost(frame.pts)
            else:
                yield frame
        if len(self._waiting) > MOST_WAITING:
            self._last = heapq.heappop(self._waiting)
            yield Lost(self._last)

    def _overtaken(self, pts: int | None) -> Iterator[Lost]:
        """Packets whose time has passed (None: all of them). Without an error they were meant to show nothing."""
        while self._waiting and (pts is None or self._waiting[0] <= pts):
            time = heapq.heappop(self._waiting)
            if time == pts or not (self._missing or self._owed):
                continue
            self._owed -= not self._missing
            if self._last is None or time > self._last:
                self._last = time
                yield Lost(time)
        if pts is not None:
            self._missing, self._last = False, pts

    def _time_of(self, frame: VideoFrame) -> int:
        if frame.pts is not None:
            return frame.pts
        rate = self.stream.average_rate or self.stream.guessed_rate or Fraction(25)
        tick = max(1, round(1 / (rate * (self.stream.time_base or Fraction(1, 90000)))))
        return 0 if self._last is None else self._last + tick
