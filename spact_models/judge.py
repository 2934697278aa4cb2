"""The judge: fresh networks that learn on what an anonymizer puts out and are tested on held-out videos.

Never the adversary that trained it: beating one f_B says nothing about the next attacker (method.md, "Overshoot").
A transform is frozen and applied once, to 8-bit frames, as a released video would hold them; then fresh networks get
all the time that the settings give them. The strongest attacker counts.
"""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from spact_models.action import ActionName, build_action
from spact_models.anonymizer import ClipTransform, per_frame, represent
from spact_models.losses import nt_xent
from spact_models.metrics import majority_share, retrieval_top1, top1
from spact_models.privacy import PrivacyClassifier, PrivacyName, build_privacy
from spact_models.seeds import seed_for, seeded
from spact_models.settings import JudgeConfig
from spact_models.views import NO_AUGMENTATION, AugmentConfig, augment_clips, to_float_BCTHW

FRAMES_PER_STEP = 2  # frames of each clip that a frame-level attacker sees in one step
VIEWS = AugmentConfig(crop_min_share=0.6, erase_probability=0.0)  # what a retrieval attacker must see through
# a classifier's: places and sizes vary, colours are evidence and stay
GEOMETRY = replace(NO_AUGMENTATION, crop_min_share=0.8, flip_probability=0.5)

BUILDING = threading.Lock()  # torch's global generator draws a network's weights, and there is one of it
Key = TypeVar("Key")
Progress = Callable[[], object]


@dataclass(frozen=True)
class JudgeSet:
    """Held videos as 8-bit clips: M clips of V videos, and K single views of each video from its start to its end.

    ``labels`` holds class numbers per video, -1 where unknown; the class lists are the caller's. ``group_V`` tells
    which videos share a source (-1: unknown).
    """

    clips_MTHWC: Tensor  # uint8, lead_in_frames + T frames
    video_M: Tensor
    views_VKTHWC: Tensor  # uint8, lead_in_frames + 1 frames
    labels: Mapping[str, Tensor]
    group_V: Tensor
    lead_in_frames: int

    @property
    def videos(self) -> int:
        return len(self.views_VKTHWC)

    def through(self, transform: ClipTransform, device: torch.device, batch: int = 16) -> JudgeSet:
        """What an attacker gets: every clip and view transformed, rounded to 8 bits, no lead-in left."""
        transform = copy.deepcopy(transform).to(device).eval()  # not the caller's: its device is its own business

        def release(clips_MTHWC: Tensor) -> Tensor:
            out = []
            for part in torch.split(clips_MTHWC, batch):
                with torch.inference_mode():
                    clip_BCTHW = represent(transform, to_float_BCTHW(part.to(device)), self.lead_in_frames)
                    levels = clip_BCTHW.clamp(0, 1).mul(255).round().to(torch.uint8)
                    out.append(levels.permute(0, 2, 3, 4, 1).cpu())
            return torch.cat(out).clone()

        released = release(self.views_VKTHWC.flatten(0, 1))
        views_VKTHWC = released.reshape(*self.views_VKTHWC.shape[:2], *released.shape[1:])
        return replace(self, clips_MTHWC=release(self.clips_MTHWC), views_VKTHWC=views_VKTHWC, lead_in_frames=0)


class FrameByFrame(nn.Module):
    """A picture classifier as a clip classifier: the mean of its frames' log-probabilities."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        seed = int(torch.randint(2**62, ()))
        self.generator = torch.Generator().manual_seed(seed)  # its own, because judges run side by side

    def forward(self, clip_BCTHW: Tensor) -> Tensor:
        if self.training and clip_BCTHW.shape[2] > FRAMES_PER_STEP:
            chosen = torch.randperm(clip_BCTHW.shape[2], generator=self.generator)[:FRAMES_PER_STEP]
            clip_BCTHW = clip_BCTHW[:, :, chosen.to(clip_BCTHW.device)]
        logits_BKT11 = per_frame(lambda frames: self.network(frames)[:, :, None, None], clip_BCTHW)
        return functional.log_softmax(logits_BKT11.float(), dim=1).mean(dim=(2, 3, 4))


def attackers(action_name: ActionName, privacy_name: PrivacyName, classes: int) -> dict[str, Callable[[], nn.Module]]:
    """Fresh attackers of different reach, by name: one sees frames, one sees motion as well."""
    return {
        f"frame-{privacy_name}": lambda: FrameByFrame(PrivacyClassifier(privacy_name, classes, "group")),
        f"video-{action_name}": lambda: build_action(action_name, classes, "group"),
    }


@dataclass(frozen=True)
class Judge:
    """What every judgement shares: budget, networks, device, precision and seed."""

    config: JudgeConfig
    action_name: ActionName
    privacy_name: PrivacyName
    device: torch.device
    seed: int
    precision: str = "fp32"
    on_step: Progress = lambda: None

    def classify(self, train: JudgeSet, test: JudgeSet, task: str, name: str, make: Callable[[], nn.Module]) -> float:
        """Train one fresh network on ``train.labels[task]``; top-1 on the test videos (mean over each one's clips)."""
        with BUILDING, seeded("judge", self.seed, task, name):
            network = make().to(self.device)
        if any(isinstance(module, nn.Conv3d) for module in network.modules()):
            network = network.to(memory_format=torch.channels_last_3d)  # a third less time on a CPU
        self._fit(network, train, task)
        scores_VK = self._scores(network, test)
        known_V = test.labels[task] >= 0
        return top1(scores_VK[known_V], test.labels[task][known_V])

    def utility(self, train: JudgeSet, test: JudgeSet) -> float:
        """Top-1 of a fresh action network."""
        classes = int(max(train.labels["action"].max(), test.labels["action"].max())) + 1
        make = lambda: build_action(self.action_name, classes, "group")  # noqa: E731 (a thunk, named once)
        return self.classify(train, test, "action", self.action_name, make)

    def attack(self, train: JudgeSet, test: JudgeSet, task: str) -> dict[str, float]:
        """Top-1 of every fresh attacker on one private attribute, by the attacker's name."""
        return {name: job() for name, job in self.attack_jobs(train, test, task).items()}

    def attack_jobs(self, train: JudgeSet, test: JudgeSet, task: str) -> dict[str, Callable[[], float]]:
        """The attackers of :meth:`attack`, not yet trained: each is one independent job."""
        classes = int(max(train.labels[task].max(), test.labels[task].max())) + 1
        made = attackers(self.action_name, self.privacy_name, classes)
        return {name: partial(self.classify, train, test, task, name, make) for name, make in made.items()}

    def retrieval(self, train: JudgeSet, test: JudgeSet) -> dict[str, float]:
        """A fresh self-supervised attacker matches the start of each test video to its end; no label is used.

        Returns:
            top-1 and chance among all test videos (``all``, ``all_chance``), and among those of the same source
            (``same_source``, ``same_source_chance``), where a static background cannot answer.
        """
        with BUILDING, seeded("judge", self.seed, "retrieval"):
            network = build_privacy(self.privacy_name, "group").to(self.device)
        self._fit_retrieval(network, train)
        early_VD, late_VD = self._halves(network, test)
        everyone, everyone_chance, _ = retrieval_top1(early_VD, late_VD)
        alike, alike_chance, queries = retrieval_top1(early_VD, late_VD, test.group_V)
        return {
            "all": everyone,
            "all_chance": everyone_chance,
            "same_source": alike,
            "same_source_chance": alike_chance,
            "same_source_queries": queries,
        }

    def steps_of(self, attributes: int, with_action: bool, with_retrieval: bool) -> int:
        """How often ``on_step`` is called for one representation."""
        trained = (
            int(with_action) + len(attackers(self.action_name, self.privacy_name, 2)) * attributes + int(with_retrieval)
        )
        return trained * self.config.steps

    def _fit(self, network: nn.Module, train: JudgeSet, task: str) -> None:
        generator = torch.Generator().manual_seed(seed_for("judge-batches", self.seed, task))
        labels_M = train.labels[task][train.video_M]
        usable = torch.nonzero(labels_M >= 0).flatten()
        optimizer, schedule = self._optimizer(network)
        network.train()
        for _ in range(self.config.steps):
            chosen = usable[torch.randint(len(usable), (self.config.batch,), generator=generator)]
            clips_BCTHW = to_float_BCTHW(train.clips_MTHWC[chosen].to(self.device))
            clips_BCTHW = augment_clips(clips_BCTHW, GEOMETRY, generator)
            with self._autocast():
                logits_BK = network(clips_BCTHW)
            loss = functional.cross_entropy(logits_BK.float(), labels_M[chosen].to(self.device))
            self._descend(loss, optimizer, schedule)

    def _fit_retrieval(self, network: nn.Module, train: JudgeSet) -> None:
        generator = torch.Generator().manual_seed(seed_for("judge-batches", self.seed, "retrieval"))
        optimizer, schedule = self._optimizer(network)
        network.train()
        pairs = min(2 * self.config.batch, train.videos)
        for _ in range(self.config.steps):
            chosen = torch.randperm(train.videos, generator=generator)[:pairs]
            views = torch.rand(pairs, train.views_VKTHWC.shape[1], generator=generator).argsort(dim=1)[:, :2]
            both = [train.views_VKTHWC[chosen, views[:, side]].to(self.device) for side in (0, 1)]
            frames = [augment_clips(to_float_BCTHW(view), VIEWS, generator)[:, :, -1] for view in both]
            with self._autocast():
                first_ND, second_ND = network(torch.cat(frames)).chunk(2)
            self._descend(nt_xent(first_ND, second_ND, temperature=0.1), optimizer, schedule)

    def _optimizer(self, network: nn.Module) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        optimizer = torch.optim.Adam(network.parameters(), lr=self.config.lr)
        return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, self.config.lr, total_steps=self.config.steps)

    def _descend(
        self, loss: Tensor, optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler
    ) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        self.on_step()

    def _scores(self, network: nn.Module, test: JudgeSet) -> Tensor:
        """(V, K): each video's mean probabilities over its clips."""
        network.eval()
        parts = []
        for part in torch.split(test.clips_MTHWC, self.config.batch):
            with torch.inference_mode(), self._autocast():
                parts.append(network(to_float_BCTHW(part.to(self.device))).float().softmax(dim=1).cpu())
        scores_MK = torch.cat(parts)
        total_VK = torch.zeros(test.videos, scores_MK.shape[1]).index_add_(0, test.video_M, scores_MK)
        return total_VK / test.video_M.bincount(minlength=test.videos).clamp(min=1)[:, None]

    def _halves(self, network: nn.Module, test: JudgeSet) -> tuple[Tensor, Tensor]:
        """(V, D) twice: the mean embedding of each video's early views, and of its late ones."""
        network.eval()
        parts = []
        for part in torch.split(test.views_VKTHWC, self.config.batch):
            with torch.inference_mode(), self._autocast():
                frames_NCHW = to_float_BCTHW(part.flatten(0, 1).to(self.device))[:, :, -1]
                parts.append(network(frames_NCHW).float().reshape(*part.shape[:2], -1).cpu())
        embedded_VKD = torch.cat(parts)
        half = embedded_VKD.shape[1] // 2
        early_VD, late_VD = embedded_VKD[:, :half].mean(dim=1), embedded_VKD[:, -half:].mean(dim=1)
        return functional.normalize(early_VD, dim=1), functional.normalize(late_VD, dim=1)

    def _autocast(self) -> torch.autocast:
        # Not on the CPU: torch 2.15 takes bf16 gradients of 3-D convolutions there from memory nobody wrote (NaN).
        enabled = self.precision == "bf16" and self.device.type != "cpu"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)


def side_by_side(jobs: Mapping[Key, Callable[[], Any]], device: torch.device) -> dict[Key, Any]:
    """Run independent jobs at the same time on a CPU's cores, one after the other on a GPU.

    Small networks do not keep several cores busy with one step: on 2 cores, two of them side by side with one thread
    each take two thirds of the time of one after the other with two threads.
    """
    threads = torch.get_num_threads()
    workers = 1 if device.type != "cpu" else max(1, min(threads, len(jobs)))
    if workers == 1:
        return {key: job() for key, job in jobs.items()}
    each = max(1, threads // workers)
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(each,)) as pool:
        running = {key: pool.submit(job) for key, job in jobs.items()}
        done = {key: future.result() for key, future in running.items()}
    torch.set_num_threads(threads)
    return done


def chance(test: JudgeSet, task: str) -> float:
    """What guessing scores on the test videos: the share of the commonest label."""
    labels_V = test.labels[task]
    return majority_share(labels_V[labels_V >= 0]) if bool((labels_V >= 0).any()) else math.nan
