"""What may cross the wire: named floating-point parameters of f_A and f_T, as differences.

Buffers never travel: BatchNorm's integer counters break norms and its statistics leak and average badly. f_B never
travels at all. The two branches are told apart by the first part of the name.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

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


def snapshot(anonymizer: nn.Module, action: nn.Module) -> dict[str, Tensor]:
    """A copy of :func:`shared_parameters` on the CPU, in float32."""
    shared = shared_parameters(anonymizer, action)
    return {name: value.to("cpu", torch.float32, copy=True) for name, value in shared.items()}


def difference(after: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``after - before`` by name, in float32 on the CPU; both must hold exactly the same names."""
    if after.keys() != before.keys():
        raise KeyError(f"names differ: {sorted(after.keys() ^ before.keys())}")
    return {name: after[name].float().cpu() - before[name].float().cpu() for name in after}


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
