"""The comparison end to end: equal steps, arms that are the same where they must be, kill and go on, the result."""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from client.video.rows import Row, read_rows, write_rows
from fedspact import main
from server.runs import RunFolder
from simulations import compare
from simulations.compare import cell as cell_module
from simulations.compare import command
from simulations.compare.cell import make_cell
from simulations.compare.collect import Arm, Collected, worst_own_site
from simulations.compare.folder import ComparisonFolder
from simulations.compare.plan import Cell, Order, Plan, steps_of_run
from simulations.compare.table import table
from simulations.compare.workers import make_cells
from simulations.partition import load_rows, partition
from spact_models.checkpoint import load_checkpoint
from spact_models.errors import UserError
from spact_models.networks import build_networks, build_privacy_network
from spact_models.run_config import load_settings

SCRIPT = """
import argparse, signal, sys
from simulations import compare
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it from birth
    parser = argparse.ArgumentParser()
    compare.add_arguments(parser)
    try:
        sys.exit(compare.run(parser.parse_args(sys.argv[1:])))
    except KeyboardInterrupt:
        sys.exit(130)
"""


def parse(*words):
    parser = argparse.ArgumentParser()
    compare.add_arguments(parser)
    return parser.parse_args([str(word) for word in words])


def sets(settings):
    return [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]


def in_this_process(orders, workers):  # noqa: ARG001
    for order in orders:
        make_cell(order)


def plan_of(manifest, fast, **changes):
    values = {
        "manifest": str(manifest),
        "manifest_sha256": "",
        "views": "",
        "views_sha256": "",
        "sites": 2,
        "seeds": (0,),
        "partitions": ("iid",),
        "arms": ("centralized", "federated", "local-only"),
        "baselines": (),
        "task": "identity",
        "attackers": ("frame-convnet",),
        "version": "1",
        "settings": load_settings({**fast, "rounds.keep_checkpoints": 1}).flat(),
    }
    return Plan(**{**values, **changes})


def trained(plan, rows, path, cell):
    """One cell of a plan, made here; its weights by wire name."""
    folder = ComparisonFolder(path)
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.write_data(rows, None)
    made = make_cell(Order(plan, cell, folder.path, path.parent / "cache", folder.log_path(cell)))
    return load_checkpoint(list(RunFolder.open(made).checkpoints().values())[-1]).tensors


def distance(ours, theirs):
    """Relative L2 over all weights, as in test_identities."""
    assert ours.keys() == theirs.keys()
    apart = sum(float((ours[name] - theirs[name]).double().square().sum()) for name in ours)
    return (apart / sum(float(value.double().square().sum()) for value in theirs.values())) ** 0.5


@pytest.fixture(scope="module")
def rows(squares):
    return load_rows(squares, load_settings({}).simulation, 0)


def test_every_arm_takes_its_share_of_each_networks_steps(squares, rows, tmp_path, fast, monkeypatch):
    """Counted at the optimizers, network by network: two sites together, the pooled run, and one site twice over."""
    monkeypatch.setattr(cell_module, "_judge", lambda *_: {})  # fresh networks take steps of their own
    plan = plan_of(squares, fast)
    networks = build_networks(load_settings(fast), ["jump", "walk"])
    players = {
        "anonymizer": networks.anonymizer,
        "action": networks.action,
        "privacy": build_privacy_network(load_settings(fast), "site-1"),
    }
    shapes = {name: [value.shape for value in network.parameters()] for name, network in players.items()}
    assert len({str(shape) for shape in shapes.values()}) == 3

    def count(cell):
        taken = dict.fromkeys(shapes, 0)

        def stepped(optimizer, *_):
            held = [value.shape for group in optimizer.param_groups for value in group["params"]]
            for name, shape in shapes.items():
                taken[name] += held == shape and isinstance(optimizer, torch.optim.Adam)

        hook = register_optimizer_step_post_hook(stepped)
        try:
            trained(plan, rows, tmp_path / "c", cell)
        finally:
            hook.remove()
        wanted = plan.steps_of(cell)
        assert taken == {"anonymizer": wanted.anonymizer, "action": wanted.action, "privacy": wanted.privacy}
        record = ComparisonFolder(tmp_path / "c").finished(cell)
        assert record["training"]["steps"] == sum(taken.values())
        return taken

    together = count(Cell("federated", 0, "iid"))
    assert together == count(Cell("centralized", 0))
    assert together == {name: 2 * steps for name, steps in count(Cell("local-only", 0, "iid", 2)).items()}


def test_one_site_federated_is_the_centralized_cell_and_that_site_alone(squares, rows, tmp_path, fast):
    plan = plan_of(squares, {**fast, "wire.dtype": "float32"}, sites=1)
    cells = (Cell("federated", 0, "iid"), Cell("centralized", 0), Cell("local-only", 0, "iid", 1))
    federated, centralized, alone = (trained(plan, rows, tmp_path / "c", cell) for cell in cells)
    assert distance(federated, centralized) < 1e-4
    assert distance(alone, centralized) == 0.0
    other = trained(plan, rows, tmp_path / "c", Cell("centralized", 1))
    assert distance(other, centralized) > 1e-1  # the measure can tell runs apart


def test_one_round_of_a_federation_is_the_mean_of_its_sites_alone(squares, rows, tmp_path, fast):
    """Same rows, same steps, same seeds: what the sites do alone is what they do before anything is averaged."""
    plan = plan_of(squares, {**fast, "rounds.minimax": 0, "wire.dtype": "float32"}, sites=3, partitions=("site",))
    federated = trained(plan, rows, tmp_path / "c", Cell("federated", 0, "site"))
    alone = [trained(plan, rows, tmp_path / "c", Cell("local-only", 0, "site", site)) for site in (1, 2, 3)]
    shares = partition(rows, plan.settings_of(Cell("federated", 0, "site")).simulation, 0)
    weights = [sum(row.split == "train" for row in share) for share in shares]
    mean = {
        name: sum(weight * one[name] for weight, one in zip(weights, alone, strict=True)) / sum(weights)
        for name in federated
    }
    assert distance(federated, mean) < 1e-5
    assert distance(federated, alone[0]) > 1e-3


def test_a_site_alone_leaves_metrics_and_curves_of_its_own(squares, rows, tmp_path, fast):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    plan, cell = plan_of(squares, fast), Cell("local-only", 0, "iid", 2)
    trained(plan, rows, tmp_path / "c", cell)
    path = ComparisonFolder(tmp_path / "c").cell_path(cell)
    lines = RunFolder.open(path).history()
    assert [(line["round"], line["phase"]) for line in lines] == [(1, "warmup"), (2, "minimax"), (3, "minimax")]
    assert [[site["name"] for site in line["sites"]] for line in lines] == [["site-2"]] * 3
    assert all(line["bytes_up"] == line["bytes_down"] == 0 and line["seconds"] > 0 for line in lines)
    assert all(line["metrics"]["examples.action"] == 6 for line in lines)
    curves = EventAccumulator(str(path / "tensorboard"))
    curves.Reload()
    drawn = [event.value for event in curves.Scalars("train/site-2/loss.privacy")]
    assert drawn == pytest.approx([line["metrics"]["loss.privacy"] for line in lines])
    record = ComparisonFolder(tmp_path / "c").finished(cell)
    assert record["training"]["bytes_up"] == 0
    assert record["training"]["peak_rss_mb"] > 50


@pytest.fixture(scope="module")
def made_once(tmp_path_factory, squares):
    """``made(fast)``: every arm, two seeds, two partitions, made in this process: folder, flags, comparison.json."""
    held = []

    def make(fast):
        if not held:
            path = tmp_path_factory.mktemp("whole") / "c"
            words = ["--data", squares, "--out", path, "--sites", 2, "--seeds", "0,1", "--partitions", "iid,light:2"]
            words += ["--baselines", "greyscale", "--attackers", "frame-convnet,video-tiny", "--json"]
            words += sets({**fast, "rounds.minimax": 1})
            assert command.compare(parse(*words)) == 0
            held.append((path, words, json.loads((path / "comparison.json").read_text())))
        return held[0]

    return make


@pytest.fixture
def whole(made_once, fast, monkeypatch):
    monkeypatch.setattr(command, "make_cells", in_this_process)
    return made_once(fast)


def test_the_result_holds_every_arm_every_verdict_and_what_to_beware_of(whole):
    path, _, result = whole
    assert (result["format"], result["format_version"]) == ("fedspact-comparison", 1)
    assert (result["seeds"], result["sites"], result["partitions"]) == ([0, 1], 2, ["iid", "light:2"])
    assert result["chance"] == {"action": 0.5, "identity": 0.5}
    assert len(result["arms"]) == 2 * (1 + 2 + 2 * 2 + 2)
    for line in result["arms"]:
        assert (path / line["folder"] / "evaluation.json").is_file()
        assert set(line["action"]) == {"mean", "sd", "low", "high", "per_seed", "learned"}
        told = json.loads((path / line["folder"] / "evaluation.json").read_text())["representations"]
        (row,) = told.values()
        assert line["action"]["learned"] == row["action"]["learned"]
        attackers = row["attacks"]["identity"]["attackers"]
        assert {name: figure["learned"] for name, figure in line["attackers"].items()} == {
            name: figure["learned"] for name, figure in attackers.items()
        }
        least = min(figure["learned"] for figure in attackers.values())
        assert line["leakage"]["learned"] == (least if line["leakage"]["mean"] < 0.98 else None)
        assert line["strongest"] in ("frame-convnet", "video-tiny")
        is_trained = line["arm"] in ("centralized", "federated", "local-only")
        assert (line["steps"] is not None) == is_trained
        assert ((line["bytes_up"] or 0) > 0) == (line["arm"] == "federated")
        assert (line["worst_site"] is not None) == (line["arm"] == "federated")
    shown = [(line["arm"], line["partition"]) for line in result["summary"]]
    assert shown == [
        ("centralized", None),
        ("federated", "iid"),
        ("federated", "light:2"),
        ("local-only", "iid"),
        ("local-only", "light:2"),
        ("raw", None),
        ("greyscale", None),
    ]
    steps = {(line["arm"], line["partition"]): line["steps"] for line in result["summary"]}
    assert len({value for (arm, _), value in steps.items() if arm not in ("raw", "greyscale")}) == 1
    assert [test["name"] for test in result["tests"]][:3] == [
        "federated not worse than centralized",
        "federated ahead of local-only",
        "federated ahead of the worst local-only site",
    ]
    assert [test["partition"] for test in result["tests"]] == ["iid"] * 3 + ["light:2"] * 3
    assert any("test clips" in text for text in result["not_measured"])
    assert any("2 seed(s)" in text for text in result["not_measured"])
    assert set(result["versions"]) == {"fedspact", "torch", "python"}


def test_rows_and_verdicts_know_what_the_least_finished_network_of_their_cells_knew(whole):
    _, _, result = whole

    def least(part, *names):
        told = [line[part]["learned"] for line in result["arms"] if (line["arm"], line["partition"]) in names]
        return min((share for share in told if share is not None), default=None)

    for row in result["summary"]:
        for part in ("action", "leakage"):
            found = least(part, (row["arm"], row["partition"]))
            assert row[part]["learned"] == found or row[part]["mean"] >= 0.98
    assert {row["arm"] for row in result["summary"] if row["action"]["learned"] is not None} > {"raw", "local-only"}
    test = result["tests"][0]
    assert test["utility"]["learned"] == least("action", ("centralized", None), ("federated", "iid"))
    alone = result["tests"][1]
    assert alone["utility"]["learned"] == least("action", ("local-only", "iid"), ("federated", "iid"))


def test_the_table_marks_lower_bounds_and_says_so_below():
    def told(mean, learned):
        return {"mean": mean, "sd": None, "low": mean, "high": mean, "per_seed": [mean], "learned": learned}

    def row(arm, learned, **more):
        return {"arm": arm, "partition": None, "action": told(0.9, 0.95), "leakage": told(0.1, learned), **more}

    empty = {"worst_site": None, "seconds": None}
    result = {
        "task": "identity", "chance": {"action": 0.1, "identity": 0.1}, "tests": [], "not_measured": ["much"],
        "summary": [row("weak", 0.4, **empty), row("sure", 0.95, **empty)],
        "arms": [row("weak", 0.4), row("sure", 0.95)],
    }  # fmt: skip
    weak, sure = table(result).splitlines()[2:4]
    assert weak.split() == ["weak", "0.900", "0.900–0.900", "≥0.100", "0.100–0.100"]
    assert "≥" not in sure
    below = table(result).splitlines()[-2]
    assert below.startswith("Lower bounds: in 1 of 2 cells a fresh network was right in less than 90% of its own")
    finished = {**result, "summary": result["summary"][1:], "arms": result["arms"][1:]}
    assert "Lower bounds" not in table(finished)
    assert "≥" not in table(finished)


def test_verdicts_come_from_the_hits_that_each_cell_keeps(whole):
    path, _, result = whole

    def hits(name, key):
        with np.load(path / "cells" / name / "hits.npz") as file:
            return file[key][0].astype(float)

    test = result["tests"][3]["utility"]
    ours = [hits(f"federated-light_2-seed{seed}", "action/action") for seed in (0, 1)]
    theirs = [hits(f"centralized-seed{seed}", "action/action") for seed in (0, 1)]
    assert test["difference"] == pytest.approx(np.mean(ours) - np.mean(theirs))
    alone = next(line for line in result["summary"] if (line["arm"], line["partition"]) == ("local-only", "iid"))
    mean = np.mean([hits(f"local-only-iid-site{k}-seed{s}", "action/action") for k in (1, 2) for s in (0, 1)])
    assert alone["action"]["mean"] == pytest.approx(mean, abs=1e-4)
    federated = next(line for line in result["summary"] if (line["arm"], line["partition"]) == ("federated", "iid"))
    rates = {
        name: np.mean([hits(f"federated-iid-seed{s}", f"identity/{name}") for s in (0, 1)])
        for name in ("frame-convnet", "video-tiny")
    }
    assert federated["leakage"]["mean"] == pytest.approx(max(rates.values()), abs=1e-4)


def test_the_table_shows_arms_by_partitions_with_raw_and_chance_beside(whole):
    _, _, result = whole
    lines = table(result).splitlines()
    assert lines[0].split()[:2] == ["partition", "action"]
    named = [line.split()[:2] for line in lines[2:10]]
    assert [first for first, _ in named] == [
        *("centralized", "federated", "federated", "local-only", "local-only", "raw", "greyscale", "chance")
    ]
    assert named[2][1] == "light:2"
    assert "federated not worse than centralized, iid:" in lines
    assert any(line.startswith("  utility") and "margin 0.01" in line for line in lines)
    assert lines[-1].startswith("not measured: ")


def test_the_cells_of_one_seed_are_the_same_whoever_makes_them_and_finished_ones_are_not_made_again(whole, capsys):
    path, words, result = whole
    gone = path / "cells" / "federated-iid-seed1"
    before = {entry.name: (entry / "cell.json").stat().st_mtime_ns for entry in (path / "cells").iterdir()}
    kept = dict(np.load(gone / "hits.npz"))
    weights = load_checkpoint(gone / "anonymizer.safetensors").tensors
    shutil.rmtree(gone)
    command.compare(parse(*words))
    after = {entry.name: (entry / "cell.json").stat().st_mtime_ns for entry in (path / "cells").iterdir()}
    assert [name for name in before if before[name] != after[name]] == ["federated-iid-seed1"]
    again = load_checkpoint(gone / "anonymizer.safetensors").tensors
    assert distance(again, weights) < 1e-4
    with np.load(gone / "hits.npz") as file:
        assert sorted(file.files) == sorted(kept)
    printed = json.loads(capsys.readouterr().out)
    assert printed["arms"][0]["action"] == result["arms"][0]["action"]


def test_another_plan_is_refused_before_anything_is_made(whole):
    _, words, _ = whole
    with pytest.raises(UserError, match=r"settings\.game\.omega = 1\.0, asked for is 0\.5"):
        command.compare(parse(*words, "--set", "game.omega=0.5"))


def test_networks_of_another_comparison_are_judged_anew_and_not_trained(whole, tmp_path, fast, monkeypatch):
    path, words, _ = whole
    few = [*words, "--seeds", "0", "--partitions", "iid", "--arms", "centralized,federated,local-only"]

    def trains(_, order):
        raise RuntimeError(f"{order.cell.name} is trained")

    monkeypatch.setattr(cell_module, "_train", trains)
    again = tmp_path / "again"
    assert command.compare(parse(*few, "--out", again, "--trained", path)) == 0
    names = sorted(entry.name for entry in (again / "cells").iterdir())
    assert names == sorted(
        ["centralized-seed0", "federated-iid-seed0", *(f"local-only-iid-site{n}-seed0" for n in (1, 2))]
    )
    for name in names:
        theirs, ours = path / "cells" / name, again / "cells" / name
        assert (ours / "anonymizer.safetensors").read_bytes() == (theirs / "anonymizer.safetensors").read_bytes()
        with np.load(theirs / "hits.npz") as before, np.load(ours / "hits.npz") as after:
            assert all(np.array_equal(before[key], after[key]) for key in before.files)  # the same judge
        told = json.loads((again / "comparison.json").read_text())["arms"]
        assert {line["trained_in"] for line in told if line["arm"] in ("centralized", "federated")} == {str(path)}
        records = [json.loads((folder / "cell.json").read_text()) for folder in (theirs, ours)]
        assert records[1]["training"] == records[0]["training"]
        assert [record["trained_in"] for record in records] == [None, str(path)]
    longer = [*few, "--attackers", "frame-convnet", "--set", f"judge.steps={2 * fast['judge.steps']}"]
    assert command.compare(parse(*longer, "--out", tmp_path / "longer", "--trained", path)) == 0
    cell = tmp_path / "longer" / "cells" / "federated-iid-seed0"
    with np.load(cell / "hits.npz") as hits:
        assert sorted(hits.files) == ["action/action", "identity/frame-convnet"]
    assert json.loads((cell / "evaluation.json").read_text())["budget"]["steps"] == 2 * fast["judge.steps"]
    (note,) = json.loads((cell / "settings.json").read_text())["resumed"]
    assert note["changed"] == {"judge.steps": 2 * fast["judge.steps"]}
    with pytest.raises(UserError, match=r"trained with settings\.game\.omega = 1\.0, asked for is 0\.5"):
        command.compare(parse(*few, "--set", "game.omega=0.5", "--out", tmp_path / "other", "--trained", path))
    with pytest.raises(UserError, match="not the folder of a comparison"):
        command.compare(parse(*few, "--out", tmp_path / "other", "--trained", tmp_path))
    with pytest.raises(RuntimeError, match="centralized-seed7 is trained"):  # whom nobody lends is trained
        command.compare(parse(*few, "--seeds", "7", "--out", tmp_path / "more", "--trained", path))


def test_the_worst_site_of_a_global_anonymizer_is_judged_on_its_own_test_videos(squares, rows, fast, tmp_path):
    plan = plan_of(squares, fast, partitions=("site",))
    held = Collected(ComparisonFolder(tmp_path), plan, rows)
    cell = Cell("federated", 0, "site")
    own = held.own_videos("action", cell)
    test = [row for row in rows if row.split == "test"]
    shares = partition(rows, plan.settings_of(cell).simulation, 0)
    assert [[row.path for row, mine in zip(test, own_V, strict=True) if mine] for own_V in own] == [
        [row.path for row in test if row in share] for share in shares
    ]
    action, attack = np.ones((1, 4)), np.zeros((1, 4))
    action[0, own[1]] = 0.0  # site 2's videos are all missed
    arm = Arm((cell,), ({},), action, {"weak": attack, "strong": attack + 0.25})
    assert worst_own_site(held, arm) == {"site": "site-2", "action": 0.0, "leakage": 0.25}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--partitions", "weather"], "--partitions weather, seed 0: simulation.partition_by = 'weather'"),
        (["--partitions", "action:0"], "must be above 0"),
        (["--partitions", "iid", "--sites", "13"], "site 13 would have no training rows"),
        (["--partitions", "iid", "--sites", "12"], "would have 1 training video"),
        (["--task", "action"], "--task action: the action is what .* to keep.*allow: .*identity, light, source, site"),
        (["--task", "shoe-size"], "--task shoe-size: cannot be attacked.*identity, light, source, site"),
        (["--arms", "federal"], "--arms federal: must be among"),
        (["--attackers", "psychic"], "--attackers psychic: must be among"),
        (["--baselines", "fog"], "--baselines fog: must be among"),
        (["--seeds", "one"], "--seeds one"),
        (["--workers", "0"], "--workers 0"),
        (["--set", "simulation.unlabelled_sites=1"], "must be 0 in a comparison"),
        (["--set", "networks.norm=batch"], "cannot be judged after a federation"),
    ],
)
def test_what_cannot_be_is_said_before_hours_of_work(squares, tmp_path, fast, words, message):
    with pytest.raises(UserError, match=message):
        command.compare(parse("--data", squares, "--out", tmp_path / "c", *sets(fast), *words))
    assert not (tmp_path / "c" / "plan.json").exists()


@pytest.mark.parametrize("column", ["action", "identity"])
def test_a_class_with_a_single_clip_is_refused_as_evaluate_does(squares, tmp_path, column):
    rows = read_rows(squares)
    words = {"action": "walk", "identity": "red"}
    alone = [
        Row(tmp_path / f"{name}.mp4", told["action"], split="train", attributes={"identity": told["identity"]})
        for name in ("eve", "fay")
        for told in [{**words, column: name}]
    ]
    for added, message in ((alone[:1], f"{column} = 'eve' has one clip"), (alone, f"{column} = 'eve', 'fay' have one")):
        write_rows([*rows, *added], tmp_path / "m.csv")
        with pytest.raises(UserError, match=rf"--data .*m\.csv: {message}.* in training and one in test: add one"):
            command.compare(parse("--data", tmp_path / "m.csv", "--out", tmp_path / "c"))
    assert not (tmp_path / "c" / "plan.json").exists()


def test_data_may_be_left_out_with_quick_only(tmp_path, squares):
    with pytest.raises(UserError, match="--data: is missing"):
        command.compare(parse("--out", tmp_path / "c"))
    with pytest.raises(UserError, match="does not exist"):
        command.compare(parse("--data", tmp_path / "m.csv", "--out", tmp_path / "c"))
    blind = [Row(row.path, None, split=row.split, attributes=row.attributes) for row in read_rows(squares)]
    write_rows(blind, tmp_path / "blind.csv")
    with pytest.raises(UserError, match="utility needs two actions"):
        command.compare(parse("--data", tmp_path / "blind.csv", "--out", tmp_path / "c"))


def test_quick_is_a_small_plan_of_its_own_that_set_can_change(squares, rows, tmp_path):
    args = parse("--data", squares, "--out", tmp_path / "c", "--quick", "--set", "judge.steps=7")
    settings = command._settings(args)
    plan = command._plan(args, settings, Path(squares), rows)
    assert (plan.seeds, plan.partitions, plan.baselines) == ((0,), ("site",), ("raw", "difference1bit"))
    assert (settings.judge.steps, settings.rounds.minimax, settings.rounds.keep_checkpoints) == (7, 7, 1)
    # 20 minutes on two slow cores: seconds a step measured on one core at 32 px (simulations/compare/__init__.py)
    share = steps_of_run(settings, 3)
    critics = share.action  # warm-up included: a step of each network there costs as much as both moves
    train = 0.18 * critics + 0.27 * share.anonymizer
    judge = len(plan.cells()) * (54 + 17 + 46) * 240 / 300
    assert (3 * train + judge) / 60 < 24  # minutes of one core's work: 12 of two


def children_of(pid):
    return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_for(condition, seconds=3600.0):  # only so that a fault does not hang for ever
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="finds a process's children in /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_comparison_killed_in_the_middle_goes_on_where_it_was(squares, tmp_path, fast, how, monkeypatch):
    """A real process and its cells' processes: killed in the second cell's training, none stays, one cell is left."""
    script = tmp_path / "compare.py"
    script.write_text(SCRIPT)
    words = ["--data", squares, "--out", tmp_path / "c", "--seeds", "0,1", "--arms", "centralized", "--sites", 2]
    words += ["--attackers", "frame-convnet", "--cache", tmp_path / "cache", *sets({**fast, "rounds.minimax": 12})]
    child = subprocess.Popen(
        [sys.executable, str(script), *map(str, words), "--workers", "1"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    cells = tmp_path / "c" / "cells"
    half = cells / "centralized-seed1.part"
    try:
        wait_for(lambda: (half / "metrics.jsonl").exists() or child.poll() is not None)
        assert child.poll() is None, child.stdout.read().decode()
        cell_processes = children_of(child.pid)
        os.kill(child.pid, how) if how == signal.SIGKILL else os.killpg(child.pid, how)
        child.communicate(timeout=3600)
    finally:
        child.kill()
    assert child.returncode == (-9 if how == signal.SIGKILL else 130)
    wait_for(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() and _alive(pid) for pid in cell_processes))
    assert sorted(entry.name for entry in cells.iterdir()) == ["centralized-seed0", "centralized-seed1.part"]
    first = (cells / "centralized-seed0" / "cell.json").stat().st_mtime_ns

    monkeypatch.setattr(command, "make_cells", in_this_process)
    assert command.compare(parse(*words)) == 0
    assert sorted(entry.name for entry in cells.iterdir()) == ["centralized-seed0", "centralized-seed1"]
    assert (cells / "centralized-seed0" / "cell.json").stat().st_mtime_ns == first
    history = RunFolder.open(cells / "centralized-seed1").history()
    assert [line["round"] for line in history] == list(range(1, 14))  # begun anew, not gone on in the middle
    assert json.loads((tmp_path / "c" / "comparison.json").read_text())["summary"][0]["arm"] == "centralized"


def _alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_a_cell_that_cannot_be_made_is_named_with_its_reason(squares, tmp_path, fast):
    plan, cell = plan_of(squares, fast), Cell("centralized", 0)
    folder = ComparisonFolder(tmp_path / "c")
    log = folder.log_path(cell)
    with pytest.raises(UserError, match=r"cell centralized-seed0: .*data\.csv: cannot be read"):
        make_cells([Order(plan, cell, folder.path, tmp_path / "cache", log)], workers=1)


def test_a_partition_that_cannot_be_is_said_before_a_minutes_filming(tmp_path, capsys):
    assert main(["compare", "--quick", "--out", str(tmp_path / "out"), "--partitions", "nonsense"]) == 2
    assert (
        "--partitions nonsense, seed 0: simulation.partition_by = 'nonsense', must be one of" in capsys.readouterr().err
    )
    assert not list((tmp_path / "out").rglob("*.mp4"))
