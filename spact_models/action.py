"""f_T, the action network: a clip in, one logit a class out (paper, 3.1).

The R3D-18 family is torchvision's, parameter name by parameter name, so that Kinetics weights load; the blocks are
our own because torchvision's add and rectify in place, which per-sample gradients (Opacus) do not allow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from spact_models.errors import UserError
from spact_models.norms import InputNorm, Norm, check_norm, make_norm

ActionName = Literal["r3d18", "r2plus1d18", "mc318", "tiny"]
LastStage = Literal["dilated", "strided"]
ConvKind = Literal["full", "factored", "spatial"]

KINETICS_MEAN = (0.43216, 0.394666, 0.37645)
KINETICS_STD = (0.22803, 0.22145, 0.216989)


@dataclass(frozen=True)
class VideoResNetPlan:
    """What distinguishes the three 18-layer networks."""

    stem: Literal["full", "factored"]
    stages: tuple[ConvKind, ConvKind, ConvKind, ConvKind]
    last_stage: LastStage


PLANS: dict[str, VideoResNetPlan] = {
    # The reference keeps time in the last stage: 16 frames end as 4 and not 2.
    "r3d18": VideoResNetPlan("full", ("full", "full", "full", "full"), "dilated"),
    "r2plus1d18": VideoResNetPlan("factored", ("factored", "factored", "factored", "factored"), "strided"),
    "mc318": VideoResNetPlan("full", ("full", "spatial", "spatial", "spatial"), "strided"),
}


def build_action(name: ActionName, classes: int, norm: Norm, last_stage: LastStage | None = None) -> nn.Module:
    """An f_T by name. Its forward takes clip_BCTHW, RGB in [0, 1], and returns logits_BK, K = `classes`.

    `last_stage` overrides the plan's time handling in the last stage ("strided" is torchvision's own).
    """
    check_norm(norm)
    if name not in get_args(ActionName):
        raise UserError(f'action network = "{name}", must be one of {", ".join(get_args(ActionName))}')
    if classes < 1:
        raise UserError(f"action classes = {classes}, must be at least 1: label at least one row with an action")
    if name == "tiny":
        return TinyAction(classes, norm)
    return VideoResNet(PLANS[name], classes, norm, last_stage or PLANS[name].last_stage)


@dataclass(frozen=True)
class Steps:
    """How a convolution moves: (time, space) strides, and the dilation of time where a stride was taken away."""

    time: int = 1
    space: int = 1
    time_dilation: int = 1


def convolution(
    kind: ConvKind, channels_in: int, channels_out: int, between: int, steps: Steps, norm: Norm
) -> nn.Module:
    """A 3×3×3 convolution ("full"), its spatial part alone, or factored into 1×3×3, norm, ReLU, 3×1×1 (R(2+1)D).

    `between` is the width between the factors; the other kinds do not read it.
    """
    space_stride = (1, steps.space, steps.space)
    if kind == "spatial":
        return nn.Conv3d(channels_in, channels_out, (1, 3, 3), space_stride, padding=(0, 1, 1), bias=False)
    time_padding = time_dilation = steps.time_dilation
    if kind == "full":
        return nn.Conv3d(
            channels_in,
            channels_out,
            kernel_size=3,
            stride=(steps.time, steps.space, steps.space),
            padding=(time_padding, 1, 1),
            dilation=(time_dilation, 1, 1),
            bias=False,
        )
    return nn.Sequential(
        nn.Conv3d(channels_in, between, (1, 3, 3), space_stride, padding=(0, 1, 1), bias=False),
        make_norm(norm, between, 3),
        nn.ReLU(),
        nn.Conv3d(
            between,
            channels_out,
            kernel_size=(3, 1, 1),
            stride=(steps.time, 1, 1),
            padding=(time_padding, 0, 0),
            dilation=(time_dilation, 1, 1),
            bias=False,
        ),
    )


class BasicBlock(nn.Module):
    """Two convolutions and a way around them; parameter names are torchvision's, nothing happens in place."""

    def __init__(self, kind: ConvKind, channels_in: int, channels_out: int, steps: Steps, norm: Norm) -> None:
        super().__init__()
        # As many weights between the factors of R(2+1)D as the full 3×3×3 convolution would have.
        between = (channels_in * channels_out * 27) // (channels_in * 9 + 3 * channels_out)
        self.conv1 = nn.Sequential(
            convolution(kind, channels_in, channels_out, between, steps, norm),
            make_norm(norm, channels_out, 3),
            nn.ReLU(),
        )
        self.conv2 = nn.Sequential(
            convolution(kind, channels_out, channels_out, between, Steps(), norm), make_norm(norm, channels_out, 3)
        )
        self.relu = nn.ReLU()
        self.downsample: nn.Module | None = None
        if channels_in != channels_out or steps.space != 1:
            stride = (steps.time, steps.space, steps.space)
            self.downsample = nn.Sequential(
                nn.Conv3d(channels_in, channels_out, kernel_size=1, stride=stride, bias=False),
                make_norm(norm, channels_out, 3),
            )

    def forward(self, clip_BCTHW: Tensor) -> Tensor:
        around = clip_BCTHW if self.downsample is None else self.downsample(clip_BCTHW)
        rectified: Tensor = self.relu(self.conv2(self.conv1(clip_BCTHW)) + around)
        return rectified


class VideoResNet(nn.Module):
    """The 18-layer video ResNets (Tran et al. 2018). forward: clip_BCTHW, RGB in [0, 1] -> logits_BK."""

    def __init__(self, plan: VideoResNetPlan, classes: int, norm: Norm, last_stage: LastStage) -> None:
        super().__init__()
        self.input_norm = InputNorm(KINETICS_MEAN, KINETICS_STD)
        self.stem = _stem(plan.stem, norm)
        self.layer1 = _stage(plan.stages[0], 64, 64, Steps(), norm)
        self.layer2 = _stage(plan.stages[1], 64, 128, Steps(time=2, space=2), norm)
        self.layer3 = _stage(plan.stages[2], 128, 256, Steps(time=2, space=2), norm)
        # The reference dilates only the convolution that loses its stride.
        last = Steps(time=1, space=2, time_dilation=2) if last_stage == "dilated" else Steps(time=2, space=2)
        self.layer4 = _stage(plan.stages[3], 256, 512, last, norm)
        self.avgpool = nn.AdaptiveAvgPool3d(1)
        self.fc = nn.Linear(512, classes)
        start_weights(self)

    def forward(self, clip_BCTHW: Tensor) -> Tensor:
        features = self.stem(self.input_norm(clip_BCTHW))
        features = self.layer4(self.layer3(self.layer2(self.layer1(features))))
        logits_BK: Tensor = self.fc(self.avgpool(features).flatten(1))
        return logits_BK


def _stem(kind: Literal["full", "factored"], norm: Norm) -> nn.Sequential:
    if kind == "full":
        return nn.Sequential(
            nn.Conv3d(3, 64, (3, 7, 7), stride=(1, 2, 2), padding=(1, 3, 3), bias=False),
            make_norm(norm, 64, 3),
            nn.ReLU(),
        )
    return nn.Sequential(
        nn.Conv3d(3, 45, (1, 7, 7), stride=(1, 2, 2), padding=(0, 3, 3), bias=False),
        make_norm(norm, 45, 3),
        nn.ReLU(),
        nn.Conv3d(45, 64, (3, 1, 1), padding=(1, 0, 0), bias=False),
        make_norm(norm, 64, 3),
        nn.ReLU(),
    )


def _stage(kind: ConvKind, channels_in: int, channels_out: int, steps: Steps, norm: Norm) -> nn.Sequential:
    if kind == "spatial":  # MC3 leaves time alone after its first stage
        steps = Steps(time=1, space=steps.space)
    return nn.Sequential(
        BasicBlock(kind, channels_in, channels_out, steps, norm),
        BasicBlock(kind, channels_out, channels_out, Steps(), norm),
    )


def start_weights(network: nn.Module) -> None:
    """torchvision's start: He normal by fan-out for convolutions, a faint normal for the head."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0.0, 0.01)
            nn.init.zeros_(module.bias)


class TinyAction(nn.Module):
    """An f_T for CPUs and 32 to 48 px: four 3D convolutions, space shrinks early, time late. About 0.2 M parameters.

    It sees each frame and its change since the frame before, and asks of every moment where something moves most
    (maximum over space) before it averages over time. Learned from raw frames alone with an average over space, it
    needs several times the steps: 7 actions of synthetic actors at 32 px, 300 steps: .96 with both, .73 with the
    changes only, .70 with the maximum only, .27 with neither.
    """

    def __init__(self, classes: int, norm: Norm) -> None:
        super().__init__()
        self.input_norm = InputNorm((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
        self.layers = nn.Sequential(
            _tiny_layer(6, 16, (3, 5, 5), (1, 2, 2), norm),
            _tiny_layer(16, 32, (3, 3, 3), (1, 2, 2), norm),
            _tiny_layer(32, 64, (3, 3, 3), (2, 2, 2), norm),
            _tiny_layer(64, 64, (3, 3, 3), (1, 1, 1), norm),
        )
        self.fc = nn.Linear(64, classes)

    def forward(self, clip_BCTHW: Tensor) -> Tensor:
        clip_BCTHW = self.input_norm(clip_BCTHW)
        before_BCTHW = torch.cat([clip_BCTHW[:, :, :1], clip_BCTHW[:, :, :-1]], dim=2)  # the first frame: no change
        features_BCTHW = self.layers(torch.cat([clip_BCTHW, clip_BCTHW - before_BCTHW], dim=1))
        logits_BK: Tensor = self.fc(features_BCTHW.amax(dim=(3, 4)).mean(dim=2))
        return logits_BK


def _tiny_layer(
    channels_in: int, channels_out: int, kernel: tuple[int, int, int], stride: tuple[int, int, int], norm: Norm
) -> nn.Sequential:
    padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    return nn.Sequential(
        nn.Conv3d(channels_in, channels_out, kernel, stride, padding, bias=False),
        make_norm(norm, channels_out, 3),
        nn.ReLU(),
    )
