"""Identities before thresholds: one site ≡ centralised, any engine and order ≡ the same, resumed ≡ uninterrupted."""

import json
import shutil

import pytest
import torch

from client.app import make_app
from server.app import run_federation
from server.runs import RunFolder
from simulations.centralized import centralize
from simulations.federated import deal_out, simulate
from simulations.inprocess import InProcessGrid
from simulations.laboratory import Laboratory
from simulations.partition import load_rows
from spact_models.checkpoint import load_checkpoint
from spact_models.exchange import snapshot, trained_names
from spact_models.networks import build_networks
from spact_models.run_config import load_settings


def laboratory(manifest, folder, fast, **changes):
    settings = load_settings({**fast, "wire.dtype": "float32", **changes})
    return Laboratory(
        settings, RunFolder(folder), load_rows(manifest, settings.simulation, 0), folder.parent / "cache", 0.0
    )


def last_weights(lab):
    path = list(lab.run.checkpoints().values())[-1]
    return {name: value for name, value in load_checkpoint(path).tensors.items() if not name.startswith("buffers.")}


def distance(ours, theirs):
    """Relative L2 over all weights. Not the largest difference: where a gradient is almost 0, Adam turns a rounding
    of its sign into a whole step of one weight."""
    assert ours.keys() == theirs.keys()
    apart = sum(float((ours[name] - theirs[name]).double().square().sum()) for name in ours)
    return (apart / sum(float(value.double().square().sum()) for value in theirs.values())) ** 0.5


def test_one_site_federated_is_centralised(squares, tmp_path, fast):
    alone = laboratory(squares, tmp_path / "fed", fast, **{"simulation.sites": 1})
    pooled = laboratory(squares, tmp_path / "cen", fast)
    simulate(alone)
    centralize(pooled)
    start = laboratory(squares, tmp_path / "other", fast, **{"simulation.sites": 1, "seed": 5})
    simulate(start)
    assert distance(last_weights(alone), last_weights(pooled)) < 1e-4
    assert distance(last_weights(alone), last_weights(start)) > 1e-1  # the measure can tell runs apart


def test_the_same_seed_gives_the_same_run_and_the_order_of_sites_does_not_matter(squares, tmp_path, fast):
    labs = [laboratory(squares, tmp_path / name, fast) for name in ("a", "b")]
    simulate(labs[0])
    files = deal_out(labs[1].run.path, labs[1].rows, labs[1].settings, labs[1].cache_folder)
    grid = InProcessGrid(make_app(), [{"site": str(file)} for file in reversed(files)], labs[1].settings.flat())
    run_federation(grid, labs[1].settings, labs[1].run, quiet=True)
    assert distance(last_weights(labs[0]), last_weights(labs[1])) < 1e-4


def test_a_few_trained_layers_are_the_same_game_federated_and_centralised(squares, tmp_path, fast):
    chosen = {**fast, "simulation.sites": 1, "wire.parameters": "*.exit.*,action.fc.*"}
    alone = laboratory(squares, tmp_path / "fed", chosen)
    pooled = laboratory(squares, tmp_path / "cen", chosen)
    simulate(alone)
    centralize(pooled)
    assert distance(last_weights(alone), last_weights(pooled)) < 1e-6
    networks = build_networks(alone.settings, ["jump", "walk"])
    first = snapshot(networks.anonymizer, networks.action)
    moved = {name for name, value in last_weights(alone).items() if not torch.equal(value, first[name])}
    assert moved == set(trained_names(first, alone.settings.wire.patterns))
    rounds = [line for line in alone.run.history() if line["kind"] == "train"]
    assert all(not line["dropped"] for line in rounds)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("killed_in", [1, 2, 3])
def test_a_site_that_loses_a_round_goes_on_from_its_last_complete_state(squares, tmp_path, fast, killed_in, dtype):
    """Stop-and-resume ≡ uninterrupted for one site: a round played twice ends as if played once.

    With int8 also what rounding has left out must be that of the round before, both times.
    """
    from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

    from client.app import answer_train
    from client.site import load_site
    from simulations.inprocess import become_task

    become_task()
    lab = laboratory(squares, tmp_path / "run", fast, **{"simulation.sites": 1, "wire.dtype": dtype})
    site = load_site(deal_out(lab.run.path, lab.rows, lab.settings, lab.cache_folder)[0])
    networks = build_networks(lab.settings, ["jump", "walk"])
    first = snapshot(networks.anonymizer, networks.action)

    def play(number, weights, teacher):
        config = {"round": number, "phase": lab.settings.phase(number), "federation": "f", "classes": ["jump", "walk"]}
        content = RecordDict({"arrays": ArrayRecord(dict(weights)), "config": ConfigRecord(config)})
        if teacher:
            content["teacher"] = ArrayRecord({n: v for n, v in teacher.items() if n.startswith("action.")})
        reply = answer_train(site, lab.settings, Message(content, 1, "train"))
        change = reply.array_records["update"].to_torch_state_dict()
        scales = reply.metric_records.get("scales", {})
        return {name: weights[name] + change[name].float() * scales.get(name, 1.0) for name in weights}

    def run(interrupted):
        shutil.rmtree(site.state, ignore_errors=True)
        weights, teacher = first, None
        for number in (1, 2, 3):
            teacher = weights if number == 2 else None
            if interrupted and number == killed_in:
                play(number, weights, teacher)  # its reply is lost; the server asks again
            weights = play(number, weights, teacher)
        return weights

    assert distance(run(interrupted=False), run(interrupted=True)) == 0.0


def test_sites_without_action_labels_join_and_help(squares, tmp_path, fast):
    lab = laboratory(squares, tmp_path / "run", fast, **{"simulation.unlabelled_sites": 2})
    simulate(lab)
    lines = [line for line in lab.run.history() if line["kind"] == "train"]
    by_phase = {line["phase"]: {site["name"]: site["metrics"] for site in line["sites"]} for line in lines}
    assert by_phase["warmup"]["site-3"]["examples.action"] == 0  # nothing to learn f_T from yet
    assert by_phase["warmup"]["site-3"]["examples.anonymizer"] == 4
    assert by_phase["minimax"]["site-3"]["examples.action"] == 4  # taught by the teacher
    assert by_phase["minimax"]["site-3"]["teacher_held"] == 1
    assert all(not line["dropped"] for line in lines)


def test_nothing_of_f_b_or_the_optimizers_is_in_a_checkpoint(squares, tmp_path, fast):
    lab = laboratory(squares, tmp_path / "run", fast)
    simulate(lab)
    checkpoint = load_checkpoint(list(lab.run.checkpoints().values())[-1])
    assert {name.partition(".")[0] for name in checkpoint.tensors} == {"anonymizer", "action"}
    assert "privacy." not in json.dumps(sorted(checkpoint.tensors))


@pytest.mark.slow
def test_ray_engine_is_the_in_process_engine(squares, tmp_path, fast):
    quick = {**fast, "rounds.minimax": 1, "simulation.sites": 2}
    here = laboratory(squares, tmp_path / "here", quick)
    ray = laboratory(squares, tmp_path / "ray", quick)
    simulate(here)
    simulate(ray, engine="ray")
    assert distance(last_weights(here), last_weights(ray)) < 1e-4
