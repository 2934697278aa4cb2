"""An attacker without a network: randomized trees over what can be counted and averaged in a clip.

A network that must find a small signal under noise may learn nothing in thousands of steps and pass for proof that
nothing is there; trees over coarse averages need no gradient that points the way. Measured where the networks
guessed: docs/results.md, "How strong is the judge?".
"""

from __future__ import annotations

from typing import Any

import torch
from sklearn.ensemble import ExtraTreesClassifier
from torch import Tensor
from torch.nn import functional

from spact_models.anonymizer import grey
from spact_models.views import to_float_BCTHW

Trees = Any  # an ExtraTreesClassifier that was taught; scikit-learn has no types
COUNT = 300
LEAST_LEAF = 5  # clips in a leaf: fewer learn the noise of single clips
GRID, COLOUR_GRID = 8, 4  # cells a side that are averaged: of grey, of each colour
QUANTILES = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 1.0)  # of a clip's grey values: who moves fills the upper ones
QUANTILE_VALUES = 100_000  # of a clip that the quantiles are taken from, evenly spaced
AT_ONCE = 64  # clips whose statistics are made together


def statistics(clips_MTHWC: Tensor) -> Tensor:
    """uint8 (M,T,H,W,3) -> float (M,F): F numbers a clip, whatever its size.

    Mean and spread of each colour, quantiles of grey, each frame's grey, and grids: grey over time, how much it
    changed there, and the colours.
    """
    return torch.cat([_statistics(to_float_BCTHW(part)) for part in torch.split(clips_MTHWC, AT_ONCE)])


def _statistics(clips_BCTHW: Tensor) -> Tensor:
    grey_BTHW = grey(clips_BCTHW).squeeze(1)
    values = grey_BTHW.flatten(1)
    values = values[:, :: max(1, values.shape[1] // QUANTILE_VALUES)]
    blocks_BTGG = functional.adaptive_avg_pool2d(grey_BTHW, GRID)
    return torch.cat(
        [
            clips_BCTHW.mean(dim=(2, 3, 4)),
            clips_BCTHW.std(dim=(2, 3, 4)),
            torch.quantile(values, torch.tensor(QUANTILES), dim=1).T,
            grey_BTHW.mean(dim=(2, 3)),
            blocks_BTGG.mean(dim=1).flatten(1),
            blocks_BTGG.std(dim=1, correction=0).flatten(1),  # of one frame 0, and not NaN
            functional.adaptive_avg_pool2d(clips_BCTHW.mean(dim=2), COLOUR_GRID).flatten(1),
        ],
        dim=1,
    )


def grown(statistics_MF: Tensor, labels_M: Tensor, seed: int) -> Trees:
    """Trees that know ``labels_M``: (M,) class numbers, or (M, A) of 1, 0 and -1 (unknown)."""
    trees = ExtraTreesClassifier(COUNT, min_samples_leaf=LEAST_LEAF, random_state=seed % 2**32, n_jobs=1)
    labels = labels_M.squeeze(1) if labels_M.dim() == 2 and labels_M.shape[1] == 1 else labels_M
    return trees.fit(statistics_MF.numpy(), labels.numpy())


def class_scores(trees: Trees, statistics_MF: Tensor, classes: int) -> Tensor:
    """(M, classes) probabilities; a class that the trees never saw has 0."""
    scores_MK = torch.zeros(len(statistics_MF), classes)
    scores_MK[:, torch.from_numpy(trees.classes_).long()] = torch.from_numpy(
        trees.predict_proba(statistics_MF.numpy())
    ).float()
    return scores_MK


def attribute_scores(trees: Trees, statistics_MF: Tensor) -> Tensor:
    """(M, A): how likely each yes-or-no attribute is yes; one that the trees never knew is at a half."""
    found = trees.predict_proba(statistics_MF.numpy())
    # scikit-learn drops the list where there is one attribute only
    each, known = (found, trees.classes_) if isinstance(found, list) else ([found], [trees.classes_])
    columns = []
    for shares_MK, values in zip(each, known, strict=True):
        share = {int(value): torch.from_numpy(shares_MK[:, place]).float() for place, value in enumerate(values)}
        none = torch.zeros(len(statistics_MF))
        yes, no = share.get(1, none), share.get(0, none)
        columns.append(torch.where(yes + no > 0, yes / (yes + no).clamp(min=1e-9), torch.full_like(yes, 0.5)))
    return torch.stack(columns, dim=1)
