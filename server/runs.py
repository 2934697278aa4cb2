"""The run folder: everything that a run leaves behind, written so that a crash or a full disk costs one round at most.

settings.json                      the resolved settings and the federation's id
metrics.jsonl                      one line for every train and evaluate round
checkpoints/round-0003.safetensors the global weights after round 3 (none after a void round)
status.json                        what goes on right now (server/status.py)
resume/                            what else an interrupted run needs to go on; gone when it is complete
    state-0003.safetensors         the server optimizer's tensors after round 3, and that round's line
    teacher.safetensors            f_T as it was after warm-up
tensorboard/                       the same metrics as curves
summary.json                       the run in a few numbers, at its end
"""

from __future__ import annotations

import datetime
import json
import os
import re
import shutil
import uuid
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from server.curves import Curves
from server.locking import lock_folder
from server.records import RoundRecord
from spact_models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from spact_models.errors import UserError
from spact_models.files import write_atomically
from spact_models.presets import BEFORE

SETTINGS, METRICS, SUMMARY = "settings.json", "metrics.jsonl", "summary.json"
CHECKPOINTS, TENSORBOARD, RESUME = "checkpoints", "tensorboard", "resume"
TEACHER = "teacher.safetensors"
KEPT_STATES = 2  # the server's own tensors serve only to go on; the one before the last, should the last be damaged
PREPARED = ("cache", "data.csv", "sites", "synthetic")  # made before a run begins: a failed try may be repeated
FORMAT = "fedspact-run"


def default_run_path(run_dir: str) -> Path:
    """``run_dir``, or ``runs/<UTC time>`` when it is empty; absolute."""
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    return (Path(run_dir).expanduser() if run_dir else Path("runs") / stamp).absolute()


class RunFolder:
    """A new run's folder; :meth:`open` gives an existing one back to read it, :meth:`reopen` to go on with it.

    Args:
        path: a folder that does not exist yet, or is empty.
        keep_checkpoints: the last k are kept; 0 = all.

    Raises:
        UserError: the path is a file, holds an existing run or something else, or cannot be written.
    """

    def __init__(self, path: Path, keep_checkpoints: int = 0) -> None:
        self.path = path
        self.federation = uuid.uuid4().hex
        self.judged_at_end = True  # False: whoever began the run will judge it later; kept in settings.json
        self._keep = keep_checkpoints
        self._curves: Curves | None = None
        self._lock: weakref.finalize[..., RunFolder] | None = None
        self._next_round: int | None = None
        _check_free(path)
        with _writing(path):
            path.mkdir(parents=True, exist_ok=True)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run folder.

        Raises:
            UserError: there is none.
        """
        settings = _read_settings(path)
        if settings is None:
            raise UserError(f"{path}: not a run folder (its {SETTINGS} is missing or is not ours).")
        folder = cls.__new__(cls)
        folder.path, folder.federation, folder._keep, folder._curves = path, settings["federation"], 0, None
        folder.judged_at_end = bool(settings.get("judged_at_end", True))
        folder._lock, folder._next_round = None, None
        return folder

    @classmethod
    def around(cls, file: Path) -> RunFolder | None:
        """The run folder that a file lies in, or in one of its folders such as ``checkpoints``; None: there is none.

        Raises:
            UserError: its settings are not ours.
        """
        near = [folder for folder in (file.parent, file.parent.parent) if (folder / SETTINGS).is_file()]
        return cls.open(near[0]) if near else None

    @classmethod
    def reopen(cls, path: Path, keep_checkpoints: int = 0) -> RunFolder:
        """An interrupted run's folder, mended: a line or a file that was not finished is taken away.

        Raises:
            UserError: there is none, or another process still writes to it.
        """
        folder = cls.open(path)
        folder._keep = keep_checkpoints
        folder._lock = lock_folder(folder, path)
        with _writing(path):
            for left in [*path.glob(".*.tmp"), *path.glob("*/.*.tmp")]:
                left.unlink(missing_ok=True)
            if (path / METRICS).exists():
                whole = (path / METRICS).read_bytes().rpartition(b"\n")
                if whole[2]:
                    os.truncate(path / METRICS, len(whole[0] + whole[1]))
        return folder

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Write ``settings.json``; with it the folder is a run folder.

        Raises:
            UserError: it cannot be written, or another process has begun here meanwhile.
        """
        self._lock = lock_folder(self, self.path)
        _refuse_a_run(self.path)  # what else the folder holds by now its owner put there
        created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        told: dict[str, Any] = {} if self.judged_at_end else {"judged_at_end": False}
        begun = {"format": FORMAT, "federation": self.federation, "created": created, "settings": dict(settings)}
        self._write_json(SETTINGS, {**begun, **told})

    def note_resumed(self, settings: Mapping[str, Any], trained: int, changed: Mapping[str, Any]) -> None:
        """Enter in ``settings.json`` that the run went on after round ``trained``, and with which other settings."""
        described = _read_settings(self.path) or {}
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        entry = {"time": now, "after_round": trained, "changed": dict(changed)}
        described["settings"], described["resumed"] = dict(settings), [*described.get("resumed", []), entry]
        self._write_json(SETTINGS, described)
        self._next_round = trained + 1

    def cut_history(self, records: Sequence[RoundRecord]) -> None:
        """Let ``metrics.jsonl`` hold exactly these rounds."""
        text = "".join(_line(record) for record in records)
        with _writing(self.path / METRICS):
            write_atomically(self.path / METRICS, lambda temporary: temporary.write_text(text, encoding="utf-8"))

    def record(self, record: RoundRecord) -> None:
        """Append the round to ``metrics.jsonl`` (on the disk when this returns) and to the curves."""
        line, path = _line(record), self.path / METRICS
        with _writing(path), path.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        with _writing(self.path / TENSORBOARD):
            self._drawn().round(record)

    def draw_evaluation(self, server_round: int, figures: Mapping[str, float]) -> None:
        """Put fresh networks' figures on a round's curves: ``{"anonymized/action": 0.93, "chance/identity": 0.08}``.

        Names are ``REPRESENTATION/TASK``; the chart of a task shows all its representations, and chance with them.
        """
        with _writing(self.path / TENSORBOARD):
            self._drawn().evaluation(server_round, figures)

    def history(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``; a last line that a crash has cut short is left out."""
        path = self.path / METRICS
        lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
        return [json.loads(line) for line in lines[:-1]]  # a whole line ends in a newline

    @property
    def begun(self) -> bool:
        """Whether a run has begun here."""
        return (self.path / SETTINGS).exists()

    def settings(self) -> dict[str, Any]:
        """The flat settings that the run was begun with, those included that a later version has added."""
        described = _read_settings(self.path)
        return {**BEFORE, **described["settings"]} if described else {}

    def created(self) -> str:
        """When the run was begun: UTC, ISO 8601; empty before :meth:`begin`."""
        described = _read_settings(self.path)
        return str(described.get("created", "")) if described else ""

    def checkpoint_path(self, server_round: int) -> Path:
        return self.path / CHECKPOINTS / f"round-{server_round:04d}.safetensors"

    def checkpoints(self) -> dict[int, Path]:
        """Round -> checkpoint, in order of rounds."""
        found = {}
        for path in (self.path / CHECKPOINTS).glob("round-*.safetensors"):
            if match := re.fullmatch(r"round-(\d+)\.safetensors", path.name):
                found[int(match[1])] = path
        return dict(sorted(found.items()))

    def state_path(self, server_round: int) -> Path:
        return self.path / RESUME / f"state-{server_round:04d}.safetensors"

    def save_checkpoint(self, server_round: int, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> Path:
        """Write the round's checkpoint, then remove those that are no longer kept."""
        path = self.checkpoint_path(server_round)
        with _writing(path):
            save_checkpoint(path, tensors, header)
            kept = list(self.checkpoints().values())
            old = kept[: -self._keep] if self._keep else []
            states = sorted((self.path / RESUME).glob("state-*.safetensors"))
            for left in [*old, *states[:-KEPT_STATES]]:
                left.unlink()
        return path

    def save_state(self, record: RoundRecord, tensors: Mapping[str, Tensor]) -> None:
        """Write what the server needs beside a round's checkpoint; before it, so that a checkpoint never lacks it."""
        path = self.state_path(record.round)
        with _writing(path):
            save_checkpoint(path, tensors, {"record": record.to_json()})

    def save_teacher(self, tensors: Mapping[str, Tensor]) -> None:
        """Keep f_T as it was after warm-up; once a run."""
        path = self.path / RESUME / TEACHER
        if not path.exists():
            with _writing(path):
                save_checkpoint(path, tensors, {})

    def teacher(self) -> Checkpoint | None:
        path = self.path / RESUME / TEACHER
        return load_checkpoint(path) if path.exists() else None

    def write_summary(self, summary: Mapping[str, Any]) -> Path:
        """Write ``summary.json``; a reader sees the old file or the whole new one. With it the run is complete."""
        path = self._write_json(SUMMARY, summary)
        shutil.rmtree(self.path / RESUME, ignore_errors=True)
        return path

    def close(self) -> None:
        """Flush the curves to the disk, and let others write here."""
        if self._curves is not None:
            with _writing(self.path / TENSORBOARD):
                self._curves.close()
            self._curves = None
        if self._lock is not None:
            self._lock()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _drawn(self) -> Curves:
        if self._curves is None:
            self._curves = Curves(self.path / TENSORBOARD, self._next_round)
        return self._curves

    def _write_json(self, name: str, content: Mapping[str, Any]) -> Path:
        path = self.path / name
        text = json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n"
        with _writing(path):
            write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        return path


def _line(record: RoundRecord) -> str:
    return json.dumps(record.to_json(), sort_keys=True, allow_nan=False) + "\n"


def _check_free(path: Path) -> None:
    """A run never writes into somebody's folder, nor over another run."""
    with _writing(path):
        if path.exists() and not path.is_dir():
            raise UserError(f"run folder {path}: a file, must be a folder. Name another one (--out, run_dir).")
        occupied = path.is_dir() and any(entry.name not in PREPARED for entry in path.iterdir())
    if occupied:
        _refuse_a_run(path)
        raise UserError(
            f"run folder {path}: not empty and not a run folder. Name a new or an empty one (--out, run_dir)."
        )


def _refuse_a_run(path: Path) -> None:
    if _read_settings(path) is not None:
        raise UserError(
            f"run folder {path}: holds an existing run, which is never overwritten. Name another one "
            "(--out, run_dir), go on with it (resume = true, or fedspact simulate --resume), or remove it."
        )


def _read_settings(path: Path) -> dict[str, Any] | None:
    try:
        described = json.loads((path / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    ours = isinstance(described, dict) and described.get("format") == FORMAT
    return described if ours else None


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn the disk's errors into a sentence that says what to do."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"{path}: cannot be written ({reason}). Free or mend that disk, or name another folder "
            "(--out, run_dir); what was written before is whole."
        ) from error
