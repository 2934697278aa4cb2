"""A site's own folders: a folder per class, or a flat folder without labels. Also the walk that every tree shares.

Nothing is passed over in silence: what does not become a row becomes a notice with a reason.
"""

import os
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from client.video.rows import IMAGE_SUFFIXES, Row, absolute
from spact_models.errors import UserError

_VIDEO_SUFFIXES = """
    .3gp .asf .avi .divx .flv .m2ts .m4v .mjpeg .mjpg .mkv .mov .mp4 .mpeg .mpg .mts .mxf .ogv .ts .vob .webm .wmv
    """
VIDEO_SUFFIXES = frozenset(_VIDEO_SUFFIXES.split())
# Folders train/, val/, test/ above the class folders, as many published sets have them; also VISPR's train2017.
SPLIT_FOLDER = re.compile(r"(train|training|val|valid|validation|test|testing)(?:\d{4})?", re.IGNORECASE)


@dataclass(frozen=True)
class Notice:
    """A file that is no row (``kept`` False), or a row about which something is not known (``kept`` True)."""

    path: Path
    reason: str  # short and without the file's name, so that equal cases can be counted together
    kept: bool = False


@dataclass(frozen=True)
class Tree:
    """What was found below a folder."""

    rows: list[Row]
    notices: list[Notice]


def read_folders(root: Path) -> Tree:
    """``root/<class>/...`` -> rows with that action, at any depth below the class folder.

    Files directly in ``root`` are rows without an action (unlabelled). ``root/train/<class>/...`` and
    ``root/test/<class>/...`` also give the split when nothing but such folders holds files; val counts as train.
    """
    root = absolute(root)
    media, notices = media_below(root)
    parts = [path.relative_to(root).parts[:-1] for path in media]
    with_splits = bool(parts) and all(folders and SPLIT_FOLDER.fullmatch(folders[0]) for folders in parts)
    rows = []
    for path, folders in zip(media, parts, strict=True):
        split = split_of_folder(folders[0]) if with_splits else ""
        classes = folders[1:] if with_splits else folders
        rows.append(Row(path, action=classes[0] if classes else None, split=split))
    return Tree(rows, notices)


def read_flat(root: Path) -> Tree:
    """Every video and image below ``root``, without labels."""
    media, notices = media_below(root)
    return Tree([Row(path) for path in media], notices)


def split_of_folder(name: str) -> str:
    """train2017 -> train, val2017 -> train, test2017 -> test, anything else -> "".

    A validation folder joins training: the test side then stays exactly the published one.
    """
    if SPLIT_FOLDER.fullmatch(name) is None:
        return ""
    return "test" if name.lower().startswith("test") else "train"


def media_below(root: Path, leave: Collection[Path] = ()) -> tuple[list[Path], list[Notice]]:
    """Videos and images by suffix, sorted; a notice for everything else. ``leave``: folders of lists or labels."""
    files, notices = files_below(root, leave)
    media = [path for path in files if is_media(path)]
    return media, notices + not_media(path for path in files if not is_media(path))


def is_media(path: Path) -> bool:
    suffix = path.suffix.lower()
    return suffix in VIDEO_SUFFIXES or suffix in IMAGE_SUFFIXES


def not_media(paths: Iterable[Path]) -> list[Notice]:
    return [Notice(path, f"not a video or image ({path.suffix.lower() or 'no suffix'})") for path in paths]


def files_below(root: Path, leave: Collection[Path] = ()) -> tuple[list[Path], list[Notice]]:
    """Every ordinary file below ``root``, absolute and sorted.

    Links are followed, after everything that is no link, and each folder and file is taken once: under two names it
    could stand on both sides of a split. Notices name what is hidden, broken, doubled, special or closed to us. Raises
    UserError when ``root`` is no folder.
    """
    visited = {os.path.realpath(folder) for folder in leave}
    to_enter = [checked_folder(root, "folder")]  # the root, then the linked folders
    files: list[Path] = []
    notices: list[Notice] = []

    def closed(error: OSError) -> None:
        notices.append(Notice(Path(error.filename), f"cannot be opened ({error.strerror})"))

    with tqdm(desc="looking through folders", unit=" files", disable=None, leave=False) as bar:
        for start in to_enter:  # grows while it is walked
            if os.path.realpath(start) in visited:
                notices.append(Notice(start, "link to a folder already looked through"))
                continue
            for here, folders, names in os.walk(start, onerror=closed):
                folder = Path(here)
                visited.add(os.path.realpath(folder))
                folders[:], links = _folders_to_enter(folder, folders, visited, notices)
                to_enter += links
                files += _ordinary_files(folder, names, notices)
                bar.update(len(names))
    files = _each_once(sorted(files), notices)
    return files, sorted(notices, key=lambda notice: notice.path)


def checked_folder(folder: Path, what: str) -> Path:
    """The absolute folder; UserError when it is not there, is a file or is empty."""
    folder = absolute(folder)
    try:
        empty = next(folder.iterdir(), None) is None
    except FileNotFoundError as error:
        raise UserError(f"{what} = {str(folder)!r} does not exist; give the folder that holds the files") from error
    except NotADirectoryError as error:
        raise UserError(f"{what} = {str(folder)!r} is a file, must be a folder; give the folder around it") from error
    except OSError as error:
        raise UserError(f"{what} = {str(folder)!r} cannot be opened ({error.strerror}); allow yourself to") from error
    if empty:
        raise UserError(f"{what} = {str(folder)!r} is empty; give the folder that holds the files")
    return folder


def _folders_to_enter(
    folder: Path, names: Iterable[str], visited: Collection[str], notices: list[Notice]
) -> tuple[list[str], list[Path]]:
    """(names of folders, linked folders for later)."""
    enter: list[str] = []
    links: list[Path] = []
    for name in sorted(names):
        path = folder / name
        if name.startswith("."):
            notices.append(Notice(path, "hidden folder"))
        elif path.is_symlink():
            links.append(path)
        elif os.path.realpath(path) not in visited:
            enter.append(name)
    return enter, links


def _ordinary_files(folder: Path, names: Iterable[str], notices: list[Notice]) -> list[Path]:
    reasons = {folder / name: _why_not_a_file(folder / name) for name in names}
    notices += [Notice(path, reason) for path, reason in reasons.items() if reason]
    return [path for path, reason in reasons.items() if not reason]


def _each_once(files: Iterable[Path], notices: list[Notice]) -> list[Path]:
    """Without the links to a file that is listed by its own name or by an earlier link."""
    plain = [path for path in files if not path.is_symlink()]
    real_folder = {folder: os.path.realpath(folder) for folder in {path.parent for path in plain}}
    taken = {os.path.join(real_folder[path.parent], path.name) for path in plain}  # noqa: PTH118
    once = []
    for path in files:
        if path.is_symlink():
            target = os.path.realpath(path)
            if target in taken:
                notices.append(Notice(path, "link to a file already listed"))
                continue
            taken.add(target)
        once.append(path)
    return once


def _why_not_a_file(path: Path) -> str:
    """The reason why a directory entry cannot be a row, or ""."""
    if path.name.startswith("."):
        return "hidden file"
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        return "name is not valid UTF-8; rename it"
    try:
        if path.is_symlink() and not path.exists():
            return "broken link"
        return "" if path.is_file() else "not an ordinary file"
    except OSError as error:
        return f"cannot be opened ({error.strerror})"
