"""``fedspact bench``: rows that are kept and compared, a twin that plays the same game, mistakes that are named."""

import json

import pytest
import torch

from fedspact import main
from simulations.benchmarks import command
from simulations.benchmarks.command import line_of, markdown
from simulations.benchmarks.measured import Row, Spread, in_turns
from simulations.benchmarks.step import Apart, Scene, pair
from simulations.benchmarks.wire import measure_wire
from spact_models.errors import RunStopped


def test_ours_and_the_twin_play_the_same_game():
    scene = Scene.make("fp32", quick=True)
    mine, theirs = pair(scene.ours(), scene), scene.twin().pair(scene.batch)
    assert mine == pytest.approx(theirs, rel=1e-4)


def test_the_twin_in_a_process_of_its_own_plays_the_same_game_on():
    scene = Scene.make("fp32", quick=True, seed=3)
    here = scene.twin()
    with Apart(scene, quick=True) as plain:
        for play in (plain.exact_pair, plain.pair):
            assert play() == pytest.approx(here.pair(scene.batch), rel=1e-3)


def test_rows_are_kept_and_a_ratio_that_fell_behind_is_a_status(tmp_path, capsys):
    kept = tmp_path / "kept.json"
    assert main(["bench", "start-up", "--repeats", "1", "--json", str(kept), "--markdown"]) == 0
    assert "| **start-up**" in capsys.readouterr().out
    content = json.loads(kept.read_text())
    (row,) = content["rows"]
    assert row["name"] == "start-up"
    assert row["machine"]["versions"]["torch"]
    row["judged"] = 1000.0
    kept.write_text(json.dumps(content))
    assert main(["bench", "start-up", "--against", str(kept)]) == 0
    row["judged"] = 1e-6
    kept.write_text(json.dumps(content))
    assert main(["bench", "start-up", "--against", str(kept)]) == 1
    assert "regression: start-up" in capsys.readouterr().out
    row["machine"]["cpu"] = "another"  # seconds of two machines say nothing about each other
    kept.write_text(json.dumps(content))
    assert main(["bench", "start-up", "--against", str(kept)]) == 0
    assert "of another machine, without a ratio: start-up" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "other"}, "not written by"),
        ({"format_version": 9}, "format_version = 9, must be 1"),
        ({"quick": True}, "was measured with --quick"),
        ({"rows": [{"name": "start-up"}]}, "a row is incomplete ('judged')"),
        ({"rows": None}, "a row is incomplete"),
    ],
)
def test_a_kept_file_that_cannot_be_compared_with_is_refused_before_anything_runs(tmp_path, capsys, change, said):
    kept = tmp_path / "kept.json"
    fine = {"format": "fedspact-bench", "format_version": 1, "quick": False, "rows": []}
    kept.write_text(json.dumps({**fine, **change}))
    assert main(["bench", "start-up", "--against", str(kept)]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("error", [RunStopped("they play different games"), torch.OutOfMemoryError("no room\nmore")])
def test_a_benchmark_that_fails_leaves_the_others_their_say(tmp_path, capsys, monkeypatch, error):
    def broken(*_):
        raise error

    real = command._benchmark
    monkeypatch.setattr(command, "_benchmark", lambda name: broken if name == "step-fp32" else real(name))
    kept = tmp_path / "kept.json"
    assert main(["bench", "step-fp32", "start-up", "--repeats", "1", "--json", str(kept)]) == 1
    assert f"step-fp32: failed: {str(error).splitlines()[0]}" in capsys.readouterr().out
    assert [row["name"] for row in json.loads(kept.read_text())["rows"]] == ["start-up"]


def test_mistakes_are_named(tmp_path, capsys):
    for words, wrong in (
        (["step-fp23"], "The nearest is step-fp32"),
        (["--repeats", "0"], "--repeats 0: must be at least 1"),
        (["--against", str(tmp_path / "none.json")], "cannot be read"),
        (["--json", str(tmp_path / "none" / "rows.json")], "cannot be written there"),
    ):
        assert main(["bench", *words]) == 2
        assert wrong in capsys.readouterr().err


def test_each_pair_is_timed_in_turns_and_the_verdict_follows_the_rule():
    played = []
    in_turns(lambda: played.append("a"), lambda: played.append("b"), 3, lambda: None)
    assert "".join(played) == "ab" + "ab" + "ba" + "ab"
    one = Spread.of([2.0])
    fast = Row("x", "", "s", one, one, Spread.of([1.8, 2.0, 2.2]), 1.9, "at least")
    assert fast.met
    assert not fast.worse_than(2.2)
    assert fast.worse_than(2.5)
    lean = Row("y", "", "GiB", Spread.of([7.0]), None, None, 6.0, "at most")
    assert not lean.met
    assert lean.worse_than(5.0)
    told = Row("z", "", "s", one, one, one, None, "at most")
    assert told.met is None
    assert line_of(told).endswith("no target")
    assert markdown([told]).splitlines()[2].endswith("| – | – |")


def test_an_update_is_as_small_on_the_wire_as_was_asked():
    """The paper's networks, through the real door: 202 MB of weights."""
    rows = {row.name: row for row in measure_wire(quick=True, repeats=1, on_step=lambda: None)}
    assert list(rows) == ["wire-float16", "wire-int8", "wire-subset"]
    assert all(row.met for row in rows.values())
    assert 100 < rows["wire-float16"].ours.median < 103
    assert 50 < rows["wire-int8"].ours.median < 52
    assert 0 < rows["wire-subset"].ours.median < 1
