"""The front door: help, mistakes and exit codes, and the run commands from a manifest of videos to their files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from client.video.rows import read_rows, write_rows
from fedspact import VERBS, main
from server.runs import RunFolder
from spact_models import __version__
from spact_models.checkpoint import load_checkpoint
from spact_models.errors import RunStopped
from spact_models.networks import load_anonymizer

ROOT = Path(__file__).parents[2]
REPRESENTATIONS = {"raw", "downsample4x", "difference1bit", "anonymized"}
PROMISED = {  # the list; keys may be added, not renamed
    "sites", "rounds", "seed", "preset", "device", "seconds", "peak_rss_mb", "bytes_up_per_round", "utility", "attack",
}  # fmt: skip
ADDED = {"kind", "attackers", "learned", "train_videos", "test_videos", "clip", "judge", "versions"}


def sets(fast):
    return [word for key, value in fast.items() for word in ("--set", f"{key}={value}")]


def figures(tree):
    """Every number in the utility and attack tables."""
    rows = [tree["utility"], *tree["attack"].values()]
    return [value for row in rows for value in row.values()]


@pytest.fixture(scope="module")
def run_of(squares, tmp_path_factory):
    """Run folders of ``simulate`` and ``centralize``, each made once."""
    made = {}

    def run(verb, fast):
        if verb not in made:
            out = tmp_path_factory.mktemp(verb) / "run"
            words = [verb, "--data", str(squares), "--out", str(out), "--seed", "3", *sets(fast)]
            assert main(words) == 0
            made[verb] = out
        return made[verb]

    return run


def test_help_lists_every_verb_and_version_is_the_packages(capsys):
    for words in (["--help"], ["-h"]):
        assert main(words) == 0
        out = capsys.readouterr().out
        assert all(f"  {verb} " in out for verb in VERBS)
    assert main([]) == 2
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.endswith(f"fedspact {__version__}\n")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert f"usage: fedspact {verb}" in out
    assert "--debug" in out


def test_an_unknown_verb_names_the_nearest(capsys):
    assert main(["simulte"]) == 2
    assert "'simulte' is not a command. Did you mean 'simulate'?" in capsys.readouterr().err
    assert main(["--verson"]) == 2
    assert "'--verson' is not an option. Did you mean '--version'?" in capsys.readouterr().err
    assert main(["foo"]) == 2
    assert capsys.readouterr().err == "fedspact: 'foo' is not a command. `fedspact --help` lists them all.\n"


def test_a_flag_that_is_not_there_is_a_users_mistake(squares, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["simulate", "--data", str(squares), "--nonsense"])
    assert stop.value.code == 2
    assert "--nonsense" in capsys.readouterr().err


def test_the_command_runs_as_a_process(tmp_path):
    """Exit status and streams as a shell sees them."""
    words = [sys.executable, str(ROOT / "fedspact.py"), "simulate", "--data", "nowhere.csv", "--out", "run"]
    ran = subprocess.run(
        words, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert ran.stderr.startswith("fedspact: ")
    assert "nowhere.csv: cannot be read (No such file or directory)" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert not (tmp_path / "run").exists()


def mistakes(squares, folder):
    data = ["simulate", "--data", str(squares), "--out", str(folder / "run")]
    return {
        "unknown key": ([*data, "--set", "game.omegga=1"], "game.omegga: no such setting", "'game.omega'"),
        "value": ([*data, "--set", "game.omega=-1"], "game.omega = -1.0, must be at least 0", ""),
        "assignment": ([*data, "--set", "omega"], "--set 'omega', must be KEY=VALUE", ""),
        "config": ([*data, "--config", str(folder / "no.toml")], "no.toml: No such file", "flower.toml"),
        "preset": ([*data, "--preset", "huge"], "preset = 'huge', must be one of: tiny, small, paper", ""),
        "device": ([*data, "--device", "cuda:99"], "device = 'cuda:99'", ""),
        "column": ([*data, "--partition-by", "shoes"], "partition_by = 'shoes', must be one of", "identity"),
        "sites": ([*data, "--sites", "13"], "simulation.sites = 13", "ask for fewer"),
        "run": (["evaluate", str(folder / "no-run"), "--data", str(squares)], "no-run: not a checkpoint", ""),
    }


@pytest.mark.parametrize("kind", list(mistakes(Path(), Path())))
def test_a_users_mistake_is_one_message_and_status_2(kind, squares, tmp_path, capsys, fast):
    words, *told = mistakes(squares, tmp_path)[kind]
    extra = sets(fast) if kind in ("column", "sites") else []
    assert main([*words, *extra]) == 2
    caught = capsys.readouterr()
    assert all(text in caught.err for text in told)
    assert "fedspact: " in caught.err
    assert "Traceback" not in caught.err + caught.out
    assert main([*words, *extra, "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("raised", "status", "told"),
    [
        (KeyboardInterrupt(), 130, "interrupted; what was written before is whole"),
        (RunStopped("3 void rounds"), 1, "fedspact: the run stopped: 3 void rounds"),
        (ZeroDivisionError("no"), 1, "ZeroDivisionError: no\nThis looks like a fault of ours; add --debug"),
    ],
)
def test_what_is_not_a_users_mistake_has_its_own_status(monkeypatch, capsys, raised, status, told):
    """The verb's own module raises, as it might in the middle of a run."""
    import client.video.cache

    def run(_args):
        raise raised

    monkeypatch.setattr(client.video.cache, "run", run)
    words = ["cache", "info", "--cache", "."]
    assert main(words) == status
    err = capsys.readouterr().err
    assert told in err
    assert "Traceback" not in err
    if status == 1:
        assert main([*words, "--debug"]) == 1
        assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["simulate", "centralize"])
def test_a_run_leaves_a_whole_folder(verb, run_of, fast):
    out = run_of(verb, fast)
    names = {path.name for path in out.iterdir()}
    assert names >= {
        "settings.json",
        "metrics.jsonl",
        "summary.json",
        "checkpoints",
        "anonymizer.safetensors",
        "tensorboard",
        "data.csv",
    }
    assert [path.name for path in sorted((out / "checkpoints").iterdir())] == [
        f"round-000{number}.safetensors" for number in (1, 2, 3)
    ]
    run = RunFolder.open(out)
    assert [line["phase"] for line in run.history() if line["kind"] == "train"] == ["warmup", "minimax", "minimax"]
    assert run.settings()["seed"] == 3
    anonymizer, settings, classes = load_anonymizer(out / "anonymizer.safetensors")
    assert (settings.seed, classes) == (3, ["jump", "walk"])
    assert anonymizer.config.size_px == 16
    assert not list(out.glob("**/*.tmp"))


@pytest.mark.parametrize("verb", ["simulate", "centralize"])
def test_the_summary_holds_what_is_promised(verb, run_of, fast):
    summary = json.loads((run_of(verb, fast) / "summary.json").read_text(encoding="utf-8"))
    assert summary.keys() == PROMISED | ADDED
    assert summary["utility"].keys() == {*REPRESENTATIONS, "chance"}
    assert summary["attack"]["identity"].keys() == {"chance", *REPRESENTATIONS}
    assert summary["attack"].keys() == {"identity", "retrieval_all", "retrieval_same_source"}
    assert all(value is None or 0 <= value <= 1 for value in figures(summary))
    assert all(value is not None for value in summary["utility"].values())
    assert summary["attack"]["identity"]["chance"] == 0.5  # 4 test videos of two colours
    assert summary["attack"]["retrieval_all"]["chance"] == 0.25
    assert summary["attack"]["retrieval_same_source"]["raw"] is None  # no two test videos of one camera
    listed = summary["attackers"]["identity"]["raw"]
    assert listed.keys() == {"frame-convnet", "video-tiny", "clip-trees"}
    assert summary["attack"]["identity"]["raw"] == round(max(listed.values()), 4)  # the strongest counts
    assert (summary["sites"], summary["rounds"], summary["seed"]) == ({"simulate": 3, "centralize": 1}[verb], 3, 3)
    assert (summary["preset"], summary["device"]) == ("tiny", "cpu")
    assert (summary["train_videos"], summary["test_videos"]) == (12, 4)
    assert 0 < summary["seconds"] < 600
    assert 50 < summary["peak_rss_mb"] < 64_000


def test_bytes_up_are_those_of_the_updates(run_of, fast):
    """Three sites, each all of f_A and f_T in float16, every round; some hundred bytes of envelope with each array."""
    tensors = load_checkpoint(RunFolder.open(run_of("simulate", fast)).checkpoint_path(1)).tensors
    told = [json.loads((run_of(verb, fast) / "summary.json").read_text()) for verb in ("simulate", "centralize")]
    least = 3 * sum(2 * value.numel() for value in tensors.values())
    assert least < told[0]["bytes_up_per_round"] < least + 3 * 1000 * (len(tensors) + 2)
    assert told[1]["bytes_up_per_round"] == 0


def test_the_table_on_the_terminal_is_the_summary(squares, tmp_path, fast, capsys):
    fast.update({"rounds.minimax": 1, "rounds.warmup": 0, "judge.steps": 2})
    words = ["centralize", "--data", str(squares), "--out", str(tmp_path / "run"), "--cache", str(tmp_path / "c")]
    assert main([*words, *sets(fast)]) == 0
    out = capsys.readouterr().out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    for name in REPRESENTATIONS:
        line = next(line for line in out.splitlines() if line.startswith(name))
        found, learned = summary["attackers"]["identity"][name], summary["learned"]
        strongest = max(found, key=found.get)
        assert found[strongest] == summary["attack"]["identity"][name]
        knew = [share for share in learned["identity"][name].values() if share is not None]  # the trees tell none
        least = min(knew) if found[strongest] < 0.98 else 1.0
        told = [(summary["utility"][name], learned["action"][name]), (found[strongest], least)]
        # after two steps nobody knows its own training clips, but by luck
        assert line.split()[1:3] == [f"{'≥' if knew < 0.9 else ''}{value:.3f}" for value, knew in told]
    assert str(tmp_path / "run") in out
    assert not (tmp_path / "run" / "cache").exists()  # --cache


def test_an_existing_run_is_never_overwritten(run_of, squares, fast, capsys):
    out = run_of("simulate", fast)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert main(["simulate", "--data", str(squares), "--out", str(out), *sets(fast)]) == 2
    assert "holds an existing run, which is never overwritten" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before


def test_unreadable_videos_are_named_and_too_many_stop_the_run(squares, tmp_path, fast, capsys):
    rows = read_rows(squares)
    bad = tmp_path / "broken.mp4"
    bad.write_text("no video")
    write_rows([*rows, *(type(rows[0])(path, "walk", split="train") for path in (bad,))], tmp_path / "m.csv")
    assert main(["centralize", "--data", str(tmp_path / "m.csv"), "--out", str(tmp_path / "run"), *sets(fast)]) == 2
    caught = capsys.readouterr()
    assert f"not used: {bad}" in caught.out
    assert "unreadable videos = 1 of 17 (5.9%), at most 5.0% are allowed" in caught.err


def evaluation(path):
    return json.loads(path.read_text(encoding="utf-8"))


FEW = ["--only", "raw,anonymized", "--seeds", "3,", "--attackers", "frame-convnet,video-tiny", "--device", "cpu"]


def test_evaluate_judges_a_run_on_its_own_rows(run_of, fast, tmp_path, capsys):
    """No --data: the rows of the run, decoded already; a checkpoint, the exported file and the run are one model."""
    out = run_of("simulate", fast)
    models = (out, out / "anonymizer.safetensors", out / "checkpoints" / "round-0003.safetensors")
    stories = []
    for number, model in enumerate(models):
        file = tmp_path / f"{number}.json"
        assert main(["evaluate", str(model), *FEW, "--out", str(file)]) == 0
        shown = capsys.readouterr().out
        assert "no --protocol given: identity, which these data can answer" in shown
        assert "12 training and 4 test videos" in shown
        stories.append(evaluation(file))
    assert stories[0]["representations"] == stories[1]["representations"] == stories[2]["representations"]
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    for name in ("raw", "anonymized"):  # the same judge, seed and videos as when the run ended
        one = stories[0]["representations"][name]
        assert one["action"]["mean"] == summary["utility"][name]
        attacked = one["attacks"]["identity"]["attackers"]
        told = summary["attackers"]["identity"][name]
        assert told.keys() - attacked.keys() == {"clip-trees"}  # not asked here
        assert all(figure["mean"] == told[attacker] for attacker, figure in attacked.items())
    assert stories[0]["data"]["manifest"] == str(out / "data.csv")
    assert stories[0]["model"].keys() == {"path", "sha256", "kind", "preset", "size_px", "frames"}
    assert not (out / "evaluation.json").exists()


def test_evaluate_goes_on_where_it_was_and_keeps_what_others_asked(run_of, fast, capsys):
    out = run_of("simulate", fast)
    file = out / "evaluation.json"
    words = ["evaluate", str(out), *FEW]
    assert main([*words, "--only", "raw"]) == 0
    first = evaluation(file)
    assert list(first["representations"]) == ["raw"]
    assert main([*words, "--rounds", "2,1"]) == 0
    second = evaluation(file)
    assert list(second["representations"]) == ["raw", "anonymized"]
    assert second["representations"]["raw"] == first["representations"]["raw"]
    assert [one["round"] for one in second["rounds"]] == [1, 2]
    assert second["rounds"][0]["attacks"]["identity"]["attackers"].keys() == {"frame-convnet"}
    assert main(words) == 0
    assert evaluation(file) == {**second, "seconds": evaluation(file)["seconds"]}  # nothing left to do
    capsys.readouterr()
    assert main([*words, "--set", "judge.steps=4", "--only", "raw"]) == 0
    assert "evaluation.json was made with other settings or data; kept as evaluation-" in capsys.readouterr().out
    assert evaluation(next(out.glob("evaluation-*.json"))) == {**second, "seconds": pytest.approx(second["seconds"], 1)}
    for path in out.glob("evaluation*.json"):
        path.unlink()


def test_rounds_are_curves_in_the_runs_tensorboard(run_of, fast, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = run_of("centralize", fast)
    file = tmp_path / "e.json"
    assert main(["evaluate", str(out), *FEW, "--only", "anonymized", "--rounds", "1,3", "--out", str(file)]) == 0
    curves = EventAccumulator(str(out / "tensorboard"))
    curves.Reload()
    drawn = {event.step: event.value for event in curves.Scalars("judged/anonymized/identity")}
    told = {one["round"]: one["attacks"]["identity"]["attackers"]["frame-convnet"]["mean"]
            for one in evaluation(file)["rounds"]}  # fmt: skip
    assert drawn == pytest.approx(told)
    drawn = {
        name for name in curves.Tags()["scalars"] if name.startswith("judged/")
    }  # as the charts' layout wants them
    assert {"judged/anonymized/action", "judged/chance/action", "judged/chance/identity"} <= drawn
    trained = {name: curves.Scalars(name) for name in curves.Tags()["scalars"] if name not in drawn}

    def steps(*more):
        words = ["evaluate", str(out), *FEW, "--only", "anonymized", "--out", str(file), *more]
        assert main(words) == 0
        again = EventAccumulator(str(out / "tensorboard")).Reload()
        assert {name: again.Scalars(name) for name in trained} == trained
        return [event.step for event in again.Scalars("judged/anonymized/identity")]

    assert steps("--rounds", "1,3") == [1, 3]  # once each, however often they are asked for
    assert steps("--rounds", "2,3") == [1, 2, 3]
    assert steps("--rounds", "2,3", "--force") == [2, 3]


def test_evaluate_quick_is_three_rows_and_one_seed(run_of, fast, tmp_path):
    out = run_of("simulate", fast)
    file = tmp_path / "q.json"
    assert main(["evaluate", str(out), "--quick", "--device", "cpu", "--out", str(file)]) == 0
    told = evaluation(file)
    assert list(told["representations"]) == ["raw", "downsample4x", "anonymized"]
    assert len(told["seeds"]) == 1
    attacks = told["representations"]["raw"]["attacks"]
    assert attacks["identity"]["attackers"].keys() == {"frame-convnet", "video-tiny", "clip-trees"}
    assert attacks.keys() == {"identity"}  # who can be named is not looked for among videos as well
    assert main(["evaluate", str(out), "--quick", "--protocol", "retrieval", "--out", str(tmp_path / "r.json")]) == 0
    attacks = evaluation(tmp_path / "r.json")["representations"]["raw"]["attacks"]
    assert attacks["retrieval_all"]["attackers"].keys() == {"frame-convnet"}


def test_evaluate_draws_what_was_restored(run_of, fast, tmp_path, capsys):
    out = run_of("simulate", fast)
    words = [*FEW, "--only", "anonymized", "--inversion", "--out", str(tmp_path / "e.json")]
    assert main(["evaluate", str(out), *words]) == 0
    picture = tmp_path / "reconstruction" / "anonymized.png"
    assert Image.open(picture).size > (100, 100)
    assert f"{picture} (shows raw frames)" in capsys.readouterr().out


def test_evaluate_asks_what_it_is_asked_for(run_of, squares, fast, tmp_path):
    out = run_of("simulate", fast)
    words = ["evaluate", str(out), "--data", str(squares), "--cache", str(tmp_path / "c"), *FEW, "--only", "raw"]
    file = tmp_path / "o.json"
    assert main([*words, "--task", "light, identity", "--out", str(file)]) == 0
    told = evaluation(file)["representations"]["raw"]["attacks"]
    assert {"light", "identity"} <= told.keys()
    assert main([*words, "--protocol", "attributes", "--out", str(tmp_path / "a.json")]) == 0
    told = evaluation(tmp_path / "a.json")
    assert told["data"]["attributes"] == ["light=bright", "light=dim"]
    assert told["representations"]["raw"]["attacks"].keys() == {"attributes"}


def test_evaluate_says_what_is_missing(run_of, squares, fast, tmp_path, capsys):
    out = run_of("simulate", fast)
    rows = [
        type(row)(row.path, row.action, split=row.split, attributes={"hat": row.split, "coat": "same"})
        for row in read_rows(squares)
    ]
    write_rows(rows, tmp_path / "m.csv")
    data = ["--data", str(tmp_path / "m.csv"), "--cache", str(tmp_path / "c")]
    for words, told in (
        (
            [*data, "--protocol", "identity"],
            "no label identity on training and test rows (the manifest has: coat, hat)",
        ),
        ([*data, "--protocol", "identity", "--task", "hat"], "hat has one value in training"),
        ([*data, "--protocol", "identity"], "--protocol retrieval would work"),
        ([*data, "--protocol", "novel"], "that is known"),
        ([*data, "--protocol", "guess"], "no such protocol"),
        (["--only", "blurry"], "representation = 'blurry'"),
        (["--attackers", "nobody"], 'attacker = "nobody", must be one of'),
        (["--seeds", "x"], "--seeds x: must be whole numbers"),
        (["--seeds", "0"], "--seeds 0: must be at least 1"),
        (["--rounds", "9"], "--rounds 9"),
        (["--set", "game.omega=2"], "evaluate changes judge.* only"),
        (["--crops"], "the manifest has no column boxes"),
    ):
        assert main(["evaluate", str(out), *words]) == 2
        err = capsys.readouterr().err
        assert told in err
        assert "Traceback" not in err


def refused(capsys, *words):
    """What ``evaluate`` says before anything is judged."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("simulations.protocols.suite.judge_suite", lambda *_, **__: pytest.fail("judged"))
        assert main(["evaluate", *map(str, words)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("fedspact: ")
    assert err.count("\n") == 1
    return err


def test_evaluate_refuses_a_place_for_its_file_before_anything_is_judged(run_of, fast, tmp_path, capsys):
    out = run_of("simulate", fast)
    for place, told in (
        (tmp_path, f"{tmp_path}: a folder, must be a file"),
        (Path(__file__) / "e.json", "cannot be written (File exists)"),
        ("/proc/x.json", "/proc/x.json: cannot be written"),
        (tmp_path / ("x" * 300), "cannot be written (File name too long)"),
        (os.devnull, "must be an ordinary file"),
    ):
        for more in ((), ("--force",)):
            assert told in refused(capsys, out, *FEW, "--out", place, *more)
    assert not list(tmp_path.iterdir())


def test_evaluate_drops_no_column_that_it_was_asked_for(run_of, squares, fast, tmp_path, capsys):
    out = run_of("simulate", fast)
    for more in ((), ("--protocol", "identity"), ("--protocol", "retrieval")):
        told = refused(capsys, out, *FEW, "--task", "identity,nope", *more)
        assert "--task nope: no such column, or an empty one; these data have: identity, light, source, site" in told
        assert "without --task, --protocol known or identity or attributes or retrieval would work" in told
    rows = read_rows(squares)
    same = [type(row)(row.path, row.action, split=row.split, attributes={"hat": "same"}) for row in rows]
    write_rows(same, tmp_path / "same.csv")
    told = refused(capsys, out, *FEW, "--data", tmp_path / "same.csv", "--task", "hat")
    assert "hat has one value in training" in told
    assert "--protocol retrieval would work" in told


def test_evaluate_refuses_what_would_attack_nothing(run_of, fast, capsys):
    out = run_of("simulate", fast)
    for more in ((), ("--protocol", "identity")):
        told = refused(capsys, out, "--only", "raw", "--task", "action", *more)
        assert "--task action: the action is what the anonymizer is to keep" in told
        assert "these data allow: identity, light, source, site" in told
    for more in ((), ("--quick",)):
        told = refused(capsys, out, "--protocol", "retrieval", "--attackers", "clip-trees", *more)
        assert "--attackers clip-trees: none of them can match videos" in told
        assert "name a network: frame-convnet" in told


def test_evaluate_says_which_side_has_no_rows_and_what_to_do(run_of, squares, fast, tmp_path, capsys):
    out = run_of("simulate", fast)
    rows = read_rows(squares)
    for name in ("empty", "train", "test"):
        write_rows([row for row in rows if row.split == name], tmp_path / f"{name}.csv")
    assert "empty.csv: holds no rows, only column names" in refused(capsys, out, "--data", tmp_path / "empty.csv")
    for held, words in {"train": "no test rows (split = test)", "test": "no training rows (split = train)"}.items():
        for flag in (("--data",), ("--protocol", "attributes", "--attributes")):
            told = refused(capsys, out, *flag, tmp_path / f"{held}.csv")
            assert f"{held}.csv: {words}, and every protocol needs training rows and test rows" in told
            assert "leave the column split empty to have whole sources held out" in told


def test_evaluate_names_every_class_with_a_single_clip(run_of, squares, fast, tmp_path, capsys):
    out = run_of("simulate", fast)
    rows = read_rows(squares)
    alone = [
        type(row)(tmp_path / f"{n}.mp4", f"act-{n}", split="train", attributes={"identity": f"p{n}", "light": "dim"})
        for n, row in enumerate(rows[:7])
    ]
    write_rows([*rows, *alone], tmp_path / "m.csv")
    told = refused(capsys, out, "--data", tmp_path / "m.csv", "--protocol", "identity")
    words = "have one clip each, need one in training and one in test: add one to each or take them out"
    assert f"--protocol identity: identity = 'p0', 'p1', 'p2', 'p3', 'p4' and 2 more {words}; --protocol attr" in told
    told = refused(capsys, out, "--data", tmp_path / "m.csv", "--protocol", "novel")
    assert f"--protocol novel: action = 'act-0', 'act-1', 'act-2', 'act-3', 'act-4' and 2 more {words}" in told


def test_evaluate_says_that_nothing_is_kept_of_a_lone_file(run_of, fast, tmp_path, capsys):
    out = run_of("simulate", fast)
    words = ["evaluate", str(out / "anonymizer.safetensors"), *FEW, "--only", "raw", "--seeds", "3,"]
    before = set(out.rglob("*"))
    assert main(words) == 0
    assert "nothing is kept without --out FILE" in capsys.readouterr().err
    assert set(out.rglob("*")) == before
    assert main([*words, "--out", str(tmp_path / "e.json")]) == 0
    assert "nothing is kept" not in capsys.readouterr().err


def test_evaluate_refuses_what_is_no_model_of_ours(run_of, fast, tmp_path, capsys):
    import safetensors.torch
    import torch

    from spact_models.checkpoint import FORMAT, FORMAT_VERSION

    newer = {"format": FORMAT, "format_version": FORMAT_VERSION + 1, "settings": {}, "classes": []}
    path = tmp_path / "newer.safetensors"
    safetensors.torch.save_file({"x": torch.zeros(1)}, path, metadata={"fedspact": json.dumps(newer)})
    assert main(["evaluate", str(path), "--data", "m.csv"]) == 2
    assert (
        f"format {FORMAT_VERSION + 1}, this fedspact reads {FORMAT_VERSION}; upgrade fedspact"
        in capsys.readouterr().err
    )
    assert main(["evaluate", str(tmp_path)]) == 2
    assert "not a run folder" in capsys.readouterr().err
    lone = tmp_path / "alone.safetensors"
    lone.write_bytes((run_of("simulate", fast) / "anonymizer.safetensors").read_bytes())
    assert main(["evaluate", str(lone)]) == 2
    assert "say with --data what to judge on" in capsys.readouterr().err
    assert main(["evaluate", str(lone), "--data", "m.csv", "--rounds", "1"]) == 2
    assert "lies in no run folder" in capsys.readouterr().err


def test_images_serve_as_views_of_a_frame_anonymizer(squares, tmp_path, fast):
    """The published protocol's shape: clips from videos, views from pictures, two crops of each."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(6):
        Image.new("RGB", (24, 20), (40 * number, 200 - 30 * number, 90)).save(folder / f"{number}.png")
    (folder / "views.csv").write_text("path\n" + "".join(f"{number}.png\n" for number in range(6)))
    chosen = {**fast, "networks.anonymizer": "frame", "views.source": "image", "simulation.sites": 2}
    words = [word for key, value in chosen.items() for word in ("--set", f"{key}={value}")]
    run = ["simulate", "--data", str(squares), "--views", str(folder / "views.csv"), "--out", str(tmp_path / "run")]
    assert main([*run, "--no-judge", *words]) == 0
    site = tmp_path / "run" / "sites" / "site-1"
    assert "views_manifest: views.csv" in (site / "site.yaml").read_text()
    assert len((site / "views.csv").read_text().splitlines()) == 1 + 3
    assert (tmp_path / "run" / "anonymizer.safetensors").exists()
