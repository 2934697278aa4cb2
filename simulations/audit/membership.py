"""Was this video trained on? Membership inference on f_T with shadow models (Carlini et al. 2022, LiRA offline).

Shadow f_T's learn on random halves of all videos, so that each video is known to half of them and new to the others.
How sure those are that do not know it says how easy the video is; how much surer the attacked f_T is, says whether it
knows it. Against the run's own f_T the members are its training videos and the others its held-out ones, which may be
easier or harder; against a shadow in turn both are halves of one set: the exact experiment.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from sklearn.metrics import roc_curve
from torch import nn
from torch.nn import functional

from simulations.audit.findings import auc_with_interval
from spact_models.judge import Judge
from spact_models.judge_set import JudgeSet
from spact_models.views import to_float_BCTHW

FALSE_ALARMS = 0.01


@dataclass(frozen=True)
class Membership:
    """How well members are told from others."""

    auc: float
    caught: float  # members found at 1 % false alarms
    auc_low: float  # 95 % bootstrap interval over the videos
    auc_high: float


def confidence(network: nn.Module, videos: JudgeSet, batch: int, device: torch.device) -> np.ndarray:
    """(V,): log(p / (1 - p)) of each video's own action, over its clips' mean; what is nearly Gaussian."""
    network = network.to(device).eval()
    parts = []
    for part in torch.split(videos.clips_MTHWC, batch):
        with torch.inference_mode():
            parts.append(functional.softmax(network(to_float_BCTHW(part.to(device))).double(), dim=1).cpu())
    scores_MK = torch.cat(parts)
    total_VK = torch.zeros(videos.videos, scores_MK.shape[1], dtype=torch.float64)
    total_VK.index_add_(0, videos.video_M, scores_MK)
    mean_VK = total_VK / videos.video_M.bincount(minlength=videos.videos)[:, None]
    action_V = videos.labels["action"]
    unheard = max(0, int(action_V.max()) + 1 - mean_VK.shape[1])  # actions beyond all that this f_T has learned
    mean_VK = functional.pad(mean_VK, (0, unheard))
    own_V = mean_VK.gather(1, action_V[:, None]).squeeze(1).clamp(1e-9, 1 - 1e-9)
    out: np.ndarray = (own_V.log() - (1 - own_V).log()).numpy()
    return out


def shadows(videos: JudgeSet, judge: Judge, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Train shadow f_T's; returns their confidences (S, V) and whom each has learned from (S, V)."""
    rng = np.random.default_rng(seed)
    known: list[np.ndarray] = []
    sure: list[np.ndarray] = []
    for number in range(count):
        if number % 2:  # the other half: every video is new to exactly half of the shadows
            half = ~known[-1]
        else:
            half = np.zeros(videos.videos, bool)
            half[rng.permutation(videos.videos)[: videos.videos // 2]] = True
        network = replace(judge, seed=seed + number).taught_action(only(videos, half))
        sure.append(confidence(network, videos, judge.config.batch, judge.device))
        known.append(half)
    return np.stack(sure), np.stack(known)


def only(videos: JudgeSet, chosen_V: np.ndarray) -> JudgeSet:
    """These videos alone count: the others' labels are unknown to whoever learns."""
    action_V = videos.labels["action"].clone()
    action_V[torch.from_numpy(~chosen_V)] = -1
    return replace(videos, labels={**videos.labels, "action": action_V})


def scores(sure_V: np.ndarray, others_SV: np.ndarray, new_SV: np.ndarray) -> np.ndarray:
    """How much surer than those to whom the video is new, in their standard deviations (one over all videos)."""
    masked = np.where(new_SV, others_SV, np.nan)
    mean_V = np.nanmean(masked, axis=0)
    spread = float(np.sqrt(np.nanmean(np.square(masked - mean_V))))  # few shadows: a spread a video would be noise
    out: np.ndarray = (sure_V - mean_V) / max(spread, 1e-9)
    return out


def judged(scores: np.ndarray, member: np.ndarray) -> Membership:
    """AUC with its interval over the videos, and the share of members caught at 1 % false alarms; (V,) or (S, V)."""
    auc, low, high = auc_with_interval(member, scores)
    false, true, _ = roc_curve(member.reshape(-1), scores.reshape(-1))
    caught = float(true[np.searchsorted(false, FALSE_ALARMS, side="right") - 1])
    return Membership(auc, caught, low, high)


def against_shadows(sure_SV: np.ndarray, known_SV: np.ndarray) -> Membership:
    """Each shadow in turn is the attacked one, the others calibrate; all answers together."""
    found = []
    for number in range(len(sure_SV)):
        rest = [other for other in range(len(sure_SV)) if other != number]
        found.append(scores(sure_SV[number], sure_SV[rest], ~known_SV[rest]))
    return judged(np.stack(found), known_SV)


def against(
    network: nn.Module,
    videos: JudgeSet,
    member_V: np.ndarray,
    judge: Judge,
    sure_SV: np.ndarray,
    known_SV: np.ndarray,
) -> Membership:
    """The run's own f_T."""
    mine_V = confidence(network, videos, judge.config.batch, judge.device)
    return judged(scores(mine_V, sure_SV, ~known_SV), member_V)
