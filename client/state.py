"""What a site keeps between rounds and never shows: f_B, optimizer states, the warm-up teacher, local statistics."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spact_models.errors import UserError
from spact_models.files import write_atomically
from spact_models.rules import require

KEPT_ROUNDS = 2  # a server that resumes plays its last round again, and then the site needs the state before it
ABANDONED_SECONDS = 3600  # no state takes so long to write


@dataclass
class LocalState:
    """The site's side of the game after ``completed_round`` rounds. Everything in it is a tensor or a plain value."""

    completed_round: int = 0
    privacy: dict[str, Tensor] = field(default_factory=dict)  # f_B; empty: not begun
    optimizers: dict[str, Any] = field(default_factory=dict)  # Adam's moments for f_A, f_T, f_B
    buffers: dict[str, Tensor] = field(default_factory=dict)  # BatchNorm statistics of f_A and f_T
    teacher: dict[str, Tensor] = field(default_factory=dict)  # f_T after warm-up; empty: not held
    residual: dict[str, Tensor] = field(default_factory=dict)  # what int8 has not told the server yet, by wire name


class StateFolder:
    """One folder a federation, one file a round; written whole or not at all.

    A site that is killed in a round finds the state of its last complete round when it starts again.

    Raises:
        UserError: the federation's id, which comes from the server, is no plain name of a folder.
    """

    def __init__(self, folder: Path, federation: str) -> None:
        plain = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", federation) is not None
        require(plain, "federation", federation, "must be a plain name: the site names a folder by it")
        self.folder = folder / federation

    def before(self, server_round: int) -> LocalState:
        """The newest state from before ``server_round``: normally that of the round before it."""
        rounds = [number for number in self._rounds() if number < server_round]
        if not rounds:
            return LocalState()
        stored: Mapping[str, Any] = torch.load(self._file(max(rounds)), map_location="cpu", weights_only=True)
        return LocalState(**stored)

    def save(self, state: LocalState) -> None:
        """Keep the state of the round that it completes, and that of the round before.

        States of later rounds belong to a course that the server has given up (it went on from an older checkpoint).

        Raises:
            UserError: the disk is full or cannot be written; what was there before stays.
        """
        written = io.BytesIO()  # torch's own writer turns a full disk into a RuntimeError without a reason
        torch.save(vars(state), written)
        try:
            write_atomically(self._file(state.completed_round), lambda path: path.write_bytes(written.getbuffer()))
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(
                f"site state {self.folder}: cannot be written ({reason}); free that disk or set `state` in site.yaml. "
                "The state of the last complete round is whole."
            ) from error
        past = [number for number in self._rounds() if number <= state.completed_round]
        for number in set(self._rounds()) - set(past[-KEPT_ROUNDS:]):
            self._file(number).unlink(missing_ok=True)
        for left in self.folder.glob(".state-*.tmp"):  # of a process that was killed while it wrote
            if time.time() - left.stat().st_mtime > ABANDONED_SECONDS:
                left.unlink(missing_ok=True)

    def _file(self, server_round: int) -> Path:
        return self.folder / f"state-{server_round:06d}.pt"

    def _rounds(self) -> list[int]:
        return sorted(int(path.stem.removeprefix("state-")) for path in self.folder.glob("state-*.pt"))
