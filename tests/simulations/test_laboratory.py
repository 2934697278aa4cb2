"""What every run shares: which setting wins, and figures that are null where the data cannot answer."""

import argparse
import json
import math
from pathlib import Path

import pytest
import torch

from client.video.cache import FrameCache
from client.video.rows import Row, read_rows
from server.records import RoundRecord
from server.runs import RunFolder
from simulations.judgement import REPRESENTATIONS, attackable, build_set, judge_run, labels_of, table
from simulations.laboratory import (
    Laboratory,
    add_run_arguments,
    bytes_up_per_round,
    export_anonymizer,
    judged_figures,
    open_laboratory,
    readable,
    settings_from,
)
from spact_models.anonymizer import Anonymizer
from spact_models.checkpoint import load_checkpoint
from spact_models.errors import UserError
from spact_models.exchange import snapshot
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
    lab = open_laboratory(args())
    assert lab.run.path == tmp_path / "run"
    assert len(lab.rows) == 16
    assert lab.cache_folder == tmp_path / "run" / "cache"
    assert lab.cache.size_bytes() > 16 * 10 * 16 * 16 * 3  # decoded once, before the first site asks


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


def test_bytes_up_is_the_mean_over_training_rounds(tmp_path):
    run = RunFolder(tmp_path / "run")
    assert bytes_up_per_round(run) == 0
    for kind, number in (("train", 100), ("evaluate", 9), ("train", 301)):
        run.record(RoundRecord(kind, 1, "warmup", False, "", {}, bytes_up=number))
    assert bytes_up_per_round(run) == 200
    run.close()


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """``judge(rows)`` on the smallest settings: an untrained anonymizer, three steps of each fresh network."""
    cache = FrameCache(tmp_path_factory.mktemp("cache"), 16)

    def judge(rows, fast, **more):
        settings = load_settings(fast)
        torch.manual_seed(0)
        anonymizer = Anonymizer(anonymizer_config(settings)).eval()
        return judge_run(anonymizer, settings, rows, cache, torch.device("cpu"), progress=False, **more)

    return judge


def test_what_the_data_cannot_answer_is_null(judged, squares, fast):
    """No labels, no people, one source: nothing but retrieval among all videos can be measured."""
    blind = [Row(row.path, split=row.split) for row in read_rows(squares)]
    figures = judged_figures(judged(blind, fast))
    assert figures["utility"] == dict.fromkeys(["chance", *REPRESENTATIONS])
    assert figures["attack"]["identity"] == dict.fromkeys(["chance", *REPRESENTATIONS])
    assert figures["attack"]["retrieval_same_source"] == dict.fromkeys(["chance", *REPRESENTATIONS])
    assert figures["attack"]["retrieval_all"]["chance"] == 0.25
    assert all(0 <= value <= 1 for value in figures["attack"]["retrieval_all"].values())
    json.dumps(figures, allow_nan=False)
    assert figures["attackers"] == {}


def test_the_judge_has_only_training_rows_to_learn_from(judged, squares, fast):
    """Held-out rows without labels change nothing about what is learned, and are not counted."""
    rows = read_rows(squares)
    lost = [Row(r.path, None if r.split == "test" and i % 2 else r.action, split=r.split) for i, r in enumerate(rows)]
    judgement = judged(lost, fast, with_retrieval=False, representations=("raw",))
    assert judgement.utility["raw"] in (0.0, 0.5, 1.0)  # two of the four test videos are asked about
    assert math.isnan(judgement.utility["anonymized"])
    assert (judgement.train_videos, judgement.test_videos) == (12, 4)
    assert "retrieval_all" not in judgement.attack


def test_the_strongest_attacker_counts(judged, squares, fast):
    fast["judge.steps"] = 25  # enough for the two attackers to differ
    judgement = judged(read_rows(squares), fast, tasks=("identity", "light"), with_retrieval=False)
    answers = [
        (judgement.attack[task][name], judgement.attackers[task][name].values())
        for task in ("identity", "light")
        for name in REPRESENTATIONS
    ]
    assert all(told == max(each) for told, each in answers)
    assert any(min(each) < max(each) for _, each in answers)


def test_the_table_shows_every_representation_chance_and_a_dash_for_nothing(judged, squares, fast):
    judgement = judged(read_rows(squares), fast, with_retrieval=False)
    lines = table(judgement).splitlines()
    assert lines[0].split() == ["action", "↑", "identity", "↓"]
    assert [line.split()[0] for line in lines[2:]] == [*REPRESENTATIONS, "chance"]
    assert lines[-1].split()[1:] == ["0.500", "0.500"]
    assert len({len(line) for line in lines}) == 1  # columns stand under each other


def test_an_attribute_is_attackable_when_test_asks_for_what_train_shows():
    def row(split, value):
        return Row(Path("/v/a.mp4"), split=split, attributes={"hat": value} if value else {})

    red, blue = row("train", "red"), row("train", "blue")
    assert attackable([red, blue, row("train", None)], [row("test", "red")], "hat") == ["blue", "red"]
    assert attackable([red], [row("test", "red")], "hat") == []  # nothing to tell apart
    assert attackable([red, blue], [row("test", "green")], "hat") == []  # never seen
    assert attackable([red, blue], [row("test", None)], "hat") == []
    assert attackable([red, blue], [row("test", "red")], "coat") == []
    assert labels_of([red, blue, row("test", None)], "hat", ["blue", "red"]).tolist() == [1, 0, -1]


def test_the_judged_set_holds_uniform_clips_and_views_in_order(squares, tmp_path, fast):
    settings = load_settings({**fast, "clip.stride_frames": 2})
    rows = [row for row in read_rows(squares) if row.split == "train"][:5]
    rows.append(Row(rows[0].path.with_name("15.mp4")))
    cache = FrameCache(tmp_path / "cache", 16)
    made = build_set(rows, cache, settings.clip, 2, {"action": labels_of(rows, "action", ["jump", "walk"])})
    assert made.clips_MTHWC.shape == (12, 5, 16, 16, 3)
    assert made.views_VKTHWC.shape == (6, 8, 2, 16, 16, 3)
    assert made.video_M.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert made.labels["action"].tolist() == [1, 0, 1, 0, 1, -1]
    assert made.group_V.tolist() == [0, 1, 2, 3, 0, -1]  # cameras 0 1 2 3 0, unknown
    video = torch.from_numpy(cache.frames(rows[2].path).copy())
    times = [0, 1, 3, 4, 5, 6, 8, 9]
    before = [1, 2, 1, 2, 3, 4, 6, 7]  # the start has none before: the neighbour after it
    assert torch.equal(made.views_VKTHWC[2, :, 1], video[times])
    assert torch.equal(made.views_VKTHWC[2, :, 0], video[before])


def test_a_laboratory_opens_its_cache_at_the_working_size(tmp_path, fast):
    lab = Laboratory(load_settings(fast), RunFolder(tmp_path / "run"), [], tmp_path / "cache", 0.0)
    assert lab.cache.size_px == 16
    assert lab.cache.folder == tmp_path / "cache"
