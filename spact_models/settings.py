"""Every setting of a run: one dataclass a section, its reason beside each default, its rule in ``__post_init__``.

The larger sections stand beside this file: ``game_settings.py``, ``round_settings.py``, ``dp_settings.py`` and
``secure_settings.py``.

A value of ``"preset"`` means that the preset decides (``presets.py``). How flat keys become these dataclasses stands in
``run_config.py``. What belongs to a site alone (where its videos lie, its device,
its limits) is not here but in ``site.yaml``, which never travels.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field, fields

from spact_models.dp_settings import DpConfig, check_dp
from spact_models.errors import UserError
from spact_models.game_settings import (
    AugmentSettings,
    BatchConfig,
    ClipConfig,
    GameConfig,
    JudgeConfig,
    NetworksConfig,
    ViewsConfig,
    WarmupConfig,
)
from spact_models.presets import PRESETS
from spact_models.round_settings import ActionConfig, RoundsConfig, StrategyConfig, WireConfig
from spact_models.rules import PRESET, at_least, one_of, positive, require
from spact_models.secure_settings import SecureConfig, check_secure

Scalar = bool | int | float | str


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
        at_least(self, 1, "sites")
        at_least(self, 0, "unlabelled_sites", "sites_at_once")
        positive(self, "alpha")
        require(0 < self.test_share < 1, "test_share", self.test_share, "must be between 0 and 1")
        share = self.unreadable_share
        require(0 <= share <= 1, "unreadable_share", share, "must be from 0 to 1")
        rule = f"must be below simulation.sites = {self.sites}: one site at least must have labels"
        require(self.unlabelled_sites < self.sites, "unlabelled_sites", self.unlabelled_sites, rule)


@dataclass(frozen=True)
class WatchConfig:
    """How a run can be looked at while it goes on; nothing of it changes what is learned."""

    metrics_port: int = 0  # Prometheus text format over HTTP; 0 = off
    metrics_host: str = "127.0.0.1"  # only this machine; it has no password, so think before you widen it
    log_format: str = "text"  # or "json": one object a line, for log collectors

    def __post_init__(self) -> None:
        require(0 <= self.metrics_port <= 65535, "metrics_port", self.metrics_port, "must be from 0 to 65535")
        require(bool(self.metrics_host), "metrics_host", self.metrics_host, "must be an address, such as 127.0.0.1")
        one_of("log_format", self.log_format, ("text", "json"))


@dataclass(frozen=True)
class MemoryConfig:
    """What training may hold in memory; where that is too little, blocks are computed again (``memory.py``)."""

    # weights, gradients, Adam's moments, what a move keeps; a third comes on top; 0 = no limit. paper: a card of 24 GB
    budget_gib: float = PRESET

    def __post_init__(self) -> None:
        at_least(self, 0, "budget_gib")


@dataclass(frozen=True)
class SpeedConfig:
    """Faster ways to the same numbers up to rounding (``speed.py``)."""

    channels_last: str = "auto"  # auto (on a CPU, the networks it helps) | on | off; never with dp.unit
    keep_memory: bool = True  # on a CPU training keeps the memory it frees and does not ask the system for it again
    compile: bool = False  # torch.compile: minutes at the start, and a compiler on the machine
    tf32: bool = True  # GPUs since Ampere multiply float32 with 10 bits of fraction; a CPU never does

    def __post_init__(self) -> None:
        one_of("channels_last", self.channels_last, ("auto", "on", "off"))


@dataclass(frozen=True)
class ReleaseConfig:
    """Read with ``task = "release"`` only: paths on the server, and what the card says (docs/release.md)."""

    policy: str = ""  # YAML: what the sites must find
    key: str = ""  # the private key that signs on a pass
    licence: str = ""  # of the weights; empty: the card says that nobody stated one


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
        one_of("task", self.task, ("train", "release"))
        one_of("preset", self.preset, tuple(PRESETS))
        one_of("precision", self.precision, ("fp32", "bf16"))
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
