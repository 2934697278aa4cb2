"""The step as a site plays it, with all that makes it fast, against a slow plain twin; and what leaves is plain."""

import copy
import itertools
import logging
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional

from client.anonymize.stream import StreamAnonymizer
from client.state import LocalState
from client.training import RoundTask, seat_players
from spact_models import speed
from spact_models.exchange import snapshot
from spact_models.losses import chance_level, nt_xent
from spact_models.memory import GIB, blocks_of, fixed_bytes, paths_of
from spact_models.minimax import play
from spact_models.networks import build_networks, build_privacy_network
from spact_models.run_config import load_settings
from spact_models.speed import lay_passes
from spact_models.views import Batch

CLASSES = ["jump", "walk", "wave"]
CYCLES = 10
QUIET = {  # the twin cannot draw the same noise; the reference's learning rate
    "networks.output_noise": 0.0,
    "game.beta": 0.0,
    "game.critic_steps": 1,
    "game.catch_up_steps": 0,
    "game.lr_anonymizer": 1e-4,
    "game.lr_action": 1e-4,
    "game.lr_privacy": 1e-4,
}


def seats(settings, state=None, networks=None):
    networks = networks or build_networks(settings, CLASSES)
    task = RoundTask(settings.rounds.warmup + 1, "minimax", snapshot(networks.anonymizer, networks.action))
    return seat_players(task, settings, "site-1", networks, state or LocalState())


def draw(settings, number, history):
    generator = torch.Generator().manual_seed(number)
    size, clips, views = settings.clip.size_px, settings.batch.clips, settings.batch.views
    rand = lambda *shape: torch.rand(*shape, generator=generator)  # noqa: E731
    first, second = (rand(views, 3, 1 + history, size, size) for _ in range(2))
    labels = torch.arange(clips) % len(CLASSES)
    return Batch(rand(clips, 3, settings.clip.frames + history, size, size), labels, first, second)


def plain_game(settings, history):
    """Both moves written down: every network always has its gradients, one forward a view, Adam tensor by tensor."""
    networks = build_networks(settings, CLASSES)
    f_A, f_T, f_B = networks.anonymizer, networks.action, build_privacy_network(settings, "site-1", 0)
    optimizers = [
        torch.optim.Adam(network.parameters(), lr=1e-4, foreach=False, fused=False) for network in (f_A, f_T, f_B)
    ]
    losses = []
    for number in range(2 * CYCLES):
        batch = draw(settings, number, history)
        critics = number % 2 == 1
        f_A.train(not critics)
        f_T.train(critics)
        f_B.train(critics)
        loss_T = functional.cross_entropy(f_T(f_A.transform(batch.clips_BCTHW)), batch.labels_B)
        points = [f_B(f_A.transform(view)) for view in (batch.first_NCTHW, batch.second_NCTHW)]
        loss_B = nt_xent(*points, settings.game.temperature)
        for optimizer in optimizers:
            optimizer.zero_grad()
        if critics:
            (loss_T + loss_B).backward()
            optimizers[1].step()
            optimizers[2].step()
            losses.append((loss_T.item(), loss_B.item()))
        else:
            (loss_T - settings.game.omega * loss_B.clamp(max=chance_level(settings.batch.views))).backward()
            optimizers[0].step()
    return losses, snapshot(f_A, f_T)


@pytest.mark.parametrize(("kind", "norm"), [("frame", "group"), ("frame", "batch"), ("motion", "group")])
@pytest.mark.parametrize("changes", [{}, {"speed.channels_last": "on"}])
def test_the_fast_step_is_the_plain_twins(fast, kind, norm, changes):
    settings = load_settings({**fast, **QUIET, "networks.anonymizer": kind, "networks.norm": norm})
    history = int(kind == "motion")
    expected, weights = plain_game(settings, history)
    if changes:
        settings = little_memory(settings, changes)
    players = seats(settings)
    assert bool(changes) == any("forward" in vars(block) for _, block in blocks_of(players))
    batches = (draw(settings, number, history) for number in itertools.count())
    seen = play(players, batches, settings.game, CYCLES)
    assert len(seen) == len(expected) == CYCLES
    got = [(float(losses.action), float(losses.privacy)) for losses in seen]
    torch.testing.assert_close(torch.tensor(got), torch.tensor(expected), rtol=0, atol=1e-4)
    assert abs(expected[0][1] - expected[-1][1]) > 1e-2  # something was learned meanwhile
    ours = snapshot(players.f_A, players.action.network)
    apart = sum(float((ours[name] - value).square().sum()) for name, value in weights.items()) ** 0.5
    assert apart < 1e-3 * sum(float(value.square().sum()) for value in weights.values()) ** 0.5


def little_memory(settings, changes):
    """The settings with two thirds of the memory that a move would take for its gradients."""
    players = seats(settings)
    whole = max(path.held() for path in paths_of(players, settings))
    budget = (fixed_bytes(players) + whole * 2 / 3) / GIB
    return load_settings({**settings.flat(), **changes, "memory.budget_gib": budget})


def test_adam_is_fused_and_stays_it_over_rounds(fast):
    settings = load_settings({**fast, "game.lr_action": 0.002})
    players = seats(settings)
    play(players, (draw(settings, n, 1) for n in itertools.count()), settings.game, 1)
    kept = players.action.optimizer.state_dict()
    kept["param_groups"][0]["fused"] = None  # as an earlier version left it
    again = seats(settings, LocalState(optimizers={"action": kept}))
    for player in (players.anonymizer, players.action, players.privacy, again.action):
        assert [group["fused"] for group in player.optimizer.param_groups] == [True]
    assert again.action.optimizer.param_groups[0]["lr"] == 0.002


@pytest.mark.parametrize("layout", ["on", "off"])
def test_a_kept_state_serves_any_memory_layout(fast, layout):
    """The fused kernel does not look at strides: moments that lay otherwise than their weight would be mixed up."""
    settings = load_settings({**fast, "speed.channels_last": layout})
    other = load_settings({**fast, "speed.channels_last": "off" if layout == "on" else "on"})
    players = seats(settings)
    play(players, (draw(settings, n, 1) for n in itertools.count()), settings.game, 1)
    networks = build_networks(settings, CLASSES)
    kept = copy.deepcopy(players.action.optimizer.state_dict())
    before = copy.deepcopy(kept)
    results = []
    for chosen in (settings, other):
        tried = seats(chosen, LocalState(optimizers={"action": kept}), copy.deepcopy(networks))
        for parameter in tried.action.network.parameters():
            slope = torch.linspace(-1, 1, parameter.numel()).view(parameter.shape)
            parameter.grad = torch.empty_like(parameter).copy_(slope)  # autograd too gives it the weight's layout
        tried.action.optimizer.step()
        results.append(snapshot(tried.f_A, tried.action.network))
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name], rtol=0, atol=1e-7)
    for key, entry in before["state"].items():  # and nothing was written into what is kept
        assert all(torch.equal(kept["state"][key][part], value) for part, value in entry.items())


def test_channels_last_is_where_it_helps_and_never_under_differential_privacy(fast):
    def lies(changes):
        players = seats(load_settings({**fast, **changes}))
        weights = [p for player in (players.anonymizer, players.action, players.privacy) for p in all_of(player)]
        return {w.dim() for w in weights if not w.is_contiguous()}

    assert lies({}) == {5}
    assert lies({"speed.channels_last": "on"}) == {4, 5}
    assert lies({"speed.channels_last": "off"}) == set()
    assert lies({"networks.action": "r3d18", "networks.privacy": "resnet50"}) == {4}
    assert lies({"speed.channels_last": "on", "dp.unit": "site", "strategy.weighting": "equal"}) == set()


@pytest.mark.parametrize(
    ("cpu", "changes", "gradients", "half", "expected"),
    [
        ("AVX512", {}, False, False, True),
        ("AVX512", {}, True, False, False),
        ("AVX512", {}, False, True, False),  # bf16 gains at the paper's width alone
        ("AVX512", {"networks.anonymizer_channels": 64}, False, True, True),
        ("AVX512", {"speed.channels_last": "off"}, False, False, False),
        ("AVX512", {"dp.unit": "site", "strategy.weighting": "equal"}, False, False, False),
        ("AVX2", {}, False, False, False),
    ],
)
def test_f_A_passes_without_gradients_lie_channels_last_where_they_gain(
    fast, monkeypatch, cpu, changes, gradients, half, expected
):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: cpu)
    f_A = seats(load_settings({**fast, **QUIET, **changes})).f_A
    laid = []
    f_A.unet.entry[0].register_forward_pre_hook(lambda _, given: laid.append(not given[0].is_contiguous()))
    clip = torch.rand(2, 3, 5, 32, 32)
    with torch.set_grad_enabled(gradients), torch.autocast("cpu", torch.bfloat16, enabled=half):
        shown = f_A.transform(clip)
    assert laid == [expected]
    lay_passes(f_A, channels_last=False)
    with torch.no_grad():
        plain = f_A.transform(clip)
    torch.testing.assert_close(shown.detach().float(), plain, rtol=0, atol=0.03 if half else 1e-5)


def test_use_lays_its_passes_channels_last_too(fast, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    f_A = build_networks(load_settings(fast), CLASSES).anonymizer
    streams = StreamAnonymizer(f_A)
    laid = []
    f_A.unet.entry[0].register_forward_pre_hook(lambda _, given: laid.append(not given[0].is_contiguous()))
    state = streams.open()
    frames = [(state, np.full((32, 32, 3), 20 * number, np.uint8)) for number in range(2 * streams.stride + 1)]
    assert streams.step(frames)[-1].black is None
    assert laid == [True]


def all_of(player):
    return list(player.network.parameters())


def test_compiled_networks_play_the_same_game(fast):
    """Captured and played without generated code, which needs a C++ compiler and a minute a network."""
    settings = load_settings({**fast, **QUIET})
    results = []
    for compiled in (False, True):
        players = seats(settings)
        if compiled:
            names = [name for name, _ in players.f_A.named_parameters()]
            speed.compile_networks(players, backend="eager")
            assert [name for name, _ in players.f_A.named_parameters()] == names
        batches = (draw(settings, number, 1) for number in itertools.count())
        seen = play(players, batches, settings.game, 2)
        results.append(torch.tensor([(float(one.action), float(one.privacy)) for one in seen]))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-4)


def test_compiling_is_asked_for_by_a_setting(fast, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: compiled.append(type(self).__name__))
    seats(load_settings(fast))
    assert compiled == []
    seats(load_settings({**fast, "speed.compile": True}))
    assert compiled == ["UNet", "TinyAction", "PrivacyNetwork"]


@pytest.mark.skipif(not speed.keep_freed_memory(), reason="this C library cannot be told to keep memory")
def test_what_is_kept_is_not_asked_for_again():
    """Page faults of ten tensors of 64 MiB, one after the other: about as many as one has, and ten times as many."""
    count = (
        "import resource, sys, torch; from spact_models.speed import keep_freed_memory\n"
        "if sys.argv[1] == 'keep': assert keep_freed_memory()\n"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "one = torch.ones(2**24); del one; before = faults()\n"
        "for _ in range(10): one = torch.ones(2**24); del one\n"
        "print(faults() - before)"
    )
    kept, plain = (
        int(subprocess.run([sys.executable, "-c", count, how], check=True, capture_output=True, text=True).stdout)
        for how in ("keep", "plain")
    )
    assert kept < plain / 5


def test_memory_is_kept_on_a_cpu_unless_told_otherwise(fast, monkeypatch):
    kept = []
    monkeypatch.setattr(speed, "keep_freed_memory", lambda: kept.append(True))
    seats(load_settings({**fast, "speed.keep_memory": False}))
    assert not kept
    seats(load_settings(fast))
    assert kept


def test_bf16_on_a_cpu_that_is_slow_at_it_is_said_once(fast, caplog, monkeypatch):
    monkeypatch.setattr(speed, "_warned", set())
    for capability, warnings in (("AVX512", 0), ("AVX2", 1), ("AVX2", 1)):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda capability=capability: capability)
        monkeypatch.setattr("platform.machine", lambda: "x86_64")
        with caplog.at_level(logging.WARNING, logger="fedspact.speed"):
            seats(load_settings({**fast, "precision": "bf16"}))
            seats(load_settings(fast))
        assert len(caplog.records) == warnings
    assert "AVX-512" in caplog.records[0].message
