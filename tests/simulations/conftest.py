"""Run folders that the real writers wrote, without the hour that a real run takes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from client.video.rows import read_rows, write_rows
from server.records import Dropped, RoundRecord, SiteRecord
from server.runs import RunFolder
from simulations.protocols.evaluation import Attack, Evaluation, Figure, Represented
from spact_models.exchange import snapshot
from spact_models.networks import build_networks, checkpoint_header
from spact_models.run_config import load_settings

SITES = ("north", "south", "west")
TABLE = {  # representation -> action, strongest identity
    "raw": (0.96, 1.0),
    "downsample4x": (0.70, 0.98),
    "difference1bit": (0.92, 0.40),
    "anonymized": (0.94, 0.12),
}


def figure(mean: float, spread: float = 0.03) -> Figure:
    return Figure(mean, 0.01, round(max(0, mean - spread), 4), round(min(1, mean + spread), 4), (mean, mean, mean))


def _judgement(table=TABLE, **more) -> Evaluation:
    """As ``fedspact evaluate`` writes it: two attackers on identity (the second one is the strongest) and retrieval."""
    represented = {}
    for name, (action, leakage) in table.items():
        attackers = {"frame-convnet": figure(round(leakage * 0.9, 4)), "video-tiny": figure(leakage)}
        attacks = {
            "retrieval_all": Attack("top1", {"nt-xent": figure(leakage / 2)}),
            "identity": Attack("top1", attackers),
        }
        represented[name] = Represented(figure(action), attacks, {"psnr_db": figure(14.0), "ssim": None})
    told = {
        "protocol": "identity",
        "seeds": (0, 1, 2),
        "budget": {"steps": 300, "batch": 32},
        "action_network": "tiny",
        "data": {"manifest": "data.csv", "train_videos": 12, "test_videos": 4, "actions": ["jump", "walk"]},
        "chance": {"action": 0.5, "identity": 0.25, "retrieval_all": 0.25},
        "representations": represented,
        "not_measured": ("attributes: the manifest has none",),
        "rounds": ({"round": 1, "action": figure(0.9), "attacks": {"identity": Attack("top1", {"x": figure(0.6)})}},),
        "versions": {"torch": "2.15"},
        "machine": {"cpu": "a CPU", "cores": 2},
        "created": "2026-11-25T02:00:00+00:00",
    }
    return Evaluation(**{**told, **more})


@pytest.fixture(scope="session")
def judgement():
    """Make an evaluation from a table of representations; keywords replace fields."""
    return _judgement


@pytest.fixture(scope="session")
def made_up_run(squares):
    """Make a run folder: ``rounds`` rounds of three sites, the last two silent once, with what the flags ask for."""

    def make(path: Path, fast, rounds=3, metrics=True, evaluation=None, summary=None, data=True) -> Path:
        settings = load_settings({**fast, "rounds.warmup": 1, "rounds.minimax": 2})
        folder = RunFolder(path)
        folder.begin(settings.flat())
        torch.manual_seed(0)
        networks = build_networks(settings, ["jump", "walk"])
        weights = snapshot(networks.anonymizer, networks.action)
        for number in range(1, rounds + 1):
            phase = settings.phase(number)
            header = checkpoint_header(settings, ["jump", "walk"], round=number, phase=phase)
            folder.save_checkpoint(number, weights, header)
            if metrics:
                folder.record(_train(number, phase))
        if metrics and rounds == 3:
            folder.record(_evaluation(rounds))
        folder.close()
        if data:
            write_rows(read_rows(squares), path / "data.csv")
        if evaluation is not None:
            evaluation.write(path / "evaluation.json")
        if summary is not None:
            folder.write_summary(summary)
        return path

    return make


def _train(number: int, phase: str) -> RoundRecord:
    took_part = SITES if number != 2 else SITES[:1]
    sites = tuple(
        SiteRecord(node, name, _metrics(number, node, phase), bytes_down=1000 * node, bytes_up=10 * node + number)
        for node, name in enumerate(took_part, 1)
    )
    dropped = tuple(Dropped(8, name, "no valid reply") for name in SITES if name not in took_part)
    mean = {name: float(np.mean([site.metrics[name] for site in sites])) for name in sites[0].metrics}
    up, down = sum(site.bytes_up for site in sites), sum(site.bytes_down for site in sites)
    return RoundRecord("train", number, phase, False, "", mean, sites, dropped, down, up, 2.0 + number)


def _metrics(number: int, node: int, phase: str) -> dict[str, float]:
    return {
        "loss.action": 2.0 / number + 0.1 * node,
        "loss.privacy": 1.0 + 0.2 * number,
        "chance.privacy": 1.95,
        "examples.anonymizer": 4.0,
        "examples.action": 0.0 if node == 3 and phase == "warmup" else 4.0,
        "seconds": 0.5 * node,
    }


def _evaluation(number: int) -> RoundRecord:
    tops = {"north": 0.75, "south": 0.5, "west": 1.0}
    sites = tuple(SiteRecord(1, name, {"examples": 2.0, "top1": top1}, 5, 1) for name, top1 in tops.items())
    return RoundRecord("evaluate", number, "minimax", False, "", {"examples": 6.0, "top1": 0.75}, sites, (), 15, 3, 1.0)


@pytest.fixture(scope="session")
def made_up_comparison():
    """Make a comparison folder: two arms in two partitions, a baseline, three tests that end differently."""

    def make(path: Path) -> Path:
        def told(mean):
            return {"mean": mean, "sd": 0.01, "low": mean - 0.02, "high": mean + 0.02, "per_seed": [mean]}

        def apart(difference, holds, margin):
            ends = {"low": difference - 0.01, "high": difference + 0.01}
            return {"difference": difference, **ends, "margin": margin, "holds": holds}

        cost = {"bytes": 2_500_000, "seconds": 75.0, "peak_rss_mb": 900.0}
        worst = {"site": "site-2", "action": 0.8, "leakage": 0.3}
        summary = [
            {"arm": arm, "partition": partition, "action": told(a), "leakage": told(b), "worst_site": worst, **cost}
            for arm, a, b in (("centralized", 0.9, 0.2), ("federated", 0.89, 0.21))
            for partition in ("iid", "site")
        ]
        summary.append({"arm": "raw", "partition": None, "action": told(0.96), "leakage": told(0.97)})
        tests = [
            {"name": "federated not worse than centralized", "partition": "iid",
             "utility": apart(-0.002, True, 0.01), "leakage": apart(0.004, True, 0.02)},
            {"name": "federated not worse than centralized", "partition": "site",
             "utility": apart(-0.004, None, 0.01), "leakage": apart(0.06, False, 0.02)},
            {"name": "federated ahead of local-only", "partition": "iid",
             "utility": apart(0.001, None, 0.0), "leakage": apart(-0.05, True, 0.0)},
        ]  # fmt: skip
        content = {
            "format": "fedspact-comparison", "format_version": 1, "created": "2026-11-25T05:00:00+00:00",
            "settings": {"preset": "tiny"}, "seeds": [0, 1, 2], "sites": 3, "partitions": ["iid", "site"], "arms": [],
            "summary": summary, "tests": tests, "chance": {"action": 0.15, "identity": 0.08}, "test_videos": 2016,
            "not_measured": ["a fourth seed"],
        }  # fmt: skip
        path.mkdir()
        (path / "comparison.json").write_text(json.dumps(content))
        return path

    return make
