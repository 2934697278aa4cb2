"""Identities before thresholds: one site ≡ centralised, any engine and order ≡ the same, resumed ≡ uninterrupted."""

import json
import shutil
import threading
import time

import pytest
import torch
from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from client.app import make_app
from client.training import on_step
from server.app import run_federation
from server.runs import RunFolder
from simulations import federated
from simulations.centralized import centralize
from simulations.federated import deal_out, simulate, sites_at_once
from simulations.inprocess import InProcessGrid
from simulations.laboratory import Laboratory
from simulations.partition import load_rows
from spact_models.checkpoint import load_checkpoint
from spact_models.errors import RunStopped
from spact_models.exchange import snapshot, trained_names
from spact_models.networks import build_networks
from spact_models.run_config import load_settings
from spact_models.workshop import Workshop


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


MASKED = {"strategy.weighting": "equal", "secure.aggregation": True, "rounds.min_sites": 3}


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("masked", "tolerance"), [(False, 0.0), (True, 1e-6)])  # masks are drawn anew in every run
def test_sites_at_the_same_time_play_exactly_what_they_play_one_after_the_other(
    squares, tmp_path, fast, masked, tolerance, request
):
    """Noise, initial weights and batches are each site's own, whoever works beside it."""
    changes = {"simulation.sites": 3, "networks.output_noise": 0.3, **(MASKED if masked else {})}
    first = laboratory(squares, tmp_path / "one", fast, **changes)
    simulate(first)
    request.getfixturevalue("two_threads")
    second = laboratory(squares, tmp_path / "two", fast, **changes)
    simulate(second)
    assert distance(last_weights(first), last_weights(second)) <= tolerance


@pytest.mark.usefixtures("two_threads")
def test_sites_work_at_the_same_time_and_one_that_fails_stands_alone():
    """Two sites wait for each other inside their work: alone, neither would ever reply."""
    together, app = threading.Barrier(2), ClientApp()

    @app.train()
    def train(message, context):
        together.wait(timeout=30)
        if context.node_config["number"] == 3:
            raise RuntimeError("this site cannot")
        told = MetricRecord({"number": context.node_config["number"], "threads": torch.get_num_threads()})
        return Message(RecordDict({"metrics": told}), reply_to=message)

    with Workshop(torch.device("cpu"), most=2) as workshop:
        grid = InProcessGrid(app, [{"number": number} for number in range(4)], {}, workshop=workshop)
        replies = list(
            grid.send_and_receive(Message(RecordDict(), node, "train", group_id="1") for node in (1, 2, 3, 4))
        )
    assert [reply.has_error() for reply in replies] == [False, False, False, True]
    assert [reply.content["metrics"]["number"] for reply in replies[:3]] == [0, 1, 2]
    assert {reply.content["metrics"]["threads"] for reply in replies[:3]} == {1}
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_a_site_at_work_beside_a_run_that_fails_is_told_to_stop(squares, tmp_path, fast, monkeypatch):
    """Site 2 works until somebody stops it; the run fails when site 1 has replied."""
    app, at_work, told = ClientApp(), threading.Event(), threading.Event()

    @app.train()
    def train(message, context):
        if context.node_id == 1:
            at_work.wait(timeout=30)
            return Message(RecordDict(), reply_to=message)
        at_work.set()
        try:
            for _ in range(3000):  # half a minute, not for ever: a test that fails must end
                on_step.get()()
                time.sleep(0.01)
        except KeyboardInterrupt:
            told.set()
            raise

    def fails(grid, *_, **__):
        names = grid.push_messages([Message(RecordDict(), node, "train", group_id="1") for node in (1, 2)])
        assert len(list(grid.pull_messages(names[:1]))) == 1
        raise RunStopped("too few sites")

    monkeypatch.setattr(federated, "make_app", lambda: app)
    monkeypatch.setattr(federated, "run_federation", fails)
    with pytest.raises(RunStopped):
        simulate(laboratory(squares, tmp_path / "run", fast, **{"simulation.sites": 2}))
    assert told.wait(timeout=20)


@pytest.mark.usefixtures("two_threads")
def test_no_more_replies_than_sites_at_work_and_one_are_held():
    """A federation of a hundred sites must not play ahead of the server's mean."""
    begun, app = [], ClientApp()

    @app.train()
    def train(message, context):
        begun.append(context.node_id)
        return Message(RecordDict(), reply_to=message)

    with Workshop(torch.device("cpu"), most=2) as workshop:
        grid = InProcessGrid(app, [{}] * 9, {}, workshop=workshop)
        names = grid.push_messages([Message(RecordDict(), node, "train", group_id="1") for node in range(1, 10)])
        assert begun == []
        for taken, name in enumerate(names, start=1):
            assert [reply.metadata.src_node_id for reply in grid.pull_messages([name])] == [taken]
            assert len(begun) <= taken + 2
    assert sorted(begun) == list(range(1, 10))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({}, 2), ({"simulation.sites_at_once": 6}, 6), ({"memory.budget_gib": 1.0}, 1), ({"speed.compile": True}, 1)],
)
@pytest.mark.usefixtures("two_threads")
def test_how_many_sites_work_at_the_same_time(fast, changes, expected):
    assert sites_at_once(load_settings({**fast, **changes}), 8, torch.device("cpu")) == expected


@pytest.mark.parametrize(
    ("threads", "sites", "expected"),
    [(1, 3, 1), (2, 1, 1), (2, 2, 2), (2, 3, 3), (2, 4, 2), (2, 5, 3), (4, 3, 3), (8, 12, 4), (8, 13, 5)],
)
def test_no_core_is_left_idle_by_the_last_sites(fast, threads, sites, expected, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert sites_at_once(load_settings(fast), sites, torch.device("cpu")) == expected


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
