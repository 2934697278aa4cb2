"""What a model card says of how the file was judged and trained, from real run folders through ``fedspact export``."""

import dataclasses
import hashlib
import json

import pytest

from fedspact import main
from server.provenance import anonymizer_file
from server.runs import RunFolder
from server.watch_view import look, size
from simulations.report.collect import open_run
from simulations.report.run_tables import cost_table
from spact_models.checkpoint import load_checkpoint, save_checkpoint
from spact_models.signing import card_path

SUMMARY = {
    "seed": 3, "seconds": 9.0, "train_videos": 372, "test_videos": 108,
    "utility": {"raw": 0.972, "anonymized": 0.824, "difference1bit": None, "chance": 0.148},
    "attack": {
        "identity": {"raw": 1.0, "anonymized": 0.241, "chance": 0.083},
        "retrieval_all": {"raw": None, "anonymized": None, "chance": None},
    },
    "attackers": {"identity": {"raw": {"frame": 1.0}, "anonymized": {"frame": 0.2, "video": 0.241}}},
    "learned": {
        "action": {"raw": 0.98, "anonymized": 0.8},
        "identity": {"raw": {"frame": 1.0}, "anonymized": {"frame": 0.25, "video": 0.95}},
    },
}  # fmt: skip


def card(source, out):
    """The card of an export, as JSON and as Markdown."""
    assert main(["export", str(source), "-o", str(out), "--format", "safetensors", "--force"]) == 0
    return json.loads(card_path(out).read_text()), card_path(out).with_suffix(".md").read_text()


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_short_judgement_of_a_runs_end_stands_on_the_card_and_is_called_so(made_up_run, fast, tmp_path):
    run = made_up_run(tmp_path / "run", {**fast, "judge.steps": 7}, summary=SUMMARY, data=False)
    told, text = card(run, tmp_path / "a.safetensors")
    found = told["evidence"]
    assert told["not_judged"] is None
    assert found["judgement"].startswith("the short one at the run's end: one seed, no intervals")
    assert (found["seeds"], found["budget"]["steps"], found["test_videos"]) == ([3], 7, 108)
    assert list(found["questions"]) == ["action (utility)", "identity"]
    assert found["questions"]["identity"] == {
        "anonymized": 0.241, "at_least": True, "low": None, "high": None, "raw": 1.0, "raw_at_least": False,
        "chance": 0.083, "strongest": "video",
    }  # fmt: skip
    assert "Judgement: the short one" in text
    assert "| action (utility) | 0.972 | ≥ 0.824 | – | 0.148 | a fresh f_T |" in text
    assert "| identity | 1.000 | ≥ 0.241 | – | 0.083 | video |" in text  # a weaker one had not learned
    assert "≥: a network still did not know" in text
    assert "- budget: steps 7, " in text
    assert card(run / "checkpoints" / "round-0003.safetensors", tmp_path / "a.safetensors")[0]["evidence"] == found


@pytest.mark.parametrize(
    "summary",
    [
        None,
        {"seconds": 1.0},  # of a server, which judges nothing
        {"utility": {"anonymized": None}, "attack": {"identity": {"anonymized": None}}},  # --no-judge
    ],
)
def test_a_run_whose_end_judged_nothing_is_not_called_judged(summary, made_up_run, fast, tmp_path):
    told, text = card(made_up_run(tmp_path / "run", fast, summary=summary, data=False), tmp_path / "a.safetensors")
    assert told["evidence"] is None
    assert "Not judged: no evaluation.json beside it; fedspact evaluate makes one." in text


def test_the_judgement_of_the_end_is_not_that_of_an_earlier_round(made_up_run, fast, tmp_path):
    run = made_up_run(tmp_path / "run", fast, summary=SUMMARY, data=False)
    earlier = run / "checkpoints" / "round-0002.safetensors"
    kept = load_checkpoint(earlier)
    save_checkpoint(earlier, {name: value * 0.5 for name, value in kept.tensors.items()}, kept.header)
    told, text = card(earlier, tmp_path / "a.safetensors")
    assert told["evidence"] is None
    assert "Not judged: no evaluation.json beside it" in text


def test_an_older_summary_without_attackers_and_learned_is_told_as_far_as_it_goes(made_up_run, fast, tmp_path):
    older = {key: value for key, value in SUMMARY.items() if key not in ("attackers", "learned", "seed")}
    _, text = card(made_up_run(tmp_path / "run", fast, summary=older, data=False), tmp_path / "a.safetensors")
    assert "| action (utility) | 0.972 | 0.824 | – | 0.148 | a fresh f_T |" in text
    assert "| identity | 1.000 | 0.241 | – | 0.083 | not told |" in text
    assert "≥" not in text


def test_of_several_judgements_the_card_takes_the_one_that_the_report_takes(made_up_run, judgement, fast, tmp_path):
    run = made_up_run(tmp_path / "run", fast, summary=SUMMARY, data=False)
    model = anonymizer_file(RunFolder.open(run))
    ours, other = {"path": "a", "sha256": sha256(model)}, {"path": "b", "sha256": "0" * 64}
    made = {
        "evaluation.json": judgement({"raw": (0.9, 0.9), "anonymized": (0.7, 0.3)}, model=other),
        "evaluation-1.json": judgement({"raw": (0.9, 0.9), "anonymized": (0.8, 0.2)}, model=ours),
        "evaluation-2.json": judgement({"raw": (0.9, 0.9)}, model=ours, created="2026-11-28T02:00:00+00:00"),
    }
    for name, one in made.items():
        one.write(run / name)
    (run / "evaluation-3.json").write_text("{")
    told, text = card(run, tmp_path / "a.safetensors")
    assert (told["evidence"]["judgement"], told["evidence"]["protocol"]) == ("by fedspact evaluate", "identity")
    assert told["evidence"]["questions"]["action (utility)"]["anonymized"] == 0.8
    assert "Judgement: by fedspact evaluate." in text
    assert open_run(run).judged.source == "evaluation-1.json"
    dataclasses.replace(made["evaluation-1.json"], created="2026-11-27T02:00:00+00:00", seeds=(5,)).write(
        run / "evaluation-4.json"
    )
    assert card(run, tmp_path / "a.safetensors")[0]["evidence"]["seeds"] == [5]  # the newer one
    assert open_run(run).judged.source == "evaluation-4.json"
    for name in ("evaluation-1.json", "evaluation-4.json"):
        (run / name).unlink()
    assert card(run, tmp_path / "a.safetensors")[0]["evidence"]["judgement"].startswith("the short one")
    (run / "summary.json").unlink()
    assert "Not judged: evaluation-3.json cannot be read" in card(run, tmp_path / "a.safetensors")[1]
    (run / "evaluation-3.json").unlink()
    assert "Not judged: evaluation-2.json holds baselines alone" in card(run, tmp_path / "a.safetensors")[1]
    (run / "evaluation-2.json").unlink()
    assert "Not judged: evaluation.json is about another file" in card(run, tmp_path / "a.safetensors")[1]


def test_an_evaluation_of_networks_that_had_not_learned_says_at_least(made_up_run, judgement, fast, tmp_path):
    made = judgement({"raw": (0.9, 0.9), "anonymized": (0.8, 0.3)})
    raw = made.representations["raw"]
    hurried = dataclasses.replace(raw, action=dataclasses.replace(raw.action, learned=0.4))
    run = made_up_run(tmp_path / "run", fast, data=False)
    about = {"path": "a", "sha256": sha256(anonymizer_file(RunFolder.open(run)))}
    rows = {**made.representations, "raw": hurried}
    dataclasses.replace(made, representations=rows, model=about, not_measured=()).write(run / "evaluation.json")
    _, text = card(run, tmp_path / "a.safetensors")
    assert "| action (utility) | ≥ 0.900 | 0.800 | 0.770 – 0.830 |" in text
    assert "| identity | 0.900 | 0.300 | 0.270 – 0.330 |" in text
    assert "unknown" not in text.partition("## What was found")[2].partition("## Release")[0]


def test_card_watch_and_report_count_the_same_bytes(made_up_run, fast, tmp_path):
    """Evaluation rounds send the networks down too."""
    run = made_up_run(tmp_path / "run", fast, data=False)
    training = card(run, tmp_path / "a.safetensors")[0]["training"]
    view = look(run)
    assert (training["bytes_up"], training["bytes_down"]) == (view.total("bytes_up"), view.total("bytes_down"))
    assert training["bytes_down"] > sum(line["bytes_down"] for line in view.trained)
    (total,) = [line for line in cost_table([open_run(run)]).lines if line.head.text.startswith("sent up and down")]
    counted = size(training["bytes_up"] + training["bytes_down"])
    assert total.cells[0].text.replace("\u202f", " ").split(" ")[0][:3] == counted[:3]
