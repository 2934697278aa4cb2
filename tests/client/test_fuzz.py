"""Whatever stands in a file, the answer is a value or one sentence: never another exception, never a path outside."""

import csv
import io
import string
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.ledger import read_ledgers
from client.site import Site, load_site
from client.video.rows import read_rows
from spact_models.errors import UserError
from spact_models.run_config import default_config, load_settings, parse_assignment, read_config_file

SITE_KEYS = (
    "name", "manifest", "videos", "state", "cache", "cache_gib", "views_manifest", "classes", "device", "workers",
    "test_share", "unreadable_share", "allow_outside", "limits", "refuse", "batch_clips", "hours", "min_noise",
)  # fmt: skip
quick = settings(
    max_examples=60,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20),
    st.sampled_from(["", "0", "../..", "/etc/passwd", "cuda:0", "20:00-06:00", "25:99-1:1", "~", "\0", "1e309"]),
)  # fmt: skip
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(SITE_KEYS), inner, max_size=3)
)
trees = st.dictionaries(st.sampled_from(SITE_KEYS) | st.text(max_size=8), values, max_size=6)


def value_or_sentence(function, *arguments):
    """What the function returns; None where it says what is wrong. Any other exception fails the test."""
    try:
        return function(*arguments)
    except UserError as error:
        told = str(error)
    assert told.strip()
    return None


@quick
@given(st.binary(max_size=300))
def test_any_bytes_as_a_site_file(tmp_path, content):
    (tmp_path / "site.yaml").write_bytes(content)
    value_or_sentence(load_site, tmp_path / "site.yaml")


@quick
@given(trees)
def test_any_tree_as_a_site_file(tmp_path, tree):
    """With the two keys that it needs, so that the others are reached."""
    (tmp_path / "m.csv").write_text("path\n")
    (tmp_path / "site.yaml").write_text(yaml.safe_dump({"name": "north", "manifest": "m.csv", **tree}))
    value_or_sentence(load_site, tmp_path / "site.yaml")


def test_a_short_file_that_would_grow_without_end_is_refused(tmp_path):
    """A billion laughs: nine lines that name each other."""
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9))
    (tmp_path / "site.yaml").write_text(bomb)
    with pytest.raises(UserError):
        load_site(tmp_path / "site.yaml")


cells = st.text(alphabet=string.ascii_letters + string.digits + './\\~", \n\r\0é-', max_size=12)


@quick
@given(st.binary(max_size=300))
def test_any_bytes_as_a_manifest(tmp_path, content):
    (tmp_path / "m.csv").write_bytes(content)
    with_rows_or_sentence(tmp_path / "m.csv")


@quick
@given(
    st.lists(st.sampled_from(["path", "action", "site", "split", "source", "identity", "boxes"]) | cells, max_size=6),
    st.lists(st.lists(cells | st.sampled_from(["train", "test", "a.mp4", "../../etc/passwd"]), max_size=6), max_size=5),
)
def test_any_table_as_a_manifest(tmp_path, header, lines):
    text = io.StringIO()
    csv.writer(text).writerows([header, *lines])
    (tmp_path / "m.csv").write_text(text.getvalue(), encoding="utf-8", newline="")
    with_rows_or_sentence(tmp_path / "m.csv")


def with_rows_or_sentence(manifest: Path):
    site = Site("north", manifest, manifest.parent / "state", manifest.parent / "cache")
    for row in value_or_sentence(read_rows, manifest, False) or ():
        assert row.path.is_absolute()
        inside = row.path.resolve().is_relative_to(manifest.parent.resolve())
        assert site.may_read(row.path) == inside
        assert row.split in ("train", "test", None, "")


@quick
@given(st.lists(st.binary(max_size=80) | st.sampled_from([b'{"round": 1}\n', b"[]\n", b"null\n"]), max_size=4))
def test_any_bytes_as_a_ledger(tmp_path, parts):
    folder = tmp_path / "state" / ("f" * 32)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ledger.jsonl").write_bytes(b"".join(parts))
    for each in read_ledgers(tmp_path / "state"):
        assert each.faults or all(isinstance(entry, dict) for entry in each.entries)


KEYS = sorted(default_config())


@settings(max_examples=100, deadline=None, database=None)
@given(st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=12), scalars, max_size=4))
def test_any_run_configuration_is_settings_or_a_sentence(chosen):
    made = value_or_sentence(load_settings, chosen)
    assert made is None or load_settings(made.flat()).flat() == made.flat()


@quick
@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_any_bytes_as_overrides(tmp_path, content):
    (tmp_path / "o.toml").write_bytes(content)
    value_or_sentence(read_config_file, tmp_path / "o.toml")


@quick
@given(st.text(max_size=40))
def test_any_assignment(text):
    value_or_sentence(parse_assignment, text)
