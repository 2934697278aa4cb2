"""``fedspact camera``: a camera, an address or a file through a service, into a video. Raw frames are never written."""

from __future__ import annotations

import argparse
import threading
import time
from collections import Counter, deque
from collections.abc import Generator, Iterator
from contextlib import closing
from fractions import Fraction
from pathlib import Path

from av.packet import Packet
from tqdm import tqdm

from client.anonymize.opening import without_secret
from client.anonymize.sink import Encoding, Sink
from client.anonymize.source import Source, Taken, open_source
from client.edge.caller import Caller
from client.edge.serving import read_token
from client.video.decode import Frames, UnreadableVideo
from spact_models.errors import UserError

AHEAD = 8  # frames of a live source that are under way; a newer one waits for no older one and is dropped
RETRY_SECONDS = 60.0  # an address that drops may come back so long
LEAVE_SECONDS = 5.0  # for a read that is under way when all is over; a silent camera's may take longer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``fedspact camera``."""
    add = parser.add_argument
    add("source", metavar="SOURCE", help="/dev/video0, rtsp://…, http://…, or a file")
    add("--server", required=True, metavar="HOST:PORT", help="where `fedspact serve` runs")
    add("-o", "--out", type=Path, required=True, metavar="FILE", help="the anonymized video")
    add("--ca", type=Path, metavar="PEM", help="the CA of the service's certificate (default: plain text)")
    add("--token-file", type=Path, metavar="FILE", help="the service's token")
    add("--height", type=int, metavar="PIXELS", help="of the output (default: the source's)")
    add("--seconds", type=float, metavar="N", help="stop after so many seconds of video (default: its end, or Ctrl-C)")
    add("--force", action="store_true", help="replace --out")


def run(args: argparse.Namespace) -> int:
    """Status 0 when every frame came back anonymised but those without a past; 1 when some were lost or spoiled.

    Raises:
        UserError: the output exists, or the source cannot be read.
    """
    if args.out.exists() and not args.force:
        raise UserError(f"-o {args.out}: exists; choose another name, or --force to replace it")
    if args.seconds is not None and args.seconds <= 0:
        raise UserError(f"--seconds {args.seconds:g}: must be above 0")
    token = None if args.token_file is None else read_token(args.token_file)
    with Caller(args.server, args.ca, token) as caller:
        side = caller.describe().working_px
        try:
            journey = Journey(open_source(args.source, size_px=side, retry_seconds=RETRY_SECONDS), args.seconds)
            journey.through(caller, args.out, Encoding(height=args.height))
        except UnreadableVideo as error:
            raise UserError(f"{without_secret(args.source)}: {error.reason}") from error
    print(journey.told(args.out))
    return 0 if journey.whole else 1


class Journey:
    """One source through the service: what is under way, and what became of it. It closes the source."""

    def __init__(self, source: Source, seconds: float | None) -> None:
        self.source, self.seconds = source, seconds
        self.under_way: deque[tuple[Fraction, Fraction | None]] = deque()  # appended by gRPC's thread
        self.done = self.lost = self.dropped = 0
        self.black: Counter[str] = Counter()  # by the service's reason
        self.error: Exception | None = None  # that ended the reading, in gRPC's thread
        self._over = threading.Event()
        self._reading = threading.Lock()  # held by whoever is in the source

    def through(self, caller: Caller, out: Path, encoding: Encoding) -> None:
        """Send, receive, write; the output gets its name when it is whole, also after Ctrl-C.

        Raises:
            UnreadableVideo: no frame of the source can be decoded.
            UserError: no frame came of it, or the output cannot be written.
            RunStopped: the service ended the stream.
        """
        sink: Sink | None = None
        frames = self._frames()
        try:
            with tqdm(desc="camera", unit="frame", disable=None) as bar:
                try:
                    with closing(caller.anonymize(self._until_over(frames))) as answers:
                        for answer in answers:
                            sink = sink or self._sink(out, encoding)
                            sink.write(answer.frame_HWC, *self.under_way.popleft())
                            self.done += 1
                            self.black.update([answer.black] if answer.black else [])
                            bar.update()
                except KeyboardInterrupt:
                    if sink is None:
                        raise
            if self.error is not None:
                raise self.error
            if sink is None:
                raise UserError(f"{self.source.shown}: no frame came of it")
            sink.close()
            sink.publish()
        finally:
            if sink is not None:
                sink.abort()
            self._leave(frames)

    @property
    def spoiled(self) -> Counter[str]:
        """Black frames that should not be, by reason: all but a stream's first, which have no past."""
        return Counter({reason: count for reason, count in self.black.items() if reason != "start"})

    @property
    def whole(self) -> bool:
        """Nothing was lost in the source or on the way, and nothing is black but the first frames."""
        return not (self.lost or self.spoiled or self.source.losses.cut_off)

    def told(self, out: Path) -> str:
        """One line of what was done."""
        parts = [f"{self.done} frames", f"{self.black.total()} of them black"]
        named = ", ".join(f"{reason}: {count}" for reason, count in self.spoiled.items())
        parts += [f"{self.spoiled.total()} of these spoiled ({named})"] * bool(self.spoiled)
        parts += [f"{self.lost} lost on the way"] * bool(self.lost)
        parts += [f"the source was cut off ({self.source.losses.cut_off})"] * bool(self.source.losses.cut_off)
        parts += [f"{self.dropped} not sent, because the service was behind"] * bool(self.dropped)
        return f"{out}: {', '.join(parts)}"

    def _sink(self, out: Path, encoding: Encoding) -> Sink:
        assert self.source.layout is not None  # known since the first frame
        return Sink(out, self.source.layout, encoding, live=self.source.live)

    def _until_over(self, frames: Generator[Frames | None, None, None]) -> Iterator[Frames | None]:
        """For gRPC's thread, which takes them until the call is over; then nobody enters the source any more."""
        while True:
            with self._reading:
                if self._over.is_set():
                    return
                try:
                    frame_HWC = next(frames)
                except StopIteration:
                    return
                except Exception as error:  # gRPC would only say that there was one
                    self.error = error
                    return
            yield frame_HWC

    def _leave(self, frames: Generator[Frames | None, None, None]) -> None:
        """Close the source once nobody reads in it: closed before, it would take the reader's memory away.

        A reader that a silent camera holds longer than a few seconds is left to close it, or to the process's end.
        """
        self._over.set()
        if self._reading.acquire(timeout=LEAVE_SECONDS):
            frames.close()
            self.source.close()  # also where no frame was ever asked for
            self._reading.release()

    def _frames(self) -> Generator[Frames | None, None, None]:
        began = time.monotonic()
        try:
            for event in self.source.events():
                if self._over.is_set():
                    return
                if isinstance(event, Packet):
                    continue  # sound stays here
                if self.seconds is not None and self._late(event, began):
                    return
                if self.source.live and len(self.under_way) >= AHEAD:
                    self.dropped += 1
                    continue
                self.lost += event.square_HWC is None
                self.under_way.append((event.time, event.seconds))
                yield event.square_HWC
        finally:
            self.source.close()

    def _late(self, event: Taken, began: float) -> bool:
        assert self.seconds is not None
        return time.monotonic() - began > self.seconds if self.source.live else float(event.time) >= self.seconds
