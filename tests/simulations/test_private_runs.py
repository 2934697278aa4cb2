"""Whole private federations through the real apps: what leaves a site, what is charged, when the run stops."""

import json

import pytest
import torch
import yaml
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from client.app import make_app
from client.egress import introduction, signature
from client.video.rows import read_rows, write_rows
from fedspact import main
from server.app import quiet_flower, run_federation, summarise
from server.budget import Budget
from server.join import Roster
from server.runs import RunFolder
from server.strategy import FedSPAct
from simulations.inprocess import InProcessGrid
from spact_models.exchange import clipped, snapshot
from spact_models.networks import build_networks
from spact_models.run_config import load_settings

CLASSES = ["jump", "walk"]
TINIEST = {  # one step a round: what is shown is the noise, not the learning
    "strategy.weighting": "equal",
    "networks.anonymizer_channels": 2,
    "warmup.steps": 1,
    "rounds.warmup": 1,
    "rounds.minimax": 1,
    "game.catch_up_steps": 0,
    "game.critic_steps": 1,
    "batch.clips": 2,
    "batch.views": 2,
}


@pytest.fixture(scope="module")
def cache_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def sites(squares, tmp_path, cache_folder):
    """Ordinary site files; site k holds some of the videos, and every third no labels."""
    rows = [row for row in read_rows(squares) if row.split == "train"]

    def write(count, videos=2, refuse=None):
        nodes = []
        for number in range(count):
            folder = tmp_path / "sites" / f"{number:03d}"
            own = [rows[(number + step) % len(rows)] for step in range(videos)]
            write_rows(own, folder / "manifest.csv") if folder.mkdir(parents=True) is None else None
            content = {
                "name": f"site-{number:03d}",
                "manifest": "manifest.csv",
                "cache": str(cache_folder),
                "allow_outside": True,
            }
            content |= {"refuse": refuse} if refuse else {}
            (folder / "site.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
            nodes.append({"site": str(folder / "site.yaml")})
        return nodes

    return write


def federate(nodes, folder, config):
    settings = load_settings(config)
    with RunFolder(folder) as run:
        result = run_federation(InProcessGrid(make_app(), nodes, settings.flat()), settings, run, quiet=True)
        return result, run.history(), summarise(result, settings)


def tiny_sites(targets, bound):
    """Sites of 22 weights: each pulls them half-way to a target of its own, and clips what it sends."""
    app = ClientApp()

    @app.query()
    def query(message, context):
        card = introduction(f"site-{context.node_id:03d}", CLASSES, 0, 0)
        return Message(RecordDict({"site": card}), reply_to=message)

    @app.train()
    def train(message, context):
        weights = message.content.array_records["arrays"]
        pull = {n: 0.5 * (targets[n][context.node_id - 1] - torch.tensor(a.numpy())) for n, a in weights.items()}
        update = ArrayRecord(clipped(pull, bound))
        told = MetricRecord({"examples.anonymizer": 1, "examples.action": 1, "teacher_held": 0})
        site = signature(f"site-{context.node_id:03d}")
        return Message(RecordDict({"update": update, "metrics": told, "site": site}), reply_to=message)

    return app


def test_a_hundred_and_twenty_sites_agree_in_spite_of_the_noise(tmp_path):
    """Many sites and few weights, which is where the site can be the unit: noise of z C / n a weight."""
    sites, rounds = 120, 12
    config = {"dp.unit": "site", "strategy.weighting": "equal", "dp.clip_norm": 1.0, "dp.noise_multiplier": 3.0}
    config |= {"dp.delta": 1e-3, "rounds.warmup": 0, "rounds.minimax": rounds, "dp.epsilon_budget": 10.0}
    settings = load_settings(config)
    generator = torch.Generator().manual_seed(0)
    shapes = {"anonymizer.w": (3, 4), "action.w": (10,)}
    targets = {n: torch.randn(sites, *shape, generator=generator) * 0.2 + 0.5 for n, shape in shapes.items()}
    grid = InProcessGrid(tiny_sites(targets, 1.0), [{}] * sites, {})
    roster = Roster("f" * 32, (), 1.0)
    roster.meet(grid, grid.get_node_ids())
    roster.agree()
    budget = Budget(settings, tmp_path)
    strategy = FedSPAct(settings, roster, {n: torch.zeros(shape) for n, shape in shapes.items()}, budget=budget)
    with quiet_flower():
        strategy.start(grid, strategy.initial_arrays(), rounds, timeout=60.0)
    agreed = {name: target.mean(dim=0) for name, target in targets.items()}
    apart = max(float((strategy.weights[name] - agreed[name]).abs().max()) for name in agreed)
    assert apart < 0.15  # 4.5 deviations of what two rounds' noise leaves
    assert apart > 1e-4  # and not nothing: the noise is there
    told = budget.told()
    assert told["releases"] == rounds
    assert 3 < told["epsilon"] < 10


def ask(nodes, config, kind="train", weights=None):
    """What one site answers to a server's request."""
    settings = load_settings(config)
    networks = build_networks(settings, CLASSES)
    weights = weights or snapshot(networks.anonymizer, networks.action)
    grid = InProcessGrid(make_app(), nodes[:1], settings.flat())
    request = {"round": 1, "phase": "warmup", "federation": "f", "classes": CLASSES}
    content = RecordDict({"config": ConfigRecord(request)})
    if kind != "query":
        content["arrays"] = ArrayRecord(weights)
    (reply,) = grid.send_and_receive([grid.create_message(content, kind, 1, "1")])
    return reply


def norm_of(reply):
    arrays = reply.content.array_records["update"]
    return float(torch.cat([torch.from_numpy(a.numpy().copy()).float().flatten() for a in arrays.values()]).norm())


def test_sites_with_noise_at_the_server(fast, sites, tmp_path):
    """The named weights alone are trained, clipped, sent and noised; no figure but the counts of 1 leaves."""
    config = {**fast, **TINIEST, "dp.unit": "site", "dp.clip_norm": 0.05, "dp.delta": 1e-3, "dp.noise_multiplier": 2.0}
    config |= {"dp.epsilon_budget": 20.0, "wire.parameters": "anonymizer.*exit*,action.*bias", "rounds.minimax": 0}
    result, history, summary = federate(sites(6), tmp_path / "run", config)
    settings = load_settings(config)
    networks = build_networks(settings, CLASSES)
    before = snapshot(networks.anonymizer, networks.action)
    moved = {name: (result.weights[name] - before[name]).abs().max() for name in before}
    named = [name for name, change in moved.items() if change > 0]
    assert named
    assert all("exit" in name or name.endswith("bias") for name in named)  # noise falls on what is trained alone
    told = json.loads((tmp_path / "run" / "privacy.json").read_text())["told"]
    assert told["releases"] == 1
    assert summary["privacy"] == told
    assert 0 < told["epsilon"] < 20
    assert told["unit"] == "a site, with all its videos"
    assert [line["kind"] for line in history] == ["train"]  # sites evaluate nothing
    assert len(history[0]["sites"]) == 6
    figures = {name for site in history[0]["sites"] for name in site["metrics"]}
    assert figures == {"examples.anonymizer", "examples.action", "teacher_held"}


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_site_sends_a_clipped_update_and_no_figures(fast, sites, dtype):
    config = {**fast, **TINIEST, "dp.unit": "site", "dp.clip_norm": 0.01, "wire.dtype": dtype}
    reply = ask(sites(1), config)
    assert 0.009 < norm_of(reply) <= 0.01 * (1 + 1e-3)
    metrics = dict(reply.content.metric_records["metrics"])
    assert metrics == {"examples.anonymizer": 1, "examples.action": 1, "teacher_held": 0}


def test_a_site_under_privacy_tells_no_counts_and_evaluates_nothing(fast, sites):
    config = {**fast, **TINIEST, "dp.unit": "site"}
    nodes = sites(1)
    card = dict(ask(nodes, config, "query").content.config_records["site"])
    assert (card["train_rows"], card["test_rows"]) == (0, 0)
    refused = ask(nodes, config, "evaluate")
    assert refused.has_error()
    assert "figures of private videos" in refused.error.reason


def test_the_server_does_not_count_on_the_sites_clipping(fast, sites, tmp_path, monkeypatch):
    monkeypatch.setattr("client.app.clipped", lambda update, bound: {n: v * 0 + 100 for n, v in update.items()})  # noqa: ARG005
    config = {**fast, **TINIEST, "dp.unit": "site", "dp.clip_norm": 0.01, "dp.noise_multiplier": 1e-9}
    config |= {"dp.epsilon_budget": 1e30, "rounds.minimax": 0}
    result, _, _ = federate(sites(2), tmp_path / "run", config)
    settings = load_settings(config)
    networks = build_networks(settings, CLASSES)
    before = snapshot(networks.anonymizer, networks.action)
    change = torch.cat([(result.weights[name] - before[name]).flatten() for name in before])
    assert float(change.norm()) == pytest.approx(0.01, rel=1e-3)


def test_a_run_stops_before_it_overspends(fast, sites, tmp_path):
    config = {**fast, **TINIEST, "dp.unit": "site", "rounds.minimax": 8, "dp.epsilon_budget": 8.0}
    nodes = sites(2)
    with pytest.raises(Exception, match=r"round 3 would take epsilon from .* above dp\.epsilon_budget = 8"):
        federate(nodes, tmp_path / "run", config)
    ledger = json.loads((tmp_path / "run" / "privacy.json").read_text())
    assert [entry["round"] for entry in ledger["charged"]] == [1, 2]
    assert ledger["told"]["epsilon"] <= 8


def test_groups_of_videos_end_to_end(fast, sites, tmp_path):
    config = {**fast, **TINIEST, "dp.unit": "videos", "dp.noise_multiplier": 4.0, "dp.delta": 1e-3}
    nodes = sites(2, videos=10)
    federate(nodes, tmp_path / "run", config)
    told = json.loads((tmp_path / "run" / "privacy.json").read_text())["told"]
    assert told["releases"] == 3 + 3  # warm-up: three networks; minimax: one anonymizer's move, then the critics
    for node in range(2):
        (own,) = (tmp_path / "sites" / f"{node:03d}" / "site-state").glob("*/privacy.json")
        kept = json.loads(own.read_text())
        assert (kept["steps"], kept["groups"]) == (6, 2)
        assert kept["epsilon"] == pytest.approx(told["epsilon"], abs=1e-5)


def test_a_group_larger_than_the_site_leaves_the_site_out(fast, sites):
    reply = ask(sites(1), {**fast, **TINIEST, "dp.unit": "videos", "dp.group_videos": 4})
    assert reply.has_error()
    assert "dp.group_videos = 4, this site has fewer videos than that" in reply.error.reason


@pytest.mark.parametrize(("noise", "takes_part"), [(0.9, False), (1.1, True)])
def test_a_site_may_demand_noise(fast, sites, noise, takes_part):
    nodes = sites(1, refuse={"min_noise": 1.0})
    reply = ask(nodes, {**fast, **TINIEST, "dp.unit": "site", "dp.noise_multiplier": noise})
    assert reply.has_error() != takes_part
    assert ask(nodes, {**fast, **TINIEST}).has_error()


def test_check_tells_the_price_of_the_whole_schedule(capsys):
    chosen = ["dp.unit=site", "strategy.weighting=equal", "dp.noise_multiplier=1.0"]
    assert main(["check", *(word for pair in chosen for word in ("--set", pair))]) == 0
    said = capsys.readouterr().out
    assert "all 9 rounds cost epsilon =" in said
    assert "dp.epsilon_budget = 8: the run will stop before round" in said
    assert main(["check", "--set", "dp.unit=site"]) == 2
    assert "strategy.weighting = 'equal'" in capsys.readouterr().err
