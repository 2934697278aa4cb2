"""Videos as somebody delivered them: any tool's files, judged beside the anonymizer on the same rows."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from client.video.cache import FrameCache
from client.video.folders import VIDEO_SUFFIXES
from client.video.rows import SHOWN_EXAMPLES, Row
from spact_models.errors import UserError

PREFIX = "delivered "  # of the representation's name


def parse(words: Sequence[str], taken: Sequence[str]) -> dict[str, Path]:
    """``NAME=FOLDER`` of ``--delivered``, by the name of the representation.

    Raises:
        UserError: no name, a name twice, or no such folder.
    """
    found: dict[str, Path] = {}
    for word in words:
        name, sign, folder = word.partition("=")
        path = Path(folder).expanduser()
        if not (name.strip() and sign and folder):
            raise UserError(f"--delivered {word}: must be NAME=FOLDER, such as blurred=footage-blurred")
        if "," in name or PREFIX + name in found or name in taken:
            raise UserError(f"--delivered {word}: {name!r} is taken or holds a comma; choose another name")
        if not path.is_dir():
            raise UserError(f"--delivered {word}: {path} is no folder; name the one that holds the delivered videos")
        found[PREFIX + name] = path.resolve()
    return found


def delivered_rows(rows: Sequence[Row], folder: Path) -> list[Row]:
    """Each video's row with the path of what was delivered for it; still images are left out.

    A file is a row's when its path below ``folder``, without the suffix, is the end of the row's own path, with its
    suffix or without; of several the one with the longest path. So a mirrored tree fits whichever folder it mirrors.

    Raises:
        UserError: a video without a file, or one file for two videos.
    """
    files = _by_name(folder)
    chosen: list[Row] = []
    missing: list[Path] = []
    for row in rows:
        if row.is_image:
            continue
        if (found := _file_of(row.path, files)) is None:
            missing.append(row.path)
        else:
            chosen.append(replace(row, path=folder / found))
    if missing:
        named = ", ".join(str(path) for path in missing[:SHOWN_EXAMPLES])
        raise UserError(
            f"--delivered {folder}: nothing for {len(missing)} of {len(missing) + len(chosen)} videos ({named}"
            f"{', …' if len(missing) > SHOWN_EXAMPLES else ''}); files must bear their inputs' names"
        )
    path, count = Counter(row.path for row in chosen).most_common(1)[0] if chosen else (folder, 0)
    if count > 1:
        raise UserError(f"--delivered {folder}: {path} would stand for {count} videos; mirror the input's folders")
    return chosen


def check_readable(rows: Sequence[Row], cache: FrameCache, workers: int, progress: bool) -> None:
    """Decode what was delivered, before anything is judged. No row is left out: all are compared on the same videos.

    Raises:
        UserError: with every file that cannot be read and the reason, one a line.
    """
    bad = cache.prepare([row.path for row in rows], workers, progress)
    if bad:
        lines = "".join(f"\n  {one.path}: {one.reason}" for one in bad)
        raise UserError(
            f"--delivered: {len(bad)} of {len(rows)} files cannot be read; deliver them again, or take their videos "
            f"out of the manifest:{lines}"
        )


def _by_name(folder: Path) -> Mapping[str, Sequence[Path]]:
    """Files below ``folder`` by their name without suffix; the longest paths first."""
    found: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith(".") and path.is_file():
            found[path.stem].append(path.relative_to(folder))
    return {name: sorted(paths, key=lambda path: -len(path.parts)) for name, paths in found.items()}


def _file_of(video: Path, files: Mapping[str, Sequence[Path]]) -> Path | None:
    for name in (video.stem, video.name):
        for path in files.get(name, ()):
            above = path.parts[:-1]
            if not above or video.parent.parts[-len(above) :] == above:
                return path
    return None


def digest(rows: Sequence[Row]) -> str:
    """A name for these files as they are now: paths, sizes, times of change."""
    lines = sorted(f"{row.path}\0{(seen := row.path.stat()).st_size}\0{seen.st_mtime_ns}" for row in rows)
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
