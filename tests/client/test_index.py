"""`fedspact index` on miniature trees in exactly the published forms."""

import argparse
import csv
import json
import os
import sys
from pathlib import Path

import pytest

from client.video.hmdb51 import recording
from client.video.index import add_arguments, run
from client.video.pa_hmdb51 import video_value
from client.video.rows import Row, read_rows
from client.video.vispr import LABELS, VISPR1, VISPR2
from spact_models.errors import UserError


def touched(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"pixels")
    return path


def written(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode())
    return path


def index(root: Path, *options: object, out: Path | None = None) -> dict[str, Row]:
    """Run the verb; rows by path relative to the folder."""
    manifest = out or root.parent / f"{root.name}.csv"
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert run(parser.parse_args([str(root), "--out", str(manifest), *map(str, options)])) == 0
    return {row.path.relative_to(root).as_posix(): row for row in read_rows(manifest)}


def refused(root: Path, *options: object) -> str:
    with pytest.raises(UserError) as raised:
        index(root, *options)
    assert not (root.parent / f"{root.name}.csv").exists()
    return str(raised.value)


def skipped(root: Path) -> dict[str, tuple[str, str]]:
    """File name -> (kept, reason), as written beside the manifest."""
    file = root.parent / f"{root.name}.csv.skipped.csv"
    if not file.exists():
        return {}
    with file.open(newline="", encoding="utf-8") as text:
        return {Path(line["path"]).name: (line["kept"], line["reason"]) for line in csv.DictReader(text)}


# --- a site's own folders


def test_a_folder_per_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "site"
    for name in ("walk/a.mp4", "walk/deep/er/b.MOV", 'fall, "hard"/x\ny.avi', "挥手/c.jpg", "loose.mkv"):
        touched(root / name)
    rows = index(root)
    assert {name: row.action for name, row in rows.items()} == {
        "walk/a.mp4": "walk",
        "walk/deep/er/b.MOV": "walk",
        'fall, "hard"/x\ny.avi': 'fall, "hard"',
        "挥手/c.jpg": "挥手",
        "loose.mkv": None,
    }
    assert {row.split for row in rows.values()} == {""}
    shown = capsys.readouterr().out
    assert "folders (recognised)" in shown
    assert "5: 4 videos, 1 images" in shown
    assert "3: " in shown
    assert "1 rows unlabelled" in shown
    assert "not decided 5" in shown
    assert not skipped(root)


def test_split_folders_above_the_classes(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for name in ("train/walk/a.mp4", "val/walk/b.mp4", "test/box/c.mp4"):
        touched(root / name)
    rows = index(root)
    assert {name: (row.action, row.split) for name, row in rows.items()} == {
        "train/walk/a.mp4": ("walk", "train"),
        "val/walk/b.mp4": ("walk", "train"),
        "test/box/c.mp4": ("box", "test"),
    }
    touched(root / "walk" / "d.mp4")  # now train, val and test are three classes among others
    assert index(root, "--force")["train/walk/a.mp4"].action == "train"


def test_a_folder_too_high_is_noticed_by_its_single_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "set"
    for name in ("videos/walk/a.mp4", "videos/box/b.mp4"):
        touched(root / name)
    index(root)
    shown = capsys.readouterr().out
    assert "note: only one class, videos; training needs two" in shown
    assert "not decided 2 (training decides" in shown
    assert "0; 2 rows without, each counts as a source of its own" in shown
    index(root / "videos")
    assert "note:" not in capsys.readouterr().out


def test_a_flat_folder_and_flat_by_wish(tmp_path: Path) -> None:
    flat, deep = tmp_path / "flat", tmp_path / "deep"
    touched(flat / "a.mp4")
    touched(flat / "b.png")
    touched(deep / "day1" / "a.mp4")
    assert [row.action for row in index(flat).values()] == [None, None]
    assert index(deep, "--format", "flat")["day1/a.mp4"] == Row(deep / "day1" / "a.mp4")


def test_everything_left_out_is_named_with_its_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "site"
    for name in ("walk/a.mp4", "walk/.hidden.mp4", ".git/x.mp4", "walk/notes.txt", "walk/README", "walk/Thumbs.db"):
        touched(root / name)
    (root / "walk" / "gone.mp4").symlink_to(root / "nowhere.mp4")
    (root / "walk" / "linked.mp4").symlink_to(touched(tmp_path / "away" / "w.mp4"))
    touched(tmp_path / "elsewhere" / "v.mp4")
    (root / "walk" / "loop").symlink_to(root)
    (root / "linked class").symlink_to(tmp_path / "elsewhere")
    assert set(index(root)) == {"walk/a.mp4", "walk/linked.mp4", "linked class/v.mp4"}
    reasons = {
        ".hidden.mp4": "hidden file",
        ".git": "hidden folder",
        "notes.txt": "not a video or image (.txt)",
        "README": "not a video or image (no suffix)",
        "Thumbs.db": "not a video or image (.db)",
        "gone.mp4": "broken link",
        "loop": "link to a folder already looked through",
    }
    assert skipped(root) == {name: ("no", reason) for name, reason in reasons.items()}
    shown = capsys.readouterr().out
    assert "left out    7" in shown
    for name, reason in reasons.items():
        assert f"1 {reason}: {name}" in shown


def test_a_file_under_two_names_is_one_row_and_its_own_name_wins(tmp_path: Path) -> None:
    real = tmp_path / "real"
    touched(real / "walk" / "v.mp4")
    touched(real / ".store" / "blob")
    (real / "latest.mp4").symlink_to(real / "walk" / "v.mp4")
    (real / "a linked class").symlink_to(real / "walk")
    (real / "walk" / "up").symlink_to(tmp_path)
    for name in ("b.mp4", "c.mp4"):  # as content stores lay files out: links into a hidden folder
        (real / "walk" / name).symlink_to(real / ".store" / "blob")
    root = tmp_path / "site"
    root.symlink_to(real)
    assert set(index(root)) == {"walk/v.mp4", "walk/b.mp4"}
    found = skipped(root)
    assert found["latest.mp4"] == found["c.mp4"] == ("no", "link to a file already listed")
    assert found["a linked class"] == ("no", "link to a folder already looked through")


@pytest.mark.skipif(sys.platform != "linux", reason="needs pipes and file names of any bytes")
def test_names_of_odd_bytes_pipes_and_closed_folders_are_reported(tmp_path: Path) -> None:
    root = tmp_path / "site"
    touched(root / "walk" / "a.mp4")
    os.mkfifo(root / "walk" / "pipe.mp4")
    (root / os.fsdecode(b"\xff.mp4")).write_bytes(b"x")
    expected = {
        "pipe.mp4": ("no", "not an ordinary file"),
        "\\udcff.mp4": ("no", "name is not valid UTF-8; rename it"),
    }
    if os.geteuid() != 0:  # nothing is closed to root
        touched(root / "closed" / "b.mp4").parent.chmod(0)
        expected["closed"] = ("no", "cannot be opened (Permission denied)")
    assert set(index(root)) == {"walk/a.mp4"}
    assert skipped(root) == expected


def test_out_inside_the_folder_is_not_its_own_finding(tmp_path: Path) -> None:
    root = tmp_path / "site"
    touched(root / "walk" / "a.mp4")
    touched(root / "walk" / "b.txt")
    first = index(root, out=root / "m.csv")
    list_of_skipped = root / "m.csv.skipped.csv"
    before = list_of_skipped.read_text()
    assert index(root, "--force", out=root / "m.csv") == first
    assert list_of_skipped.read_text() == before
    (root / "walk" / "b.txt").unlink()
    index(root, "--force", out=root / "m.csv")
    assert not list_of_skipped.exists()


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    root = tmp_path / "site"
    touched(root / "a.mp4")
    precious = written(tmp_path / "site.csv", "mine")
    with pytest.raises(UserError, match="--force"):
        index(root)
    assert precious.read_text() == "mine"
    index(root, "--force")
    with pytest.raises(UserError, match="is a folder"):
        index(root, "--force", out=tmp_path)


def test_wrong_folders_and_options(tmp_path: Path) -> None:
    root = tmp_path / "site"
    assert "does not exist" in refused(root)
    assert "is a file" in refused(touched(tmp_path / "file"))
    root.mkdir()
    assert "is empty" in refused(root)
    touched(root / "notes.txt")
    assert "1 not a video or image (.txt)" in refused(root)
    assert "holds no video" in refused(root, "--format", "flat")
    touched(root / "walk" / "a.mp4")
    assert "ucf101, hmdb51" in refused(root, "--format", "kinetics")
    assert "UCF101" in refused(root, "--format", "ucf101")
    assert "--splits" in refused(root, "--splits", tmp_path)
    assert "read as folders" in refused(root, "--attributes", "vispr1")
    assert "no image" in refused(root, "--format", "vispr")
    assert "needs the official split files" in refused(root, "--format", "hmdb51", "--fold", 2)
    touched(root / "walk " / "b.mp4")
    assert "'walk '" in refused(root)


# --- UCF101


def make_ucf101(root: Path) -> None:
    for name in (
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi",
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi",
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c02.avi",
        "HandstandPushups/v_HandStandPushups_g01_c01.avi",  # the published set spells this class in two ways
        "HandstandPushups/v_HandStandPushups_g08_c04.avi",
    ):
        touched(root / "UCF-101" / name)
    lists = root / "ucfTrainTestlist"
    written(lists / "classInd.txt", "1 ApplyEyeMakeup\r\n37 HandstandPushups\r\n\r\n")
    written(
        lists / "trainlist01.txt",
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1\r\nHandstandPushups/v_HandStandPushups_g08_c04.avi 37\r\n"
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g09_c01.avi 1\r\n",
    )
    written(
        lists / "testlist01.txt",
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi\r\nHandstandPushups/v_HandStandPushups_g01_c01.avi\r\n",
    )
    written(lists / "trainlist02.txt", "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi 1\r\n")
    written(lists / "testlist02.txt", "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c02.avi\r\n")


def test_ucf101_with_its_official_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "ucf"
    make_ucf101(root)
    rows = index(root)
    assert {name.split("/")[-1]: (row.action, row.split, row.source) for name, row in rows.items()} == {
        "v_ApplyEyeMakeup_g01_c01.avi": ("ApplyEyeMakeup", "test", "ApplyEyeMakeup_g01"),
        "v_ApplyEyeMakeup_g08_c01.avi": ("ApplyEyeMakeup", "train", "ApplyEyeMakeup_g08"),
        "v_HandStandPushups_g01_c01.avi": ("HandstandPushups", "test", "HandstandPushups_g01"),
        "v_HandStandPushups_g08_c04.avi": ("HandstandPushups", "train", "HandstandPushups_g08"),
    }
    assert skipped(root) == {
        "v_ApplyEyeMakeup_g08_c02.avi": ("no", "on disk, not in the split"),
        "v_ApplyEyeMakeup_g09_c01.avi": ("no", "listed in the split, not on disk"),
    }
    shown = capsys.readouterr().out
    assert "ucf101 (recognised)" in shown
    assert "train 2, test 2, not decided 0 (fold 1" in shown
    assert "1 listed in the split, not on disk: v_ApplyEyeMakeup_g09_c01.avi" in shown
    second = index(root, "--force", "--fold", 2)
    assert sorted(row.split for row in second.values()) == ["test", "train"]


def test_ucf101_without_split_or_converted(tmp_path: Path) -> None:
    root = tmp_path / "UCF-101"
    touched(root / "Archery" / "v_Archery_g07_c01.mp4")
    touched(root / "Archery" / "v_Archery_g07_c02.mp4")
    rows = index(root)
    assert {(row.split, row.source) for row in rows.values()} == {("", "Archery_g07")}
    lists = tmp_path / "lists"
    written(lists / "classInd.txt", "3 Archery\n")
    written(lists / "trainlist03.txt", "Archery/v_Archery_g07_c01.avi 3\n")
    written(lists / "testlist03.txt", "Archery/v_Archery_g07_c02.avi\n")
    rows = index(root, "--splits", lists, "--fold", 3, "--force")
    assert [row.split for row in rows.values()] == ["train", "test"]


def test_ucf101_odd_files_are_named(tmp_path: Path) -> None:
    root = tmp_path / "UCF-101"
    touched(root / "Archery" / "v_Archery_g07_c01.avi")
    touched(root / "Archery" / "v_Archery_g07_c01.mp4")
    touched(root / "Archery" / "trailer.avi")
    assert len(index(root, "--format", "ucf101")) == 1
    assert skipped(root) == {
        "v_Archery_g07_c01.mp4": ("no", "same class and name as another file"),
        "trailer.avi": ("no", "name is not v_<Class>_gGG_cCC"),
    }


@pytest.mark.parametrize(
    ("file", "content", "parts"),
    [
        ("trainlist01.txt", None, ["trainlist01.txt", "cannot be read"]),
        ("classInd.txt", "ApplyEyeMakeup 1\n", ["classInd.txt: line 1", "<number> <Class>"]),
        ("trainlist01.txt", "\nApplyEyeMakeup/x.avi 2\n", ["trainlist01.txt: line 2", "classInd.txt"]),
        ("trainlist01.txt", "Bowling/x.avi 1\n", ["line 1", "Bowling", "classInd.txt"]),
        ("trainlist01.txt", "x.avi 1\n", ["line 1", "must be <Class>/<name>.avi"]),
        ("trainlist01.txt", "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi 1\n", ["testlist01.txt: line 1", "twice"]),
    ],
)
def test_ucf101_broken_lists(tmp_path: Path, file: str, content: str | None, parts: list[str]) -> None:
    root = tmp_path / "ucf"
    make_ucf101(root)
    list_file = root / "ucfTrainTestlist" / file
    list_file.unlink()
    if content is not None:
        written(list_file, content)
    message = refused(root)
    for part in parts:
        assert part in message


def test_ucf101_lists_of_another_set(tmp_path: Path) -> None:
    root = tmp_path / "ucf"
    make_ucf101(root)
    lists = tmp_path / "lists"
    written(lists / "classInd.txt", "1 Golf\n")
    written(lists / "trainlist01.txt", "Golf/v_Golf_g01_c01.avi 1\n")
    written(lists / "testlist01.txt", "")
    assert "none of them lies below" in refused(root, "--splits", lists)


# --- HMDB51

HUG = [
    "-_FREE_HUGS_-_Abrazos_hug_u_cm_np2_le_goo_0.avi",
    "-_FREE_HUGS_-_Abrazos_hug_u_cm_np2_ba_goo_2.avi",
    '#1 Fan! [NEW]; it\'s, "me"_hug_f_nm_np1_fr_med_1.avi',
    "unused_hug_f_nm_np1_fr_bad_0.avi",
]
BRUSH = ["Brushing_Her_Hair__[_NEW_AUDIO_]_UPDATED!!!!_brush_hair_h_cm_np1_le_goo_1.avi", "not in the list.avi"]


def make_hmdb51(root: Path) -> Path:
    for name in HUG:
        touched(root / "hug" / name)
    for name in BRUSH:
        touched(root / "brush_hair" / name)
    lists = root.parent / "testTrainMulti_7030_splits"
    written(lists / "hug_test_split1.txt", f"{HUG[0]} 1 \n{HUG[1]} 1 \n{HUG[2]} 2 \n{HUG[3]} 0 \n")
    written(lists / "brush_hair_test_split1.txt", f"{BRUSH[0]} 2 \ngone_brush_hair_u_cm_np1_ba_goo_0.avi 1 \n")
    written(lists / "hug_test_split2.txt", f"{HUG[0]} 2 \n{HUG[3]} 1 \n")
    return lists


def test_hmdb51_with_its_official_split_and_odd_names(tmp_path: Path) -> None:
    root = tmp_path / "hmdb51"
    lists = make_hmdb51(root)
    rows = index(root, "--splits", lists)
    assert {name.partition("/")[2]: (row.action, row.split, row.source) for name, row in rows.items()} == {
        HUG[0]: ("hug", "train", "-_FREE_HUGS_-_Abrazos"),
        HUG[1]: ("hug", "train", "-_FREE_HUGS_-_Abrazos"),
        HUG[2]: ("hug", "test", '#1 Fan! [NEW]; it\'s, "me"'),
        BRUSH[0]: ("brush_hair", "test", "Brushing_Her_Hair__[_NEW_AUDIO_]_UPDATED!!!!"),
    }
    assert skipped(root) == {
        HUG[3]: ("no", "unused in fold 1 (code 0)"),
        BRUSH[1]: ("no", "on disk, not in the split"),
        "gone_brush_hair_u_cm_np1_ba_goo_0.avi": ("no", "listed in the split, not on disk"),
    }
    second = index(root, "--splits", lists, "--fold", 2, "--force")
    assert {name.partition("/")[2]: row.split for name, row in second.items()} == {HUG[0]: "test", HUG[3]: "train"}


def test_hmdb51_without_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "hmdb51"
    make_hmdb51(root)
    rows = index(root)
    assert len(rows) == 6
    assert rows[f"brush_hair/{BRUSH[1]}"] == Row(root / "brush_hair" / BRUSH[1], "brush_hair")
    shown = capsys.readouterr().out
    assert "hmdb51 (recognised)" in shown
    assert "1 rows without" in shown


def test_hmdb51_source_is_the_recording(tmp_path: Path) -> None:
    for name, source in (
        (HUG[2], '#1 Fan! [NEW]; it\'s, "me"'),
        (" spaced _hug_u_cm_np2_le_goo_0.avi", "spaced"),
        ("x_Hug_f_nm_np-1_fr_bad_12.mp4", "x"),
        ("hug_hug_hug_u_cm_np2_le_goo_0.avi", "hug_hug"),
        ("of_another_class_kiss_u_cm_np2_le_goo_0.avi", None),
        ("holiday.avi", None),
    ):
        assert recording(tmp_path / "hug" / name) == source


def test_hmdb51_broken_lists(tmp_path: Path) -> None:
    root = tmp_path / "hmdb51"
    lists = make_hmdb51(root)
    assert "fold 3" in refused(root, "--splits", lists, "--fold", 3)
    written(lists / "hug_test_split1.txt", f"\n{HUG[0]} 3 \n")
    message = refused(root, "--splits", lists)
    assert "hug_test_split1.txt: line 2" in message
    assert "0 (unused)" in message
    written(lists / "hug_test_split1.txt", f"{HUG[0]} 1 \n{HUG[0]} 2 \n")
    assert "line 2" in refused(root, "--splits", lists)
    touched(root / "loose_hug_u_cm_np2_ba_goo_2.avi")
    index(root, "--format", "hmdb51")
    assert skipped(root) == {"loose_hug_u_cm_np2_ba_goo_2.avi": ("no", "lies in no class folder")}


# --- VISPR


def make_vispr(root: Path, labels: Path) -> None:
    for folder, name, present in (
        ("train2017", "2017_10000001", ["a4_gender", "a9_face_complete", "a16_race"]),
        ("train2017", "2017_10000002", ["a0_safe"]),
        ("val2017", "2017_10000003", ["a65_rel_social", "a1_age_approx"]),
        ("test2017", "2017_10000004", ["a17_color"]),
    ):
        touched(root / folder / f"{name}.jpg")
        content = {"id": name, "image_path": f"images/{folder}/{name}.jpg", "labels": present}
        written(labels / folder / f"{name}.json", json.dumps(content))


def test_vispr_attributes_are_columns_and_folders_are_splits(tmp_path: Path) -> None:
    root = tmp_path / "vispr"
    make_vispr(root / "images", root / "annotations")
    rows = index(root)
    assert {name.split("/")[-1]: row.split for name, row in rows.items()} == {
        "2017_10000001.jpg": "train",
        "2017_10000002.jpg": "train",
        "2017_10000003.jpg": "train",
        "2017_10000004.jpg": "test",
    }
    first = rows["images/train2017/2017_10000001.jpg"]
    assert first.is_image
    assert first.action is None
    assert tuple(first.attributes) == VISPR1
    assert {name for name, value in first.attributes.items() if value == "1"} == {"a4_gender", "a9_face_complete"}
    assert set(rows["images/train2017/2017_10000002.jpg"].attributes.values()) == {"0"}
    assert not skipped(root)


def test_vispr_subsets(tmp_path: Path) -> None:
    root, labels = tmp_path / "vispr", tmp_path / "annotations"
    make_vispr(root, labels)
    rows = index(root, "--labels", labels, "--attributes", "vispr2")
    ones = {n for row in rows.values() for n, value in row.attributes.items() if value == "1"}
    assert tuple(rows["train2017/2017_10000001.jpg"].attributes) == VISPR2
    assert ones == {"a16_race", "a1_age_approx"}
    rows = index(root, "--labels", labels, "--attributes", "a65_rel_social, a0_safe", "--force")
    assert rows["val2017/2017_10000003.jpg"].attributes == {"a65_rel_social": "1", "a0_safe": "0"}
    (tmp_path / "vispr.csv").unlink()
    assert "nearest is a4_gender" in refused(root, "--labels", labels, "--attributes", "a4_gendr")
    assert "twice" in refused(root, "--labels", labels, "--attributes", "a4_gender,a4_gender")
    assert len(LABELS) == 68
    assert {*VISPR1, *VISPR2} <= LABELS


def test_vispr_labels_in_one_folder_of_a_split_and_its_own_folder_as_root(tmp_path: Path) -> None:
    root = tmp_path / "train2017"
    touched(root / "2017_1.jpg")
    written(tmp_path / "train2017_annotation" / "2017_1.json", '{"labels": ["a4_gender"]}')
    rows = index(root, "--labels", tmp_path / "train2017_annotation", "--attributes", "a4_gender")
    assert rows["2017_1.jpg"] == Row(root / "2017_1.jpg", split="train", attributes={"a4_gender": "1"})


def test_vispr_labels_never_cross_between_splits(tmp_path: Path) -> None:
    root = tmp_path / "vispr"
    for folder, label in (("train2017", "a4_gender"), ("test2017", "a0_safe")):
        touched(root / folder / "2017_1.jpg")
        written(root / "annotations" / folder / "2017_1.json", json.dumps({"labels": [label]}))
    touched(root / "val2017" / "2017_1.jpg")
    rows = index(root, "--attributes", "a4_gender")
    assert rows["train2017/2017_1.jpg"].attributes == {"a4_gender": "1"}
    assert rows["test2017/2017_1.jpg"].attributes == {"a4_gender": "0"}
    assert rows["val2017/2017_1.jpg"].attributes == {}


def test_vispr_unlabelled_images_are_kept_and_named(tmp_path: Path) -> None:
    root = tmp_path / "vispr"
    make_vispr(root, root)
    written(root / "train2017" / "2017_10000001.json", "{")
    written(root / "train2017" / "2017_10000002.json", '{"image_path": "x"}')
    (root / "val2017" / "2017_10000003.json").unlink()
    (root / "test2017" / "2017_10000004.jpg").unlink()
    touched(root / "test2017" / "readme.txt")
    rows = index(root)
    assert [dict(row.attributes) for row in rows.values()] == [{}, {}, {}]
    assert skipped(root) == {
        "2017_10000001.jpg": ("yes", 'label file is not {"labels": [...]}: attributes unknown'),
        "2017_10000002.jpg": ("yes", 'label file is not {"labels": [...]}: attributes unknown'),
        "2017_10000003.jpg": ("yes", "no label file: attributes unknown"),
        "2017_10000004.json": ("no", "label file without an image"),
        "readme.txt": ("no", "not a video or image (.txt)"),
    }


def test_vispr_without_any_labels(tmp_path: Path) -> None:
    root = tmp_path / "vispr"
    touched(root / "test2017" / "2017_1.jpg")
    assert "no label file" in refused(root, "--attributes", "vispr1")
    assert index(root) == {"test2017/2017_1.jpg": Row(root / "test2017" / "2017_1.jpg", split="test")}
    assert "no label files" in skipped(root)["vispr"][1]


# --- PA-HMDB51


def spans(*values: object) -> list[list[object]]:
    """Ten frames to each value, one after the other."""
    return [[10 * i, 10 * i + 9, value] for i, value in enumerate(values)]


def labels_of(**changed: object) -> dict[str, object]:
    usual = {"face": spans(1), "gender": spans(2), "skin_color": spans(1), "nudity": spans(0), "relationship": spans(0)}
    return {**usual, "review": True, "note": "", **changed}


def test_pa_hmdb51_labels_become_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "hmdb51"
    lists = make_hmdb51(root)
    hug = {
        HUG[0]: labels_of(face=spans(0, 0, 2), gender=spans(1, [1, 2], [2, 1])),
        HUG[2]: labels_of(nudity=spans(0, 1, 2, 2)),
        HUG[3]: labels_of(),
        "gone_hug_u_cm_np2_ba_goo_2.avi": labels_of(),
    }
    written(root / "PrivacyAttributes" / "hug.json", json.dumps(hug))
    written(
        root / "PrivacyAttributes" / "brush_hair.json", json.dumps({BRUSH[0]: labels_of(face=[], nudity=[[9, 0, 1]])})
    )
    rows = index(root)
    assert "pa-hmdb51 (recognised)" in capsys.readouterr().out
    assert rows[f"hug/{HUG[0]}"] == Row(
        root / "hug" / HUG[0],
        "hug",
        source="-_FREE_HUGS_-_Abrazos",
        attributes={"face": "2", "gender": "1+2", "skin_color": "1", "nudity": "0", "relationship": "0"},
    )
    assert rows[f"hug/{HUG[2]}"].attributes["nudity"] == "2"
    assert rows[f"brush_hair/{BRUSH[0]}"].attributes == {"gender": "2", "skin_color": "1", "relationship": "0"}
    with (tmp_path / "hmdb51.csv.skipped.csv").open(newline="") as text:
        found = {(Path(line["path"]).name, line["kept"], line["reason"]) for line in csv.DictReader(text)}
    assert found == {
        (HUG[1], "no", "no PA-HMDB51 label"),
        (BRUSH[1], "no", "no PA-HMDB51 label"),
        ("gone_hug_u_cm_np2_ba_goo_2.avi", "no", "labelled, not on disk"),
        (BRUSH[0], "yes", "no label for face"),
        (BRUSH[0], "yes", "label for nudity is not [first, last, value] spans"),
    }
    with_split = index(root, "--splits", lists, "--force")
    assert {name.partition("/")[2]: row.split for name, row in with_split.items()} == {
        HUG[0]: "train",
        HUG[2]: "test",
        BRUSH[0]: "test",
    }
    assert skipped(root)[HUG[3]] == ("no", "unused in fold 1 (code 0)")


def test_pa_hmdb51_labels_elsewhere_and_broken(tmp_path: Path) -> None:
    root, labels = tmp_path / "hmdb51", tmp_path / "labels"
    make_hmdb51(root)
    assert "does not exist" in refused(root, "--format", "pa-hmdb51")
    written(labels / "hug.json", json.dumps({HUG[0]: labels_of()}))
    assert list(index(root, "--labels", labels)) == [f"hug/{HUG[0]}"]
    (tmp_path / "hmdb51.csv").unlink()
    (tmp_path / "hmdb51.csv.skipped.csv").unlink()
    written(labels / "hug.json", '{"a.avi": ')
    assert "hug.json: cannot be read as JSON" in refused(root, "--labels", labels)
    written(labels / "hug.json", '{"a.avi": [1]}')
    assert "must map" in refused(root, "--labels", labels)
    written(labels / "hug.json", '{"a.avi": {}}')
    assert "labels no video" in refused(root, "--labels", labels)


@pytest.mark.parametrize(
    ("spans_of", "value"),
    [
        ([(0, 99, 0)], "0"),
        ([(0, 98, 0), (99, 99, 1)], "1"),  # seen in one frame is seen
        ([(0, 9, 1), (10, 30, 2)], "2"),
        ([(0, 9, 1), (10, 19, 2), (20, 29, 1)], "1"),  # spans of one value add up
        ([(0, 9, 1), (10, 19, 2)], "2"),  # of equals the larger
        ([(0, 9, 0), (5, 5, [1, 2])], "1+2"),
        ([(0, 3, [2, 1]), (4, 7, [1, 2]), (8, 14, 3)], "1+2"),
        ([(0, 9, [0, 2])], "2"),
    ],
)
def test_one_value_for_a_video(spans_of: list[tuple[int, int, int | list[int]]], value: str) -> None:
    assert video_value(spans_of) == value
    frame_by_frame: dict[str, int] = {}
    for first, last, kinds in spans_of:
        for _ in range(first, last + 1):
            name = "+".join(str(kind) for kind in sorted(set(kinds if isinstance(kinds, list) else [kinds]) - {0}))
            frame_by_frame[name] = frame_by_frame.get(name, 0) + 1
    frame_by_frame.pop("", None)
    assert frame_by_frame.get(value, 0) == max(frame_by_frame.values(), default=0)
