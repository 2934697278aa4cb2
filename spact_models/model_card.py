"""The model card: what an anonymizer is, how it came about, what was found about it and what nobody found.

One tree of plain values, written as JSON (which is signed) and as Markdown (which is read). What is not known is said
to be not known; the card claims nothing that no file backs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from spact_models import __version__
from spact_models.files import write_file
from spact_models.signing import card_path

FORMAT, FORMAT_VERSION = "fedspact-model-card", 1
CODE_LICENCE = "Apache-2.0"
REMEDY = "free that disk, then give the same command again"
UNSTATED = "not stated by whoever trained it; ask before you pass it on"
AT_LEAST = (
    "≥: a network still did not know its own training clips when its steps ended; with more steps it may find more."
)
LIMITS = (
    "It hides looks, not everything: how somebody moves remains, and so does that somebody moves.",
    "Judged by fresh networks of a given budget on given videos. A stronger attacker, another camera or other people "
    "can find more; no bound is proven.",
    "It hides pictures only. Sound, file names, times and places of a recording are not its business.",
    "Frames must come at the stated stride, brought to the stated size: what was judged at one size says little of "
    "another.",
    "The network fixes what is shown, not who may see it: keep anonymised video as you would keep video.",
)


@dataclass(frozen=True)
class Card:
    """What goes into the card beside the file itself."""

    anonymizer: Mapping[str, Any]  # export.describe, and what the export measured
    weights_sha256: str
    training: Mapping[str, Any]
    evidence: Mapping[str, Any] = field(default_factory=dict)  # of evaluation.json or summary.json; empty: not judged
    unjudged: str = ""  # why there is no evidence
    release: Mapping[str, Any] = field(default_factory=dict)  # of the gate; empty: not released
    licence: str = UNSTATED


def weights_sha256(tensors: Mapping[str, Tensor]) -> str:
    """One name for these weights in whatever file: over names, types, shapes and bytes, in order of names."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        sha.update(value.numpy().tobytes())
    return sha.hexdigest()


def write_card(card: Card, model: Path, created: str) -> Path:
    """Write ``MODEL.card.json`` and ``MODEL.card.md`` beside the model; returns the JSON's path.

    Raises:
        UserError: one of them cannot be written.
    """
    tree = as_tree(card, model, created)
    path = card_path(model)
    text = json.dumps(tree, indent=2, sort_keys=True, allow_nan=False) + "\n"
    write_file(path, text, REMEDY)
    readable = path.with_suffix(".md")
    write_file(readable, as_markdown(tree), REMEDY)
    return path


def as_tree(card: Card, model: Path, created: str) -> dict[str, Any]:
    """The card as plain values."""
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "created": created,
        "fedspact": __version__,
        "model": {
            "file": model.name,
            "bytes": model.stat().st_size,
            "sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
            "weights_sha256": card.weights_sha256,
            **card.anonymizer,
        },
        "training": dict(card.training),
        "evidence": dict(card.evidence) or None,
        "not_judged": card.unjudged or None,
        "release": dict(card.release) or None,
        "limits": list(LIMITS),
        "licence": {"weights": card.licence, "code": CODE_LICENCE},
    }


def as_markdown(tree: Mapping[str, Any]) -> str:
    """The same for people."""
    model, training = tree["model"], tree["training"]
    parts = [
        f"# {model['file']}",
        "A video anonymizer: it keeps what is done and hides who does it. Made with FedSPAct "
        f"{tree['fedspact']}, card of {tree['created']}.",
        "## How to run it",
        _list({name: model[name] for name in ("input", "output", "noise") if model.get(name)}),
        _list({
            "history": f"{model['history_frames']} earlier frames",
            "stride": f"{model['stride_frames']} frames of the video between two that it sees",
            "working size": f"{model['size_px']} × {model['size_px']} px: bring frames to it, and back afterwards",
        }),
        "## The file",
        _list({
            "SHA-256": f"`{model['sha256']}`",
            "weights, SHA-256": f"`{model['weights_sha256']}`",
            "bytes": model["bytes"],
            **_differences(model),
        }),
        "## How it was trained",
        _list({name: value for name, value in training.items() if name != "settings"}),
        "## What was found",
        _evidence(tree),
        "## Release",
        _release(tree["release"]),
        "## Limits",
        "\n".join(f"- {limit}" for limit in tree["limits"]),
        "## Licence",
        _list(tree["licence"]),
        "## Settings",
        "```\n" + "\n".join(f"{key} = {value!r}" for key, value in training.get("settings", {}).items()) + "\n```",
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _list(values: Mapping[str, Any]) -> str:
    return "\n".join(f"- {name.replace('_', ' ')}: {_shown(value)}" for name, value in values.items())


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {one}" for name, one in value.items()) or "unknown"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "unknown"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _differences(model: Mapping[str, Any]) -> dict[str, str]:
    if "max_difference" not in model:
        return {}
    kept = "8-bit weights" if model.get("int8") else "float weights"
    largest, mean = model["max_difference"], model["mean_difference"]
    return {kept: f"answers differ from the original's by at most {largest:.2g}, on average {mean:.2g}, of 0…1"}


def _evidence(tree: Mapping[str, Any]) -> str:
    evidence = tree["evidence"]
    if not evidence:
        return f"Not judged: {tree['not_judged'] or 'no evaluation of this file was there'}."
    lines = [
        "| question | raw | anonymized | 95 % interval | chance | strongest attacker |",
        "|---|---|---|---|---|---|",
    ]
    hurried = False
    for task, one in evidence["questions"].items():
        interval = "–" if one["low"] is None else f"{one['low']:.3f} – {one['high']:.3f}"
        bounds = {"raw": one["raw_at_least"], "anonymized": one["at_least"], "chance": False}
        raw, ours, chance = (_share(one[name], at_least) for name, at_least in bounds.items())
        lines.append(f"| {task} | {raw} | {ours} | {interval} | {chance} | {one['strongest']} |")
        hurried = hurried or any(bounds.values())
    told = {name: value for name, value in evidence.items() if name not in ("judgement", "questions") and value}
    parts = [f"Judgement: {evidence['judgement']}.", "\n".join(lines), _list(told)]
    return "\n\n".join([*parts[:2], AT_LEAST, parts[2]] if hurried else parts)


def _share(value: float | None, at_least: bool) -> str:
    return "–" if value is None else f"{'≥ ' if at_least else ''}{value:.3f}"


def _release(release: Mapping[str, Any] | None) -> str:
    if not release:
        return "Not released: no federation has judged this file under a policy, and nobody has signed it."
    lines = [
        f"Judged at {len(release['sites'])} sites with fresh attackers under the policy below, and signed.",
        "",
        "| site | question | videos | raw | anonymized | 95 % interval | chance | leakage |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for site in release["sites"]:
        for one in site["questions"]:
            leakage = "–" if one["leakage"] is None else f"{one['leakage']:.3f}"
            lines.append(
                f"| {site['name']} | {one['task']} | {one['videos']} | {one['raw']:.3f} | {one['anonymized']:.3f} "
                f"| {one['low']:.3f} – {one['high']:.3f} | {one['chance']:.3f} | {leakage} |"
            )
    policy = "\n".join(f"{key}: {value}" for key, value in release["policy"].items())
    return "\n".join(lines) + f"\n\nLeakage is (anonymized - chance) / (1 - chance).\n\n```yaml\n{policy}\n```"
