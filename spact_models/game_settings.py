"""The sections that say what is played with, and how: clips, views, networks, the game, warm-up, and who judges it."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from spact_models.rules import PRESET, at_least, one_of, positive, require


@dataclass(frozen=True)
class ClipConfig:
    """What f_T sees: ``frames`` frames, ``stride_frames`` apart, at the working size."""

    frames: int = PRESET  # 16 in the paper
    size_px: int = PRESET  # 112 in the paper; the anonymizer's working size, squashed to a square
    stride_frames: int = PRESET  # 2 in the paper: every 2nd frame

    def __post_init__(self) -> None:
        at_least(self, 2, "frames")
        at_least(self, 16, "size_px")
        require(self.stride_frames >= 1, "stride_frames", self.stride_frames, "must be at least 1 (1 = every frame)")


@dataclass(frozen=True)
class BatchConfig:
    """Clips for the action loss and view pairs for the privacy loss; the two are drawn independently."""

    clips: int = PRESET  # 24 in the paper
    views: int = PRESET  # 64 pairs in the paper; chance of the privacy loss is ln(2*views - 1)

    def __post_init__(self) -> None:
        at_least(self, 1, "clips")
        require(self.views >= 2, "views", self.views, "must be at least 2 (a pair needs another pair as its negative)")


@dataclass(frozen=True)
class ViewsConfig:
    """Where the two views of one scene come from."""

    frames: int = PRESET  # of one view, one stride apart; 1 in the paper. More: f_B hides from who watches a while
    source: str = "frames"  # the paper's text: two frames of one video; "image": two crops of one picture (its runs)

    def __post_init__(self) -> None:
        at_least(self, 1, "frames")
        one_of("source", self.source, ("frames", "image"))


@dataclass(frozen=True)
class NetworksConfig:
    """The three networks by name."""

    anonymizer: str = PRESET  # frame (the paper's) | motion (also sees the frame before)
    motion_input: str = "onebit"  # onebit | difference | frames; one bit leaks least of the three (docs/method.md)
    motion_frames: int = PRESET  # earlier frames that a motion anonymizer sees; more say sooner what is being done
    anonymizer_channels: int = PRESET  # 64 in the paper
    anonymizer_depth: int = PRESET  # 4 downs in the paper
    anonymizer_patch_px: int = PRESET  # 1 in the paper; 2: the U-Net works at half the size, a quarter of the work
    anonymizer_input_skip: bool = (
        PRESET  # not in the paper: the last layer sees the input, so copying is quickly learned
    )
    motion_threshold: float = 0.15  # of the one-bit picture: above sensor noise, below a moving limb
    output_noise: float = PRESET  # sigma of Gaussian noise on f_A's output, in training and in use; 0 in the paper
    output_levels: int = 0  # quantise f_A's output to this many levels; 0 = continuous
    output_cell_px: int = PRESET  # f_A's output as grey cells of this side; 0 = colours pixel by pixel, the paper's
    action: str = PRESET  # r3d18 | r2plus1d18 | mc318 | tiny
    privacy: str = PRESET  # resnet50 | resnet18 | tiny
    norm: str = "group"  # batch only for faithful centralised reproduction: its statistics average badly and leak
    action_weights: str = ""  # file with torchvision weights for f_T, or "hub"
    privacy_weights: str = ""  # file with torchvision weights for f_B's trunk, or "hub"

    def __post_init__(self) -> None:
        one_of("anonymizer", self.anonymizer, ("frame", "motion"))
        one_of("motion_input", self.motion_input, ("onebit", "difference", "frames"))
        one_of("action", self.action, ("r3d18", "r2plus1d18", "mc318", "tiny"))
        one_of("privacy", self.privacy, ("resnet50", "resnet18", "tiny"))
        one_of("norm", self.norm, ("group", "batch"))
        at_least(self, 1, "motion_frames", "anonymizer_channels", "anonymizer_depth", "anonymizer_patch_px")
        require(0 < self.motion_threshold < 1, "motion_threshold", self.motion_threshold, "must be between 0 and 1")
        at_least(self, 0, "output_noise", "output_levels", "output_cell_px")


@dataclass(frozen=True)
class GameConfig:
    """The minimax game (method.md; SPAct section 3.3)."""

    omega: float = 1.0  # weight of the privacy reward; 1 in the reference, 0: f_B hides nothing, the price alone does
    beta: float = PRESET  # price of what f_A draws, in L_T's nats a nat a value (losses.rate); 0 in the paper
    price_of: str = "shown"  # what beta prices: "shown", with its noise; "drawn", before it, the rate to the letter
    beta_rise: float = PRESET  # share of the minimax rounds over which the price rises to beta; f_T must read first
    temperature: float = 0.1  # NT-Xent; 0.1 in the reference
    cap_reward: bool = True  # stop rewarding above chance: past it f_A beats this f_B, not privacy
    joint_step: bool = False  # f_A and f_T step together: both want L_T low; the critics' moves are then f_B's
    critic_steps: int = PRESET  # critics' moves per anonymizer's move; the reference's 1 needs a price (docs/method.md)
    catch_up_steps: int = PRESET  # critics' moves at the start of a round, to meet the averaged f_A
    restart_privacy_rounds: int = 0  # begin a fresh f_B every so many minimax rounds; 0 = never
    lr_anonymizer: float = PRESET  # Adam; 1e-4 in the reference
    lr_action: float = PRESET
    lr_privacy: float = PRESET
    lr_fall: float = PRESET  # share of the minimax rounds, the last ones, over which all three fall along a cosine

    def __post_init__(self) -> None:
        for name in ("beta_rise", "lr_fall"):
            share = getattr(self, name)
            require(0 <= share <= 1, name, share, "must be a share of the minimax rounds, 0 (off) to 1")
        one_of("price_of", self.price_of, ("shown", "drawn"))
        at_least(self, 0, "omega", "beta", "critic_steps", "catch_up_steps", "restart_privacy_rounds")
        alone = "must be at least 1; 0 only with joint_step = true, where f_T moves with f_A"
        require(self.joint_step or self.critic_steps >= 1, "critic_steps", self.critic_steps, alone)
        positive(self, "temperature", "lr_anonymizer", "lr_action", "lr_privacy")

    def in_round(self, played: int, rounds: int) -> GameConfig:
        """The game of one minimax round, when ``played`` of ``rounds`` lie behind it: its price and its steps.

        The last round pays the whole price and takes the smallest steps, which are above 0.
        """
        rise, fall = self.beta_rise * rounds, self.lr_fall * rounds
        price = min(1.0, (played + 1) / rise) if rise else 1.0
        into_fall = max(0.0, played + 1 - (rounds - fall))  # rounds of the fall, this one among them
        pace = (1 + math.cos(math.pi * into_fall / (fall + 1))) / 2 if fall else 1.0
        rates = {name: pace * getattr(self, name) for name in ("lr_anonymizer", "lr_action", "lr_privacy")}
        return dataclasses.replace(self, beta=price * self.beta, **rates)


@dataclass(frozen=True)
class WarmupConfig:
    """Before the game: f_A copies, f_T learns on the copy, f_B learns to match views of it."""

    steps: int = PRESET  # a round; each step trains all three networks once
    lr_anonymizer: float = 1e-3  # as in the reference
    lr_action: float = 1e-3
    lr_privacy: float = 1e-3

    def __post_init__(self) -> None:
        at_least(self, 1, "steps")
        positive(self, "lr_anonymizer", "lr_action", "lr_privacy")


@dataclass(frozen=True)
class AugmentSettings:
    """Whole-clip augmentation; the other ranges are the reference's and live in ``views.AugmentConfig``."""

    enabled: bool = True  # off only for tests and identities
    crop_min_share: float = PRESET  # a crop keeps this to all of each side; 0.6 in the paper, use sees whole frames

    def __post_init__(self) -> None:
        rule = "must be above 0 and at most 1 (1 = whole frames)"
        require(0.0 < self.crop_min_share <= 1.0, "crop_min_share", self.crop_min_share, rule)


@dataclass(frozen=True)
class JudgeConfig:
    """The fresh networks that judge a finished anonymizer (evaluation.md)."""

    steps: int = PRESET  # optimizer steps of each fresh network
    batch: int = PRESET
    lr: float = 3e-3  # Adam, one cycle
    train_clips: int = PRESET  # clips read of each training video
    test_clips: int = PRESET  # clips read of each test video and averaged; 5 in the paper

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "batch", "train_clips", "test_clips")
        positive(self, "lr")
