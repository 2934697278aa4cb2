"""f_B, the privacy network: frames in, one point of the unit sphere a frame out (paper, 3.1), and the attacker's head.

Trained without privacy labels: two frames of one video should land close together, others apart. The trunks are
torchvision's ResNets, parameter name by parameter name, without in-place steps (see action.py).
"""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor, nn
from torch.nn import functional

from spact_models.action import start_weights
from spact_models.anonymizer import per_frame
from spact_models.errors import UserError
from spact_models.norms import InputNorm, Norm, check_norm, make_norm

PrivacyName = Literal["resnet50", "resnet18", "tiny"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def build_privacy(name: PrivacyName, norm: Norm, embedding: int = 128) -> PrivacyNetwork:
    """An f_B by name: trunk and projection (2048 -> 2048 -> 128 on ResNet-50)."""
    if embedding < 2:
        raise UserError(f"privacy embedding = {embedding}, must be at least 2 (128 = the paper's)")
    return PrivacyNetwork(build_trunk(name, norm), embedding)


def build_trunk(name: PrivacyName, norm: Norm) -> Trunk:
    """A trunk by name: frames_NCHW in [0, 1] -> features (N, `features`)."""
    check_norm(norm)
    if name == "resnet50":
        return ResNet(Bottleneck, (3, 4, 6, 3), norm)
    if name == "resnet18":
        return ResNet(BasicBlock, (2, 2, 2, 2), norm)
    if name == "tiny":
        return TinyTrunk(norm)
    raise UserError(f'privacy network = "{name}", must be one of {", ".join(get_args(PrivacyName))}')


class Trunk(nn.Module):
    """Frames to features; `features` is their number."""

    features: int


class PrivacyNetwork(nn.Module):
    """f_B. forward: views (N,3,K,H,W) or single frames (N,3,H,W), RGB in [0, 1] -> z_ND of length 1 each.

    A view of K frames is the mean of its frames' features before the projection: what stays the same from frame to
    frame adds up, as it does for an attacker who watches a whole video.
    """

    def __init__(self, trunk: Trunk, embedding: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.projection = nn.Sequential(
            nn.Linear(trunk.features, trunk.features), nn.ReLU(), nn.Linear(trunk.features, embedding)
        )

    def forward(self, views: Tensor) -> Tensor:
        if views.dim() == 5:
            features_NDK11 = per_frame(lambda frames_NCHW: self.trunk(frames_NCHW)[:, :, None, None], views)
            features_ND = features_NDK11.mean(dim=(2, 3, 4))
        else:
            features_ND = self.trunk(views)
        return functional.normalize(self.projection(features_ND), dim=1)


class PrivacyClassifier(nn.Module):
    """The frame-level attacker: a trunk and a linear head. forward: frames_NCHW in [0, 1] -> logits (N, classes).

    The logits serve one-of-many questions (identity: softmax) and many yes-or-no ones (attributes: sigmoid) alike.
    The video-level attacker is `action.build_action` with as many classes.
    """

    def __init__(self, name: PrivacyName, classes: int, norm: Norm) -> None:
        super().__init__()
        if classes < 1:
            raise UserError(f"attacker classes = {classes}, must be at least 1: label rows with the attribute")
        self.trunk = build_trunk(name, norm)
        self.fc = nn.Linear(self.trunk.features, classes)

    def forward(self, frames_NCHW: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.trunk(frames_NCHW))
        return logits


def _conv(channels_in: int, channels_out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, kernel, stride, padding=kernel // 2, bias=False)


def _shortcut(channels_in: int, channels_out: int, stride: int, norm: Norm) -> nn.Module | None:
    if stride == 1 and channels_in == channels_out:
        return None
    return nn.Sequential(_conv(channels_in, channels_out, 1, stride), make_norm(norm, channels_out, 2))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a way around them. `bn1` is torchvision's name whatever the norm."""

    expansion = 1

    def __init__(self, channels_in: int, width: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = _conv(channels_in, width, 3, stride)
        self.bn1 = make_norm(norm, width, 2)
        self.conv2 = _conv(width, width, 3)
        self.bn2 = make_norm(norm, width, 2)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        self.downsample = _shortcut(channels_in, width, stride, norm)

    def forward(self, frames_NCHW: Tensor) -> Tensor:
        around = frames_NCHW if self.downsample is None else self.downsample(frames_NCHW)
        inner = self.relu1(self.bn1(self.conv1(frames_NCHW)))
        rectified: Tensor = self.relu2(self.bn2(self.conv2(inner)) + around)
        return rectified


class Bottleneck(nn.Module):
    """1×1, 3×3 (which carries the stride), 1×1 convolutions and a way around them."""

    expansion = 4

    def __init__(self, channels_in: int, width: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = _conv(channels_in, width, 1)
        self.bn1 = make_norm(norm, width, 2)
        self.conv2 = _conv(width, width, 3, stride)
        self.bn2 = make_norm(norm, width, 2)
        self.conv3 = _conv(width, width * self.expansion, 1)
        self.bn3 = make_norm(norm, width * self.expansion, 2)
        self.relu1, self.relu2, self.relu3 = nn.ReLU(), nn.ReLU(), nn.ReLU()
        self.downsample = _shortcut(channels_in, width * self.expansion, stride, norm)

    def forward(self, frames_NCHW: Tensor) -> Tensor:
        around = frames_NCHW if self.downsample is None else self.downsample(frames_NCHW)
        inner = self.relu1(self.bn1(self.conv1(frames_NCHW)))
        inner = self.relu2(self.bn2(self.conv2(inner)))
        rectified: Tensor = self.relu3(self.bn3(self.conv3(inner)) + around)
        return rectified


class ResNet(Trunk):
    """ResNet up to its pooled features (He et al. 2016; the stride of a bottleneck sits on its 3×3 convolution)."""

    def __init__(
        self, block: type[BasicBlock] | type[Bottleneck], blocks: tuple[int, int, int, int], norm: Norm
    ) -> None:
        super().__init__()
        self.input_norm = InputNorm(IMAGENET_MEAN, IMAGENET_STD)
        self.conv1 = _conv(3, 64, 7, 2)
        self.bn1 = make_norm(norm, 64, 2)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        expansion = block.expansion
        self.layer1 = _layer(block, 64, 64, blocks[0], 1, norm)
        self.layer2 = _layer(block, 64 * expansion, 128, blocks[1], 2, norm)
        self.layer3 = _layer(block, 128 * expansion, 256, blocks[2], 2, norm)
        self.layer4 = _layer(block, 256 * expansion, 512, blocks[3], 2, norm)
        self.features = 512 * expansion
        start_weights(self)

    def forward(self, frames_NCHW: Tensor) -> Tensor:
        maps = self.maxpool(self.relu(self.bn1(self.conv1(self.input_norm(frames_NCHW)))))
        maps = self.layer4(self.layer3(self.layer2(self.layer1(maps))))
        pooled: Tensor = maps.mean(dim=(2, 3))
        return pooled


def _layer(
    block: type[BasicBlock] | type[Bottleneck], channels_in: int, width: int, blocks: int, stride: int, norm: Norm
) -> nn.Sequential:
    first = block(channels_in, width, stride, norm)
    return nn.Sequential(first, *(block(width * block.expansion, width, 1, norm) for _ in range(blocks - 1)))


class TinyTrunk(Trunk):
    """A trunk for CPUs and 32 to 48 px: four strided convolutions, about 0.25 M parameters."""

    features = 128

    def __init__(self, norm: Norm) -> None:
        super().__init__()
        self.input_norm = InputNorm((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
        widths = (3, 32, 64, 128, 128)
        kernels = (5, 3, 3, 3)
        layers: list[nn.Module] = []
        for channels_in, channels_out, kernel in zip(widths[:-1], widths[1:], kernels, strict=True):
            layers += [_conv(channels_in, channels_out, kernel, 2), make_norm(norm, channels_out, 2), nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, frames_NCHW: Tensor) -> Tensor:
        pooled: Tensor = self.layers(self.input_norm(frames_NCHW)).mean(dim=(2, 3))
        return pooled
