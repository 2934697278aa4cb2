"""The sections of a federation's rounds: their schedule, the server's step, what travels, what the actions are."""

from __future__ import annotations

from dataclasses import dataclass

from spact_models.rules import PRESET, at_least, one_of, positive, require


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
        at_least(self, 0, "warmup", "minimax", "evaluate_every", "keep_checkpoints", "deadline_least_seconds")
        at_least(self, 1, "cycles", "min_sites", "max_void_rounds", "deadline_factor")
        positive(self, "timeout_seconds")
        enough = self.sites == 0 or self.sites >= self.min_sites
        require(enough, "sites", self.sites, f"must be 0 (all) or at least rounds.min_sites = {self.min_sites}")
        one_of("deadline", self.deadline, ("fixed", "adaptive"))
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
        one_of("name", self.name, ("fedavg", "fedprox", "fedadam", "fedavgm"))
        one_of("weighting", self.weighting, ("examples", "equal"))
        one_of("aggregation", self.aggregation, ("mean", "median", "trimmed_mean", "krum", "multi_krum"))
        positive(self, "learning_rate", "adaptivity", "max_examples")
        at_least(self, 1, "bad_sites")
        at_least(self, 0, "norm_bound")
        for name in ("momentum", "beta1", "beta2"):
            require(0 <= getattr(self, name) < 1, name, getattr(self, name), "must be in [0, 1)")
        at_least(self, 0, "proximal_mu")

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
        one_of("dtype", self.dtype, ("float32", "float16", "int8"))


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
