"""One local round: the site's state in, the game, the site's state out. The same code plays centralised rounds."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from client.dp import Groups, private_round
from client.prefetch import prefetched, worth_a_thread
from client.state import LocalState
from client.video.loader import ClipLoader
from client.video.rows import Row
from spact_models.anonymizer import represent
from spact_models.errors import UserError
from spact_models.exchange import ACTION, branch, install, snapshot, trained_names
from spact_models.losses import chance_level
from spact_models.memory import compute_again, fit_memory
from spact_models.minimax import Losses, Player, Players, play
from spact_models.networks import Networks, build_privacy_network
from spact_models.noise import SecretStream
from spact_models.seeds import own_noise, seed_for, seed_noise
from spact_models.settings import Settings
from spact_models.speed import batch_on, compile_networks, make_adam, plain_copy, prepare_device, seat_in_memory
from spact_models.views import Batch, FrameBatch, to_float_BCTHW
from spact_models.warmup import warmup_step

on_step: ContextVar[Callable[[], object]] = ContextVar("on_step", default=lambda: None)  # progress bars hang on to it

PLAYERS = ("anonymizer", "action", "privacy")


@dataclass(frozen=True)
class RoundTask:
    """What the server asks of a site in one round."""

    server_round: int
    phase: str  # "warmup" | "minimax"
    weights: Mapping[str, Tensor]  # f_A and f_T by wire name
    teacher: Mapping[str, Tensor] | None = None  # f_T after warm-up by wire name, when the site does not hold it


@dataclass(frozen=True)
class RoundResult:
    """What comes of it: the new weights by wire name, the site's new state, figures about the round."""

    weights: dict[str, Tensor]
    state: LocalState
    metrics: dict[str, float]


def local_round(
    task: RoundTask,
    settings: Settings,
    site_name: str,
    networks: Networks,
    loader: ClipLoader,
    state: LocalState,
    groups: Groups | None = None,
) -> RoundResult:
    """Play one whole round at a site, on the device that ``networks`` lie on.

    The result follows from the task, the settings, the site's name, its rows and its state: nothing else. With
    ``dp.unit = videos`` also from noise that nobody can draw again; ``groups`` are then the site's.

    Raises:
        UserError: a network is no longer finite; nothing of the round may be kept or sent.
    """
    started = time.monotonic()
    settings = settings.in_round(task.server_round)
    install(networks.anonymizer, networks.action, task.weights)
    players = seat_players(task, settings, site_name, networks, state)
    seen: list[Losses] = []  # with groups no loss is kept: it would be a figure without noise
    with own_noise(next(networks.anonymizer.parameters()).device):
        if settings.dp.unit == "videos":
            _play_by_groups(task, settings, players, groups)
        else:
            with closing(_batches(task, settings, site_name, loader, players)) as batches:
                seen = _play_phase(task, settings, players, batches)
    compute_again(players, ())  # a block that knows its wrapper waits for the garbage collector, on the device
    weights, left = snapshot(networks.anonymizer, networks.action), _leave_table(task, players, networks)
    _check_finite(task, {**weights, **left.privacy, **left.buffers})
    metrics = {
        **_examples(loader.rows, players),
        "teacher_held": float(players.teacher is not None),
        "loss.action": _mean([losses.action for losses in seen]),
        "loss.privacy": _mean([losses.privacy for losses in seen if losses.privacy is not None]),
        "chance.privacy": chance_level(min(settings.batch.views, len(loader.view_rows))),
        "seconds": time.monotonic() - started,
    }
    return RoundResult(weights, left, metrics)


def seat_players(task: RoundTask, settings: Settings, site_name: str, networks: Networks, state: LocalState) -> Players:
    """The three players as the site's state left them: own f_B, own optimizer states, own statistics, teacher."""
    device = next(networks.anonymizer.parameters()).device
    prepare_device(settings, device)
    restart = _restart_number(task, settings)
    privacy = build_privacy_network(settings, site_name, restart).to(device)
    begins_anew = restart > 0 and _restart_due(task, settings)
    if state.privacy and not begins_anew:
        privacy.load_state_dict(state.privacy)
    load_buffers(networks, state.buffers)
    trained = (networks.anonymizer, networks.action, privacy)
    rates = _learning_rates(task, settings)
    seats = {}
    chosen = {key: task.weights[key] for key in trained_names(task.weights, settings.wire.patterns)}
    for name, network, rate in zip(PLAYERS, trained, rates, strict=True):
        seat_in_memory(name, network, settings, device)
        subset = None if name == "privacy" else frozenset(branch(chosen, f"{name}."))
        moved = [value for key, value in network.named_parameters() if subset is None or key in subset]
        kept = None if name == "privacy" and begins_anew else state.optimizers.get(name)
        seats[name] = Player(network, make_adam(moved, rate, kept), trained=subset)
    if settings.strategy.name == "fedprox":
        for name in ("anonymizer", "action"):
            seats[name].proximal_mu = settings.strategy.proximal_mu
            seats[name].anchor = {key: value.to(device) for key, value in branch(task.weights, f"{name}.").items()}
    players = Players(**seats, teacher=_teacher(task, networks.action, state), precision=settings.precision)
    fit_memory(players, settings)
    if settings.speed.compile:
        compile_networks(players)
    return players


def evaluate(networks: Networks, loader: ClipLoader, rows: Iterable[Row], clips_per_video: int) -> dict[str, float]:
    """Top-1 of the federated f_T on the site's held-out, labelled videos (mean of the clips' softmax)."""
    device = next(networks.anonymizer.parameters()).device
    networks.anonymizer.eval()
    networks.action.eval()
    hits = 0
    count = 0
    labelled = [row for row in rows if row.action is not None]
    for row, clips in loader.test_clips(labelled, clips_per_video):
        with torch.inference_mode():
            clips_BCTHW = to_float_BCTHW(torch.from_numpy(clips).to(device))
            logits_BK = networks.action(represent(networks.anonymizer, clips_BCTHW, loader.lead_in_frames))
        hits += int(logits_BK.softmax(dim=1).mean(dim=0).argmax()) == loader.label(row)
        count += 1
    return {"examples": count, "top1": hits / count if count else math.nan}


def prepared(
    frame_batches: Iterator[FrameBatch], settings: Settings, generator: torch.Generator, device: torch.device
) -> Iterator[Batch]:
    """uint8 to the device, float and augmentation there."""
    for frames in frame_batches:
        yield batch_on(device, frames, settings, generator)


@contextmanager
def fed(
    frame_batches: Iterator[FrameBatch],
    settings: Settings,
    generator: torch.Generator,
    device: torch.device,
    beside: bool | None = None,
) -> Iterator[Iterator[Batch]]:
    """:func:`prepared`, the same batches; ``beside``: each in a thread of its own while the one before it is played.

    None: where that is worth a thread.
    """
    made = prepared(frame_batches, settings, generator, device)
    if not (worth_a_thread(device) if beside is None else beside):
        yield made
        return
    with prefetched(_with_views(made) if settings.game.omega else made) as batches:
        yield batches


def _with_views(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Views are made when they are first looked at; with ``game.omega`` every move looks at them."""
    for batch in batches:
        _ = batch.first_NCTHW, batch.second_NCTHW
        yield batch


def _batches(
    task: RoundTask, settings: Settings, site_name: str, loader: ClipLoader, players: Players
) -> Generator[Batch, None, None]:
    seed = seed_for("batches", settings.seed, task.server_round, site_name)
    generator = torch.Generator().manual_seed(seed_for("augment", settings.seed, task.server_round, site_name))
    seed_noise("noise", settings.seed, task.server_round, site_name)  # f_A's output noise
    device = next(players.f_A.parameters()).device
    asked = islice(loader.training(seed), batches_of_round(settings, task.phase))  # none is made in vain
    with fed(asked, settings, generator, device) as batches:
        for batch in batches:
            on_step.get()()
            yield batch


def batches_of_round(settings: Settings, phase: str) -> int:
    """How many batches a site draws in a round of this phase."""
    if phase == "warmup":
        return settings.warmup.steps
    return settings.game.catch_up_steps + settings.rounds.cycles * (1 + settings.game.critic_steps)


def _play_phase(task: RoundTask, settings: Settings, players: Players, batches: Iterator[Batch]) -> list[Losses]:
    if task.phase == "warmup":
        return [warmup_step(players, next(batches), settings.game) for _ in range(settings.warmup.steps)]
    return play(players, batches, settings.game, settings.rounds.cycles)


def _play_by_groups(task: RoundTask, settings: Settings, players: Players, groups: Groups | None) -> None:
    if groups is None:
        raise UserError(
            "dp.unit = 'videos', is played at a federation's sites alone; use dp.unit = 'none' to train in one place"
        )
    private_round(players, task.phase, groups.draw, groups.groups, settings, SecretStream(), on_step.get())


def _learning_rates(task: RoundTask, settings: Settings) -> tuple[float, float, float]:
    chosen = settings.warmup if task.phase == "warmup" else settings.game
    return chosen.lr_anonymizer, chosen.lr_action, chosen.lr_privacy


def _restart_number(task: RoundTask, settings: Settings) -> int:
    every = settings.game.restart_privacy_rounds
    played = task.server_round - settings.rounds.warmup - 1
    return max(0, played) // every if every else 0


def _restart_due(task: RoundTask, settings: Settings) -> bool:
    every = settings.game.restart_privacy_rounds
    played = task.server_round - settings.rounds.warmup - 1
    return bool(every) and played > 0 and played % every == 0


def _teacher(task: RoundTask, action: nn.Module, state: LocalState) -> nn.Module | None:
    """f_T as it was after warm-up: weights from the server once, then from the state, with its own statistics."""
    held = {**state.teacher, **branch(task.teacher or {}, ACTION)}
    if task.phase == "warmup" or not held:
        return None
    teacher = copy.deepcopy(action)
    teacher.load_state_dict(held, strict=False)  # strict=False: no statistics come with weights from the server
    return teacher.eval().requires_grad_(False)


def load_buffers(networks: Networks, buffers: Mapping[str, Tensor]) -> None:
    """Put a site's own BatchNorm statistics into the networks that it got from the server; none with GroupNorm."""
    named = _named_buffers(networks)
    for name, value in buffers.items():
        named[name].copy_(value)


def has_buffers(networks: Networks) -> bool:
    """Whether f_A or f_T keep statistics: BatchNorm does, GroupNorm does not."""
    return bool(_named_buffers(networks))


def _named_buffers(networks: Networks) -> dict[str, Tensor]:
    both = {"anonymizer.": networks.anonymizer, "action.": networks.action}
    return {prefix + name: value for prefix, net in both.items() for name, value in net.named_buffers()}


def _leave_table(task: RoundTask, players: Players, networks: Networks) -> LocalState:
    """The new state, on the CPU and copied: the networks on the table serve the next site."""
    teacher = players.teacher
    return LocalState(
        completed_round=task.server_round,
        privacy=_to_cpu(players.privacy.network.state_dict()),
        optimizers={name: _to_cpu(getattr(players, name).optimizer.state_dict()) for name in PLAYERS},
        buffers=_to_cpu(_named_buffers(networks)),
        teacher=_to_cpu(teacher.state_dict()) if teacher is not None else {},
    )


def _check_finite(task: RoundTask, tensors: Mapping[str, Tensor]) -> None:
    broken = [name for name, value in tensors.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise UserError(
            f"round {task.server_round}: {len(broken)} of {len(tensors)} tensors hold NaN or infinity after training, "
            f"first {broken[0]}; nothing of this round is kept or sent. Lower game.lr_* and warmup.lr_*, or use "
            "precision = 'fp32'"
        )


def _to_cpu(tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return plain_copy(tree)
    if isinstance(tree, dict):
        return {key: _to_cpu(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_to_cpu(value) for value in tree)
    return tree


def _examples(rows: Iterable[Row], players: Players) -> dict[str, float]:
    """How many videos stand behind each branch: f_A learns from all, f_T from labels or from a teacher."""
    labels = [row.action is not None for row in rows]
    taught = len(labels) if players.teacher is not None else sum(labels)
    return {"examples.anonymizer": len(labels), "examples.action": taught}


def _mean(values: list[Tensor]) -> float:
    return float(torch.stack(values).mean()) if values else math.nan
