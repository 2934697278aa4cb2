"""Figures in 0…1 that the judge reports."""

from __future__ import annotations

import torch
from sklearn.metrics import top_k_accuracy_score
from torch import Tensor


def top1(scores_VK: Tensor, labels_V: Tensor) -> float:
    """Share of videos whose highest score is their label's; (V, K) scores, (V,) class numbers."""
    if scores_VK.shape[1] == 2:  # scikit-learn wants one column for two classes
        return float((scores_VK.argmax(dim=1) == labels_V).double().mean())
    classes = range(scores_VK.shape[1])
    return float(top_k_accuracy_score(labels_V.numpy(), scores_VK.double().numpy(), k=1, labels=list(classes)))


def majority_share(labels_V: Tensor) -> float:
    """The score of the best constant answer: chance, where classes are not of one size."""
    return float(labels_V.bincount().max()) / len(labels_V)


def retrieval_top1(query_VD: Tensor, gallery_VD: Tensor, group_V: Tensor | None = None) -> tuple[float, float, int]:
    """How often a video's query embedding lies nearest to its own gallery embedding, in both directions.

    Args:
        query_VD: (V, D) L2-normalised embeddings of one part of each video.
        gallery_VD: (V, D) of another part of the same videos.
        group_V: (V,) group numbers: candidates are then only the videos of the query's own group, and videos
            that are alone in theirs, or whose group is -1 (unknown), are not asked for. None: all videos.

    Returns:
        top-1, its chance level (mean of 1 / candidates) and the number of queries; (nan, nan, 0) without any.
    """
    videos = len(query_VD)
    if group_V is None:
        group_V = torch.zeros(videos, dtype=torch.int64)
    candidate_VV = (group_V[:, None] == group_V[None, :]) & (group_V[:, None] >= 0)
    asked_V = candidate_VV.sum(dim=1) >= 2
    queries = int(asked_V.sum())
    if queries == 0:
        return float("nan"), float("nan"), 0
    hits = 0.0
    for one, other in ((query_VD, gallery_VD), (gallery_VD, query_VD)):
        similarity_VV = (one.float() @ other.float().T).masked_fill(~candidate_VV, float("-inf"))
        # a tie with the own video counts by its share: embeddings that are all alike must score chance, not 1
        own_V1 = similarity_VV.diagonal()[:, None]
        better_V = (similarity_VV > own_V1).sum(dim=1)
        tied_V = (similarity_VV == own_V1).sum(dim=1).clamp(min=1)
        hits += float(((better_V == 0).double() / tied_V)[asked_V].mean()) / 2
    chance = float((1.0 / candidate_VV.sum(dim=1)[asked_V]).mean())
    return hits, chance, queries
