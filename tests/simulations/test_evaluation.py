"""evaluation.json: what is written comes back, figures are what they say, other files are refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from simulations.protocols.evaluation import (
    ALL,
    NO_PAIR,
    SAME_SOURCE,
    Attack,
    Evaluation,
    Figure,
    Represented,
    known,
    read_evaluation,
)
from simulations.protocols.figures import represented
from simulations.protocols.text import attackers_table, reconstruction_table, table
from spact_models.errors import UserError
from spact_models.judge import Answer
from spact_models.metrics import bootstrap_interval


def figure(*per_seed):
    return Figure.of(per_seed, (min(per_seed) - 0.1, max(per_seed) + 0.1))


def evaluation():
    strong = Attack("top1", {"frame-convnet": figure(0.2, 0.4), "video-tiny": figure(0.5, 0.7)})
    several = Attack("cmap", {"frame-vit": figure(0.4)}, {"frame-vit": figure(0.3)})
    rebuilt = {"psnr_db": figure(21.5), "identity": None}
    return Evaluation(
        protocol="identity",
        seeds=(0, 1),
        budget={"steps": 300},
        action_network="tiny",
        data={"train_videos": 5, "test_videos": 3},
        chance={"action": 0.25, "identity": 0.125, "attributes": None, "attributes_f1": 0.39},
        representations={
            "raw": Represented(figure(0.9, 0.8), {"identity": strong, "attributes": several}, rebuilt),
            "anonymized": Represented(None, {"identity": strong}),
        },
        not_measured=("retrieval: needs two videos",),
        rounds=({"round": 3, "action": figure(0.5), "attacks": {"identity": strong}},),
        model={"kind": "motion"},
        created="2026-11-25T02:00:00+00:00",
        key="abc",
    )


def test_what_is_written_comes_back(tmp_path):
    made = evaluation()
    made.write(tmp_path / "e.json")
    assert read_evaluation(tmp_path / "e.json") == made
    data = json.loads((tmp_path / "e.json").read_text())
    assert (data["format"], data["format_version"]) == ("fedspact-evaluation", 1)
    raw = data["representations"]["raw"]
    action = {"mean": 0.85, "sd": 0.0707, "low": 0.7, "high": 1.0, "per_seed": [0.9, 0.8], "learned": None}
    assert raw["action"] == action
    assert raw["attacks"]["identity"]["strongest"] == "video-tiny"
    assert raw["attacks"]["attributes"].keys() == {"metric", "strongest", "attackers", "f1"}
    assert raw["reconstruction"]["identity"] is None
    assert data["representations"]["anonymized"]["reconstruction"] is None
    assert data["rounds"][0].keys() == {"round", "action", "attacks"}
    assert data["seeds"] == [0, 1]


def test_a_figure_is_the_mean_over_seeds_and_its_interval_that_of_the_videos():
    hits = np.random.default_rng(0).random((3, 40)) < 0.6
    made = Figure.of_hits(hits)
    assert made.mean == pytest.approx(hits.mean(), abs=1e-4)
    assert made.sd == pytest.approx(hits.mean(axis=1).std(ddof=1), abs=1e-4)
    assert (made.low, made.high) == pytest.approx(bootstrap_interval(hits), abs=1e-4)
    assert Figure.of_hits(hits[:1]).sd is None
    assert (known(float("nan")), known(0.123456)) == (None, 0.1235)


def test_what_a_network_had_learned_is_kept_and_a_file_without_it_is_read(tmp_path):
    hits = np.ones((2, 4))
    made = Figure.of_hits(hits, [0.95, 0.84])
    assert made.learned == pytest.approx(0.895)
    assert made.at_least
    assert not Figure.of_hits(hits, [0.95, 0.9]).at_least
    assert Figure.of_hits(hits, [None, None]).learned is None
    evaluation_with = replace(evaluation(), representations={"raw": Represented(made, {})})
    evaluation_with.write(tmp_path / "e.json")
    assert read_evaluation(tmp_path / "e.json").representations["raw"].action == made
    text = (tmp_path / "e.json").read_text().replace(',\n        "learned": 0.895', "")
    assert "learned" not in text.split('"raw"')[1].split("per_seed")[1].split("attacks")[0]
    (tmp_path / "e.json").write_text(text)
    older = read_evaluation(tmp_path / "e.json").representations["raw"].action
    assert (older.learned, older.at_least) == (None, False)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "not an evaluation that can be read"),
        ("[1]", "not an evaluation of fedspact"),
        ('{"format": "fedspact-run"}', "not an evaluation of fedspact"),
        ('{"format": "fedspact-evaluation", "format_version": 9}', "format_version = 9, this fedspact reads 1"),
        ('{"format": "fedspact-evaluation", "format_version": 1}', "damaged"),
    ],
)
def test_other_files_are_refused_in_one_sentence(tmp_path, content, told):
    (tmp_path / "e.json").write_text(content)
    with pytest.raises(UserError, match=told):
        read_evaluation(tmp_path / "e.json")
    with pytest.raises(UserError, match="No such file"):
        read_evaluation(tmp_path / "none.json")


def test_a_disk_that_refuses_the_file_is_said(tmp_path):
    (tmp_path / "e.json").mkdir()
    with pytest.raises(UserError, match=r"e\.json: cannot be written \(Is a directory\); free that disk, then go on"):
        evaluation().write(tmp_path / "e.json")


def test_tables_show_the_strongest_all_attackers_and_a_dash_for_nothing():
    made = evaluation()
    lines = table(made).splitlines()
    named = ["attributes", "cMAP", "↓", "attributes", "macro-F1", "↓"]
    assert lines[0].split() == ["action", "↑", "identity", "↓", *named]
    assert [line.split() for line in lines[2:]] == [
        ["raw", "0.850", "0.600", "0.400", "0.300"],
        ["anonymized", "–", "0.600", "–", "–"],
        ["chance", "0.250", "0.125", "–", "0.390"],
    ]
    assert "0.600 [0.400, 0.800]" in table(made, intervals=True)
    assert len({len(line) for line in lines}) == 1
    assert "≥" not in table(made) + attackers_table(made)
    unfinished = replace(figure(0.3, 0.5), learned=0.4)
    attack = Attack("top1", {"frame-convnet": unfinished, "video-tiny": figure(0.1)})
    told = replace(made, representations={"raw": Represented(unfinished, {"identity": attack})})
    assert table(told).splitlines()[2].split() == ["raw", "≥0.400", "≥0.400"]
    assert table(told).splitlines()[-1].startswith("≥ after its 300 steps the network did not know 90%")
    assert "≥0.400*" in attackers_table(told)
    listed = attackers_table(made)
    assert "attributes macro-F1" in listed
    assert "0.300" in listed
    assert "0.600*" in listed
    assert reconstruction_table(made).splitlines()[-1].split() == ["raw", "21.500", "–"]
    assert reconstruction_table(Evaluation(**{**vars(made), "representations": {}})) == ""


def test_a_figure_is_a_lower_bound_while_any_attacker_may_find_more():
    def attack(**shares):
        return Attack(
            "top1", {one: Figure(mean, None, mean, mean, (mean,), knew) for one, (mean, knew) in shares.items()}
        )

    trees, network, done = (0.3, None), (0.2, 0.4), (0.25, 0.95)
    assert attack(trees=trees, network=network).figure.at_least
    assert attack(trees=trees, network=network).figure.learned == 0.4
    assert not attack(trees=trees, network=done).figure.at_least
    assert not attack(trees=trees).figure.at_least
    assert not attack(trees=(0.99, None), network=network).figure.at_least  # nobody could find much more
    assert attack(trees=trees, network=network).attackers["trees"].learned is None


def test_who_names_restored_people_says_what_it_had_learned():
    """Of several attackers the least finished decides, as on the released videos."""

    def answer(hits, learned):
        return Answer(torch.zeros(2, 2), torch.zeros(2), torch.tensor(hits), 0.5, learned)

    def found(seed, **answers):
        return {("reconstruction", "", seed): {"psnr_db": np.array([10.0, 12.0]), "identity": answers, "pictures": ()}}

    both = found(0, strong=answer([1.0, 0.0], 0.95), weak=answer([0.0, 0.0], 0.4))
    both |= found(1, strong=answer([1.0, 0.0], 0.95), weak=answer([0.0, 0.0], 0.6))
    rebuilt = represented(both, (0, 1)).reconstruction
    assert (rebuilt["identity"].mean, rebuilt["identity"].learned) == (0.5, 0.5)
    assert (rebuilt["psnr_db"].mean, rebuilt["psnr_db"].learned) == (11.0, None)
    told = replace(evaluation(), representations={"raw": Represented(None, {}, rebuilt)})
    assert "≥0.500" in reconstruction_table(told)
    assert table(told).splitlines()[-1].startswith("≥ after its 300 steps")
    assert represented(found(0), (0,)).reconstruction["identity"] is None


def test_retrieval_that_had_no_two_videos_of_one_source_is_named_where_it_is_missing(tmp_path):
    asked = Attack("top1", {"frame-convnet": figure(0.5)})
    made = replace(evaluation(), representations={"raw": Represented(None, {ALL: asked})})
    assert made.lacking == (*made.not_measured, NO_PAIR)
    assert attackers_table(made).splitlines()[-1] == f"not measured: {NO_PAIR}"
    made.write(tmp_path / "e.json")
    again = read_evaluation(tmp_path / "e.json")
    assert again.not_measured == again.lacking == made.lacking
    both = replace(made, representations={"raw": Represented(None, {ALL: asked, SAME_SOURCE: asked})})
    assert both.lacking == both.not_measured
    assert evaluation().lacking == evaluation().not_measured  # nobody asked for retrieval
