"""Files that are there whole or not at all, and words for those that cannot be written."""

from __future__ import annotations

import errno
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from spact_models.errors import UserError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FREE_SPACE = "free some space or "  # how a remedy begins that helps a full disk
OWNER_ALONE = 0o600
BY_UMASK = 0o666  # as any program makes a file: for whom the user's umask says


class UnwritableFile(UserError):
    """A file that could not be written. The message holds its path, which a site keeps to itself."""


def write_atomically(path: Path, write: Callable[[Path], object], mode: int = OWNER_ALONE) -> None:
    """Let ``write`` fill a temporary file beside ``path``, flush it to the disk, then rename it over ``path``.

    The folder is flushed too: after a power cut the new name is there when this has returned.

    Args:
        path: the file; its folder is made if it is not there.
        write: gets the temporary file, which is empty.
        mode: the new file's permissions; what the umask forbids is left out.

    Raises:
        OSError: it cannot be written; what was there before stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _flush_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_file(path: Path, content: str | bytes, remedy: str, flag: str = "", mode: int = OWNER_ALONE) -> None:
    """Write text (UTF-8) or bytes as :func:`write_atomically` does.

    Raises:
        UserError: text that is not valid UTF-8 (it names a file of such a name), or as of :func:`writing`.
    """
    try:
        data = content.encode("utf-8") if isinstance(content, str) else content
    except UnicodeEncodeError as error:
        wrong = str(error.object)[max(0, error.start - 40) : error.end]
        raise UserError(f"{path}: {wrong!r} is not valid UTF-8; rename that file") from error
    with writing(path, remedy, flag):
        write_atomically(path, lambda temporary: temporary.write_bytes(data), mode)


@contextmanager
def writing(path: Path, remedy: str, flag: str = "") -> Iterator[None]:
    """Turn the disk's errors into a sentence that names the file, the reason and the remedy.

    Args:
        path: the file that is written.
        remedy: what to do, in words; ``FREE_SPACE`` at its beginning is said of a full disk alone.
        flag: the option that named the file, if one did.

    Raises:
        UnwritableFile: the disk refuses the file.
    """
    try:
        yield
    except OSError as error:
        named = f"{flag} {path}" if flag else str(path)
        remedy = remedy if error.errno in DISK_FULL else remedy.removeprefix(FREE_SPACE)
        raise UnwritableFile(f"{named}: cannot be written ({error.strerror or error}); {remedy}") from error


def check_writable(path: Path, flag: str, example: str) -> None:
    """Before hours of work: whether a file can be made there.

    Args:
        path: the file; its folder is made if it is not there.
        flag: the option that names it, for the message.
        example: a name for it, for whoever has named a folder.

    Raises:
        UserError: a folder, a device or a pipe, or a place that cannot be written.
    """
    with writing(path, f"name another file with {flag}"):
        if path.is_dir():
            raise UserError(f"{path}: a folder, must be a file; name one in it, {flag} {path / example}")
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: a device or a pipe, must be an ordinary file; name another with {flag}")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"):
            pass


def _flush_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows opens no folder
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
