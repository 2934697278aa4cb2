"""The anonymizer that is judged: of a run, of one of its checkpoints, or any file of its own."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.runs import RunFolder
from spact_models.anonymizer import Anonymizer
from spact_models.checkpoint import ANONYMIZER_FILE
from spact_models.networks import load_anonymizer
from spact_models.settings import Settings


@dataclass(frozen=True)
class Model:
    """The anonymizer to judge, and the run that it comes from, where there is one."""

    path: Path
    run: RunFolder | None
    anonymizer: Anonymizer
    trained: Settings
    actions: list[str]

    @property
    def described(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "sha256": hashlib.sha256(self.path.read_bytes()).hexdigest(),
            "kind": self.anonymizer.config.kind,
            "preset": self.trained.preset,
            "size_px": self.trained.clip.size_px,
            "frames": self.trained.clip.frames,
        }


def open_model(path: Path) -> Model:
    """A run folder's exported anonymizer, or a checkpoint, with the run around it.

    Raises:
        UserError: neither a run nor a checkpoint that this fedspact reads.
    """
    run = RunFolder.open(path) if path.is_dir() else RunFolder.around(path)
    if run is not None and path.is_dir():
        path = path / ANONYMIZER_FILE
        if not path.exists() and run.checkpoints():  # a run that has not ended: its latest round
            path = list(run.checkpoints().values())[-1]
    anonymizer, trained, actions = load_anonymizer(path)
    return Model(path, run, anonymizer, trained, actions)
