"""The run folder: everything that a run leaves behind, written so that a crash or a full disk costs one round at most.

settings.json                      the resolved settings and the federation's id
metrics.jsonl                      one line for every train and evaluate round
checkpoints/round-0003.safetensors the global weights after round 3 (none after a void round)
tensorboard/                       the same metrics as curves
summary.json                       the run in a few numbers, at its end
"""

from __future__ import annotations

import datetime
import json
import math
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from torch import Tensor

from server.records import RoundRecord
from spact_models.checkpoint import save_checkpoint, write_atomically
from spact_models.errors import UserError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

SETTINGS, METRICS, SUMMARY = "settings.json", "metrics.jsonl", "summary.json"
CHECKPOINTS, TENSORBOARD = "checkpoints", "tensorboard"
PREPARED = ("cache", "data.csv", "sites", "synthetic")  # made before a run begins: a failed try may be repeated
FORMAT = "fedspact-run"
JUDGED = "judged"  # the curves of fresh networks
LAYOUT = {  # TensorBoard's Custom Scalars: what belongs together in one chart; the tags are regular expressions
    "The game": {
        "L_T, mean and sites": ["Multiline", [r"^train/(.+/)?loss\.action$"]],
        "L_B, mean and sites, with chance": ["Multiline", [r"^train/(.+/)?loss\.privacy$", r"^train/chance\.privacy$"]],
        "f_T top-1, mean and sites": ["Multiline", [r"^evaluate/(.+/)?top1$"]],
    },
    "Fresh networks": {
        "action": ["Multiline", [rf"^{JUDGED}/.+/action$"]],
        "private questions, with chance": ["Multiline", [rf"^{JUDGED}/.+/(?!action$)[^/]+$"]],
    },
    "The wire": {"bytes up": ["Multiline", [r"^train/bytes_up$"]]},
}


def default_run_path(run_dir: str) -> Path:
    """``run_dir``, or ``runs/<UTC time>`` when it is empty; absolute."""
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    return (Path(run_dir).expanduser() if run_dir else Path("runs") / stamp).absolute()


class RunFolder:
    """A new run's folder; :meth:`open` gives an existing one back, to read it.

    Args:
        path: a folder that does not exist yet, or is empty.
        keep_checkpoints: the last k are kept; 0 = all.

    Raises:
        UserError: the path is a file, holds an existing run or something else, or cannot be written.
    """

    def __init__(self, path: Path, keep_checkpoints: int = 0) -> None:
        self.path = path
        self.federation = uuid.uuid4().hex
        self._keep = keep_checkpoints
        self._curves: SummaryWriter | None = None
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
        return folder

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Write ``settings.json``; with it the folder is a run folder."""
        created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        described = {"format": FORMAT, "federation": self.federation, "created": created, "settings": dict(settings)}
        self._write_json(SETTINGS, described)

    def record(self, record: RoundRecord) -> None:
        """Append the round to ``metrics.jsonl`` (on the disk when this returns) and to the curves."""
        line = json.dumps(record.to_json(), sort_keys=True, allow_nan=False) + "\n"
        path = self.path / METRICS
        with _writing(path), path.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        with _writing(self.path / TENSORBOARD):
            self._draw(record)

    def draw_evaluation(self, server_round: int, figures: Mapping[str, float]) -> None:
        """Put fresh networks' figures on a round's curves: ``{"anonymized/action": 0.93, "chance/identity": 0.08}``.

        Names are ``REPRESENTATION/TASK``; the chart of a task shows all its representations, and chance with them.
        """
        with _writing(self.path / TENSORBOARD):
            for name, value in figures.items():
                if math.isfinite(value):
                    self._writer().add_scalar(f"{JUDGED}/{name}", value, server_round)
            self._writer().flush()

    def history(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``; a last line that a crash has cut short is left out."""
        path = self.path / METRICS
        lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
        return [json.loads(line) for line in lines[:-1]]  # a whole line ends in a newline

    def settings(self) -> dict[str, Any]:
        """The flat settings that the run was begun with."""
        described = _read_settings(self.path)
        return dict(described["settings"]) if described else {}

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

    def save_checkpoint(self, server_round: int, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> Path:
        """Write the round's checkpoint, then remove those that are no longer kept."""
        path = self.checkpoint_path(server_round)
        with _writing(path):
            save_checkpoint(path, tensors, header)
            if self._keep:
                for old in list(self.checkpoints().values())[: -self._keep]:
                    old.unlink()
        return path

    def write_summary(self, summary: Mapping[str, Any]) -> Path:
        """Write ``summary.json``; a reader sees the old file or the whole new one."""
        return self._write_json(SUMMARY, summary)

    def close(self) -> None:
        """Flush the curves to the disk."""
        if self._curves is not None:
            with _writing(self.path / TENSORBOARD):
                self._curves.close()
            self._curves = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write_json(self, name: str, content: Mapping[str, Any]) -> Path:
        path = self.path / name
        text = json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n"
        with _writing(path):
            write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        return path

    def _writer(self) -> SummaryWriter:
        if self._curves is None:
            from torch.utils.tensorboard import SummaryWriter  # a second to import, and only runs need it

            self._curves = SummaryWriter(str(self.path / TENSORBOARD))
            self._curves.add_custom_scalars(LAYOUT)
        return self._curves

    def _draw(self, record: RoundRecord) -> None:
        own = {"sites": len(record.sites), "bytes_up": record.bytes_up, "seconds": record.seconds}
        series = {f"{record.kind}/{name}": value for name, value in {**record.metrics, **own}.items()}
        names = [site.name for site in record.sites]
        for site in record.sites:
            own_name = site.name if names.count(site.name) == 1 else f"{site.name} (node {site.node})"
            series.update({f"{record.kind}/{own_name}/{name}": value for name, value in site.metrics.items()})
        for tag, value in series.items():
            self._writer().add_scalar(tag, value, record.round)
        self._writer().flush()


def _check_free(path: Path) -> None:
    """A run never writes into somebody's folder, nor over another run."""
    with _writing(path):
        if path.exists() and not path.is_dir():
            raise UserError(f"run folder {path}: a file, must be a folder. Name another one (--out, run_dir).")
        occupied = path.is_dir() and any(entry.name not in PREPARED for entry in path.iterdir())
    if occupied and _read_settings(path) is not None:
        raise UserError(
            f"run folder {path}: holds an existing run, which is never overwritten. Name another one "
            "(--out, run_dir), or remove it."
        )
    if occupied:
        raise UserError(
            f"run folder {path}: not empty and not a run folder. Name a new or an empty one (--out, run_dir)."
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
