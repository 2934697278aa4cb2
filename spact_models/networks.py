"""From settings to the three networks, and back from a checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spact_models import __version__
from spact_models.action import build_action
from spact_models.anonymizer import Anonymizer, AnonymizerConfig
from spact_models.checkpoint import REMEDY, Checkpoint, load_checkpoint
from spact_models.errors import UserError
from spact_models.exchange import ACTION, ANONYMIZER, branch
from spact_models.presets import BEFORE
from spact_models.pretrained import load_pretrained
from spact_models.privacy import build_privacy
from spact_models.run_config import load_settings
from spact_models.seeds import seeded
from spact_models.settings import Settings

log = logging.getLogger("fedspact.networks")
_reported: set[tuple[str, str]] = set()
BUFFERS = "buffers."  # checkpoints of centralised runs also hold BatchNorm's statistics, under this prefix


@dataclass
class Networks:
    """The two shared networks, f_A and f_T."""

    anonymizer: Anonymizer
    action: nn.Module


def anonymizer_config(settings: Settings) -> AnonymizerConfig:
    """The anonymizer that the settings describe, at the clip's working size and stride."""
    named = _checked_names(settings)
    return AnonymizerConfig(
        kind=named.anonymizer,
        motion_input=named.motion_input,
        motion_frames=named.motion_frames,
        base_channels=named.anonymizer_channels,
        depth=named.anonymizer_depth,
        patch_px=named.anonymizer_patch_px,
        input_skip=named.anonymizer_input_skip,
        threshold=named.motion_threshold,
        norm=named.norm,
        output_noise=named.output_noise,
        output_levels=named.output_levels,
        output_cell_px=named.output_cell_px,
        size_px=settings.clip.size_px,
        stride_frames=settings.clip.stride_frames,
    )


def build_networks(settings: Settings, classes: Sequence[str]) -> Networks:
    """f_A and f_T, initialised by ``settings.seed`` alone, so that every party builds the same."""
    with seeded("anonymizer", settings.seed):
        anonymizer = Anonymizer(anonymizer_config(settings))
    with seeded("action", settings.seed):
        named = _checked_names(settings)
        action = build_action(named.action, len(classes), named.norm)
    if settings.networks.action_weights:
        _start_from(action, "action", settings.networks.action, settings.networks.action_weights)
    return Networks(anonymizer, action)


def build_privacy_network(settings: Settings, *seed: int | str) -> nn.Module:
    """A site's own f_B; ``seed`` names the site and how often f_B has begun anew."""
    with seeded("privacy", settings.seed, *seed):
        named = _checked_names(settings)
        privacy = build_privacy(named.privacy, named.norm)
    if settings.networks.privacy_weights:
        _start_from(privacy, "privacy", settings.networks.privacy, settings.networks.privacy_weights)
    return privacy


def _checked_names(settings: Settings) -> Any:
    """``settings.networks`` for those who take names as literal types: the settings have checked them."""
    return settings.networks


def _start_from(network: nn.Module, role: str, name: str, weights: str) -> None:
    """Published weights into a network, and once a process a line in the log of what arrived and what did not."""
    report = load_pretrained(network, name, "hub" if weights == "hub" else Path(weights).expanduser())
    if (role, weights) not in _reported:
        _reported.add((role, weights))
        log.info("networks.%s_weights = %s: %s", role, weights, report)


def checkpoint_header(settings: Settings, classes: Sequence[str], **more: object) -> dict[str, Any]:
    """What a checkpoint says of itself: enough to build its networks, and which versions wrote it."""
    versions = {"fedspact": __version__, "torch": torch.__version__}
    return {"settings": settings.flat(), "classes": list(classes), "versions": versions, **more}


def networks_from_checkpoint(checkpoint: Checkpoint) -> tuple[Networks, Settings, list[str]]:
    """Rebuild f_A and f_T from a self-describing checkpoint, in evaluation mode.

    Raises:
        UserError: a header or weights that do not fit; BatchNorm statistics are missing because they stayed at the
            sites.
    """
    settings = _settings_of(checkpoint)
    classes = _classes_of(checkpoint)
    networks = build_networks(settings, classes)
    _fill(networks.anonymizer, checkpoint, ANONYMIZER)
    _fill(networks.action, checkpoint, ACTION)
    networks.anonymizer.eval()
    networks.action.eval()
    return networks, settings, classes


def _settings_of(checkpoint: Checkpoint) -> Settings:
    told = checkpoint.header.get("settings")
    if not isinstance(told, dict) or not told:
        raise UserError(f"{checkpoint.path}: its header holds no settings to build networks from; {REMEDY}")
    try:
        return load_settings({**BEFORE, **told, "networks.action_weights": ""})
    except (UserError, TypeError) as error:  # TypeError: a list or a table where a setting wants one value
        raise UserError(
            f"{checkpoint.path}: its settings are not those of this fedspact ({str(error).rstrip('.')}); upgrade "
            f"fedspact if a newer one wrote the file, or {REMEDY}"
        ) from None


def _classes_of(checkpoint: Checkpoint) -> list[str]:
    classes = checkpoint.header.get("classes")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise UserError(f"{checkpoint.path}: its header holds no list of action classes; {REMEDY}")
    return classes


def load_anonymizer(path: Path) -> tuple[Anonymizer, Settings, list[str]]:
    """f_A alone, in evaluation mode, with the settings and action classes that it was trained with.

    Raises:
        UserError: no checkpoint of ours, or one without an anonymizer that can be used here.
    """
    checkpoint = load_checkpoint(path)
    settings, classes = _settings_of(checkpoint), _classes_of(checkpoint)
    with seeded("anonymizer", settings.seed):
        anonymizer = Anonymizer(anonymizer_config(settings))
    _fill(anonymizer, checkpoint, ANONYMIZER)
    return anonymizer.eval(), settings, classes


def buffers_of(networks: Networks) -> dict[str, Tensor]:
    """BatchNorm's statistics by checkpoint name; empty with GroupNorm."""
    named = {ANONYMIZER: networks.anonymizer, ACTION: networks.action}
    return {f"{BUFFERS}{prefix}{name}": value for prefix, net in named.items() for name, value in net.named_buffers()}


def _fill(network: nn.Module, checkpoint: Checkpoint, prefix: str) -> None:
    state = {**branch(checkpoint.tensors, prefix), **branch(checkpoint.tensors, BUFFERS + prefix)}
    wanted = network.state_dict()
    missing, unexpected = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    if any(name.endswith(("running_mean", "running_var")) for name in missing):
        raise UserError(
            f"{checkpoint.path}: this checkpoint holds no BatchNorm statistics for {prefix[:-1]}: with networks.norm = "
            "'batch' they stay at the sites. Train with networks.norm = 'group', or centralised."
        )
    odd = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in state and state[name].shape != value.shape
    ]
    found = {"missing": missing, "unexpected": unexpected, "of another shape": odd}
    if any(found.values()):
        told = "; ".join(f"{what} {', '.join(names[:3])}" for what, names in found.items() if names)
        raise UserError(
            f"{checkpoint.path}: checkpoint and settings disagree about {prefix[:-1]} ({told}), so it is not as it was "
            f"written; {REMEDY}"
        )
    network.load_state_dict(state)
