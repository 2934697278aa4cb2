"""Whole or not at all, for whom the mode says, and a disk that refuses is told in words."""

import os
import resource
import stat
import subprocess

import pytest

from spact_models.errors import UserError
from spact_models.files import BY_UMASK, FREE_SPACE, UnwritableFile, check_writable, write_atomically, write_file


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(words, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("needs the right to mount")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")

    def fail(temporary):
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["x"]


def test_a_full_disk_is_said_and_the_old_file_stays(small_disk):
    path = small_disk / "x.json"
    write_file(path, "old", "free it")
    with pytest.raises(UnwritableFile, match=r"x\.json: cannot be written \(No space left on device\); free it$"):
        write_file(path, bytes(100_000), "free it")
    assert path.read_text() == "old"
    assert list(small_disk.iterdir()) == [path]


def test_every_refusal_names_the_file_the_reason_and_the_remedy(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for path, reason in (
        (tmp_path / "folder", "Is a directory"),
        (tmp_path / "file" / "below", "File exists"),
        (tmp_path / ("x" * 250), "File name too long"),
    ):
        with pytest.raises(UnwritableFile) as caught:
            write_file(path, "text", "name another", flag="--out")
        assert str(caught.value) == f"--out {path}: cannot be written ({reason}); name another"
    with pytest.raises(UnwritableFile, match=r"\(Is a directory\); name another$"):  # space would not help it
        write_file(tmp_path / "folder", "text", FREE_SPACE + "name another")
    with pytest.raises(UserError, match=r"'a \\udcff' is not valid UTF-8; rename that file"):
        write_file(tmp_path / "page", "a \udcff", "name another")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_file_that_may_grow_no_further_is_said(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(UserError, match=r"File too large\); free some space or free it$"):
            write_file(tmp_path / "x", "a" * 2000, FREE_SPACE + "free it")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_the_owner_alone_may_read_unless_the_umask_is_asked(tmp_path):
    before = os.umask(0o027)
    try:
        write_file(tmp_path / "secret", "a", "")
        write_file(tmp_path / "shown", "a", "", mode=BY_UMASK)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"secret": 0o600, "shown": 0o640}


def test_whether_a_file_can_be_made_is_said_before_the_work(tmp_path):
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    for path, told in (
        (tmp_path, rf"^{tmp_path}: a folder, must be a file; name one in it, --out {tmp_path}/a\.json$"),
        (tmp_path / "pipe", "a device or a pipe, must be an ordinary file; name another with --out"),
        (tmp_path / "file" / "x", r"cannot be written \(File exists\); name another file with --out"),
    ):
        with pytest.raises(UserError, match=told):
            check_writable(path, "--out", "a.json")
    check_writable(tmp_path / "file", "--out", "a.json")
    check_writable(tmp_path / "new" / "x", "--out", "a.json")
    assert not list((tmp_path / "new").iterdir())
