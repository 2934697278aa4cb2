"""Opening what frames come from: a file, a pipe, a camera, an address; each with errors for its owner."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

import av
from av.container import InputContainer

from client.video.decode import FORMATS, first_line, open_video
from spact_models.errors import UserError

PROTOCOLS = ("rtsp://", "rtsps://", "http://", "https://", "rtmp://", "srt://", "udp://", "tcp://")
# What an address may open in turn: the network and nothing of this machine.
NETWORK = "rtsp,rtsps,rtp,srtp,http,https,rtmp,srt,udp,tcp,tls,crypto,hls"
PATIENCE_SECONDS = 10.0  # without a byte from an address: it has dropped


def opener(name: str, pipe: IO[bytes] | None = None) -> Callable[[], InputContainer]:
    """What opens ``name``, and opens it again."""
    if is_address(name):
        return lambda: _open_address(name)
    if is_camera(name):
        return lambda: _open_camera(name)
    if name == "-":
        return lambda: _open_pipe(pipe or sys.stdin.buffer)
    return lambda: open_video(Path(name))


def is_address(name: str) -> bool:
    """A stream on the network."""
    return name.lower().startswith(PROTOCOLS)


def is_camera(name: str) -> bool:
    """A video device of this machine."""
    return name.startswith("/dev/")


def without_secret(name: str) -> str:
    """An address without user, password and what follows "?", which have no place on a screen or in a file.

    All up to the last "@" goes, also behind a "/": a password typed with one would show otherwise.
    """
    head, mark, rest = name.partition("://")
    if not mark or not is_address(name):
        return name
    return f"{head}://{re.split('[?#]', rest, maxsplit=1)[0].rpartition('@')[2]}"


def reason_of(error: Exception) -> str:
    """Why the system would not, in its words alone: an error's full text holds the address or path, secrets too."""
    return getattr(error, "strerror", None) or first_line(error)


def _open_address(name: str) -> InputContainer:
    options = {"protocol_whitelist": NETWORK, "format_whitelist": f"{FORMATS},rtsp,sdp,rtp,hls"}
    if name.lower().startswith("rtsp"):
        options["rtsp_transport"] = "tcp"  # lost datagrams are lost frames
    try:
        return av.open(name, options=options, timeout=PATIENCE_SECONDS)
    except (av.error.FFmpegError, OSError) as error:
        raise UserError(
            f"{without_secret(name)}: cannot be reached ({reason_of(error)}); see that the address is right and "
            "that the camera is on"
        ) from None


def _open_camera(name: str) -> InputContainer:
    path = Path(name)
    if not path.exists():
        found = ", ".join(sorted(str(one) for one in Path("/dev").glob("video*"))) or "none"
        raise UserError(f"{name}: no such camera; cameras of this machine: {found}")
    try:
        return av.open(name, format="v4l2", timeout=PATIENCE_SECONDS)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise UserError(
            f"{name}: cannot be opened as a camera ({first_line(error)}); see that no other program is using it"
        ) from None


def _open_pipe(pipe: IO[bytes]) -> InputContainer:
    try:
        return av.open(pipe, "r", options={"protocol_whitelist": "", "format_whitelist": FORMATS})
    except (av.error.FFmpegError, OSError) as error:
        raise UserError(
            f"standard input: not a video that can be read from a pipe ({first_line(error)}); an MP4 needs its index "
            "in front (ffmpeg: -movflags +faststart), Matroska and MPEG-TS always work"
        ) from None
