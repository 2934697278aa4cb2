"""The server's step: from the sites' mean difference to the next global weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from spact_models.round_settings import StrategyConfig


class ServerStep:
    """Holds the global weights and torch's optimizer over them; the pseudo-gradient is minus the mean difference.

    - ``fedavg``, ``fedprox``: plain SGD; with learning rate 1 the new weights are exactly ``w + mean``. FedProx's
      pull is the sites' part.
    - ``fedavgm``: SGD with momentum (Hsu et al. 2019).
    - ``fedadam``: Adam with eps = tau (Reddi et al. 2021; torch also corrects the moments' bias, they do not).

    Args:
        config: name and rates.
        weights: the first global weights by wire name; copied.
    """

    def __init__(self, config: StrategyConfig, weights: Mapping[str, Tensor]) -> None:
        self.weights = {name: value.detach().to("cpu", torch.float32, copy=True) for name, value in weights.items()}
        self._optimizer = _optimizer(config, list(self.weights.values()))
        self._plain_rate = config.learning_rate if config.name in ("fedavg", "fedprox") else None

    def apply(self, mean: dict[str, Tensor]) -> None:
        """One step. ``mean`` is used up; names that it lacks (a branch nobody sent) keep weights and moments."""
        unknown = sorted(mean.keys() - self.weights.keys())
        if unknown:
            raise KeyError(f"no such weights: {unknown}")
        if self._plain_rate is not None:  # what SGD does, to the bit, without a gradient's sign to turn
            for name in list(mean):
                self.weights[name].add_(mean.pop(name), alpha=self._plain_rate)
            return
        for name, weight in self.weights.items():
            weight.grad = mean.pop(name).neg_() if name in mean else None
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """The optimizer's tensors as ``KEY/NAME`` (``exp_avg/action.fc.weight``): what a resumed run goes on with."""
        named = {id(weight): name for name, weight in self.weights.items()}
        return {
            f"{key}/{named[id(weight)]}": value
            for weight, held in self._optimizer.state.items()
            for key, value in held.items()
            if isinstance(value, Tensor)  # SGD without momentum notes None
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what :meth:`state` gave.

        Raises:
            KeyError: it is the state of other weights.
        """
        for full, value in state.items():
            key, _, name = full.partition("/")
            self._optimizer.state[self.weights[name]][key] = value.clone()


def _optimizer(config: StrategyConfig, weights: list[Tensor]) -> torch.optim.Optimizer:
    lr = config.learning_rate
    if config.name in ("fedavg", "fedprox"):
        return torch.optim.SGD(weights, lr=lr)
    if config.name == "fedavgm":
        return torch.optim.SGD(weights, lr=lr, momentum=config.momentum)
    return torch.optim.Adam(weights, lr=lr, betas=(config.beta1, config.beta2), eps=config.adaptivity)
