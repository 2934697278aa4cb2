"""A site's rows made ready: split, decoded, the unreadable counted, named and left out."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image

from client.footage import declared_classes, open_footage, split_rows
from client.site import Site
from client.state import LocalState
from client.training import RoundTask, local_round
from client.video.rows import Row, read_rows, write_rows
from spact_models.errors import UserError
from spact_models.exchange import snapshot
from spact_models.networks import build_networks
from spact_models.run_config import load_settings


@pytest.fixture
def make_site(squares, tmp_path):
    def make(extra=(), rows=None, **changes):
        whole = read_rows(squares) if rows is None else rows
        write_rows([*whole, *extra], tmp_path / "manifest.csv")
        places = [tmp_path / "manifest.csv", tmp_path / "state", tmp_path / "cache"]
        return Site("clinic", *places, **{"allow_outside": True, **changes})

    return make


def broken_rows(folder):
    """Three files that give no frames, each for its own reason."""
    (folder / "text.mp4").write_text("not a video")
    (folder / "empty.mp4").touch()
    names = ("text.mp4", "empty.mp4", "missing.mp4")
    return [Row(folder / name, "walk", split="train") for name in names]


def test_unreadable_videos_are_counted_named_and_left_out(make_site, tmp_path, fast, caplog):
    bad = broken_rows(tmp_path)
    site = make_site(bad, unreadable_share=0.2)
    with caplog.at_level(logging.WARNING, "fedspact.site"):
        footage = open_footage(site, load_settings(fast))
    assert {item.path for item in footage.unreadable} == {row.path for row in bad}
    for row in bad:
        line = next(record.getMessage() for record in caplog.records if str(row.path) in record.getMessage())
        reason = next(item.reason for item in footage.unreadable if item.path == row.path)
        assert line == f"site clinic: {row.path} is not used: {reason}"
        assert reason
    assert len(footage.train) == 12
    assert not {row.path for row in bad} & {row.path for row in footage.train}
    loader = footage.loader(load_settings(fast), ["jump", "walk"], 1)
    assert next(loader.training(0)).clips_BTHWC.shape == (4, 5, 16, 16, 3)


def test_more_of_them_than_the_share_stop_the_site_with_a_list(make_site, tmp_path, fast):
    bad = broken_rows(tmp_path)
    with pytest.raises(UserError) as caught:
        open_footage(make_site(bad, unreadable_share=0.19), load_settings(fast))  # 3 of 15 training rows
    first, *lines = str(caught.value).splitlines()
    assert "unreadable videos = 3 of 15 (20.0%), at most 19.0% are allowed" in first
    assert sorted(line.strip().partition(": ")[0] for line in lines) == sorted(str(row.path) for row in bad)


def test_a_missing_file_counts_like_any_other(make_site, tmp_path, fast):
    lost = Row(tmp_path / "missing.mp4", "walk", split="train")
    footage = open_footage(make_site([lost], unreadable_share=0.1), load_settings(fast))
    assert [item.path for item in footage.unreadable] == [lost.path]
    assert "no such file" in footage.unreadable[0].reason.lower()
    with pytest.raises(UserError, match=r"missing\.mp4"):
        open_footage(make_site([lost], unreadable_share=0.0), load_settings(fast))


def test_held_out_videos_are_read_only_when_asked_for(make_site, tmp_path, fast):
    bad = Row(tmp_path / "missing.mp4", "walk", split="test")
    site, settings = make_site([bad], unreadable_share=0.5), load_settings(fast)
    assert open_footage(site, settings).unreadable == []
    footage = open_footage(site, settings, with_test=True)
    assert [item.path for item in footage.unreadable] == [bad.path]
    assert len(footage.test) == 4
    assert not {row.path for row in footage.train} & {row.path for row in footage.test}


def test_the_split_is_the_manifests_or_whole_sources_are_held_out(make_site, squares):
    train, test = split_rows(make_site())
    assert (len(train), len(test)) == (12, 4)
    undecided = [Row(row.path, row.action, source=row.source) for row in read_rows(squares)]
    site = make_site(rows=undecided, test_share=0.3)
    train, test = split_rows(site)
    assert len(train) + len(test) == 16
    assert test
    assert not {row.source for row in train} & {row.source for row in test}
    assert split_rows(site) == (train, test)
    share = {share: len(split_rows(make_site(rows=undecided, test_share=share))[1]) for share in (0.25, 0.75)}
    assert share[0.25] < share[0.75]


def test_no_training_rows_is_said(make_site, squares, fast):
    rows = [row for row in read_rows(squares) if row.split == "test"]
    with pytest.raises(UserError, match=r"manifest\.csv: no training rows; give it rows whose split is train"):
        open_footage(make_site(rows=rows), load_settings(fast))


def test_the_sites_own_list_of_actions_comes_first(make_site, squares):
    assert declared_classes(make_site()) == ["jump", "walk"]
    assert declared_classes(make_site(classes=("walk", "dive", "jump"))) == ["dive", "jump", "walk"]
    blind = [Row(row.path, split=row.split) for row in read_rows(squares)]
    assert declared_classes(make_site(rows=blind)) == []


def test_views_from_pictures_of_another_source(make_site, tmp_path, fast):
    """The published runs: clips of one data set, views from another's pictures; its test pictures stay out."""
    rows = []
    for number in range(5):
        path = tmp_path / "pictures" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((20, 30, 3), 40 * number + 20, np.uint8)).save(path)
        rows.append(Row(path, split="test" if number == 4 else ""))
    rows.append(Row(tmp_path / "pictures" / "lost.png"))
    write_rows(rows, tmp_path / "views.csv")
    fast.update({"views.source": "image", "networks.anonymizer": "frame", "batch.views": 6, "augment.enabled": False})
    settings = load_settings(fast)
    site = make_site(views_manifest=tmp_path / "views.csv", unreadable_share=0.1)
    footage = open_footage(site, settings)
    assert [item.path.name for item in footage.unreadable] == ["lost.png"]
    assert [row.path.name for row in footage.views] == ["0.png", "1.png", "2.png", "3.png"]
    networks = build_networks(settings, ["jump", "walk"])
    assert networks.anonymizer.history == 0
    loader = footage.loader(settings, ["jump", "walk"], 0)
    batch = next(loader.training(0))
    assert torch.equal(batch.first_NTHWC, batch.second_NTHWC)
    assert sorted(int(view.float().mean()) for view in batch.first_NTHWC) == [20, 60, 100, 140]
    assert batch.clips_BTHWC.float().std() > 1  # clips are still the videos
    task = RoundTask(2, "minimax", snapshot(networks.anonymizer, networks.action))
    result = local_round(task, settings, site.name, networks, loader, LocalState())
    assert result.metrics["chance.privacy"] == pytest.approx(np.log(2 * 4 - 1))
    assert result.metrics["examples.anonymizer"] == 12


def test_videos_outside_of_the_sites_folder_are_refused_unless_it_allows_them(make_site, squares, tmp_path):
    """The fixture's videos lie elsewhere, as those of a manifest from somebody else might."""
    with pytest.raises(UserError, match=r"videos/00\.mp4' \(16 of 16 rows\) lies outside of the site's folder"):
        split_rows(make_site(allow_outside=False))
    assert split_rows(make_site(allow_outside=(squares.parent,)))[0]
    link = tmp_path / "link.mp4"
    link.symlink_to(squares.parent / "videos" / "00.mp4")
    with pytest.raises(UserError, match=r"link\.mp4"):  # where a link leads is what counts
        split_rows(make_site(rows=[Row(link, "walk")], allow_outside=False))
