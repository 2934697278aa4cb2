"""The mark of a drawn set: ``synthetic.json``, which names each of its videos with its SHA-256.

Raw pictures of a video that carries it may be shown, for they show nobody. A file without a hash would not do: real
footage put into the folder of a drawn set must not pass for drawn.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from spact_models.files import write_atomically

MARK = "synthetic.json"  # in the folder of a set, beside its manifest
FORMAT, FORMAT_VERSION = "fedspact-synthetic", 1


def write_mark(folder: Path, digests: Mapping[Path, str]) -> None:
    """Mark a set; ``digests``: the SHA-256 of each of its videos, all of which lie below ``folder``.

    Raises:
        OSError: it cannot be written.
    """
    videos = {path.relative_to(folder).as_posix(): digest for path, digest in digests.items()}
    text = json.dumps({"format": FORMAT, "format_version": FORMAT_VERSION, "videos": videos}, indent=1) + "\n"
    write_atomically(folder / MARK, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def is_marked(video: Path) -> bool:
    """Whether a mark above the file that ``video`` leads to names it with its present content; in doubt it is not."""
    try:
        video = video.resolve(strict=True)
        listed = {_listed(folder / MARK, video) for folder in video.parents if (folder / MARK).is_file()} - {None}
        return bool(listed) and sha256(video) in listed
    except (OSError, RuntimeError):  # gone, unreadable, or a link in a circle
        return False


def sha256(path: Path) -> str:
    """Of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _listed(mark: Path, video: Path) -> str | None:
    """The hash that a mark gives a video; None: it gives none, or is damaged."""
    try:
        told = json.loads(mark.read_text(encoding="utf-8"))
        if told["format"] != FORMAT or told["format_version"] != FORMAT_VERSION:
            return None
        return str(told["videos"][video.relative_to(mark.parent).as_posix()])
    except (OSError, ValueError, KeyError, TypeError):
        return None
