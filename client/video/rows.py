"""One table for every kind of site: a row says where a file lies and what is known about it.

The table is a CSV file, the manifest. Only the column ``path`` is required; ``action``, ``site``, ``split`` and
``source`` are known by name, so is ``boxes`` (a file that says where people stand, see boxes.py), and every further
column is a private attribute (identity, background, clothes ...). An empty cell means "not known". Paths are relative
to the manifest's own folder, so that the whole can be moved.
"""

import csv
import hashlib
import io
import os
import stat
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from spact_models.errors import UserError
from spact_models.files import BY_UMASK, write_file

COLUMNS = ("path", "action", "site", "split", "source")
BOXES = "boxes"  # written only where some row has them
SPLITS = ("train", "test", "")
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})
LARGEST_MANIFEST = 256 * 2**20  # bytes: two million rows; read whole, so bounded before
SHOWN_EXAMPLES = 5  # an error names the first few of many, and counts them all


@dataclass(frozen=True)
class Row:
    """One video or image.

    "" and "not known" are the same thing: empty names become None and empty attributes are dropped, so that a row is
    equal to itself after a journey through a manifest.
    """

    path: Path  # absolute
    action: str | None = None  # None = unlabelled
    site: str | None = None
    split: str = ""  # "train", "test", or "" = not decided yet, see hold_out
    source: str | None = None  # recording, group of people, camera: what must not lie on both sides of a split
    attributes: Mapping[str, str] = field(default_factory=dict, hash=False)  # further private columns
    boxes: Path | None = None  # absolute; CSV of where people stand, see client.video.boxes

    def __post_init__(self) -> None:
        for name, path in (("path", self.path), (BOXES, self.boxes)):
            if path is not None and not path.is_absolute():
                raise ValueError(f"Row.{name} = {str(path)!r}, must be absolute")
        if self.split not in SPLITS:
            raise UserError(f"{self.path}: split = {self.split!r}, must be train, test or empty (empty = not decided)")
        for name in ("action", "site", "source"):
            object.__setattr__(self, name, getattr(self, name) or None)
        object.__setattr__(self, "attributes", {name: value for name, value in self.attributes.items() if value})

    @property
    def is_image(self) -> bool:
        """By suffix: a still image can serve as a view, never as a clip."""
        return self.path.suffix.lower() in IMAGE_SUFFIXES


def read_rows(manifest: Path, must_exist: bool = True) -> list[Row]:
    """The rows of a manifest, in its order.

    ``must_exist=False`` leaves missing files to the decoder, which counts and names them like any unreadable video.
    Box files are not looked at here: only the judge reads them.

    Raises UserError, naming file, line, value and remedy: not there, not UTF-8, broken quoting, no ``path`` column, a
    column twice, a row of the wrong length, an empty path, a path twice, a path that is no file, a split other than
    train/test, a value with a space around it.
    """
    manifest = Path(manifest)
    records = _records(manifest)
    columns = _checked_columns(manifest, records)
    rows: list[Row] = []
    line_of: dict[Path, int] = {}
    for line, record in records[1:]:
        row = _row(manifest, line, columns, record)
        if row.path in line_of:
            raise UserError(
                f"{manifest}: line {line}: path = {str(row.path)!r}, already on line {line_of[row.path]}; "
                "a file may appear once: remove one of the two lines"
            )
        line_of[row.path] = line
        rows.append(row)
    if must_exist:
        _check_files(manifest, line_of)
    return rows


def write_rows(rows: Iterable[Row], manifest: Path) -> None:
    """Write a manifest that read_rows turns back into equal rows, whole or not at all (temporary file, then rename).

    Paths inside the manifest's folder are written relative to it. Attribute columns stand in order of appearance.

    Raises UserError: a path twice, a name or value that a manifest cannot hold, a folder that cannot be written.
    """
    manifest = absolute(manifest)
    rows = list(rows)
    names = list(dict.fromkeys(name for row in rows for name in row.attributes))
    _check_attribute_names(manifest, names)
    known = [*COLUMNS, BOXES] if any(row.boxes for row in rows) else list(COLUMNS)
    table = [[*known, *names], *(_record(manifest, row, known, names) for row in rows)]
    seen: set[str] = set()
    for record in table[1:]:
        if record[0] in seen:
            raise UserError(
                f"{manifest}: path = {record[0]!r} twice; a file may appear once: remove one of the two rows"
            )
        seen.add(record[0])
    write_file(manifest, _as_csv(table), "choose another place", mode=BY_UMASK)


def hold_out(rows: Sequence[Row], test_share: float, seed: int) -> list[Row]:
    """Give rows whose split is "" a side, train or test; the others stay as they are.

    Whole sources stay together, since two clips of one recording on both sides would measure memory. A row without a
    source is its own source, and a source that already has rows on one side only is joined to that side. Groups are
    taken in the order of a keyed hash, each if it brings the test rows closer to ``test_share`` of the undecided ones;
    so the result depends on seed, names and the paths below their common folder, not on row order or machine. With two
    or more groups each side gets at least one.
    """
    if not 0.0 < test_share < 1.0:
        raise UserError(f"test share = {test_share}, must lie between 0 and 1 (0.2 = every fifth row)")
    keys = _group_keys(rows)
    decided: dict[str, set[str]] = defaultdict(set)
    size: dict[str, int] = defaultdict(int)
    for key, row in zip(keys, rows, strict=True):
        if row.split:
            decided[key].add(row.split)
        else:
            size[key] += 1
    free = {key: count for key, count in size.items() if key not in decided}
    test_groups = _draw_test_groups(free, test_share, seed)
    # A source on both sides already cannot be kept together; train keeps the test side as it was published.
    test_groups |= {key for key, sides in decided.items() if sides == {"test"}}
    return [
        row if row.split else replace(row, split="test" if key in test_groups else "train")
        for key, row in zip(keys, rows, strict=True)
    ]


def check_sides(manifest: Path, rows: Sequence[Row]) -> None:
    """Raises UserError where rows, their splits decided, leave nothing to learn from or nothing to be asked about."""
    if not rows:
        raise UserError(f"{manifest}: holds no rows, only column names; write one with `fedspact index`")
    for split, words in (("train", "training"), ("test", "test")):
        if not any(row.split == split for row in rows):
            raise UserError(
                f"{manifest}: no {words} rows (split = {split}), and every protocol needs training rows and test rows; "
                "leave the column split empty to have whole sources held out, which takes two sources or more"
            )


def class_names(rows: Iterable[Row]) -> list[str]:
    """Distinct actions, sorted; unlabelled rows add none."""
    return sorted({row.action for row in rows if row.action is not None})


def absolute(path: Path) -> Path:
    """Absolute and without ``..``; links are not followed, since a linked file keeps its name and its class folder."""
    return Path(os.path.abspath(path))  # noqa: PTH100


def _records(manifest: Path) -> list[tuple[int, list[str]]]:
    """(line the record starts on, fields); empty lines are passed over. A quoted field may span lines."""
    try:
        with manifest.open("rb") as file:
            raw = file.read(LARGEST_MANIFEST + 1)
        if len(raw) > LARGEST_MANIFEST:
            raise UserError(f"{manifest}: larger than {LARGEST_MANIFEST >> 20} MiB; split it, or name another file")
    except OSError as error:
        raise UserError(f"{manifest}: cannot be read ({error.strerror}); write one with `fedspact index`") from error
    try:
        text = raw.decode("utf-8-sig")  # spreadsheets put a byte-order mark first
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise UserError(f"{manifest}: line {line}: not UTF-8 text; save the table as CSV, UTF-8") from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    records: list[tuple[int, list[str]]] = []
    start = 1
    try:
        for record in reader:
            if record:
                records.append((start, record))
            start = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{manifest}: line {start}: {error}; close every quote, and double a quote in a value"
        ) from error
    return records


def _checked_columns(manifest: Path, records: Sequence[tuple[int, list[str]]]) -> list[str]:
    if not records:
        raise UserError(f"{manifest}: empty, must start with a line of column names; only path is required")
    line, header = records[0]
    columns = [name.strip() for name in header]
    if "path" not in columns:
        remedy = "separate the columns with commas" if len(columns) == 1 and {";", "\t"} & set(columns[0]) else "add it"
        raise UserError(f"{manifest}: line {line}: columns = {', '.join(columns)!r}, must include path; {remedy}")
    for position, name in enumerate(columns, start=1):
        if not name:
            raise UserError(f"{manifest}: line {line}: column {position} has no name; name it or remove it")
        if name in columns[: position - 1]:
            raise UserError(f"{manifest}: line {line}: column {name!r} twice, must be once; rename or remove one")
    return columns


def _row(manifest: Path, line: int, columns: Sequence[str], record: Sequence[str]) -> Row:
    where = f"{manifest}: line {line}"
    if len(record) != len(columns):
        raise UserError(
            f"{where}: {len(record)} values, must be {len(columns)} as in the first line; "
            "put a value that holds a comma in double quotes"
        )
    cells = dict(zip(columns, record, strict=True))
    path, boxes = cells.pop("path"), cells.pop(BOXES, "")
    if not path or "\0" in path:
        raise UserError(f"{where}: path = {path!r}, must name a file; fill it in or remove the line")
    if "\0" in boxes:
        raise UserError(f"{where}: boxes = {boxes!r}, must name a file; correct it or leave it empty")
    for name, value in cells.items():
        _check_value(where, name, value)
    split = cells.pop("split", "")
    if split not in SPLITS:
        raise UserError(f"{where}: split = {split!r}, must be train, test or empty (empty = not decided)")
    return Row(
        path=absolute(manifest.parent / path),
        action=cells.pop("action", None),
        site=cells.pop("site", None),
        split=split,
        source=cells.pop("source", None),
        attributes=cells,
        boxes=absolute(manifest.parent / boxes) if boxes else None,
    )


def _check_value(where: str, name: str, value: str) -> None:
    """'walk' and ' walk' would silently be two classes."""
    if value != value.strip():
        raise UserError(f"{where}: {name} = {value!r}, must not begin or end with a space; remove it")


def _check_files(manifest: Path, line_of: Mapping[Path, int]) -> None:
    missing = [
        f"line {line}: path = {str(path)!r} {reason}"
        for path, line in line_of.items()
        if (reason := _why_no_file(path))
    ]
    if missing:
        more = f"; and {len(missing) - SHOWN_EXAMPLES} more" if len(missing) > SHOWN_EXAMPLES else ""
        raise UserError(
            f"{manifest}: {len(missing)} of {len(line_of)} paths lead to no file: "
            f"{'; '.join(missing[:SHOWN_EXAMPLES])}{more}. Paths are relative to the manifest's folder: "
            "correct or remove these lines, or write the manifest again with `fedspact index`"
        )


def _why_no_file(path: Path) -> str:
    try:
        return "is a folder" if stat.S_ISDIR(path.stat().st_mode) else ""
    except (FileNotFoundError, NotADirectoryError):
        return "does not exist"
    except OSError:
        return ""  # may not be looked at: the decoder reports it with the other unreadable files


def _check_attribute_names(manifest: Path, names: Iterable[str]) -> None:
    for name in names:
        if not name or name != name.strip() or name in (*COLUMNS, BOXES):
            raise UserError(
                f"{manifest}: attribute {name!r}, must be a name without spaces around it "
                f"and none of {', '.join((*COLUMNS, BOXES))}; rename it"
            )


def _record(manifest: Path, row: Row, known: Sequence[str], names: Sequence[str]) -> list[str]:
    """``known`` columns of the row, which begin with its path, then the attributes ``names``."""
    words = {"action": row.action or "", "site": row.site or "", "split": row.split, "source": row.source or ""}
    words |= {name: row.attributes.get(name, "") for name in names}
    for name, value in words.items():
        _check_value(str(row.path), name, value)
    files = {"path": _shown(manifest, row.path), BOXES: _shown(manifest, row.boxes) if row.boxes else ""}
    return [(files | words)[name] for name in (*known, *names)]


def _shown(manifest: Path, path: Path) -> str:
    """Relative to the manifest's folder where the file lies in it."""
    path = absolute(path)
    return (path.relative_to(manifest.parent) if path.is_relative_to(manifest.parent) else path).as_posix()


def _as_csv(table: Sequence[Sequence[str]]) -> str:
    # Python's writer leaves a lone carriage return unquoted when lines end in \n, and its reader then breaks the row.
    odd = any("\r" in cell for record in table for cell in record)
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL if odd else csv.QUOTE_MINIMAL).writerows(table)
    return text.getvalue()


def _group_keys(rows: Sequence[Row]) -> list[str]:
    """The source, or the path below the rows' common folder: the same on every machine that holds the tree."""
    if not rows:
        return []
    common = os.path.commonpath([row.path.parent for row in rows])
    return [
        f"source\0{row.source}" if row.source is not None else f"path\0{row.path.relative_to(common).as_posix()}"
        for row in rows
    ]


def _draw_test_groups(size: Mapping[str, int], test_share: float, seed: int) -> set[str]:
    order = sorted(size, key=lambda key: (_keyed_hash(seed, key), key))
    if len(order) < 2:
        return set()
    wanted = test_share * sum(size.values())
    chosen: set[str] = set()
    rows_chosen = 0
    for key in order:
        leaves_train_empty = len(chosen) == len(order) - 1
        if not leaves_train_empty and abs(rows_chosen + size[key] - wanted) < abs(rows_chosen - wanted):
            chosen.add(key)
            rows_chosen += size[key]
    return chosen or {min(order, key=lambda key: size[key])}  # min keeps the hash order among equals


def _keyed_hash(seed: int, key: str) -> bytes:
    secret = hashlib.blake2b(str(seed).encode(), digest_size=32).digest()
    return hashlib.blake2b(key.encode("utf-8", "surrogateescape"), key=secret, digest_size=16).digest()
