"""Both halves of secure aggregation against each other: every way to be lost, and every lie we could think of."""

import itertools
import json
import os
import random
from collections import Counter
from functools import cache

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Array, ConfigRecord
from scipy.stats import chisquare

from client.membership import Membership
from server.aggregate import RejectedUpdate
from server.masked import read_words
from server.secure_sum import Void
from simulations.benchmarks.secure_play import SecurePlay
from spact_models import agreement
from spact_models.agreement import BrokenProtocol
from spact_models.ring import FixedPoint
from spact_models.run_config import load_settings

SHAPES = {"anonymizer.w": (3, 4), "action.w": (5,)}
STAGES = ("keys", "shares", "training", "confirm", "unmask")
SECURE = {"secure.aggregation": True, "strategy.weighting": "equal", "rounds.min_sites": 2}


@cache
def registered_key(_name):
    return ec.generate_private_key(ec.SECP384R1())


class Game(SecurePlay):
    """Five sites or so of 17 weights, whom a test may have lie, vanish, or be lied to."""

    def __init__(self, folder, count=5, config=None, lost_at=None, bend=None, show=None, least=1):
        names = [f"site-{number}" for number in range(count)]
        rng = torch.Generator().manual_seed(count)
        self.updates = {
            name: {k: torch.rand(shape, generator=rng) - 0.5 for k, shape in SHAPES.items()} for name in names
        }
        settings = load_settings({**SECURE, **(config or {})})
        keys = {name: registered_key(name) for name in names}
        super().__init__(folder, settings, keys, self.updates.__getitem__, SHAPES, least)
        self.lost_at = lost_at or {}
        self.bend, self.show = bend or self.bend, show or self.show

    def mean_of(self, names):
        return {key: sum(self.updates[name][key].double() for name in names) / len(names) for key in SHAPES}


def assert_close(mean, expected, step):
    assert mean.keys() == expected.keys()
    for key, value in expected.items():
        assert float((mean[key].double() - value).abs().max()) <= step + 2**-24, key


def test_the_masked_sum_is_the_plain_sum_to_one_step(tmp_path):
    game = Game(tmp_path)
    mean, sites = game.play()
    assert sites == 5
    assert_close(mean, game.mean_of(game.names), FixedPoint(1.0, 5).step)
    assert game.drops == game.refused == []
    for name in game.names:  # the secrets have served and are gone; that the round was opened stays
        kept = json.loads((tmp_path / name / "secure.json").read_text())
        assert kept["opened"] == 1
        assert not any(kept[key] for key in ("cipher_key", "mask_key", "seed", "key_shares", "seed_shares"))
        assert (tmp_path / name / "secure.json").stat().st_mode & 0o077 == 0


def expected_of(game):
    """Which sites' updates come out, by the protocol's own rules in one line each; None: the round is void."""
    order = [*STAGES, "never"]
    left = lambda stage: [n for n in game.names if order.index(game.lost_at[n]) > order.index(stage)]  # noqa: E731
    least = max(2, agreement.needed(0.66, len(left("keys"))))
    return left("training") if all(len(left(stage)) >= least for stage in STAGES) else None


@pytest.mark.parametrize(
    ("count", "patterns", "right"),
    # five with keys: nobody lost later, or one at one of four stages; the same with four and with three; two: nobody
    [(4, 126, 5 + 5 + 1), pytest.param(5, 252, 5 + 5 + 5 + 1, marks=pytest.mark.slow)],
)
def test_every_pattern_of_sites_lost_at_any_stage(tmp_path, monkeypatch, count, patterns, right):
    """Up to the sites' order, which is drawn. Above the threshold the sum is right, below it void."""
    monkeypatch.setattr(os, "fsync", lambda _: None)  # nobody pulls the plug here: a quarter of the time
    rng, met = random.Random(0), Counter()
    for number, fates in enumerate(itertools.combinations_with_replacement((*STAGES, "never"), count)):
        fates = rng.sample(fates, count)
        names = [f"site-{place}" for place in range(count)]
        game = Game(tmp_path / str(number), count, lost_at=dict(zip(names, fates, strict=True)))
        expected = expected_of(game)
        met[expected is None] += 1
        if expected is None:
            with pytest.raises(Void, match="needed"):
                game.play()
            continue
        mean, sites = game.play()
        assert sites == len(expected), fates
        assert_close(mean, game.mean_of(expected), FixedPoint(1.0, count).step)
    assert met == {True: patterns - right, False: right}


def test_twelve_sites_that_agree_with_six_neighbours_each(tmp_path):
    lost = {"site-3": "training", "site-8": "training", "site-5": "shares"}
    game = Game(tmp_path, 12, {"secure.neighbours": 6, "secure.threshold": 0.5}, lost)
    mean, sites = game.play()
    assert sites == 9
    assert_close(mean, game.mean_of([name for name in game.names if name not in lost]), FixedPoint(1.0, 12).step)


def test_branches_that_not_everybody_taught_are_means_of_those_who_did(tmp_path):
    game = Game(tmp_path, 3)
    game.taught["site-2"] = (1, 0)
    game.updates["site-2"]["action.w"] = torch.zeros(5)
    mean, _ = game.play()
    assert_close({"action.w": mean["action.w"]}, {"action.w": game.mean_of(["site-0", "site-1"])["action.w"]}, 1e-8)
    nobody = Game(tmp_path / "nobody", 3)
    nobody.taught = dict.fromkeys(nobody.names, (1, 0))
    mean, _ = nobody.play()
    assert set(mean) == {"anonymizer.w"}


def test_what_the_server_sees_of_one_site_is_uniform_whatever_it_sent(tmp_path):
    """Given the sum: the updates of three sites change, their sum does not, and each masked one stays uniform."""
    shapes = {"anonymizer.w": (60_000,), "action.w": (1,)}
    for number, size in enumerate((0.0, 0.9)):
        game = Game(tmp_path / str(number), 3)
        ones = {"anonymizer.w": torch.ones(shapes["anonymizer.w"]), "action.w": torch.zeros(1)}
        for name, sign in zip(game.names, (1, -1, 0), strict=True):
            game.updates[name] = {key: sign * size * value for key, value in ones.items()}
        game.shapes = shapes
        game.begin(1)
        mean, _ = game.play()
        assert float(mean["anonymizer.w"].abs().max()) <= FixedPoint(1.0, 3).step
        for name in game.names:
            seen = game.sent[name]["anonymizer.w"]
            for byte in seen.view(np.uint8).reshape(-1, 4).T:  # each of a number's four bytes
                assert chisquare(np.bincount(byte, minlength=256)).pvalue > 1e-5
            apart = seen[1:] - seen[:-1]  # equal values side by side: their difference is uniform as well
            assert chisquare(np.bincount(apart >> 24, minlength=256)).pvalue > 1e-5


def test_no_two_executions_use_a_mask_twice(tmp_path):
    game = Game(tmp_path, 3)
    game.play()
    first = game.sent
    game.sent = {}
    game.begin(2)
    game.play()
    for name in game.names:
        assert not np.array_equal(first[name]["anonymizer.w"], game.sent[name]["anonymizer.w"])


# ---- sites that lie


def test_a_wrong_share_is_named_left_out_and_made_up_for(tmp_path, caplog):
    def bend(name, stage, told):
        if (name, stage) == ("site-1", "unmask"):
            told["seed_shares"] = [bytes(32) for _ in told["seed_shares"]]
            told["key_shares"] = [bytes(32) for _ in told["key_shares"]]
        return told

    game = Game(tmp_path, 6, lost_at={"site-4": "training"}, bend=bend)
    mean, sites = game.play()
    assert sites == 5
    assert_close(mean, game.mean_of([name for name in game.names if name != "site-4"]), FixedPoint(1.0, 6).step)
    assert "site site-1: its share of site-0's seed is not the one that was dealt" in caplog.text
    assert "site site-1: its share of site-4's key is not the one that was dealt" in caplog.text


def test_shares_that_do_not_give_the_committed_seed_void_the_round_and_name_their_dealer(tmp_path):
    def bend(name, stage, told):
        if (name, stage) == ("site-1", "shares"):
            told["commitment"] = bytes(32)
        return told

    with pytest.raises(Void, match="the shares that site-1 dealt do not give the seed it committed to"):
        Game(tmp_path, bend=bend).play()


def test_a_site_that_sends_what_no_update_can_be_voids_the_round(tmp_path):
    def bend(name, stage, told):
        if (name, stage) == ("site-1", "training"):
            rng = random.Random(0)
            return {key: np.frombuffer(rng.randbytes(v.nbytes), "<u4").reshape(v.shape) for key, v in told.items()}
        return told

    with pytest.raises(Void, match="no sum of 5 updates"):
        Game(tmp_path, bend=bend).play()


@pytest.mark.parametrize("stage", ["keys", "shares", "confirm", "unmask"])
def test_an_answer_that_makes_no_sense_costs_only_its_sender(tmp_path, stage):
    def bend(name, asked, told):
        return {"nonsense": [b"1", b"2"], "untrusted": "all"} if (name, asked) == ("site-1", stage) else told

    game = Game(tmp_path, bend=bend)
    mean, sites = game.play()
    assert sites == (5 if stage in ("confirm", "unmask") else 4)
    assert_close(mean, game.mean_of([n for n in game.names if sites == 5 or n != "site-1"]), FixedPoint(1.0, 5).step)
    assert [(drop.name, f"secure aggregation, {stage}: " in drop.reason) for drop in game.drops] == [("site-1", True)]


def test_counts_that_no_sum_can_have_void_the_round(tmp_path):
    game = Game(tmp_path, 3)
    game.taught["site-1"] = (40, 1)
    with pytest.raises(Void, match=r"no sum of 3 updates \(anonymizer 42\)"):
        game.play()


def test_shares_sealed_for_somebody_else_keep_their_receiver_out(tmp_path):
    def bend(name, stage, told):
        if (name, stage) == ("site-1", "shares"):
            told["sealed"] = told["sealed"][1:] + told["sealed"][:1]
        return told

    game = Game(tmp_path, bend=bend)
    with pytest.raises(Void, match="1 sites have sent their masked updates, 4 needed"):
        game.play()
    assert "the shares of site-1 for site-0 cannot be opened" in reasons(game)


# ---- a server that lies


def reasons(game):
    return "\n".join([*map(str, game.drops), *game.refused])


def test_a_key_that_the_server_puts_in_place_of_a_sites_is_found_out(tmp_path):
    def show(name, stage, record):
        if stage == "shares" and name != "site-1" and "site-1" in record["names"]:
            keys = list(record["mask_keys"])
            keys[record["names"].index("site-1")] = agreement.public_key(agreement.new_key())
            return ConfigRecord({**record, "mask_keys": keys})
        return record

    game = Game(tmp_path, show=show)
    assert game.play()[1] == 4  # the others go on without it: nothing was masked for the server's key
    assert "do not trust its keys: its signature is not of this round" in reasons(game)


def test_a_site_that_only_the_server_knows_is_found_out(tmp_path):
    game = Game(tmp_path)
    del game.sites["site-0"]._membership.members["site-1"]  # one dict serves all five
    mean, sites = game.play()
    assert sites == 4
    assert_close(mean, game.mean_of([name for name in game.names if name != "site-1"]), 1e-8)
    assert "site-1" in reasons(game)
    assert "most sites do not trust its keys: no such key in member_keys" in reasons(game)


def test_who_was_lost_before_it_all_begins_again_is_not_asked_again(tmp_path):
    game = Game(tmp_path, 6, lost_at={"site-4": "keys"})
    del game.sites["site-0"]._membership.members["site-1"]
    assert game.play()[1] == 4
    assert [drop.name for drop in game.drops] == ["site-4", "site-1"]


def silent_once(*names):
    """Sites that do not answer the first ``shares``, and would answer the next."""
    silent = set(names)

    def show(name, stage, record):
        if stage == "shares" and name in silent:
            silent.remove(name)
            raise BrokenProtocol("gone for a moment")
        return record

    return show


def test_who_was_lost_with_its_shares_is_not_in_the_sum_when_it_begins_again(tmp_path):
    game = Game(tmp_path, 6, show=silent_once("site-4"))
    del game.sites["site-0"]._membership.members["site-1"]
    mean, sites = game.play()
    assert sites == 4
    assert_close(mean, game.mean_of(["site-0", "site-2", "site-3", "site-5"]), FixedPoint(1.0, 4).step)
    assert [drop.name for drop in game.drops] == ["site-4", "site-1"]


def test_beginning_again_does_not_lower_how_many_must_be_left(tmp_path):
    """Of five trusted sites four are needed; two lost ones void the round, whether a sixth is trusted or not."""
    game = Game(tmp_path, 6, show=silent_once("site-4", "site-5"))
    del game.sites["site-0"]._membership.members["site-1"]
    with pytest.raises(Void, match="3 sites have answered with their shares, 4 needed"):
        game.play()


def test_a_site_that_trusts_too_few_stays_out_alone(tmp_path):
    game = Game(tmp_path)
    few = Membership("site-0", registered_key("site-0"), {"site-0": registered_key("site-0").public_key()})
    game.sites["site-0"]._membership = few
    mean, sites = game.play()
    assert sites == 4
    assert_close(mean, game.mean_of(game.names[1:]), 1e-8)
    assert "name='site-0', reason='secure aggregation, shares: it does not trust site-1: no such key" in reasons(game)


def test_keys_of_an_earlier_round_are_not_taken_again(tmp_path):
    game = Game(tmp_path)
    old = {}

    def remember(name, stage, told):
        old.setdefault((name, stage), told)
        return told

    def replay(name, stage, told):
        return old["site-1", "keys"] if (name, stage) == ("site-1", "keys") else told

    game.bend = remember
    game.play()
    game.bend = replay
    game.begin(2)
    assert game.play()[1] == 4
    assert "most sites do not trust its keys: its signature is not of this round" in reasons(game)
    assert "or has other keys under its name" in reasons(game)  # and site-1 sees it too


@pytest.mark.parametrize("stage", ["shares", "confirm"])
def test_a_server_that_shows_sites_different_lists_opens_nothing(tmp_path, stage):
    """Two of five are shown a list without site-4: a server would want both secrets of one site, from two halves."""

    def show(name, asked, record):
        if asked != stage or name not in ("site-0", "site-1"):
            return record
        if stage == "confirm":
            return ConfigRecord({**record, "summed": [each for each in record["summed"] if each != "site-4"]})
        columns = ("names", "cipher_keys", "mask_keys", "signatures")
        return ConfigRecord({**record, **{key: list(record[key])[:4] for key in columns}})

    game = Game(tmp_path, show=show)
    with pytest.raises(Void, match="needed"):
        game.play()
    if stage == "confirm":  # everybody signed what it was shown, and nobody gave a share
        assert reasons(game).count("has not signed this list of sites in the sum") == 3
        assert reasons(game).count("signers: must be sites in the sum") == 2
    assert all(not json.loads((tmp_path / name / "secure.json").read_text())["opened"] for name in game.names)


def test_the_server_cannot_ask_with_signatures_of_its_choice(tmp_path):
    def show(_name, stage, record):
        if stage == "unmask":
            return ConfigRecord({**record, "signers": record["signers"][:1], "signatures": record["signatures"][:1]})
        return record

    game = Game(tmp_path, show=show)
    with pytest.raises(Void, match="0 shares of"):
        game.play()
    assert "refused: 1 sites in the sum, this site takes part where there are at least 4" in reasons(game)


def test_each_stage_comes_once_and_in_its_order(tmp_path):
    game = Game(tmp_path, 3)
    nodes = game.sum.begin(game.grid, range(1, 4))
    site, request = game.sites["site-0"], game.sum.request(nodes[0])
    about = {"nonce": game.sum.session.nonce, "round": 1}
    with pytest.raises(BrokenProtocol, match="asked out of turn"):
        site.confirm(ConfigRecord({**about, "summed": game.names}))
    site.receive(request)
    with pytest.raises(BrokenProtocol, match="asked out of turn"):
        site.receive(request)  # a second update under the same masks would tell their difference
    site.masked(game.updates["site-0"], torch.tensor([1, 1]), None)
    with pytest.raises(BrokenProtocol, match="asked out of turn"):
        site.masked(game.updates["site-0"], torch.tensor([1, 1]), None)
    site.confirm(ConfigRecord({**about, "summed": game.names}))
    with pytest.raises(BrokenProtocol, match="asked out of turn"):
        site.confirm(ConfigRecord({**about, "summed": game.names[:2]}))
    with pytest.raises(BrokenProtocol, match="another execution"):
        site.unmask(ConfigRecord({"nonce": bytes(16), "round": 1, "signers": [], "signatures": []}))


def test_a_sum_that_was_opened_is_not_opened_again_over_other_sites(tmp_path):
    """The difference of the two sums would be the update of the site that is in one of them alone."""
    game = Game(tmp_path)
    game.play()
    game.begin(1)
    with pytest.raises(Void, match="0 sites have sent their keys"):
        game.play()
    assert "another sum of round 1 could be subtracted from it" in reasons(game)
    game.begin(2)
    assert game.play()[1] == 5


def test_a_site_may_demand_more_sites_in_the_sum_than_the_run_does(tmp_path):
    game = Game(tmp_path, 4, lost_at={"site-3": "training"}, least=4)
    with pytest.raises(Void, match="0 sites have confirmed"):
        game.play()
    assert "refused: 3 sites in the sum, this site takes part where there are at least 4" in reasons(game)


def test_settings_that_two_sites_do_not_share_are_found_out(tmp_path):
    game = Game(tmp_path)
    other = load_settings({**SECURE, "secure.threshold": 0.5})  # whom the server showed a lower threshold
    game.sites["site-2"]._settings = other
    mean, sites = game.play()
    assert sites == 4
    assert_close(mean, game.mean_of([name for name in game.names if name != "site-2"]), 1e-8)
    assert "site-2" in reasons(game)


# ---- the server's own checks


@pytest.mark.parametrize(
    ("array", "rule"),
    [
        (np.zeros((3, 4), np.float32), "must be masked"),
        (np.zeros((4, 3), np.uint32), "must be masked"),
        (np.asfortranarray(np.zeros((3, 4), np.uint32)), "must be masked"),
        (np.zeros((3, 4), ">u4"), "must be masked"),
    ],
)
def test_what_is_no_masked_array_is_rejected(array, rule):
    with pytest.raises(RejectedUpdate, match=rule):
        read_words("w", Array(array), (3, 4))


def test_bytes_that_are_cut_or_no_array_are_rejected():
    good = Array(np.zeros((3, 4), np.uint32))
    with pytest.raises(RejectedUpdate, match="bytes, must be 48"):
        read_words("w", Array("uint32", (3, 4), good.stype, good.data[:-1]), (3, 4))
    with pytest.raises(RejectedUpdate, match="not a numpy array"):
        read_words("w", Array("uint32", (3, 4), good.stype, b"nonsense" * 9), (3, 4))
    with pytest.raises(RejectedUpdate, match="serialised as"):
        read_words("w", Array("uint32", (3, 4), "pickle", good.data), (3, 4))
    assert not read_words("w", good, (3, 4)).any()
