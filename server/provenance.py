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
from spact_models.learned import least_learned, stopped_early
from spact_models.model_card import weights_sha256
from spact_models.networks import BUFFERS, load_anonymizer

EVALUATION = "evaluation.json"  # what `fedspact evaluate` leaves in a run folder
NOT_JUDGED = f"no {EVALUATION} beside it; fedspact evaluate makes one"
ANONYMIZED, RAW = "anonymized", "raw"
ACTION, A_FRESH_ACTION_NETWORK = "action (utility)", "a fresh f_T"
UNNAMED = "not told"  # the strongest attacker of an older summary
JUDGE = "judge."
BUDGET = ("steps", "batch", "lr", "train_clips", "test_clips")
IN_FULL = "by fedspact evaluate"
SHORT = "the short one at the run's end: one seed, no intervals; fedspact evaluate makes a longer one"


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
    settings = {key: value for key, value in header["settings"].items() if not is_path(key)}
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
    """What a judgement found of exactly this file: figures, or nothing and the reason.

    The newest of ``evaluation*.json`` that is about it; else the short judgement in ``summary.json``, where these are
    the weights of the run's end.
    """
    if run is None:
        return {}, NOT_JUDGED
    own, reason = hashlib.sha256(model.read_bytes()).hexdigest(), ""
    found: list[tuple[tuple[bool, str, bool], dict[str, Any]]] = []
    for path in judgement_files(run.path):
        try:
            said = json.loads(path.read_text(encoding="utf-8"))
            if said["model"].get("sha256") != own:
                reason = reason or f"{path.name} is about another file"
            elif ANONYMIZED not in said["representations"]:
                reason = reason or f"{path.name} holds baselines alone"
            else:
                found.append((rank(own, own, said["created"], path.name), _evidence(said)))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = f"{path.name} cannot be read ({type(error).__name__}: {error})"
    if found:
        return max(found, key=lambda one: one[0])[1], ""
    try:
        short = _short_evidence(run) if _is_of_the_end(model, run) else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return {}, reason or f"{SUMMARY} cannot be read ({type(error).__name__}: {error})"
    return (short, "") if short else ({}, reason or NOT_JUDGED)


def judgement_files(run: Path) -> list[Path]:
    """What ``fedspact evaluate`` left in a run's folder: a judgement made otherwise than the last moves that aside."""
    return sorted(run.glob(f"{Path(EVALUATION).stem}*.json"))


def rank(judged: str | None, own: str, created: str, file: str) -> tuple[bool, str, bool]:
    """Which of several judgements counts, the largest: one of this very file (SHA-256), the newest, the unmoved."""
    return judged == own, created, file == EVALUATION


def now() -> str:
    """UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def described(path: Path) -> tuple[Anonymizer, Checkpoint]:
    """The anonymizer of a file, and the file's own header and tensors."""
    return load_anonymizer(path)[0], load_checkpoint(path)


def is_path(key: str) -> bool:
    return key == "run_dir" or key.endswith("_weights") or key.startswith("release.")


def _history(run: RunFolder) -> dict[str, Any]:
    """Sites, rounds and bytes of the training, from ``metrics.jsonl`` and ``summary.json``."""
    history = run.history()
    rounds = [line for line in history if line["kind"] == "train"]
    sites = sorted({site["name"] for line in rounds for site in line["sites"]})
    told: dict[str, Any] = {
        "begun": run.created(),
        "rounds": len(rounds),
        "void_rounds": sum(r["void"] for r in rounds),
    }
    if sites:  # a centralised run has none
        told |= {"sites": len(sites)}
    told |= {
        "bytes_up": sum(line["bytes_up"] for line in history),  # evaluations too, as `watch` and the report count
        "bytes_down": sum(line["bytes_down"] for line in history),
    }
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # without its summary a run has told none
        told["seconds"] = json.loads((run.path / SUMMARY).read_text(encoding="utf-8"))["seconds"]
    return told


def _is_of_the_end(model: Path, run: RunFolder) -> bool:
    """Whether a file holds the weights of the run's last checkpoint, which its end has judged."""
    kept = list(run.checkpoints().values())
    try:
        files = [load_checkpoint(path) for path in (model, *kept[-1:])]
    except UserError:  # damaged: then it is none that was judged
        return False
    weights = [weights_sha256(anonymizer_tensors(file)) for file in files]
    return len(weights) == 2 and weights[0] == weights[1]


def _evidence(said: Mapping[str, Any]) -> dict[str, Any]:
    rows, chance = said["representations"], said["chance"]
    ours, raw = rows[ANONYMIZED], rows.get(RAW, {"action": None, "attacks": {}})
    questions: dict[str, Any] = {}
    if ours["action"] is not None:
        questions[ACTION] = _figure(ours["action"], raw["action"], chance.get("action"), A_FRESH_ACTION_NETWORK)
    for task, attack in ours["attacks"].items():
        strongest, by = _strongest(attack["attackers"])
        before = raw["attacks"].get(task)
        beside = _strongest(before["attackers"])[0] if before else None
        questions[task] = _figure(strongest, beside, chance.get(task), by)
    return {
        "judgement": IN_FULL,
        "questions": questions,
        "protocol": said["protocol"],
        "seeds": list(said["seeds"]),
        "train_videos": said["data"]["train_videos"],
        "test_videos": said["data"]["test_videos"],
        "budget": said["budget"],
        "not_measured": list(said["not_measured"]),
        "created": said["created"],
    }


def _short_evidence(run: RunFolder) -> dict[str, Any]:
    """The judgement that ``demo``, ``simulate`` and ``centralize`` make at their end; empty: they made none."""
    path = run.path / SUMMARY
    said = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    learned, questions = said.get("learned") or {}, {}

    def figures(task: str, name: str) -> dict[str, dict[str, Any]]:
        """By attacker; of a run from before attackers were listed, the strongest alone."""
        listed = (said.get("attackers") or {}).get(task, {}).get(name) or {UNNAMED: said["attack"][task].get(name)}
        knew = (learned.get(task) or {}).get(name) or {}
        return {who: {"mean": mean, "learned": knew.get(who)} for who, mean in listed.items() if mean is not None}

    utility, knew = said.get("utility") or {}, learned.get("action") or {}
    if utility.get(ANONYMIZED) is not None:
        kept, before = ({"mean": utility.get(name), "learned": knew.get(name)} for name in (ANONYMIZED, RAW))
        beside = None if before["mean"] is None else before
        questions[ACTION] = _figure(kept, beside, utility.get("chance"), A_FRESH_ACTION_NETWORK)
    for task, row in (said.get("attack") or {}).items():
        ours, raw = figures(task, ANONYMIZED), figures(task, RAW)
        if ours:
            strongest, by = _strongest(ours)
            questions[task] = _figure(strongest, _strongest(raw)[0] if raw else None, row.get("chance"), by)
    if not questions:
        return {}
    asked = {key.removeprefix(JUDGE): value for key, value in run.settings().items() if key.startswith(JUDGE)}
    return {
        "judgement": SHORT,
        "questions": questions,
        "seeds": [said.get("seed", "unknown")],
        "train_videos": said.get("train_videos", "unknown"),
        "test_videos": said.get("test_videos", "unknown"),
        "budget": {name: asked[name] for name in BUDGET if name in asked},
    }


def _strongest(attackers: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, Any], str]:
    """The figure of the attacker with the highest mean, ``learned`` as little as the least finished had; its name."""
    name = max(attackers, key=lambda one: attackers[one]["mean"])
    told = [one.get("learned") for one in attackers.values()]
    return {**attackers[name], "learned": least_learned(attackers[name]["mean"], told)}, name


def _figure(ours: Mapping[str, Any], raw: Mapping[str, Any] | None, chance: float | None, by: str) -> dict[str, Any]:
    return {
        "anonymized": ours["mean"],
        "at_least": stopped_early(ours.get("learned")),
        "low": ours.get("low"),
        "high": ours.get("high"),
        "raw": None if raw is None else raw["mean"],
        "raw_at_least": raw is not None and stopped_early(raw.get("learned")),
        "chance": chance,
        "strongest": by,
    }
