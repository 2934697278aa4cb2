"""PA-HMDB51: HMDB51 videos and, in ``PrivacyAttributes/<class>.json``, five private attributes by spans of frames.

``{"<name>.avi": {"face": [[first, last, value], ...], "gender": ..., "review": true, "note": ""}}``; spans include
their last frame, 0 is absent or unidentifiable, and a value may be a list: ``[1, 2]`` is both at once. The labels are
for non-commercial research and must not be passed on.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from client.video.folders import Notice, Tree, checked_folder
from client.video.hmdb51 import read_splits, rows_of, videos_below
from client.video.rows import Row, absolute
from client.video.ucf101 import Video
from spact_models.errors import UserError

LABELS_FOLDER = "PrivacyAttributes"
ATTRIBUTES = ("face", "gender", "skin_color", "nudity", "relationship")


def read_pa_hmdb51(root: Path, labels: Path | None = None, splits: Path | None = None, fold: int = 1) -> Tree:
    """Rows of the labelled videos, a column for each attribute; with ``splits`` (HMDB51's) only those of that fold.

    ``labels`` is the folder PrivacyAttributes, by default the one in ``root``. HMDB51 videos without labels are left
    out with a notice. An attribute that is missing or malformed is left unknown, with a notice.

    Raises UserError: no label files, a file that is not JSON of this form, no labelled video on disk.
    """
    labels = checked_folder(labels or root / LABELS_FOLDER, "--labels")
    spans_of = read_labels(labels)
    videos, notices = videos_below(root, [labels, *([splits] if splits else [])])
    labelled = {video: path for video, path in videos.items() if video in spans_of}
    if not labelled:
        raise UserError(
            f"--labels = {str(labels)!r} labels no video below {str(root)!r}; give the HMDB51 class folders"
        )
    notices += [Notice(path, "no PA-HMDB51 label") for video, path in videos.items() if video not in spans_of]
    notices += [
        Notice(absolute(root) / action / f"{name}.avi", "labelled, not on disk")
        for action, name in spans_of
        if (action, name) not in videos
    ]
    side_of = read_splits(splits, fold) if splits is not None else {}
    # HMDB51's lists name 6,766 videos; only the labelled ones that are here can be in or out of the split.
    tree = rows_of(labelled, {video: side for video, side in side_of.items() if video in labelled}, root, splits, fold)
    rows = [_with_attributes(row, spans_of[row.path.parent.name, row.path.stem], notices) for row in tree.rows]
    return Tree(rows, notices + tree.notices)


def read_labels(labels: Path) -> dict[Video, dict[str, Any]]:
    """(class, name) -> the video's labels as published."""
    spans_of: dict[Video, dict[str, Any]] = {}
    for file in sorted(labels.glob("*.json")):
        try:
            content = json.loads(file.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError) as error:
            raise UserError(f"{file}: cannot be read as JSON ({error}); take the file as it was published") from error
        if not isinstance(content, dict) or not all(isinstance(spans, dict) for spans in content.values()):
            raise UserError(f'{file}: must map "<name>.avi" to its attributes; take the file as it was published')
        spans_of |= {(file.stem, PurePosixPath(name).stem): spans for name, spans in content.items()}
    if not spans_of:
        raise UserError(f"--labels = {str(labels)!r} holds no labels (<class>.json); give the folder {LABELS_FOLDER}")
    return spans_of


def video_value(spans: Sequence[tuple[int, int, int | Sequence[int]]]) -> str:
    """One value for a whole video: of the values other than 0, the one that covers the most frames; 0 if there is none.

    What is seen for a moment is seen, and "unidentifiable here" does not undo "identified there": so 0 counts only
    when it is all there is. Of equals the larger wins, since larger means more visible for face and nudity. A list is
    a value of its own, written ``1+2``.
    """
    frames: Counter[tuple[int, ...]] = Counter()
    for first, last, value in spans:
        present = {value} if isinstance(value, int) else set(value)
        frames[tuple(sorted(present - {0}))] += last - first + 1
    seen = {kinds: count for kinds, count in frames.items() if kinds}
    if not seen:
        return "0"
    kinds = max(seen, key=lambda kinds: (seen[kinds], kinds))
    return "+".join(str(kind) for kind in kinds)


def _with_attributes(row: Row, spans_of: dict[str, Any], notices: list[Notice]) -> Row:
    attributes = {}
    for name in ATTRIBUTES:
        spans: Any = spans_of.get(name)
        if _is_spans(spans):
            attributes[name] = video_value(spans)
        else:
            reason = f"no label for {name}" if not spans else f"label for {name} is not [first, last, value] spans"
            notices.append(Notice(row.path, reason, kept=True))
    return Row(row.path, row.action, row.site, row.split, row.source, attributes)


def _is_spans(spans: Any) -> bool:
    return isinstance(spans, list) and bool(spans) and all(_is_span(span) for span in spans)


def _is_span(span: Any) -> bool:
    if not isinstance(span, list) or len(span) != 3 or not (_is_count(span[0]) and _is_count(span[1])):
        return False
    kinds = span[2] if isinstance(span[2], list) else [span[2]]
    return span[0] <= span[1] and bool(kinds) and all(_is_count(kind) for kind in kinds)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
