"""The list of runs: every run and comparison once, sorted, at the terminal's width."""

import json

import pytest

import fedspact
from simulations.runs_list import find_runs, ordered, table


@pytest.fixture(autouse=True)
def runs_is_a_verb(monkeypatch):
    monkeypatch.setitem(fedspact.VERBS, "runs", ("simulations.runs_list", "a list"))


@pytest.fixture
def folder(made_up_run, made_up_comparison, judgement, fast, tmp_path):
    runs = tmp_path / "runs"
    runs.mkdir()
    better = {"raw": (0.96, 1.0), "anonymized": (0.9, 0.1)}
    made_up_run(runs / "judged", fast, evaluation=judgement(), summary={"kind": "federated", "seconds": 61.5})
    made_up_run(runs / "better", fast, evaluation=judgement(better), summary={"kind": "federated", "seconds": 10.0})
    made_up_run(runs / "young", fast, rounds=0)
    made_up_run(runs / "a-run-with-a-rather-long-name-that-says-what-it-was-made-for", fast, rounds=2)
    made_up_comparison(runs / "versus")
    (runs / "half" / "cells").mkdir(parents=True)
    (runs / "cache").mkdir()  # no run
    (runs / "notes.txt").write_text("x")
    return runs


def test_everything_is_listed_with_its_key_figures(folder):
    found, trouble = find_runs(folder)
    assert trouble == []
    by_name = {one.name: one for one in found}
    assert len(found) == len(by_name) == 6
    judged = by_name["judged"]
    assert (judged.kind, judged.state, judged.rounds_done, judged.rounds_planned) == ("federated", "complete", 3, 3)
    assert (judged.action, judged.leakage, judged.task, judged.chance) == (0.94, 0.12, "identity", 0.25)
    assert (judged.raw_action, judged.raw_leakage, judged.seconds) == (0.96, 1.0, 61.5)
    assert (by_name["young"].state, by_name["young"].rounds_done, by_name["young"].action) == ("unfinished", 0, None)
    versus = by_name["versus"]
    assert (versus.kind, versus.action, versus.leakage, versus.chance) == ("comparison", 0.89, 0.21, 0.08)
    assert by_name["half"].state == "unfinished"
    assert [one.name for one in find_runs(folder / "judged")[0]] == ["judged"]  # the folder itself


def test_sorted_by_what_is_asked_and_unknown_last(folder):
    found, _ = find_runs(folder)
    assert [one.name for one in ordered(found, "leakage")][:3] == ["better", "judged", "versus"]
    assert [one.name for one in ordered(found, "action")][:3] == ["judged", "better", "versus"]
    assert [one.name for one in ordered(found, "seconds")][:2] == ["judged", "better"]
    assert [one.name for one in ordered(found, "name")] == sorted(one.name for one in found)
    assert [one.name for one in ordered(found, "rounds")][-1] in ("versus", "half")
    whens = [one.when for one in ordered(found, "when")]
    assert whens == sorted(whens, reverse=True)
    assert all(len(ordered(found, key)) == len(found) for key in ("when", "action", "leakage", "seconds", "rounds"))


@pytest.mark.parametrize("width", [210, 120, 100, 80, 60, 40])
def test_the_table_fits_the_terminal_and_keeps_what_matters(folder, width):
    found, _ = find_runs(folder)
    lines = table(found, width).splitlines()
    assert len(lines) == 2 + len(found)
    assert max(map(len, lines)) <= width
    assert all(head in lines[0] for head in ("run", "action", "leakage"))
    judged = next(line for line in lines if line.startswith("judged"))
    assert "0.940" in judged
    assert "0.120" in judged
    assert ("preset" in lines[0]) == (width == 210)
    assert ("…" in "".join(lines)) == (width < 210)
    assert ("chance" in lines[0]) == (width > 60)


def test_the_command(folder, capsys, monkeypatch):
    (folder / "broken" / "x").mkdir(parents=True)
    (folder / "broken" / "settings.json").write_text("{}")
    assert fedspact.main(["runs", str(folder), "--json", "--sort", "name"]) == 0
    caught = capsys.readouterr()
    told = json.loads(caught.out)
    assert [one["name"] for one in told] == sorted(one["name"] for one in told)
    assert next(one for one in told if one["name"] == "judged")["leakage"] == 0.12
    assert "left out: " in caught.err
    assert "broken: not a run folder" in caught.err
    monkeypatch.chdir(folder.parent)
    assert fedspact.main(["runs"]) == 0  # runs/ is the default
    assert "judged" in capsys.readouterr().out


def test_nothing_to_list(tmp_path, capsys):
    assert fedspact.main(["runs", str(tmp_path)]) == 0
    assert "no runs in" in capsys.readouterr().out
    assert fedspact.main(["runs", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert fedspact.main(["runs", str(tmp_path / "no")]) == 2
    assert "no such folder" in capsys.readouterr().err
