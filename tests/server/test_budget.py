"""Epsilon is charged and on the disk before anything is released, and the run stops before it overspends."""

import builtins
import json
import math

import numpy as np
import pytest
import torch
from scipy import optimize, stats

from server.budget import LEDGER, Budget, forecast, open_budget, schedule_costs
from spact_models.errors import RunStopped, UserError
from spact_models.noise import SecretStream
from spact_models.run_config import load_settings

KEY = bytes(32)


def settings_of(fast, unit="site", **more):
    return load_settings({**fast, "dp.unit": unit, "strategy.weighting": "equal", **more})


def exact_epsilon(multiplier, releases, delta):
    """Gaussians without sampling compose to one with multiplier z / sqrt(T) (Balle and Wang 2018, Theorem 8)."""
    mu, phi = math.sqrt(releases) / multiplier, stats.norm.cdf
    return optimize.brentq(lambda e: phi(mu / 2 - e / mu) - math.exp(e) * phi(-mu / 2 - e / mu) - delta, 1e-6, 500.0)


def test_site_epsilon_bounds_the_exact_value_closely(fast):
    costs = schedule_costs(settings_of(fast, **{"dp.noise_multiplier": 3.0}))
    for releases, epsilon in enumerate(costs, start=1):
        exact = exact_epsilon(3.0, releases, 1e-5)
        assert exact < epsilon < 1.15 * exact


def test_noise_has_the_size_that_epsilon_was_computed_for(fast):
    settings = settings_of(fast, **{"dp.clip_norm": 0.5, "dp.noise_multiplier": 2.0})
    mean = {"anonymizer.w": torch.zeros(300, 100), "action.w": torch.zeros(30_000)}
    noised = Budget(settings, None, SecretStream(KEY)).release(1, mean, sites=10)
    for value in noised.values():  # z C / n, and a thousandth for rounding
        assert stats.kstest(value.flatten().numpy() / (2.0 * 0.5 / 10 * 1.001), "norm").pvalue > 1e-3
    assert abs(np.corrcoef(noised["anonymizer.w"].flatten(), noised["action.w"])[0, 1]) < 0.03


def test_charged_and_on_the_disk_before_it_is_released(fast, tmp_path):
    budget = Budget(settings_of(fast), tmp_path)

    class Watched(SecretStream):
        def noised(self, value, deviation):
            assert json.loads((tmp_path / LEDGER).read_text())["told"]["releases"] == 1
            return super().noised(value, deviation)

    budget._stream = Watched(KEY)
    budget.release(1, {"a": torch.zeros(2)}, sites=3)
    told = json.loads((tmp_path / LEDGER).read_text())["told"]
    assert {"epsilon", "delta", "unit", "adjacency", "sampling", "accountant"} <= told.keys()


def test_what_cannot_be_written_is_not_released(fast, tmp_path):
    budget = Budget(settings_of(fast), tmp_path)
    (tmp_path / LEDGER).mkdir()
    (tmp_path / LEDGER / "in the way").touch()
    with pytest.raises(UserError, match="nothing of the round is released"):
        budget.release(1, {"a": torch.zeros(2)}, sites=3)


@pytest.mark.parametrize("unit", ["site", "videos"])
def test_a_resumed_run_has_spent_what_it_had_spent(fast, tmp_path, unit):
    settings = settings_of(fast, unit, **{"dp.noise_multiplier": 5.0})
    first = Budget(settings, tmp_path)
    for number in (1, 2):
        first.open_round(number)
        first.release(number, {"a": torch.zeros(2)}, sites=3)
    again = Budget(settings, tmp_path)
    assert again.epsilon == first.epsilon > 0
    again.open_round(2)  # played again: charged again
    again.release(2, {"a": torch.zeros(2)}, sites=3)
    assert again.epsilon > first.epsilon
    with pytest.raises(UserError, match="set those keys of dp"):
        Budget(settings_of(fast, unit, **{"dp.noise_multiplier": 9.0}), tmp_path)


def test_a_broken_ledger_stops_the_run(fast, tmp_path):
    (tmp_path / LEDGER).write_text("{")
    with pytest.raises(UserError, match="nobody knows what the run has spent"):
        Budget(settings_of(fast), tmp_path)


@pytest.mark.parametrize("unit", ["site", "videos"])
def test_the_run_stops_before_it_overspends_and_check_says_when(fast, unit):
    costs = schedule_costs(settings_of(fast, unit))
    settings = settings_of(fast, unit, **{"dp.epsilon_budget": (costs[1] + costs[2]) / 2})
    assert "the run will stop before round 3" in forecast(settings)[-1]
    budget = Budget(settings, None)
    for number in (1, 2):
        budget.open_round(number)
        budget.release(number, {"a": torch.zeros(2)}, sites=3)
    with pytest.raises(RunStopped, match=r"round 3 would take epsilon from .* above dp\.epsilon_budget"):
        budget.open_round(3)
    assert budget.epsilon <= settings.dp.epsilon_budget


def test_without_the_accountants_package_nothing_begins(fast, monkeypatch):
    found = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.startswith(("dp_accounting", "opacus")):
            raise ImportError(name)
        return found(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UserError, match=r"pip install 'flwr\[dp\]'"):
        open_budget(settings_of(fast), None)
    with pytest.raises(UserError, match="pip install opacus"):
        forecast(settings_of(fast, "videos"))


def test_delta_is_held_against_the_sites_that_are_there(fast):
    budget = Budget(settings_of(fast, **{"dp.delta": 0.01}), None)
    budget.check_sites(99)
    with pytest.raises(UserError, match=r"dp\.delta = 0\.01, must be below 1 / 100 \(connected sites\)"):
        budget.check_sites(100)


def test_no_differential_privacy_no_budget(fast, tmp_path):
    assert open_budget(load_settings(fast), tmp_path) is None
    assert forecast(load_settings(fast)) == []
