"""Figures against loops that anybody can check."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from spact_models.metrics import majority_share, retrieval_top1, top1


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
