"""The attackers' names alone: who only checks them, as the server does, loads no network and no reader of pictures."""

from __future__ import annotations

from collections.abc import Sequence

from spact_models.errors import UserError

TREES = "clip-trees"  # trees over a clip's statistics: names people and attributes, matches nothing
ATTACKERS = (
    "frame-convnet",
    "frame-resnet18",
    "frame-resnet50",
    "frame-vit",
    "video-tiny",
    "video-r3d18",
    "video-r2plus1d18",
    TREES,
)


def check_attackers(names: Sequence[str]) -> tuple[str, ...]:
    """The names, each once and known; UserError otherwise."""
    for name in names:
        if name not in ATTACKERS:
            raise UserError(f'attacker = "{name}", must be one of {", ".join(ATTACKERS)}')
    if len(set(names)) < len(names):
        raise UserError(f'attackers = "{",".join(names)}" names one twice; name each once')
    return tuple(names)
