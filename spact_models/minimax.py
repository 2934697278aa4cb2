"""SPAct's minimax game (CVPR 2022, section 3.3): two moves, and how they alternate.

The anonymizer f_A wants f_T to see the action and f_B to see nothing; the critics f_T and f_B want to see. A
network that holds still is in evaluation mode, its weights take no gradient, and where nothing upstream of it
learns no graph is built at all: the reference also differentiates through f_A in the critics' move, for nothing.

Where we differ from the reference: the privacy reward stops at chance (``cap_reward``), because beyond it f_A
learns to confuse *this* f_B and not to hide; several critics' moves answer each of the anonymizer's
(``critic_steps``), because a slow f_B is beaten without anything being hidden; clips without a label are taught by
the warm-up teacher; what f_A draws under its noise may have a price (``beta``), because what no f_B has found yet is
hidden only where nothing is drawn; f_A and f_T may take one step together (``joint_step``), because both want L_T low.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from spact_models import bf16
from spact_models.anonymizer import Anonymizer
from spact_models.game_settings import GameConfig
from spact_models.losses import action_loss, chance_level, nt_xent, rate
from spact_models.views import Batch


@dataclass
class Player:
    """One network, the optimizer that moves it, which of its parameters move, and FedProx's point that pulls them."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    proximal_mu: float = 0.0
    anchor: Mapping[str, Tensor] = field(default_factory=dict)
    trained: frozenset[str] | None = None  # names of those that learn, the others stay as they are; None: all

    def learn(self) -> None:
        self.network.train()
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(self.trained is None or name in self.trained)

    def hold(self) -> None:
        self.network.eval().requires_grad_(False)

    def descend(self, loss: Tensor) -> None:
        """One optimizer step down ``loss`` + mu/2 ||theta - anchor||^2."""
        descend_together([self], [loss])

    def step(self) -> None:
        """One optimizer step along the gradients that are there, and FedProx's pull."""
        for name, parameter in self.network.named_parameters():
            if name in self.anchor and parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - self.anchor[name], alpha=self.proximal_mu)
        self.optimizer.step()


def descend_together(players: Sequence[Player], losses: Iterable[Tensor]) -> None:
    """One step of each player down one sum of losses, term by term, so that one graph is in memory at a time."""
    for player in players:
        player.optimizer.zero_grad(set_to_none=True)
    for loss in losses:
        loss.backward()  # type: ignore[no-untyped-call]
    for player in players:
        player.step()


@dataclass
class Players:
    """The three players; ``teacher`` is the frozen warm-up f_T, for clips without a label."""

    anonymizer: Player
    action: Player
    privacy: Player
    teacher: nn.Module | None = None
    precision: str = "fp32"

    @property
    def f_A(self) -> Anonymizer:
        network = self.anonymizer.network
        assert isinstance(network, Anonymizer)
        return network

    def autocast(self, device: torch.device, *, three_dimensional: bool = False) -> Any:
        """bf16 autocast for the forward passes where ``precision`` asks for it; losses stay in float32."""
        return bf16.autocast(device, self.precision, three_dimensional=three_dimensional)


@dataclass(frozen=True)
class Losses:
    """What one move saw, detached (0-dim tensors on the device: reading them is what would wait for a GPU)."""

    action: Tensor
    privacy: Tensor | None  # None: no view was looked at


def critics_move(players: Players, batch: Batch, config: GameConfig) -> Losses:
    """f_A holds still; f_T descends L_T and f_B descends L_B on what it puts out."""
    players.anonymizer.hold()
    players.action.learn()
    players.privacy.learn()
    with torch.no_grad(), players.autocast(batch.clips_BCTHW.device):
        clips_BCTHW = players.f_A.transform(batch.clips_BCTHW)
        first_NCTHW, second_NCTHW = anonymized_views(players.f_A, batch)
    loss_T = loss_action(players, clips_BCTHW, batch)
    if has_lesson(players, batch):
        players.action.descend(loss_T)
    loss_B = loss_privacy(players, first_NCTHW, second_NCTHW, config)
    players.privacy.descend(loss_B)
    return Losses(loss_T.detach(), loss_B.detach())


def adversary_move(players: Players, batch: Batch, config: GameConfig) -> Tensor:
    """f_A and f_T hold still; f_B descends L_B, which is returned (detached). What is left where f_T moves with f_A."""
    players.anonymizer.hold()
    players.privacy.learn()
    with torch.no_grad(), players.autocast(batch.clips_BCTHW.device):
        first_NCTHW, second_NCTHW = anonymized_views(players.f_A, batch)
    loss_B = loss_privacy(players, first_NCTHW, second_NCTHW, config)
    players.privacy.descend(loss_B)
    return loss_B.detach()


def anonymizer_move(players: Players, batch: Batch, config: GameConfig) -> Losses:
    """f_T and f_B hold still; f_A descends L_T - omega * L_B + beta * rate, the reward capped at chance.

    With ``joint_step`` f_T descends L_T in the same step. With omega = 0 f_B's loss would change nothing and no view
    is looked at.
    """
    joint = config.joint_step and has_lesson(players, batch)
    players.anonymizer.learn()
    (players.action.learn if joint else players.action.hold)()
    players.privacy.hold()
    device = batch.clips_BCTHW.device
    seen: dict[str, Tensor] = {}

    def terms() -> Iterator[Tensor]:
        with players.autocast(device):
            clips_BCTHW, price = priced_clips(players.f_A, batch, config)
        loss_T = loss_action(players, clips_BCTHW, batch)
        seen["action"] = loss_T.detach()
        del clips_BCTHW
        yield loss_T + price
        if config.omega == 0:
            return
        with players.autocast(device):
            first_NCTHW, second_NCTHW = anonymized_views(players.f_A, batch)
        loss_B = loss_privacy(players, first_NCTHW, second_NCTHW, config)
        seen["privacy"] = loss_B.detach()
        reward = loss_B.clamp(max=chance_level(first_NCTHW.shape[0])) if config.cap_reward else loss_B
        yield -config.omega * reward

    descend_together([players.anonymizer, players.action] if joint else [players.anonymizer], terms())
    return Losses(seen["action"], seen.get("privacy"))


def play(players: Players, batches: Iterator[Batch], config: GameConfig, cycles: int) -> list[Losses]:
    """One local round: the critics meet the new f_A, then whole cycles, each move on its own batch.

    A cycle is one anonymizer's move and ``critic_steps`` critics' moves (with ``joint_step`` f_B's alone); never a part
    of one, so that every site ends a round in the same phase of the game.

    Returns:
        The losses of every critics' move, in order: what the critics could see of what f_A put out. Where a cycle has
        no critics' move, those of f_A's and f_T's joint one.
    """
    seen = [critics_move(players, next(batches), config) for _ in range(config.catch_up_steps)]
    for _ in range(cycles):
        ours = anonymizer_move(players, next(batches), config)
        if config.joint_step:
            answers = [adversary_move(players, next(batches), config) for _ in range(config.critic_steps)]
            seen.extend([Losses(ours.action, answer) for answer in answers] or [ours])
        else:
            seen.extend(critics_move(players, next(batches), config) for _ in range(config.critic_steps))
    return seen


def priced_clips(f_A: Anonymizer, batch: Batch, config: GameConfig) -> tuple[Tensor, Tensor | float]:
    """The batch's clips through f_A, and their price: beta times the rate of what ``price_of`` names."""
    picture_BCTHW = f_A.picture(batch.clips_BCTHW)
    drawn_BCTHW = f_A.drawing(picture_BCTHW)
    shown_BCTHW = f_A.finished(drawn_BCTHW, picture_BCTHW.shape[-2:])
    if config.beta == 0:
        return shown_BCTHW, 0.0
    priced_BCTHW = drawn_BCTHW if config.price_of == "drawn" else shown_BCTHW
    return shown_BCTHW, config.beta * rate(priced_BCTHW, f_A.config.output_noise)


def anonymized_views(f_A: Anonymizer, batch: Batch) -> tuple[Tensor, Tensor]:
    """Both views through f_A: two (N, 3, K, H, W). One pass for both unless BatchNorm would mix their statistics."""
    if _normalises_by_batch(f_A):
        return f_A.transform(batch.first_NCTHW), f_A.transform(batch.second_NCTHW)
    first_NCTHW, second_NCTHW = f_A.transform(torch.cat([batch.first_NCTHW, batch.second_NCTHW])).chunk(2)
    return first_NCTHW, second_NCTHW


def has_lesson(players: Players, batch: Batch) -> bool:
    """Whether the batch can teach f_T: without labels and teacher a step would only follow Adam's momentum."""
    return players.teacher is not None or batch.labelled


def loss_action(players: Players, clips_BCTHW: Tensor, batch: Batch) -> Tensor:
    """L_T of anonymised clips; the teacher sees the picture that f_A copied in warm-up, which stays at the site."""
    device = clips_BCTHW.device
    with players.autocast(device, three_dimensional=True):
        logits_BK = players.action.network(clips_BCTHW.float())  # autocast made f_A's output bf16
    teacher_BK = None
    if players.teacher is not None and batch.unlabelled:
        with torch.no_grad(), players.autocast(device, three_dimensional=True):
            teacher_BK = players.teacher(players.f_A.target(batch.clips_BCTHW))
    return action_loss(logits_BK, batch.labels_B, teacher_BK)


def loss_privacy(players: Players, first_NCTHW: Tensor, second_NCTHW: Tensor, config: GameConfig) -> Tensor:
    """L_B of two anonymised views of each scene."""
    f_B = players.privacy.network
    with players.autocast(first_NCTHW.device):
        if _normalises_by_batch(f_B):
            first_ND, second_ND = f_B(first_NCTHW), f_B(second_NCTHW)
        else:
            first_ND, second_ND = f_B(torch.cat([first_NCTHW, second_NCTHW])).chunk(2)
    return nt_xent(first_ND, second_ND, config.temperature)


def _normalises_by_batch(network: nn.Module) -> bool:
    if not network.training:
        return False
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())
