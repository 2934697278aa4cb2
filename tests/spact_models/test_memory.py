"""Within a budget: the same gradients from fewer bytes, and the count of what autograd keeps is the true one."""

import copy
import weakref
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from spact_models import bf16
from spact_models.errors import UserError
from spact_models.memory import (
    GIB,
    UNET,
    Path,
    Plan,
    blocks_of,
    choose,
    compute_again,
    counted,
    fit_memory,
    fixed_bytes,
    paths_of,
)
from spact_models.minimax import Player, Players, anonymizer_move, critics_move
from spact_models.networks import build_networks, build_privacy_network
from spact_models.run_config import load_settings
from spact_models.views import Batch

CONVOLUTIONS = {"networks.action": "r3d18", "networks.privacy": "resnet18"}


@pytest.fixture
def wide(fast):
    """So many frames that what is kept of them outweighs the small networks."""
    return {
        **fast,
        "networks.output_noise": 0.0,
        "game.beta": 0.0,
        "clip.frames": 8,
        "clip.size_px": 32,
        "batch.clips": 6,
        "batch.views": 12,
    }


def make_players(settings):
    networks = build_networks(settings, ["a", "b", "c"])
    three = (networks.anonymizer, networks.action, build_privacy_network(settings, "s"))
    seats = (Player(network, torch.optim.SGD(network.parameters(), lr=0.0)) for network in three)
    return Players(*seats, precision=settings.precision)


def make_batch(settings, history=1):
    generator = torch.Generator().manual_seed(1)
    size, clips, views = settings.clip.size_px, settings.batch.clips, settings.batch.views
    rand = lambda *shape: torch.rand(*shape, generator=generator)  # noqa: E731
    first, second = (rand(views, 3, settings.views.frames + history, size, size) for _ in range(2))
    labels = torch.arange(clips) % 3
    return Batch(rand(clips, 3, settings.clip.frames + history, size, size), labels, first, second)


class Alive(TorchDispatchMode):
    """Bytes of all tensors that operations made and that are still there; ``peak``: the most at any moment."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for value in tree_leaves(made):
            if isinstance(value, torch.Tensor):
                storage = value.untyped_storage()
                if storage not in self.known:
                    self.known.add(storage)
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self.freed, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return made

    def freed(self, count):
        self.now -= count


def half(settings):
    """GiB for the weights and half of what a move would keep."""
    players = make_players(settings)
    return (fixed_bytes(players) + max(path.held() for path in paths_of(players, settings)) // 2) / GIB


def within(settings, budget):
    chosen = load_settings({**settings.flat(), "memory.budget_gib": budget / GIB})
    players = make_players(chosen)
    return players, fit_memory(players, chosen)


def played(players, move, settings):
    """(losses, gradients, peak bytes) of one move."""
    batch = make_batch(settings)
    with Alive() as alive:
        losses = move(players, batch, settings.game)
    seats = (players.anonymizer, players.action, players.privacy)
    gradients = [p.grad for seat in seats for p in seat.network.parameters() if p.grad is not None]
    return losses, gradients, alive.peak


@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize("move", [anonymizer_move, critics_move])
def test_the_same_losses_and_gradients_from_fewer_bytes(wide, norm, move):
    settings = load_settings({**wide, "networks.norm": norm})
    free, _ = within(settings, 0)
    tight = make_players(settings)
    compute_again(tight, [name for name, _ in blocks_of(tight)], pieces=3)
    losses, gradients, peak = played(free, move, settings)
    again, same, lower = played(tight, move, settings)
    torch.testing.assert_close(again.action, losses.action, rtol=0, atol=1e-6)
    torch.testing.assert_close(again.privacy, losses.privacy, rtol=0, atol=1e-6)
    assert len(same) == len(gradients) > 0
    for ours, theirs in zip(same, gradients, strict=True):
        if norm == "group":
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
        else:  # statistics over so few examples turn a rounding into the other side of a ReLU here and there
            assert float((ours - theirs).norm()) <= 5e-3 * float(theirs.norm()) + 1e-6
    buffers = [dict(p.network.named_buffers()) for players in (free, tight) for p in (players.action, players.privacy)]
    for ours, theirs in zip(buffers[:2], buffers[2:], strict=True):  # no statistic moved twice
        for name, value in ours.items():
            torch.testing.assert_close(theirs[name], value, rtol=1e-5, atol=1e-6)
    if norm == "group" and move is anonymizer_move:
        assert lower < 0.6 * peak


def test_in_bf16_what_is_computed_again_is_computed_as_the_first_time(wide, monkeypatch):
    """The second pass runs in bf16 too, and its 3D convolutions take their weights' gradients in float32."""
    monkeypatch.setattr(bf16, "fast_bf16", lambda: True)
    settings = load_settings({**wide, **CONVOLUTIONS, "clip.frames": 4, "precision": "bf16"})
    free, tight = (make_players(settings) for _ in range(2))
    compute_again(tight, [name for name, _ in blocks_of(tight)])
    losses, gradients, _ = played(free, critics_move, settings)
    again, same, _ = played(tight, critics_move, settings)
    assert float(again.action) == float(losses.action)
    assert len(same) == len(gradients) > 0
    for ours, theirs in zip(same, gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("share", [0.9, 0.6, 0.42])
def test_a_move_stays_within_its_budget(wide, share):
    """All tensors alive at the worst moment; those on their way in the backward pass are not counted: a third."""
    settings = load_settings(wide)
    players = make_players(settings)
    whole = max(path.held() for path in paths_of(players, settings))
    budget = fixed_bytes(players) + int(share * whole)
    tight, plan = within(settings, budget)
    assert plan.again
    assert plan.held_bytes <= budget
    weights = sum(p.nbytes for seat in (tight.anonymizer, tight.action, tight.privacy) for p in all_of(seat))
    alive = played(tight, anonymizer_move, settings)[2] + 3 * weights - fixed_bytes(players)
    assert alive <= 1.35 * (budget - fixed_bytes(players))


def all_of(seat):
    return list(seat.network.parameters())


@pytest.mark.parametrize("networks", [{}, CONVOLUTIONS])
@pytest.mark.parametrize("changes", [{}, {"networks.anonymizer": "frame"}, {"precision": "bf16"}])
def test_the_count_scaled_up_is_the_count_of_the_whole_batch(fast, networks, changes):
    settings = load_settings({**fast, "views.frames": 2, **networks, **changes})
    players = make_players(settings)
    batch = make_batch(settings, players.f_A.history)
    views = torch.cat([batch.first_NCTHW, batch.second_NCTHW])
    halves = ((batch.clips_BCTHW, players.action, True), (views, players.privacy, False))
    for path, (pictures, critic, clips) in zip(paths_of(players, settings), halves, strict=True):
        with counted(players) as (kept, taken):
            with players.autocast(pictures.device):
                shown = players.f_A.transform(pictures)
            with players.autocast(pictures.device, three_dimensional=clips):
                result = critic.network(shown.float() if clips else shown)
        assert result.requires_grad
        assert sum(kept.values()) <= sum(path.kept.values()) <= 1.1 * sum(kept.values()) + 2**20
        assert path.taken == taken


def test_blocks_are_the_u_net_residual_blocks_and_rows_of_layers(fast):
    tiny = [name for name, _ in blocks_of(make_players(load_settings(fast)))]
    assert tiny == [UNET, *(f"action.layers.{n}" for n in range(4)), "privacy.trunk.layers", "privacy.projection"]
    large = [name for name, _ in blocks_of(make_players(load_settings({**fast, **CONVOLUTIONS})))]
    stages = [f"layer{stage}.{block}" for stage in range(1, 5) for block in range(2)]
    trunk = [f"privacy.trunk.{name}" for name in stages]
    assert large == [UNET, "action.stem", *(f"action.{n}" for n in stages), *trunk, "privacy.projection"]


def test_the_fewest_blocks_largest_first_and_then_smaller_pieces():
    kept = Counter({"": 5, UNET: 100, "action.layer1.0": 60, "action.layer2.0": 30, "action.fc": 1})
    taken = Counter({UNET: 2, "action.layer1.0": 10, "action.layer2.0": 10, "action.fc": 1})
    path = Path(kept, taken, examples=5, frames=10)
    assert choose([path], 50, 246) == Plan((), 1, 246)
    assert choose([path], 50, 245) == Plan((UNET,), 2, 50 + 98 + 50)  # half of the U-Net at a time
    assert choose([path], 50, 180) == Plan((UNET,), 4, 50 + 98 + 30)  # 10 frames in pieces of 3
    assert choose([path], 50, 140) == Plan((UNET, "action.layer1.0"), 8, 50 + 48 + 20)  # 2 frames, 1 clip of 5
    assert choose([path], 0, 48) == Plan((UNET, "action.layer1.0", "action.layer2.0"), 8, 28 + 20)
    assert choose([path], 0, 40) == Plan((UNET, "action.layer1.0", "action.layer2.0"), 16, 28 + 12)  # a clip is one
    with pytest.raises(UserError, match=r"memory\.budget_gib = .*must be at least"):
        choose([path], 0, 39)


def test_no_budget_leaves_the_networks_as_they_are_and_lifts_an_earlier_one(wide):
    settings = load_settings({**wide, "memory.budget_gib": 1e-9})
    players = make_players(settings)
    with pytest.raises(UserError, match="must be at least"):
        fit_memory(players, settings)
    tight = load_settings({**wide, "memory.budget_gib": half(settings)})
    names = list(players.f_A.state_dict())
    assert fit_memory(players, tight).again
    assert list(players.f_A.state_dict()) == names
    copied = copy.deepcopy(players.action.network)
    with torch.no_grad():
        for value in copied.parameters():
            value.zero_()
    clip = torch.rand(1, 3, 8, 32, 32)
    assert not torch.equal(copied(clip), players.action.network(clip))  # a copy computes with its own weights
    assert fit_memory(players, load_settings(wide)) is None
    assert not any("forward" in vars(module) for _, module in blocks_of(players))


def test_counting_draws_no_number_and_moves_no_statistic(wide):
    settings = load_settings({**wide, "networks.norm": "batch", "networks.output_noise": 0.3})
    players = make_players(settings)
    before = copy.deepcopy([p.network.state_dict() for p in (players.anonymizer, players.action, players.privacy)])
    state = torch.get_rng_state()
    paths_of(players, settings)
    assert torch.equal(torch.get_rng_state(), state)
    for seat, old in zip((players.anonymizer, players.action, players.privacy), before, strict=True):
        assert all(torch.equal(value, old[name]) for name, value in seat.network.state_dict().items())
    assert all(p.grad is None for p in players.f_A.parameters())
