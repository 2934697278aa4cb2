"""Files that some tool delivered, judged as they are beside the anonymizer."""

import shutil
from dataclasses import replace

import av
import numpy as np
import pytest
import torch

from client.video.cache import FrameCache
from client.video.rows import read_rows
from fedspact import main
from simulations.protocols.delivered import delivered_rows, parse
from simulations.protocols.suite import REPRESENTATIONS, Suite, judge_suite
from spact_models.errors import UserError
from spact_models.obfuscations import Raw
from spact_models.run_config import load_settings

ONE = ("frame-convnet",)
ASKED = Suite("identity", ("identity",), ("raw",), ONE)


def copied(rows, folder):
    """Every video's file under its own name in one folder."""
    folder.mkdir(parents=True)
    for row in rows:
        shutil.copy(row.path, folder / row.path.name)
    return folder


def black(path):
    with av.open(str(path), "w") as file:
        stream = file.add_stream("ffv1", rate=10)
        stream.width = stream.height = 16
        stream.pix_fmt = "yuv420p"
        for _ in range(16):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), "rgb24")))
        file.mux(stream.encode())


@pytest.fixture
def judge(squares, tmp_path, fast):
    settings, cache = load_settings(fast), FrameCache(tmp_path / "cache", 16)

    def judge(asked, delivered, **more):
        made, hits = judge_suite(
            Raw(), settings, read_rows(squares), cache, torch.device("cpu"), asked, progress=False,
            delivered=delivered, **more,
        )  # fmt: skip
        return made, hits

    return judge


def test_a_tool_that_changes_nothing_is_judged_like_raw_video(judge, squares, tmp_path):
    folders = parse([f"nothing={copied(read_rows(squares), tmp_path / 'copies')}"], REPRESENTATIONS)
    made, hits = judge(ASKED, {name: delivered_rows(read_rows(squares), folder) for name, folder in folders.items()})
    assert list(made.representations) == ["raw", "delivered nothing"]
    for task, attackers in hits["raw"].items():
        for attacker, answers in attackers.items():
            assert np.array_equal(answers, hits["delivered nothing"][task][attacker])
    assert made.representations["raw"] == made.representations["delivered nothing"]


def test_a_tool_that_paints_all_black_leaves_nobody_to_name(judge, squares, tmp_path):
    folder = tmp_path / "black"
    folder.mkdir()
    for row in read_rows(squares):
        black(folder / f"{row.path.stem}.mkv")
    _, hits = judge(ASKED, {"delivered black": delivered_rows(read_rows(squares), folder)})
    assert hits["delivered black"]["identity"]["frame-convnet"].mean() == 0.5  # two people, one answer for all
    assert hits["delivered black"]["retrieval_all"]["frame-convnet"].mean() == pytest.approx(0.25)


def test_files_that_changed_are_judged_anew_and_others_are_kept(judge, squares, tmp_path):
    rows = read_rows(squares)
    folder = copied(rows, tmp_path / "copies")
    first, _ = judge(ASKED, {"delivered one": delivered_rows(rows, folder)})
    again, hits = judge(ASKED, {"delivered one": delivered_rows(rows, folder)}, before=first)
    assert hits == {}  # nothing was judged
    assert again.representations == first.representations
    black(folder / rows[0].path.name)
    _, hits = judge(ASKED, {"delivered one": delivered_rows(rows, folder)}, before=again)
    assert list(hits) == ["delivered one"]
    other, hits = judge(ASKED, {"delivered two": delivered_rows(rows, folder)}, before=again)
    assert list(hits) == ["delivered two"]
    assert list(other.representations) == ["raw", "delivered one", "delivered two"]
    assert other.data["delivered"].keys() == {"delivered one", "delivered two"}


def test_no_inverter_is_let_at_frames_that_may_be_out_of_step(judge, squares, tmp_path):
    rows = read_rows(squares)
    files = {"delivered one": delivered_rows(rows, copied(rows, tmp_path / "copies"))}
    made, _ = judge(replace(ASKED, inversion=True), files)
    assert made.representations["raw"].reconstruction
    assert made.representations["delivered one"].reconstruction is None
    assert "reconstruction of delivered one: its frames need not be in step" in made.not_measured


@pytest.mark.parametrize("tree", ["a/one.mp4", "one.mp4", "set/a/one.mp4", "a/one.avi.mp4"])
def test_a_mirrored_tree_fits_whichever_folder_it_mirrors(tmp_path, squares, tree):
    row = replace(read_rows(squares)[0], path=tmp_path / "set" / "a" / "one.avi")
    folder = tmp_path / "out"
    (folder / tree).parent.mkdir(parents=True)
    (folder / tree).touch()
    (folder / "b").mkdir()
    (folder / "b" / "one.mp4").touch()  # another folder's
    (folder / ".one.mp4").touch()
    (folder / "one.mp4.json").touch()
    assert [found.path for found in delivered_rows([row], folder)] == [folder / tree]


def test_missing_and_doubtful_files_are_named(tmp_path, squares):
    base = read_rows(squares)[0]
    rows = [replace(base, path=tmp_path / "set" / name) for name in ("a/one.avi", "b/one.avi", "b/two.avi")]
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "one.mp4").touch()
    with pytest.raises(UserError, match=r"nothing for 1 of 3 videos \(.*two\.avi\); files must bear"):
        delivered_rows(rows, folder)
    (folder / "two.mp4").touch()
    with pytest.raises(UserError, match=r"one\.mp4 would stand for 2 videos; mirror"):
        delivered_rows(rows, folder)
    still = replace(base, path=tmp_path / "set" / "still.png")
    assert delivered_rows([still], folder) == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["folder"], "must be NAME=FOLDER"),
        (["=."], "must be NAME=FOLDER"),
        (["one="], "must be NAME=FOLDER"),
        (["raw=."], "'raw' is taken"),
        (["a,b=."], "holds a comma"),
        (["one=.", "one=."], "'one' is taken"),
        (["one=/nowhere"], "/nowhere is no folder"),
    ],
)
def test_bad_words_are_told(words, told):
    with pytest.raises(UserError, match=told):
        parse(words, REPRESENTATIONS)


def test_evaluate_tells_of_delivered_files(made_up_run, squares, tmp_path, fast, capsys):
    run = made_up_run(tmp_path / "run", fast)
    folder = copied(read_rows(squares), tmp_path / "copies")
    words = ["evaluate", str(run), "--only", "anonymized", "--attackers", "frame-convnet", "--seeds", "1"]
    assert main([*words, "--delivered", f"copies={folder}"]) == 0
    assert "delivered copies" in capsys.readouterr().out
    first = folder / read_rows(squares)[0].path.name
    first.write_bytes(b"no video")
    assert main([*words, "--delivered", f"copies={folder}", "--out", str(tmp_path / "damaged.json")]) == 2
    said = capsys.readouterr().err
    assert "--delivered: 1 of 16 files cannot be read; deliver them again" in said
    assert f"{first}: not a video" in said
    assert not (tmp_path / "damaged.json").exists()  # told before anything was judged
    first.unlink()
    assert main([*words, "--delivered", f"copies={folder}"]) == 2
    assert "nothing for 1 of" in capsys.readouterr().err
