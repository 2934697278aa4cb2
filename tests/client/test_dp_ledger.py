"""What a site keeps of differential privacy by groups: its key, and a ledger that is charged before the round."""

import json
from dataclasses import replace

import pytest

from client.dp_ledger import SiteLedger, site_key
from spact_models.accounting import epsilon_of
from spact_models.dp_settings import DpConfig
from spact_models.errors import UserError


def test_the_key_is_made_once_and_for_the_owner_alone(tmp_path):
    assert site_key(tmp_path / "state") == site_key(tmp_path / "state") != site_key(tmp_path / "other")
    assert (tmp_path / "state" / "group.key").stat().st_mode & 0o077 == 0


def test_the_ledger_is_charged_first_and_stops_at_the_budget(tmp_path):
    dp = DpConfig("videos", noise_multiplier=2.0, delta=1e-3)
    ledger = SiteLedger(tmp_path)
    assert ledger.fix_groups(22, dp) == 5
    assert ledger.charge(dp, 6) == epsilon_of(dp, 6)
    again = SiteLedger(tmp_path)
    assert (again.steps, again.fix_groups(99, dp)) == (6, 5)  # the groups stay what they were
    again.charge(dp, 6)  # a round that is played again
    assert json.loads((tmp_path / "privacy.json").read_text())["epsilon"] == epsilon_of(dp, 12)
    with pytest.raises(UserError, match=r"above dp\.epsilon_budget"):
        again.charge(dp, 100_000)
    assert SiteLedger(tmp_path).steps == 12
    with pytest.raises(UserError, match=r"set those keys of dp\.\* back"):
        SiteLedger(tmp_path).fix_groups(22, replace(dp, noise_multiplier=3.0))


def test_a_key_or_a_charge_that_cannot_be_kept_is_a_users_mistake(tmp_path):
    dp = DpConfig("videos", noise_multiplier=2.0, delta=1e-3)
    ledger = SiteLedger(tmp_path)
    ledger.fix_groups(22, dp)
    (tmp_path / "privacy.json").mkdir()
    with pytest.raises(UserError, match=r"privacy\.json: cannot be written \(Is a directory\); free that disk or set"):
        ledger.charge(dp, 6)
    (tmp_path / "state").touch()
    with pytest.raises(UserError, match=r"group\.key: cannot be written .*; free that disk or set `state`"):
        site_key(tmp_path / "state")


def test_groups_that_a_site_cannot_have(tmp_path):
    with pytest.raises(UserError, match=r"dp\.group_videos = 4, this site has fewer videos"):
        SiteLedger(tmp_path).fix_groups(3, DpConfig("videos"))
    with pytest.raises(UserError, match=r"must be below 1 / 5 \(groups of this site\).* Use dp\.delta = 0\.02"):
        SiteLedger(tmp_path).fix_groups(20, DpConfig("videos", delta=0.2))
