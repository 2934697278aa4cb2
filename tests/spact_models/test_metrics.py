"""Figures against loops that anybody can check."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score
from torch.nn.functional import normalize

from spact_models.metrics import (
    askable,
    attribute_chance,
    attribute_interval,
    bootstrap_interval,
    class_mean_average_precision,
    hits,
    macro_f1,
    majority_share,
    paired_bootstrap,
    retrieval_hits,
    retrieval_top1,
    top1,
    weights,
)


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_top1_is_the_count(classes):
    generator = torch.Generator().manual_seed(classes)
    scores = torch.rand(50, classes, generator=generator)
    labels = torch.randint(classes, (50,), generator=generator)
    right = sum(
        int(max(range(classes), key=lambda k: row[k]) == label) for row, label in zip(scores, labels, strict=True)
    )
    assert top1(scores, labels) == pytest.approx(right / 50)


def test_top1_knows_classes_that_no_test_video_has():
    scores = torch.eye(4)
    assert top1(scores, torch.arange(4)) == 1.0
    assert top1(scores[:2], torch.tensor([0, 3])) == 0.5
    assert top1(scores[:1], torch.tensor([0])) == 1.0


def test_majority_share_is_the_best_constant_answer():
    assert majority_share(torch.tensor([0, 2, 2, 2, 1])) == 0.6
    assert majority_share(torch.tensor([3])) == 1.0
    assert majority_share(torch.arange(8)) == 0.125


def embeddings(videos, seed, dim=5):
    return normalize(torch.randn(videos, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def slow_retrieval(query, gallery, group):
    """Two loops: each asked video, every candidate of its group, both directions."""
    hits, chances, asked = [], [], 0
    for one, other in ((query, gallery), (gallery, query)):
        for v in range(len(query)):
            candidates = [w for w in range(len(query)) if group[w] == group[v] and group[v] >= 0]
            if len(candidates) < 2:
                continue
            asked += 1
            own = float(one[v] @ other[v])
            others = [float(one[v] @ other[w]) for w in candidates if w != v]
            hits.append(float(all(own > value for value in others)))
            chances.append(1 / len(candidates))
    return (sum(hits) / len(hits), sum(chances) / len(chances), asked // 2) if hits else None


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("noise", [0.3, 1.0, 3.0])
def test_retrieval_is_the_double_loop(seed, noise):
    query = embeddings(24, seed)
    gallery = normalize(query + noise * embeddings(24, seed + 100), dim=1)
    group = torch.tensor([-1, -1, *([0] * 10), *([1] * 7), 2, 3, *([4] * 3)])
    for given, expected in ((None, [0] * 24), (group, group.tolist())):
        assert retrieval_top1(query, gallery, given) == pytest.approx(slow_retrieval(query, gallery, expected))
    assert retrieval_top1(query, gallery, group)[2] == 20  # neither unknown groups nor single videos are asked


def test_perfect_and_hopeless_embeddings():
    query = torch.eye(6)
    assert retrieval_top1(query, query) == (1.0, pytest.approx(1 / 6), 6)
    assert retrieval_top1(query, query.roll(1, 0))[0] == 0.0


def test_embeddings_that_are_all_alike_score_chance():
    """A collapsed attacker knows nothing; strict or careless comparison would give it 0 or 1."""
    same = normalize(torch.ones(8, 4), dim=1)
    hits, chance, queries = retrieval_top1(same, same)
    assert hits == pytest.approx(chance) == pytest.approx(1 / 8)
    assert queries == 8
    group = torch.tensor([0, 0, 0, 1, 1, -1, -1, 2])
    hits, chance, queries = retrieval_top1(same, same, group)
    assert hits == pytest.approx(chance) == pytest.approx((3 / 3 + 2 / 2) / 5)
    assert queries == 5
    pairs = normalize(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]), dim=1)
    assert retrieval_top1(pairs, pairs)[0] == 0.5  # tells pairs apart, not partners


def test_without_queries_there_is_no_figure():
    query = embeddings(3, 0)
    hits, chance, queries = retrieval_top1(query, query, torch.tensor([0, 1, -1]))
    assert math.isnan(hits)
    assert math.isnan(chance)
    assert queries == 0


def attributes(videos=60, seed=0):
    """Four attributes, -1 unknown: half known, always yes, never yes, an ordinary one; scores that know a bit."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (videos, 4), generator=generator)
    scores = (0.35 * labels + 0.65 * torch.rand(videos, 4, generator=generator)).mul(20).round() / 20  # with ties
    labels[: videos // 2, 0] = -1
    labels[:, 1], labels[:, 2] = 1, 0
    return scores, labels


def slow_average_precision(scores, labels):
    """Precision at each threshold, weighted by the recall that it adds; one threshold a score."""
    total, found_before, value = sum(labels), 0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        said = [label for score, label in zip(scores, labels, strict=True) if score >= threshold]
        value += (sum(said) - found_before) / total * sum(said) / len(said)
        found_before = sum(said)
    return value


def test_cmap_is_the_mean_over_what_can_be_asked():
    scores, labels = attributes()
    assert askable(labels) == [0, 3]
    expected = [
        slow_average_precision(scores[rows, a].tolist(), labels[rows, a].tolist())
        for a, rows in ((0, slice(30, None)), (3, slice(None)))
    ]
    assert class_mean_average_precision(scores, labels) == pytest.approx(sum(expected) / 2)
    assert math.isnan(class_mean_average_precision(scores[:, 1:3], labels[:, 1:3]))
    assert class_mean_average_precision(labels.float(), labels) == 1.0


def test_macro_f1_counts_at_one_half():
    scores, labels = attributes()
    each = []
    for a, rows in ((0, slice(30, None)), (3, slice(None))):
        said, true = scores[rows, a] > 0.5, labels[rows, a] == 1
        right = int((said & true).sum())
        each.append(2 * right / (int(said.sum()) + int(true.sum())))
    assert macro_f1(scores, labels) == pytest.approx(sum(each) / 2)


def test_attribute_chance_is_what_knowing_nothing_scores():
    """Random scores, many times: their cMAP is near the share of yes; always yes has the F1 that is named."""
    labels = torch.zeros(400, 2, dtype=torch.int64)
    labels[:100, 0], labels[:280, 1] = 1, 1
    cmap, f1 = attribute_chance(labels)
    generator = torch.Generator().manual_seed(0)
    tries = [class_mean_average_precision(torch.rand(400, 2, generator=generator), labels) for _ in range(20)]
    assert cmap == pytest.approx((0.25 + 0.7) / 2)
    assert sum(tries) / 20 == pytest.approx(cmap, abs=0.02)
    assert f1 == pytest.approx(macro_f1(torch.ones(400, 2), labels))


def test_hits_are_top1_video_by_video():
    scores, labels = torch.rand(30, 4), torch.randint(4, (30,))
    assert float(hits(scores, labels).mean()) == pytest.approx(top1(scores, labels))
    assert hits(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0])).tolist() == [1.0, 0.0]


def test_an_interval_is_the_spread_of_resampled_means():
    values = np.random.default_rng(1).random((3, 80)) < 0.7
    low, high = bootstrap_interval(values, resamples=4000)
    rng = np.random.default_rng(2)
    means = [values[:, rng.integers(80, size=80)].mean() for _ in range(4000)]
    assert (low, high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.01)
    assert low < values.mean() < high
    assert bootstrap_interval(np.ones((2, 9))) == (1.0, 1.0)
    assert bootstrap_interval(values) == bootstrap_interval(values)  # the same file twice


def test_a_paired_difference_takes_each_video_for_both():
    rng = np.random.default_rng(3)
    hard = rng.random(200) < 0.5
    a = np.stack([hard, hard | (rng.random(200) < 0.05)])
    difference, low, high = paired_bootstrap(a, a)
    assert (difference, low, high) == (0.0, 0.0, 0.0)  # however noisy each of them is
    better = np.clip(a + (rng.random(a.shape) < 0.2), 0, 1)
    difference, low, high = paired_bootstrap(better, a, resamples=3000, seed=1)
    assert difference == pytest.approx(better.mean() - a.mean())
    draws = [rng.integers(200, size=200) for _ in range(3000)]
    slow = [better[:, rows].mean() - a[:, rows].mean() for rows in draws]
    assert (low, high) == pytest.approx(tuple(np.quantile(slow, [0.025, 0.975])), abs=0.01)
    assert 0 < low < difference < high
    assert paired_bootstrap(a[:1], a)[0] == pytest.approx(a[0].mean() - a.mean())  # seeds need not be paired
    with pytest.raises(ValueError, match="on 199 and on 200"):
        paired_bootstrap(a[:, 1:], a)


@pytest.mark.parametrize(("form", "scikit"), [("cmap", average_precision_score), ("f1", f1_score)])
def test_an_attribute_interval_is_that_of_weighted_videos(form, scikit):
    scores, labels = attributes()
    low, high = attribute_interval(scores[None], labels, form, resamples=300, seed=5)
    values = []
    for weight in weights(60, 300, 5):
        each = [
            scikit(labels[rows, a], scores[rows, a] if form == "cmap" else scores[rows, a] > 0.5, sample_weight=w)
            for a, rows, w in ((0, slice(30, None), weight[30:]), (3, slice(None), weight))
        ]
        values.append(sum(each) / 2)
    assert (low, high) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])))


def test_retrieval_hits_are_of_the_asked_videos():
    query = torch.eye(5)
    gallery = query[[0, 1, 2, 4, 3]]
    hit, asked, chance = retrieval_hits(query, gallery, torch.tensor([0, 0, 1, 1, 1]))
    assert hit.tolist() == [1, 1, 1, 0, 0]
    assert asked.all()
    assert chance == pytest.approx((2 / 2 + 3 / 3) / 5)
    hit, asked, _ = retrieval_hits(query, gallery, torch.tensor([0, 0, -1, 2, 3]))
    assert (hit.tolist(), asked.tolist()) == ([1, 1], [True, True, False, False, False])
