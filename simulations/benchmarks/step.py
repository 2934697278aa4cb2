"""``step-fp32``, ``step-bf16``: one pair of moves of the paper's networks, ours and the reference's way."""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from client.state import LocalState
from client.training import RoundTask, seat_players
from simulations.benchmarks.measured import Row, Spread, in_turns, seconds_of
from simulations.benchmarks.twin import PlainGame
from spact_models.errors import RunStopped
from spact_models.exchange import snapshot
from spact_models.minimax import Players, anonymizer_move, critics_move
from spact_models.networks import anonymizer_config, build_networks, build_privacy_network
from spact_models.run_config import load_settings
from spact_models.seeds import pick_device
from spact_models.settings import Settings
from spact_models.views import Batch

CLASSES = [f"action-{number}" for number in range(101)]  # as many as UCF101 has
CARD_GIB = 22.0  # what a card of 24 GB leaves to one process
BOTH_GIB = 100.0  # a card of this size holds ours and the twin's side by side, nothing computed again
ON_THEIR_WAY = 0.35  # gradients of activations, as a share of what is kept: a budget does not count them
EQUAL = 1e-3  # relative, of the first pair's losses; a test holds 20 steps to 1e-4 at small sizes


@dataclass(frozen=True)
class Scene:
    """The paper's networks and one batch, on a device."""

    settings: Settings
    device: torch.device
    batch: Batch

    @classmethod
    def make(cls, precision: str = "fp32", quick: bool = False, seed: int = 0) -> Scene:
        """On a GPU the paper's batch (24 clips, 64 pairs); on a CPU 1 clip and 2 pairs; quick: tiny networks.

        Nothing is computed again, but on a GPU that is too small to hold the twin as well: there the preset's budget.
        """
        device = pick_device("auto")
        small = device.type != "cuda"
        settings = load_settings({
            "preset": "tiny" if quick else "paper",
            "precision": precision,
            "game.cap_reward": False,
            "networks.output_noise": 0.0,
            "game.beta": 0.0,
            "networks.norm": "group",
            "seed": seed,
            **({} if _tight(device) else {"memory.budget_gib": 0.0}),
        })  # fmt: skip
        clips, views = (8, 8) if quick else (1, 2) if small else (24, 64)
        generator = torch.Generator().manual_seed(seed)
        history = anonymizer_config(settings).history
        side = settings.clip.size_px

        def frames(count: int, length: int) -> torch.Tensor:
            return torch.rand(count, 3, history + length, side, side, generator=generator).to(device)

        labels_B = torch.randint(len(CLASSES), (clips,), generator=generator).to(device)
        batch = Batch(frames(clips, settings.clip.frames), labels_B, frames(views, 1), frames(views, 1))
        return cls(settings, device, batch)

    def ours(self) -> Players:
        """The players as a site seats them."""
        networks = build_networks(self.settings, CLASSES)
        networks.anonymizer.to(self.device)
        networks.action.to(self.device)
        task = RoundTask(self.settings.rounds.warmup + 1, "minimax", snapshot(networks.anonymizer, networks.action))
        return seat_players(task, self.settings, "bench", networks, LocalState())

    def twin(self) -> PlainGame:
        networks = build_networks(self.settings, CLASSES)
        networks.anonymizer.to(self.device)
        networks.action.to(self.device)
        privacy: nn.Module = build_privacy_network(self.settings, "bench", 0).to(self.device)
        return PlainGame(networks, privacy, self.settings.game)


def pair(players: Players, scene: Scene) -> tuple[float, float]:
    """Both moves on one batch; returns what the critics saw."""
    anonymizer_move(players, scene.batch, scene.settings.game)
    seen = critics_move(players, scene.batch, scene.settings.game)
    assert seen.privacy is not None  # the critics always look at views
    return float(seen.action), float(seen.privacy)


def measure_fp32(quick: bool, repeats: int, on_step: Callable[[], object]) -> Iterator[Row]:
    """Equal losses, then equal work in less time."""
    scene = Scene.make("fp32", quick)
    with Apart(scene, quick) as plain:
        players = scene.ours()
        with exact_float32():
            mine = pair(players, scene)
        for name, a, b in zip(("L_T", "L_B"), mine, plain.exact_pair(), strict=True):
            if abs(a - b) > EQUAL * max(1.0, abs(b)):
                raise RunStopped(f"{name} is {a:.6f} here and {b:.6f} in the twin; they play different games")
        ours, twin, ratio = in_turns(partial(pair, players, scene), plain.pair, repeats, on_step)
        twin_gib = plain.peak_gib() if scene.device.type == "cuda" else 0.0
    del players
    yield Row("step-fp32", _what(scene), "s", ours, twin, ratio, 1.9, "at least", _flops(scene, ours))
    if scene.device.type == "cuda":
        yield from _memory(scene, twin_gib)


def measure_bf16(quick: bool, repeats: int, on_step: Callable[[], object]) -> Iterator[Row]:
    """bf16 autocast against the reference in float32."""
    scene = Scene.make("bf16", quick)
    players = scene.ours()
    with Apart(scene, quick) as plain:
        ours, twin, ratio = in_turns(partial(pair, players, scene), plain.pair, repeats, on_step)
    del players
    target = 4.0 if scene.device.type == "cuda" else 3.4
    yield Row("step-bf16", _what(scene), "s", ours, twin, ratio, target, "at least", _flops(scene, ours))


def _tight(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_properties(device).total_memory < BOTH_GIB * 2**30


class Apart:
    """The twin's pairs of moves, again and again on one game, in a process of its own.

    What our way sets for a whole process (memory that is kept on a CPU; TF32 and cuDNN's search on a GPU) is not the
    twin's: it has torch's defaults, on a GPU those are TF32 in convolutions alone.
    """

    def __init__(self, scene: Scene, quick: bool) -> None:
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, context, _sit_down, (quick, scene.settings.seed))

    def __enter__(self) -> Apart:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def pair(self) -> tuple[float, float]:
        return self._pool.submit(_play_on).result()

    def exact_pair(self) -> tuple[float, float]:
        """The same with nothing less than float32."""
        return self._pool.submit(_play_exactly).result()

    def peak_gib(self) -> float:
        """What the GPU held for it at the most."""
        return self._pool.submit(_peak_gib).result()


_apart: list[tuple[PlainGame, Scene]] = []  # in the twin's process: its game


def _sit_down(quick: bool, seed: int) -> None:
    scene = Scene.make("fp32", quick, seed)
    _apart.append((scene.twin(), scene))


def _play_on() -> tuple[float, float]:
    plain, scene = _apart[0]
    losses = plain.pair(scene.batch)
    if scene.device.type == "cuda":
        torch.cuda.synchronize()  # the other process waits for the answer, not for this one's GPU
    return losses


def _play_exactly() -> tuple[float, float]:
    with exact_float32():
        return _play_on()


def _peak_gib() -> float:
    return torch.cuda.max_memory_allocated() / 2**30


@contextmanager
def exact_float32() -> Iterator[None]:
    """No TF32 meanwhile; on a CPU there is none."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def _what(scene: Scene) -> str:
    batch, settings = scene.batch, scene.settings
    clips, _, frames, side, _ = batch.clips_BCTHW.shape
    networks = f"{settings.networks.action}, {settings.networks.privacy}"
    sizes = f"{clips} clips of {frames}×{side}², {len(batch.first_NCTHW)} pairs"
    return f"both moves, {settings.preset} f_A, {networks}; {sizes}"


def _flops(scene: Scene, ours: Spread) -> str:
    """Model FLOPs of the pair, ours and the twin's, and the share of the machine's limit that ours reach.

    What a budget has computed again is no FLOP of the model.
    """
    _let_go()
    scene = replace(scene, settings=load_settings({**scene.settings.flat(), "memory.budget_gib": 0.0}))
    flops = counted(lambda: pair(scene.ours(), scene))
    _let_go()
    plain = counted(lambda: scene.twin().pair(scene.batch))
    _let_go()
    achieved, limit = flops / ours.median, peak_flops(scene.device, scene.settings.precision)
    less = f"{flops / 1e9:.0f} GFLOP and the twin {plain / 1e9:.0f}, {plain / flops:.2f} times as many"
    reached = f"{100 * achieved / limit:.0f} % of the machine's {limit / 1e9:.0f}"
    return f"{less}; {achieved / 1e9:.1f} GFLOP/s, {reached}"


def _let_go() -> None:
    """Give the GPU's freed memory back before somebody else needs it."""
    gc.collect()
    torch.cuda.empty_cache()


def counted(play: Callable[[], object]) -> int:
    """Multiplications and additions of convolutions and matrix products, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        play()
    flops: int = counter.get_total_flops()
    return flops


def peak_flops(device: torch.device, precision: str = "fp32") -> float:
    """Operations a second in ``precision`` on all threads, of a large matrix product or convolution: what is faster.

    Either may be the machine's practical limit: on an AMD CPU with AVX-512 torch's convolutions ran at 1.7 times the
    speed of its matrix product.
    """
    gpu = device.type == "cuda"
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    side, pictures, planes, px = (8192, 64, 512, 56) if gpu else (1536, 8, 256, 28)
    left, right = (torch.rand(side, side, device=device, dtype=kind) for _ in range(2))
    layer = torch.rand(planes, planes, 3, 3, device=device, dtype=kind)
    picture = torch.rand(pictures, planes, px, px, device=device, dtype=kind)
    works: dict[Callable[[], object], int] = {
        lambda: left @ right: 2 * side**3,
        lambda: functional.conv2d(picture, layer, padding=1): 2 * pictures * planes**2 * 9 * px**2,
    }
    return max(flops / min(seconds_of(work) for _ in range(4)) for work, flops in works.items())


def _memory(scene: Scene, twin_gib: float) -> Iterator[Row]:
    """Peak memory of a pair on the GPU: as a share of the twin's, and within a card of 24 GB, each by a budget.

    A budget counts what is kept for the gradients; those on their way come on top, up to a third (spact_models/memory).
    """
    for name, limit_gib, twin in (("step-memory", twin_gib / 3, Spread.of([twin_gib])), ("step-24gb", CARD_GIB, None)):
        budget = limit_gib / (1 + ON_THEIR_WAY)
        gib, seconds = _within(scene, budget)
        share = None if twin is None else Spread.of([gib / twin_gib])
        what = f"{_what(scene)}; memory.budget_gib = {budget:.3g}"
        target, note = CARD_GIB if twin is None else 1 / 3, f"{seconds:.3g} s a pair so"
        yield Row(name, what, "GiB", Spread.of([gib]), twin, share, target, "at most", note)


def _within(scene: Scene, budget_gib: float) -> tuple[float, float]:
    """Peak GiB and seconds of a pair within a memory budget on the GPU.

    Of a pair after the first, in which cuDNN tries its algorithms with memory of their own.
    """
    within = replace(scene, settings=load_settings({**scene.settings.flat(), "memory.budget_gib": budget_gib}))
    _let_go()
    players = within.ours()
    pair(players, within)
    _let_go()
    torch.cuda.reset_peak_memory_stats()
    seconds = min(seconds_of(lambda: pair(players, within)) for _ in range(3))
    return torch.cuda.max_memory_allocated() / 2**30, seconds
