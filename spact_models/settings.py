"""Every setting of a run: one dataclass a section, its reason beside each default, its rule in ``__post_init__``.

A value of ``"preset"`` means that the preset decides (``presets.py``). How flat keys become these dataclasses stands in
``run_config.py``. What belongs to a site alone (where its videos lie, its device,
its limits) is not here but in ``site.yaml``, which never travels.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from spact_models.dp_settings import DpConfig, check_dp
from spact_models.errors import UserError
from spact_models.presets import PRESETS
from spact_models.secure_settings import SecureConfig, check_secure

Scalar = bool | int | float | str
PRESET: Any = "preset"  # typed Any so that a field keeps the type of its resolved value


def require(condition: bool, name: str, value: object, rule: str) -> None:
    """Raise a :class:`UserError` that names the field, its value and the rule it breaks."""
    if not condition:
        raise UserError(f"{name} = {value!r}, {rule}")


def _one_of(name: str, value: str, known: Sequence[str]) -> None:
    require(value in known, name, value, f"must be one of: {', '.join(known)}")


def _positive(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        require(math.isfinite(value) and value > 0, name, value, "must be above 0")


def _at_least(config: object, least: float, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        require(math.isfinite(value) and value >= least, name, value, f"must be at least {least}")


@dataclass(frozen=True)
class ClipConfig:
    """What f_T sees: ``frames`` frames, ``stride_frames`` apart, at the working size."""

    frames: int = PRESET  # 16 in the paper
    size_px: int = PRESET  # 112 in the paper; the anonymizer's working size, squashed to a square
    stride_frames: int = PRESET  # 2 in the paper: every 2nd frame

    def __post_init__(self) -> None:
        _at_least(self, 2, "frames")
        _at_least(self, 16, "size_px")
        require(self.stride_frames >= 1, "stride_frames", self.stride_frames, "must be at least 1 (1 = every frame)")


@dataclass(frozen=True)
class BatchConfig:
    """Clips for the action loss and view pairs for the privacy loss; the two are drawn independently."""

    clips: int = PRESET  # 24 in the paper
    views: int = PRESET  # 64 pairs in the paper; chance of the privacy loss is ln(2*views - 1)

    def __post_init__(self) -> None:
        _at_least(self, 1, "clips")
        require(self.views >= 2, "views", self.views, "must be at least 2 (a pair needs another pair as its negative)")


@dataclass(frozen=True)
class ViewsConfig:
    """Where the two views of one scene come from."""

    frames: int = PRESET  # of one view, one stride apart; 1 in the paper. More: f_B hides from who watches a while
    source: str = "frames"  # the paper's text: two frames of one video; "image": two crops of one picture (its runs)

    def __post_init__(self) -> None:
        _at_least(self, 1, "frames")
        _one_of("source", self.source, ("frames", "image"))


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
        _one_of("anonymizer", self.anonymizer, ("frame", "motion"))
        _one_of("motion_input", self.motion_input, ("onebit", "difference", "frames"))
        _one_of("action", self.action, ("r3d18", "r2plus1d18", "mc318", "tiny"))
        _one_of("privacy", self.privacy, ("resnet50", "resnet18", "tiny"))
        _one_of("norm", self.norm, ("group", "batch"))
        _at_least(self, 1, "motion_frames", "anonymizer_channels", "anonymizer_depth", "anonymizer_patch_px")
        require(0 < self.motion_threshold < 1, "motion_threshold", self.motion_threshold, "must be between 0 and 1")
        _at_least(self, 0, "output_noise", "output_levels", "output_cell_px")


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
        _one_of("price_of", self.price_of, ("shown", "drawn"))
        _at_least(self, 0, "omega", "beta", "critic_steps", "catch_up_steps", "restart_privacy_rounds")
        alone = "must be at least 1; 0 only with joint_step = true, where f_T moves with f_A"
        require(self.joint_step or self.critic_steps >= 1, "critic_steps", self.critic_steps, alone)
        _positive(self, "temperature", "lr_anonymizer", "lr_action", "lr_privacy")

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
        _at_least(self, 1, "steps")
        _positive(self, "lr_anonymizer", "lr_action", "lr_privacy")


@dataclass(frozen=True)
class RoundsConfig:
    """The schedule: warm-up rounds, then minimax rounds of whole cycles."""

    warmup: int = PRESET
    minimax: int = PRESET
    cycles: int = PRESET  # a minimax round; one cycle = one anonymizer's move and critic_steps critics' moves
    evaluate_every: int = 0  # sites evaluate the global networks every so many rounds; 0 = after the last one
    timeout_seconds: float = 3600.0  # a site that has not replied by then is left out of the round
    min_sites: int = 1  # valid replies that a round needs; below it the round changes nothing
    sites: int = 0  # at most so many are asked in a round, drawn anew each time; 0 = all that are connected
    max_void_rounds: int = 3  # so many in a row end the run
    keep_checkpoints: int = 0  # the last k of them; 0 = all
    deadline: str = "fixed"  # of a round: timeout_seconds; adaptive: from the sites' own past rounds, never above it
    deadline_factor: float = 3.0  # adaptive: times the slow sites' past seconds; one busy hour must not cost a site
    deadline_quantile: float = 0.9  # adaptive: which site counts as slow; 1 = the slowest
    deadline_least_seconds: float = 60.0  # adaptive: never below it; a site's process takes seconds to start

    def __post_init__(self) -> None:
        _at_least(self, 0, "warmup", "minimax", "evaluate_every", "keep_checkpoints", "deadline_least_seconds")
        _at_least(self, 1, "cycles", "min_sites", "max_void_rounds", "deadline_factor")
        _positive(self, "timeout_seconds")
        enough = self.sites == 0 or self.sites >= self.min_sites
        require(enough, "sites", self.sites, f"must be 0 (all) or at least rounds.min_sites = {self.min_sites}")
        _one_of("deadline", self.deadline, ("fixed", "adaptive"))
        require(0 < self.deadline_quantile <= 1, "deadline_quantile", self.deadline_quantile, "must be in (0, 1]")
        require(self.warmup + self.minimax >= 1, "minimax", self.minimax, "must be at least 1 when rounds.warmup is 0")


@dataclass(frozen=True)
class StrategyConfig:
    """How the server turns the sites' mean difference into its next step."""

    name: str = "fedavg"  # fedavg | fedprox | fedadam | fedavgm
    learning_rate: float = 1.0  # of the server's step; 1 with fedavg is the plain mean
    momentum: float = 0.9  # fedavgm
    beta1: float = 0.9  # fedadam
    beta2: float = 0.99  # fedadam
    adaptivity: float = 1e-3  # fedadam's tau
    proximal_mu: float = 0.01  # fedprox: pull of a site's weights towards the received ones
    weighting: str = "examples"  # or "equal": every site weighs 1. The robust rules always do: a liar claims much
    max_examples: int = 10_000_000  # a site that claims more is not believed
    aggregation: str = "mean"  # mean | median | trimmed_mean | krum | multi_krum: whom a bad site can mislead
    bad_sites: int = 1  # so many may lie and a robust rule still holds; each costs rounds.min_sites two honest ones
    norm_bound: float = 0.0  # L2 of a site's update; a longer one is scaled down to it. 0 = no bound

    def __post_init__(self) -> None:
        _one_of("name", self.name, ("fedavg", "fedprox", "fedadam", "fedavgm"))
        _one_of("weighting", self.weighting, ("examples", "equal"))
        _one_of("aggregation", self.aggregation, ("mean", "median", "trimmed_mean", "krum", "multi_krum"))
        _positive(self, "learning_rate", "adaptivity", "max_examples")
        _at_least(self, 1, "bad_sites")
        _at_least(self, 0, "norm_bound")
        for name in ("momentum", "beta1", "beta2"):
            require(0 <= getattr(self, name) < 1, name, getattr(self, name), "must be in [0, 1)")
        _at_least(self, 0, "proximal_mu")

    @property
    def least_updates(self) -> int:
        """How many updates the rule needs to hold against ``bad_sites`` of them; 1 for the mean, which never does."""
        if self.aggregation == "mean":
            return 1
        return 2 * self.bad_sites + (3 if self.aggregation in ("krum", "multi_krum") else 1)


@dataclass(frozen=True)
class WireConfig:
    """What an update looks like on its way to the server."""

    dtype: str = "float16"  # half of float32's bytes, 3 digits of a difference | float32 | int8: a quarter, with
    # one scale a tensor; what rounding leaves out stays at the site and goes with the next round
    parameters: str = ""  # train and send only these: patterns of wire names, "action.fc.*,*.exit.*"; empty: all

    @property
    def patterns(self) -> tuple[str, ...]:
        return tuple(pattern.strip() for pattern in self.parameters.split(",") if pattern.strip())

    def __post_init__(self) -> None:
        _one_of("dtype", self.dtype, ("float32", "float16", "int8"))


@dataclass(frozen=True)
class ActionConfig:
    """The agreed action set."""

    classes: str = ""  # "fall,fight,wave"; empty: the labelled sites must all have the same list

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name.strip() for name in self.classes.split(",") if name.strip())

    def __post_init__(self) -> None:
        names = self.names
        require(len(set(names)) == len(names), "classes", self.classes, "names an action twice")
        require(len(names) != 1, "classes", self.classes, "must name at least 2 actions (or none: the sites' own)")


@dataclass(frozen=True)
class SimulationConfig:
    """How ``fedspact simulate`` deals one manifest out to simulated sites. A real federation reads none of it."""

    sites: int = 3
    partition_by: str = "iid"  # iid | site | source | action | a private attribute's column
    alpha: float = 1.0  # Dirichlet concentration of each site's action mix with partition_by = action; small = skewed
    test_share: float = 0.25  # held out by whole sources where the manifest has no split
    unlabelled_sites: int = 0  # the last so many sites lose their action labels
    unreadable_share: float = 0.05  # more unreadable videos than this stop the run; a real site has its own
    sites_at_once: int = 0  # on a CPU; 0 = as many as cores, up to 5 (memory budget, speed.compile, GPU: one)

    def __post_init__(self) -> None:
        _at_least(self, 1, "sites")
        _at_least(self, 0, "unlabelled_sites", "sites_at_once")
        _positive(self, "alpha")
        require(0 < self.test_share < 1, "test_share", self.test_share, "must be between 0 and 1")
        share = self.unreadable_share
        require(0 <= share <= 1, "unreadable_share", share, "must be from 0 to 1")
        rule = f"must be below simulation.sites = {self.sites}: one site at least must have labels"
        require(self.unlabelled_sites < self.sites, "unlabelled_sites", self.unlabelled_sites, rule)


@dataclass(frozen=True)
class JudgeConfig:
    """The fresh networks that judge a finished anonymizer (evaluation.md)."""

    steps: int = PRESET  # optimizer steps of each fresh network
    batch: int = PRESET
    lr: float = 3e-3  # Adam, one cycle
    train_clips: int = PRESET  # clips read of each training video
    test_clips: int = PRESET  # clips read of each test video and averaged; 5 in the paper

    def __post_init__(self) -> None:
        _at_least(self, 1, "steps", "batch", "train_clips", "test_clips")
        _positive(self, "lr")


@dataclass(frozen=True)
class WatchConfig:
    """How a run can be looked at while it goes on; nothing of it changes what is learned."""

    metrics_port: int = 0  # Prometheus text format over HTTP; 0 = off
    metrics_host: str = "127.0.0.1"  # only this machine; it has no password, so think before you widen it
    log_format: str = "text"  # or "json": one object a line, for log collectors

    def __post_init__(self) -> None:
        require(0 <= self.metrics_port <= 65535, "metrics_port", self.metrics_port, "must be from 0 to 65535")
        require(bool(self.metrics_host), "metrics_host", self.metrics_host, "must be an address, such as 127.0.0.1")
        _one_of("log_format", self.log_format, ("text", "json"))


@dataclass(frozen=True)
class MemoryConfig:
    """What training may hold in memory; where that is too little, blocks are computed again (``memory.py``)."""

    # weights, gradients, Adam's moments, what a move keeps; a third comes on top; 0 = no limit. paper: a card of 24 GB
    budget_gib: float = PRESET

    def __post_init__(self) -> None:
        _at_least(self, 0, "budget_gib")


@dataclass(frozen=True)
class SpeedConfig:
    """Faster ways to the same numbers up to rounding (``speed.py``)."""

    channels_last: str = "auto"  # auto (on a CPU, the networks it helps) | on | off; never with dp.unit
    keep_memory: bool = True  # on a CPU training keeps the memory it frees and does not ask the system for it again
    compile: bool = False  # torch.compile: minutes at the start, and a compiler on the machine
    tf32: bool = True  # GPUs since Ampere multiply float32 with 10 bits of fraction; a CPU never does

    def __post_init__(self) -> None:
        _one_of("channels_last", self.channels_last, ("auto", "on", "off"))


@dataclass(frozen=True)
class ReleaseConfig:
    """Read with ``task = "release"`` only: paths on the server, and what the card says (docs/release.md)."""

    policy: str = ""  # YAML: what the sites must find
    key: str = ""  # the private key that signs on a pass
    licence: str = ""  # of the weights; empty: the card says that nobody stated one


@dataclass(frozen=True)
class AugmentSettings:
    """Whole-clip augmentation; the other ranges are the reference's and live in ``views.AugmentConfig``."""

    enabled: bool = True  # off only for tests and identities
    crop_min_share: float = PRESET  # a crop keeps this to all of each side; 0.6 in the paper, use sees whole frames

    def __post_init__(self) -> None:
        rule = "must be above 0 and at most 1 (1 = whole frames)"
        require(0.0 < self.crop_min_share <= 1.0, "crop_min_share", self.crop_min_share, rule)


@dataclass(frozen=True)
class Settings:
    """All of one run's settings, resolved and checked. Build it with ``run_config.load_settings``."""

    task: str = "train"  # or "release": the sites judge run_dir's anonymizer, a pass is signed
    preset: str = "tiny"
    seed: int = 0
    device: str = "auto"  # auto | cpu | cuda | cuda:N; a site's own site.yaml wins
    precision: str = "fp32"  # fp32 | bf16 (autocast)
    run_dir: str = ""  # the run folder; empty: runs/<UTC time>
    resume: bool = False  # go on with the run in run_dir from its last complete round; where there is none, begin it
    clip: ClipConfig = field(default_factory=ClipConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    views: ViewsConfig = field(default_factory=ViewsConfig)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    networks: NetworksConfig = field(default_factory=NetworksConfig)
    warmup: WarmupConfig = field(default_factory=WarmupConfig)
    game: GameConfig = field(default_factory=GameConfig)
    rounds: RoundsConfig = field(default_factory=RoundsConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    wire: WireConfig = field(default_factory=WireConfig)
    dp: DpConfig = field(default_factory=DpConfig)
    secure: SecureConfig = field(default_factory=SecureConfig)
    action: ActionConfig = field(default_factory=ActionConfig)
    simulation: SimulationConfig = field(default_factory=SimulationConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    release: ReleaseConfig = field(default_factory=ReleaseConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    speed: SpeedConfig = field(default_factory=SpeedConfig)

    def __post_init__(self) -> None:
        _one_of("task", self.task, ("train", "release"))
        _one_of("preset", self.preset, tuple(PRESETS))
        _one_of("precision", self.precision, ("fp32", "bf16"))
        require(0 <= self.seed < 2**63, "seed", self.seed, "must be from 0 to 2^63 - 1")
        known = re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device) is not None
        require(known, "device", self.device, "must be auto, cpu, cuda or cuda:N")
        if self.game.beta > 0 and self.networks.output_noise == 0:
            raise UserError(
                f"game.beta = {self.game.beta}, needs networks.output_noise above 0: without noise every value can "
                "tell everything and its rate has no bound. Set networks.output_noise = 0.3, or game.beta = 0."
            )
        least = self.strategy.least_updates
        if self.rounds.min_sites < least:
            raise UserError(
                f"rounds.min_sites = {self.rounds.min_sites}, must be at least {least} with strategy.aggregation = "
                f"{self.strategy.aggregation!r} and strategy.bad_sites = {self.strategy.bad_sites}: with fewer updates "
                "the rule cannot tell who lies."
            )
        if self.speed.compile and self.memory.budget_gib > 0:
            raise UserError(
                f"memory.budget_gib = {self.memory.budget_gib:g}, cannot go with speed.compile = true: the compiler "
                "decides by itself what to compute again. Switch one of the two off."
            )
        check_dp(self)
        check_secure(self)
        if self.views.source == "image" and self.networks.anonymizer == "motion":
            raise UserError(
                "views.source = 'image', cannot serve networks.anonymizer = 'motion': two crops of one picture hold no "
                "motion. Use views.source = 'frames' or networks.anonymizer = 'frame'."
            )

    def in_round(self, number: int) -> Settings:
        """These settings as round ``number`` is played: what changes in the course of a run is the game's."""
        if self.phase(number) == "warmup":
            return self
        played = number - self.rounds.warmup - 1
        return dataclasses.replace(self, game=self.game.in_round(played, self.rounds.minimax))

    @property
    def action_classes(self) -> tuple[str, ...]:
        """The action names that ``action.classes`` lists; empty when the sites' own lists decide."""
        return self.action.names

    @property
    def update_bound(self) -> float:
        """L2 of a site's update to which the server scales a longer one down; 0 = no bound.

        With ``dp.unit = site`` the sites clip; the server does not count on it.
        """
        if self.dp.unit == "site":
            return self.dp.clip_norm
        return self.strategy.norm_bound

    @property
    def coordinate_bound(self) -> float:
        """What secure aggregation clips a coordinate to; no coordinate is longer than the whole update."""
        return self.update_bound or self.secure.value_bound

    @property
    def total_rounds(self) -> int:
        """Warm-up and minimax rounds together."""
        return self.rounds.warmup + self.rounds.minimax

    def phase(self, server_round: int) -> str:
        """``"warmup"`` or ``"minimax"`` for a 1-based round."""
        return "warmup" if server_round <= self.rounds.warmup else "minimax"

    def flat(self) -> dict[str, Scalar]:
        """The resolved settings as flat keys, such that ``load_settings(s.flat()) == s``."""
        out: dict[str, Scalar] = {}
        for spec in fields(self):
            value = getattr(self, spec.name)
            if dataclasses.is_dataclass(value):
                out.update({f"{spec.name}.{f.name}": getattr(value, f.name) for f in fields(value)})
            else:
                out[spec.name] = value
        return out
