"""A policy and what sites say, by the rules alone: figures as they arrive, held against a policy as it is read."""

import pytest

from server.policy import SiteJudgement, decide, load_policy
from spact_models.gate import FIGURES, read_judgement

FINISHED = {"learned": 0.95}


def policy(tmp_path, more=""):
    (tmp_path / "policy.yaml").write_text(f"sites: 1\nleakage: 0.3\nutility: 0\nvideos: 20\n{more}")
    return load_policy(tmp_path / "policy.yaml")


def site(**questions):
    """A site whose attackers see through raw video and find little in the anonymised."""
    told = {"release.train_videos": 60, "release.test_videos": 30, "release.attackers": 3}
    usual = {"videos": 30, "chance": 0.1, "raw": 0.9, "anonymized": 0.15, "low": 0.1, "high": 0.2}
    for task, changes in questions.items():
        told |= {f"release.{task}.{part}": value for part, value in {**usual, **changes}.items()}
    assert set(told) <= set(FIGURES)
    return SiteJudgement(1, "north", read_judgement(told))


def test_retrieval_alone_counts_and_tells_nothing_of_its_own_clips(tmp_path):
    assert decide(policy(tmp_path), [site(retrieval_all={})], []).passed
    assert "release.retrieval_all.learned" not in FIGURES


@pytest.mark.parametrize(
    ("learned", "more", "passes"),
    [
        ({"learned": 0.9}, "learned: 0.9\n", True),
        ({"learned": 0.8999}, "learned: 0.9\n", False),
        ({}, "learned: 0.9\n", False),  # a site of an earlier version
        ({"learned": 0.5}, "learned: 0.5\n", True),
        ({}, "", True),
        ({"learned": 0.1, "videos": 19}, "learned: 0.9\n", True),  # put to too few videos: no evidence anyway
    ],
)
def test_an_attacker_that_stopped_early_makes_its_site_no_evidence(tmp_path, learned, more, passes):
    """Even where retrieval is answered: what leaks most may be what that attacker has not found yet."""
    decision = decide(policy(tmp_path, more), [site(retrieval_all={}, identity=learned)], [])
    assert decision.passed == passes
    if not passes:
        assert f"(identity {learned.get('learned', 0):g})" in decision.notes[0]
        assert "learned = 0.9 is needed" in decision.notes[0]
        assert "more judge.steps" in decision.notes[0]


def test_a_fresh_action_network_that_stopped_early_is_no_hindrance(tmp_path):
    """Steps that end too early understate utility, which can fail a release and never pass one."""
    found = site(retrieval_all={}, identity=FINISHED, action={"learned": 0.2})
    assert decide(policy(tmp_path), [found], []).passed


@pytest.mark.parametrize(("learned", "said"), [(0.15, True), (0.9, False)])
def test_a_pass_says_where_leakage_is_a_lower_bound(tmp_path, learned, said):
    decision = decide(policy(tmp_path), [site(identity={"learned": learned})], [])
    assert decision.passed
    assert any("lower bound" in note and f"identity {learned:g}" in note for note in decision.notes) == said
