"""The service's other side: send a stream of frames, get it back anonymised. Used by ``fedspact camera``."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np

from client.edge.anonymizer_pb2 import AnonymizedFrame, DescribeRequest, Description, Frame
from client.edge.anonymizer_pb2_grpc import AnonymizerStub
from client.video.decode import Frames
from spact_models.errors import RunStopped, UserError

UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]  # the service has limits


@dataclass(frozen=True)
class Returned:
    """An answer: ``uint8 (H, W, 3)``, and why it is black (empty: it is anonymised)."""

    number: int
    frame_HWC: Frames
    black: str
    model_sha256: str


class Caller:
    """A connection to one service. Close it, or use it in a ``with``.

    Args:
        address: ``host:port``.
        ca: the CA's certificate, PEM; None: plain text.
        token: as the service wants it.

    Raises:
        UserError: the CA's file cannot be read.
    """

    def __init__(self, address: str, ca: Path | None = None, token: str | None = None) -> None:
        self.address = address
        self._metadata = [("authorization", f"Bearer {token}")] if token else []
        if ca is None:
            self._channel = grpc.insecure_channel(address, UNLIMITED)
        else:
            try:
                roots = ca.read_bytes()
            except OSError as error:
                raise UserError(f"--ca {ca}: cannot be read ({error.strerror})") from None
            self._channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(roots), UNLIMITED)
        self._stub = AnonymizerStub(self._channel)  # type: ignore[no-untyped-call]

    def describe(self, timeout_seconds: float = 10.0) -> Description:
        """What runs there.

        Raises:
            UserError: nobody answers, or the token is not the right one.
        """
        try:
            told: Description = self._stub.Describe(DescribeRequest(), timeout=timeout_seconds, metadata=self._metadata)
        except grpc.RpcError as error:
            raise UserError(f"--server {self.address}: {_refused(error, self.address)}") from None
        return told

    def anonymize(
        self, frames: Iterable[Frames | None], timeout_seconds: float | None = None
    ) -> Generator[Returned, None, None]:
        """One stream: answers in the order of the frames (None: one that was lost). Ends when ``frames`` ends.

        Raises:
            RunStopped: the service ended the stream; the text says why.
        """
        answers: Iterator[AnonymizedFrame] = self._stub.Anonymize(
            (_packed(number, frame_HWC) for number, frame_HWC in enumerate(frames)),
            timeout=timeout_seconds,
            metadata=self._metadata,
        )
        try:
            for answer in answers:
                pixels = np.frombuffer(answer.rgb, np.uint8).reshape(answer.height, answer.width, 3)
                yield Returned(answer.number, pixels, answer.black, answer.model_sha256)
        except grpc.RpcError as error:
            raise RunStopped(f"{self.address}: {_said(error)}") from None
        finally:
            answers.cancel()  # type: ignore[attr-defined]  # a call is an iterator and more

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _packed(number: int, frame_HWC: Frames | None) -> Frame:
    if frame_HWC is None:
        return Frame(number=number, lost=True)
    height, width = frame_HWC.shape[:2]
    return Frame(number=number, height=height, width=width, rgb=np.ascontiguousarray(frame_HWC).tobytes())


def _refused(error: grpc.RpcError, address: str) -> str:
    """Of a first call, in words where the reason is plain."""
    if error.code() == grpc.StatusCode.UNAVAILABLE and "Connection refused" in (error.details() or ""):
        return f"nothing listens at {address}; is `fedspact serve` up, and is this its --port?"
    return _said(error)


def _said(error: grpc.RpcError) -> str:
    code: grpc.StatusCode = error.code()
    return f"{code.name}: {error.details()}"
