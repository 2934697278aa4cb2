"""Self-describing checkpoints: safetensors with a JSON header that rebuilds the networks and says where they come from.

No pickle: opening somebody's anonymizer must not run somebody's code.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from spact_models.errors import UserError

FORMAT = "fedspact-checkpoint"
FORMAT_VERSION = 1
REMEDY = "name a run folder, or a .safetensors file as fedspact wrote it"


@dataclass(frozen=True)
class Checkpoint:
    """Named tensors and the header: ``settings`` (flat), ``classes``, ``round``, versions."""

    tensors: dict[str, Tensor]
    header: dict[str, Any]
    path: Path  # the file that it was read from, for messages


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write atomically: a reader sees the old file or the whole new one, also after a crash or on a full disk."""
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


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, flush it to the disk, then rename it over ``path``.

    The folder is flushed too: after a power cut the new name is there when this has returned.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(descriptor)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _flush_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _flush_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows opens no folder
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
