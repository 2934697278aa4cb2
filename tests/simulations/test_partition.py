"""Dealing one manifest out: every row once, whole groups, the same for the same seed, ordinary site files."""

from collections import Counter
from pathlib import Path

import pytest

from client.footage import declared_classes
from client.site import load_site
from client.video.rows import Row, read_rows, write_rows
from simulations.partition import deal_views, dealt_sites, load_rows, partition, write_sites
from spact_models.errors import UserError
from spact_models.settings import SimulationConfig


def make_rows(count=60, actions=("walk", "jump", "fall"), sources=10):
    """Rows of 10 sources of different sizes and 7 people; the last two sources are held out."""
    rows = []
    for number in range(count):
        source = min(int(number**0.5), sources - 1) if number < 49 else 7 + number % 3
        attributes = {"identity": f"person-{source % 7}"}
        split = "test" if source >= 6 else "train"
        action = actions[number % len(actions)]
        rows.append(
            Row(Path(f"/videos/{number:02d}.mp4"), action, f"s{number % 4}", split, f"cam-{source}", attributes)
        )
    return rows


def deal(rows, seed=0, **config):
    return partition(rows, SimulationConfig(**config), seed)


def paths(share):
    return [row.path for row in share]


WAYS = ("iid", "site", "source", "identity", "action")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("sites", [1, 2, 3])
def test_every_row_goes_to_exactly_one_site(way, sites):
    rows = make_rows()
    dealt = deal(rows, sites=sites, partition_by=way, alpha=5.0)
    assert len(dealt) == sites
    assert sorted(row.path for share in dealt for row in share) == sorted(paths(rows))
    assert all(any(row.split == "train" for row in share) for share in dealt)


@pytest.mark.parametrize("way", WAYS)
def test_the_seed_decides(way):
    rows = make_rows()
    config = {"sites": 3, "partition_by": way, "alpha": 5.0}
    assert deal(rows, 4, **config) == deal(rows, 4, **config)
    if way in ("iid", "action"):
        assert deal(rows, 4, **config) != deal(rows, 5, **config)


@pytest.mark.parametrize("way", ["source", "identity", "site"])
def test_groups_stay_whole(way):
    rows = make_rows()
    value = {"source": lambda row: row.source, "site": lambda row: row.site}.get(way, lambda row: row.attributes[way])
    homes = [{value(row) for row in share} for share in deal(rows, sites=3, partition_by=way)]
    assert sum(map(len, homes)) == len(set.union(*homes))


def test_iid_shares_are_even_in_train_and_test():
    for split in ("train", "test"):
        sizes = [sum(row.split == split for row in share) for share in deal(make_rows(), sites=4)]
        assert max(sizes) - min(sizes) <= 1
        assert min(sizes) > 0


def test_whole_groups_are_balanced_among_training_and_among_test_groups():
    dealt = deal(make_rows(), sites=2, partition_by="source")
    for split in ("train", "test"):
        sizes = [sum(row.split == split for row in share) for share in dealt]
        groups = Counter(row.source for row in make_rows() if row.split == split)
        assert max(sizes) - min(sizes) <= max(groups.values())


def test_the_manifests_own_sites_are_kept_when_their_number_fits():
    dealt = deal(make_rows(), sites=4, partition_by="site")
    assert [{row.site for row in share} for share in dealt] == [{"s0"}, {"s1"}, {"s2"}, {"s3"}]


def test_dirichlet_is_skewed_for_small_alpha_and_even_for_large():
    """How far the sites' shares of each action are from a third, on average."""

    def skew(alpha):
        dealt = deal(make_rows(600, sources=30), sites=3, partition_by="action", alpha=alpha)
        counts = [Counter(row.action for row in share) for share in dealt]
        return sum(abs(count[name] / 200 - 1 / 3) for count in counts for name in ("walk", "jump", "fall"))

    assert skew(1000.0) < 0.3
    assert skew(0.3) > 1.0


def test_train_and_test_of_a_site_have_the_same_mix_of_actions():
    rows = [Row(Path(f"/v/{n}.mp4"), "ab"[n % 2], split=("train", "test")[n // 2 % 2]) for n in range(400)]
    for share in deal(rows, sites=2, partition_by="action", alpha=0.7):
        mix = [[sum(r.action == a and r.split == s for r in share) for a in "ab"] for s in ("train", "test")]
        assert all(abs(one - two) <= 1 for one, two in zip(*mix, strict=True))


def test_unlabelled_rows_are_dealt_too():
    rows = [*make_rows(30), *(Row(Path(f"/v/{n}.mp4"), split="train") for n in range(9))]
    dealt = deal(rows, sites=3, partition_by="action", alpha=5.0)
    assert [sum(row.action is None for row in share) for share in dealt] == [3, 3, 3]


@pytest.mark.parametrize(
    ("config", "rule"),
    [
        ({"partition_by": "shoes"}, r"partition_by = 'shoes', must be one of: iid, site, source, action, identity"),
        ({"partition_by": "identity", "sites": 8}, "'identity' has only 7 different values; ask for fewer"),
        ({"partition_by": "source", "sites": 9}, r"site \d would have no training rows with partition_by = 'source'"),
        ({"partition_by": "iid", "sites": 50}, r"simulation.sites = 50: site \d+ would have no training rows"),
    ],
)
def test_what_cannot_be_dealt_is_said(config, rule):
    with pytest.raises(UserError, match=rule):
        deal(make_rows(), **config)


def test_actions_cannot_be_dealt_where_none_is_named():
    rows = [Row(Path(f"/v/{n}.mp4"), split="train") for n in range(9)]
    with pytest.raises(UserError, match="the manifest names no action; use iid or source"):
        deal(rows, partition_by="action")


def test_a_row_without_a_source_is_a_group_of_its_own():
    rows = [Row(Path(f"/v/{n}.mp4"), split="train") for n in range(9)]
    assert [len(share) for share in deal(rows, sites=3, partition_by="source")] == [3, 3, 3]


def test_the_split_is_decided_by_whole_sources_and_must_have_both_sides(tmp_path):
    manifest = tmp_path / "m.csv"
    undecided = [Row(tmp_path / row.path.name, row.action, source=row.source) for row in make_rows()]
    write_rows(undecided, manifest)
    rows = load_rows(manifest, SimulationConfig(test_share=0.3), seed=1)
    train, test = ({row.source for row in rows if row.split == split} for split in ("train", "test"))
    assert train
    assert test
    assert not train & test
    splits = {seed: [row.split for row in load_rows(manifest, SimulationConfig(), seed)] for seed in range(4)}
    assert len({tuple(split) for split in splits.values()}) > 1
    for split, words in (("train", "test"), ("test", "training")):
        write_rows([Row(tmp_path / "a.mp4", split=split), Row(tmp_path / "b.mp4", split=split)], manifest)
        with pytest.raises(UserError, match=rf"m\.csv: no {words} rows"):
            load_rows(manifest, SimulationConfig(), 0)


def test_the_site_files_are_ordinary_ones_and_the_last_lose_their_labels(squares, tmp_path):
    rows = load_rows(squares, SimulationConfig(), 0)
    dealt = deal(rows, sites=3)
    files = write_sites(tmp_path / "sites", dealt, unlabelled_sites=1, cache=tmp_path / "cache")
    sites = [load_site(file) for file in files]
    assert [site.name for site in sites] == ["site-1", "site-2", "site-3"]
    assert {site.cache for site in sites} == {tmp_path / "cache"}
    assert len({site.state for site in sites}) == 3
    assert [declared_classes(site) for site in sites] == [["jump", "walk"], ["jump", "walk"], []]
    for site, share in zip(sites[:2], dealt[:2], strict=True):
        assert sorted(read_rows(site.manifest), key=str) == sorted(share, key=str)  # labels, splits, attributes
    blind = read_rows(sites[2].manifest)
    assert sorted(paths(blind)) == sorted(paths(dealt[2]))
    assert {row.action for row in blind} == {None}


def test_every_labelled_site_knows_the_whole_list_of_actions(squares, tmp_path):
    """A site that happens to hold one action must not look like another federation."""
    rows = load_rows(squares, SimulationConfig(), 0)
    one_each = [[row for row in rows if row.action == name] for name in ("jump", "walk")]
    files = write_sites(tmp_path, one_each, 0, tmp_path / "cache")
    assert [declared_classes(load_site(file)) for file in files] == [["jump", "walk"]] * 2


def test_views_from_another_source_are_dealt_out_once_each_and_written_beside_the_manifest(tmp_path, squares):
    rows = load_rows(squares, SimulationConfig(sites=2), 0)
    views = [Row(tmp_path / f"{number}.png") for number in range(7)]
    dealt = deal_views(views, 2, seed=3)
    assert sorted(row.path for share in dealt for row in share) == sorted(row.path for row in views)
    assert [len(share) for share in dealt] == [4, 3]
    files = write_sites(tmp_path / "sites", partition(rows, SimulationConfig(sites=2), 0), 0, tmp_path / "cache", dealt)
    for file, share in zip(files, dealt, strict=True):
        site = load_site(file)
        assert site.views_manifest is not None
        assert [row.path for row in read_rows(site.views_manifest, must_exist=False)] == [row.path for row in share]
    with pytest.raises(UserError, match=r"--views holds 3 rows.*need at least 4"):
        deal_views(views[:3], 2, seed=3)


def test_a_column_and_a_concentration_mix_that_columns_values_site_by_site():
    rows = make_rows()
    same = deal(rows, sites=3, partition_by="action", alpha=0.7)
    assert [paths(share) for share in deal(rows, sites=3, partition_by="action:0.7", alpha=9.0)] == [
        paths(share) for share in same
    ]
    even, skewed = (deal(rows, sites=2, partition_by=f"identity:{alpha}") for alpha in (1000, 0.1))
    assert sorted(path for share in skewed for path in paths(share)) == sorted(paths(rows))

    def share_of_first(dealt, name):
        held = [sum(row.attributes["identity"] == name for row in share) for share in dealt]
        return held[0] / sum(held)

    names = {row.attributes["identity"] for row in rows}
    assert max(abs(share_of_first(even, name) - 0.5) for name in names) < 0.3  # the last site gets the rounding
    assert max(abs(share_of_first(skewed, name) - 0.5) for name in names) > 0.45
    assert paths(deal(rows, sites=2, partition_by="source:0.5")[0]) != paths(deal(rows, sites=2, partition_by="iid")[0])


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ("action:0", "must be above 0"),
        ("action:-1", "must be above 0"),
        ("action:nan", "must be above 0"),
        ("iid:0.3", "name the column to mix"),
        (":0.3", "name the column to mix"),
        ("weather:0.3", "must be one of: iid, site, source, action, identity"),
        ("action:", "must be one of"),
    ],
)
def test_a_mix_that_cannot_be_is_refused(way, message):
    with pytest.raises(UserError, match=message):
        deal(make_rows(), sites=2, partition_by=way)


def test_dealt_sites_are_found_again_in_their_order(tmp_path):
    assert dealt_sites(tmp_path) == []
    rows = make_rows()
    files = write_sites(tmp_path / "sites", [[row] for row in rows[:11]], 0, tmp_path / "cache")
    assert dealt_sites(tmp_path) == files  # site-2 before site-10
