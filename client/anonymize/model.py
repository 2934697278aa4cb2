"""The anonymizer that is put to work: a run folder's or any file of ours, and what the sidecar says of it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spact_models.anonymizer import Anonymizer
from spact_models.checkpoint import ANONYMIZER_FILE
from spact_models.errors import UserError
from spact_models.networks import load_anonymizer
from spact_models.settings import Settings
from spact_models.signing import Verdict, verify


@dataclass(frozen=True)
class Model:
    """An f_A, its file and its settings."""

    path: Path
    anonymizer: Anonymizer
    trained: Settings
    sha256: str
    note: str = ""  # a line for its user: that nobody trusted here vouches for it; empty: somebody does

    @property
    def described(self) -> dict[str, Any]:
        """For sidecars: which model, and what it asks of frames."""
        config = self.anonymizer.config
        return {
            "sha256": self.sha256,
            "kind": config.kind,
            "size_px": config.size_px,
            "stride_frames": config.stride_frames,
            "history": self.anonymizer.history,
            "output_noise": config.output_noise,
            "preset": self.trained.preset,
        }


def open_model(path: Path, signed_only: bool = False) -> Model:
    """A run folder's exported anonymizer (or its latest round's, while it goes on), or a file.

    Its signature is looked at first: a file that was changed after it was signed is never opened; one that nobody
    trusted here has signed is opened with a note, or not at all with ``signed_only``.

    Raises:
        UserError: no such path, a folder without an anonymizer, a file that this fedspact does not read, or one whose
            signature forbids it.
    """
    path = path.expanduser()
    if path.is_dir():
        rounds = sorted((path / "checkpoints").glob("round-*.safetensors"))
        found = [one for one in (path / ANONYMIZER_FILE, *reversed(rounds)) if one.is_file()]
        if not found:
            raise UserError(
                f"--model {path}: no {ANONYMIZER_FILE} in it and no checkpoints; name a run folder or a file"
            )
        path = found[0]
    elif not path.exists():
        raise UserError(f"--model {path}: no such run folder or file; `fedspact runs` lists runs")
    verdict = verify(path)
    if verdict.refused or (signed_only and not verdict.trusted):
        raise UserError(
            f"--model {path}: {verdict.reason}. "
            + ("It is never used; get it anew." if verdict.refused else "--signed-only takes released models alone.")
        )
    anonymizer, trained, _ = load_anonymizer(path)
    note = "" if verdict.trusted else f"note: {path} is {_unvouched(verdict)} (docs/release.md)"
    return Model(path, anonymizer, trained, hashlib.sha256(path.read_bytes()).hexdigest(), note)


def _unvouched(verdict: Verdict) -> str:
    return "not signed: no federation vouches for it" if verdict.status == "unsigned" else verdict.reason
