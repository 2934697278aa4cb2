import argparse
import json
import logging
import os
import resource
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from client.video import cache as cache_module
from client.video.cache import FrameCache, Unreadable, check_share
from client.video.decode import UnreadableVideo, decode_video
from client.video.encode import write_video
from spact_models.errors import UserError

SIZE = 16


def video(path, level=100, count=6):
    frames = [np.full((32, 48, 3), (level + 9 * t) % 256, np.uint8) for t in range(count)]
    write_video(path, frames, 25)
    return path


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def cache(tmp_path):
    return FrameCache(tmp_path / "cache", SIZE)


def test_frames_are_the_decoders_and_a_read_only_map(tmp_path, cache):
    path = video(tmp_path / "a.mp4")
    frames = cache.frames(path)
    assert isinstance(frames, np.memmap)
    assert (frames == decode_video(path, SIZE)).all()
    with pytest.raises(ValueError, match="read-only"):
        frames[0] = 0


def test_a_second_look_does_not_decode(tmp_path, cache):
    """The entry itself is altered: the alteration must come back, in this object and in a new one."""
    path = video(tmp_path / "a.mp4")
    cache.frames(path)
    (entry,) = files(cache.folder)
    content = bytearray(entry.read_bytes())
    content[-1] ^= 0xFF
    entry.write_bytes(content)
    for look in (cache, FrameCache(cache.folder, SIZE)):
        assert look.frames(path)[-1, -1, -1, -1] == content[-1]


def test_a_changed_file_is_decoded_again_and_its_old_frames_go(tmp_path, cache):
    path = video(tmp_path / "a.mp4", level=50)
    other = FrameCache(cache.folder, 8)
    before = cache.frames(path).copy()
    other.frames(path)
    video(path, level=180)
    after = cache.frames(path)
    assert np.abs(after.astype(int) - before).min() > 50
    assert len(files(cache.folder)) == 1  # the old entries of both sizes went
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))  # same bytes, other time
    (old,) = files(cache.folder)
    cache.frames(path)
    (new,) = files(cache.folder)
    assert new != old


def test_sizes_and_videos_do_not_mix(tmp_path, cache):
    a, b = video(tmp_path / "a.mp4", 30), video(tmp_path / "b.mp4", 160, count=3)
    small = FrameCache(cache.folder, 8)
    assert small.frames(a).shape == (6, 8, 8, 3)
    assert cache.frames(a).shape == (6, SIZE, SIZE, 3)
    assert cache.frames(b).shape == (3, SIZE, SIZE, 3)
    assert cache.frames(b)[0].mean() > cache.frames(a)[0].mean() + 100
    assert len(files(cache.folder)) == 3


def test_images_are_cached_too(tmp_path, cache):
    Image.fromarray(np.full((40, 60, 3), (10, 200, 90), np.uint8)).save(tmp_path / "a.PNG")
    assert cache.prepare([tmp_path / "a.PNG"], workers=1, progress=False) == []
    assert (cache.frames(tmp_path / "a.PNG") == (10, 200, 90)).all()
    assert cache.frames(tmp_path / "a.PNG").shape == (1, SIZE, SIZE, 3)


def test_only_the_owner_may_read(tmp_path, cache):
    cache.frames(video(tmp_path / "a.mp4"))
    (entry,) = files(cache.folder)
    assert cache.folder.stat().st_mode & 0o077 == 0
    assert entry.stat().st_mode & 0o077 == 0


def test_unreadable_videos_are_raised_and_leave_nothing(tmp_path, cache):
    (tmp_path / "bad.mp4").write_bytes(b"no video" * 40)
    for name, reason in (("bad.mp4", "not a video"), ("gone.mp4", "no such file")):
        with pytest.raises(UnreadableVideo, match=reason):
            cache.frames(tmp_path / name)
    assert files(cache.folder) == []


@pytest.mark.parametrize("workers", [1, 3])
def test_prepare_decodes_all_and_names_the_unreadable(tmp_path, cache, workers, capsys):
    good = [video(tmp_path / f"{i}.mp4", 20 * i) for i in range(6)]
    (tmp_path / "empty.mp4").touch()
    paths = [good[0], tmp_path / "gone.mp4", *good, tmp_path / "empty.mp4"]
    unreadable = cache.prepare(paths, workers, progress=True)
    assert [(item.path.name, item.reason) for item in unreadable] == [
        ("gone.mp4", "no such file"),
        ("empty.mp4", "the file is empty"),
    ]
    assert "8/8" in capsys.readouterr().err
    assert len(files(cache.folder)) == 6
    entries = {path: path.stat().st_ino for path in files(cache.folder)}
    cache.prepare(paths, workers, progress=False)
    assert capsys.readouterr().err == ""
    assert {path: path.stat().st_ino for path in files(cache.folder)} == entries  # nothing was written again
    for path in good:
        assert (cache.frames(path) == decode_video(path, SIZE)).all()


def test_a_long_video_is_streamed_to_disk(tmp_path):
    path = tmp_path / "long.mp4"
    write_video(path, (np.full((16, 16, 3), t % 200, np.uint8) for t in range(1500)), 25)
    cache = FrameCache(tmp_path / "cache", 64)
    tracemalloc.start()
    cache.prepare([path], workers=1, progress=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    frames = cache.frames(path)
    assert frames.nbytes == 1500 * 64 * 64 * 3  # 18 MB
    assert peak < frames.nbytes / 4
    assert (frames[:10] == decode_video(path, 64)[:10]).all()


def test_the_least_recently_used_goes_first(tmp_path):
    paths = [video(tmp_path / f"{i}.mp4", 20 * i) for i in range(5)]
    one = 6 * SIZE * SIZE * 3 + 128
    cache = FrameCache(tmp_path / "cache", SIZE, limit_gib=3.5 * one / 2**30)
    for path in paths[:3]:
        cache.frames(path)
    cache.frames(paths[0])  # used again: 1 is now the oldest
    entries = {path: cache._entry(path, path.stat()) for path in paths}
    cache.frames(paths[3])
    assert [entries[path].exists() for path in paths] == [True, False, True, True, False]
    cache.frames(paths[4])
    assert [entries[path].exists() for path in paths] == [True, False, False, True, True]
    assert cache.size_bytes() <= cache.limit_bytes
    assert (cache.frames(paths[1]) == decode_video(paths[1], SIZE)).all()  # and comes back when asked for


def test_caches_that_share_a_folder_keep_below_the_limit_together(tmp_path):
    """As sites of one simulation do: each writes less than the limit, all together far more."""
    one = 6 * SIZE * SIZE * 3 + 128
    sites = [FrameCache(tmp_path / "cache", SIZE, limit_gib=4.5 * one / 2**30) for _ in range(3)]
    for number in range(9):
        sites[number % 3].frames(video(tmp_path / f"{number}.mp4", 20 * number))
        assert sites[0].size_bytes() <= sites[0].limit_bytes


def test_a_map_in_use_outlives_its_eviction(tmp_path):
    paths = [video(tmp_path / f"{i}.mp4", 40 * i) for i in range(3)]
    cache = FrameCache(tmp_path / "cache", SIZE, limit_gib=1.5 * (6 * SIZE * SIZE * 3 + 128) / 2**30)
    frames = cache.frames(paths[0])
    cache.frames(paths[1])
    cache.frames(paths[2])
    assert (frames == decode_video(paths[0], SIZE)).all()


def test_a_limit_below_the_data_is_said_once(tmp_path, caplog):
    paths = [video(tmp_path / f"{i}.mp4", 20 * i) for i in range(5)]
    cache = FrameCache(tmp_path / "cache", SIZE, limit_gib=2.5 * (6 * SIZE * SIZE * 3 + 128) / 2**30)
    with caplog.at_level(logging.WARNING):
        cache.prepare(paths, workers=1, progress=False)
    assert len(caplog.records) == 1
    assert "raise the limit" in caplog.text


def test_a_limit_below_one_video_is_the_users_to_mend(tmp_path):
    cache = FrameCache(tmp_path / "cache", SIZE, limit_gib=1000 / 2**30)
    for look in (cache.frames, lambda path: cache.prepare([path], 1, False)):
        with pytest.raises(UserError, match=r"cache limit = .*alone needs more.*cache_gib"):
            look(video(tmp_path / "a.mp4"))
    assert files(cache.folder) == []


def test_a_damaged_entry_is_decoded_again(tmp_path, cache):
    path = video(tmp_path / "a.mp4")
    cache.frames(path)
    (entry,) = files(cache.folder)
    for content in (b"", b"rubbish" * 20, entry.read_bytes()[:-100]):
        entry.write_bytes(content)
        assert (FrameCache(cache.folder, SIZE).frames(path) == decode_video(path, SIZE)).all()


def test_what_a_killed_process_left_goes_and_what_a_living_one_writes_stays(cache):
    (cache.folder / "ab").mkdir()
    old, new = cache.folder / "ab" / "old.part", cache.folder / "ab" / "new.part"
    for part in (old, new):
        part.write_bytes(b"half")
    os.utime(old, (0, 0))
    FrameCache(cache.folder, SIZE)
    assert files(cache.folder) == [new]
    assert cache.clear() == (1, 4)


DECODE = """
import json, sys
from pathlib import Path
from client.video.cache import FrameCache
folder, size, *paths = sys.argv[1:]
cache = FrameCache(Path(folder), int(size))
unreadable = cache.prepare(list(map(Path, paths)), 2, False)
print(json.dumps([len(unreadable), [int(cache.frames(Path(path)).sum()) for path in paths]]))
"""


def test_two_processes_share_a_folder(tmp_path):
    paths = [video(tmp_path / f"{i}.mp4", 20 * i) for i in range(6)]
    words = [sys.executable, "-c", DECODE, str(tmp_path / "cache"), str(SIZE), *map(str, paths)]
    children = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    found = [json.loads(child.communicate(timeout=300)[0]) for child in children]
    expected = [0, [int(decode_video(path, SIZE).sum()) for path in paths]]
    assert found == [expected, expected]
    assert len(files(tmp_path / "cache")) == 6


def test_cleared_by_another_process_it_decodes_again(tmp_path, cache):
    path = video(tmp_path / "a.mp4")
    cache.frames(path)
    assert FrameCache(cache.folder, SIZE).clear()[0] == 1
    assert (cache.frames(path) == decode_video(path, SIZE)).all()
    assert len(files(cache.folder)) == 1


def test_a_full_disk_stops_with_what_to_do_and_leaves_nothing(tmp_path):
    """A limit on file size refuses writes as a full disk does; in a child, because it binds the whole process."""
    path = video(tmp_path / "a.mp4", count=60)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            cache = FrameCache(tmp_path / "cache", SIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
            cache.prepare([path], 1, False)
        except UserError as error:
            said = "disk is full" in str(error) and "--cache DIR" in str(error) and "cache_gib" in str(error)
            status = 0 if said and not files(tmp_path / "cache") else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_folder_that_cannot_be_made_is_the_users_to_mend(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match=r"cache = .*file"):
        FrameCache(tmp_path / "file", SIZE)
    for limit_gib, size_px in ((0, SIZE), (-1, SIZE), (float("nan"), SIZE), (1, 0)):
        with pytest.raises(UserError, match="must be"):
            FrameCache(tmp_path / "cache", size_px, limit_gib)


def test_size_and_clear(tmp_path, cache):
    for i in range(3):
        cache.frames(video(tmp_path / f"{i}.mp4", 20 * i))
    expected = sum(path.stat().st_size for path in files(cache.folder))
    assert cache.size_bytes() == expected >= 3 * 6 * SIZE * SIZE * 3
    (cache.folder / "notes.txt").write_text("the site's own")
    assert cache.clear() == (3, expected)
    assert cache.size_bytes() == 0
    assert [path.name for path in files(cache.folder)] == ["notes.txt"]


@pytest.mark.parametrize(("bad", "total", "limit", "stops"), [
    (0, 100, 0.05, False), (5, 100, 0.05, False), (6, 100, 0.05, True), (1, 1, 1.0, False),
    (1, 100, 0.0, True), (0, 0, 0.05, False), (1, 10, 0.05, True),
])  # fmt: skip
def test_too_many_unreadable_stop_the_site_with_a_list(tmp_path, bad, total, limit, stops):
    unreadable = [Unreadable(tmp_path / f"{i}.mp4", f"reason {i}") for i in range(bad)]
    if not stops:
        check_share(unreadable, total, limit)
        return
    with pytest.raises(UserError) as caught:
        check_share(unreadable, total, limit)
    assert f"{bad} of {total}" in str(caught.value)
    for item in unreadable:
        assert f"{item.path}: {item.reason}" in str(caught.value)


def verb(*words):
    parser = argparse.ArgumentParser()
    cache_module.add_arguments(parser)
    return cache_module.run(parser.parse_args(words))


def test_the_verb(tmp_path, cache, capsys):
    cache.frames(video(tmp_path / "a.mp4"))
    FrameCache(cache.folder, 8).frames(tmp_path / "a.mp4")
    assert verb("info", "--cache", str(cache.folder)) == 0
    said = capsys.readouterr().out
    assert "2 videos" in said
    assert "8 px: 1 videos" in said
    assert "16 px: 1 videos" in said
    assert len(files(cache.folder)) == 2
    assert verb("clear", "--cache", str(cache.folder)) == 0
    assert "deleted 2 files" in capsys.readouterr().out
    assert files(cache.folder) == []
    assert (tmp_path / "a.mp4").exists()
    with pytest.raises(UserError, match="must be a folder that exists"):
        verb("clear", "--cache", str(tmp_path / "typo"))
