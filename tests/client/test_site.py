"""site.yaml: every rule says the key, the value, the rule and the remedy; the example file is a true one."""

from pathlib import Path

import pytest

from client.limits import Limits, Refusals
from client.site import NODE_CONFIG_REMEDY, Site, load_site
from spact_models.errors import UserError

EXAMPLE = Path(__file__).parents[2] / "client" / "site.example.yaml"


def site_file(folder, text):
    file = folder / "site.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def message(folder, text):
    with pytest.raises(UserError) as caught:
        load_site(site_file(folder, text))
    assert str(caught.value).startswith(str(folder / "site.yaml")) or f"site file {folder}" in str(caught.value)
    return str(caught.value)


def test_paths_are_relative_to_the_files_own_folder(tmp_path, monkeypatch):
    (tmp_path / "home").mkdir()
    file = site_file(tmp_path / "home", "name: a\nmanifest: videos/manifest.csv\nviews_manifest: /far/views.csv\n")
    monkeypatch.chdir(tmp_path)
    for path in (file, Path("home/site.yaml")):
        site = load_site(path)
        assert site.manifest == tmp_path / "home" / "videos" / "manifest.csv"
        assert site.views_manifest == Path("/far/views.csv")
        assert site.state == tmp_path / "home" / "site-state"
        assert site.cache == tmp_path / "home" / "site-state" / "cache"


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_site(site_file(tmp_path, "name: a\nmanifest: ~/m.csv\n")).manifest == tmp_path / "m.csv"
    assert "no such home folder" in message(tmp_path, "name: a\nmanifest: ~nobody-of-that-name/m.csv\n")


def test_every_value_arrives(tmp_path):
    text = (
        "name: a\nmanifest: m.csv\nstate: s\ncache: c\nclasses: [fall, 'no']\ndevice: cuda:1\ntest_share: 0.5\n"
        "unreadable_share: 0\ncache_gib: 3\nworkers: 7\nallow_outside: [/far]\n"
        "limits:\n  batch_clips: 4\n  hours: '20:00-06:00'\nrefuse:\n  min_sites: 3\n  max_rounds: 100\n"
    )
    assert load_site(site_file(tmp_path, text)) == Site(
        name="a",
        manifest=tmp_path / "m.csv",
        state=tmp_path / "s",
        cache=tmp_path / "c",
        classes=("fall", "no"),
        device="cuda:1",
        test_share=0.5,
        unreadable_share=0.0,
        cache_gib=3.0,
        workers=7,
        root=tmp_path,
        allow_outside=(Path("/far"),),
        limits=Limits(batch_clips=4, hours="20:00-06:00"),
        refuse=Refusals(min_sites=3, max_rounds=100),
    )


def test_the_example_loads_and_shows_every_key():
    site = load_site(EXAMPLE)
    assert site.manifest == EXAMPLE.parent / "videos" / "manifest.csv"
    text = EXAMPLE.read_text(encoding="utf-8")
    shown = [*(key for key in vars(site) if key != "root"), *vars(site.limits), *vars(site.refuse)]
    assert [key for key in shown if f"{key}:" not in text] == []
    defaults = Site(site.name, site.manifest, site.state, site.cache)
    for key in ("cache_gib", "workers", "test_share", "unreadable_share"):
        assert getattr(site, key) == getattr(defaults, key)
    opened = text.replace("# views_manifest", "views_manifest").replace("# classes", "classes")
    assert opened.count("\nviews_manifest:") == opened.count("\nclasses:") == 1


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("manifset: x", "manifset: no such key. The nearest known one is 'manifest'"),
        ("3: x", "3: no such key"),
        ("state: 3", "state = 3, must be a path"),
        ("cache: ''", "cache = '', must be a path"),
        ("views_manifest:", "views_manifest = None, must be a path"),
        ("classes: fall", "classes = 'fall', must be a list of action names"),
        ("classes: [yes, fall]", "in quotes where YAML would read yes/no"),
        ("classes: [fall, fall]", "classes = ['fall', 'fall'], names an action twice"),
        ("classes: ['']", "must not hold an empty name"),
        ("device: 1", "device = 1, must be a text; put it in quotes"),
        ("device: gpu", "device = 'gpu', must be auto, cpu, cuda or cuda:N"),
        ("test_share: 1.0", "test_share = 1.0, must be between 0 and 1"),
        ("test_share: .nan", "test_share = nan, must be between 0 and 1"),
        ("unreadable_share: 1.5", "unreadable_share = 1.5, must be from 0 to 1"),
        ("cache_gib: 0", "cache_gib = 0.0, must be above 0"),
        ("cache_gib: .inf", "cache_gib = inf, must be above 0"),
        ("cache_gib: many", "cache_gib = 'many', must be a number"),
        ("cache_gib: true", "cache_gib = True, must be a number"),
        ("workers: 1.5", "workers = 1.5, must be a whole number"),
        ("workers: true", "workers = True, must be a whole number"),
        ("workers: 0", "workers = 0, must be at least 1"),
    ],
)
def test_a_wrong_line_is_named_with_its_rule(tmp_path, line, rule):
    assert rule in message(tmp_path, f"name: a\nmanifest: m.csv\n{line}\n")


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("manifest: m.csv\n", "name is missing; see client/site.example.yaml"),
        ("name: a\n", "manifest (a table of videos) or videos (a folder of them): is missing"),
        ("name: ' '\nmanifest: m.csv\n", "name = ' ', must be 1 to 100 characters"),
        (f"name: {'a' * 101}\nmanifest: m.csv\n", "must be 1 to 100 characters"),
        ("name: 7\nmanifest: m.csv\n", "name = 7, must be a text; put it in quotes"),
        ("", "must hold keys and values such as `name: clinic-north`"),
        ("- a\n- b\n", "must hold keys and values"),
        ("name: [a\n", "not valid YAML"),
    ],
)
def test_a_wrong_file_is_named_with_its_rule(tmp_path, text, rule):
    assert rule in message(tmp_path, text)


def test_a_file_that_cannot_be_read_is_named_with_the_remedy(tmp_path):
    for path, reason in ((tmp_path / "none.yaml", "No such file"), (tmp_path, "directory")):
        with pytest.raises(UserError) as caught:
            load_site(path)
        assert str(path) in str(caught.value)
        assert reason in str(caught.value)
        assert NODE_CONFIG_REMEDY in str(caught.value)
    (tmp_path / "site.yaml").write_bytes(b"name: \xff\xfe\n")
    with pytest.raises(UserError, match="not valid YAML"):
        load_site(tmp_path / "site.yaml")
