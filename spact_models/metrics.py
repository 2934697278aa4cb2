"""Figures in 0…1 that the judge reports, and how far they can be trusted: intervals over the test videos."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, f1_score
from torch import Tensor

RESAMPLES = 2000  # of the test videos, for a 95 % interval
Floats = NDArray[np.float64]


def hits(scores_VK: Tensor, labels_V: Tensor) -> Tensor:
    """(V,) float: 1 where the highest score is the label's; of equal scores the first counts."""
    return (scores_VK.argmax(dim=1) == labels_V).float()


def top1(scores_VK: Tensor, labels_V: Tensor) -> float:
    """Share of videos whose highest score is their label's; (V, K) scores, (V,) class numbers."""
    return float(hits(scores_VK, labels_V).double().mean())


def majority_share(labels_V: Tensor) -> float:
    """The score of the best constant answer: chance, where classes are not of one size."""
    return float(labels_V.bincount().max()) / len(labels_V)


def askable(labels_VA: Tensor) -> list[int]:
    """Labels with a video that has it and one that has it not; precision of any other is 0 or 1 whatever is said.

    ``labels_VA``: (V, A) of 1, 0 and -1 (unknown).
    """
    return [a for a in range(labels_VA.shape[1]) if bool((labels_VA[:, a] == 1).any() & (labels_VA[:, a] == 0).any())]


def class_mean_average_precision(scores_VA: Tensor, labels_VA: Tensor) -> float:
    """cMAP: scikit-learn's average precision of each askable label over the videos where it is known, then the mean.

    Returns NaN when no label can be asked for.
    """
    each = []
    for a in askable(labels_VA):
        known_V = labels_VA[:, a] >= 0
        each.append(float(average_precision_score(labels_VA[known_V, a].numpy(), scores_VA[known_V, a].numpy())))
    return sum(each) / len(each) if each else float("nan")


def macro_f1(scores_VA: Tensor, labels_VA: Tensor) -> float:
    """The mean over askable labels of F1 at a score of one half; NaN when no label can be asked for."""
    each = []
    for a in askable(labels_VA):
        known_V = labels_VA[:, a] >= 0
        said_V = (scores_VA[known_V, a] > 0.5).numpy()
        each.append(float(f1_score(labels_VA[known_V, a].numpy(), said_V, zero_division=0.0)))
    return sum(each) / len(each) if each else float("nan")


def attribute_chance(labels_VA: Tensor) -> tuple[float, float]:
    """What knowing nothing scores: (cMAP of a random order: the share of yes; macro-F1 of always saying yes)."""
    shares = []
    for a in askable(labels_VA):
        known_V = labels_VA[labels_VA[:, a] >= 0, a]
        shares.append(float(known_V.double().mean()))
    if not shares:
        return float("nan"), float("nan")
    return sum(shares) / len(shares), sum(2 * share / (1 + share) for share in shares) / len(shares)


def retrieval_hits(query_VD: Tensor, gallery_VD: Tensor, group_V: Tensor | None = None) -> tuple[Tensor, Tensor, float]:
    """How often each video's query embedding lies nearest to its own gallery embedding, in both directions.

    Args:
        query_VD: (V, D) L2-normalised embeddings of one part of each video.
        gallery_VD: (V, D) of another part of the same videos.
        group_V: (V,) group numbers: candidates are then only the videos of the query's own group, and videos
            that are alone in theirs, or whose group is -1 (unknown), are not asked for. None: all videos.

    Returns:
        the mean of both directions for each asked video, which videos are asked (V,) bool, and chance (mean of
        1 / candidates; NaN when nothing is asked).
    """
    if group_V is None:
        group_V = torch.zeros(len(query_VD), dtype=torch.int64)
    candidate_VV = (group_V[:, None] == group_V[None, :]) & (group_V[:, None] >= 0)
    asked_V = candidate_VV.sum(dim=1) >= 2
    found_V = torch.zeros(len(query_VD), dtype=torch.float64)
    for one, other in ((query_VD, gallery_VD), (gallery_VD, query_VD)):
        similarity_VV = (one.float() @ other.float().T).masked_fill(~candidate_VV, float("-inf"))
        # a tie with the own video counts by its share: embeddings that are all alike must score chance, not 1
        own_V1 = similarity_VV.diagonal()[:, None]
        better_V = (similarity_VV > own_V1).sum(dim=1)
        tied_V = (similarity_VV == own_V1).sum(dim=1).clamp(min=1)
        found_V += (better_V == 0).double() / tied_V / 2
    chance = float((1.0 / candidate_VV.sum(dim=1)[asked_V]).mean()) if bool(asked_V.any()) else float("nan")
    return found_V[asked_V], asked_V, chance


def retrieval_top1(query_VD: Tensor, gallery_VD: Tensor, group_V: Tensor | None = None) -> tuple[float, float, int]:
    """The mean of :func:`retrieval_hits`, its chance and the number of queries; (nan, nan, 0) without any."""
    hit_V, asked_V, chance = retrieval_hits(query_VD, gallery_VD, group_V)
    return float(hit_V.mean()), chance, int(asked_V.sum())  # the mean of nothing is NaN


def bootstrap_interval(hits_SV: Floats, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean over seeds and videos, the videos resampled; (S, V) values in 0…1."""
    mean_V = np.asarray(hits_SV, dtype=np.float64).mean(axis=0)
    low, high = np.quantile(weights(len(mean_V), resamples, seed) @ mean_V / len(mean_V), [0.025, 0.975])
    return float(low), float(high)


def paired_bootstrap(
    hits_a_SV: Floats, hits_b_SV: Floats, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float, float]:
    """Mean of a minus mean of b on the same videos, with its 95 % interval: (difference, low, high).

    Videos are resampled jointly: a draw takes a video for all seeds of a and of b, so that what makes a video hard
    for both does not widen the interval. The numbers of seeds may differ.

    Raises:
        ValueError: the two are not answers on the same number of videos.
    """
    mean_a_V, mean_b_V = (np.asarray(one, dtype=np.float64).mean(axis=0) for one in (hits_a_SV, hits_b_SV))
    if mean_a_V.shape != mean_b_V.shape:
        raise ValueError(f"answers on {len(mean_a_V)} and on {len(mean_b_V)} videos cannot be paired")
    low, high = bootstrap_interval((mean_a_V - mean_b_V)[None], resamples, seed)
    return float((mean_a_V - mean_b_V).mean()), low, high


def attribute_interval(
    scores_SVA: Tensor, labels_VA: Tensor, form: str = "cmap", resamples: int = 500, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of cMAP (or, with ``form="f1"``, of macro-F1), mean over seeds, the videos resampled."""
    weight_RV = weights(len(labels_VA), resamples, seed)
    measure = _weighted_average_precision if form == "cmap" else _weighted_f1
    total_R, count_R = np.zeros(resamples), np.zeros(resamples)
    for a in askable(labels_VA):
        known_V = (labels_VA[:, a] >= 0).numpy()
        yes_V = labels_VA[:, a].numpy()[known_V] == 1
        for scores_VA in scores_SVA:
            value_R = measure(scores_VA[:, a].double().numpy()[known_V], yes_V, weight_RV[:, known_V])
            drawn_R = ~np.isnan(value_R)  # a draw without any video of the label says nothing about it
            total_R[drawn_R] += value_R[drawn_R]
            count_R += drawn_R
    low, high = np.quantile(total_R[count_R > 0] / count_R[count_R > 0], [0.025, 0.975])
    return float(low), float(high)


def weights(videos: int, resamples: int, seed: int) -> Floats:
    """(resamples, videos): how often each video is drawn, with replacement."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(videos, np.full(videos, 1 / videos), size=resamples).astype(np.float64)


def _weighted_average_precision(scores_V: Floats, yes_V: NDArray[np.bool_], weight_RV: Floats) -> Floats:
    """(R,): average precision with each video counted by its weight; equal scores are one threshold."""
    order = np.argsort(-scores_V, kind="stable")
    last_of_score = np.append(np.diff(scores_V[order]) != 0, True)
    found_RT = np.cumsum(weight_RV[:, order] * yes_V[order], axis=1)[:, last_of_score]
    said_RT = np.cumsum(weight_RV[:, order], axis=1)[:, last_of_score]
    with np.errstate(invalid="ignore", divide="ignore"):
        precision_RT = np.where(said_RT > 0, found_RT / said_RT, 0.0)
        recall_RT = found_RT / found_RT[:, -1:]
    return np.asarray((np.diff(recall_RT, axis=1, prepend=0.0) * precision_RT).sum(axis=1), dtype=np.float64)


def _weighted_f1(scores_V: Floats, yes_V: NDArray[np.bool_], weight_RV: Floats) -> Floats:
    said_V = scores_V > 0.5
    found_R = weight_RV @ (said_V & yes_V)
    wanted_R, named_R = weight_RV @ yes_V, weight_RV @ said_V
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(wanted_R > 0, 2 * found_R / (wanted_R + named_R), np.nan), dtype=np.float64)
