"""Self-describing checkpoints: safetensors with a JSON header that rebuilds the networks and says where they come from.

No pickle: opening somebody's anonymizer must not run somebody's code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from spact_models.errors import UserError
from spact_models.files import write_atomically

FORMAT = "fedspact-checkpoint"
FORMAT_VERSION = 1
ANONYMIZER_FILE = "anonymizer.safetensors"  # in a run folder: f_A of its last checkpoint, alone
REMEDY = "name a run folder, or a .safetensors file as fedspact wrote it"


@dataclass(frozen=True)
class Checkpoint:
    """Named tensors and the header: ``settings`` (flat), ``classes``, ``round``, versions."""

    tensors: dict[str, Tensor]
    header: dict[str, Any]
    path: Path  # the file that it was read from, for messages


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write atomically: a reader sees the old file or the whole new one, also after a crash or on a full disk.

    Raises:
        OSError: it cannot be written.
    """
    named = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    described = {"format": FORMAT, "format_version": FORMAT_VERSION, **header}
    payload = safetensors.torch.save(named, metadata={"fedspact": json.dumps(described, sort_keys=True)})
    write_atomically(path, lambda temporary: temporary.write_bytes(payload))


def load_checkpoint(path: Path) -> Checkpoint:
    """Read what :func:`save_checkpoint` wrote.

    Raises:
        UserError: the file is missing, is no checkpoint of ours, or is of a format that is not read here.
    """
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("fedspact", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, safetensors.SafetensorError, ValueError) as error:
        raise UserError(f"{path}: not a checkpoint that can be read ({error}); {REMEDY}") from None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise UserError(
            f"{path}: safetensors, but not a checkpoint of fedspact (its header is missing or another's); {REMEDY}"
        )
    version = header.get("format_version")
    if type(version) is not int or version < 1:
        raise UserError(f"{path}: format_version = {version!r}, must be a whole number from 1; {REMEDY}")
    if version > FORMAT_VERSION:
        raise UserError(
            f"{path}: format {version}, this fedspact reads {FORMAT_VERSION}; upgrade fedspact to use this file"
        )
    return Checkpoint(tensors, header, path)
