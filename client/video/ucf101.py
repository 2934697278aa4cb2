"""UCF101 in its published form: ``<Class>/v_<Class>_gGG_cCC.avi`` and the lists of ``ucfTrainTestlist``.

Re-encoded copies are taken too: a listed ``x.avi`` is found as ``x.mp4``.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath

from client.video.folders import Notice, Tree, checked_folder, media_below
from client.video.rows import Row, absolute
from spact_models.errors import UserError

NAME = re.compile(r"v_(?P<action>.+)_(?P<group>g\d{2})_c\d{2}")
SPLITS_FOLDER = "ucfTrainTestlist"
NOT_LISTED = "on disk, not in the split"
NOT_ON_DISK = "listed in the split, not on disk"

Video = tuple[str, str]  # (class folder, file name without suffix)


def read_ucf101(root: Path, splits: Path | None = None, fold: int = 1) -> Tree:
    """Rows of the tree; with ``splits`` only the videos of that fold, each with its side.

    The action is the folder (names of one class spell it differently: HandstandPushups/v_HandStandPushups_...). The
    source is class and group, ``Archery_g07``: a group is the same people and place, numbered anew in each class.

    Raises UserError: no such videos, a missing or malformed list, a class that classInd.txt does not know, a video
    listed twice, lists of which nothing is on disk.
    """
    videos, notices = _videos(root, [splits] if splits else [])
    if splits is None:
        return Tree([_row(path, "") for path in videos.values()], notices)
    side_of = read_splits(splits, fold)
    rows, split_notices = keep_listed(videos, side_of, root, splits)
    return Tree([_row(path, side) for path, side in rows], notices + split_notices)


def read_splits(splits: Path, fold: int) -> dict[Video, str]:
    """(class, name) -> "train" | "test" of one fold (1, 2 or 3)."""
    splits = checked_folder(splits, "--splits")
    number_of = dict(_class_numbers(splits / "classInd.txt"))
    side_of: dict[Video, str] = {}
    for side in ("train", "test"):
        listing = splits / f"{side}list{fold:02d}.txt"
        for line, text in list_lines(listing):
            path, number = text, None
            if side == "train":
                path, _, number = text.rpartition(" ")
            where = f"{listing}: line {line}"
            video = PurePosixPath(path.strip())
            if len(video.parts) != 2 or not video.suffix:
                raise UserError(f"{where}: {text!r}, must be <Class>/<name>.avi{' <number>' if number else ''}")
            action = video.parts[0]
            if action not in number_of or number not in (None, number_of[action]):
                raise UserError(f"{where}: {text!r} does not agree with classInd.txt; take both from one download")
            if (action, video.stem) in side_of:
                raise UserError(f"{where}: {path.strip()!r} is listed twice in fold {fold}; remove one of the lines")
            side_of[action, video.stem] = side
    return side_of


def keep_listed(
    videos: Mapping[Video, Path], side_of: Mapping[Video, str], root: Path, splits: Path
) -> tuple[list[tuple[Path, str]], list[Notice]]:
    """Videos that are on disk and listed, with their side; a notice for each that is only one of the two."""
    rows = [(path, side_of[video]) for video, path in videos.items() if video in side_of]
    if not rows:
        raise UserError(
            f"--splits = {str(splits)!r} lists {len(side_of)} videos and none of them lies below {str(root)!r}; "
            "give the split files of this data set"
        )
    notices = [Notice(path, NOT_LISTED) for video, path in videos.items() if video not in side_of]
    notices += [
        Notice(absolute(root) / action / f"{name}.avi", NOT_ON_DISK)
        for action, name in side_of
        if (action, name) not in videos
    ]
    return rows, notices


def list_lines(listing: Path) -> Iterator[tuple[int, str]]:
    """(line number, text without spaces around it), empty lines left out. The published lists end lines in CR LF."""
    try:
        text = listing.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(
            f"{listing}: cannot be read ({error.strerror}); give the folder of the official lists"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{listing}: not UTF-8 text; take the list as it was published") from error
    for line, content in enumerate(text.split("\n"), start=1):
        if content.strip():
            yield line, content.strip()


def once_each(media: list[Path]) -> tuple[dict[Video, Path], list[Notice]]:
    """(class folder, name) -> path; a second file of the same class and name is left out with a notice."""
    videos: dict[Video, Path] = {}
    for path in media:
        videos.setdefault((path.parent.name, path.stem), path)
    taken = set(videos.values())
    return videos, [Notice(path, "same class and name as another file") for path in media if path not in taken]


def _videos(root: Path, leave: Collection[Path]) -> tuple[dict[Video, Path], list[Notice]]:
    media, notices = media_below(root, leave)
    named = [path for path in media if NAME.fullmatch(path.stem)]
    notices += [Notice(path, "name is not v_<Class>_gGG_cCC") for path in media if not NAME.fullmatch(path.stem)]
    if not named:
        raise UserError(
            f"{root}: holds no UCF101 video (<Class>/v_<Class>_gGG_cCC.avi); "
            "give the folder UCF-101, or --format folders for a folder per class"
        )
    videos, twice = once_each(named)
    return videos, notices + twice


def _row(path: Path, side: str) -> Row:
    name = NAME.fullmatch(path.stem)
    assert name is not None  # _videos lets no other name through
    action = path.parent.name
    return Row(path, action=action, split=side, source=f"{action}_{name['group']}")


def _class_numbers(listing: Path) -> Iterator[tuple[str, str]]:
    for line, text in list_lines(listing):
        number, _, action = text.partition(" ")
        if not number.isdigit() or not action:
            raise UserError(f"{listing}: line {line}: {text!r}, must be <number> <Class>")
        yield action.strip(), number
