"""How many cameras one service holds: real processes, streams of 240p at a fixed rate, latency of every frame."""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from client.edge.caller import Caller
from spact_models.errors import RunStopped

HEIGHT, WIDTH, FPS = 240, 320, 15.0
LATE_SECONDS = 1 / 3  # a stream is held when hardly a frame takes longer: five frames at 15 a second


@dataclass
class _Camera:
    """One paced stream: when each frame was due, and how long after that its answer was there."""

    seconds: float
    due: list[float] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)

    def frames(self) -> Iterator[np.ndarray[Any, np.dtype[np.uint8]]]:
        rng = np.random.default_rng(0)
        pictures = rng.integers(0, 256, (8, HEIGHT, WIDTH, 3), dtype=np.uint8)
        began = time.monotonic()
        for number in range(round(self.seconds * FPS)):
            due = began + number / FPS
            time.sleep(max(0.0, due - time.monotonic()))
            self.due.append(due)
            yield pictures[number % len(pictures)]

    def play(self, caller: Caller) -> None:
        for answer in caller.anonymize(self.frames()):
            self.waited.append(time.monotonic() - self.due[answer.number])


def measure(model: Path, streams: int, seconds: float = 10.0) -> dict[str, Any]:
    """``streams`` cameras at once for so many seconds.

    Returns:
        p50 and p99 of the latency in milliseconds (from the moment a frame was due to its answer), frames a second
        answered over all streams, and whether the streams were held: 99 % of frames within a third of a second.

    Raises:
        RunStopped: the service did not start, or ended a stream.
    """
    words = [sys.executable, "-m", "fedspact", "serve", "--model", str(model), "--port", "0"]
    words += ["--max-streams", str(streams)]
    service = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    try:
        address = _address(service)
        cameras = [_Camera(seconds) for _ in range(streams)]
        began = time.monotonic()
        with Caller(address) as caller:
            threads = [threading.Thread(target=camera.play, args=(caller,)) for camera in cameras]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        took = time.monotonic() - began
    finally:
        service.terminate()
        service.wait()
    waited = sorted(one for camera in cameras for one in camera.waited)
    if len(waited) < streams * round(seconds * FPS):
        raise RunStopped(
            f"{len(waited)} answers to {streams * round(seconds * FPS)} frames; the service's log says why"
        )
    cuts = statistics.quantiles(waited, n=100)
    return {
        "streams": streams,
        "p50_ms": round(1000 * cuts[49], 1),
        "p99_ms": round(1000 * cuts[98], 1),
        "frames_per_second": round(len(waited) / took, 1),
        "held": cuts[98] <= LATE_SECONDS,
    }


def _address(service: subprocess.Popen[str]) -> str:
    assert service.stdout is not None
    for line in service.stdout:
        if found := re.search(r"serving .* at (\S+:\d+),", line):
            return found[1]
    raise RunStopped("the service did not start; its message stands above")
