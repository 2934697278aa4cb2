"""The comparison's folder: what was asked for, what is finished, and what a killed run left half done.

plan.json          the plan last asked for; other seeds, partitions, arms and baselines add cells, the rest must stay
data.csv           the rows that every cell uses, each with its split decided
cells/NAME/        one finished cell: a run folder, evaluation.json, hits.npz and cell.json
cells/NAME.part/   one in the making; a folder gets its own name when everything in it is on the disk
logs/NAME.log      what a cell's process said
comparison.json    the result
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from client.video.rows import Row, write_rows
from server.runs import PREPARED
from simulations.compare.plan import CHOICE, JUDGED, Cell, Plan
from spact_models.errors import UserError
from spact_models.files import write_file
from spact_models.presets import BEFORE
from spact_models.run_config import load_settings

PLAN, DATA, VIEWS, RESULT, LOCK = "plan.json", "data.csv", "views.csv", "comparison.json", ".lock"
CELLS, LOGS, PART = "cells", "logs", ".part"
RECORD = "cell.json"
PLAN_FORMAT, CELL_FORMAT = "fedspact-comparison-plan", "fedspact-cell"


class ComparisonFolder:
    """A folder of ours, or a new one. Only one process may work in it at a time (:meth:`held`)."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Make the folder and keep others out of it; the lock goes with the process, however it ends.

        Raises:
            UserError: it holds something that is not ours, cannot be written, or another process works in it.
        """
        self._check_ours()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / LOCK).open("w")
        except OSError as error:
            raise UserError(f"--out {self.path}: cannot be written ({error.strerror}); name another folder") from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise UserError(
                    f"--out {self.path}: another fedspact compare is at work in it; wait for it, or name another folder"
                ) from error
            yield

    def begin(self, plan: Plan) -> None:
        """Write the plan where the folder holds none, or one whose finished cells are of this plan's kind.

        A setting that did not exist yet when the folder was made had its default.

        Raises:
            UserError: it holds cells of another kind; the first key that differs is named, with both values.
        """
        wanted = plan.to_json()
        before = (_read_json(self.path / PLAN) or {}).get("plan", wanted)
        if (differs := _first_difference(plan, before, CHOICE)) is not None:
            raise UserError(
                f"--out {self.path}: holds a comparison with {differs}. Go on with the first one's settings, or name "
                "another folder"
            )
        write_json(self.path / PLAN, {"format": PLAN_FORMAT, "format_version": 1, "plan": wanted})

    def check_lends(self, plan: Plan) -> None:
        """Whether what was trained here is what ``plan`` would train: only who judges it may differ.

        Raises:
            UserError: no comparison, or the first key that differs, with both values.
        """
        found = _read_json(self.path / PLAN) or {}
        if found.get("format") != PLAN_FORMAT:
            raise UserError(f"--trained {self.path}: not the folder of a comparison")
        if (differs := _first_difference(plan, found["plan"], (*CHOICE, *JUDGED))) is not None:
            raise UserError(
                f"--trained {self.path}: its networks were trained with {differs}. Give the same data and settings; "
                "judge.*, --attackers and --task may differ"
            )

    def write_data(self, rows: list[Row], views: list[Row] | None) -> None:
        """The rows for all cells; written anew at every start, always the same."""
        write_rows(rows, self.path / DATA)
        if views is not None:
            write_rows(views, self.path / VIEWS)

    def finished(self, cell: Cell) -> dict[str, Any] | None:
        """What a finished cell recorded; None where it is not finished."""
        record = _read_json(self.cell_path(cell) / RECORD) or {}
        return record if record.get("format") == CELL_FORMAT and record.get("finished") else None

    def cell_path(self, cell: Cell) -> Path:
        return self.path / CELLS / cell.name

    def log_path(self, cell: Cell) -> Path:
        return self.path / LOGS / f"{cell.name}.log"

    def begin_cell(self, cell: Cell) -> Path:
        """An empty folder to make the cell in; what a killed process left there is removed.

        Raises:
            UserError: something lies there that no cell has begun.
        """
        path = self.cell_path(cell)
        part = path.with_name(path.name + PART)
        if path.exists():
            raise UserError(f"{path}: holds no finished cell of ours; move it away, or name another folder (--out)")
        if part.exists() and any(part.iterdir()):
            if (_read_json(part / RECORD) or {}).get("format") != CELL_FORMAT:
                raise UserError(f"{part}: not begun by fedspact compare; move it away, or name another folder (--out)")
            _remove(part)
        part.mkdir(parents=True, exist_ok=True)
        return part

    def finish_cell(self, cell: Cell) -> Path:
        """Give a cell whose files are all written its name; from now on it is finished."""
        path = self.cell_path(cell)
        path.with_name(path.name + PART).rename(path)
        return path

    def _check_ours(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--out {self.path}: a file, must be a folder; name another one")
        others = [entry.name for entry in self.path.iterdir()] if self.path.is_dir() else []
        foreign = [name for name in others if name not in (*PREPARED, LOCK, DATA, VIEWS)]
        if foreign and (_read_json(self.path / PLAN) or {}).get("format") != PLAN_FORMAT:
            raise UserError(
                f"--out {self.path}: in use by something else ({foreign[0]}); name a new folder, an empty one, or that "
                "of a comparison to go on with"
            )


def _first_difference(plan: Plan, before: Mapping[str, Any], apart: tuple[str, ...]) -> str | None:
    """The first key but those that begin with ``apart``, in words; what ``before`` does not know was off."""
    wanted = plan.to_json()
    defaults = load_settings({"preset": plan.settings["preset"], **BEFORE}).flat()
    before = {**{f"settings.{key}": defaults[key] for key in plan.settings}, **before}
    keys = [*wanted, *(key for key in before if key not in wanted)]
    for key in keys:
        if not key.startswith(apart) and wanted.get(key) != before.get(key):
            return f"{key} = {before.get(key)!r}, asked for is {wanted.get(key)!r}"
    return None


def mark_begun(part: Path) -> None:
    """Sign a folder as a cell in the making, so that it may be removed if this process is killed."""
    write_json(part / RECORD, {"format": CELL_FORMAT, "finished": False})


def write_record(part: Path, record: Mapping[str, Any]) -> None:
    """What a cell came to: the last thing written before it is finished."""
    write_json(part / RECORD, {"format": CELL_FORMAT, "finished": True, **record})


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Atomically, and never NaN."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    write_file(path, text, "free the disk, then go on")


def _remove(part: Path) -> None:
    """The signature goes last: a removal that is itself cut short can be taken up again."""
    for entry in part.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != RECORD:
            entry.unlink()
    (part / RECORD).unlink()


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
