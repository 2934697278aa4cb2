"""Fresh attackers by name: different in reach and in build, because one that fails proves little.

An attacker is called with clip_BCTHW in [0, 1] and gives logits (B, classes): one-of-many questions take their softmax
(identity), yes-or-no ones their sigmoid (attributes), and retrieval a point of the unit sphere (:func:`embedder`).
Frame-level attackers see frames one by one, video-level ones see motion as well. One attacker is no network
(:mod:`spact_models.trees`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.vision_transformer import ConvStemConfig, VisionTransformer

from spact_models.action import ActionName, build_action
from spact_models.anonymizer import per_frame
from spact_models.attacker_names import ATTACKERS as ATTACKERS
from spact_models.attacker_names import TREES as TREES
from spact_models.attacker_names import check_attackers as check_attackers
from spact_models.errors import UserError
from spact_models.norms import InputNorm, make_norm
from spact_models.privacy import PrivacyClassifier, PrivacyName

FRAMES_PER_STEP = 2  # frames of each clip that a frame-level attacker sees in one step
EMBEDDING = 128
LARGE_PX = 64  # from here on the transformer is wider and deeper
MOST_PATCHES = 7  # a side of the transformer's picture


class FrameByFrame(nn.Module):
    """A picture classifier as a clip classifier: the mean of its frames' logits.

    Under a softmax this is the mean of log-probabilities: what differs is a number a clip, equal for all classes.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        seed = int(torch.randint(2**62, ()))
        self.generator = torch.Generator().manual_seed(seed)  # its own, because judges run side by side

    def forward(self, clip_BCTHW: Tensor) -> Tensor:
        if self.training and clip_BCTHW.shape[2] > FRAMES_PER_STEP:
            chosen = torch.randperm(clip_BCTHW.shape[2], generator=self.generator)[:FRAMES_PER_STEP]
            clip_BCTHW = clip_BCTHW[:, :, chosen.to(clip_BCTHW.device)]
        logits_BKT11 = per_frame(lambda frames: self.network(frames)[:, :, None, None], clip_BCTHW)
        return logits_BKT11.float().mean(dim=(2, 3, 4))


class SmallViT(nn.Module):
    """torchvision's VisionTransformer behind a convolutional stem (Xiao et al. 2021). frames_NCHW -> logits (N, K).

    The stem is what makes it learn: with 4×4 patches cut at once, 300 steps taught it nothing on difference pictures.
    Frames are brought to a whole number of patches, at most 7 a side.
    """

    def __init__(self, classes: int, size_px: int) -> None:
        super().__init__()
        large = size_px >= LARGE_PX
        halvings = 2
        while size_px / 2**halvings > MOST_PATCHES:
            halvings += 1
        self.side_px = max(1, round(size_px / 2**halvings)) * 2**halvings
        hidden, layers, heads = (192, 6, 6) if large else (64, 2, 4)
        widths = [24 * 2**place for place in range(halvings)]
        norm = partial(make_norm, "group", dimensions=2)
        self.input_norm = InputNorm((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
        self.vit = VisionTransformer(
            image_size=self.side_px,
            patch_size=2**halvings,
            num_layers=layers,
            num_heads=heads,
            hidden_dim=hidden,
            mlp_dim=2 * hidden,
            num_classes=classes,
            conv_stem_configs=[ConvStemConfig(width, 3, 2, norm_layer=norm) for width in widths],
        )
        # torchvision starts the head at nought: behind the projection's ReLU it would never get a gradient
        nn.init.normal_(self.vit.heads.head.weight, std=0.02)

    def forward(self, frames_NCHW: Tensor) -> Tensor:
        frames_NCHW = self.input_norm(frames_NCHW)
        if frames_NCHW.shape[-2:] != (self.side_px, self.side_px):
            side = (self.side_px, self.side_px)
            frames_NCHW = functional.interpolate(frames_NCHW, side, mode="bilinear", align_corners=False)
        logits_NK: Tensor = self.vit(frames_NCHW)
        return logits_NK


class Embedder(nn.Module):
    """An attacker whose answers are points of the unit sphere: its trunk and a projection of two layers."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.projection = nn.Sequential(nn.ReLU(), nn.Linear(EMBEDDING, EMBEDDING))

    def forward(self, clip_BCTHW: Tensor) -> Tensor:
        return functional.normalize(self.projection(self.network(clip_BCTHW)), dim=1)


@dataclass(frozen=True)
class Attacker:
    """How one attacker is built and how it learns."""

    build: Callable[[int, int], nn.Module]
    reach: str  # "frame" | "video"
    lr_share: float = 1.0  # of judge.lr
    weight_decay: float = 0.0  # above 0: AdamW

    def __call__(self, classes: int, size_px: int) -> nn.Module:
        if classes < 1:
            raise UserError(f"attacker classes = {classes}, must be at least 1: label rows with the attribute")
        return self.build(classes, size_px)


def _frames(name: PrivacyName) -> Attacker:
    return Attacker(lambda classes, _: FrameByFrame(PrivacyClassifier(name, classes, "group")), "frame")


def _video(name: ActionName) -> Attacker:
    return Attacker(lambda classes, _: build_action(name, classes, "group"), "video")


NETWORKS: dict[str, Attacker] = {
    "frame-convnet": _frames("tiny"),
    "frame-resnet18": _frames("resnet18"),
    "frame-resnet50": _frames("resnet50"),
    "frame-vit": Attacker(
        lambda classes, size_px: FrameByFrame(SmallViT(classes, size_px)), "frame", lr_share=0.5, weight_decay=0.05
    ),
    "video-tiny": _video("tiny"),
    "video-r3d18": _video("r3d18"),
    "video-r2plus1d18": _video("r2plus1d18"),
}
DEFAULTS: dict[str, tuple[str, ...]] = {  # by preset: what an evaluation asks
    "tiny": ("frame-convnet", "frame-vit", "video-tiny", TREES),
    "small": ("frame-resnet18", "frame-vit", "video-r3d18", TREES),
    "paper": ("frame-resnet50", "frame-resnet18", "frame-vit", "video-r3d18", TREES),
}
ONE_OF_EACH: dict[str, tuple[str, ...]] = {  # one of each kind: what a run asks when it ends
    "tiny": ("frame-convnet", "video-tiny", TREES),
    "small": ("frame-resnet18", "video-r3d18", TREES),
    "paper": ("frame-resnet50", "video-r3d18", TREES),
}
CHEAPEST: dict[str, tuple[str, ...]] = {name: asked[:1] for name, asked in ONE_OF_EACH.items()}  # of the networks


def networks_of(names: Sequence[str]) -> list[str]:
    """Those that learn step by step, and can learn to match videos without a label."""
    return [name for name in names if name in NETWORKS]


def watches_motion(name: str) -> bool:
    """Whether it is a network that sees a clip as a whole."""
    return name in NETWORKS and NETWORKS[name].reach == "video"


def embedder(name: str, size_px: int) -> nn.Module:
    """A fresh attacker for retrieval: clip_BCTHW -> (B, 128) of length 1."""
    return Embedder(NETWORKS[name](EMBEDDING, size_px))
