"""Training within a memory budget: which blocks are computed again in the backward pass instead of being kept.

What a move keeps for its gradients is counted, not guessed: one small forward pass with a counter on every tensor that
autograd saves, scaled up to the batch. While that is above ``memory.budget_gib``, the block that keeps most is wrapped
in torch's activation checkpointing (Chen et al. 2016): f_A's U-Net as one, f_T and f_B by residual block. A wrapped
block takes its batch in pieces, so that no more than a piece of one is in memory whole. The gradients are the same.

Blocks with BatchNorm in training mode are never computed again: the statistics would move twice, and a piece has others
than its batch. Held networks are in evaluation mode, where BatchNorm is a fixed scale: there the same blocks may be.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from spact_models import action, privacy
from spact_models.bf16 import SoundBf16
from spact_models.errors import UserError
from spact_models.minimax import Player, Players
from spact_models.settings import Settings
from spact_models.unet import UNet

log = logging.getLogger("fedspact.memory")
GIB = 2**30
BLOCKS = (UNet, action.BasicBlock, privacy.BasicBlock, privacy.Bottleneck)
UNET = "anonymizer.unet"
OUTSIDE = ""  # what autograd saves between the blocks
EASY_PIECES = 8  # a batch in more leaves a GPU idle, so that other blocks are computed again before
BYTES_A_WEIGHT = 16  # float32: the weight, its gradient, Adam's two moments


@dataclass(frozen=True)
class Plan:
    """What is computed again, and what a move then holds at most, by the estimate."""

    again: tuple[str, ...]  # blocks by player and name, such as "action.layer1.0"
    pieces: int  # that such a block takes its batch in
    held_bytes: int


@dataclass(frozen=True)
class Path:
    """A batch's way through f_A and one critic, bytes by block."""

    kept: Counter[str]  # for the gradients
    taken: Counter[str]  # the block's input: what stays of a block that is computed again
    examples: int  # clips, or views
    frames: int  # the U-Net's examples

    def held(self, again: Sequence[str] = (), pieces: int = 1) -> int:
        """Bytes at the worst moment: what is kept, and the largest piece of a block that is computed again."""
        stays = sum(self.taken[name] if name in again else size for name, size in self.kept.items())
        counts = {name: self.frames if name == UNET else self.examples for name in again}
        most = {name: -(-count // pieces) for name, count in counts.items()}  # examples of a piece, of the first one
        return stays + max((self.kept[name] * most[name] // counts[name] for name in again), default=0)


def fit_memory(players: Players, settings: Settings) -> Plan | None:
    """Make the players' networks fit ``memory.budget_gib``; None where there is no limit.

    Raises:
        UserError: the budget is too small whatever is computed again.
    """
    compute_again(players, ())  # networks serve round after round
    budget = int(settings.memory.budget_gib * GIB)
    if budget == 0:
        return None
    plan = choose(paths_of(players, settings), fixed_bytes(players), budget)
    compute_again(players, plan.again, plan.pieces)
    log.info("memory: %d blocks computed again, %.2f GiB held", len(plan.again), plan.held_bytes / GIB)
    return plan


def compute_again(players: Players, again: Sequence[str], pieces: int = 1) -> None:
    """Wrap these blocks and no others; names and weights stay, and so does what a checkpoint holds."""
    for name, block in blocks_of(players):
        vars(block).pop("forward", None)
        if name in again:  # a partial: a copy of the network (the teacher) then has the copied block in it
            block.forward = partial(_again, block, pieces)


def blocks_of(players: Players) -> list[tuple[str, nn.Module]]:
    """The blocks that can be computed again, by player and name, in order."""
    seats = {"anonymizer": players.anonymizer, "action": players.action, "privacy": players.privacy}
    return [pair for name, player in seats.items() for pair in _blocks(name, player.network)]


def _blocks(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Residual blocks and U-Nets; of a row of layers the whole row."""
    row = isinstance(module, nn.Sequential) and not any(any(child.children()) for child in module)
    if row or isinstance(module, BLOCKS):
        yield name, module
        return
    for child_name, child in module.named_children():
        yield from _blocks(f"{name}.{child_name}", child)


def _twice() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """What the first and the second pass run in: torch restores autocast for the second, but no function mode."""
    return nullcontext(), SoundBf16()


def _again(block: nn.Module, pieces: int, batch: Tensor) -> Tensor:
    """The block's own forward pass, computed again when its gradients are due, piece by piece."""
    plain: Callable[[Tensor], Tensor] = type(block).forward.__get__(block)
    if block.training and any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in block.modules()):
        return plain(batch)
    if torch.is_grad_enabled():  # nothing is drawn inside a block: no generator's state to keep
        done = [
            checkpoint(plain, piece, use_reentrant=False, preserve_rng_state=False, context_fn=_twice)
            for piece in batch.chunk(pieces)
        ]
    else:
        done = [plain(piece) for piece in batch.chunk(pieces)]
    return torch.cat(done) if len(done) > 1 else done[0]


def choose(paths: Sequence[Path], fixed: int, budget: int) -> Plan:
    """The fewest blocks, largest first, that bring a move of these paths, one after the other, under the budget.

    Raises:
        UserError: not even all blocks do, example by example.
    """
    again: list[str] = []
    pieces = 1
    while True:
        worst = max(paths, key=lambda path: path.held(again, pieces))
        held = fixed + worst.held(again, pieces)
        if held <= budget:
            return Plan(tuple(again), pieces, held)
        inside = [name for name in worst.kept if name != OUTSIDE and name not in again]
        left = [name for name in inside if worst.kept[name] > worst.taken[name]]
        if again and pieces < (EASY_PIECES if left else worst.frames):
            pieces *= 2
        elif left:
            again.append(max(left, key=lambda name: worst.kept[name]))
        else:
            raise UserError(
                f"memory.budget_gib = {budget / GIB:.3g}, must be at least {held / GIB:.3g} for these networks and "
                "batches, whatever is computed again; lower batch.clips, batch.views, clip.frames or clip.size_px"
            )


def paths_of(players: Players, settings: Settings) -> list[Path]:
    """The two halves of the anonymizer's move, the largest: one clip and one view measured, times the batch.

    What two examples keep more than one is an example's; what is left of one (autocast's copies of weights) is the
    batch's once. Not counted: the gradients of activations on their way (in the tests up to a third of what is kept),
    and what a convolution works in.
    """
    device = next(players.f_A.parameters()).device
    size, history, batch = settings.clip.size_px, players.f_A.history, settings.batch
    halves = (
        (players.action, settings.clip.frames, batch.clips),
        (players.privacy, settings.views.frames, 2 * batch.views),
    )
    found = []
    for critic, frames, count in halves:
        seen = []
        for examples in (1, 2):
            with counted(players) as (kept, taken):
                _pass(players, critic, torch.zeros(examples, 3, frames + history, size, size, device=device))
            seen.append((kept, taken))
        (kept, taken), (twice, _) = seen
        each = Counter({name: twice[name] - one for name, one in kept.items()})
        whole = _times(count, each)
        whole[OUTSIDE] += kept.total() - each.total()
        found.append(Path(whole, _times(count, taken), count, count * frames))
    return found


def fixed_bytes(players: Players) -> int:
    """Weights, their gradients and Adam's moments, and the teacher's weights."""
    weights = sum(value.numel() for player in _seats(players) for value in player.network.parameters())
    taught = sum(value.numel() for value in players.teacher.parameters()) if players.teacher is not None else 0
    return BYTES_A_WEIGHT * weights + 4 * taught


def _times(count: int, sizes: Counter[str]) -> Counter[str]:
    return Counter({name: count * size for name, size in sizes.items()})


def _pass(players: Players, critic: Player, example: Tensor) -> Tensor:
    """As the game goes through f_A and a critic."""
    clips = critic is players.action
    with players.autocast(example.device):
        shown = players.f_A.transform(example)
    with players.autocast(example.device, three_dimensional=clips):
        result: Tensor = critic.network(shown.float() if clips else shown)
    return result


def _seats(players: Players) -> tuple[Player, Player, Player]:
    return players.anonymizer, players.action, players.privacy


@contextmanager
def counted(players: Players) -> Iterator[tuple[Counter[str], Counter[str]]]:
    """Count by block what autograd saves in a forward pass: (kept, taken in) bytes. Weights are not counted.

    In evaluation mode, so that no statistic moves; with every weight learning, so that no move keeps more.
    """
    kept: Counter[str] = Counter()
    taken: Counter[str] = Counter()
    inside = [OUTSIDE]
    device = next(players.f_A.parameters()).device
    gpu = [device] if device.type == "cuda" else []
    for player in _seats(players):
        player.learn()
        player.network.eval()
    seen = {p.untyped_storage().data_ptr() for player in _seats(players) for p in player.network.parameters()}

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in seen:  # the graph keeps what it has saved alive: no address comes twice
            seen.add(storage.data_ptr())
            kept[inside[-1]] += storage.nbytes()
        return value

    def enter(name: str) -> Callable[[nn.Module, Any], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            inside.append(name)
            taken[name] += inputs[0].nbytes

        return hook

    hooks = [block.register_forward_pre_hook(enter(name)) for name, block in blocks_of(players)]
    hooks += [block.register_forward_hook(lambda *_: inside.pop() and None) for _, block in blocks_of(players)]
    try:
        with torch.random.fork_rng(gpu), torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            yield kept, taken
    finally:
        for hook in hooks:
            hook.remove()
