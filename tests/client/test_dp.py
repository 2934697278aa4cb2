"""The game by groups: one group moves the clipped sum by at most C, whatever it shows, and nothing else tells of it."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from client.dp import Groups, group_loss, group_of, noisy_step, private_round, refuse_unsound
from client.state import LocalState
from client.training import RoundTask, seat_players
from client.video.cache import FrameCache
from client.video.loader import ClipLoader
from client.video.rows import read_rows
from spact_models.accounting import steps_of
from spact_models.dp_settings import DpConfig
from spact_models.errors import UserError
from spact_models.exchange import snapshot
from spact_models.losses import nt_xent
from spact_models.minimax import Player, Players, adversary_move, anonymizer_move, critics_move
from spact_models.networks import build_networks
from spact_models.noise import SecretStream
from spact_models.run_config import load_settings
from spact_models.views import Batch

CLASSES = ["jump", "walk"]
KEY = bytes(32)
VIDEOS = {"dp.unit": "videos", "strategy.weighting": "equal"}


class Silent(SecretStream):
    """Samples as usual and adds no noise: for identities below the settings' check, which refuses noise 0."""

    def __init__(self):
        super().__init__(KEY)

    def noised(self, value, deviation):  # noqa: ARG002
        return value.clone()


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    return FrameCache(tmp_path_factory.mktemp("cache"), 16)


@pytest.fixture
def table(squares, frames, fast):
    return lambda **more: Table(squares, frames, {**fast, **VIDEOS, **more})


class Table:
    """A site's players, and its rows dealt into groups."""

    def __init__(self, manifest, cache, config, phase="minimax"):
        self.settings = load_settings(config)
        self.rows = [row for row in read_rows(manifest) if row.split == "train"]
        self.root, self.cache = manifest.parent, cache
        self.networks = build_networks(self.settings, CLASSES)
        self.history = self.networks.anonymizer.history
        weights = snapshot(self.networks.anonymizer, self.networks.action)
        self.task = RoundTask(2 if phase == "minimax" else 1, phase, weights)

    def players(self) -> Players:
        return seat_players(self.task, self.settings, "site", copy.deepcopy(self.networks), LocalState())

    def groups(self, rows=None, count=3) -> Groups:
        chosen = self.rows if rows is None else rows
        loader = ClipLoader(chosen, CLASSES, self.cache, self.settings.clip, self.settings.batch, self.history)
        return Groups(loader, KEY, count, self.root, self.settings, 7, torch.device("cpu"))


def tensors(batch: Batch) -> list[torch.Tensor]:
    return [batch.clips_BCTHW, batch.labels_B, batch.first_NCTHW, batch.second_NCTHW]


def flat(players: Players) -> torch.Tensor:
    seats = (players.anonymizer, players.action, players.privacy)
    return torch.cat([p.detach().flatten() for seat in seats for p in seat.network.parameters()])


# ---- groups


def test_adding_a_video_moves_no_other(table):
    site = table()
    names = [f"videos/{number:02d}.mp4" for number in range(200)]
    places = [group_of(KEY, name, 10) for name in names]
    assert len(set(places)) == 10
    assert max(places.count(group) for group in range(10)) < 40  # about 20 each
    assert places != [group_of(bytes([1]) * 32, name, 10) for name in names]  # the key decides
    everything, less = site.groups(), site.groups(site.rows[:-1])
    for row in site.rows[:-1]:
        own = [g for g in range(3) if row in everything.clip_rows[g]]
        assert len(own) == 1
        assert own == [g for g in range(3) if row in less.clip_rows[g]]
        assert own == [g for g in range(3) if row in less.view_rows[g]]


def test_a_rows_group_is_worked_out_once_and_not_again_at_every_step(table, monkeypatch):
    groups, asked = table().groups(), []

    def counted(*words):
        asked.append(words)
        return group_of(*words)

    monkeypatch.setattr("client.dp.group_of", counted)
    for step in range(3):
        for group in range(3):
            groups.draw(step, group)
    assert len(asked) == len(groups.loader.rows) + len(groups.loader.view_rows)


def test_what_a_group_shows_does_not_depend_on_the_others(table):
    site = table()
    everything = site.groups()
    for gone in range(3):
        rest = [row for row in site.rows if row not in everything.clip_rows[gone]]
        without = site.groups(rest)
        for group in {0, 1, 2} - {gone}:
            for step in (0, 5):
                ours, theirs = everything.draw(step, group), without.draw(step, group)
                noise = torch.rand(3)  # f_A's output noise comes from torch's generator
                assert all(torch.equal(a, b) for a, b in zip(tensors(ours), tensors(theirs), strict=True))
                without.draw(step, group)
                assert torch.equal(noise, torch.rand(3))
        assert without.draw(0, gone) is None


# ---- the clipped sum


def moved(losses_of, groups, bound, dimensions=6):
    """The clipped sum of groups' gradients: what one step of SGD with rate 1 takes away."""
    network = nn.Linear(dimensions, 1, bias=False)
    before = network.weight.detach().clone()
    dp = DpConfig("videos", clip_norm=bound, sampling_rate=1.0)
    player = Player(network, torch.optim.SGD(network.parameters(), lr=1.0))
    player.learn()
    noisy_step(player, (losses_of(network, group) for group in groups), dp, 1, Silent())
    return (before - network.weight.detach()).flatten()


def test_a_group_moves_the_sum_by_c_at_most_and_replacing_one_by_2c_at_most():
    rng = np.random.default_rng(0)

    def loss(network, direction):
        return None if direction is None else (network.weight.flatten() * torch.as_tensor(direction).float()).sum()

    worst = {"removed": 0.0, "replaced": 0.0}
    for _ in range(40):  # search: directions and sizes at random, then the worst that there is
        groups = [rng.normal(size=6) * 10.0 ** rng.uniform(-4, 6) for _ in range(5)]
        at = int(rng.integers(5))
        other = -groups[at] * 1e3 if rng.random() < 0.5 else rng.normal(size=6) * 1e8
        start = torch.random.get_rng_state()
        whole = moved(loss, groups, 0.7)
        torch.random.set_rng_state(start)
        without = moved(loss, [g for i, g in enumerate(groups) if i != at], 0.7)
        torch.random.set_rng_state(start)
        changed = moved(loss, [other if i == at else g for i, g in enumerate(groups)], 0.7)
        worst["removed"] = max(worst["removed"], float((whole - without).norm()))
        worst["replaced"] = max(worst["replaced"], float((whole - changed).norm()))
    assert 0.999 * 0.7 < worst["removed"] <= 0.7 * (1 + 1e-5)  # both bounds are reached, and not passed
    assert 0.999 * 1.4 < worst["replaced"] <= 1.4 * (1 + 1e-5)


def test_a_gradient_that_is_not_finite_counts_nothing():
    def loss(network, scale):
        return (network.weight * scale).sum()

    start = torch.random.get_rng_state()
    plain = moved(loss, [1.0], 0.5)
    torch.random.set_rng_state(start)
    assert torch.equal(plain, moved(loss, [float("nan"), 1.0, float("inf")], 0.5))


def sum_of_round(site, groups, role, bound=0.05):
    """The clipped sum of one network's step in the real game, as SGD with rate 1 sees it."""
    players = site.players()
    player = getattr(players, role)
    player.optimizer = torch.optim.SGD(list(player.network.parameters()), lr=1.0)
    step = steps_of(site.settings, "minimax").index(role)
    dp = replace(site.settings.dp, clip_norm=bound, sampling_rate=1.0)
    settings = replace(site.settings, dp=dp)
    before = flat(players)
    draw = groups.draw

    def only(number, group):
        return draw(number, group) if number == step else None

    private_round(players, "minimax", only, groups.groups, settings, Silent())
    return (before - flat(players)) * groups.groups


@pytest.mark.parametrize("role", ["anonymizer", "action", "privacy"])
def test_in_the_game_a_group_moves_each_networks_sum_by_c_at_most(table, role):
    site = table()
    everything = site.groups()
    gone = site.groups([row for row in site.rows if row not in everything.clip_rows[1]])
    whole, less = sum_of_round(site, everything, role), sum_of_round(site, gone, role)
    assert 0 < float((whole - less).norm()) <= 0.05 * (1 + 1e-4)


def test_clipping_each_pairs_share_of_one_loss_over_the_batch_is_not_private_and_by_groups_it_is():
    """The constructed worst case: near-equal scenes, whose pull on each other one replaced scene turns around."""
    pairs, bound, size = 24, 1e-3, 8
    torch.manual_seed(0)
    near = nn.functional.normalize(torch.eye(size)[0] + 1e-3 * torch.randn(pairs, size), dim=1)
    far, opposite = near.clone(), near.clone()
    far[0], opposite[0] = (
        torch.eye(size)[1],
        nn.functional.normalize(torch.eye(size)[0] - 0.5 * torch.eye(size)[1], dim=0),
    )
    network = nn.Linear(size, size, bias=False)
    nn.init.eye_(network.weight)

    def shares(scenes):
        """Each pair's share of the NT-Xent over all: (N, weights), each clipped."""
        views = nn.functional.normalize(network(torch.cat([scenes, scenes])), dim=1)
        similar = (views @ views.T / 0.1).masked_fill(torch.eye(2 * pairs, dtype=torch.bool), float("-inf"))
        each = nn.functional.cross_entropy(similar, torch.arange(2 * pairs).roll(pairs), reduction="none")
        gradients = [
            torch.autograd.grad(each[n] + each[n + pairs], network.weight, retain_graph=True)[0].flatten()
            for n in range(pairs)
        ]
        return torch.stack([g * min(1.0, bound / float(g.norm())) for g in gradients])

    moved_by_one = float((shares(far).sum(dim=0) - shares(opposite).sum(dim=0)).norm())
    assert moved_by_one > 10 * 2 * bound  # one replaced pair, and the bound for it is 2 C

    def by_groups(scenes):
        total = torch.zeros(size * size)
        for first in range(0, pairs, 4):
            own = scenes[first : first + 4]
            views = nn.functional.normalize(network(own), dim=1)
            (g,) = torch.autograd.grad(nt_xent(views, views, 0.1), network.weight)
            total += g.flatten() * min(1.0, bound / float(g.norm()))
        return total

    assert float((by_groups(far) - by_groups(opposite)).norm()) <= 2 * bound * (1 + 1e-5)


def test_a_long_video_is_no_larger_unit_than_a_short_one(table):
    """All frames of all clips of a group together are bounded by C; frames are never clipped one by one."""
    for frames in (2, 8):
        site = table(**{"clip.frames": frames})
        alone = site.groups(site.rows[:1], count=1) if len(site.rows[:1]) > 1 else site.groups(site.rows[:2], count=1)
        assert float(sum_of_round(site, alone, "action").norm()) <= 0.05 * (1 + 1e-4)


# ---- identities


def test_noise_0_and_an_endless_clip_are_plain_training(table):
    site = table(**{"dp.clip_norm": 1e6, "dp.sampling_rate": 1.0})
    private, plain = site.players(), site.players()
    groups = site.groups(count=1)
    private_round(private, "minimax", groups.draw, 1, site.settings, Silent())
    game = site.settings.game
    for step, role in enumerate(steps_of(site.settings, "minimax")):
        batch = groups.draw(step, 0)
        if role == "anonymizer":
            anonymizer_move(plain, batch, game)
            continue
        if role == "privacy":
            adversary_move(plain, batch, game)
            continue
        kept = plain.privacy.optimizer  # the plain critics' move steps both; here each has its own sample
        plain.privacy.optimizer = torch.optim.SGD(plain.privacy.network.parameters(), lr=0.0)
        critics_move(plain, batch, game)
        plain.privacy.optimizer = kept
    torch.testing.assert_close(flat(private), flat(plain), rtol=1e-4, atol=2e-5)
    assert float((flat(private) - flat(site.players())).norm()) > 0.01


@pytest.mark.parametrize("omega", [0.0, 1.0])
def test_f_a_sees_no_more_of_a_group_than_the_loss_is_made_of(table, omega):
    """Counted in pictures of its U-Net: a batch of 4 clips of 4 frames and 4 pairs of single frames."""
    site = table(**{"game.omega": omega, "game.beta": 0.2})
    players, batch = site.players(), site.groups(count=1).draw(0, 0)
    seen = []
    players.f_A.unet.register_forward_hook(lambda module, pictures, drawn: seen.append(len(drawn)))  # noqa: ARG005
    clips, views = 4 * 4, 2 * 4
    expected = {
        ("anonymizer", "warmup"): clips,
        ("anonymizer", "minimax"): clips + (views if omega else 0),
        ("action", "minimax"): clips,
        ("privacy", "minimax"): views,
    }
    for (role, phase), pictures in expected.items():
        seen.clear()
        assert group_loss(role, phase, players, batch, site.settings.game) is not None
        assert sum(seen) == pictures


@pytest.mark.parametrize("phase", ["warmup", "minimax"])
def test_no_step_is_triggered_by_what_the_videos_hold(table, phase):
    site = table()
    unlabelled = [replace(row, action=None) for row in site.rows]
    empty = private_steps(site, phase, lambda step, group: None)  # noqa: ARG005
    assert private_steps(site, phase, site.groups().draw) == empty
    assert private_steps(site, phase, site.groups(unlabelled).draw) == empty
    counted = [steps_of(site.settings, phase).count(role) for role in ("anonymizer", "action", "privacy")]
    assert empty == counted


def private_steps(site, phase, draw):
    players = site.players()
    private_round(players, phase, draw, 3, site.settings, SecretStream())
    assert torch.isfinite(flat(players)).all()
    seats = (players.anonymizer, players.action, players.privacy)
    return [max(int(s["step"]) for s in seat.optimizer.state.values()) for seat in seats]


def test_the_noise_is_there_and_of_its_size(table):
    """Without any video a step is the noise alone: z C / (expected groups) in every weight."""
    site = table(**{"dp.noise_multiplier": 2.0, "dp.clip_norm": 0.5, "dp.sampling_rate": 0.5})
    players = site.players()
    player = players.action
    player.optimizer = torch.optim.SGD(player.network.parameters(), lr=1.0)
    before = torch.cat([p.detach().flatten() for p in player.network.parameters()])
    player.learn()
    noisy_step(player, [], site.settings.dp, 8, SecretStream())
    noise = torch.cat([p.detach().flatten() for p in player.network.parameters()]) - before
    assert float(noise.std()) == pytest.approx(2.0 * 0.5 / 4, rel=0.05)


# ---- fail closed


def test_networks_that_mix_or_count_examples_are_refused():
    with pytest.raises(UserError, match=r"BatchNorm3d mixes .* networks\.norm = 'group'"):
        refuse_unsound(nn.Sequential(nn.BatchNorm3d(4)))
    counter = nn.Linear(2, 2)
    counter.register_buffer("seen", torch.zeros((), dtype=torch.int64))
    with pytest.raises(UserError, match="seen: the network keeps an integer counter"):
        refuse_unsound(counter)
    refuse_unsound(nn.Sequential(nn.GroupNorm(2, 4)))
