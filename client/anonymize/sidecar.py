"""The JSON beside every output: what was done to it and by which model, and nothing of the raw video.

The input's name is its last part only: paths tell where and for whom a camera hangs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spact_models.files import write_file

FORMAT, FORMAT_VERSION = "fedspact-anonymized", 1


def sidecar_path(output: Path) -> Path:
    """``clip.mp4`` -> ``clip.mp4.json``."""
    return output.with_name(f"{output.name}.json")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Whole or not at all.

    Raises:
        UserError: it cannot be written there.
    """
    told = {"format": FORMAT, "format_version": FORMAT_VERSION, **content}
    text = json.dumps(told, indent=2, ensure_ascii=False) + "\n"
    write_file(path, text, "free some space or choose another place")


def read_sidecar(output: Path) -> dict[str, Any] | None:
    """What the sidecar of an output says; None where there is none that can be read."""
    try:
        told = json.loads(sidecar_path(output).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(told, dict) or told.get("format") != FORMAT or told.get("format_version") != FORMAT_VERSION:
        return None
    return told


def finished(
    output: Path, source: Path, model: Mapping[str, Any], settings: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The sidecar of a complete output of this input by this model with these settings; None: there is work to do.

    Like make, by time: an input newer than its output is done again.
    """
    told = read_sidecar(output)
    if told is None or told.get("model") != model or told.get("settings") != settings:
        return None
    try:
        made, given = output.stat(), source.stat()
    except OSError:
        return None
    same = told.get("output_bytes") == made.st_size and told.get("input", {}).get("bytes") == given.st_size
    return told if same and given.st_mtime <= made.st_mtime else None
