"""``--preview``: one HTML page that shows input and output together. It holds RAW video, and says so.

Input and output are one film, the raw picture left and the anonymized one right, so that no player can show them apart
by a frame; the page draws its two halves. The film is made in memory: raw video reaches the disk in the page alone.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from client.anonymize.job import Account
from client.anonymize.plan import Job
from client.anonymize.stream import resized
from client.video.decode import Frames
from client.video.encode import add_stream, close_quietly, to_yuv
from spact_models.errors import UserError
from spact_models.files import write_file

PICTURE_HEIGHT = 240  # of each half: enough to see whether a person is known, small enough for a page
MOST_FRAMES = 300  # of each video, its first ones: the page is for looking, not for keeping
MOST_VIDEOS = 24  # on one page: a browser holds all of them
FPS = 25  # the page steps by frames and plays evenly; the output file has the true times
CRF = 18  # visibly lossless: what is judged here is the anonymizer and not the codec


class Clip:
    """The film of one video, growing frame by frame in memory."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.frames = 0
        self.first = 0  # the first frame that is not black in the output: the page opens on it
        self._all_black = True
        self.size = (0, 0)  # height and width of a half
        self._file = io.BytesIO()
        self._container = av.open(self._file, "w", format="mp4")  # its index last: memory has no second reader
        self._stream: VideoStream | None = None
        self._scaler, self._stretcher = VideoReformatter(), VideoReformatter()

    def add(self, raw_HWC: Frames, seen_HWC: Frames) -> None:
        """A raw picture and what became of it (of any size: it is stretched to the raw one's). Late ones are left out.

        Raw pictures are ``uint8 (H, W, 3)``, all of one size.
        """
        if self.frames == MOST_FRAMES:
            return
        height, width = raw_HWC.shape[:2]
        both_HWC = np.concatenate([raw_HWC, resized(self._stretcher, seen_HWC, height, width)], axis=1)
        if self._stream is None:
            self.size = (height, width)
            self._stream = add_stream(self._container, both_HWC, FPS, CRF)
        picture = to_yuv(self._scaler, both_HWC)
        if self._all_black and seen_HWC.any():
            self.first, self._all_black = self.frames, False
        picture.pts, picture.time_base = self.frames, self._stream.codec_context.time_base
        self._container.mux(self._stream.encode(picture))
        self.frames += 1

    def finish(self) -> bytes:
        """The film as MP4."""
        if self._stream is not None:
            self._container.mux(self._stream.encode(None))
        self._container.close()
        return self._file.getvalue()

    def discard(self) -> None:
        """Of a video that was refused: nothing of it is shown."""
        close_quietly(self._container)


@dataclass(frozen=True)
class Shown:
    """One video on the page."""

    name: str
    film: str  # a data: address
    height: int
    width: int
    frames: int
    first: int  # on which the page opens
    all_frames: int
    black: int


@dataclass
class Gallery:
    """The page, filled while the command runs and written once at its end. An interrupted command leaves none."""

    path: Path
    shown: list[Shown] = field(default_factory=list)
    left_out: int = 0

    def clip(self, name: str) -> Clip | None:
        """For the next video; None when the page is full."""
        if len(self.shown) == MOST_VIDEOS:
            self.left_out += 1
            return None
        return Clip(name)

    def keep(self, clip: Clip, account: Account) -> None:
        """A video that was anonymized, with its film. One without a picture is not shown."""
        if not clip.frames:
            clip.discard()
            return
        film = "data:video/mp4;base64," + base64.b64encode(clip.finish()).decode()
        black = sum(account.black.values())
        self.shown.append(Shown(clip.name, film, *clip.size, clip.frames, clip.first, account.frames, black))

    def write(self, model: Mapping[str, Any]) -> bool:
        """The page under its name, whole; false where nothing was anonymized, and there is none.

        Raises:
            UserError: it cannot be written there.
        """
        if not self.shown:
            return False
        text = render(self.shown, self.left_out, model)
        write_file(self.path, text, "free some space or choose another place")
        return True


def open_gallery(jobs: Sequence[Job], out: str, force: bool) -> Gallery:
    """The page's place: ``clip.mp4.preview.html`` beside one file, ``preview.html`` in a folder.

    Raises:
        UserError: standard output, which has no place beside it, or a page that exists.
    """
    first = jobs[0].output
    if first is None:
        raise UserError("--preview: there is no place beside standard output; name a file with --out")
    single = len(jobs) == 1 and first == Path(out).expanduser()
    path = first.with_name(f"{first.name}.preview.html") if single else Path(out).expanduser() / "preview.html"
    if path.exists() and not force:
        raise UserError(f"{path}: exists; replace it with --force, or move it away")
    return Gallery(path)


def render(shown: Sequence[Shown], left_out: int, model: Mapping[str, Any]) -> str:
    """The page. Its policy lets it run its own script and load nothing."""
    read = {name: resources.files(__package__).joinpath(f"preview.{name}").read_text("utf-8") for name in _PARTS}
    script_hash = base64.b64encode(hashlib.sha256(read["js"].encode()).digest()).decode()
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(read["html.j2"]).render(
        shown=shown,
        left_out=left_out,
        model=model,
        fps=FPS,
        style=Markup(read["css"]),
        script=Markup(read["js"]),
        script_hash=script_hash,
    )


_PARTS = ("html.j2", "css", "js")
