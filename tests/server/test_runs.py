"""The run folder: what it holds, what it refuses, and what it says when the disk is full."""

import dataclasses
import json
import resource
from pathlib import Path

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from server.app import main, run_federation, summarise
from server.curves import forget_judged
from server.records import Dropped, RoundRecord, SiteRecord
from server.runs import RunFolder, default_run_path
from simulations.inprocess import InProcessGrid
from spact_models.checkpoint import load_checkpoint
from spact_models.errors import RunStopped, UserError
from spact_models.presets import BEFORE
from spact_models.run_config import load_settings

BIG = 2**64 - 1
RECORD = RoundRecord(
    kind="train",
    round=3,
    phase="minimax",
    void=False,
    reason="",
    metrics={"loss.action": 0.5},
    sites=(SiteRecord(BIG, "north", {"loss.action": 0.25}, 100, 50),),
    dropped=(Dropped(7, "south", "no reply"),),
    bytes_down=100,
    bytes_up=50,
    seconds=1.5,
)


def test_a_run_folder_holds_settings_metrics_curves_and_summary(tmp_path):
    settings = load_settings({"seed": 5})
    with RunFolder(tmp_path / "deep" / "run") as folder:
        folder.begin(settings.flat())
        folder.record(RECORD)
        folder.record(dataclasses.replace(RECORD, round=4, metrics={"loss.action": 0.125}))
        folder.write_summary({"rounds": 2})
    described = json.loads((folder.path / "settings.json").read_text())
    assert described["federation"] == folder.federation
    assert len(folder.federation) == 32
    assert load_settings(described["settings"]) == settings
    lines = [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [3, 4]
    assert lines[0]["sites"][0] == {
        "node": str(BIG), "name": "north", "metrics": {"loss.action": 0.25}, "bytes_down": 100, "bytes_up": 50,
        "seconds": 0.0,
    }  # fmt: skip
    assert lines[0]["dropped"] == [{"node": "7", "name": "south", "reason": "no reply", "late": False}]
    assert json.loads((folder.path / "summary.json").read_text()) == {"rounds": 2}
    curves = EventAccumulator(str(folder.path / "tensorboard")).Reload()
    assert [(point.step, point.value) for point in curves.Scalars("train/loss.action")] == [(3, 0.5), (4, 0.125)]
    assert [point.value for point in curves.Scalars("train/north/loss.action")] == [0.25, 0.25]


def test_two_runs_have_two_federation_ids_and_an_opened_one_keeps_its_own(tmp_path):
    first, second = RunFolder(tmp_path / "a"), RunFolder(tmp_path / "b")
    assert first.federation != second.federation
    first.begin({"seed": 1})
    first.record(RECORD)
    opened = RunFolder.open(tmp_path / "a")
    assert opened.federation == first.federation
    assert opened.settings() == {**BEFORE, "seed": 1}  # what came later was not there yet
    assert [line["round"] for line in opened.history()] == [3]
    with pytest.raises(UserError, match="not a run folder"):
        RunFolder.open(tmp_path / "b")
    first.close()


def test_a_line_cut_short_by_a_crash_is_left_out(tmp_path):
    with RunFolder(tmp_path / "run") as folder:
        folder.begin({})
        assert folder.history() == []
        folder.record(RECORD)
        with (folder.path / "metrics.jsonl").open("a") as file:
            file.write('{"round": 4, "kin')
        assert [line["round"] for line in folder.history()] == [3]


def test_checkpoints_round_trip_and_the_last_k_are_kept(tmp_path):
    folder = RunFolder(tmp_path / "run", keep_checkpoints=2)
    for number in (1, 2, 9, 10):
        path = folder.save_checkpoint(number, {"action.w": torch.full((3,), float(number))}, {"round": number})
    assert path.name == "round-0010.safetensors"
    assert list(folder.checkpoints()) == [9, 10]
    saved = load_checkpoint(path)
    assert torch.equal(saved.tensors["action.w"], torch.full((3,), 10.0))
    assert saved.header["round"] == 10
    everything = RunFolder(tmp_path / "all")
    for number in range(1, 5):
        everything.save_checkpoint(number, {"action.w": torch.zeros(1)}, {})
    assert list(everything.checkpoints()) == [1, 2, 3, 4]


def test_what_a_run_folder_refuses(tmp_path):
    foreign = tmp_path / "holiday"
    foreign.mkdir()
    (foreign / "photo.jpg").write_bytes(b"x")
    with pytest.raises(UserError, match=r"holiday: not empty and not a run folder.*--out"):
        RunFolder(foreign)
    (foreign / "settings.json").write_text("[]")
    with pytest.raises(UserError, match="not empty and not a run folder"):
        RunFolder(foreign)
    RunFolder(tmp_path / "run").begin({})
    before = (tmp_path / "run" / "settings.json").read_bytes()
    with pytest.raises(UserError, match=r"holds an existing run, which is never overwritten.*--out"):
        RunFolder(tmp_path / "run")
    assert (tmp_path / "run" / "settings.json").read_bytes() == before
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(UserError, match="a file, must be a folder"):
        RunFolder(file)
    with pytest.raises(UserError, match="cannot be written"):
        RunFolder(file / "below")
    (tmp_path / "empty").mkdir()
    RunFolder(tmp_path / "empty")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_under_the_metrics_is_said_with_a_remedy(tmp_path):
    folder = RunFolder(tmp_path / "run")
    (folder.path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"metrics\.jsonl: cannot be written \(No space left on device\)\. Free"):
        folder.record(RECORD)


def test_a_disk_that_fills_up_under_a_checkpoint_leaves_the_last_good_one(tmp_path):
    folder = RunFolder(tmp_path / "run", keep_checkpoints=1)
    good = folder.save_checkpoint(1, {"action.w": torch.ones(10)}, {})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # files end there, as on a full disk
    try:
        with pytest.raises(UserError, match=r"round-0002\.safetensors: cannot be written \(.*what was written before"):
            folder.save_checkpoint(2, {"action.w": torch.ones(100_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert torch.equal(load_checkpoint(good).tensors["action.w"], torch.ones(10))
    assert [path.name for path in good.parent.iterdir()] == [good.name]  # no half file either


def test_the_default_path_is_absolute_and_dated():
    assert default_run_path("").parent == Path("runs").absolute()
    assert default_run_path("somewhere").is_absolute()
    assert default_run_path("~/x") == Path.home() / "x"


# ---- the whole federation, with a ClientApp that only nudges the weights


def nudging_app() -> ClientApp:
    app = ClientApp()

    def told(context: Context, **more) -> ConfigRecord:
        return ConfigRecord({"name": str(context.node_config["name"]), **more})

    @app.query()
    def query(message: Message, context: Context) -> Message:
        site = told(context, classes=["jump", "walk"], train_rows=3, test_rows=1)
        return Message(RecordDict({"site": site}), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        arrays = message.content.array_records["arrays"].to_torch_state_dict()
        update = ArrayRecord({name: torch.full_like(value, 0.5) for name, value in arrays.items()})
        metrics = MetricRecord({"examples.anonymizer": 3, "examples.action": 3, "teacher_held": 0, "loss.action": 1.5})
        content = RecordDict({"update": update, "metrics": metrics, "site": told(context)})
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        metrics = MetricRecord({"examples": 1, "top1": 0.25})
        return Message(RecordDict({"metrics": metrics, "site": told(context)}), reply_to=message)

    return app


KEYS = {"preset": "tiny", "rounds.warmup": 1, "rounds.minimax": 1, "rounds.min_sites": 2, "rounds.timeout_seconds": 5.0}


def test_run_federation_leaves_a_whole_run_folder(tmp_path):
    settings = load_settings(KEYS)
    seen = []
    with RunFolder(tmp_path / "run") as folder:
        grid = InProcessGrid(nudging_app(), [{"name": "a"}, {"name": "b"}], settings.flat())
        result = run_federation(grid, settings, folder, on_round=seen.append, quiet=True)
    assert [(record.kind, record.round) for record in seen] == [("train", 1), ("train", 2), ("evaluate", 2)]
    assert list(result.rounds) == seen
    assert result.classes == ("jump", "walk")
    assert list(folder.checkpoints()) == [1, 2]
    first, last = (load_checkpoint(path) for path in folder.checkpoints().values())
    for name, value in last.tensors.items():
        assert torch.equal(value, result.weights[name])
        torch.testing.assert_close(value, first.tensors[name] + 0.5)
    assert (last.header["round"], last.header["phase"], last.header["classes"]) == (2, "minimax", ["jump", "walk"])
    assert load_settings(last.header["settings"]) == settings
    assert [line["kind"] for line in folder.history()] == ["train", "train", "evaluate"]
    assert result.evaluation == {"examples": 2, "top1": 0.25}
    assert result.bytes_up_per_round == seen[0].bytes_up > 2 * 4 * sum(value.numel() for value in last.tensors.values())
    summary = summarise(result, settings)
    assert (summary["sites"], summary["rounds"], summary["preset"]) == (2, 2, "tiny")
    assert summary["peak_rss_mb"] > 10


def test_the_server_app_itself_writes_where_the_run_config_says(tmp_path):
    config = {**KEYS, "run_dir": str(tmp_path / "run")}
    grid = InProcessGrid(nudging_app(), [{"name": "a"}, {"name": "b"}], config)
    main(grid, Context(1, 0, {}, RecordDict(), config))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["evaluation"]["top1"] == 0.25
    assert summary["bytes_up_per_round"] > 0


def test_too_few_sites_in_time_is_said_with_a_remedy(tmp_path):
    settings = load_settings({**KEYS, "rounds.timeout_seconds": 0.01})
    grid = InProcessGrid(nudging_app(), [{"name": "a"}], settings.flat())
    with pytest.raises(RunStopped, match=r"1 sites connected within .* rounds\.min_sites = 2 are needed"):
        run_federation(grid, settings, RunFolder(tmp_path / "run"), quiet=True)


def test_sites_that_cannot_even_introduce_themselves_are_named(tmp_path):
    settings = load_settings(KEYS)
    grid = InProcessGrid(nudging_app(), [{}, {}], settings.flat())  # the app fails without a name
    with pytest.raises(RunStopped, match=r"none of the 2 connected sites could join\. node 1: error 0: .*name"):
        run_federation(grid, settings, RunFolder(tmp_path / "run"), quiet=True)


# ---- TensorBoard


def test_fresh_networks_figures_stand_on_the_curves(tmp_path):
    with RunFolder(tmp_path / "run") as folder:
        folder.begin({})
        folder.draw_evaluation(2, {"anonymized/action": 0.75, "chance/identity": 0.125, "raw/identity": float("nan")})
    with RunFolder.open(tmp_path / "run") as again:  # as evaluate does, long after the run
        again.draw_evaluation(3, {"anonymized/action": 0.5})
    curves = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    # two files of one second may be read in either order
    drawn = sorted((point.step, point.value) for point in curves.Scalars("judged/anonymized/action"))
    assert drawn == [(2, 0.75), (3, 0.5)]
    assert [point.value for point in curves.Scalars("judged/chance/identity")] == [0.125]
    assert "judged/raw/identity" not in curves.Tags()["scalars"]


def test_earlier_judgements_curves_are_forgotten_and_the_trainings_kept(tmp_path):
    with RunFolder(tmp_path / "run") as folder:
        folder.begin({})
        folder.record(RECORD)
        folder.draw_evaluation(2, {"anonymized/action": 0.75})
    path = folder.path / "tensorboard"
    forget_judged(path)
    forget_judged(tmp_path / "nowhere")
    with RunFolder.open(folder.path) as again:
        again.draw_evaluation(2, {"anonymized/action": 0.5})
    curves = EventAccumulator(str(path)).Reload()
    assert [(point.step, point.value) for point in curves.Scalars("judged/anonymized/action")] == [(2, 0.5)]
    assert [point.step for point in curves.Scalars("train/loss.action")] == [RECORD.round]


def test_the_layout_puts_each_curve_beside_its_chance(tmp_path):
    """By the server of TensorBoard's own custom scalars: which of the tags that a run writes each chart shows."""
    import re

    from tensorboard.plugins.custom_scalar import layout_pb2

    site = {"loss.action": 0.25, "loss.privacy": 1.0, "chance.privacy": 2.0}
    record = dataclasses.replace(RECORD, metrics=site, sites=(SiteRecord(1, "north", site, 100, 50),))
    with RunFolder(tmp_path / "run") as folder:
        folder.begin({})
        folder.record(record)
        folder.record(dataclasses.replace(record, kind="evaluate", metrics={"top1": 0.5}, sites=()))
        folder.draw_evaluation(
            3, {f"{name}/{task}": 0.5 for name in ("raw", "chance") for task in ("action", "identity")}
        )
    curves = EventAccumulator(str(folder.path / "tensorboard")).Reload()
    told = curves.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    tags = curves.Tags()["scalars"]
    shown = {
        chart.title: {tag for tag in tags for pattern in chart.multiline.tag if re.match(pattern, tag)}
        for category in layout_pb2.Layout.FromString(told).category
        for chart in category.chart
    }
    assert shown == {
        "L_T, mean and sites": {"train/loss.action", "train/north/loss.action"},
        "L_B, mean and sites, with chance": {
            "train/loss.privacy", "train/north/loss.privacy", "train/chance.privacy",
        },
        "f_T top-1, mean and sites": {"evaluate/top1"},
        "action": {"judged/raw/action", "judged/chance/action"},
        "private questions, with chance": {"judged/raw/identity", "judged/chance/identity"},
        "bytes up": {"train/bytes_up"},
    }  # fmt: skip


def test_the_run_around_a_file_is_found(tmp_path):
    with RunFolder(tmp_path / "run") as folder:
        folder.begin({})
    for file in ("anonymizer.safetensors", "checkpoints/round-0001.safetensors"):
        found = RunFolder.around(folder.path / file)
        assert found is not None
        assert found.path == folder.path
    assert RunFolder.around(folder.path / "a" / "b" / "c.safetensors") is None
    assert RunFolder.around(tmp_path / "else.safetensors") is None
