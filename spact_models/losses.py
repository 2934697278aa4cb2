"""The losses of the game (SPAct, section 3; method.md)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

UNLABELLED = -1  # the label of a clip whose action nobody named


def nt_xent(first_ND: Tensor, second_ND: Tensor, temperature: float) -> Tensor:
    """NT-Xent (SimCLR, equation 1) over N pairs of embeddings; the other 2N - 2 are a view's negatives.

    Args:
        first_ND: (N, D) L2-normalised embeddings of the first views, N >= 2.
        second_ND: (N, D) of the second views; row i shows the same scene as ``first_ND[i]``.
        temperature: 0.1 in the paper.

    Returns:
        The mean over the 2N views, in nats. Embeddings that say nothing give about ``chance_level(N)``.
    """
    views_MD = torch.cat([first_ND, second_ND]).float()
    count = first_ND.shape[0]
    similarity_MM = views_MD @ views_MD.T / temperature
    itself_MM = torch.eye(2 * count, dtype=torch.bool, device=views_MD.device)
    similarity_MM = similarity_MM.masked_fill(itself_MM, float("-inf"))
    partner_M = torch.arange(2 * count, device=views_MD.device).roll(count)
    return functional.cross_entropy(similarity_MM, partner_M)


def chance_level(pairs: int) -> float:
    """NT-Xent of embeddings that carry nothing: ln(2N - 1) nats for N pairs."""
    return math.log(2 * pairs - 1)


def action_loss(logits_BK: Tensor, labels_B: Tensor, teacher_logits_BK: Tensor | None = None) -> Tensor:
    """L_T: cross-entropy where the clip has a label, distillation from the teacher where it has none.

    The mean runs over the clips that can teach: an unlabelled clip without a teacher (during warm-up) counts
    nothing, and a batch of only such clips gives 0 with a graph that holds only zeros.

    Args:
        logits_BK: (B, K) of f_T on anonymised clips.
        labels_B: (B,) class numbers, ``UNLABELLED`` where there is none.
        teacher_logits_BK: (B, K) of the frozen warm-up teacher, or None.
    """
    logits_BK = logits_BK.float()
    labelled_B = labels_B != UNLABELLED
    entropy_B = functional.cross_entropy(logits_BK, labels_B.clamp(min=0), reduction="none")
    if teacher_logits_BK is None:
        return (entropy_B * labelled_B).sum() / labelled_B.sum().clamp(min=1)
    return torch.where(labelled_B, entropy_B, distillation(logits_BK, teacher_logits_BK)).mean()


def distillation(student_BK: Tensor, teacher_BK: Tensor) -> Tensor:
    """KL( teacher || student ) of each clip: (B,), in nats; 0 where the two agree."""
    student = functional.log_softmax(student_BK.float(), dim=1)
    teacher = functional.log_softmax(teacher_BK.float(), dim=1)
    return functional.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=1)


def rate(picture: Tensor, output_noise: float) -> Tensor:
    """What the noisy picture can tell at most, in nats a value: mean of y² / 2σ² (Alemi et al. 2017, "Deep VIB").

    y + n with Gaussian n of standard deviation σ carries no more about the footage than the KL divergence of
    N(y, σ²) from N(0, σ²), which this is; cutting the noisy value to [0, 1] can only lose some of it. Whatever f_A
    draws costs, so it draws what f_T pays for and leaves the rest black.

    Args:
        picture: what f_A draws, in [0, 1], any shape, before its noise; with its noise on and cut it is no such bound:
            a constant more, and a slope of 0.8 σ instead of 0 at y = 0, so that faint signs cost most of all.
        output_noise: σ > 0.
    """
    return picture.float().square().mean() / (2.0 * output_noise**2)


def reconstruction(anonymized_BCTHW: Tensor, target_BCTHW: Tensor) -> Tensor:
    """L1 per value: what f_A's warm-up brings down (SPAct, section 3.3, "f_A as identity")."""
    return functional.l1_loss(anonymized_BCTHW.float(), target_BCTHW)
