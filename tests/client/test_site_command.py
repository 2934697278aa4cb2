"""``fedspact site``: a sample read by the real reader, exit codes for scripts, the ledger as people read it."""

import json
import shlex
import shutil
from datetime import datetime

import pytest
import torch
from PIL import Image

from client import site_check
from client.egress import Door
from client.limits import Limits, Refusals
from client.video.rows import Row, read_rows, write_rows
from fedspact import main
from spact_models.errors import UserError
from spact_models.run_config import load_settings

QUICK = ["--set", "clip.size_px=16", "--set", "clip.frames=4", "--set", "networks.anonymizer_channels=4"]


@pytest.fixture
def site(squares, tmp_path):
    """A site with its videos in its own folder."""
    shutil.copytree(squares.parent / "videos", tmp_path / "videos")
    rows = read_rows(squares)
    moved = [type(row)(tmp_path / "videos" / row.path.name, row.action, split=row.split) for row in rows]
    write_rows(moved, tmp_path / "manifest.csv")
    file = tmp_path / "site.yaml"
    file.write_text("name: north\nmanifest: manifest.csv\ndevice: cpu\n")
    return file


def test_a_sound_site_is_reported_with_what_it_holds(site, capsys):
    assert main(["site", "check", str(site), "--no-timing", "--json", *QUICK]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["rows"] == {"train": 12, "test": 4}
    assert told["actions"] == {"jump": 8, "walk": 8}
    assert told["sizes"] == {"32x32": told["sample"]}
    assert told["rates"] == {"12.5": told["sample"]}
    assert told["problems"] == []
    assert main(["site", "check", str(site), "--no-timing", *QUICK]) == 0
    assert "north" in capsys.readouterr().out


def test_the_time_of_a_round_is_measured(site, capsys):
    assert main(["site", "check", str(site), "--json", "--set", "batch.clips=4", "--set", "batch.views=4", *QUICK]) == 0
    assert json.loads(capsys.readouterr().out)["round_seconds"] > 0


@pytest.mark.parametrize(("joint", "seconds"), [(False, 5 * (1 + 2 * 10) + 3 * 10), (True, 5 * (1 + 2 * 100) + 3 * 10)])
def test_a_round_is_as_many_moves_as_the_game_plays(site, capsys, monkeypatch, joint, seconds):
    """With f_A and f_T in one step f_B alone answers in a cycle; both critics catch up before."""
    costs = {"anonymizer_move": 1.0, "critics_move": 10.0, "adversary_move": 100.0}
    real, played = site_check._seconds_of, []

    def seconds_of(moves, *rest):
        played.extend(real(moves, *rest))  # the moves themselves run
        return [costs[move.__name__] for move in moves]

    monkeypatch.setattr(site_check, "_seconds_of", seconds_of)
    game = {"rounds.cycles": 5, "game.critic_steps": 2, "game.catch_up_steps": 3, "game.joint_step": str(joint).lower()}
    words = [word for key, value in game.items() for word in ("--set", f"{key}={value}")]
    assert main(["site", "check", str(site), "--json", *QUICK, *words]) == 0
    assert json.loads(capsys.readouterr().out)["round_seconds"] == seconds
    assert len(played) == 6
    assert min(played) > 0


def test_problems_are_an_exit_status_and_a_name(site, capsys):
    (site.parent / "videos" / "03.mp4").write_bytes(b"no video")
    site.write_text(site.read_text() + "refuse:\n  min_sites: 5\nunreadable_share: 0.01\n")
    words = ["site", "check", str(site), "--no-timing", "--sample", "16", *QUICK]
    assert main([*words, "--superlink", "127.0.0.1:9"]) == 1
    said = capsys.readouterr().out
    for part in ("03.mp4", "refuse.min_sites", "nothing listens there"):
        assert part in said
    assert main(["site", "check", str(site.parent / "none.yaml")]) == 2


def test_labels_beyond_the_runs_list_are_a_problem_with_their_names(site, capsys):
    words = ["site", "check", str(site), "--no-timing", *QUICK, "--set"]
    assert main([*words, "action.classes=walk,fall"]) == 1
    assert "action = 'jump', not among the run's action.classes = walk,fall" in capsys.readouterr().out
    assert main([*words, "action.classes=walk,fall,jump"]) == 0


def test_views_of_another_source_are_read_counted_and_played(site, capsys):
    def told(*more):
        status = main(["site", "check", str(site), "--json", *QUICK, *more])
        return status, json.loads(capsys.readouterr().out)

    _, plain = told("--no-timing")
    site.write_text(site.read_text() + "views_manifest: views.csv\n")
    assert main(["site", "check", str(site), "--no-timing", *QUICK]) == 2
    assert "views.csv" in capsys.readouterr().err

    (site.parent / "pictures").mkdir()
    rows = [Row(site.parent / "pictures" / f"{number}.png") for number in range(3)]
    for row in rows:
        Image.new("RGB", (20, 30), "red").save(row.path)
    lost, held_out = Row(site.parent / "pictures" / "lost.png"), Row(site.parent / "pictures" / "out.png", split="test")
    write_rows([*rows[:1], lost, held_out], site.parent / "views.csv")
    status, found = told()
    assert status == 1
    assert found["rows"] == {"train": 12, "test": 4, "views": 2}
    assert [path.rpartition("/")[2] for path in found["unreadable"]] == ["lost.png"]
    assert "1 of 14 videos of the sample cannot be read" in found["problems"][0]
    assert "videos for views = 1, must be at least 2" in found["problems"][1]

    write_rows(rows, site.parent / "views.csv")
    status, found = told()
    assert (status, found["problems"], found["sample"]) == (0, [], 12 + 3)
    assert found["round_seconds"] > 0
    assert found["remarks"] == ["fewer videos than a batch holds: batches are smaller here"]
    more = (found["cache_gib_needed"] - plain["cache_gib_needed"]) * 2**30
    assert more == pytest.approx(3 * 16 * 16 * 3, rel=0.01)  # each picture at working size, whatever a video takes


def test_the_ledger_is_read_and_a_changed_line_is_found(site, capsys):
    assert main(["site", "ledger", str(site)]) == 0
    folder = site.parent / "site-state" / "f00d"
    folder.mkdir(parents=True)

    door = Door("north", folder / "ledger.jsonl", frozenset({"action.fc.weight"}))
    before = {"action.fc.weight": torch.zeros(2, 3)}
    for number in (1, 2):
        door.update(door.pack({"action.fc.weight": torch.ones(2, 3)}, before, {}), number)
    capsys.readouterr()
    assert main(["site", "ledger", str(site)]) == 0
    said = capsys.readouterr().out
    assert "f00d" in said
    lines = (folder / "ledger.jsonl").read_text().splitlines()
    (folder / "ledger.jsonl").write_text("\n".join([lines[0].replace('"bytes": 24', '"bytes": 7'), lines[1], ""]))
    assert main(["site", "ledger", str(site)]) == 1


def test_start_prints_flowers_command_and_refuses_half_a_door(site, capsys):
    assert main(["site", "start", str(site), "--superlink", "a.example:8000", "--insecure", "--print"]) == 0
    said = capsys.readouterr().out
    assert (
        f"flower-supernode --superlink a.example:8000 --port 9101 --insecure --node-config \"site='{site}'\"\n" == said
    )
    assert shlex.split(said)[-1] == f"site='{site}'"
    assert main(["site", "start", str(site), "--superlink", "a.example:8000", "--print"]) == 2


def test_limits_and_refusals_say_the_rule_and_the_runs_value(fast):
    settings = load_settings({**fast, "rounds.min_sites": 2})
    assert Limits(batch_clips=2).bounded(settings).batch.clips == 2
    night = Limits(hours="20:00-06:00")

    assert [night.open_at(datetime(2026, 1, 1, hour)) for hour in (19, 20, 23, 5, 6)] == [
        False,
        True,
        True,
        True,
        False,
    ]
    Refusals(min_sites=2).check_run(settings)
    for refusals, wrong in (
        (Refusals(min_sites=3), "rounds.min_sites = 2"),
        (Refusals(max_rounds=2), "refuse.max_rounds"),
        (Refusals(min_noise=0.5), "demands noise of at least 0.5"),
        (Refusals(require_secure_aggregation=True), "demands secure aggregation"),
    ):
        with pytest.raises(UserError, match=wrong):
            refusals.check_run(settings)
