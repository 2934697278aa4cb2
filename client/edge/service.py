"""The gRPC service: admits streams, checks frames, keeps their order, ends them cleanly."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import grpc
import numpy as np

from client.edge.anonymizer_pb2 import AnonymizedFrame, DescribeRequest, Description, Frame
from client.edge.anonymizer_pb2_grpc import AnonymizerServicer
from client.edge.batcher import Answer, Batcher
from client.edge.figures import Figures
from client.video.decode import Frames
from spact_models import __version__

STOPPING = "the service is stopping; frames taken were answered"


@dataclass(frozen=True)
class Limits:
    """What the service holds at most: ``streams × frames_ahead`` frames of ``max_pixels`` each."""

    streams: int = 16
    frames_ahead: int = 8  # of one stream that are read before the first of them is answered
    max_pixels: int = 1920 * 1080

    @property
    def message_bytes(self) -> int:
        """The largest message: a frame and its few numbers."""
        return 3 * self.max_pixels + 4096


class BadFrame(Exception):
    """A frame that is not what it says it is; the text is for its sender."""


@dataclass(frozen=True)
class _Owed:
    number: int
    answer: asyncio.Future[Answer]


class Service(AnonymizerServicer):
    """The methods of anonymizer.proto."""

    def __init__(self, batcher: Batcher, limits: Limits, figures: Figures) -> None:
        self._batcher, self._limits, self._figures = batcher, limits, figures
        self.stopping = asyncio.Event()
        self.taken = self.answered = (
            0  # frames; they differ by those whose sender went, or that were cut off at the end
        )

    async def Describe(
        self,
        request: DescribeRequest,  # noqa: ARG002
        context: grpc.aio.ServicerContext,  # noqa: ARG002
    ) -> Description:
        """What runs here."""
        model = self._batcher.anonymizer
        return Description(
            model_sha256=self._batcher.model_sha256,
            working_px=model.size_px,
            history_frames=model.history,
            stride_frames=model.stride,
            streams=self._batcher.streams,
            max_streams=self._limits.streams,
            version=__version__,
        )

    async def Anonymize(
        self, requests: AsyncIterator[Frame], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[AnonymizedFrame]:
        """One camera's stream."""
        await self._admit(context)
        line = self._batcher.join()
        self._figures.streams.set(self._batcher.streams)
        owed: asyncio.Queue[_Owed | BadFrame | None] = asyncio.Queue(self._limits.frames_ahead)

        async def read() -> None:
            """Take frames while there is room; the end, or what is wrong, stands in the line like a frame."""
            end: BadFrame | None = None
            try:
                async for frame in _until(requests, self.stopping):
                    answer = self._batcher.put(line, self._checked(frame))
                    self.taken += 1
                    await owed.put(_Owed(frame.number, answer))
            except BadFrame as error:
                end = error
            await owed.put(end)

        reader = asyncio.create_task(read())
        try:
            while isinstance(due := await owed.get(), _Owed):
                yield self._told(due.number, await due.answer)
                self.answered += 1
            if due is not None:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(due))
            await reader  # an error of its own is this stream's error
            if self.stopping.is_set():
                await context.abort(grpc.StatusCode.UNAVAILABLE, STOPPING)
        finally:  # also when the sender is gone or its deadline is over
            reader.cancel()
            self._batcher.leave(line)
            self._figures.streams.set(self._batcher.streams)
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await reader

    async def _admit(self, context: grpc.aio.ServicerContext) -> None:
        if self.stopping.is_set():
            await context.abort(grpc.StatusCode.UNAVAILABLE, STOPPING)
        if self._batcher.streams >= self._limits.streams:
            self._figures.refused.inc()
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{self._batcher.streams} streams are being served, --max-streams = {self._limits.streams}; "
                "try again later",
            )

    def _checked(self, frame: Frame) -> Frames | None:
        """The frame's pixels, without a copy; None for a lost one.

        Raises:
            BadFrame: size or bytes do not fit together, or the frame is larger than is served.
        """
        if frame.lost:
            return None
        height, width = frame.height, frame.width
        if not (height and width):
            raise BadFrame(f"frame {frame.number} is {height}×{width}, must be at least 1×1")
        if height * width > self._limits.max_pixels:
            raise BadFrame(
                f"frame {frame.number} is {height}×{width}, must have at most {self._limits.max_pixels} pixels "
                "(--max-pixels); send it smaller, the network sees a small square anyhow"
            )
        if len(frame.rgb) != 3 * height * width:
            raise BadFrame(
                f"frame {frame.number} has {len(frame.rgb)} bytes, must be {3 * height * width} (height × width × 3, "
                "8-bit RGB)"
            )
        return np.frombuffer(frame.rgb, np.uint8).reshape(height, width, 3)

    def _told(self, number: int, answer: Answer) -> AnonymizedFrame:
        self._figures.frames.labels(answer.black or "anonymized").inc()
        height, width = answer.frame_HWC.shape[:2]
        return AnonymizedFrame(
            number=number,
            height=height,
            width=width,
            rgb=answer.frame_HWC.tobytes(),
            black=answer.black,
            model_sha256=answer.model_sha256,
        )


async def _until(frames: AsyncIterator[Frame], stop: asyncio.Event) -> AsyncIterator[Frame]:
    """The frames, until their sender ends or ``stop`` is set."""
    stopped = asyncio.create_task(stop.wait())
    try:
        while True:
            coming = asyncio.ensure_future(anext(frames, None))
            try:
                await asyncio.wait({coming, stopped}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                if not coming.done():
                    coming.cancel()
            if not coming.done() or coming.cancelled() or (frame := coming.result()) is None:
                return
            yield frame
    finally:
        stopped.cancel()


class TokenGate(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpcio has no types
    """Lets in who shows the token; health checks, which tell nothing of anybody, need none."""

    OPEN = "/grpc.health.v1.Health/"

    def __init__(self, token: str) -> None:
        self._wanted = f"Bearer {token}".encode()

        async def turn_away(request: object, context: grpc.aio.ServicerContext) -> None:  # noqa: ARG001
            await context.abort(
                grpc.StatusCode.UNAUTHENTICATED, "the token is missing or wrong; send authorization: Bearer TOKEN"
            )

        self._turn_away = grpc.unary_unary_rpc_method_handler(turn_away)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        """The method asked for, or the one that turns away."""
        shown = dict(details.invocation_metadata or ()).get("authorization", "")
        shown = shown if isinstance(shown, bytes) else shown.encode()
        if details.method.startswith(self.OPEN) or hmac.compare_digest(shown, self._wanted):
            return await continuation(details)
        return self._turn_away
