"""What a run folder says of its anonymizer: the file, how it came about, what a judgement found."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from server.runs import SUMMARY, RunFolder
from spact_models.anonymizer import Anonymizer
from spact_models.checkpoint import ANONYMIZER_FILE, Checkpoint, load_checkpoint
from spact_models.errors import UserError
from spact_models.exchange import ANONYMIZER
from spact_models.export import export
from spact_models.networks import BUFFERS, load_anonymizer

EVALUATION = "evaluation.json"  # what `fedspact evaluate` leaves in a run folder


def source(path: Path) -> tuple[Path, RunFolder | None]:
    """The anonymizer's file of a run folder or the file itself, and the run around it where there is one.

    Raises:
        UserError: no run folder, or one without a checkpoint.
    """
    if path.is_dir():
        run = RunFolder.open(path)
        return anonymizer_file(run), run
    return path, RunFolder.around(path)


def anonymizer_file(run: RunFolder) -> Path:
    """``anonymizer.safetensors`` of a run; where only a server trained, it is written from the last checkpoint."""
    path = run.path / ANONYMIZER_FILE
    if not path.exists():
        kept = list(run.checkpoints().values())
        if not kept:
            raise UserError(f"{run.path}: holds no checkpoint, so there is no anonymizer to take from it.")
        export(load_anonymizer(kept[-1])[0], path, "safetensors", load_checkpoint(kept[-1]).header)
    return path


def anonymizer_tensors(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """f_A's weights and statistics out of a checkpoint that may hold more."""
    wanted = (ANONYMIZER, BUFFERS + ANONYMIZER)
    return {name: value for name, value in checkpoint.tensors.items() if name.startswith(wanted)}


def training_summary(header: Mapping[str, Any], run: RunFolder | None) -> dict[str, Any]:
    """How it came about, from the checkpoint's header and the run folder's own files; no path of anybody's machine."""
    settings = {key: value for key, value in header["settings"].items() if not _is_path(key)}
    told: dict[str, Any] = {
        "round": header.get("round", "unknown"),
        "seed": settings.get("seed", "unknown"),
        "preset": settings.get("preset", "unknown"),
        "actions": list(header.get("classes", [])),
        "versions": dict(header.get("versions", {})),
    }
    if run is not None:
        told |= _history(run)
    return {**told, "settings": settings}


def evidence(model: Path, run: RunFolder | None) -> tuple[dict[str, Any], str]:
    """What ``evaluation.json`` found of exactly this file: figures, or nothing and the reason."""
    path = None if run is None else run.path / EVALUATION
    if path is None or not path.is_file():
        return {}, "no evaluation.json beside it; fedspact evaluate makes one"
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        judged = said["model"].get("sha256")
        if judged != hashlib.sha256(model.read_bytes()).hexdigest():
            return {}, "evaluation.json is about another file"
        return _evidence(said), ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return {}, f"evaluation.json cannot be read ({type(error).__name__}: {error})"


def now() -> str:
    """UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def described(path: Path) -> tuple[Anonymizer, Checkpoint]:
    """The anonymizer of a file, and the file's own header and tensors."""
    return load_anonymizer(path)[0], load_checkpoint(path)


def _is_path(key: str) -> bool:
    return key == "run_dir" or key.endswith("_weights") or key.startswith("release.")


def _history(run: RunFolder) -> dict[str, Any]:
    """Sites, rounds and bytes of the training, from ``metrics.jsonl`` and ``summary.json``."""
    rounds = [line for line in run.history() if line["kind"] == "train"]
    sites = sorted({site["name"] for line in rounds for site in line["sites"]})
    told: dict[str, Any] = {
        "begun": run.created(),
        "rounds": len(rounds),
        "void_rounds": sum(r["void"] for r in rounds),
    }
    if sites:  # a centralised run has none
        told |= {"sites": len(sites)}
    told |= {
        "bytes_up": sum(line["bytes_up"] for line in rounds),
        "bytes_down": sum(line["bytes_down"] for line in rounds),
    }
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # without its summary a run has told none
        told["seconds"] = json.loads((run.path / SUMMARY).read_text(encoding="utf-8"))["seconds"]
    return told


def _evidence(said: Mapping[str, Any]) -> dict[str, Any]:
    rows, chance = said["representations"], said["chance"]
    if "anonymized" not in rows:
        raise KeyError("anonymized")
    questions: dict[str, Any] = {}
    ours, raw = rows["anonymized"], rows.get("raw", {"action": None, "attacks": {}})
    if ours["action"] is not None:
        questions["action (utility)"] = _figure(ours["action"], raw["action"], chance.get("action"), "a fresh f_T")
    for task, attack in ours["attacks"].items():
        strongest = attack["attackers"][attack["strongest"]]
        before = raw["attacks"].get(task)
        beside = None if before is None else before["attackers"][before["strongest"]]
        questions[task] = _figure(strongest, beside, chance.get(task), attack["strongest"])
    return {
        "questions": questions,
        "protocol": said["protocol"],
        "seeds": list(said["seeds"]),
        "train_videos": said["data"]["train_videos"],
        "test_videos": said["data"]["test_videos"],
        "budget": said["budget"],
        "not_measured": list(said["not_measured"]),
        "created": said["created"],
    }


def _figure(ours: Mapping[str, Any], raw: Mapping[str, Any] | None, chance: float | None, by: str) -> dict[str, Any]:
    return {
        "anonymized": ours["mean"],
        "low": ours["low"],
        "high": ours["high"],
        "raw": None if raw is None else raw["mean"],
        "chance": chance,
        "strongest": by,
    }
