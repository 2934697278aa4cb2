"""``fedspact bench``: rows that are kept and compared, a twin that plays the same game, mistakes that are named."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedspact import main
from simulations.benchmarks import command
from simulations.benchmarks.command import line_of, markdown
from simulations.benchmarks.measured import Record, Row, Spread, in_turns
from simulations.benchmarks.step import Apart, Scene, pair
from simulations.benchmarks.wire import measure_wire
from spact_models.errors import RunStopped

ROOT = Path(__file__).resolve().parents[2]
ROW = {
    **Row("start-up", "", "s", Spread.of([0.1]), None, None, 0.5, "at most").to_json(),
    "machine": {"versions": {}},
}


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
    assert row["ours"]["repeats"] == 3  # as many as it took, whatever was asked
    assert row["twin"]["repeats"] == 3  # Python alone
    row["target"] = None  # a machine with other work may miss it now; this is about the seconds
    row["ours"] = {"median": 1e-6, "low": 1e-6, "high": 1e-6}  # those of two days say nothing about each other
    kept.write_text(json.dumps(content))
    assert main(["bench", "start-up", "--against", str(kept)]) == 0
    assert "no regression" in capsys.readouterr().out
    row["name"] = "another"
    kept.write_text(json.dumps(content))
    assert main(["bench", "start-up", "--against", str(kept)]) == 1
    assert "nothing to compare" in capsys.readouterr().out


def test_each_row_keeps_the_machine_as_it_was_then(tmp_path, monkeypatch):
    row = Row("start-up", "", "s", Spread.of([0.1]), None, None, 0.5, "at most")
    loads = iter([(1.0, 0, 0), (7.0, 0, 0)])
    monkeypatch.setattr("os.getloadavg", lambda: next(loads))
    monkeypatch.setattr(command, "_benchmark", lambda _: lambda *_: iter([row, replace(row, name="second")]))
    kept = tmp_path / "kept.json"
    assert main(["bench", "start-up", "--json", str(kept)]) == 0
    assert [row["machine"]["load"] for row in json.loads(kept.read_text())["rows"]] == [1.0, 7.0]
    assert "; load 1 to 7." in markdown(list(command.read_rows(kept, False).values()))


KEPT = {name: record.row for name, record in command.read_rows(ROOT / "docs" / "bench.json", None).items()}


def times(row, factor):
    """As if all of it were so much larger."""
    ratio = None if row.ratio is None else row.ratio.times(factor)
    return replace(row, ours=row.ours.times(factor), ratio=ratio)


@pytest.mark.parametrize("name", KEPT)
def test_a_kept_row_is_no_regression_of_itself_and_one_that_is_really_worse_is_found(name):
    row = KEPT[name]
    assert not row.worse_than(row)
    much = 0.3 if row.rule == "at least" else 3.0
    if row.compared_by == "ratio":
        assert times(row, much).worse_than(row)
    assert not times(row, 1 / much).worse_than(row)
    assert command.checked_names([name])


def test_what_scatters_is_no_regression():
    def memory(more):
        return replace(KEPT["aggregation-memory"], ours=Spread.of([more]))

    assert not memory(0.119).worse_than(memory(0.0418))  # 2 MB of a small model
    assert not memory(0.1).worse_than(memory(-0.012))
    assert memory(0.3).worse_than(memory(-0.012))
    assert memory(1.01).worse_than(memory(0.9))  # the target is missed, and was met
    start = KEPT["start-up"]
    assert not replace(start, ours=Spread.of([0.074])).worse_than(start)
    assert replace(start, ours=Spread.of([0.51])).worse_than(start)
    wide = replace(KEPT["feed"], ratio=Spread(1.0, 0.7, 1.1, 5))
    assert not replace(wide, ratio=Spread(0.8, 0.7, 0.9, 5)).worse_than(wide)  # within what was seen
    assert replace(wide, ratio=Spread(0.6, 0.5, 0.65, 5)).worse_than(wide)
    update = KEPT["wire-float16"]
    assert times(update, 1.015).worse_than(update)
    assert not times(update, 1.005).worse_than(update)


def test_the_page_holds_the_table_of_the_kept_rows(tmp_path, capsys):
    kept, page = ROOT / "docs" / "bench.json", tmp_path / "performance.md"
    text = (ROOT / "docs" / "performance.md").read_text()
    page.write_text(text.replace("| **feed**", "| **fed**"))
    assert main(["bench", "--table", str(kept), "--into", str(page)]) == 0
    assert page.read_text() == text
    assert main(["bench", "--table", str(kept)]) == 0
    assert capsys.readouterr().out.strip() in text
    page.write_text("no marks")
    assert main(["bench", "--table", str(kept), "--into", str(page)]) == 2
    assert "lacks the table's two marks" in capsys.readouterr().err


def test_a_profile_says_what_bounds_the_parts(capsys):
    assert main(["bench", "step-bf16", "--profile", "--quick"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("step-bf16")
    assert "GFLOP/s (bf16)" in out
    lines = [line.split(" | ") for line in out.splitlines() if line.startswith("| ")]
    parts = {line[0].removeprefix("| "): line for line in lines}
    assert parts["convolution, backward"][3] == "arithmetic"
    assert parts["convolution, backward"][4].endswith("GFLOP/s")
    assert sum(float(line[2].removesuffix(" %")) for line in lines[1:]) == pytest.approx(100, abs=1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "other"}, "not written by"),
        ({"format_version": 9}, "format_version = 9, must be 1"),
        ({"quick": True}, "was measured with --quick"),
        ({"rows": [{"name": "start-up", "machine": {"versions": {}}}]}, "a row is incomplete or wrong ('what')"),
        ({"rows": [{**ROW, "machine": None}]}, "a row is incomplete or wrong (machine None)"),
        ({"rows": [{**ROW, "ours": {"median": math.nan, "low": 1.0, "high": 1.0}}]}, "a row is incomplete or wrong"),
        ({"rows": [{**ROW, "target": "much"}]}, "a row is incomplete or wrong"),
        ({"rows": None}, "holds no rows"),
        ({"rows": []}, "holds no rows"),
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
        (["--into", "page.md"], "goes with --table FILE"),
        (["--table", "kept.json", "--quick"], "--table: measures no row, --quick would be ignored"),
        (["--table", "kept.json", "wire"], "--table: measures no row, wire would be ignored"),
        (["--profile", "--markdown"], "--profile: measures no row, --markdown would be ignored"),
        (["--profile", "wire"], "--profile wire: looks into a step alone"),
        (["--json", str(tmp_path)], f"must be a file; name one in it, --json {tmp_path / 'bench.json'}"),
        (["--json", f"{__file__}/rows.json"], "rows.json: cannot be written (File exists)"),
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
    lean = Row("y", "", "GiB", Spread.of([7.0]), None, None, 6.0, "at most")
    assert not lean.met
    told = Row("z", "", "s", one, one, one, None, "at most")
    assert told.met is None
    assert line_of(told).endswith("no target")
    assert markdown([Record.taken(told)]).splitlines()[2].endswith("| – | – |")


def test_an_update_is_as_small_on_the_wire_as_was_asked():
    """The paper's networks, through the real door: 202 MB of weights."""
    rows = {row.name: row for row in measure_wire(quick=True, repeats=1, on_step=lambda: None)}
    assert list(rows) == ["wire-float16", "wire-int8", "wire-subset"]
    assert all(row.met for row in rows.values())
    assert 100 < rows["wire-float16"].ours.median < 103
    assert 50 < rows["wire-int8"].ours.median < 52
    assert 0 < rows["wire-subset"].ours.median < 1
