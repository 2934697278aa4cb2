"""The manifest: what goes in comes out, and every mistake is named with file, line, value and remedy."""

import os
import pickle
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from client.video.rows import Row, class_names, hold_out, read_rows, write_rows
from spact_models.errors import UserError

ODD_NAMES = [
    "plain.mp4",
    "a, b.mp4",
    'she said "no".avi',
    "line\nbreak.mp4",
    "carriage\rreturn.mp4",
    "both\r\nof them.mp4",
    " spaces around .mp4 ",
    "#hash! [x]; 'y' %41.avi",
    "Grüße 挥手 🎬.mkv",
    "tab\there.mov",
    "-dash.mp4",
    "=SUM(A1).mp4",
]


def touched(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"video")
    return path


def manifest_of(folder: Path, text: str, *names: str) -> Path:
    for name in names:
        touched(folder / name)
    manifest = folder / "manifest.csv"
    manifest.write_text(text, encoding="utf-8")
    return manifest


def message_of(manifest: Path) -> str:
    with pytest.raises(UserError) as raised:
        read_rows(manifest)
    return str(raised.value)


@pytest.mark.parametrize("odd", ODD_NAMES)
def test_odd_names_come_back_exactly(tmp_path: Path, odd: str) -> None:
    value = odd.strip()
    rows = [
        Row(touched(tmp_path / odd), value, value, "train", value, {value: value, "identity": "1"}),
        Row(touched(tmp_path / "folder" / odd), "walk", split="test"),
    ]
    write_rows(rows, tmp_path / "manifest.csv")
    assert read_rows(tmp_path / "manifest.csv") == rows


def test_many_odd_names_in_one_table(tmp_path: Path) -> None:
    rows = [Row(touched(tmp_path / "clips" / name)) for name in ODD_NAMES]
    write_rows(rows, tmp_path / "manifest.csv")
    assert read_rows(tmp_path / "manifest.csv") == rows


def test_rows_with_little_and_much_known_come_back(tmp_path: Path) -> None:
    rows = [
        Row(touched(tmp_path / "a.mp4")),
        Row(touched(tmp_path / "b.mp4"), "walk", attributes={"identity": "p1", "clothes": ""}),
        Row(touched(tmp_path / "c.jpg"), site="ward", attributes={"background": "0"}),
    ]
    write_rows(rows, tmp_path / "m.csv")
    assert read_rows(tmp_path / "m.csv") == rows
    assert (tmp_path / "m.csv").read_text().splitlines()[0] == "path,action,site,split,source,identity,background"


def test_paths_are_relative_inside_the_folder_and_the_folder_can_move(tmp_path: Path) -> None:
    inside, outside = touched(tmp_path / "here" / "sub" / "a.mp4"), touched(tmp_path / "there" / "b.mp4")
    write_rows([Row(inside), Row(outside)], tmp_path / "here" / "m.csv")
    lines = (tmp_path / "here" / "m.csv").read_text().splitlines()
    assert lines[1] == "sub/a.mp4,,,,"
    assert lines[2] == f"{outside},,,,"
    (tmp_path / "here").rename(tmp_path / "moved")
    assert [row.path for row in read_rows(tmp_path / "moved" / "m.csv")] == [
        tmp_path / "moved" / "sub" / "a.mp4",
        outside,
    ]


def test_box_files_travel_with_their_rows(tmp_path: Path) -> None:
    """Relative to the manifest like the videos, only where there are any, and never an attribute."""
    here = tmp_path / "here"
    rows = [
        Row(touched(here / "a.mp4"), "walk", attributes={"identity": "p1"}, boxes=here / "boxes" / " a, b .csv"),
        Row(touched(here / "b.mp4"), boxes=tmp_path / "there" / "b.csv"),
        Row(touched(here / "c.mp4")),
    ]
    write_rows(rows, here / "m.csv")
    assert read_rows(here / "m.csv") == rows
    lines = (here / "m.csv").read_text().splitlines()
    assert lines[0] == "path,action,site,split,source,boxes,identity"
    assert lines[1] == 'a.mp4,walk,,,,"boxes/ a, b .csv",p1'
    assert lines[2] == f"b.mp4,,,,,{tmp_path / 'there' / 'b.csv'},"
    write_rows(read_rows(here / "m.csv"), tmp_path / "site" / "m.csv")  # as a simulated site's manifest is written
    assert read_rows(tmp_path / "site" / "m.csv") == rows
    assert hold_out(rows, 0.4, seed=0)[0].boxes == rows[0].boxes
    with pytest.raises(ValueError, match=r"Row\.boxes"):
        Row(here / "a.mp4", boxes=Path("a.csv"))


def test_only_path_is_required_and_spreadsheet_habits_are_read(tmp_path: Path) -> None:
    manifest = manifest_of(
        tmp_path, "\ufeffpath, identity\r\na.mp4,p1\r\n\r\nsub/../b.mp4,\r\n", "a.mp4", "b.mp4", "sub/x"
    )
    assert read_rows(manifest) == [Row(tmp_path / "a.mp4", attributes={"identity": "p1"}), Row(tmp_path / "b.mp4")]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["empty", "path"]),
        ("file,action\na.mp4,walk\n", ["line 1", "'file, action'", "must include path"]),
        ("path;action\na.mp4;walk\n", ["line 1", "commas"]),
        ("path,identity,identity\na.mp4,1,2\n", ["line 1", "'identity' twice"]),
        ("path,\na.mp4,1\n", ["line 1", "column 2 has no name"]),
        ("path,action\na.mp4,walk\nsub/../a.mp4,run\n", ["line 3", "a.mp4", "already on line 2", "remove"]),
        ("path,boxes\na.mp4,b\0.csv\n", ["line 2", "boxes = 'b\\x00.csv'", "must name a file"]),
        ('path,action\n"a\n.mp4",walk\na.mp4,walk\na.mp4,run\n', ["line 5", "already on line 4"]),
        ("path,split\na.mp4,val\n", ["line 2", "split = 'val'", "train, test or empty"]),
        ("path,split\na.mp4,Train\n", ["line 2", "split = 'Train'"]),
        ("path,action\nb.mp4,walk\n", ["1 of 1", "line 2", "b.mp4", "does not exist", "fedspact index"]),
        ("path\nfolder\n", ["line 2", "is a folder"]),
        ("path,action\n,walk\n", ["line 2", "path = ''"]),
        ("path,action\na.mp4,walk,x\n", ["line 2", "3 values, must be 2", "quotes"]),
        ("path,action\na.mp4\n", ["line 2", "1 values, must be 2"]),
        ("path,action\na.mp4, walk\n", ["line 2", "action = ' walk'", "space"]),
        ('path,action\na.mp4,"walk\n', ["line 2", "quote"]),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, parts: list[str]) -> None:
    message = message_of(manifest_of(tmp_path, text, "a.mp4", "a\n.mp4", "folder/x"))
    assert str(tmp_path / "manifest.csv") in message
    for part in parts:
        assert part in message


def test_many_missing_files_are_counted_and_may_be_left_to_the_decoder(tmp_path: Path) -> None:
    manifest = manifest_of(tmp_path, "path\n" + "".join(f"{i}.mp4\n" for i in range(9)) + "here.mp4\n", "here.mp4")
    message = message_of(manifest)
    assert "9 of 10 paths" in message
    assert "and 4 more" in message
    assert len(read_rows(manifest, must_exist=False)) == 10


def test_unreadable_manifests_are_named(tmp_path: Path) -> None:
    assert "cannot be read" in message_of(tmp_path / "none.csv")
    assert "cannot be read" in message_of(tmp_path)
    (tmp_path / "latin.csv").write_bytes("path\na.mp4\ngrüße.mp4\n".encode("latin-1"))
    assert "line 3: not UTF-8" in message_of(tmp_path / "latin.csv")


def test_writing_is_whole_or_not_at_all(tmp_path: Path) -> None:
    manifest = tmp_path / "m.csv"
    good = Row(touched(tmp_path / "a.mp4"), "walk")
    write_rows([good], manifest)
    before = manifest.read_bytes()
    for bad in (
        [good, good],
        [Row(good.path, "walk ")],
        [Row(good.path, attributes={"split": "x"})],
        [Row(good.path, attributes={"boxes": "x"})],
        [Row(good.path, attributes={" id": "x"})],
        [Row(Path(os.fsdecode(b"/data/\xff.mp4")))],
    ):
        with pytest.raises(UserError):
            write_rows(bad, manifest)
        assert manifest.read_bytes() == before
    with pytest.raises(UserError, match="cannot be written"):
        write_rows([good], tmp_path / "a.mp4" / "m.csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "m.csv"]
    write_rows([good], tmp_path / "new" / "folder" / "m.csv")
    assert read_rows(tmp_path / "new" / "folder" / "m.csv") == [good]


def test_a_manifest_is_for_those_whom_the_umask_lets_read(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_rows([Row(touched(tmp_path / "a.mp4"))], tmp_path / "m.csv")
    finally:
        os.umask(before)
    assert (tmp_path / "m.csv").stat().st_mode & 0o777 == 0o644


def test_a_row_is_checked_hashable_and_travels_between_processes() -> None:
    row = Row(Path("/x/a.JPG"), action="", attributes={"id": "1", "unknown": ""})
    assert row.action is None
    assert row.attributes == {"id": "1"}
    assert row.is_image
    assert not Row(Path("/x/a.mp4")).is_image
    assert pickle.loads(pickle.dumps(row)) == row
    assert len({row, Row(Path("/x/a.JPG"), attributes={"id": "1"})}) == 1
    with pytest.raises(UserError, match="split = 'val'"):
        Row(Path("/x/a.mp4"), split="val")
    with pytest.raises(ValueError, match="absolute"):
        Row(Path("a.mp4"))


def test_class_names_are_sorted_and_distinct() -> None:
    rows = [Row(Path(f"/{i}"), action) for i, action in enumerate(["walk", None, "box", "walk"])]
    assert class_names(rows) == ["box", "walk"]


def sources(sizes: dict[str, int], root: str = "/data") -> list[Row]:
    return [Row(Path(f"{root}/{name}/{i}.mp4"), source=name) for name, size in sizes.items() for i in range(size)]


def test_whole_sources_are_held_out_whatever_the_order() -> None:
    rows = sources({f"s{i}": 1 + i % 4 for i in range(40)})
    held = hold_out(rows, 0.3, seed=5)
    sides = {row.path: row.split for row in held}
    assert [row.path for row in held] == [row.path for row in rows]
    for name in {row.source for row in rows}:
        assert len({row.split for row in held if row.source == name}) == 1
    assert abs(sum(row.split == "test" for row in held) / len(rows) - 0.3) < 0.04
    shuffled = rows[:]
    random.Random(0).shuffle(shuffled)
    assert {row.path: row.split for row in hold_out(shuffled, 0.3, seed=5)} == sides
    assert {row.path: row.split for row in hold_out(rows, 0.3, seed=6)} != sides


def test_rows_without_a_source_are_dealt_one_by_one_and_alike_on_every_machine() -> None:
    here = hold_out([Row(Path(f"/here/c/{i}.mp4")) for i in range(50)], 0.2, seed=1)
    there = hold_out([Row(Path(f"/mnt/there/c/{i}.mp4")) for i in range(50)], 0.2, seed=1)
    assert Counter(row.split for row in here) == {"train": 40, "test": 10}
    assert [row.split for row in here] == [row.split for row in there]


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("sizes", [{"a": 1, "b": 1}, {"a": 100, "b": 1}, {"a": 1, "b": 1, "c": 50}])
@pytest.mark.parametrize("seed", range(6))
def test_each_side_gets_something(share: float, sizes: dict[str, int], seed: int) -> None:
    assert {row.split for row in hold_out(sources(sizes), share, seed)} == {"train", "test"}


def test_a_large_source_does_not_swallow_the_test_side() -> None:
    for seed in range(10):
        held = hold_out(sources({"large": 100} | {f"s{i}": 1 for i in range(30)}), 0.2, seed)
        assert {row.split for row in held if row.source == "large"} == {"train"}
        assert sum(row.split == "test" for row in held) == 26


def test_decided_rows_stay_and_draw_their_source_with_them() -> None:
    rows = sources({f"s{i}": 3 for i in range(10)})
    rows[0] = Row(rows[0].path, split="test", source="s0")
    rows[3] = Row(rows[3].path, split="train", source="s1")
    for seed in range(8):
        held = hold_out(rows, 0.5, seed)
        assert {row.split for row in held if row.source == "s0"} == {"test"}
        assert {row.split for row in held if row.source == "s1"} == {"train"}
        assert all(row.split for row in held)


def test_hold_out_of_nothing_of_one_and_of_an_impossible_share() -> None:
    assert hold_out([], 0.2, 0) == []
    assert [row.split for row in hold_out(sources({"only": 3}), 0.5, 0)] == ["train"] * 3
    for share in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(UserError, match="between 0 and 1"):
            hold_out(sources({"a": 2}), share, 0)


def test_tables_need_no_torch() -> None:
    code = "import sys, client.video.rows, client.video.index; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
