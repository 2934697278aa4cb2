"""``fedspact camera``: a camera, an address or a file through a service, into a video. Raw frames are never written."""

from __future__ import annotations

import argparse
import time
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

from av.packet import Packet
from tqdm import tqdm

from client.anonymize.sink import Encoding, Sink
from client.anonymize.source import Source, Taken, open_source
from client.edge.caller import Caller
from client.edge.serving import read_token
from client.video.decode import Frames
from spact_models.errors import UserError

AHEAD = 8  # frames of a live source that are under way; a newer one waits for no older one and is dropped
RETRY_SECONDS = 60.0  # an address that drops may come back so long


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
    """Status 0 when every frame came back anonymised but those without a past; 1 when some were lost on the way."""
    if args.out.exists() and not args.force:
        raise UserError(f"-o {args.out}: exists; choose another name, or --force to replace it")
    if args.seconds is not None and args.seconds <= 0:
        raise UserError(f"--seconds {args.seconds:g}: must be above 0")
    token = None if args.token_file is None else read_token(args.token_file)
    with Caller(args.server, args.ca, token) as caller:
        side = caller.describe().working_px
        source = open_source(args.source, size_px=side, retry_seconds=RETRY_SECONDS)
        journey = Journey(source, args.seconds)
        try:
            journey.through(caller, args.out, Encoding(height=args.height))
        finally:
            source.close()
    print(journey.told(args.out))
    return 1 if journey.lost else 0


class Journey:
    """One source through the service: what is under way, and what became of it."""

    def __init__(self, source: Source, seconds: float | None) -> None:
        self.source, self.seconds = source, seconds
        self.under_way: deque[tuple[Fraction, Fraction | None]] = deque()  # appended by gRPC's thread
        self.done = self.black = self.lost = self.dropped = 0

    def through(self, caller: Caller, out: Path, encoding: Encoding) -> None:
        """Send, receive, write; the output gets its name when it is whole, also after Ctrl-C."""
        sink: Sink | None = None
        try:
            with tqdm(desc="camera", unit="frame", disable=None) as bar:
                try:
                    for answer in caller.anonymize(self._frames()):
                        sink = sink or self._sink(out, encoding)
                        sink.write(answer.frame_HWC, *self.under_way.popleft())
                        self.done += 1
                        self.black += bool(answer.black)
                        bar.update()
                except KeyboardInterrupt:
                    if sink is None:
                        raise
            if sink is None:
                raise UserError(f"{self.source.name}: no frame came of it")
            sink.close()
            sink.publish()
        finally:
            if sink is not None:
                sink.abort()

    def told(self, out: Path) -> str:
        """One line of what was done."""
        parts = [f"{self.done} frames", f"{self.black} of them black"]
        parts += [f"{self.lost} lost on the way"] * bool(self.lost)
        parts += [f"{self.dropped} not sent, because the service was behind"] * bool(self.dropped)
        return f"{out}: {', '.join(parts)}"

    def _sink(self, out: Path, encoding: Encoding) -> Sink:
        assert self.source.layout is not None  # known since the first frame
        return Sink(out, self.source.layout, encoding, live=self.source.live)

    def _frames(self) -> Iterator[Frames | None]:
        began = time.monotonic()
        for event in self.source.events():
            if isinstance(event, Packet):
                continue  # sound stays here
            if self.seconds is not None and self._over(event, began):
                return
            if self.source.live and len(self.under_way) >= AHEAD:
                self.dropped += 1
                continue
            self.lost += event.square_HWC is None
            self.under_way.append((event.time, event.seconds))
            yield event.square_HWC

    def _over(self, event: Taken, began: float) -> bool:
        assert self.seconds is not None
        return time.monotonic() - began > self.seconds if self.source.live else float(event.time) >= self.seconds
