"""Decode once: every video as working-size frames in a folder of the site's own, memory-mapped.

One ``.npy`` file a video, ``uint8 (T, S, S, 3)``, written frame by frame (a long video never lies in memory whole)
under a temporary name, made durable, then renamed: what has an entry's name is complete. Two processes may use one
folder: at worst both decode the same video. An entry is named by hashes of the video's absolute path, its size and
modification time, the working size and this format's version; a changed video therefore has another entry, and its
old ones are removed. Files are readable by their owner alone: they are raw footage, only smaller.

The folder is kept below ``limit_gib``, the least recently used entries going first. It may be deleted at any time.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import threading
import time
import uuid
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from client.video.decode import (
    DECODER_THREADS,
    Frames,
    UnreadableVideo,
    check_file,
    decode_image,
    stream_square,
)
from client.video.rows import Row
from spact_models.errors import UserError
from spact_models.files import DISK_FULL

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1  # raise it when the same video would give other pixels
GIB = 2**30
LOOK_AGAIN = 0.02  # of the limit: written by one cache since it last listed the folder, where others may write too
EVICT_TO = 0.9  # evicting frees this much room at once, so that the folder is not listed for every new video
ABANDONED_SECONDS = 3600  # a temporary file not written to for so long belongs to a killed process
OPEN_ENTRIES = 4096  # memory maps held open; the kernel allows 65,530 a process


@dataclass(frozen=True)
class Unreadable:
    """A video that gives no frames, and why."""

    path: Path
    reason: str


class FrameCache:
    """The frames of videos and images at one working size, decoded on first use.

    Several caches of different sizes may share a folder; ``limit_gib`` bounds the folder. Safe to use from threads.

    Raises:
        UserError: ``limit_gib`` is not above 0, ``size_px`` below 1, or the folder cannot be made.
    """

    def __init__(self, folder: Path, size_px: int, limit_gib: float = 20.0) -> None:
        if not limit_gib > 0:
            raise UserError(f"cache limit_gib = {limit_gib}, must be above 0 (GiB of disk for decoded frames)")
        if size_px < 1:
            raise UserError(f"cache size_px = {size_px}, must be at least 1")
        self.folder = Path(folder)
        self.size_px = size_px
        self.limit_bytes = int(limit_gib * GIB)
        self._lock = threading.Lock()
        self._open_entries: OrderedDict[Path, Frames] = OrderedDict()
        with _disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            _remove_parts(self.folder, older_than_s=ABANDONED_SECONDS)
            self._bytes = self.size_bytes()
        self._written = 0  # since then
        self._evicted_ns = 0  # when the most recently used of the evicted entries was last used

    def frames(self, path: Path) -> Frames:
        """All frames of a video or image, ``uint8 (T, S, S, 3)``: a read-only memory map, decoded if need be.

        Raises:
            UnreadableVideo: the file is missing or gives no frames.
            UserError: the disk is full, or the limit too small for this video.
        """
        for _ in range(3):  # another process may evict or clear between writing and opening
            entry = self._ensure(path, DECODER_THREADS)
            frames = self._opened(entry)
            if frames is not None:
                return frames
        raise UserError(f"cache = {self.folder}, its files vanish as they are written; stop what clears the folder")

    def prepare(self, paths: Iterable[Path], workers: int, progress: bool) -> list[Unreadable]:
        """Decode all that is not there yet, ``workers`` at a time; returns the unreadable ones in the given order.

        Threads suffice: decoding and scaling run outside Python's lock.

        Raises:
            UserError: the disk is full, or the limit too small for one of the videos; nothing half-written stays.
        """
        distinct = list(dict.fromkeys(paths))
        started_ns = time.time_ns()
        threads = max(1, min(DECODER_THREADS, (os.cpu_count() or 1) // max(1, workers)))
        reasons: dict[Path, str] = {}
        with (
            tqdm(total=len(distinct), desc="decode", unit="video", disable=not progress) as bar,
            ThreadPoolExecutor(max(1, workers)) as pool,
        ):
            jobs = {pool.submit(self._ensure, path, threads): path for path in distinct}
            try:
                for job in as_completed(jobs):
                    try:
                        job.result()
                    except UnreadableVideo as error:
                        reasons[jobs[job]] = error.reason
                    bar.update()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        if self._evicted_ns >= started_ns:
            logger.warning(
                "cache limit = %.3g GiB holds less than these %d videos: some are decoded again in every epoch; "
                "raise the limit (cache_gib in site.yaml)",
                self.limit_bytes / GIB,
                len(distinct),
            )
        return [Unreadable(path, reasons[path]) for path in distinct if path in reasons]

    def size_bytes(self) -> int:
        """Bytes that the folder's entries take, of every working size."""
        return sum(status.st_size for _, status in _entries(self.folder))

    def clear(self) -> tuple[int, int]:
        """Delete every entry of every working size; returns how many files and bytes."""
        with self._lock:
            self._open_entries.clear()
            self._bytes = 0
        return _clear(self.folder)

    def _ensure(self, path: Path, threads: int) -> Path:
        """The entry of a video as it is now; marks it used, or writes it."""
        path = Path(path).absolute()
        try:
            status = path.stat()  # all that a hit costs; the decoder looks closer
        except OSError:
            status = check_file(path)  # says what is wrong with it
        entry = self._entry(path, status)
        try:
            now = time.time_ns()
            os.utime(entry, ns=(now, now))
        except FileNotFoundError:
            with self._lock:
                self._open_entries.pop(entry, None)
            self._write(path, entry, threads)
        return entry

    def _entry(self, path: Path, status: os.stat_result) -> Path:
        video = _digest(str(path))
        state = _digest(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\0{FORMAT_VERSION}")
        return self.folder / video[:2] / f"{video}-{state}-{self.size_px}.npy"

    def _opened(self, entry: Path) -> Frames | None:
        with self._lock:
            if entry in self._open_entries:
                self._open_entries.move_to_end(entry)
                return self._open_entries[entry]
        try:
            frames: Frames = np.load(entry, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):  # gone, or damaged on the disk: decoded again
            entry.unlink(missing_ok=True)
            return None
        with self._lock:
            self._open_entries[entry] = frames
            if len(self._open_entries) > OPEN_ENTRIES:
                self._open_entries.popitem(last=False)
        return frames

    def _write(self, path: Path, entry: Path, threads: int) -> None:
        is_image = Row(path).is_image
        source = iter(decode_image(path, self.size_px)) if is_image else stream_square(path, self.size_px, threads)
        part = entry.with_name(f"{uuid.uuid4().hex}.part")
        with _disk_errors(self.folder):
            entry.parent.mkdir(exist_ok=True, mode=0o700)
            try:
                handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
                with os.fdopen(handle, "wb", buffering=2**20) as file:
                    self._write_frames(path, file, source)
                with suppress(FileNotFoundError):  # cleared by another process meanwhile: the next look finds nothing
                    part.replace(entry)
            finally:
                part.unlink(missing_ok=True)
        for old in entry.parent.glob(f"{entry.name.split('-')[0]}-*.npy"):
            if old.name.split("-")[1] != entry.name.split("-")[1]:
                self._remove(old)
        self._keep_below_limit(entry)

    def _write_frames(self, path: Path, file: BinaryIO, source: Iterator[Frames]) -> None:
        """An ``.npy`` file of unknown length: the header is written again at the end (numpy leaves room in it)."""
        _write_header(file, 0, self.size_px)
        start = file.tell()
        count = 0
        for frame in source:
            count += 1
            if start + count * frame.nbytes > self.limit_bytes:
                raise UserError(
                    f"cache limit = {self.limit_bytes / GIB:.3g} GiB, {path} alone needs more; "
                    "raise the limit (cache_gib in site.yaml), lower clip.size_px or cut the video"
                )
            file.write(frame.data)
        file.seek(0)
        _write_header(file, count, self.size_px)
        assert file.tell() == start
        file.flush()
        os.fsync(file.fileno())  # or a power cut may leave a complete-looking entry full of zeros

    def _keep_below_limit(self, newest: Path) -> None:
        with self._lock, suppress(FileNotFoundError):
            size = newest.stat().st_size
            self._bytes += size
            self._written += size
            if self._bytes <= self.limit_bytes and self._written <= LOOK_AGAIN * self.limit_bytes:
                return
            self._written = 0
            entries = sorted(_entries(self.folder), key=lambda item: item[1].st_mtime_ns)
            self._bytes = sum(status.st_size for _, status in entries)
            if self._bytes <= self.limit_bytes:
                return
            for entry, status in entries:
                if self._bytes <= EVICT_TO * self.limit_bytes:
                    return
                if entry != newest:
                    self._bytes -= status.st_size
                    self._evicted_ns = max(self._evicted_ns, status.st_mtime_ns)
                    self._open_entries.pop(entry, None)
                    entry.unlink(missing_ok=True)

    def _remove(self, entry: Path) -> None:
        with self._lock, suppress(FileNotFoundError):
            self._open_entries.pop(entry, None)
            self._bytes -= entry.stat().st_size
            entry.unlink()


def check_share(unreadable: Sequence[Unreadable], total: int, limit_share: float) -> None:
    """Stop when more than ``limit_share`` (0 to 1) of ``total`` videos are unreadable.

    Raises:
        UserError: with every unreadable video and its reason, one a line.
    """
    if len(unreadable) <= limit_share * total:
        return
    lines = "".join(f"\n  {item.path}: {item.reason}" for item in unreadable)
    raise UserError(
        f"unreadable videos = {len(unreadable)} of {total} ({len(unreadable) / total:.1%}), at most {limit_share:.1%} "
        f"are allowed; mend them, take them out of the manifest or raise the share:{lines}"
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``fedspact cache clear|info --cache DIR``."""
    parser.add_argument("what", choices=("clear", "info"), help="clear: delete all decoded frames; info: count them")
    parser.add_argument("--cache", type=Path, required=True, metavar="DIR", help="the site's cache folder")


def run(args: argparse.Namespace) -> int:
    """The verb ``cache``. Deletes and counts only what this module has written."""
    if not args.cache.is_dir():
        raise UserError(f"--cache = {args.cache}, must be a folder that exists; take the one in site.yaml")
    if args.what == "clear":
        with _disk_errors(args.cache):
            files, size = _clear(args.cache)
        print(f"deleted {files} files, {size / GIB:.3f} GiB, from {args.cache}")
        return 0
    sizes = Counter[str]()
    counts = Counter[str]()
    for entry, status in _entries(args.cache):
        size_px = entry.stem.split("-")[2]
        sizes[size_px] += status.st_size
        counts[size_px] += 1
    print(f"{args.cache}: {counts.total()} videos, {sizes.total() / GIB:.3f} GiB")
    for size_px in sorted(counts, key=int):
        print(f"  {size_px} px: {counts[size_px]} videos, {sizes[size_px] / GIB:.3f} GiB")
    return 0


def _digest(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:32]


def _write_header(file: BinaryIO, frames: int, size_px: int) -> None:
    shape = (frames, size_px, size_px, 3)
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def _entries(folder: Path, pattern: str = "*-*-*.npy") -> Iterator[tuple[Path, os.stat_result]]:
    for path in folder.glob(f"[0-9a-f][0-9a-f]/{pattern}"):
        with suppress(FileNotFoundError):
            yield path, path.stat()


def _remove_parts(folder: Path, older_than_s: float) -> None:
    for part, status in _entries(folder, "*.part"):
        if time.time() - status.st_mtime >= older_than_s:
            part.unlink(missing_ok=True)


def _clear(folder: Path) -> tuple[int, int]:
    files = size = 0
    for path, status in [*_entries(folder), *_entries(folder, "*.part")]:
        path.unlink(missing_ok=True)
        files, size = files + 1, size + status.st_size
    return files, size


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """What the disk refuses, said as the user's to mend."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            raise UserError(
                f"cache = {folder}, the disk is full ({error.strerror}); free some space or choose another folder "
                "(--cache DIR; in a site's site.yaml: cache, or a lower cache_gib)"
            ) from error
        raise UserError(
            f"cache = {folder}, cannot be used ({error.strerror}); must be a folder that this user may write to"
        ) from error
