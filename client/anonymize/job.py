"""One video from its source to its sink, and the account of it."""

from __future__ import annotations

import contextlib
import time as clock
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import av
import torch
from av.packet import Packet

from client.anonymize.flicker import Flicker
from client.anonymize.sidecar import sidecar_path, write_json
from client.anonymize.sink import Encoding, Sink
from client.anonymize.source import Source, Taken
from client.anonymize.stream import StreamAnonymizer
from client.video.decode import Frames
from spact_models import __version__

Progress = Callable[[Fraction, int], None]  # seconds of video done, frames done
Onlooker = Callable[[Frames, Frames], None]  # a raw picture and the anonymised square: for the preview


@dataclass(frozen=True)
class HowTo:
    """What is the same for every video of a command."""

    streams: StreamAnonymizer
    encoding: Encoding
    model: dict[str, Any]
    settings: dict[str, Any]  # those that change the output: a finished one with others is not taken as done
    batch: int = 16
    keep_audio: bool = False
    longest_seconds: float | None = None


@dataclass
class Account:
    """What became of one video."""

    frames: int = 0
    black: Counter[str] = field(default_factory=Counter)
    seconds: Fraction = Fraction(0)
    wall_seconds: float = 0.0
    flicker: Flicker = field(default_factory=Flicker)
    losses: dict[str, Any] = field(default_factory=dict)
    video: dict[str, Any] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """Nothing is black but the first frames, which have nothing before them, and nothing is missing."""
        lost = sum(count for reason, count in self.black.items() if reason != "start")
        return not lost and not any(self.losses.get(key) for key in ("damaged", "cut_off", "reconnects"))

    def told(self) -> dict[str, Any]:
        """For the sidecar."""
        rounded = {key: None if value is None else round(value, 5) for key, value in self._flicker().items()}
        return {
            "complete": self.whole,
            "frames": self.frames,
            "black_frames": {reason: self.black[reason] for reason in ("start", "lost", "after loss", "not finite")},
            "losses": self.losses,
            "video": self.video,
            "flicker": rounded | {"pairs": self.flicker.pairs},
            "machine": {
                "seconds": round(self.wall_seconds, 3),
                "times_real_time": round(float(self.seconds) / self.wall_seconds, 3) if self.wall_seconds else None,
                "versions": {"fedspact": __version__, "torch": torch.__version__, "av": av.__version__},
            },
        }

    def _flicker(self) -> dict[str, float | None]:
        meter = self.flicker
        return {"output": meter.level, "input": meter.input_level, "still_share": meter.still_share}


def anonymize_video(
    source: Source,
    target: Path | IO[bytes],
    how: HowTo,
    progress: Progress | None = None,
    onlooker: Onlooker | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Account:
    """Anonymise ``source`` into ``target`` (and, for a path, its sidecar): complete, or nothing under that name.

    ``stop`` is asked after every frame; once true the video ends there, in order.

    Raises:
        UserError: it cannot be written.
        UnreadableVideo: no frame of the source can be decoded.
    """
    began, work = clock.perf_counter(), _Work(source, target, how, Account(), progress, onlooker)
    try:
        with contextlib.closing(source.events()) as events:
            work.run(events, stop)
        work.finish(clock.perf_counter() - began)
    finally:
        source.close()
        if work.sink is not None:
            work.sink.abort()
    return work.account


@dataclass
class _Work:
    source: Source
    target: Path | IO[bytes]
    how: HowTo
    account: Account
    progress: Progress | None
    onlooker: Onlooker | None
    sink: Sink | None = None

    def run(self, events: Iterator[Taken | Packet[Any]], stop: Callable[[], bool]) -> None:
        self.state = self.how.streams.open()
        most = 1 if self.source.live else self.how.batch  # who watches a camera waits for no batch
        waiting: list[Taken] = []
        for event in events:
            sink = self._opened()
            if not isinstance(event, Taken):
                sink.copy(event)
                continue
            if stop() or (self.how.longest_seconds is not None and event.time >= self.how.longest_seconds):
                break
            waiting.append(event)
            if len(waiting) >= most:
                self._pass_on(waiting)
                waiting = []
        self._pass_on(waiting)

    def _opened(self) -> Sink:
        if self.sink is None:
            layout = self.source.layout
            assert layout is not None
            self.sink = Sink(self.target, layout, self.how.encoding, self.source.audio, self.source.live)
            shown = {"width": self.sink.width, "height": self.sink.height, "rate": str(layout.rate)}
            self.account.video = shown | {"input_width": layout.width, "input_height": layout.height}
        return self.sink

    def _pass_on(self, taken: list[Taken]) -> None:
        account, sink = self.account, self._opened()
        answers = self.how.streams.step([(self.state, one.square_HWC) for one in taken])
        for one, answer in zip(taken, answers, strict=True):
            sink.write(answer.frame_HWC, one.time, one.seconds)
            account.frames += 1
            account.seconds = one.time + (one.seconds or 0)
            if answer.black is not None or one.square_HWC is None:
                account.black[answer.black or "lost"] += 1
                account.flicker.interrupt()
            else:
                account.flicker.add(one.square_HWC, answer.frame_HWC)
            if self.onlooker is not None and one.picture_HWC is not None:
                self.onlooker(one.picture_HWC, answer.frame_HWC)
        if self.progress is not None:
            self.progress(account.seconds, len(taken))

    def finish(self, wall_seconds: float) -> None:
        """Close, tell, publish: in this order, so that no output stands without its sidecar."""
        account, sink = self.account, self._opened()
        account.wall_seconds, account.losses = wall_seconds, asdict(self.source.losses)
        sink.close()
        account.video |= {"seconds": round(float(account.seconds), 4), "retimed_frames": sink.retimed}
        if isinstance(self.target, Path) and sink.part is not None:
            given = Path(self.source.name)
            told = {
                "output": self.target.name,
                "output_bytes": sink.part.stat().st_size,
                "input": {"name": given.name, "bytes": given.stat().st_size} if given.is_file() else {"live": True},
                "model": self.how.model,
                "settings": self.how.settings,
                **account.told(),
            }
            write_json(sidecar_path(self.target), told)
        sink.publish()
