"""Does the site hold footage of this person? Asked of its update (Melis et al. 2019, property inference).

Many small sites are made of the run's videos, half of them with some of one person's and half without; each plays one
real round from the run's weights and sends its update. A classifier learns on some of the updates to say which is
which, and is asked about others whose videos it has not seen.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from client.dp import Groups
from client.state import LocalState
from client.training import RoundTask, local_round
from client.video.cache import FrameCache
from client.video.loader import ClipLoader
from client.video.rows import Row
from simulations.audit.findings import auc_with_interval
from spact_models.exchange import clipped, difference, snapshot
from spact_models.networks import Networks
from spact_models.noise import KEY_BYTES
from spact_models.settings import Settings

COMPONENTS = 20
FOLDS = 5


def sites_of(
    rows: Sequence[Row], column: str, person: str, count: int, videos: int, seed: int
) -> list[tuple[list[Row], bool]]:
    """``count`` sites of ``videos`` rows each, half of them with a third of their rows of the person."""
    rng = np.random.default_rng(seed)
    with_it = [row for row in rows if row.attributes.get(column) == person]
    without = [row for row in rows if row.attributes.get(column) != person]
    share = max(1, videos // 3)
    out = []
    for number in range(count):
        held = number % 2 == 0
        mine = [with_it[i] for i in rng.permutation(len(with_it))[:share]] if held else []
        rest = [without[i] for i in rng.permutation(len(without))[: videos - len(mine)]]
        out.append(([*mine, *rest], held))
    return out


def update_of(
    rows: Sequence[Row], networks: Networks, settings: Settings, classes: Sequence[str], cache: FrameCache, name: str
) -> dict[str, Tensor]:
    """One real minimax round of a site that is new to the federation: its update by wire name.

    With ``dp.unit = videos`` it is played by groups, and noised, as the run has it.
    """
    before = snapshot(networks.anonymizer, networks.action)
    history = networks.anonymizer.history
    loader = ClipLoader(rows, classes, cache, settings.clip, settings.batch, history, view_frames=settings.views.frames)
    task = RoundTask(settings.total_rounds + 1, "minimax", before)
    groups = None
    if settings.dp.unit == "videos":
        count, root = max(1, len(rows) // settings.dp.group_videos), rows[0].path.parent
        device = next(networks.anonymizer.parameters()).device
        groups = Groups(loader, os.urandom(KEY_BYTES), count, root, settings, 0, device)
    result = local_round(task, settings, name, networks, loader, LocalState(), groups)
    return difference(result.weights, before)


def flat(update: Mapping[str, Tensor]) -> np.ndarray:
    out: np.ndarray = torch.cat([value.flatten() for value in update.values()]).double().numpy()
    return out


def auc_of(updates_ND: np.ndarray, held_N: np.ndarray, seed: int) -> tuple[float, float, float]:
    """Cross-validated AUC of the attacker's classifier and its 95 % bootstrap interval over the sites."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(held_N))
    scores = np.empty(len(held_N))
    for fold in range(FOLDS):
        test = order[fold::FOLDS]
        train = np.setdiff1d(order, test)
        parts = min(COMPONENTS, len(train) - 1)
        attacker = make_pipeline(PCA(parts, random_state=0), StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
        attacker.fit(updates_ND[train], held_N[train])
        scores[test] = attacker.decision_function(updates_ND[test])
    return auc_with_interval(held_N, scores, seed)


def summed(updates_ND: np.ndarray, members: int, rng: np.random.Generator) -> np.ndarray:
    """What a secure sum shows of each: its own and ``members - 1`` others', drawn anew for each, over ``members``."""
    count = len(updates_ND)
    out = np.empty_like(updates_ND)
    for number in range(count):
        others = rng.choice(np.delete(np.arange(count), number), members - 1, replace=False)
        out[number] = (updates_ND[number] + updates_ND[others].sum(axis=0)) / members
    return out


def clipped_all(updates: Sequence[Mapping[str, Tensor]], bound: float) -> np.ndarray:
    return np.stack([flat(clipped(update, bound)) for update in updates])


def middle_length(updates: Sequence[Mapping[str, Tensor]]) -> float:
    """The median L2 norm: what a run without a clip norm of its own is clipped to here."""
    return float(np.median([np.linalg.norm(flat(update)) for update in updates]))
