"""What the attacks found: ``audit.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from spact_models.errors import UserError
from spact_models.files import write_file

FILE = "audit.json"
FORMAT, VERSION = "fedspact-audit", 1
RESAMPLES = 2000
RESAMPLED_AUCS = 300  # each takes a sort


@dataclass(frozen=True)
class Finding:
    """One attack under one condition."""

    attack: str  # update inversion | membership | property | canary
    condition: str  # "plain update, one clip", "noise z = 1", ...
    measure: str  # "ssim", "auc", ...
    value: float
    low: float | None = None  # 95 % interval, where there is one
    high: float | None = None
    guess: float | None = None  # what the measure is without any attack
    more: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Audit:
    """All findings, and what they are about."""

    model: Mapping[str, Any]
    settings: Mapping[str, Any]  # of the attacks
    findings: Sequence[Finding]
    not_measured: Sequence[str]
    versions: Mapping[str, str]
    machine: Mapping[str, Any]
    created: str
    seconds: float

    def write(self, path: Path) -> None:
        """A reader sees the old file or the whole new one.

        Raises:
            UserError: it cannot be written.
        """
        text = json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=2, allow_nan=False) + "\n"
        write_file(path, text, "free some space or name another file with --out")


def read_audit(path: Path) -> Audit:
    """Raises UserError: not there, not of this format, or of a newer one."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.pop("format") != FORMAT:
            raise ValueError("another format")
        if data.pop("version") > VERSION:
            raise UserError(f"{path}: written by a newer fedspact; upgrade this one")
        return Audit(**{**data, "findings": [Finding(**entry) for entry in data["findings"]]})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not an audit that can be read ({error})") from None


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of a mean."""
    drawn = np.random.default_rng(seed).choice(np.asarray(values, float), (RESAMPLES, len(values)))
    low, high = np.quantile(drawn.mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def auc_with_interval(truth: np.ndarray, scores: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """AUC and its 95 % bootstrap interval over the last axis: (V,), or (S, V) of S attacks on the same V videos."""
    rng, count = np.random.default_rng(seed), truth.shape[-1]
    drawn = []
    for _ in range(RESAMPLED_AUCS):
        pick = rng.integers(0, count, count)
        chosen = truth[..., pick].reshape(-1)
        if chosen.any() and not chosen.all():
            drawn.append(roc_auc_score(chosen, scores[..., pick].reshape(-1)))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(roc_auc_score(truth.reshape(-1), scores.reshape(-1))), float(low), float(high)


def table(findings: Sequence[Finding]) -> str:
    """For the terminal."""
    head = ("attack", "condition", "measure", "value", "95 %", "guessing", "beside it")
    rows = [head]
    for one in findings:
        span = "" if one.low is None or one.high is None else f"{one.low:z.3f}–{one.high:z.3f}"
        guess = "" if one.guess is None else f"{one.guess:.3f}"
        more = ", ".join(f"{name} {value:.3g}" for name, value in one.more.items())
        rows.append((one.attack, one.condition, one.measure, f"{one.value:z.3f}", span, guess, more))
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "─" * max(map(len, lines)), *lines[1:]])
