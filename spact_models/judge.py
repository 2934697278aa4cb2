"""The judge: fresh networks that learn on what an anonymizer puts out and are tested on held-out videos.

Never the adversary that trained it: beating one f_B says nothing about the next attacker (method.md, "Overshoot").
A transform is frozen and applied once, to 8-bit frames, as a released video would hold them; then fresh networks get
all the time that the settings give them. The strongest attacker counts. Every answer is kept video by video, so that
two anonymizers can be compared on the same videos.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from spact_models import bf16
from spact_models.action import ActionName, build_action
from spact_models.attackers import NETWORKS, TREES, Attacker, embedder
from spact_models.game_settings import JudgeConfig
from spact_models.judge_set import JudgeSet as JudgeSet
from spact_models.losses import nt_xent
from spact_models.metrics import hits, majority_share, retrieval_hits
from spact_models.seeds import seed_for, seeded
from spact_models.speed import moved, search_kernels
from spact_models.trees import Trees, attribute_scores, class_scores, grown, statistics
from spact_models.views import NO_AUGMENTATION, AugmentConfig, augment_clips, to_float_BCTHW
from spact_models.workshop import Progress

VIEWS = AugmentConfig(crop_min_share=0.6, erase_probability=0.0)  # what a retrieval attacker must see through
# a classifier's: places and sizes vary, colours are evidence and stay
GEOMETRY = replace(NO_AUGMENTATION, crop_min_share=0.8, flip_probability=0.5)
RETRIEVAL_FORMS = ("all", "same_source")


@dataclass(frozen=True)
class Answer:
    """What one fresh network said of the test videos it was asked about (those whose label is known)."""

    scores_VK: Tensor  # probabilities; a retrieval has none, K = 0
    labels_V: Tensor  # (V,) class numbers, (V, A) of yes-or-no attributes; of a retrieval the candidates' group
    hit_V: Tensor  # 1 where right; retrieval: the mean of both directions; attributes: the share of right answers
    chance: float
    learned: float | None = None  # share of its own training clips answered right in the last tenth of its steps

    @property
    def top1(self) -> float:
        return float(self.hit_V.double().mean())


@dataclass(frozen=True)
class Judge:
    """What every judgement shares: budget, action network, device, precision and seed."""

    config: JudgeConfig
    action_name: ActionName
    device: torch.device
    seed: int
    precision: str = "fp32"
    on_step: Progress = lambda: None

    def action(self, train: JudgeSet, test: JudgeSet) -> Answer:
        """A fresh f_T: utility."""
        return self.classify(train, test, "action", self.action_name, self._action_recipe)

    def taught_action(self, train: JudgeSet) -> nn.Module:
        """A fresh f_T, trained on the videos whose action is known, in evaluation mode."""
        recipe, classes = self._action_recipe, int(train.labels["action"].max()) + 1
        network = self._fresh(lambda: recipe(classes, train.size_px), "action", self.action_name)
        self._fit(network, recipe, train, train.labels["action"], _cross_entropy, "action")
        return network.eval()

    @property
    def _action_recipe(self) -> Attacker:
        return Attacker(lambda classes, _: build_action(self.action_name, classes, "group"), "video")

    def attack(self, train: JudgeSet, test: JudgeSet, task: str, attacker: str) -> Answer:
        """One fresh attacker on one private attribute: which of many."""
        if attacker == TREES:
            return self._by_trees(train, test, task)
        return self.classify(train, test, task, attacker, NETWORKS[attacker])

    def classify(self, train: JudgeSet, test: JudgeSet, task: str, name: str, recipe: Attacker) -> Answer:
        """Train one fresh network on ``train.labels[task]``, ask it about the test videos (mean over clips)."""
        classes = int(max(train.labels[task].max(), test.labels[task].max())) + 1
        network = self._fresh(lambda: recipe(classes, train.size_px), task, name)
        learned = self._fit(network, recipe, train, train.labels[task], _cross_entropy, task)
        known_V = test.labels[task] >= 0
        labels_V = test.labels[task][known_V]
        scores_VK = self._scores(network, test, lambda logits: logits.softmax(dim=1))[known_V]
        return Answer(scores_VK, labels_V, hits(scores_VK, labels_V), chance(test, task), learned)

    def attributes(self, train: JudgeSet, test: JudgeSet, attacker: str) -> Answer:
        """One fresh attacker on all yes-or-no attributes at once, by binary cross-entropy."""
        if train.attributes_VA is None or test.attributes_VA is None:
            raise ValueError("these videos carry no yes-or-no attributes")
        if attacker == TREES:
            scores_VA, learned = self._attributes_by_trees(train, test, train.attributes_VA), None
        else:
            scores_VA, learned = self._attributes_by_network(train, test, train.attributes_VA, attacker)
        labels_VA = test.attributes_VA
        known_VA = labels_VA >= 0
        right_VA = ((scores_VA > 0.5) == (labels_VA == 1)) & known_VA
        hit_V = right_VA.sum(dim=1) / known_VA.sum(dim=1).clamp(min=1)
        return Answer(scores_VA, labels_VA, hit_V, math.nan, learned)

    def retrieval(self, train: JudgeSet, test: JudgeSet, attacker: str) -> dict[str, Answer]:
        """A fresh self-supervised attacker matches the start of each test video to its end; no label is used.

        A frame-level attacker compares the mean points of early and late views, a video-level one a clip of the first
        half with one of the second.

        Returns:
            by form: ``all`` test videos are candidates, or those of the ``same_source``, where a static background
            cannot answer; a form that asks nothing has an empty answer.
        """
        network = self._fresh(lambda: embedder(attacker, train.size_px), "retrieval", attacker)
        self._fit_retrieval(network, NETWORKS[attacker], train)
        early_VD, late_VD = self._ends(network, NETWORKS[attacker], test)
        found = {}
        for form, group_V in (("all", torch.zeros_like(test.group_V)), ("same_source", test.group_V)):
            hit_V, asked_V, level = retrieval_hits(early_VD, late_VD, group_V)
            found[form] = Answer(torch.empty(len(hit_V), 0), group_V[asked_V], hit_V.float(), level)
        return found

    def _attributes_by_network(
        self, train: JudgeSet, test: JudgeSet, labels_VA: Tensor, attacker: str
    ) -> tuple[Tensor, float]:
        """(V, A) of the test videos, and what the network knew of its own clips when it stopped."""
        recipe, attributes = NETWORKS[attacker], labels_VA.shape[1]
        network = self._fresh(lambda: recipe(attributes, train.size_px), "attributes", attacker)
        learned = self._fit(network, recipe, train, labels_VA, _known_binary_cross_entropy, "attributes")
        return self._scores(network, test, torch.sigmoid), learned

    def _attributes_by_trees(self, train: JudgeSet, test: JudgeSet, labels_VA: Tensor) -> Tensor:
        grown_trees = self._trees(train, labels_VA, "attributes")
        return _mean_of_clips(attribute_scores(grown_trees, statistics(test.clips_MTHWC)), test)

    def _by_trees(self, train: JudgeSet, test: JudgeSet, task: str) -> Answer:
        """:meth:`classify` by trees, which have no steps that could end too early."""
        classes = int(max(train.labels[task].max(), test.labels[task].max())) + 1
        grown_trees, known_V = self._trees(train, train.labels[task], task), test.labels[task] >= 0
        scores_MK = class_scores(grown_trees, statistics(test.clips_MTHWC), classes)
        scores_VK, labels_V = _mean_of_clips(scores_MK, test)[known_V], test.labels[task][known_V]
        return Answer(scores_VK, labels_V, hits(scores_VK, labels_V), chance(test, task))

    def _trees(self, train: JudgeSet, labels_V: Tensor, task: str) -> Trees:
        known_M = (labels_V >= 0).reshape(len(labels_V), -1).any(dim=1)[train.video_M]
        taught_MF, labels_M = statistics(train.clips_MTHWC[known_M]), labels_V[train.video_M][known_M]
        trees = grown(taught_MF, labels_M, seed_for("judge", self.seed, task, TREES))
        for _ in range(self.config.steps):  # a bar counts a network's steps
            self.on_step()
        return trees

    def _fresh(self, make: Callable[[], nn.Module], task: str, name: str) -> nn.Module:
        with seeded("judge", self.seed, task, name):
            network = make().to(self.device)
        search_kernels(self.device)
        if self.device.type == "cpu" and any(isinstance(module, nn.Conv3d) for module in network.modules()):
            network = network.to(memory_format=torch.channels_last_3d)  # a third less time there
        return network

    def _fit(
        self,
        network: nn.Module,
        recipe: Attacker,
        train: JudgeSet,
        labels_V: Tensor,
        loss: Callable[[Tensor, Tensor], Tensor],
        task: str,
    ) -> float:
        """Random clips of videos of which something is known, for as many steps as the settings give.

        Returns:
            the share of the clips of the last tenth of the steps that were answered right, each before its step.
        """
        generator = torch.Generator().manual_seed(seed_for("judge-batches", self.seed, task))
        known_V = (labels_V >= 0).reshape(len(labels_V), -1).any(dim=1)
        usable = torch.nonzero(known_V[train.video_M]).flatten()
        optimizer, schedule = self._optimizer(network, recipe)
        network.train()
        right, last = torch.zeros((), device=self.device), max(1, self.config.steps // 10)
        for step in range(self.config.steps):
            chosen = usable[torch.randint(len(usable), (self.config.batch,), generator=generator)]
            clips_BCTHW = to_float_BCTHW(moved(train.clips_MTHWC[chosen], self.device))
            clips_BCTHW = augment_clips(clips_BCTHW, GEOMETRY, generator)
            with self._autocast():
                logits_BK = network(clips_BCTHW)
            targets_B = moved(labels_V[train.video_M[chosen]], self.device)
            if step >= self.config.steps - last:
                right += _right(logits_BK.detach(), targets_B)
            self._descend(loss(logits_BK.float(), targets_B), optimizer, schedule)
        return float(right) / last

    def _fit_retrieval(self, network: nn.Module, recipe: Attacker, train: JudgeSet) -> None:
        generator = torch.Generator().manual_seed(seed_for("judge-batches", self.seed, "retrieval"))
        optimizer, schedule = self._optimizer(network, recipe)
        places_VKTHWC = self._places(recipe, train)
        network.train()
        # a frame costs little, a clip much; more pairs are more negatives
        pairs = min((2 if recipe.reach == "frame" else 1) * self.config.batch, train.videos)
        for _ in range(self.config.steps):
            chosen = torch.randperm(train.videos, generator=generator)[:pairs]
            two = torch.rand(pairs, places_VKTHWC.shape[1], generator=generator).argsort(dim=1)[:, :2]
            both = [moved(places_VKTHWC[chosen, two[:, side]], self.device) for side in (0, 1)]
            clips = [augment_clips(to_float_BCTHW(one), VIEWS, generator) for one in both]
            with self._autocast():
                first_ND, second_ND = network(torch.cat(clips)).chunk(2)
            self._descend(nt_xent(first_ND, second_ND, temperature=0.1), optimizer, schedule)

    def _optimizer(
        self, network: nn.Module, recipe: Attacker
    ) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        """One cycle: nearly a third of the steps warm up, the rest come down."""
        lr = self.config.lr * recipe.lr_share
        fused = self.device.type == "cuda"
        optimizer: torch.optim.Optimizer = (
            torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=recipe.weight_decay, fused=fused)
            if recipe.weight_decay
            else torch.optim.Adam(network.parameters(), lr=lr, fused=fused)
        )
        return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=self.config.steps)

    def _descend(
        self,
        loss: Tensor,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
    ) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        self.on_step()

    def _scores(self, network: nn.Module, test: JudgeSet, answer: Callable[[Tensor], Tensor]) -> Tensor:
        """(V, K): each video's mean probabilities over its clips."""
        network.eval()
        parts = []
        for part in torch.split(test.clips_MTHWC, self.config.batch):
            with torch.inference_mode(), self._autocast():
                parts.append(answer(network(to_float_BCTHW(part.to(self.device))).float()).cpu())
        return _mean_of_clips(torch.cat(parts), test)

    def _ends(self, network: nn.Module, recipe: Attacker, test: JudgeSet) -> tuple[Tensor, Tensor]:
        """(V, D) twice: the mean point of what each video shows early, and of what it shows late."""
        network.eval()
        parts = []
        for part in torch.split(self._places(recipe, test), self.config.batch):
            with torch.inference_mode(), self._autocast():
                clips_NCTHW = to_float_BCTHW(part.flatten(0, 1).to(self.device))
                parts.append(network(clips_NCTHW).float().reshape(*part.shape[:2], -1).cpu())
        embedded_VKD = torch.cat(parts)
        half = embedded_VKD.shape[1] // 2
        early_VD, late_VD = embedded_VKD[:, :half].mean(dim=1), embedded_VKD[:, -half:].mean(dim=1)
        return functional.normalize(early_VD, dim=1), functional.normalize(late_VD, dim=1)

    @staticmethod
    def _places(recipe: Attacker, held: JudgeSet) -> Tensor:
        """What a retrieval attacker of this reach sees of each video, from early to late."""
        if recipe.reach == "frame":
            return held.views_VKTHWC[:, :, -1:]
        if held.halves_V2THWC is None:
            raise ValueError("a video-level retrieval attacker needs the two halves of each video")
        return held.halves_V2THWC

    def _autocast(self) -> AbstractContextManager[None]:
        """bf16 where it was asked for, on a GPU alone: a judge's figures are not to depend on the CPU's kind."""
        return bf16.autocast(self.device, "fp32" if self.device.type == "cpu" else self.precision)


def _mean_of_clips(scores_MK: Tensor, held: JudgeSet) -> Tensor:
    """(M, K) of clips -> (V, K) of their videos."""
    total_VK = torch.zeros(held.videos, scores_MK.shape[1]).index_add_(0, held.video_M, scores_MK)
    return total_VK / held.video_M.bincount(minlength=held.videos).clamp(min=1)[:, None]


def _cross_entropy(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    return functional.cross_entropy(logits_BK, labels_B)


def _known_binary_cross_entropy(logits_BA: Tensor, labels_BA: Tensor) -> Tensor:
    """The mean over what is known; an unknown attribute teaches nothing."""
    known_BA = (labels_BA >= 0).to(logits_BA.dtype)
    each_BA = functional.binary_cross_entropy_with_logits(
        logits_BA, (labels_BA == 1).to(logits_BA.dtype), known_BA, reduction="sum"
    )
    return each_BA / known_BA.sum().clamp(min=1)


def _right(logits: Tensor, targets: Tensor) -> Tensor:
    """The share of right answers: (B, K) logits to (B,) classes, or (B, A) logits to (B, A) of 1, 0, -1 (unknown)."""
    if targets.dim() == 1:
        return hits(logits, targets).mean()
    known_BA = targets >= 0
    return (((logits > 0) == (targets == 1)) & known_BA).sum() / known_BA.sum().clamp(min=1)


def chance(test: JudgeSet, task: str) -> float:
    """What guessing scores on the test videos: the share of the commonest label."""
    labels_V = test.labels[task]
    return majority_share(labels_V[labels_V >= 0]) if bool((labels_V >= 0).any()) else math.nan
