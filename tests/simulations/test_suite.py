"""The whole judgement on small real videos: every number is where it belongs, nothing is asked twice."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from client.video.boxes import Box, write_boxes
from client.video.cache import FrameCache
from client.video.rows import read_rows
from simulations.protocols import attacks
from simulations.protocols.suite import REPRESENTATIONS, Suite, judge_suite, rows_digest
from spact_models.anonymizer import Anonymizer
from spact_models.errors import UserError
from spact_models.judge import JudgeSet
from spact_models.networks import anonymizer_config
from spact_models.obfuscations import OBFUSCATIONS, Raw
from spact_models.run_config import load_settings

CPU = torch.device("cpu")
ONE = ("frame-convnet",)


@pytest.fixture
def judged(squares, tmp_path, fast):
    """``judged(suite, rows=…)`` with an untrained anonymizer."""
    settings = load_settings(fast)
    torch.manual_seed(0)
    anonymizer = Anonymizer(anonymizer_config(settings)).eval()
    cache = FrameCache(tmp_path / "cache", 16)

    def judge(asked, rows=None, transform=anonymizer, **more):
        given = read_rows(squares) if rows is None else rows
        return judge_suite(transform, settings, given, cache, CPU, asked, progress=False, **more)

    return judge


def boxed(squares, folder):
    rows = []
    for row in read_rows(squares):
        path = folder / f"{row.path.stem}.csv"
        write_boxes(path, {frame: [Box(0.2, 0.2, 0.8, 0.8)] for frame in range(10)})
        rows.append(replace(row, boxes=path))
    return rows


def test_representations_are_the_obfuscations_and_two_more():
    assert list(REPRESENTATIONS) == [*OBFUSCATIONS, "blackened", "anonymized"]


def test_everything_is_asked_and_stands_in_the_evaluation(judged, squares, tmp_path):
    asked = Suite(
        "identity",
        ("identity",),
        ("anonymized", "blackened", "raw"),
        ("frame-convnet", "video-tiny"),
        seeds=(0, 7),
        attributes=True,
        columns=("light",),
        crops=True,
    )
    evaluation, hits = judged(asked, boxed(squares, tmp_path))
    assert list(evaluation.representations) == ["raw", "blackened", "anonymized"]  # whatever the order of asking
    tasks = ["identity", "identity (person only)", "identity (background only)", "attributes", "retrieval_all"]
    for name, row in evaluation.representations.items():
        assert list(row.attacks) == tasks  # no two test videos of one camera: no same_source
        assert row.attacks["attributes"].metric == "cmap"
        assert row.attacks["attributes"].f1.keys() == {"frame-convnet", "video-tiny"}
        for task in ("identity", "retrieval_all"):
            assert row.attacks[task].attackers.keys() == {"frame-convnet", "video-tiny"}
            for attacker, figure in row.attacks[task].attackers.items():
                answers_SV = hits[name][task][attacker]
                assert answers_SV.shape == (2, 4)
                assert figure.per_seed == pytest.approx(answers_SV.mean(axis=1), abs=1e-4)
        assert hits[name]["action"]["action"].shape == (2, 4)
        assert row.action.per_seed == pytest.approx(hits[name]["action"]["action"].mean(axis=1), abs=1e-4)
    assert evaluation.chance == {
        "action": 0.5, "identity": 0.5, "identity (person only)": 0.5, "identity (background only)": 0.5,
        "attributes": pytest.approx(0.5), "attributes_f1": pytest.approx(2 / 3, abs=1e-3), "retrieval_all": 0.25,
    }  # fmt: skip
    assert evaluation.not_measured == ()
    assert evaluation.data["attributes"] == ["light=bright", "light=dim"]
    assert evaluation.to_json()["machine"]["cores"] >= 1


def test_each_representation_is_released_once(judged, monkeypatch):
    released = []
    through = JudgeSet.through
    monkeypatch.setattr(JudgeSet, "through", lambda *args: released.append(type(args[1]).__name__) or through(*args))
    judged(Suite("identity", ("identity",), ("raw", "anonymized"), attributes=True, columns=("light",), seeds=(0, 1)))
    assert released == ["Raw", "Raw", "Anonymizer", "Anonymizer"]  # training and test


def test_what_cannot_be_asked_is_named(judged):
    asked = Suite("identity", ("identity", "shoes"), ("raw", "blackened"), ONE, crops=True, attributes=True,
                  columns=("hat",))  # fmt: skip
    evaluation, _ = judged(asked)
    told = "; ".join(evaluation.not_measured)
    assert "shoes: needs two values" in told
    assert "person only: the manifest gives no boxes" in told
    assert "blackened: the manifest gives no boxes" in told
    assert "attributes: no labelled attribute" in told
    assert list(evaluation.representations) == ["raw"]
    assert list(evaluation.representations["raw"].attacks) == ["identity", "retrieval_all"]


def test_hidden_people_cannot_be_named_where_black_hides_all(judged, squares, tmp_path):
    """The box covers the whole picture: what is left is the same for everybody."""
    rows = boxed(squares, tmp_path)
    for row in rows:
        write_boxes(row.boxes, {frame: [Box(0.0, 0.0, 1.0, 1.0)] for frame in range(10)})
    _, hits = judged(Suite("identity", ("identity",), ("blackened",), ONE, retrieval=True), rows)
    assert hits["blackened"]["retrieval_all"]["frame-convnet"].mean() == pytest.approx(0.25)
    assert (
        hits["blackened"]["identity"]["frame-convnet"].mean() == 0.5
    )  # one answer for all: the commonest or the other


def test_other_rows_may_carry_the_attributes(judged, tmp_path):
    """VISPR's shape: still images beside the videos. Motion pictures of stills are not measured, and it is said."""
    from PIL import Image

    from client.video.rows import Row

    stills = []
    for number in range(12):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (20, 20), (20 * number, 90, 250 * (number % 2))).save(path)
        split = "train" if number < 8 else "test"
        stills.append(Row(path, split=split, attributes={"a4_gender": str(number % 2)}))
    asked = Suite("known", (), ("raw", "difference1bit"), ("frame-convnet", "video-tiny"), attributes=True,
                  columns=("a4_gender",), retrieval=False)  # fmt: skip
    evaluation, _ = judged(asked, attribute_rows=stills, transform=Raw())
    raw, difference = (evaluation.representations[name] for name in ("raw", "difference1bit"))
    assert raw.attacks["attributes"].attackers.keys() == {"frame-convnet"}  # a still has no motion to see
    assert raw.action is not None
    assert difference.attacks == {}
    assert difference.action is not None
    assert evaluation.not_measured == (
        "attributes of difference1bit: not of still images, which hold no motion, no boxes and no delivered files",
    )


def test_another_box_is_other_data(tmp_path):
    from client.video.rows import Row

    boxes = tmp_path / "boxes.csv"
    boxes.write_text("frame,left,top,right,bottom\n0,0.1,0.1,0.5,0.5\n")
    rows = [Row(tmp_path / "a.mp4", split="train", boxes=boxes)]
    before = rows_digest(rows)
    assert rows_digest(rows) == before
    boxes.write_text("frame,left,top,right,bottom\n0,0.1,0.1,0.5,0.9\n")
    assert rows_digest(rows) != before


def test_what_is_done_is_kept_and_not_judged_again(judged, monkeypatch):
    asked = Suite("identity", ("identity",), ("raw", "downsample4x", "anonymized"), ONE, retrieval=False)
    seen = []
    whole, _ = judged(asked, on_done=lambda one: seen.append(list(one.representations)))
    assert seen == [["raw"], ["raw", "anonymized"], ["raw", "downsample4x", "anonymized"]]  # the two ends first
    names = []
    jobs = attacks._jobs
    monkeypatch.setattr(attacks, "_jobs", lambda *args: names.append(args[3]) or jobs(*args))
    first, _ = judged(replace(asked, representations=("raw",)))
    again, hits = judged(asked, before=first)
    assert names == ["raw", "anonymized", "downsample4x"]
    assert "raw" not in hits
    assert again.representations == whole.representations
    judged(replace(asked, seeds=(3,)), before=first)  # other seeds: nothing can be taken over
    assert names[3:] == ["raw", "anonymized", "downsample4x"]


def test_on_two_cores_the_next_representation_is_begun_and_nothing_else_changes(judged, monkeypatch):
    """The answers are those of one core; while the last networks of one learn, the next one's are queued."""
    asked = Suite("identity", ("identity",), ("raw", "downsample4x", "anonymized"), ONE, retrieval=False)
    alone, _ = judged(asked)
    order, begin = [], attacks.Workshop.begin

    def watched(self, jobs):
        order.append("begun")
        taken = begin(self, jobs)
        return lambda: order.append("taken") or taken()

    monkeypatch.setattr(attacks.Workshop, "begin", watched)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        together, _ = judged(asked)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert together.representations == alone.representations
    assert order == ["begun", "begun", "taken", "begun", "taken", "taken"]


def test_who_is_asked_when_one_attacker_names_enough(judged, monkeypatch):
    """Nobody is enough: all are asked, with the same answers. Anybody is: the first alone, and the page says so."""
    pair = ("frame-convnet", "video-tiny")
    asked = Suite("identity", ("identity",), ("raw", "anonymized"), pair, retrieval=False)
    plain, _ = judged(asked)
    counted = []
    monkeypatch.setattr(attacks.Attacks, "_step", lambda _: counted.append(1))
    never, _ = judged(replace(asked, enough=1.01))
    full = len(counted)
    assert never.representations == plain.representations
    assert never.not_measured == ()
    at_once, hits = judged(replace(asked, enough=0.0))
    for name, row in at_once.representations.items():
        assert list(row.attacks["identity"].attackers) == ["frame-convnet"] == list(hits[name]["identity"])
        assert row.action == plain.representations[name].action
        theirs = plain.representations[name].attacks["identity"].attackers["frame-convnet"]
        assert row.attacks["identity"].attackers["frame-convnet"] == theirs
    share = at_once.representations["raw"].attacks["identity"].figure.mean
    already = f"identity of raw by video-tiny: frame-convnet is right in {share:.1%} of the videos already"
    assert at_once.not_measured[0] == already
    assert len(counted) == 2 * full  # the bar comes to its end
    assert at_once.key != plain.key  # nobody takes it for all that was asked
    with pytest.raises(ValueError, match="seeds"):
        replace(asked, enough=0.5, seeds=(0, 1))


def test_trees_answer_what_has_labels_and_leave_matching_to_networks(judged):
    asked = Suite("identity", ("identity",), ("raw",), ("frame-convnet", "clip-trees"))
    told, hits = judged(asked)
    attacks = told.representations["raw"].attacks
    assert attacks["identity"].attackers.keys() == {"frame-convnet", "clip-trees"}
    assert attacks["identity"].attackers["clip-trees"].learned is None
    assert attacks["retrieval_all"].attackers.keys() == {"frame-convnet"}
    assert hits["raw"]["identity"]["clip-trees"].shape == (1, told.data["test_videos"])
    alone, _ = judged(replace(asked, attackers=("clip-trees",)))
    assert alone.representations["raw"].attacks["identity"].attackers == {
        "clip-trees": attacks["identity"].attackers["clip-trees"]
    }
    assert "retrieval_all" not in alone.representations["raw"].attacks
    assert any("clip-trees alone matches nothing" in note for note in alone.not_measured)


def test_a_failure_beside_others_stops_them(judged, monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.setattr(attacks.Judge, "action", lambda *_: (_ for _ in ()).throw(RuntimeError("broken")))
    torch.set_num_threads(2)
    try:
        with pytest.raises(RuntimeError, match="broken"):
            judged(Suite("identity", ("identity",), ("raw",)))
    finally:
        torch.set_num_threads(threads)


def test_reconstruction_is_measured_as_pictures_and_as_evidence(judged):
    asked = Suite("identity", ("identity",), ("raw",), ONE, seeds=(0, 1), retrieval=False, inversion=True)
    evaluation, _ = judged(asked)
    rebuilt = evaluation.representations["raw"].reconstruction
    assert rebuilt.keys() == {"psnr_db", "ssim", "mean_picture_psnr_db", "mean_picture_ssim", "identity"}
    assert 5 < rebuilt["psnr_db"].mean < 60
    assert len(rebuilt["identity"].per_seed) == 2


def test_a_reconstruction_can_be_looked_at(judged):
    """On raw frames what was released is the raw frame itself; the restored one is near it, and no copy."""
    shown = {}
    asked = Suite("retrieval", (), ("raw", "anonymized"), ONE, retrieval=False, inversion=True, action=False)
    evaluation, _ = judged(asked, on_restored=shown.__setitem__)
    assert shown.keys() == {"raw", "anonymized"}
    assert evaluation.representations["raw"].reconstruction["identity"] is None  # nobody is named
    raw, seen, restored = shown["raw"]
    assert raw.dtype == seen.dtype == restored.dtype == np.uint8
    assert raw.shape == seen.shape == restored.shape
    assert raw.shape[0] > 1
    assert np.array_equal(raw, seen)
    assert not np.array_equal(raw, restored)
    assert np.array_equal(shown["anonymized"][0], raw)
    assert not np.array_equal(shown["anonymized"][1], raw)


def test_bad_suites_are_told():
    with pytest.raises(UserError, match="representation = 'blurry'"):
        Suite("identity", (), ("blurry",))
    with pytest.raises(UserError, match='attacker = "nobody"'):
        Suite("identity", (), attackers=("nobody",))
    with pytest.raises(UserError, match="seeds = \\[1, 1\\]"):
        Suite("identity", (), seeds=(1, 1))


def test_hits_are_the_same_videos_for_every_representation(judged):
    _, hits = judged(Suite("identity", ("identity",), ("raw", "anonymized"), ONE))
    shapes = {
        task: {hits[name][task]["frame-convnet"].shape for name in hits} for task in ("identity", "retrieval_all")
    }
    assert all(len(found) == 1 for found in shapes.values())
    assert all(np.isin(hits[name]["identity"]["frame-convnet"], (0.0, 1.0)).all() for name in hits)
