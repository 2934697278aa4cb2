"""HMDB51 in its published form: ``<class>/<name>.avi`` and the lists of ``testTrainMulti_7030_splits``.

Names hold spaces and odd characters (``#``, ``!``, ``[``, ``;``); they are taken as they are, never as patterns.
"""

import re
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath

from client.video.folders import Notice, Tree, checked_folder, media_below
from client.video.rows import Row, absolute
from client.video.ucf101 import Video, keep_listed, list_lines, once_each
from spact_models.errors import UserError

SPLITS_FOLDER = "testTrainMulti_7030_splits"
SIDES = {"1": "train", "2": "test", "0": "unused"}
# <recording>_<class>_<visible part>_<camera motion>_np<people>_<camera side>_<quality>_<clip>
CODES = r"_[a-z]_[a-z]{2}_np-?\d+_[a-z]{2}_[a-z]{3}_\d+"
NAME = re.compile(r".+" + CODES, re.DOTALL)
LIST_NAME = re.compile(r"(?P<action>.+)_test_split(?P<fold>[123])\.txt")


def read_hmdb51(root: Path, splits: Path | None = None, fold: int = 1) -> Tree:
    """Rows of the tree; with ``splits`` only the train and test videos of that fold.

    Unused videos (code 0) are left out with a notice: as undecided rows they would later be dealt out to a side. The
    source is the recording that the file's name begins with, where the name has the published form.

    Raises UserError: no class folders, a missing or malformed list, lists of which nothing is on disk.
    """
    videos, notices = videos_below(root, [splits] if splits else [])
    side_of = read_splits(splits, fold) if splits is not None else {}
    tree = rows_of(videos, side_of, root, splits, fold)
    return Tree(tree.rows, notices + tree.notices)


def videos_below(root: Path, leave: Collection[Path]) -> tuple[dict[Video, Path], list[Notice]]:
    """(class, name) -> path; files that lie in no class folder are left out with a notice."""
    media, notices = media_below(root, leave)
    top = absolute(root)
    in_class = [path for path in media if path.parent != top]
    notices += [Notice(path, "lies in no class folder") for path in media if path.parent == top]
    if not in_class:
        raise UserError(
            f"{root}: holds no video in a class folder (<class>/<name>.avi); give the folder of the classes"
        )
    videos, twice = once_each(in_class)
    return videos, notices + twice


def rows_of(
    videos: Mapping[Video, Path], side_of: Mapping[Video, str], root: Path, splits: Path | None, fold: int
) -> Tree:
    """Rows with their side; without ``splits`` every video, undecided."""
    if splits is None:
        return Tree([_row(path, "") for path in videos.values()], [])
    listed, notices = keep_listed(videos, side_of, root, splits)
    notices += [Notice(path, f"unused in fold {fold} (code 0)") for path, side in listed if side == "unused"]
    return Tree([_row(path, side) for path, side in listed if side != "unused"], notices)


def read_splits(splits: Path, fold: int) -> dict[Video, str]:
    """(class, name) -> "train" | "test" | "unused" of one fold (1, 2 or 3), from a list for each class."""
    splits = checked_folder(splits, "--splits")
    side_of: dict[Video, str] = {}
    for listing in sorted(splits.iterdir()):
        named = LIST_NAME.fullmatch(listing.name)
        if named is None or int(named["fold"]) != fold:
            continue
        for line, text in list_lines(listing):
            name, _, code = text.rpartition(" ")
            video = (named["action"], PurePosixPath(name.strip()).stem)
            if code not in SIDES or not name.strip():
                raise UserError(
                    f"{listing}: line {line}: {text!r}, must be <name>.avi and 1 (train), 2 (test) or 0 (unused)"
                )
            if video in side_of:
                raise UserError(f"{listing}: line {line}: {name.strip()!r} is listed twice; remove one of the lines")
            side_of[video] = SIDES[code]
    if not side_of:
        raise UserError(f"--splits = {str(splits)!r} holds no list of fold {fold} (<class>_test_split{fold}.txt)")
    return side_of


def recording(path: Path) -> str | None:
    """The recording a clip was cut from, or None where the name does not have the published form."""
    codes = re.search(f"_{re.escape(path.parent.name)}{CODES}$", path.stem, re.IGNORECASE)
    return path.stem[: codes.start()].strip() or None if codes else None


def _row(path: Path, side: str) -> Row:
    return Row(path, action=path.parent.name, split=side, source=recording(path))
