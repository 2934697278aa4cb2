"""The adaptive clip norm: it finds the quantile, costs what it claims, and survives a restart."""

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from client.app import make_app
from server.app import run_federation
from server.budget import Budget
from server.clipping import AdaptiveClip
from server.runs import RunFolder
from simulations.federated import deal_out
from simulations.inprocess import InProcessGrid
from simulations.partition import load_rows
from spact_models.errors import UserError
from spact_models.noise import SecretStream
from spact_models.run_config import load_settings

SITE = {"dp.unit": "site", "strategy.weighting": "equal", "dp.adaptive_quantile": 0.5, "dp.delta": 1e-4}


@pytest.mark.parametrize(("multiplier", "sites"), [(0.7, 3), (1.0, 100), (4.0, 40), (1.0, 1000)])
def test_update_and_count_together_cost_one_release(multiplier, sites):
    """Two Gaussians of sensitivity C and 1/2 compose to one of multiplier z: their inverse squares add up."""
    clip = AdaptiveClip(load_settings({**SITE, "dp.noise_multiplier": multiplier}).dp)
    update, count = clip.update_multiplier(sites), clip.count_deviation(sites) / 0.5
    assert (update**-2 + count**-2) ** -0.5 == pytest.approx(multiplier)
    assert multiplier < update < 1.16 * multiplier


@pytest.mark.parametrize("quantile", [0.3, 0.5, 0.9])
def test_the_norm_finds_the_quantile_of_the_lengths(quantile):
    settings = load_settings({**SITE, "dp.adaptive_quantile": quantile, "dp.clip_norm": 5.0})
    clip, stream = AdaptiveClip(settings.dp), SecretStream(bytes(32))
    lengths = np.random.default_rng(0).lognormal(0.0, 0.5, 200)
    seen = []
    for _ in range(200):
        seen.append(clip.norm)
        clip.follow(int((lengths <= clip.norm).sum()), 200, stream)
    settled = float(np.mean(seen[-50:]))
    assert abs(np.mean(lengths <= settled) - quantile) < 0.08
    assert max(abs(math.log(b / a)) for a, b in pairwise(seen)) < 0.3  # no round throws it far


def test_the_norm_is_kept_with_the_ledger_and_goes_on_from_there(tmp_path):
    settings = load_settings({**SITE, "dp.epsilon_budget": 1e6})
    mean = {"w": torch.zeros(4)}
    budget = Budget(settings, tmp_path, SecretStream(bytes(32)))
    budget.release(1, mean, 20, within=20)
    assert budget.clip_norm < 1.0  # everybody was within it
    again = Budget(settings, tmp_path)
    assert again.clip_norm == budget.clip_norm
    assert again.told()["clip_norm"] == pytest.approx(budget.clip_norm, abs=1e-6)
    with pytest.raises(UserError, match="the run began with"):
        Budget(load_settings({**settings.flat(), "dp.adaptive_quantile": 0.0}), tmp_path)
    with pytest.raises(ValueError, match="nobody counted"):
        budget.release(2, mean, 20)


def test_noise_follows_the_norm():
    settings = load_settings({**SITE, "dp.epsilon_budget": 1e6, "dp.adaptive_rate": 1.0})
    budget, mean = Budget(settings, None, SecretStream(bytes(32))), {"w": torch.zeros(100_000)}
    first = float(budget.release(1, mean, 50, within=50)["w"].std())
    norm = budget.clip_norm
    second = float(budget.release(2, mean, 50, within=50)["w"].std())
    assert second / first == pytest.approx(norm, rel=0.02)
    assert norm < 0.75


def test_real_sites_clip_to_what_the_round_asks_and_tell_whether_they_had_to(squares, fast, tmp_path):
    config = {
        **fast,
        **SITE,
        "simulation.sites": 3,
        "dp.clip_norm": 1e-3,
        "dp.adaptive_rate": 1.0,
        "dp.epsilon_budget": 1e9,
    }
    config |= {"dp.noise_multiplier": 0.05, "dp.delta": 0.01}
    settings = load_settings(config)
    files = deal_out(tmp_path, load_rows(squares, settings.simulation, 0), settings, tmp_path / "cache")
    with RunFolder(tmp_path / "run") as run:
        grid = InProcessGrid(make_app(), [{"site": str(file)} for file in files], settings.flat())
        result = run_federation(grid, settings, run, quiet=True)
    assert result.privacy["clip_norm"] > 2e-3  # all were longer: three rounds of growth by e^0.5 each, but for noise
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    told = [site["metrics"] for line in lines for site in line["sites"]]
    assert told
    assert all("within_clip" not in metrics for metrics in told)  # it came to the server and stays there


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dp.unit": "videos"}, "needs dp.unit = 'site'"),
        ({"secure.aggregation": True, "rounds.min_sites": 3}, "cannot go with secure.aggregation = true"),
        ({"dp.adaptive_quantile": 1.0}, "must be above 0 and below 1"),
        ({"dp.adaptive_rate": 0.0}, "must be above 0 and at most 1"),
    ],
)
def test_what_cannot_go_with_it_is_said(change, said):
    with pytest.raises(UserError, match=said):
        load_settings({**SITE, **change})
