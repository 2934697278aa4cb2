"""Every network with group norm yields per-sample gradients under Opacus, equal to a loop over the samples.

In-place steps and norms that mix samples both fail here.
"""

from collections.abc import Callable

import opacus
import pytest
import torch
from torch import Tensor, nn

from spact_models.action import build_action
from spact_models.anonymizer import Anonymizer, AnonymizerConfig
from spact_models.privacy import PrivacyClassifier, build_privacy

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "anonymizer frame": (lambda: Anonymizer(AnonymizerConfig(base_channels=8, depth=2)), (3, 2, 8, 8)),
    "anonymizer motion": (
        lambda: Anonymizer(
            AnonymizerConfig(kind="motion", motion_input="frames", base_channels=8, depth=1, patch_px=2)
        ),
        (3, 3, 8, 8),
    ),
    "action tiny": (lambda: build_action("tiny", 4, "group"), (3, 4, 16, 16)),
    "action r3d18": (lambda: build_action("r3d18", 4, "group"), (3, 4, 8, 8)),
    "action r2plus1d18": (lambda: build_action("r2plus1d18", 4, "group"), (3, 2, 8, 8)),
    "action mc318": (lambda: build_action("mc318", 4, "group"), (3, 2, 8, 8)),
    "privacy tiny": (lambda: build_privacy("tiny", "group"), (3, 16, 16)),
    "privacy resnet18": (lambda: build_privacy("resnet18", "group"), (3, 32, 32)),
    "privacy resnet50": (lambda: build_privacy("resnet50", "group"), (3, 32, 32)),
    "attacker": (lambda: PrivacyClassifier("tiny", 3, "group"), (3, 16, 16)),
}


def loss_of(output: Tensor) -> Tensor:
    """A sum over samples of something not flat in any output."""
    weights = torch.linspace(-1, 1, output[0].numel()).view(output.shape[1:])
    return (output.square() * weights + output * weights.flip(0)).sum()


def per_sample(network: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    """Gradients of each sample by Opacus' hooks; the frames of a clip, folded into the batch, are added up."""
    wrapped = opacus.GradSampleModule(network, loss_reduction="sum")
    loss_of(wrapped(inputs)).backward()
    gradients = {}
    for name, parameter in network.named_parameters():
        sample = parameter.grad_sample
        gradients[name] = sample.reshape(len(inputs), -1, *parameter.shape).sum(dim=1)
    wrapped.to_standard_module()
    return gradients


# A lone clip is a case of its own where time is folded: its frames are then a view and not a copy.
CASES = [(name, 2) for name in NETWORKS] + [("anonymizer frame", 1), ("anonymizer motion", 1)]


@pytest.mark.parametrize(("name", "samples"), CASES)
def test_equal_a_loop_over_samples(name: str, samples: int) -> None:
    torch.manual_seed(0)
    build, shape = NETWORKS[name]
    network = build()
    inputs = torch.rand(samples, *shape)
    fast = per_sample(network, inputs)
    largest = max(float(g.abs().max()) for g in fast.values())
    for b in range(samples):
        network.zero_grad()
        loss_of(network(inputs[b : b + 1])).backward()
        for key, parameter in network.named_parameters():
            assert parameter.grad is not None
            torch.testing.assert_close(fast[key][b], parameter.grad, atol=2e-4 * largest, rtol=1e-2, msg=key)


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_is_done_in_place(name: str) -> None:
    network = NETWORKS[name][0]()
    assert not [m for m in network.modules() if getattr(m, "inplace", False)]
    assert not list(network.buffers())
