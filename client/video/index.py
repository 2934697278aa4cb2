"""``fedspact index DIR --out FILE``: look through a folder and write the site's manifest.

The form of the folder is recognised, or named with ``--format``. A summary says what was found; what was left out is
counted by reason on the terminal and named, file by file, in ``FILE.skipped.csv``.
"""

import argparse
import csv
import io
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from client.video import folders, hmdb51, pa_hmdb51, ucf101, vispr
from client.video.folders import Notice, Tree, media_below
from client.video.rows import IMAGE_SUFFIXES, absolute, class_names, write_rows
from spact_models.errors import UserError

FORMATS = ("auto", "folders", "flat", "ucf101", "hmdb51", "vispr", "pa-hmdb51")
WITH_SPLITS = {"ucf101": ucf101.SPLITS_FOLDER, "hmdb51": hmdb51.SPLITS_FOLDER, "pa-hmdb51": hmdb51.SPLITS_FOLDER}
WITH_LABELS = ("vispr", "pa-hmdb51")
_ALONE = ", each counts as a source of its own"
SHOWN_NAMES = 5  # examples a line on the terminal; the file beside the manifest holds them all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", metavar="DIR", type=Path, help="the folder that holds the videos or images")
    parser.add_argument("--out", metavar="FILE", type=Path, required=True, help="the manifest to write (CSV)")
    parser.add_argument("--format", default="auto", metavar="NAME", help=f"{' | '.join(FORMATS)} (default: auto)")
    parser.add_argument(
        "--splits",
        metavar="DIR",
        type=Path,
        help="official split files of UCF101 (ucfTrainTestlist) or HMDB51 (testTrainMulti_7030_splits); "
        "by default the folder of that name in DIR, if there is one",
    )
    parser.add_argument("--fold", type=int, choices=(1, 2, 3), help="which official split (default: 1)")
    parser.add_argument(
        "--attributes", metavar="NAMES", help="VISPR labels: vispr1 (default), vispr2, or names separated by commas"
    )
    parser.add_argument(
        "--labels",
        metavar="DIR",
        type=Path,
        help="label files of VISPR (by default anywhere in DIR) or PA-HMDB51 (by default DIR/PrivacyAttributes)",
    )
    parser.add_argument("--force", action="store_true", help="replace FILE if it exists")


def run(args: argparse.Namespace) -> int:
    """Write the manifest and the list of what was left out; print the summary."""
    root = folders.checked_folder(args.dir, "DIR")
    manifest = absolute(args.out)
    skipped = manifest.with_name(f"{manifest.name}.skipped.csv")
    _check_out(manifest, skipped, args.force)
    _check_choices(args)
    form = _recognise(root, args.labels) if args.format == "auto" else args.format
    _check_options(args, form)
    splits = args.splits or _own_splits(root, form)
    if args.fold is not None and splits is None:
        raise UserError(f"--fold = {args.fold} needs the official split files; give their folder with --splits")
    fold = args.fold or 1
    tree = read_tree(root, form, splits, fold, args.labels, args.attributes)
    notices = [notice for notice in tree.notices if notice.path not in (manifest, skipped)]
    if not tree.rows:
        raise UserError(f"DIR = {str(root)!r} holds no video or image{_reasons_in_short(notices)}; give another folder")
    write_rows(tree.rows, manifest)
    _write_notices(notices, skipped)
    print(f"{form} ({'recognised' if args.format == 'auto' else 'as told'}): {_shown(str(root))}")
    print("\n".join(_summary(tree, splits, fold) + _notice_lines(notices, skipped)))
    print(f"wrote {_shown(str(manifest))}")
    return 0


def read_tree(
    root: Path, form: str, splits: Path | None, fold: int, labels: Path | None, attributes: str | None
) -> Tree:
    """The rows of a folder whose form is known."""
    readers: dict[str, Callable[[], Tree]] = {
        "folders": lambda: folders.read_folders(root),
        "flat": lambda: folders.read_flat(root),
        "ucf101": lambda: ucf101.read_ucf101(root, splits, fold),
        "hmdb51": lambda: hmdb51.read_hmdb51(root, splits, fold),
        "vispr": lambda: vispr.read_vispr(root, labels, attributes),
        "pa-hmdb51": lambda: pa_hmdb51.read_pa_hmdb51(root, labels, splits, fold),
    }
    return readers[form]()


def _recognise(root: Path, labels: Path | None) -> str:
    """The form of a folder by its names alone. More than half the files must look published to count as such."""
    media, notices = media_below(root)
    if not media:
        found = _reasons_in_short(notices)
        raise UserError(f"DIR = {str(root)!r} holds no video or image by its suffix{found}; give another folder")

    def most(looks_so: Callable[[Path], bool]) -> bool:
        return sum(map(looks_so, media)) * 2 > len(media)

    images = [path for path in media if path.suffix.lower() in IMAGE_SUFFIXES]
    if len(images) * 2 > len(media) and any(
        vispr.SPLIT_FOLDER.fullmatch(name)
        for path in images
        for name in (root.name, *path.relative_to(root).parts[:-1])
    ):
        return "vispr"
    if most(lambda path: ucf101.NAME.fullmatch(path.stem) is not None):
        return "ucf101"
    in_class_folders = all(path.parent != root for path in media)
    if in_class_folders and (labels is not None or (root / pa_hmdb51.LABELS_FOLDER).is_dir()):
        return "pa-hmdb51"
    if in_class_folders and most(lambda path: hmdb51.NAME.fullmatch(path.stem) is not None):
        return "hmdb51"
    return "flat" if all(path.parent == root for path in media) else "folders"


def _own_splits(root: Path, form: str) -> Path | None:
    folder = root / WITH_SPLITS[form] if form in WITH_SPLITS else None
    return folder if folder is not None and folder.is_dir() else None


def _check_out(manifest: Path, skipped: Path, force: bool) -> None:
    for path in (manifest, skipped):
        if path.is_dir():
            raise UserError(f"--out = {str(path)!r} is a folder, must be a file; add a name, such as manifest.csv")
        if path.exists() and not force:
            raise UserError(f"--out: {str(path)!r} exists; choose another name, or --force to replace it")


def _check_choices(args: argparse.Namespace) -> None:
    if args.format not in FORMATS:
        raise UserError(f"--format = {args.format!r}, must be one of {', '.join(FORMATS)}")


def _check_options(args: argparse.Namespace, form: str) -> None:
    """An option that this form would ignore is a mistake worth saying."""
    allowed = {
        "splits": tuple(WITH_SPLITS),
        "fold": tuple(WITH_SPLITS),
        "labels": WITH_LABELS,
        "attributes": ("vispr",),
    }
    for name, forms in allowed.items():
        value = getattr(args, name)
        if value is not None and form not in forms:
            raise UserError(
                f"--{name} = {str(value)!r} is for {' and '.join(forms)}, and this folder is read as {form}; "
                "leave it out, or name the form with --format"
            )


def _write_notices(notices: Sequence[Notice], skipped: Path) -> None:
    """Every file left out or kept with a remark, with the reason; no file when there is none."""
    if not notices:
        skipped.unlink(missing_ok=True)  # of an earlier run that --force replaces
        return
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    table.writerow(["path", "kept", "reason"])
    table.writerows([str(notice.path), "yes" if notice.kept else "no", notice.reason] for notice in notices)
    skipped.write_bytes(text.getvalue().encode("utf-8", "backslashreplace"))


def _summary(tree: Tree, splits: Path | None, fold: int) -> list[str]:
    rows = tree.rows
    images = sum(row.is_image for row in rows)
    classes = class_names(rows)
    unlabelled = sum(row.action is None for row in rows)
    sides = Counter(row.split for row in rows)
    names = list(dict.fromkeys(name for row in rows for name in row.attributes))
    sources = {row.source for row in rows if row.source is not None}
    without_source = sum(row.source is None for row in rows)
    origin = f" (fold {fold} of {_shown(str(splits))})" if splits else ""
    lines = [
        f"  rows        {len(rows)}: {len(rows) - images} videos, {images} images",
        f"  classes     {_names(classes)}{f'; {unlabelled} rows unlabelled' if unlabelled else ''}",
        f"  splits      train {sides['train']}, test {sides['test']}, not decided {sides['']}{origin}"
        + " (training decides: whole sources are held out)" * bool(sides[""]),
        f"  attributes  {_names(names)}",
        f"  sources     {len(sources)}{f'; {without_source} rows without{_ALONE}' if without_source else ''}",
    ]
    if len(classes) == 1:
        lines.append(
            f"  note: only one class, {_shown(classes[0])}; training needs two. Actions are the names of DIR's own "
            "folders: where they lie one folder deeper, name that one as DIR; where there are none, --format flat"
        )
    return lines


def _notice_lines(notices: Sequence[Notice], skipped: Path) -> list[str]:
    lines = []
    for kept, title in ((False, "left out"), (True, "kept, but")):
        chosen = [notice for notice in notices if notice.kept == kept]
        if chosen:
            lines.append(f"  {title:<10}  {len(chosen)} (each named in {_shown(skipped.name)})")
        for reason, count in Counter(notice.reason for notice in chosen).most_common():
            paths = [notice.path.name for notice in chosen if notice.reason == reason]
            lines.append(f"    {count} {reason}: {_listed(paths)}")
    return lines or ["  left out    0"]


def _reasons_in_short(notices: Sequence[Notice]) -> str:
    counts = Counter(notice.reason for notice in notices).most_common(SHOWN_NAMES)
    return f" (found: {', '.join(f'{count} {reason}' for reason, count in counts)})" if counts else ""


def _names(names: Sequence[str]) -> str:
    return f"{len(names)}: {_listed(names, limit=12)}" if names else "none"


def _listed(names: Sequence[str], limit: int = SHOWN_NAMES) -> str:
    more = f", … {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(_shown(name) for name in names[:limit]) + more


def _shown(name: str) -> str:
    """A name on one line of a terminal: control characters and broken bytes are escaped."""
    return name if name.isprintable() else repr(name)
