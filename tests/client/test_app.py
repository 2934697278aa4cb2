"""The ClientApp as a server meets it: real messages in, replies out, and nothing in them that must stay."""

import json
import logging

import numpy as np
import pytest
import torch
import yaml
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from torch.nn.modules.module import register_module_forward_pre_hook

from client.app import SITE_CANNOT, SITE_FAILED, make_app
from client.egress import METRICS
from client.masking import Execution, Vault
from client.state import LocalState, StateFolder
from client.video.rows import Row, read_rows, write_rows
from simulations.inprocess import InProcessGrid
from spact_models.exchange import shared_parameters, snapshot
from spact_models.files import UnwritableFile
from spact_models.networks import build_networks
from spact_models.run_config import load_settings

CLASSES = ["jump", "walk"]
PRIVATE = {"dp.unit": "videos", "dp.group_videos": 2, "dp.delta": 1e-3, "strategy.weighting": "equal"}


@pytest.fixture(scope="module")
def cache_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def federation(squares, tmp_path, cache_folder, fast):
    return lambda **changes: Federation(squares, tmp_path, cache_folder, {**fast, **changes})


class Federation:
    """One site behind a grid, and the messages that a server sends it."""

    def __init__(self, manifest, folder, cache, config):
        self.settings, self.folder = load_settings(config), folder
        self.rows, self.cache = read_rows(manifest), cache
        self.networks = build_networks(self.settings, CLASSES)
        self.weights = snapshot(self.networks.anonymizer, self.networks.action)
        self.grid = None

    def site(self, rows=None, node=None, run_config=None, **more):
        (self.folder / "home").mkdir(exist_ok=True)
        write_rows(self.rows if rows is None else rows, self.folder / "home" / "manifest.csv")
        content = {
            "name": "clinic",
            "manifest": "manifest.csv",
            "state": "state",
            "cache": str(self.cache),
            "allow_outside": True,
            **more,
        }
        self.file = self.folder / "home" / "site.yaml"
        self.file.write_text(yaml.safe_dump(content), encoding="utf-8")
        node = {"site": str(self.file)} if node is None else node
        self.grid = InProcessGrid(make_app(run_config), [node], self.settings.flat())
        return self

    def ask(self, kind, number=1, weights=None, teacher=None, classes=CLASSES, federation="f"):
        config = {"round": number, "phase": self.settings.phase(number), "federation": federation, "classes": classes}
        content = RecordDict({"config": ConfigRecord(config)})
        if kind != "query":
            content["arrays"] = ArrayRecord(dict(self.weights if weights is None else weights))
        if teacher is not None:
            content["teacher"] = ArrayRecord(dict(teacher))
        message = self.grid.create_message(content, kind, 1, str(number))
        (reply,) = self.grid.send_and_receive([message])
        return reply

    def error(self, kind, code=SITE_CANNOT, **more):
        reply = self.ask(kind, **more)
        assert reply.has_error()
        assert reply.error.code == code
        return reply.error.reason


def teacher_of(weights):
    return {name: value for name, value in weights.items() if name.startswith("action.")}


def test_a_site_introduces_itself_with_names_and_counts_only(federation):
    reply = federation().site().ask("query")
    assert dict(reply.content.config_records["site"]) == {
        "name": "clinic",
        "classes": CLASSES,
        "train_rows": 12,
        "test_rows": 4,
    }
    assert list(reply.content) == ["site"]


def test_a_round_answers_with_differences_and_figures_and_keeps_its_state(federation):
    run = federation().site()
    reply = run.ask("train")
    update = reply.content.array_records["update"]
    assert update.keys() == shared_parameters(run.networks.anonymizer, run.networks.action).keys()
    assert any(np.abs(array.numpy()).max() > 0 for array in update.values())
    assert all(np.abs(array.numpy()).max() < 0.1 for array in update.values())  # a difference, not the weights
    metrics = reply.content.metric_records["metrics"]
    assert (metrics["examples.anonymizer"], metrics["examples.action"], metrics["unreadable"]) == (12, 12, 0)
    assert isinstance(metrics["examples.action"], int)
    assert metrics["peak_rss_mb"] > 100
    assert dict(reply.content.config_records["site"]) == {"name": "clinic"}
    state = run.folder / "home" / "state" / "f"
    assert sorted(path.name for path in state.iterdir()) == ["ledger.jsonl", "state-000001.pt"]
    (entry,) = [json.loads(line) for line in (state / "ledger.jsonl").read_text().splitlines()]
    assert entry["bytes"] == sum(array.numpy().nbytes for array in update.values())
    assert entry["arrays"].keys() == update.keys()


def test_a_site_without_labels_sends_f_a_alone_until_it_has_a_teacher(federation):
    run = federation()
    run.site(rows=[Row(row.path, split=row.split) for row in run.rows])
    assert run.ask("query").content.config_records["site"]["classes"] == []
    warm = run.ask("train").content
    assert {name.partition(".")[0] for name in warm.array_records["update"]} == {"anonymizer"}
    assert warm.metric_records["metrics"]["examples.action"] == 0
    game = run.ask("train", number=2, teacher=teacher_of(run.weights)).content
    assert {name.partition(".")[0] for name in game.array_records["update"]} == {"anonymizer", "action"}
    assert game.metric_records["metrics"]["teacher_held"] == 1
    assert run.ask("train", number=3).content.metric_records["metrics"]["teacher_held"] == 1  # it holds it now


def test_evaluation_answers_with_the_count_and_the_share(federation):
    run = federation().site()
    metrics = run.ask("evaluate").content.metric_records["metrics"]
    assert metrics.keys() == {"examples", "top1"}
    assert metrics["examples"] == 4
    assert 0 <= metrics["top1"] <= 1
    assert not run.ask("evaluate").content.array_records
    blind = run.site(rows=[Row(row.path, split=row.split) for row in run.rows])
    metrics = blind.ask("evaluate").content.metric_records["metrics"]
    assert dict(metrics) == {"examples": 0}  # no share of nothing


def test_evaluation_uses_the_sites_own_batch_norm_statistics(federation):
    """f_T is built such that the statistics in the site's state, and nothing else, turn every answer to jump."""
    run = federation(**{"networks.norm": "batch"})
    run.site(rows=[row for row in run.rows if row.split == "train" or row.action == "walk"])
    last = max(name for name in run.weights if name.startswith("action.layers") and name.endswith(".1.bias"))
    run.weights[last].fill_(10.0)
    run.weights["action.fc.weight"] = torch.stack([torch.zeros(64), torch.ones(64)])
    run.weights["action.fc.bias"] = torch.tensor([1.0, 0.0])
    assert run.ask("evaluate").content.metric_records["metrics"]["top1"] == 1.0
    statistics = {last.replace("bias", "running_mean"): torch.full_like(run.weights[last], 1e6)}
    StateFolder(run.file.parent / "state", "f").save(LocalState(1, buffers=statistics))
    assert run.ask("evaluate").content.metric_records["metrics"]["top1"] == 0.0
    assert run.ask("evaluate", federation="g").content.metric_records["metrics"]["top1"] == 1.0


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_nothing_but_named_differences_and_listed_figures_is_on_the_wire(federation, dtype):
    """Wire capture: every reply of a whole run, labelled or not; no array is off the list or image-like."""
    run = federation(**{"wire.dtype": dtype}).site()
    allowed = shared_parameters(run.networks.anonymizer, run.networks.action)
    replies = [run.ask("query"), run.ask("train"), run.ask("evaluate")]
    replies += [run.ask("train", number=n, teacher=teacher_of(run.weights) if n == 2 else None) for n in (2, 3)]
    names = {row.path.name for row in run.rows} | {row.source for row in run.rows} | {"red", "blue", "bright"}
    for reply in replies:
        assert not reply.has_error()
        content = reply.content
        for record in content.array_records.values():
            for name, array in record.items():
                assert name in allowed
                assert array.numpy().shape == tuple(allowed[name].shape)
                assert array.numpy().dtype == np.dtype(dtype)  # never uint8
                assert not (array.numpy().ndim >= 3 and array.numpy().shape[-1] == 3 and array.numpy().shape[-2] == 16)
        for kind, record in content.metric_records.items():
            assert record.keys() <= (allowed.keys() if kind == "scales" else set(METRICS))
            assert all(isinstance(value, int | float) for value in record.values())
        for record in content.config_records.values():
            assert record.keys() <= {"name", "classes", "train_rows", "test_rows"}
            told = json.dumps(dict(record))
            assert not [name for name in names if name in told]
    assert not [
        name
        for reply in replies
        for record in reply.content.array_records.values()
        for name in record
        if "privacy" in name
    ]


def test_half_precision_is_what_leaves_when_nothing_is_said(federation):
    update = federation().site().ask("train").content.array_records["update"]
    assert {array.numpy().dtype for array in update.values()} == {np.dtype("float16")}


def test_int8_keeps_what_it_leaves_out_and_sends_it_with_the_next_round(federation):
    """What two rounds of int8 tell is what two rounds of float32 tell, but for the last residual."""

    def play(dtype, home):
        run = federation(**{"wire.dtype": dtype}).site(state=home)
        told = dict.fromkeys(run.weights, 0)
        for number in (1, 2):
            content = run.ask("train", number=number, teacher=teacher_of(run.weights)).content
            scales = content.metric_records.get("scales", {})
            for name, array in content.array_records["update"].items():
                told[name] = told[name] + array.numpy().astype(np.float32) * scales.get(name, 1.0)
        return told, StateFolder(run.file.parent / home, "f").before(3)

    plain, _ = play("float32", "plain")
    quantised, state = play("int8", "quantised")
    assert state.residual.keys() == plain.keys()
    assert any(np.abs(quantised[name] - plain[name]).max() > 1e-6 for name in plain)
    for name, value in plain.items():
        np.testing.assert_allclose(quantised[name] + state.residual[name].numpy(), value, atol=1e-6)


def test_only_the_chosen_layers_are_trained_kept_and_sent(federation):
    run = federation(**{"wire.parameters": "*.exit.*, action.fc.*"}).site()
    chosen = {"anonymizer.unet.exit.weight", "anonymizer.unet.exit.bias", "action.fc.weight", "action.fc.bias"}
    for number in (1, 2):
        update = run.ask("train", number=number, teacher=teacher_of(run.weights)).content.array_records["update"]
        assert set(update) == chosen
        assert all(np.abs(array.numpy()).max() > 0 for array in update.values())
    optimizers = StateFolder(run.file.parent / "state", "f").before(3).optimizers
    assert [len(optimizers[name]["state"]) for name in ("anonymizer", "action")] == [2, 2]
    assert len(optimizers["privacy"]["state"]) > 4  # f_B is the site's own and learns as a whole


def test_a_pattern_that_matches_nothing_is_the_sites_refusal_too(federation):
    reason = federation(**{"wire.parameters": "action.head.*,*.exit.*"}).site().error("train")
    assert "'action.head.*', matches no parameter" in reason
    assert "action.fc.weight" in reason


def test_a_difference_beyond_float16_is_a_refusal_with_the_reason_and_nothing_of_the_round_is_kept(federation):
    run = federation(**{"warmup.lr_action": 1e5}).site()
    reason = run.error("train")
    assert "float16 ends at 65504; set wire.dtype = 'float32'" in reason
    assert not list((run.folder / "home" / "state").rglob("*.*"))


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_class_lists_that_differ_are_an_error_that_names_both(federation, kind):
    reason = federation().site().error(kind, classes=["fall", "walk"])
    assert "site 'clinic' labels actions ['jump', 'walk'], the run agreed on ['fall', 'walk']" in reason
    assert "set action.classes" in reason
    own = federation().site(classes=["dive", "jump", "walk"])
    assert "['dive', 'jump', 'walk'], the run agreed on ['jump', 'walk']" in own.error(kind)


def test_a_site_may_know_fewer_actions_than_the_run(federation):
    run = federation()
    run.site(rows=[row for row in run.rows if row.action == "walk"])
    assert not run.ask("train").has_error()


@pytest.mark.parametrize("kind", ["query", "train", "evaluate"])
def test_a_node_without_a_site_file_says_how_to_name_one(federation, kind):
    reason = federation().site(node={}).error(kind)
    assert "this node has no site file" in reason
    assert "--node-config" in reason


def test_flowers_simulated_nodes_find_their_file_by_their_number(federation):
    run = federation().site()
    other = run.folder / "home" / "other.yaml"
    other.write_text(run.file.read_text().replace("clinic", "school"), encoding="utf-8")
    app = make_app(run.settings.flat(), [str(run.file), str(other)])
    for number, name in enumerate(("clinic", "school")):
        run.grid = InProcessGrid(app, [{"partition-id": number, "num-partitions": 2}], {})
        assert run.ask("query").content.config_records["site"]["name"] == name
    run.grid = InProcessGrid(app, [{"partition-id": 0, "site": str(other)}], {})
    assert run.ask("query").content.config_records["site"]["name"] == "school"  # its own file comes first


def test_the_runs_configuration_comes_from_flower_unless_it_is_bound(federation):
    run = federation().site()
    run.grid = InProcessGrid(make_app(), [{"site": str(run.file)}], {**run.settings.flat(), "game.omega": -1.0})
    assert "game.omega = -1.0" in run.error("train")
    run.site(run_config={**run.settings.flat(), "no.such": 1})
    assert "no.such: no such setting" in run.error("train")


def test_a_users_mistake_is_an_error_reply_and_leaves_the_next_round_alone(federation):
    run = federation().site(device="cuda:77")
    assert "device = 'cuda:77'" in run.error("train")
    assert not run.site().ask("train").has_error()
    assert "federation = '../../x', must be a plain name" in run.error("train", federation="../../x")


def test_file_names_and_table_values_stay_in_the_sites_log(federation, tmp_path, caplog):
    """The reply says that, and how many; what and where is the site's own business."""
    secret = Row(tmp_path / "secret-of-ward-7.mp4", "walk", split="train")
    run = federation()
    with caplog.at_level(logging.ERROR, "fedspact.site"):
        reason = run.site(rows=[*run.rows, secret]).error("train")
    assert "unreadable videos = 1 of 13" in reason
    assert "secret" not in reason
    assert str(secret.path) in caplog.text
    manifest = run.file.parent / "manifest.csv"
    manifest.write_text("path,patient,split\na.mp4, Ann,train\n", encoding="utf-8")
    for kind in ("query", "train", "evaluate"):
        caplog.clear()
        reason = run.error(kind)
        assert reason == "the site's own files cannot be used; its log says why"
        assert "' Ann', must not begin or end with a space" in caplog.text
    run.file.write_text("name: a\nmanifset: b\n", encoding="utf-8")
    assert str(tmp_path) not in run.error("query")


def test_a_state_that_cannot_be_written_is_said_without_its_path(federation, caplog):
    run = federation().site()
    state = run.file.parent / "state"
    state.write_text("a file where the folder should be", encoding="utf-8")
    reason = run.error("train")
    assert "its log says why" in reason
    assert str(state) not in reason
    assert str(state) in caplog.text


def test_a_ledger_that_cannot_be_written_is_said_without_its_path(federation, caplog):
    run = federation().site()
    ledger = run.file.parent / "state" / "f" / "ledger.jsonl"
    ledger.mkdir(parents=True)  # a folder where the file should be
    assert run.error("train") == "the site's own files cannot be used; its log says why"
    assert f"{ledger}: cannot be written (Is a directory); nothing leaves; free that disk or set" in caplog.text


def test_a_charge_that_cannot_be_kept_is_said_without_its_path(federation, caplog):
    run = federation(**PRIVATE).site()
    state = run.file.parent / "state" / "f"
    state.parent.mkdir()
    state.write_text("a file where the folder should be", encoding="utf-8")
    assert run.error("train") == "the site's own files cannot be used; its log says why"
    assert f"{state}/privacy.json: cannot be written (File exists); free that disk or set" in caplog.text


def test_secrets_that_cannot_be_written_are_a_fault_of_the_sites_files(tmp_path):
    (tmp_path / "f").touch()
    with pytest.raises(UnwritableFile, match=r"secure\.json: cannot be written .*set `state` in site\.yaml"):
        Vault(tmp_path / "f").write(Execution())


def test_a_gpu_that_is_too_small_is_said_with_what_needs_less(federation, caplog):
    """The fault comes where a GPU's would: inside a network's forward pass, in the middle of a round."""

    def full(module, pictures):  # noqa: ARG001
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    run = federation().site()
    hook = register_module_forward_pre_hook(full)
    try:
        reason = run.error("train")
    finally:
        hook.remove()
    for name in ("this site's GPU memory is too small", "batch.clips", "memory.budget_gib", "limits.gpu_memory_share"):
        assert name in reason
    assert "Tried to allocate 2.00 GiB" in caplog.text
    assert not list((run.folder / "home" / "state").rglob("*.pt"))
    assert not run.ask("train").has_error()


def test_an_unforeseen_fault_tells_no_more_than_its_kind(federation, caplog):
    run = federation().site()
    state = run.file.parent / "state" / "f" / "state-000001.pt"
    state.mkdir(parents=True)  # a folder where the file should be
    reason = run.error("train", number=2, code=SITE_FAILED)
    assert "Error; the site's log says more" in reason
    assert str(state) not in reason
    assert str(state) in caplog.text


def test_a_round_that_diverges_is_not_kept(federation):
    run = federation(**{"warmup.lr_privacy": 1e30}).site()
    assert "nothing of this round is kept or sent" in run.error("train")
    assert not list((run.file.parent / "state").glob("f/*"))
