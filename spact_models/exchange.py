"""What may cross the wire: named floating-point parameters of f_A and f_T, as differences.

Buffers never travel: BatchNorm's integer counters break norms and its statistics leak and average badly. f_B never
travels at all. The two branches are told apart by the first part of the name.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from spact_models.errors import UserError

ANONYMIZER = "anonymizer."
ACTION = "action."
BRANCHES = (ANONYMIZER, ACTION)


def shared_parameters(anonymizer: nn.Module, action: nn.Module) -> dict[str, Tensor]:
    """The parameters that sites share, by wire name, detached (not copied)."""
    named = {ANONYMIZER: anonymizer, ACTION: action}
    return {
        prefix + name: parameter.detach()
        for prefix, network in named.items()
        for name, parameter in network.named_parameters()
        if parameter.is_floating_point()
    }


def trained_names(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """The wire names that a run trains and sends: all, or those that one of ``wire.parameters``' patterns matches.

    In a pattern ``*`` stands for any text, dots included, and ``?`` for one character.

    Raises:
        UserError: a pattern matches nothing, or nothing of a whole network is left: the game needs both to learn.
    """
    known = list(names)
    if not patterns:
        return known
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in known):
            near = difflib.get_close_matches(pattern, known, n=3, cutoff=0.0)
            raise UserError(
                f"wire.parameters: {pattern!r}, matches no parameter of the run's networks. Near it are: "
                f"{', '.join(near)}."
            )
    chosen = [name for name in known if any(fnmatchcase(name, pattern) for pattern in patterns)]
    for prefix in BRANCHES:
        if not any(name.startswith(prefix) for name in chosen):
            raise UserError(
                f"wire.parameters = {','.join(patterns)!r}, names nothing of {prefix}*: f_A and f_T must both learn. "
                f"Add a pattern for it, for example {prefix}*"
            )
    return chosen


def snapshot(anonymizer: nn.Module, action: nn.Module) -> dict[str, Tensor]:
    """A copy of :func:`shared_parameters` on the CPU, in float32 and plain memory, however they lie in training."""
    shared = shared_parameters(anonymizer, action)
    plain = torch.contiguous_format
    return {name: value.to("cpu", torch.float32, copy=True, memory_format=plain) for name, value in shared.items()}


def difference(after: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``after - before`` by name, in float32 on the CPU; both must hold exactly the same names."""
    if after.keys() != before.keys():
        raise KeyError(f"names differ: {sorted(after.keys() ^ before.keys())}")
    return {name: after[name].float().cpu() - before[name].float().cpu() for name in after}


def length(update: Mapping[str, Tensor]) -> float:
    """L2 of a whole update, all tensors as one vector; summed in float64: float32's squares overflow from 1e19 on."""
    return math.sqrt(sum(float(torch.linalg.vector_norm(value, dtype=torch.float64)) ** 2 for value in update.values()))


def clipped(update: Mapping[str, Tensor], bound: float) -> dict[str, Tensor]:
    """A site's whole update, all tensors as one vector, scaled down to an L2 norm of at most ``bound``.

    An update of zeros stays what it is. One that is not finite becomes zeros: it has nothing to tell, and an error
    in its place would tell something.
    """
    norm = length(update)
    if not math.isfinite(norm):
        return {name: torch.zeros_like(value) for name, value in update.items()}
    scale = min(1.0, bound / norm) if norm > 0 else 1.0
    return {name: value * scale for name, value in update.items()}


def install(anonymizer: nn.Module, action: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy wire-named weights into the two networks, in place; every shared name must be there."""
    shared = shared_parameters(anonymizer, action)
    if shared.keys() != weights.keys():
        raise KeyError(f"names differ: {sorted(shared.keys() ^ weights.keys())}")
    with torch.no_grad():
        for name, parameter in shared.items():
            parameter.copy_(weights[name])


def branch(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights of one network, its prefix taken off: what ``load_state_dict`` takes."""
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def expected_shapes(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Name -> shape: what the server holds an update against."""
    return {name: tuple(value.shape) for name, value in weights.items()}
