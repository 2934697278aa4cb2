"""Robust rules against Flower's own and against slow twins; bad sites that break the mean and not the rule."""

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedMedian, FedTrimmedAvg, Krum, MultiKrum

from client.app import make_app
from server import robust
from server.aggregate import RejectedUpdate
from server.app import run_federation
from server.join import Roster
from server.robust import SpooledRule, bounded, krum_scores
from server.runs import RunFolder
from server.strategy import FedSPAct
from simulations.inprocess import InProcessGrid, become_task
from simulations.partition import load_rows, partition, write_sites
from spact_models.errors import RunStopped, UserError
from spact_models.round_settings import StrategyConfig
from spact_models.run_config import load_settings

become_task()
SHAPES = {"anonymizer.a": (3, 2), "anonymizer.empty": (0,), "action.w": (5,), "anonymizer.b": ()}
RULES = ("median", "trimmed_mean", "krum", "multi_krum")


def updates(count, seed=0):
    rng = np.random.default_rng(seed)
    return [
        {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()} for _ in range(count)
    ]


def collect(made, rule, folder=None, bad=1, sent=("anonymizer.", "action.")):
    """What the rule makes of the updates."""
    collector = SpooledRule(SHAPES, StrategyConfig(aggregation=rule, bad_sites=bad), folder)
    for update in made:
        arrays = {name: Array(value) for name, value in update.items() if name.startswith(tuple(sent))}
        collector.add(arrays, dict.fromkeys(sent, 10))
    mean = {name: value.numpy() for name, value in collector.mean().items()}
    return mean, collector


def flat(update, prefix):
    return np.concatenate([update[name].ravel() for name in SHAPES if name.startswith(prefix)])


def flower(strategy, made, prefix):
    """Flower's rule on one branch; each site weighs 1."""
    replies = []
    for number, update in enumerate(made, start=1):
        request = Message(RecordDict(), number, "train")
        arrays = ArrayRecord([flat(update, prefix)])
        replies.append(Message(RecordDict({"a": arrays, "m": MetricRecord({"num-examples": 1})}), reply_to=request))
    aggregated, _ = strategy.aggregate_train(1, replies)
    return aggregated.to_numpy_ndarrays()[0]


FLOWERS = {  # with 7 updates, 2 of them bad
    "median": lambda: FedMedian(min_available_nodes=1),
    "trimmed_mean": lambda: FedTrimmedAvg(beta=2 / 7 + 1e-9),
    "krum": lambda: Krum(num_malicious_nodes=2),
    "multi_krum": lambda: MultiKrum(num_malicious_nodes=2, num_nodes_to_select=5),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("at_once", [1, 7, 20, 1 << 22])
def test_every_rule_is_flowers_own_whatever_the_stretch(rule, at_once, monkeypatch):
    monkeypatch.setattr(robust, "VALUES_AT_ONCE", at_once)
    made = updates(7)
    ours, collector = collect(made, rule, bad=2)
    for prefix in ("anonymizer.", "action."):
        expected = flower(FLOWERS[rule](), made, prefix)
        np.testing.assert_allclose(flat(ours, prefix), expected, rtol=1e-6, atol=1e-7)
    assert {name: value.shape for name, value in ours.items()} == SHAPES
    assert collector.unmoved == []


def test_the_median_of_an_even_number_is_the_mean_of_the_two_in_the_middle():
    made = updates(6, seed=3)
    ours, _ = collect(made, "median")
    for name in SHAPES:
        twin = [sorted(values) for values in np.stack([update[name].ravel() for update in made], axis=1)]
        np.testing.assert_allclose(ours[name].ravel(), [(row[2] + row[3]) / 2 for row in twin], rtol=1e-6)


def test_krum_scores_are_the_sum_over_the_nearest_by_hand():
    points = np.array([0.0, 1.0, 3.0, 10.0, 11.0, 50.0])
    apart = (points[:, None] - points[None]) ** 2
    by_hand = []
    for index in range(6):
        near = sorted(apart[index, other] for other in range(6) if other != index)
        by_hand.append(sum(near[: 6 - 1 - 2]))
    np.testing.assert_array_equal(krum_scores(apart, 1), by_hand)


def test_the_claimed_examples_do_not_weigh():
    made = updates(3, seed=5)
    plain, _ = collect(made, "median")
    collector = SpooledRule(SHAPES, StrategyConfig(aggregation="median"), None)
    for count, update in zip((1, 9_999_999, 1), made, strict=True):
        arrays = {name: Array(value) for name, value in update.items()}
        collector.add(arrays, {"anonymizer.": count, "action.": 1})
    for name, value in collector.mean().items():
        np.testing.assert_array_equal(value.numpy(), plain[name])


def test_krum_names_whom_it_takes_among_all_updates_even_if_some_lack_the_branch():
    collector = SpooledRule(SHAPES, StrategyConfig(aggregation="multi_krum"), None)
    made = updates(7, seed=2)
    for number, update in enumerate(made):
        sent = ("anonymizer.",) if number == 0 else ("anonymizer.", "action.")
        far = {name: np.asarray(value * (1000 if number == 3 else 1), np.float32) for name, value in update.items()}
        collector.add({n: Array(v) for n, v in far.items() if n.startswith(sent)}, dict.fromkeys(sent, 4))
    collector.mean()
    assert collector.chosen == {"anonymizer.": [0, 1, 2, 4, 5, 6], "action.": [1, 2, 4, 5, 6]}


def test_a_branch_with_too_few_updates_stays_and_the_other_moves():
    collector = SpooledRule(SHAPES, StrategyConfig(aggregation="trimmed_mean"), None)
    for number, update in enumerate(updates(3)):
        sent = ("anonymizer.", "action.") if number < 2 else ("anonymizer.",)
        collector.add({n: Array(v) for n, v in update.items() if n.startswith(sent)}, dict.fromkeys(sent, 4))
    assert {name.partition(".")[0] for name in collector.mean()} == {"anonymizer"}
    assert collector.unmoved == ["action stays as it is: 2 updates, trimmed_mean against 1 bad sites needs 3"]


def test_a_rejected_update_leaves_no_trace_and_files_go_with_the_round(tmp_path):
    spool = tmp_path / "spool"
    made = updates(3)
    expected, collector = collect(made, "median", spool)
    (folder,) = spool.iterdir()
    held = sorted(path.name for path in folder.iterdir())
    assert len(held) == 6
    bad = {name: Array(np.full(SHAPES[name], np.nan, np.float32)) for name in SHAPES}
    with pytest.raises(RejectedUpdate, match="holds nan, must be finite"):
        collector.add(bad, {"anonymizer.": 1, "action.": 1})
    assert sorted(path.name for path in folder.iterdir()) == held
    for name, value in collector.mean().items():
        np.testing.assert_array_equal(value.numpy(), expected[name])
    collector.close()
    assert list(spool.iterdir()) == []


def test_memory_does_not_grow_with_the_sites(tmp_path, monkeypatch):
    """What is read at once, all sites together, stays below the bound."""
    monkeypatch.setattr(robust, "VALUES_AT_ONCE", 1000)
    seen = []
    inner = SpooledRule._stretches

    def watched(self, prefix, files):
        for start, values in inner(self, prefix, files):
            seen.append(values.size)
            yield start, values

    monkeypatch.setattr(SpooledRule, "_stretches", watched)
    shapes = {"action.w": (5000,)}
    collector = SpooledRule(shapes, StrategyConfig(aggregation="multi_krum"), tmp_path)
    for seed in range(9):
        value = np.random.default_rng(seed).standard_normal(5000).astype(np.float32)
        collector.add({"action.w": Array(value)}, {"action.": 1})
    collector.mean()
    assert max(seen) <= 1000
    assert sum(seen) == 9 * 5000 + 8 * 5000  # distances of all, the mean of the eight that are kept


def test_the_rule_needs_enough_sites_and_says_so():
    for rule, least in (("median", 3), ("trimmed_mean", 3), ("krum", 5), ("multi_krum", 5)):
        with pytest.raises(
            UserError, match=rf"rounds\.min_sites = {least - 1}, must be at least {least} with .*{rule}"
        ):
            load_settings({"strategy.aggregation": rule, "rounds.min_sites": least - 1})
        load_settings({"strategy.aggregation": rule, "rounds.min_sites": least})
    with pytest.raises(UserError, match=r"strategy\.aggregation = 'mode', must be one of: mean, median"):
        load_settings({"strategy.aggregation": "mode"})


# ---- the bound


def test_a_long_update_is_scaled_to_the_bound_and_a_short_one_is_untouched():
    update = updates(1)[0]
    arrays = {name: Array(value) for name, value in update.items()}
    norm = float(np.sqrt(sum((value.astype(np.float64) ** 2).sum() for value in update.values())))
    same, told = bounded(arrays, SHAPES, norm * 1.01)
    assert same is arrays
    assert told == pytest.approx(norm, rel=1e-6)
    short, told = bounded(arrays, SHAPES, 0.5)
    assert told == pytest.approx(norm, rel=1e-6)
    for name, value in update.items():
        np.testing.assert_allclose(short[name].numpy(), value * (0.5 / norm), rtol=1e-5)


def test_what_is_not_finite_or_not_ours_passes_the_bound_and_is_refused_by_name():
    arrays = {"action.w": Array(np.full(5, np.inf, np.float32)), "privacy.x": Array(np.ones(3, np.float32))}
    passed, norm = bounded(arrays, SHAPES, 1.0)
    assert passed is arrays
    assert norm == np.inf
    huge = {"action.w": Array(np.full(5, 3e38, np.float32))}
    _, norm = bounded(huge, SHAPES, 1.0)
    assert norm == pytest.approx(3e38 * 5**0.5, rel=1e-6)  # no overflow


# ---- one bad site of five: a task that can be learned, so that utility can be read

CENTRES = np.array([[1.0, 1.0, 0, 0, 0, 0, 0, 0], [-1.0, 0, 1.0, 0, 0, 0, 0, 0], [0, -1.0, -1.0, 0, 0, 0, 0, 0]])


def points(count, seed):
    """Three overlapping clouds in 8 dimensions; a linear classifier tells most of them apart."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    return torch.from_numpy((CENTRES[labels] + 0.6 * rng.standard_normal((count, 8))).astype(np.float32)), labels


def learn(weight, bias, seed):
    """A site's local round: some gradient steps on its own points; the differences."""
    samples, labels = points(60, seed)
    w, b = weight.clone().requires_grad_(), bias.clone().requires_grad_()
    optimizer = torch.optim.SGD([w, b], lr=0.5)
    for _ in range(5):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(samples @ w.T + b, torch.from_numpy(labels)).backward()
        optimizer.step()
    return (w - weight).detach(), (b - bias).detach()


ATTACKS = {
    "scaled": lambda value, _: value * -10,
    "boosted": lambda value, _: value * -100,
    "flipped": lambda value, _: -4 * value,
    "noise": lambda value, rng: torch.from_numpy(rng.normal(0, 20, value.shape).astype(np.float32)),
}


def utility(attack, rounds=8, sent=lambda _: True, **changes):
    """Accuracy after a federation of five sites, the third of which sends what ``attack`` makes of its update."""
    settings = load_settings(
        {"rounds.warmup": 0, "rounds.minimax": rounds, "rounds.min_sites": 5, "strategy.weighting": "equal", **changes}
    )
    roster = Roster("f" * 32, ("a", "b"), 1.0)
    strategy = FedSPAct(
        settings, roster, {"action.w": torch.zeros(3, 8), "action.b": torch.zeros(3), "anonymizer.w": torch.zeros(2)}
    )
    rng = np.random.default_rng(9)
    from server.join import SiteCard

    for node in range(1, 6):
        roster.cards[node] = SiteCard(node, f"site-{node}", (), 1, 1)
    roster.agree()

    class Five(InProcessGrid):
        def get_node_ids(self):
            return [1, 2, 3, 4, 5]

        def _answer(self, message):
            node = message.metadata.dst_node_id
            if message.metadata.message_type != "train":
                return Message(RecordDict({"metrics": MetricRecord({"examples": 1})}), reply_to=message)
            got = message.content.array_records["arrays"].to_torch_state_dict()
            seed = 100 * int(message.content.config_records["config"]["round"]) + node
            change = dict(zip(("action.w", "action.b"), learn(got["action.w"], got["action.b"], seed), strict=True))
            if node == 3 and attack is not None:
                change = {name: attack(value, rng) for name, value in change.items()}
            told = MetricRecord({"examples.action": 60 * sent(node), "examples.anonymizer": 60 * (not sent(node))})
            change = change if sent(node) else {"anonymizer.w": torch.ones(2)}
            return Message(RecordDict({"update": ArrayRecord(change), "metrics": told}), reply_to=message)

    strategy.start(Five(None, [], {}), strategy.initial_arrays(), num_rounds=rounds, timeout=60)
    samples, labels = points(3000, 12345)
    guessed = (samples @ strategy.weights["action.w"].T + strategy.weights["action.b"]).argmax(1).numpy()
    return float((guessed == labels).mean())


def test_a_round_in_which_no_branch_has_enough_updates_is_void_and_says_why():
    """Five sites, of which two train f_A only and three f_T only: krum has too few of either."""
    with pytest.raises(RunStopped, match=r"2 void rounds in a row .*action stays as it is: 3 updates, krum .*needs 5"):
        utility(
            None, rounds=3, sent=lambda node: node > 2, **{"strategy.aggregation": "krum", "rounds.max_void_rounds": 2}
        )


@pytest.mark.parametrize("attack", ATTACKS)
def test_one_bad_site_of_five_breaks_the_mean_and_no_robust_rule(attack):
    honest = utility(None)
    assert honest > 0.85
    assert utility(ATTACKS[attack]) < honest - 0.10
    for rule in RULES:
        kept = utility(ATTACKS[attack], **{"strategy.aggregation": rule})
        assert kept > honest - 0.03, f"{rule}: {kept:.3f} of {honest:.3f}"


def test_the_norm_bound_holds_a_boosted_update():
    honest = utility(None)
    assert utility(ATTACKS["boosted"], **{"strategy.norm_bound": 1.0}) > honest - 0.03


# ---- the same with real sites over the in-process federation


def poison(app, factor):
    """The real ClientApp, its update multiplied before it leaves."""

    def call(message, context):
        reply = app(message, context)
        if context.node_id == 3 and "update" in reply.content.array_records:
            told = reply.content.array_records["update"]
            reply.content["update"] = ArrayRecord({n: Array(factor * a.numpy()) for n, a in told.items()})
        return reply

    return call


def test_real_sites_with_one_that_multiplies_its_update(squares, tmp_path, fast):
    """By distance to the weights without the bad site: 16 videos are too few to judge utility by."""
    base = {**fast, "rounds.minimax": 0, "simulation.sites": 5, "rounds.min_sites": 5}
    settings = load_settings(base)
    shares = partition(load_rows(squares, settings.simulation, 0), settings.simulation, 0)

    def weights(name, factor, **changes):
        files = write_sites(tmp_path / name / "sites", shares, 0, tmp_path / "cache")
        chosen = load_settings({**base, **changes})
        grid = InProcessGrid(poison(make_app(), factor), [{"site": str(file)} for file in files], chosen.flat())
        with RunFolder(tmp_path / name / "run") as folder:
            result = run_federation(grid, chosen, folder, quiet=True)
            assert all(len(record.sites) == 5 for record in result.rounds)
            assert list((folder.path / "spool").glob("*")) == []
        return result.weights

    def apart(ours, theirs):
        squares_apart = sum(float((ours[name] - theirs[name]).double().square().sum()) for name in ours)
        return (squares_apart / sum(float(value.double().square().sum()) for value in theirs.values())) ** 0.5

    honest = weights("honest", 1)
    broken = apart(weights("broken", -100), honest)
    assert broken > 0.3  # that far from where the honest sites end, in lengths of all weights
    for rule in ("median", "multi_krum"):
        assert apart(weights(rule, -100, **{"strategy.aggregation": rule}), honest) < 0.02
