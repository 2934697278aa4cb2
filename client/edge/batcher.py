"""Frames of several streams through one network: in the order of each stream, fair between them, bounded.

Every pass takes one frame from each stream that has any, so a stream that sends twice as fast is answered no faster
while others wait. The network works in a thread of its own; everything else happens in the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from client.anonymize.stream import MOST_FRAMES, StreamAnonymizer, StreamState
from client.video.decode import Frames

LOG = logging.getLogger("fedspact.edge")
FAILED = "failed"  # why a frame is black whose batch met an error


@dataclass(frozen=True)
class Answer:
    """One frame that may leave: ``uint8 (H, W, 3)``; ``black``: why it is, empty where it is anonymised."""

    frame_HWC: Frames
    black: str
    model_sha256: str


@dataclass
class _Waiting:
    frame_HWC: Frames | None
    answer: asyncio.Future[Answer]
    since: float


@dataclass(eq=False)
class Line:
    """One stream's place in the batcher: what it still waits for, and what the network needs of its past."""

    state: StreamState
    waiting: deque[_Waiting] = field(default_factory=deque)


@dataclass(frozen=True)
class Batch:
    """What one pass did, for the figures."""

    frames: int
    seconds: float
    longest_wait_seconds: float


class Batcher:
    """The one owner of the network.

    Args:
        anonymizer: it is called from one thread only, this object's own.
        model_sha256: of its weights' file; comes with every answer.
        on_batch: called in the event loop after every pass.
    """

    def __init__(
        self,
        anonymizer: StreamAnonymizer,
        model_sha256: str,
        on_batch: Callable[[Batch], object] = lambda _: None,
    ) -> None:
        self.anonymizer, self.model_sha256 = anonymizer, model_sha256
        self._on_batch = on_batch
        self._lines: deque[Line] = deque()
        self._next: tuple[StreamAnonymizer, str] | None = None
        self._work = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="anonymizer")

    @property
    def streams(self) -> int:
        """Streams being served now."""
        return len(self._lines)

    def join(self) -> Line:
        """A new stream, which has no past."""
        line = Line(self.anonymizer.open())
        self._lines.append(line)
        return line

    def leave(self, line: Line) -> None:
        """The stream is over, or its sender is gone: what it still waits for is forgotten."""
        if line in self._lines:
            self._lines.remove(line)
        for waiting in line.waiting:
            waiting.answer.cancel()
        line.waiting.clear()

    def put(self, line: Line, frame_HWC: Frames | None) -> asyncio.Future[Answer]:
        """Stand a frame in its stream's line (None: one that was lost). How long it may be is the caller's rule."""
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        line.waiting.append(_Waiting(frame_HWC, answer, time.monotonic()))
        self._work.set()
        return answer

    def swap(self, anonymizer: StreamAnonymizer, model_sha256: str) -> None:
        """Another model from the next pass on. Streams start anew with it: frames without a past are black."""
        self._next = (anonymizer, model_sha256)
        self._work.set()

    async def work(self) -> None:
        """Until cancelled."""
        try:
            while True:
                await self._work.wait()
                self._take_next_model()
                taken = self._pass()
                if taken:
                    await self._answer(taken)
                else:
                    self._work.clear()
        finally:
            self._thread.shutdown(wait=True)

    def _take_next_model(self) -> None:
        if self._next is None:
            return
        (self.anonymizer, self.model_sha256), self._next = self._next, None
        for line in self._lines:
            line.state = self.anonymizer.open()

    def _pass(self) -> list[tuple[Line, _Waiting]]:
        """One frame of each stream in turn, again and again until a batch is full. The next pass begins one later."""
        taken: list[tuple[Line, _Waiting]] = []
        self._lines.rotate(-1)
        while len(taken) < MOST_FRAMES:
            before = len(taken)
            for line in self._lines:
                if line.waiting and len(taken) < MOST_FRAMES:
                    taken.append((line, line.waiting.popleft()))
            if len(taken) == before:
                break
        return taken

    async def _answer(self, taken: list[tuple[Line, _Waiting]]) -> None:
        started = time.monotonic()
        given = await asyncio.get_running_loop().run_in_executor(self._thread, self._through, taken)
        for (_, waiting), answer in zip(taken, given, strict=True):
            if not waiting.answer.done():  # cancelled: nobody waits any more
                waiting.answer.set_result(answer)
        longest = max(started - waiting.since for _, waiting in taken)
        self._on_batch(Batch(len(taken), time.monotonic() - started, longest))

    def _through(self, taken: list[tuple[Line, _Waiting]]) -> list[Answer]:
        """In the network's thread. Whatever goes wrong, the answer is black and never what came in."""
        try:
            done = self.anonymizer.step([(line.state, waiting.frame_HWC) for line, waiting in taken])
        except Exception as error:
            LOG.error("a batch of %d frames failed: %s: %s", len(taken), type(error).__name__, error)
            for line, _ in taken:
                line.state.reset()
            return [Answer(self._black(waiting.frame_HWC), FAILED, self.model_sha256) for _, waiting in taken]
        return [Answer(one.frame_HWC, one.black or "", self.model_sha256) for one in done]

    def _black(self, frame_HWC: Frames | None) -> Frames:
        side = self.anonymizer.size_px
        return np.zeros((side, side, 3), np.uint8) if frame_HWC is None else np.zeros_like(frame_HWC)
