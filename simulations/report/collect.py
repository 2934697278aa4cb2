"""Run folders and comparison folders as the page and the list of runs see them: whatever is there, and no more.

Nothing but the settings has to exist. A run that has just begun, one that was stopped, one without a judgement and one
with everything are all told by the same dataclass.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.provenance import judgement_files, rank
from server.runs import RunFolder
from simulations.audit.findings import FILE as AUDIT
from simulations.audit.findings import Audit, read_audit
from simulations.protocols.evaluation import FILE, read_evaluation
from simulations.report.judged import ANONYMIZED, Judged, from_evaluation, from_summary
from spact_models.checkpoint import ANONYMIZER_FILE
from spact_models.errors import UserError

COMPARISON, CELLS = "comparison.json", "cells"
COMPARISON_FORMAT, COMPARISON_VERSION = "fedspact-comparison", 1  # the newest that is understood here


@dataclass(frozen=True)
class RunStory:
    """One run folder."""

    path: Path
    name: str
    created: str  # ISO time, UTC
    settings: Mapping[str, Any]  # flat
    history: Sequence[Mapping[str, Any]]  # the lines of metrics.jsonl
    summary: Mapping[str, Any]  # empty while the run is not finished
    judged: Judged | None
    checkpoints: tuple[int, ...]  # rounds
    audit: Audit | None = None  # what attacks on its wire found
    also_judged: tuple[Judged, ...] = ()  # otherwise, perhaps only baselines; never put together with ``judged``
    unread: tuple[str, ...] = ()  # of its other judgements, those that cannot be read, and why

    @property
    def rounds(self) -> list[Mapping[str, Any]]:
        """The training rounds that changed the weights."""
        return [line for line in self.history if line["kind"] == "train" and not line["void"]]

    @property
    def evaluations(self) -> list[Mapping[str, Any]]:
        """The rounds in which the sites evaluated the federated networks."""
        return [line for line in self.history if line["kind"] == "evaluate" and not line["void"]]

    @property
    def rounds_done(self) -> int:
        return max((int(line["round"]) for line in self.history if line["kind"] == "train"), default=0)

    @property
    def rounds_planned(self) -> int:
        return int(self.settings.get("rounds.warmup", 0)) + int(self.settings.get("rounds.minimax", 0))

    @property
    def finished(self) -> bool:
        return bool(self.summary)

    @property
    def kind(self) -> str:
        """``federated`` or ``centralized``; a run does not say it before its end, but only a federation sends."""
        named = self.summary.get("kind")
        travelled = any(line["bytes_up"] or line["bytes_down"] or line["dropped"] for line in self.history)
        return str(named) if named else ("federated" if travelled or not self.history else "centralized")

    @property
    def sites(self) -> int:
        if "sites" in self.summary:
            return int(self.summary["sites"])
        return len({site["node"] for line in self.history for site in line["sites"]}) or 1


@dataclass(frozen=True)
class ComparisonStory:
    """One comparison folder; ``content`` is ``comparison.json`` as it stands."""

    path: Path
    name: str
    content: Mapping[str, Any]


def collect(paths: Sequence[Path]) -> tuple[list[RunStory], list[ComparisonStory]]:
    """What the named folders tell, in their order, a folder named twice once.

    Raises:
        UserError: a folder is neither a run nor a comparison, a run has no checkpoint yet, a file of it cannot be
            read or is of a newer format.
    """
    runs, comparisons = [], []
    for path in dict.fromkeys(Path(path).expanduser().absolute() for path in paths):
        if (path / COMPARISON).is_file():
            comparisons.append(open_comparison(path))
            continue
        if (path / CELLS).is_dir():
            raise UserError(
                f"{path}: a comparison that is not finished (no {COMPARISON}); `fedspact compare` with the same --out "
                "goes on where it was."
            )
        run = open_run(path)
        if not run.checkpoints:
            raise UserError(
                f"{path}: has no checkpoint yet: its first round is not finished. Wait for it, or start it again."
            )
        runs.append(run)
    return runs, comparisons


def open_run(path: Path) -> RunStory:
    """One run folder, complete or not.

    Raises:
        UserError: not a run folder, or a file in it cannot be understood.
    """
    folder = RunFolder.open(path)
    summary = read_json(path / "summary.json") or {}
    try:
        judgements, unread = _judgements(folder)
        chosen = next((one for one in judgements if ANONYMIZED in one.representations), None)
        judged = chosen or from_summary(summary)
        history = folder.history()
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: its figures cannot be understood ({type(error).__name__}: {error}).") from error
    return RunStory(
        path=path,
        name=path.name,
        created=folder.created(),
        settings=folder.settings(),
        history=history,
        summary=summary,
        judged=judged,
        checkpoints=tuple(folder.checkpoints()),
        audit=read_audit(path / AUDIT) if (path / AUDIT).exists() else None,
        also_judged=tuple(one for one in judgements if one is not chosen),
        unread=tuple(unread),
    )


def present_anonymizer(folder: RunFolder) -> Path | None:
    """The exported anonymizer, or the last checkpoint while the run goes on; None: there is none yet."""
    exported = folder.path / ANONYMIZER_FILE
    return exported if exported.exists() else next(reversed(folder.checkpoints().values()), None)


def _judgements(folder: RunFolder) -> tuple[list[Judged], list[str]]:
    """What ``fedspact evaluate`` wrote, those of the present anonymizer and the newest first; why others are not read.

    A judgement by another protocol, with other settings or of other data moves the one before to a name with its date.
    """
    found, unread = [], []
    for path in judgement_files(folder.path):
        try:
            found.append(from_evaluation(read_evaluation(path), path.name))
        except (UserError, KeyError, TypeError, ValueError, AttributeError) as error:
            if path.name == FILE:
                raise
            told = str(error) if isinstance(error, UserError) else f"{path}: damaged ({error})"
            unread.append(told.replace(str(path), path.name))  # for a page that others may see
    if len(found) > 1:
        model = present_anonymizer(folder)
        own = hashlib.sha256(model.read_bytes()).hexdigest() if model is not None else ""
        found.sort(
            key=lambda one: rank(one.model.get("sha256"), own, one.described["created"], one.source), reverse=True
        )
    return found, unread


def open_comparison(path: Path) -> ComparisonStory:
    """One comparison folder.

    Raises:
        UserError: its file is missing, not ours, incomplete, or of a newer format.
    """
    content = read_json(path / COMPARISON)
    if content is None:
        raise UserError(f"{path}: not a comparison folder (its {COMPARISON} is missing).")
    if content.get("format") != COMPARISON_FORMAT or not isinstance(content.get("summary"), list):
        raise UserError(f"{path / COMPARISON}: not a comparison of fedspact; make it with fedspact compare.")
    version = content.get("format_version", 1)
    if version > COMPARISON_VERSION:
        raise UserError(
            f"{path / COMPARISON}: format {version}, this fedspact reads {COMPARISON_VERSION}; upgrade fedspact."
        )
    return ComparisonStory(path, path.name, content)


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object; None: there is no such file.

    Raises:
        UserError: it cannot be read, or is no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}). Write it anew, or remove it.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a JSON object. Write it anew, or remove it.")
    return content
