"""What every run shares: which setting wins, and figures that are null where the data cannot answer."""

import argparse
import json
from dataclasses import replace

import pytest
import torch

from client.video.cache import FrameCache
from client.video.rows import Row, read_rows, write_rows
from server.records import RoundRecord
from server.runs import RunFolder
from simulations.laboratory import (
    CLOSING,
    DATA,
    Laboratory,
    add_run_arguments,
    bytes_up_per_round,
    closing_suite,
    export_anonymizer,
    judged_figures,
    keep_rows,
    open_laboratory,
    readable,
    settings_from,
)
from simulations.partition import load_rows
from simulations.protocols.suite import judge_suite
from simulations.protocols.text import table
from spact_models.anonymizer import Anonymizer
from spact_models.checkpoint import load_checkpoint
from spact_models.errors import UserError
from spact_models.exchange import snapshot
from spact_models.learned import SURE
from spact_models.networks import anonymizer_config, buffers_of, build_networks, checkpoint_header
from spact_models.run_config import load_settings


def parse(*words):
    parser = argparse.ArgumentParser()
    add_run_arguments(parser)
    return parser.parse_args(["--data", "m.csv", *words])


def test_flags_over_assignments_over_the_file_over_defaults(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('seed = 1\npreset = "small"\n[game]\nomega = 2.0\ncritic_steps = 7\n[rounds]\nminimax = 9\n')
    config = ("--config", str(file))
    assert settings_from(parse()).seed == 0
    plain = settings_from(parse(*config))
    assert (plain.seed, plain.preset, plain.game.omega, plain.game.critic_steps) == (1, "small", 2.0, 7)
    assigned = settings_from(parse(*config, "--set", "game.omega=3", "--set", "seed=2", "--set", "game.omega=4"))
    assert (assigned.seed, assigned.game.omega, assigned.game.critic_steps) == (2, 4.0, 7)
    words = (*config, "--set", "seed=2", "--seed", "3", "--preset", "tiny", "--device", "cpu", "--out", "here")
    flagged = settings_from(parse(*words))
    assert (flagged.seed, flagged.preset, flagged.device, flagged.run_dir) == (3, "tiny", "cpu", "here")
    assert (flagged.game.critic_steps, flagged.rounds.minimax) == (7, 9)
    shorthand = settings_from(parse("--set", "simulation.sites=5"), {"simulation.sites": 4})
    assert shorthand.simulation.sites == 4
    assert settings_from(parse("--seed", "0", "--set", "seed=9")).seed == 0  # 0 is a value, not an absent one


def test_the_run_folder_is_made_only_when_everything_else_is_right(squares, tmp_path, fast):
    def args(**changes):
        chosen = {**fast, **changes}
        words = [word for key, value in chosen.items() for word in ("--set", f"{key}={value}")]
        parsed = parse("--out", str(tmp_path / "run"), *words)
        parsed.data = squares
        return parsed

    for changes in ({"game.omega": -1}, {"device": "cuda:99"}):
        with pytest.raises(UserError):
            open_laboratory(args(**changes))
        assert not (tmp_path / "run").exists()
    bare = args()
    bare.data = tmp_path / "bare.csv"
    write_rows([replace(row, action=None) for row in read_rows(squares)], bare.data)
    with pytest.raises(UserError, match=r"bare\.csv: its rows name 0 actions, must be at least 2"):
        open_laboratory(bare)  # before anything is decoded
    assert not (tmp_path / "run").exists()
    named = args(**{"action.classes": "jump,walk"})
    named.data, named.out = bare.data, tmp_path / "named"
    assert open_laboratory(named).judged
    lab = open_laboratory(args())
    assert lab.run.path == tmp_path / "run"
    assert len(lab.rows) == 16
    assert lab.cache_folder == tmp_path / "run" / "cache"
    assert lab.cache.size_bytes() > 16 * 10 * 16 * 16 * 3  # decoded once, before the first site asks
    assert read_rows(lab.run.path / DATA) == lab.rows


def test_a_run_keeps_its_rows_with_their_splits_and_boxes(squares, tmp_path, fast):
    boxes = tmp_path / "boxes.csv"
    boxes.write_text("frame,left,top,right,bottom\n0,0,0,1,1\n")
    undecided = [replace(row, split="", boxes=boxes if number == 3 else None)
                 for number, row in enumerate(read_rows(squares))]  # fmt: skip
    write_rows(undecided, tmp_path / "m.csv")
    settings = load_settings(fast)
    rows = load_rows(tmp_path / "m.csv", settings.simulation, 0)
    lab = Laboratory(settings, RunFolder(tmp_path / "run"), rows, tmp_path / "cache", 0.0)
    keep_rows(lab)
    kept = read_rows(tmp_path / "run" / DATA)
    assert kept == rows
    assert {row.split for row in kept} == {"train", "test"}
    assert [row.boxes for row in kept if row.boxes] == [boxes]
    RunFolder(tmp_path / "run")  # a try that failed before the run began may be repeated


def test_readable_rows_are_those_that_decode(squares, tmp_path, capsys):
    rows = read_rows(squares) * 2  # one bad one of 33 is below the share
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"\0" * 100)
    kept = readable([*rows, Row(bad)], FrameCache(tmp_path / "cache", 16), 0.1)
    assert kept == rows
    assert f"not used: {bad}: " in capsys.readouterr().out


def test_the_exported_anonymizer_is_that_of_the_last_round_alone(tmp_path, fast):
    settings = load_settings({**fast, "networks.norm": "batch"})
    run = RunFolder(tmp_path / "run")
    for number in (1, 2, 10):
        networks = build_networks(settings, ["a", "b"])
        torch.manual_seed(number)
        for network in (networks.anonymizer, networks.action):
            for value in [*network.parameters(), *network.buffers()]:
                if value.is_floating_point():
                    value.data.uniform_(0.1, 1)
        held = {**snapshot(networks.anonymizer, networks.action), **buffers_of(networks)}
        run.save_checkpoint(number, held, checkpoint_header(settings, ["a", "b"]))
    exported = export_anonymizer(run)
    expected = networks.anonymizer.state_dict()  # of round 10, which is not the last by name
    assert all(torch.equal(value, expected[name]) for name, value in exported.state_dict().items())
    assert any(name.endswith("running_var") for name in expected)
    assert not exported.training
    names = load_checkpoint(run.path / "anonymizer.safetensors").tensors
    assert {name.removeprefix("buffers.").partition(".")[0] for name in names} == {"anonymizer"}
    (run.path / "anonymizer.safetensors").unlink()
    (run.path / "anonymizer.safetensors").mkdir()
    with pytest.raises(UserError, match=r"anonymizer\.safetensors: cannot be written \(Is a directory\).*--resume"):
        export_anonymizer(run)


def test_bytes_up_is_the_mean_over_training_rounds(tmp_path):
    run = RunFolder(tmp_path / "run")
    assert bytes_up_per_round(run) == 0
    for kind, number in (("train", 100), ("evaluate", 9), ("train", 301)):
        run.record(RoundRecord(kind, 1, "warmup", False, "", {}, bytes_up=number))
    assert bytes_up_per_round(run) == 200
    run.close()


@pytest.fixture
def judged(tmp_path, fast):
    """``judge(rows)``: an untrained anonymizer judged as a run's end judges it, three steps of each fresh network."""

    def judge(rows, **changes):
        settings = load_settings({**fast, **changes})
        torch.manual_seed(0)
        anonymizer = Anonymizer(anonymizer_config(settings)).eval()
        lab = Laboratory(settings, RunFolder(tmp_path / "run"), rows, tmp_path / "cache", 0.0)
        device = torch.device("cpu")
        return judge_suite(anonymizer, settings, rows, lab.cache, device, closing_suite(lab), progress=False)[0]

    return judge


def test_what_the_data_cannot_answer_is_null(judged, squares):
    """No labels, no people, one source: nothing but retrieval among all videos can be measured."""
    blind = [Row(row.path, split=row.split) for row in read_rows(squares)]
    figures = judged_figures(judged(blind))
    nothing = dict.fromkeys(["chance", *CLOSING])
    assert figures["utility"] == nothing
    assert figures["attack"]["identity"] == nothing
    assert figures["attack"]["retrieval_same_source"] == nothing
    assert figures["attack"]["retrieval_all"]["chance"] == 0.25
    assert all(0 <= value <= 1 for value in figures["attack"]["retrieval_all"].values())
    json.dumps(figures, allow_nan=False)
    assert figures["attackers"].keys() == {"retrieval_all"}


def test_the_summary_is_the_evaluation_and_the_strongest_attacker_counts(judged, squares):
    evaluation = judged(read_rows(squares), **{"judge.steps": 25})  # enough for the two attackers to differ
    figures = judged_figures(evaluation)
    for name in CLOSING:
        answers = figures["attackers"]["identity"][name]
        asked = list(answers)
        assert asked == ["frame-convnet", "video-tiny", "clip-trees"][: len(asked)]
        assert all(answers[one] < SURE for one in asked[:-1])
        assert len(asked) == 3 or answers[asked[-1]] >= SURE
        assert figures["attack"]["identity"][name] == max(answers.values())
        assert figures["utility"][name] == evaluation.representations[name].action.mean
    assert any(min(each.values()) < max(each.values()) for each in figures["attackers"]["identity"].values())
    assert (figures["train_videos"], figures["test_videos"]) == (12, 4)
    lines = table(evaluation).splitlines()
    assert lines[0].split()[:4] == ["action", "↑", "identity", "↓"]
    assert lines[-1].startswith("≥ after its 25 steps")  # nobody knows its own clips by then
    lines = lines[:-1]
    assert [line.split()[0] for line in lines[2:]] == [*CLOSING, "chance"]
    assert lines[-1].split()[1:3] == ["0.500", "0.500"]
    assert figures["learned"]["action"]["raw"] == evaluation.representations["raw"].action.learned
    seen = evaluation.representations["anonymized"].attacks["identity"].attackers
    assert figures["learned"]["identity"]["anonymized"] == {name: figure.learned for name, figure in seen.items()}
    assert len({len(line) for line in lines}) == 1  # columns stand under each other


def test_a_laboratory_opens_its_cache_at_the_working_size(tmp_path, fast):
    lab = Laboratory(load_settings(fast), RunFolder(tmp_path / "run"), [], tmp_path / "cache", 0.0)
    assert lab.cache.size_px == 16
    assert lab.cache.folder == tmp_path / "cache"
