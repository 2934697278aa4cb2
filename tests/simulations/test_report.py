"""The report: what its sentences, tables and charts say of a run, what it leaves out, and what it refuses."""

import dataclasses
import hashlib
import json
import re
import resource
from pathlib import Path

import plotly.graph_objects as go
import pytest

import fedspact
from simulations.audit.findings import Audit, Finding
from simulations.protocols import evaluation as written
from simulations.protocols.evaluation import NO_PAIR, read_evaluation
from simulations.report.alike import mixed
from simulations.report.arm_tables import comparison_facts
from simulations.report.arm_words import comparison_headline, comparison_sentences
from simulations.report.arms import arm_chart, arm_table, paired_charts, paired_table
from simulations.report.collect import ComparisonStory, collect, open_comparison, open_run
from simulations.report.curves import game_charts, judged_rounds_chart
from simulations.report.judged import Attack, Figure, Judged, Seen
from simulations.report.lacking import not_measured
from simulations.report.page import checked_out, render, write_page
from simulations.report.run_tables import cost_table, facts_table, overview_table, settings_table, site_table
from simulations.report.tables import attack_table, reconstruction_table, representation_table
from simulations.report.tradeoff import arm_scatter, scatter
from simulations.report.wire_tables import audit_table, promise_table
from simulations.report.words import (
    also_judged,
    byte_size,
    duration,
    headline,
    moment,
    points,
    verdicts,
)
from simulations.runs_list import find_runs
from spact_models.errors import UserError

TABLE = {"raw": (0.96, 1.0), "downsample4x": (0.7, 0.98), "difference1bit": (0.92, 0.4), "anonymized": (0.94, 0.12)}
SUMMARY = {
    "kind": "federated", "sites": 3, "rounds": 3, "seed": 0, "preset": "tiny", "device": "cpu", "seconds": 623.4,
    "peak_rss_mb": 1400.0, "bytes_up_per_round": 3_940_000, "train_videos": 372, "test_videos": 108,
    "utility": {"raw": 0.972, "difference1bit": 0.926, "downsample4x": None, "anonymized": 0.917, "chance": 0.148},
    "attack": {
        "identity": {"raw": 1.0, "difference1bit": 0.37, "anonymized": 0.417, "chance": 0.083},
        "retrieval_all": {"raw": None, "anonymized": None, "chance": None},
    },
    "attackers": {"identity": {"raw": {"frame": 1.0, "video": 0.9}, "anonymized": {"frame": 0.417, "video": 0.3}}},
    "judge": {"action": "tiny"}, "versions": {"torch": "2.15"},
}  # fmt: skip


@pytest.fixture(autouse=True)
def report_is_a_verb(monkeypatch):
    monkeypatch.setitem(fedspact.VERBS, "report", ("simulations.report", "one page"))


def plain(text: str) -> str:
    """Without the narrow spaces before units and the unbroken ones."""
    return text.replace("\u202f", " ").replace("\u00a0", " ")


def judged(table, task="identity", chance=0.08, metric="top1", **figure):
    """Two attackers of which the first is the stronger; keywords are figures' intervals."""
    seen = {}
    for name, (action, leakage) in table.items():
        attack = Attack(metric, {"a": Figure(leakage, **figure), "b": Figure(leakage / 2)})
        seen[name] = Seen(Figure(action, **figure), {task: attack})
    return Judged("evaluation.json", seen, {"action": 0.15, task: chance}, seeds=(0, 1, 2))


def texts(table):
    """A table as its readers see it: {row head: [cells]}, notes apart."""
    return {plain(line.head.text): [plain(cell.text) for cell in line.cells] for line in table.lines}


# ---- sentences


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (
            judged({"raw": (0.96, 1.0), "greyscale": (0.9, 0.9), "anonymized": (0.95, 0.12)}),
            [
                "Keeps 99 % of the action; the strongest of 2 fresh attackers names the person in 12 % of held-out "
                "videos (chance 8 %).",
                "The target, 97 % of raw's action with identity at most 5 points above chance, is met.",
                "Ahead of the one baseline on both counts.",
            ],
        ),
        (
            judged({"raw": (0.96, 1.0), "difference1bit": (0.93, 0.37), "bdq": (0.5, 0.1), "anonymized": (0.91, 0.42)}),
            [
                "Keeps 95 % of the action; the strongest of 2 fresh attackers names the person in 42 % of held-out "
                "videos (chance 8 %).",
                "The target, 97 % of raw's action with identity at most 5 points above chance, is missed: the action "
                "is 2.1 points short and identity is 29.0 points over it.",
                "Not ahead of every baseline: one-bit difference (93.0 % action, 37.0 % identity) does at least as "
                "well on both.",
            ],
        ),
        (
            judged({"raw": (0.96, 1.0), "greyscale": (0.9, 0.9), "bdq": (0.94, 0.3), "anonymized": (0.93, 0.1301)}),
            [
                "Keeps 97 % of the action; the strongest of 2 fresh attackers names the person in 13 % of held-out "
                "videos (chance 8 %).",
                "The target, 97 % of raw's action with identity at most 5 points above chance, is missed: the action "
                "is 0.1 points short and identity is less than 0.1 points over it.",
                "No baseline does better on both counts; it is itself ahead of 1 of 2 on both, and against the others "
                "one has to choose.",
            ],
        ),
        (  # raw action no better than a constant answer: no share of it is told
            judged({"raw": (0.1, 0.9), "anonymized": (0.79, 0.09)}, "retrieval_all", 0.08),
            [
                "A fresh network names the action in 79 % of held-out videos (raw video: 10 %); the strongest of 2 "
                "fresh attackers finds a video again among all others in 9.0 % of tries (chance 8.0 %).",
                "This judgement proves nothing yet: on raw video the fresh action network does hardly better than "
                "chance. Give the fresh networks more steps or more training videos.",
            ],
        ),
        (
            judged({"anonymized": (0.79, 0.5)}, "attributes", 0.4, "cmap"),
            [
                "A fresh network names the action in 79 % of held-out videos (raw video was not judged); the strongest "
                "of 2 fresh attackers reaches a class-mean precision of 50 % on private attributes (chance 40 %).",
            ],
        ),
        (  # an attacker that finds nobody on raw video says nothing about the anonymizer
            judged({"raw": (0.96, 0.1), "anonymized": (0.95, 0.08)}),
            [
                "Keeps 99 % of the action; the strongest of 2 fresh attackers names the person in 8.0 % of held-out "
                "videos (chance 8.0 %).",
                "This judgement proves nothing yet: on raw video the strongest attacker does hardly better than "
                "chance. Give the fresh networks more steps or more training videos.",
            ],
        ),
        (  # reached against attackers that had not learned yet: no success
            judged({"raw": (0.96, 1.0), "anonymized": (0.94, 0.12)}, learned=0.3),
            [
                "A fresh network names the action in at least 94 % of held-out videos (raw video: at least 96 %, by a "
                "network that had not learned its own training clips); the strongest of 2 fresh attackers names the "
                "person in at least 12 % of held-out videos (chance 8 %).",
                "The target, 97 % of raw's action with identity at most 5 points above chance, is not shown to be met: "
                "the action network was right in only 30 % of its own training clips when its steps ended. Give it "
                "more.",
            ],
        ),
        (
            None,
            ["Not judged yet: the game stands after round 3 of 3, and no fresh network has looked at its pictures."],
        ),
    ],
)
def test_the_first_sentences_say_what_is_kept_and_what_is_missed(found, told, made_up_run, fast, tmp_path):
    run = dataclasses.replace(open_run(made_up_run(tmp_path / "run", fast)), judged=found)
    assert [plain(sentence.text) for sentence in [headline(run), *verdicts(run)]] == told


def hurried(raw, anonymized, leakage):
    """Action 0.9 on raw video by a network that had learned ``raw``; ``leakage``: the attacker's share, and learned."""
    attacks = [{"identity": Attack("top1", {"a": Figure(share, learned=knew)})} for share, knew in ((1, 1), leakage)]
    return Judged(
        "evaluation.json",
        {"raw": Seen(Figure(0.9, learned=raw), attacks[0]), "anonymized": Seen(Figure(*anonymized), attacks[1])},
        {"action": 0.15, "identity": 0.08},
    )


@pytest.mark.parametrize(
    ("found", "first", "verdict"),
    [
        (
            hurried(1.0, (0.8, None, None, None, (), 0.5), (0.3, 0.5)),
            "Keeps at least 89 % of the action; a fresh attacker names the person in at least 30 %",
            "is missed: the action is at most 7.3 points short and identity is at least 17.0 points over it.",
        ),
        (
            hurried(1.0, (0.8, None, None, None, (), 0.5), (0.12, 1.0)),
            "Keeps at least 89 % of the action; a fresh attacker names the person in 12 %",
            "is not shown to be met: the action network was right in only 50 % of its own training clips when its "
            "steps ended. Give it more.",
        ),
        (
            hurried(0.4, (0.8, None, None, None, (), 1.0), (0.12, 1.0)),
            "A fresh network names the action in 80 % of held-out videos (raw video: at least 90 %, by a network that "
            "had not learned its own training clips); a fresh attacker",
            "is missed: the action is at least 7.3 points short.",
        ),
        (
            hurried(0.4, (0.95, None, None, None, (), 1.0), (0.12, 1.0)),
            "A fresh network names the action in 95 % of held-out videos (raw video: at least 90 %, by a network that "
            "had not learned its own training clips); a fresh attacker",
            "is not shown to be met: that on raw video was right in only 40 % of its own training clips when its "
            "steps ended. Give it more.",
        ),
    ],
)
def test_a_network_that_had_not_learned_bounds_what_is_said(found, first, verdict, made_up_run, fast, tmp_path):
    run = dataclasses.replace(open_run(made_up_run(tmp_path / "run", fast)), judged=found)
    assert plain(headline(run).text).startswith(first)
    assert plain(verdicts(run)[0].text).endswith(verdict)


def test_a_tie_with_a_baseline_and_overlapping_bars_are_said(made_up_run, fast, tmp_path):
    run = open_run(made_up_run(tmp_path / "run", fast))
    table = {"raw": (0.96, 1.0), "bdq": (0.9, 0.3), "anonymized": (0.9, 0.3)}
    even = [sentence.text for sentence in verdicts(dataclasses.replace(run, judged=judged(table)))]
    assert "ahead of 0 of 1 on both" in even[-1]
    table["bdq"] = (0.9, 0.29)
    close = verdicts(dataclasses.replace(run, judged=judged(table, low=0.2, high=0.95)))[-1]
    assert "its 95 % bars overlapping" in close.text
    assert close.tone == "bad"


def test_units():
    assert [plain(byte_size(count)) for count in (0, 999, 1000, 3_940_000, 1.47e9)] == [
        "0 B", "999 B", "1 kB", "3.94 MB", "1.47 GB",
    ]  # fmt: skip
    assert [plain(duration(seconds)) for seconds in (0.25, 59, 61, 3720)] == [
        "0.2 s",
        "59 s",
        "1 min 01 s",
        "1 h 02 min",
    ]
    assert [points(value) for value in (0.012, -0.0211, 0.0001, -0.0001, None)] == ["+1.2", "−2.1", "±0.0", "±0.0", "–"]
    assert moment("2026-11-25T03:00:00+01:00") == "2026-11-25 02:00 UTC"
    assert (moment(""), moment("yesterday")) == ("–", "yesterday")


# ---- what is collected


def test_evaluation_goes_before_summary_and_summary_serves_without_it(made_up_run, judgement, fast, tmp_path):
    quick = open_run(made_up_run(tmp_path / "quick", fast, summary=SUMMARY))
    assert quick.judged.source == "summary.json"
    assert quick.judged.main_task == "identity"
    assert quick.judged.representations["anonymized"].leakage("identity").mean == 0.417
    assert quick.judged.representations["difference1bit"].leakage("identity").mean == 0.37  # its attackers are not told
    assert "downsample4x" not in quick.judged.representations
    assert quick.judged.tasks == ("identity",)
    assert "no intervals" in " ".join(not_measured(quick))
    both = open_run(made_up_run(tmp_path / "both", fast, summary=SUMMARY, evaluation=judgement()))
    assert both.judged.source == "evaluation.json"
    assert both.judged.representations["anonymized"].attacks["identity"].strongest == "video-tiny"
    assert both.judged.main_task == "identity"  # though retrieval stands first
    assert [plain(line) for line in not_measured(both)] == [
        "attributes: the manifest has none",
        NO_PAIR,
        "what other pictures keep and hide: greyscale, downsampled 2×, weak blur, strong blur, pixelated, grey "
        "difference, blur–difference–quantise, people blacked out (fedspact evaluate without --quick)",
        "whether the person or the place tells: no crops (fedspact evaluate --crops)",
        "attackers of three different architectures",
    ]


def test_a_judgement_of_baselines_alone_leaves_the_run_to_its_summary(made_up_run, judgement, fast, tmp_path):
    whole = judgement()
    alone = dataclasses.replace(
        whole, representations={name: row for name, row in whole.representations.items() if name != "anonymized"}
    )
    quick = open_run(made_up_run(tmp_path / "quick", fast, summary=SUMMARY, evaluation=alone))
    assert quick.judged.source == "summary.json"
    bare = open_run(made_up_run(tmp_path / "bare", fast, evaluation=alone))
    assert bare.judged is None
    assert "This run was not judged" in render([bare], [])


def test_the_newest_judgement_counts_and_each_other_one_has_a_line(made_up_run, judgement, fast, tmp_path):
    """A judgement by another protocol moves the one before to a name with its date."""
    path = made_up_run(tmp_path / "run", fast, summary=SUMMARY, evaluation=judgement())  # of 2026-11-25
    assert not open_run(path).also_judged
    newer = {"raw": (0.9, 0.8), "anonymized": (0.8, 0.3)}
    other = judgement(newer, protocol="novel", seeds=(7,), created="2026-11-26T03:00:00+00:00")
    other.write(path / "evaluation-1.json")
    bare = judgement({"raw": (0.9, 0.8)}, created="2026-11-27T03:00:00+00:00")
    bare.write(path / "evaluation-2.json")
    (path / "evaluation-3.json").write_text("{}")
    run = open_run(path)
    assert run.judged.source == "evaluation-1.json"
    assert find_runs(path)[0][0].action == 0.8
    assert also_judged(run)[0] in re.sub(r"</?span[^>]*>", "", render([run], []))
    page = plain(" ".join(also_judged(run)))
    assert (
        "Also judged by protocol identity with 3 seeds on 2026-11-25 02:00 UTC: evaluation.json. "
        "Action 94.0 % (raw 96.0 %, chance 50.0 %); strongest attacker on identity 12.0 % (raw 100.0 %, chance 25.0 %)."
    ) in page
    assert "Baselines alone were judged by protocol identity with 3 seeds on 2026-11-27 03:00 UTC: evaluation-2" in page
    assert "A judgement that cannot be read: " in page
    assert "A judgement that cannot be read: evaluation-3.json: not an evaluation of fedspact" in page


def test_a_newer_judgement_of_an_earlier_round_does_not_stand_for_the_run(made_up_run, judgement, fast, tmp_path):
    path = made_up_run(tmp_path / "run", fast, evaluation=judgement())
    files = {number: path / "checkpoints" / f"round-000{number}.safetensors" for number in (1, 3)}
    models = {n: {"path": str(f), "sha256": hashlib.sha256(f.read_bytes()).hexdigest()} for n, f in files.items()}
    judgement(model=models[3]).write(path / "evaluation.json")
    judgement(model=models[1], created="2026-11-26T03:00:00+00:00").write(path / "evaluation-early.json")
    run = open_run(path)
    assert run.judged.source == "evaluation.json"
    (line,) = also_judged(run)
    assert "2026-11-26 03:00 UTC of another anonymizer (round-0001.safetensors): evaluation-early.json." in line


def test_what_a_quick_evaluation_left_out_is_said_as_that_of_a_summary_is(made_up_run, judgement, fast, tmp_path):
    """Rows, inverter, crops, retrieval and seeds, from what the file holds; what its notes name is not said twice."""
    made = judgement({"raw": (0.9, 1.0), "anonymized": (0.8, 0.3)}, seeds=(0,), rounds=())
    bare = {
        name: written.Represented(row.action, {"identity": row.attacks["identity"]})
        for name, row in made.representations.items()
    }
    quick = dataclasses.replace(made, representations=bare)
    lacking = not_measured(open_run(made_up_run(tmp_path / "quick", fast, evaluation=quick)))
    assert [line for line in lacking if "one-bit difference" in line and "people blacked out" in line]
    for words in ("--inversion", "--crops", "no retrieval", "1 seed, three", "fresh attackers at earlier rounds"):
        assert [line for line in lacking if words in line], words
    notes = ("blackened: no boxes", "person only: no boxes", "retrieval: needs two videos", "reconstruction: stills")
    noted = dataclasses.replace(quick, not_measured=notes)
    told = not_measured(open_run(made_up_run(tmp_path / "noted", fast, evaluation=noted)))
    assert told[:4] == list(notes)
    assert not [line for line in told[4:] if re.search("blacked out|crops|inversion|retrieval", line)]


def test_two_forms_of_retrieval_or_a_note_about_the_other(made_up_run, judgement, fast, tmp_path):
    run = open_run(made_up_run(tmp_path / "run", fast, evaluation=judgement()))
    assert NO_PAIR in not_measured(run)
    assert NO_PAIR in read_evaluation(tmp_path / "run" / "evaluation.json").not_measured
    made = judgement()
    both = {
        name: dataclasses.replace(row, attacks={**row.attacks, "retrieval_same_source": row.attacks["retrieval_all"]})
        for name, row in made.representations.items()
    }
    full = dataclasses.replace(made, representations=both)
    assert NO_PAIR not in not_measured(open_run(made_up_run(tmp_path / "both", fast, evaluation=full)))


def test_what_is_a_lower_bound_is_named_after_the_question(made_up_run, fast, tmp_path):
    run = open_run(made_up_run(tmp_path / "run", fast))
    found = judged({"raw": (0.9, 0.9), "anonymized": (0.8, 0.5)}, "attributes", 0.4, "cmap", learned=0.3)
    lacking = " ".join(not_measured(dataclasses.replace(run, judged=found)))
    assert "the figure of attributes is a lower bound" in lacking
    assert "identity" not in lacking


def test_what_attackers_had_learned_goes_from_the_summary_to_the_page(made_up_run, fast, tmp_path):
    """Who stopped before knowing its own training clips has found at least so much, and the page says where."""
    learned = {
        "action": {"anonymized": 0.7, "raw": 0.99},
        "identity": {"raw": {"frame": 1.0, "video": 0.95}, "anonymized": {"frame": 0.31, "video": 0.95}},
    }
    run = open_run(made_up_run(tmp_path / "run", fast, summary={**SUMMARY, "learned": learned}))
    lacking = " ".join(map(plain, not_measured(run)))
    assert "right in only 31 % of its own training clips when its steps ended" in lacking
    rows = texts(representation_table(run.judged))
    assert rows["anonymized"][:2] == ["≥ 91.7 %", "≥ 41.7 %"]
    assert rows["raw"][:2] == ["97.2 %", "100.0 %"]
    shown = {plain(line.head.text): plain(line.head.note) for line in attack_table(run.judged).lines}
    assert shown["frame"] == "strongest; right in 31 % of its training clips"
    assert shown["video"] == ""
    page = plain(render([run], []))
    assert page.count("≥ 41.7 %") == 5  # large at the top, in three tables and in words for the chart
    silent = open_run(made_up_run(tmp_path / "older", fast, summary=SUMMARY))
    assert "training clips" not in " ".join(not_measured(silent))


def test_an_unfinished_centralized_run_is_not_taken_for_a_federation(made_up_run, fast, tmp_path):
    """Its one site stands in its rounds, too, but nothing was sent."""
    path = made_up_run(tmp_path / "run", fast, rounds=2)
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    alone = [{**line, "sites": line["sites"][:1], "dropped": [], "bytes_up": 0, "bytes_down": 0} for line in lines]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in alone))
    assert open_run(path).kind == "centralized"


def test_a_run_in_the_making_is_told_as_far_as_it_is(made_up_run, fast, tmp_path):
    path = made_up_run(tmp_path / "run", fast, rounds=2)
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"round": 3, "ki')  # a crash
    run = open_run(path)
    assert (run.rounds_done, run.rounds_planned, run.finished, run.kind, run.sites) == (2, 3, False, "federated", 3)
    assert run.judged is None
    page = plain(render([run], []))
    assert "unfinished: 2 of 3 rounds" in page
    assert "fedspact evaluate run<" in page
    nothing = open_run(made_up_run(tmp_path / "nothing", fast, rounds=1, metrics=False, data=False))
    assert game_charts(nothing, "x") == []
    assert site_table(nothing) is None
    assert "keeps no list of its videos" in render([nothing], [])


def mistakes(tmp_path, made_up_run, judgement, fast):
    made_up_run(tmp_path / "good", fast, rounds=1)
    made_up_run(tmp_path / "young", fast, rounds=0)
    made_up_run(tmp_path / "newer", fast, rounds=1)
    content = {**judgement().to_json(), "format_version": 2}
    (tmp_path / "newer" / "evaluation.json").write_text(json.dumps(content))
    for name, text in (
        ("broken", "{"),
        ("foreign", '{"format": "x"}'),
        ("newer-comparison", '{"format": "fedspact-comparison", "format_version": 2, "summary": []}'),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "comparison.json").write_text(text)
    (tmp_path / "half" / "cells").mkdir(parents=True)
    (tmp_path / "file").write_text("x")
    return {
        "nowhere": (["nowhere"], "not a run folder"),
        "young": (["young"], "has no checkpoint yet"),
        "newer": (["newer"], "format_version = 2, this fedspact reads 1"),
        "broken": (["broken"], "cannot be read as JSON"),
        "foreign": (["foreign"], "not a comparison of fedspact"),
        "newer comparison": (["newer-comparison"], "format 2, this fedspact reads 1"),
        "unfinished comparison": (["half"], "a comparison that is not finished"),
        "folder": (["good", "--out", str(tmp_path)], "a folder, must be a file"),
        "below a file": (["good", "--out", str(tmp_path / "file" / "x.html")], "cannot be written"),
    }


def test_users_mistakes_are_one_message_and_status_2(tmp_path, made_up_run, judgement, fast, capsys, monkeypatch):
    cases = mistakes(tmp_path, made_up_run, judgement, fast)
    monkeypatch.chdir(tmp_path)
    for words, told in cases.values():
        assert fedspact.main(["report", *words]) == 2, words
        err = capsys.readouterr().err
        assert told in err
        assert err.startswith("fedspact: ")
    assert not (tmp_path / "good" / "report.html").exists()


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = checked_out(tmp_path / "page.html")
    write_page(path, "old")
    assert path.stat().st_mode & 0o044 == 0o044  # it is there to be shown
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # files end there, as on a full disk
    try:
        with pytest.raises(UserError, match=r"--out .*page\.html: cannot be written \(File too large\)"):
            write_page(path, "new" * 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


# ---- tables


def test_tables_of_a_judgement(made_up_run, judgement, fast, tmp_path):
    found = open_run(made_up_run(tmp_path / "run", fast, evaluation=judgement())).judged
    rows = texts(representation_table(found))
    assert rows["anonymized"] == ["94.0 %", "12.0 %", "6.0 %"]
    assert rows["chance"] == ["50.0 %", "25.0 %", "25.0 %"]
    assert list(rows) == ["raw", "downsampled 4×", "one-bit difference", "anonymized", "chance"]
    attackers = attack_table(found)
    bold = [line for line in attackers.lines if line.cells and line.head.strong]
    assert [(line.head.text, plain(line.cells[0].text), plain(line.cells[1].text)) for line in bold] == [
        ("video-tiny", "12.0 %", "100.0 %"),
        ("nt-xent", "6.0 %", "50.0 %"),
    ]
    listed = [line.head.text for line in attackers.lines]
    assert listed == ["identity", "frame-convnet", "video-tiny", "retrieval among all", "nt-xent"]
    assert texts(reconstruction_table(found))["anonymized"] == ["14.0 dB", "–", "–"]


def test_the_restored_videos_stand_beside_the_mean_picture_and_say_at_least():
    rebuilt = {
        "psnr_db": Figure(18.7), "ssim": Figure(0.36), "identity": Figure(0.25, learned=0.5),
        "mean_picture_psnr_db": Figure(17.2), "mean_picture_ssim": Figure(0.31),
    }  # fmt: skip
    found = Judged("evaluation.json", {"anonymized": Seen(None, {}, rebuilt)}, {})
    (line,) = reconstruction_table(found).lines
    assert [plain(cell.text) for cell in line.cells] == ["18.7 dB", "0.36", "≥ 25.0 %"]
    assert [plain(cell.note) for cell in line.cells[:2]] == ["mean picture 17.2 dB", "mean picture 0.31"]


def test_macro_f1_stands_beside_cmap_for_every_row_with_its_chance():
    rows = {"raw": 0.6, "downsample4x": 0.5, "anonymized": 0.3}
    attack = {
        name: Attack("cmap", {"a": Figure(f1 + 0.2), "b": Figure(f1)}, {"a": Figure(f1 - 0.1), "b": Figure(f1)})
        for name, f1 in rows.items()
    }
    seen = {name: Seen(Figure(0.9), {"attributes": one}) for name, one in attack.items()}
    found = Judged("evaluation.json", seen, {"action": 0.2, "attributes": 0.25, "attributes_f1": 0.39})
    table = representation_table(found)
    assert [plain(head) for head in table.heads[2:]] == ["attributes, cMAP ↓", "attributes, macro-F1 ↓"]
    told = texts(table)
    assert told["raw"][1:] == ["80.0 %", "60.0 %"]  # each by the attacker that is strongest in it
    assert told["downsampled 4×"][1:] == ["70.0 %", "50.0 %"]
    assert told["chance"] == ["20.0 %", "25.0 %", "39.0 %"]
    notes = [[plain(cell.note) for cell in line.cells] for line in attack_table(found).lines if line.cells]
    assert notes == [
        ["macro-F1 20.0 %", "macro-F1 50.0 %", "macro-F1 39.0 %"],
        ["macro-F1 30.0 %", "macro-F1 60.0 %", "macro-F1 39.0 %"],
    ]


def test_the_site_table_adds_up_and_marks_the_worst_site(made_up_run, fast, tmp_path):
    run = open_run(made_up_run(tmp_path / "run", fast))
    table = site_table(run)
    rows = texts(table)
    sent = dict.fromkeys(rows, 0)  # the slow twin, over the lines of metrics.jsonl
    for line in (run.path / "metrics.jsonl").read_text().splitlines():
        told = json.loads(line)
        for site in told["sites"]:
            sent[site["name"]] += site["bytes_up"] if told["kind"] == "train" else 0
    assert {name: cells[4] for name, cells in rows.items()} == {name: f"{count} B" for name, count in sent.items()}
    assert {name: cells[6] for name, cells in rows.items()} == {"north": "3", "south": "2", "west": "2"}
    assert [line.head.text for line in table.lines if line.mark == "worst"] == ["south"]  # top-1 0.5
    assert [line.head.note for line in table.lines] == ["", "lowest top-1", ""]
    assert "which learned from all training videos and was asked about all held-out ones" in render([run], [])
    west = next(line for line in table.lines if line.head.text == "west")
    assert west.cells[0].note == "no labels of its own"
    assert west.cells[-1].note == "1 missed"
    unevaluated = site_table(dataclasses.replace(run, history=run.history[:-1]))
    marked = [(line.head.text, line.head.note) for line in unevaluated.lines if line.mark == "worst"]
    assert marked == [("west", "highest L_T")]


def test_costs_facts_and_settings(made_up_run, judgement, fast, tmp_path):
    run = open_run(made_up_run(tmp_path / "run", fast, evaluation=judgement(), summary=SUMMARY))
    costs = texts(cost_table([run, run]))
    up = sum(line["bytes_up"] for line in run.history if line["kind"] == "train") / 3
    assert costs["sent up, a round"] == [f"{up:.0f} B"] * 2
    assert costs["time in training rounds"] == ["12 s"] * 2  # 3 + 4 + 5
    assert costs["time, all in all"] == ["10 min 23 s"] * 2
    facts = texts(facts_table(run))
    assert facts["seeds of the judge"] == ["0, 1, 2"]
    assert facts["versions"] == ["torch 2.15"]
    table = settings_table(run.settings)
    assert {line.head.text for line in table.lines} == set(run.settings)
    assert table.lines[0].head.strong
    assert "clip.size_px" in [line.head.text for line in table.lines if line.head.strong]
    assert "wire.dtype" not in [line.head.text for line in table.lines if line.head.strong]
    assert texts(overview_table([run]))["run"] == ["federated", "3 of 3", "94.0 %", "12.0 %", "0", "10 min 23 s"]


# ---- charts


def in_colour(node):
    if isinstance(node, str):
        return re.sub(r"^var\(--[a-z]+\)$", "#123456", node)
    if isinstance(node, dict):
        return {key: in_colour(value) for key, value in node.items()}
    return [in_colour(value) for value in node] if isinstance(node, list) else node


def test_every_chart_is_a_valid_figure_of_the_runs_own_numbers(
    made_up_run, made_up_comparison, judgement, fast, tmp_path
):
    run = open_run(made_up_run(tmp_path / "run", fast, evaluation=judgement()))
    comparison = open_comparison(made_up_comparison(tmp_path / "versus"))
    points_chart = scatter([run, run], "identity", "s")
    losses, matching = game_charts(run, "g")
    judged_chart = judged_rounds_chart(run, "j")
    charts = [points_chart, losses, matching, judged_chart, arm_chart(comparison, "a"), *paired_charts(comparison, "t")]
    for chart in charts:
        go.Figure(in_colour(chart.figure))  # raises on a name or value that Plotly does not know
        assert chart.alt
        assert chart.table.lines
    by_name = {trace["name"]: trace for trace in points_chart.figure["data"]}
    assert (by_name["run"]["x"], by_name["run"]["y"]) == ([0.12], [0.94])
    assert (by_name["motion only"]["text"], by_name["raw video"]["x"]) == (["one-bit difference"], [1.0])
    assert by_name["run"]["error_x"]["array"] == pytest.approx([0.03])
    thin = [trace for trace in losses.figure["data"] if trace.get("legendgroup") == "sites"]
    assert [trace["x"] for trace in thin] == [[1, 2, 3], [1, 3], [1, 3]]
    assert thin[1]["y"] == pytest.approx([2.2, 2 / 3 + 0.2])
    assert [t["y"] for t in matching.figure["data"] if t["name"] == "chance"] == [[1.95, 1.95, 1.95]]
    attack = next(trace for trace in judged_chart.figure["data"] if "identity" in trace["name"])
    assert (attack["name"], attack["x"], attack["y"]) == ("x, identity", [1], [0.6])  # x was not asked at the end


def test_the_way_is_one_attackers_with_one_seed_from_the_first_round_to_the_last(
    made_up_run, judgement, fast, tmp_path
):
    made = judgement()
    one = written.Attack("top1", {"frame-convnet": written.Figure(0.6, None, 0.5, 0.7, (0.6,))})
    rounds = ({"round": 1, "action": written.Figure(0.9, None, 0.8, 1.0, (0.9,)), "attacks": {"identity": one}},)
    weak = written.Figure(0.1, 0.02, 0.05, 0.15, (0.08, 0.1, 0.12), 0.5)
    strong = made.representations["anonymized"].attacks["identity"].attackers["video-tiny"]
    attacks = {"identity": written.Attack("top1", {"frame-convnet": weak, "video-tiny": strong})}
    action = written.Figure(0.94, 0.01, 0.9, 0.98, (0.93, 0.94, 0.95))
    rows = {**made.representations, "anonymized": written.Represented(action, attacks)}
    full = dataclasses.replace(made, representations=rows, rounds=rounds)
    chart = judged_rounds_chart(open_run(made_up_run(tmp_path / "run", fast, evaluation=full)), "j")
    drawn = {trace["name"]: (trace["x"], trace["y"]) for trace in chart.figure["data"]}
    assert drawn["frame-convnet, identity"] == ([1, 3], [0.6, 0.08])
    assert drawn["fresh action network"] == ([1, 3], [0.9, 0.93])
    assert texts(chart.table)["3"] == ["93.0 %", "≥ 8.0 %"]


def test_rounds_are_whole_numbers_on_every_axis(made_up_run, judgement, fast, tmp_path):
    run = open_run(made_up_run(tmp_path / "run", fast, evaluation=judgement()))
    for chart in (*game_charts(run, "g"), judged_rounds_chart(run, "j")):
        assert chart.figure["layout"]["xaxis"]["dtick"] == 1
    for done, step in ((12, 1), (13, 2), (99, 10), (100, 10), (130, 20), (999, 100)):
        last = {**run.history[0], "round": done}
        long = dataclasses.replace(run, history=[last])
        assert game_charts(long, "g")[0].figure["layout"]["xaxis"]["dtick"] == step, done


def test_baselines_come_from_whichever_run_has_them_if_it_was_judged_alike(made_up_run, judgement, fast, tmp_path):
    few = judgement({"anonymized": (0.9, 0.2)})
    one = open_run(made_up_run(tmp_path / "one", fast, evaluation=few))
    two = open_run(
        made_up_run(tmp_path / "two", fast, evaluation=judgement({"raw": (0.96, 1.0), "anonymized": (0.8, 0.1)}))
    )
    three = open_run(
        made_up_run(tmp_path / "three", fast, evaluation=judgement({"greyscale": (0.9, 0.9), "anonymized": (0.7, 0.1)}))
    )
    chart = scatter([one, two, three], "identity", "s")
    by_name = {trace["name"]: trace["text"] for trace in chart.figure["data"]}
    assert (by_name["raw video"], by_name["obscured pictures"]) == (["raw"], ["greyscale"])
    assert "Baselines as judged with two and three." in chart.note
    assert mixed([one, two, three]) == ""
    assert any(shape["type"] == "rect" for shape in chart.figure["layout"]["shapes"])  # raw is there: so is the corner
    longer = judgement({"greyscale": (0.9, 0.9), "anonymized": (0.7, 0.1)}, budget={"steps": 1200, "batch": 32})
    other = open_run(made_up_run(tmp_path / "other", fast, evaluation=longer))
    apart = scatter([one, two, other], "identity", "s")
    assert "obscured pictures" not in {trace["name"] for trace in apart.figure["data"]}
    assert "1 run judged otherwise" in apart.note


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"budget": {"steps": 1200, "batch": 32}}, "steps"),
        ({"budget": {"steps": 300, "batch": 8}}, "budgets"),
        ({"seeds": (0,)}, "seeds"),
        ({"protocol": "known"}, "protocols"),
        ({"data": {"train_videos": 12, "test_videos": 5}}, "videos"),
        ({"data": {"train_videos": 12, "test_videos": 4, "sha256": "b"}}, "videos"),
    ],
)
def test_runs_that_were_judged_otherwise_are_told_apart(made_up_run, judgement, fast, tmp_path, changed, word):
    one = open_run(made_up_run(tmp_path / "one", fast, evaluation=judgement()))
    two = open_run(made_up_run(tmp_path / "two", fast, evaluation=judgement(**changed)))
    assert mixed([one, one]) == ""
    assert f"with other {word}: compare them with care" in mixed([one, two])
    attacked = dataclasses.replace(one.judged.representations["anonymized"], attacks={})
    fewer = dataclasses.replace(one.judged, representations={**one.judged.representations, "anonymized": attacked})
    assert mixed([one, dataclasses.replace(one, judged=fewer)]) == ""  # raw was asked by the same
    nobody = dataclasses.replace(one.judged, representations={"anonymized": attacked})
    assert "other attackers" in mixed([one, dataclasses.replace(one, judged=nobody)])


def test_a_task_that_nobody_asked_has_no_chart(made_up_run, fast, tmp_path):
    run = open_run(made_up_run(tmp_path / "run", fast, summary=SUMMARY))
    assert scatter([run], "source", "s") is None
    assert judged_rounds_chart(run, "j") is None
    assert "95 % intervals" not in scatter([run], "identity", "s").note  # there are none


# ---- comparison


def test_a_comparison_says_what_holds_and_what_does_not(made_up_comparison, tmp_path):
    story = open_comparison(made_up_comparison(tmp_path / "versus"))
    assert headline_and_tones(story) == (
        "Federated (split iid): action 89.0 %, identity 21.0 %. Centralized: 90.0 % and 20.0 %. "
        "Difference in points: action −0.2 [−1.2 to +0.8], identity +0.4 [−0.6 to +1.4].",
        ["plain", "good", "bad", "plain"],
    )
    said = [sentence.text for sentence in comparison_sentences(story)]
    assert said[0] == "3 paired tests: 1 holds, 1 does not, 1 is undecided."
    assert said[2] == (
        "Federated not worse than centralized, split site: does not hold (action −0.4 points, identity +6.0 points)."
    )
    arms = arm_table(story)
    assert [line.head.text for line in arms.lines if not line.cells] == [
        "split: iid",
        "split: site",
        "pooled, or not trained",
    ]
    federated = next(line for line in arms.lines if line.mark == "ours")
    assert [plain(cell.text) for cell in federated.cells] == [
        "89.0 %",
        "21.0 %",
        "site-2",
        "2.5 MB",
        "1 min 15 s",
        "944 MB",
    ]
    assert federated.cells[0].note == "± 1.0"
    verdicts_told = [line.cells[-1].text for line in paired_table(story).lines if line.cells]
    assert verdicts_told == ["holds", "undecided", "does not hold"]
    page = render([], [story])
    assert "2016 test videos" in page
    assert "a fourth seed" in page
    assert "in what share the strongest attacker names the person" in page
    assert "Worst site: where action minus leakage is least" in page


def test_a_verdict_on_networks_that_had_not_learned_is_no_plain_success(made_up_comparison, tmp_path):
    path = made_up_comparison(tmp_path / "versus")
    content = json.loads((path / "comparison.json").read_text())
    content["tests"][0]["leakage"]["learned"] = 0.4
    content["summary"][0]["leakage"]["learned"] = 0.4
    content["arms"] = [{"action": {"learned": 0.95}, "leakage": {"learned": share}} for share in (0.4, 0.95, None)]
    (path / "comparison.json").write_text(json.dumps(content))
    story = open_comparison(path)
    first, count, test, *_ = comparison_sentences(story)
    assert first.tone == "bad"
    assert first.text.startswith("Lower bounds: in 1 of 3 cells a fresh network was right in less than 90%")
    assert count.text == "3 paired tests: 1 holds by lower bounds, 1 does not, 1 is undecided."
    assert (test.tone, test.text.split(" (")[0]) == (
        "plain",
        "Federated not worse than centralized, split iid: holds, by lower bounds",
    )
    assert next(line.cells[-1].text for line in paired_table(story).lines if line.cells) == "holds, by lower bounds"
    centralized = next(line for line in arm_table(story).lines if line.head.text == "centralized")
    assert [plain(cell.text) for cell in centralized.cells[:2]] == ["90.0 %", "≥ 20.0 %"]


def test_a_comparison_has_its_scatter_its_judge_and_links_to_its_parts(made_up_comparison, tmp_path):
    path = made_up_comparison(tmp_path / "versus")
    content = json.loads((path / "comparison.json").read_text())
    content |= {"attackers": ["frame-convnet", "clip-trees"], "versions": {"torch": "2.15"}, "manifest": "m.csv"}
    content["settings"] |= {"judge.steps": 300, "networks.action": "tiny"}
    (path / "comparison.json").write_text(json.dumps(content))
    story = open_comparison(path)
    chart = arm_scatter(story, "s")
    go.Figure(in_colour(chart.figure))
    drawn = {trace["name"]: trace for trace in chart.figure["data"]}
    assert list(drawn) == ["raw video", "centralized", "federated"]
    assert (drawn["federated"]["x"], drawn["federated"]["y"]) == ([0.21, 0.21], [0.89, 0.89])
    assert drawn["federated"]["text"] == ["federated, iid", "federated, site"]
    assert drawn["federated"]["error_x"]["array"] == pytest.approx([0.01, 0.01])  # over seeds, not over videos
    assert [shape["type"] for shape in chart.figure["layout"]["shapes"]] == ["line", "line", "rect"]
    facts = texts(comparison_facts(story))
    assert facts["attackers"] == ["frame-convnet, clip-trees"]
    assert facts["the judge's budget"] == ["steps 300"]
    assert facts["versions"] == ["torch 2.15"]
    assert facts["seeds of training and judge"] == ["0, 1, 2"]
    page = render([], [story])
    (nav,) = re.findall(r"<nav.*?</nav>", page, re.DOTALL)
    links = re.findall(r'href="#([^"]+)"', nav)
    assert len(links) == 4
    assert all(f'id="{link}"' in page for link in links)
    assert "All settings" in page


def headline_and_tones(story):
    return plain(comparison_headline(story).text), [sentence.tone for sentence in comparison_sentences(story)]


# ---- the page


def test_names_from_outside_are_text_and_nothing_is_loaded(made_up_run, judgement, fast, tmp_path):
    evil = "<img src=x onerror=alert(1)>"
    evaluation = judgement({**TABLE, evil: (0.5, 0.5)}, not_measured=(evil,))
    path = made_up_run(tmp_path / "run</title><b>", fast, evaluation=evaluation)
    page = render([open_run(path)], [], title=f"T {evil}")
    own = page[: page.index("plotly.js v")] + page[page.rindex("<script>") :]
    assert evil not in own
    assert "</title><b>" not in own
    assert "&lt;img src=x onerror=alert(1)&gt;" in own
    assert "\\u003cimg src=x" in own  # inside the charts' JSON
    assert not re.findall(r"(?:src|href|poster)=\"(?!#|data:)[^\"]*", own)
    assert "default-src 'none'" in own


def test_the_page_names_folders_as_seen_from_here_and_never_whole(made_up_run, judgement, fast, tmp_path, monkeypatch):
    """An absolute path tells its maker's name, and is wrong where the run is moved to."""
    runs = tmp_path / "home" / "anna" / "runs"
    runs.mkdir(parents=True)
    path = made_up_run(runs / "my run", {**fast, "run_dir": str(runs / "my run")}, summary=SUMMARY)
    (path / "evaluation-2.json").write_text("{}")
    (path / "evaluation-3.json").write_text(json.dumps({**judgement().to_json(), "representations": 1}))
    for there, told in (
        (runs.parent, "'runs/my run'"),
        (tmp_path / "home", "'anna/runs/my run'"),
        (path, "."),
        (runs.parents[2] / "x", "'my run'"),
    ):
        there.mkdir(exist_ok=True)
        monkeypatch.chdir(there)
        page = render([open_run(path)], [])
        own = page[: page.index("plotly.js v")].replace("&#39;", "'")
        assert f"fedspact evaluate {told}<" in own
        assert f"fedspact audit {told}<" in own
        assert str(tmp_path) not in own
    content = {"settings": {"run_dir": str(path)}, "manifest": str(runs / "m.csv")}
    assert texts(comparison_facts(ComparisonStory(path, "versus", content)))["manifest"] == ["m.csv"]
    assert texts(settings_table(content["settings"]))["run_dir"] == ["my run"]


def test_several_runs_stand_side_by_side(made_up_run, made_up_comparison, judgement, fast, tmp_path):
    one = made_up_run(tmp_path / "one", fast, evaluation=judgement())
    two = made_up_run(tmp_path / "two", fast, summary=SUMMARY)
    versus = made_up_comparison(tmp_path / "versus")
    runs, comparisons = collect([one, versus, two, one])
    assert [run.name for run in runs] == ["one", "two"]
    page = render(runs, comparisons)
    assert "The runs side by side" in page
    assert "compare them with care" in page
    ids = re.findall(r'\bid="([^"]+)"', page[: page.index("plotly.js v")])
    assert len(ids) == len(set(ids))
    links = set(re.findall(r'href="#([^"]+)"', page))
    assert links
    assert links <= set(ids)


def test_the_command_on_a_real_tiny_run(squares, fast, tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    small = {**fast, "simulation.sites": 2, "rounds.minimax": 1, "warmup.steps": 1}
    words = [word for key, value in small.items() for word in ("--set", f"{key}={value}")]
    assert fedspact.main(["simulate", "--data", str(squares), "--out", str(out), "--no-judge", *words]) == 0
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address) or True)
    assert fedspact.main(["report", str(out), "--open"]) == 0
    page = (out / "report.html").read_text(encoding="utf-8")
    assert str(out / "report.html") in capsys.readouterr().out
    assert opened == [(out / "report.html").as_uri()]
    assert "Not judged yet" in page
    assert "Raw footage is not part of this page: nothing marks these videos as drawn" in page
    assert '<a href="#strips">Anonymized videos</a>' in page  # as the heading says
    assert page.count("<video ") == 4  # the test rows that the run has
    assert Path(out / "report.html").stat().st_size < 8e6


PRIVACY = {
    "epsilon": 3.14, "delta": 1e-4, "unit": "a site, with all its videos", "adjacency": "one update, or zero",
    "sampling": "none", "accountant": "Flower RdpAccountant", "noise_multiplier": 1.5, "clip_norm": 0.5,
    "releases": 3, "epsilon_budget": 8.0,
}  # fmt: skip


def test_promises_and_attacks_on_the_wire_have_their_section(made_up_run, fast, tmp_path):
    path = made_up_run(tmp_path / "run", fast, summary={**SUMMARY, "privacy": PRIVACY})
    told = {"members": 4, "summed": 3, "lost": ["west"], "needed": 3, "neighbours": 3, "bytes": 44_000}
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    secured = [{**line, "secure": told} if line["kind"] == "train" else line for line in lines]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in secured))
    findings = [
        Finding("update inversion", "plain update, one clip", "ssim", 0.41, 0.35, 0.47, 0.05, {"psnr_db": 12.5}),
        Finding("membership", "the run's own f_T", "auc", 0.62, 0.58, 0.66, 0.5, {"sites": 3}),
    ]
    audit = Audit({}, {}, findings, ["canary: no epsilon"], {}, {}, "2026-11-26T05:00:00+00:00", 1.0)
    run = dataclasses.replace(open_run(path), audit=audit)
    promises = {line.head.text: line.cells[0].text for line in promise_table(run).lines}
    assert plain(promises["differential privacy"]) == "ε = 3.14 at δ = 0.0001"
    assert {"unit", "neighbours", "sampling", "accountant", "budget"} <= set(promises)
    assert promises["secure aggregation"] == "3 of 3 rounds' sums were opened"
    assert promises["sites in a sum"].startswith("at least 3; 3 were lost")
    assert promises["its short messages"] == "44 kB a round"
    rows = audit_table(audit).lines
    assert [row.head.text for row in rows] == [
        "update inversion", "plain update, one clip", "membership", "the run's own f_T"
    ]  # fmt: skip
    assert rows[1].cells[0].text == "0.41"
    assert rows[1].cells[2].text == "12.5 dB"
    page = render([run], [])
    assert "Updates and networks" in page
    assert "canary: no epsilon" in page
    assert "attack them with" not in page
    bare = render([dataclasses.replace(open_run(made_up_run(tmp_path / "bare", fast)), audit=None)], [])
    assert "Updates and networks</h2>" not in bare
    assert "attack them with fedspact audit" in bare


def test_an_audit_beside_a_run_is_read_with_it(made_up_run, fast, tmp_path):
    path = made_up_run(tmp_path / "run", fast)
    found = Finding("canary", "site, the whole schedule", "epsilon proved", 1.0, None, None, 0.0, {"claimed": 2.0})
    Audit({}, {}, [found], [], {}, {}, "2026-11-26T05:00:00+00:00", 1.0).write(path / "audit.json")
    assert open_run(path).audit.findings == [found]
    assert "claimed ε = 2" in plain(render([open_run(path)], []))
    (path / "audit.json").write_text("{}")
    with pytest.raises(UserError, match="not an audit that can be read"):
        open_run(path)
