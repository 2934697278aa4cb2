"""One local round on real videos: state in, game, state out, and nothing besides."""

import copy
import threading
import time
from dataclasses import replace
from itertools import islice

import pytest
import torch

from client.prefetch import prefetched
from client.state import LocalState, StateFolder
from client.training import (
    RoundTask,
    batches_of_round,
    evaluate,
    load_buffers,
    local_round,
    on_step,
    prepared,
    seat_players,
)
from client.video import sampling
from client.video.cache import FrameCache
from client.video.loader import ClipLoader
from client.video.rows import read_rows
from simulations.laboratory import batches_of_run
from spact_models.anonymizer import represent
from spact_models.errors import UserError
from spact_models.exchange import difference, install, snapshot
from spact_models.memory import GIB, fixed_bytes, paths_of
from spact_models.networks import build_networks, build_privacy_network
from spact_models.run_config import load_settings

CLASSES = ["jump", "walk"]


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    return FrameCache(tmp_path_factory.mktemp("cache"), 16)


@pytest.fixture
def site(squares, frames, fast):
    return lambda **options: Site(squares, frames, fast, **options)


class Site:
    """A site that plays round after round; what the last one left is in ``state`` and ``weights``."""

    def __init__(self, manifest, cache, fast, name="site-1", labelled=True, **changes):
        self.settings = load_settings({**fast, **changes})
        self.name, self.cache = name, cache
        rows = [row for row in read_rows(manifest) if row.split == "train"]
        self.test_rows = [row for row in read_rows(manifest) if row.split == "test"]
        self.rows = rows if labelled else [replace(row, action=None) for row in rows]
        networks = build_networks(self.settings, CLASSES)
        self.weights = snapshot(networks.anonymizer, networks.action)
        self.state = LocalState()
        self.teacher = None

    def loader(self, history):
        settings = self.settings
        return ClipLoader(self.rows, CLASSES, self.cache, settings.clip, settings.batch, history)

    def task(self, number):
        return RoundTask(number, self.settings.phase(number), self.weights, self.teacher)

    def look(self, number):
        """One round, nothing of it kept."""
        networks = build_networks(self.settings, CLASSES)
        loader = self.loader(networks.anonymizer.history)
        return local_round(self.task(number), self.settings, self.name, networks, loader, self.state)

    def play(self, number):
        result = self.look(number)
        if self.settings.phase(number + 1) == "minimax" and self.settings.phase(number) == "warmup":
            self.teacher = {name: value for name, value in result.weights.items() if name.startswith("action.")}
        self.weights, self.state = result.weights, result.state
        return result

    def seats(self, number):
        networks = build_networks(self.settings, CLASSES)
        return seat_players(self.task(number), self.settings, self.name, networks, self.state), networks


def equal(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def distance(ours, theirs):
    return float(sum((ours[name] - theirs[name]).square().sum() for name in ours)) ** 0.5


def steps(optimizer_state):
    return {int(entry["step"]) for entry in optimizer_state["state"].values()}


def test_a_round_plays_at_its_own_price_and_with_its_own_steps(site):
    noisy = {"rounds.warmup": 1, "rounds.minimax": 8, "networks.output_noise": 0.3}
    rising = site(**noisy, **{"game.beta": 0.8, "game.beta_rise": 1.0}).look(2)
    assert equal(rising.weights, site(**noisy, **{"game.beta": 0.1}).look(2).weights)
    assert not equal(rising.weights, site(**noisy, **{"game.beta": 0.8}).look(2).weights)
    even, fallen = (site(**noisy, **{"game.lr_fall": share}) for share in (0.0, 1.0))
    moved = [distance(one.look(9).weights, one.weights) for one in (even, fallen)]
    assert 0 < moved[1] < 0.3 * moved[0]


@pytest.mark.parametrize("number", [1, 2])
def test_a_round_follows_from_seed_round_and_site_alone(site, number):
    plain = site().look(number)
    torch.manual_seed(99)  # whatever torch's global generator does
    again = site().look(number)
    assert equal(plain.weights, again.weights)
    assert equal(plain.state.privacy, again.state.privacy)
    assert not equal(plain.weights, site(name="site-2").look(number).weights)
    assert not equal(plain.weights, site(**{"rounds.warmup": 3}).look(3 if number == 1 else 4).weights)
    still = {"augment.enabled": False}  # then only the drawn frames differ
    later = replace(site(**still).task(number), server_round=number + 7)
    one = site(**still)
    networks = build_networks(one.settings, CLASSES)
    moved = local_round(later, one.settings, one.name, networks, one.loader(1), one.state)
    assert not equal(moved.weights, one.look(number).weights)
    # another seed draws other batches also where it begins with the same weights
    other = site(seed=1)
    other.weights = site().weights
    assert not equal(plain.weights, other.look(number).weights)


def test_output_noise_is_seeded_too(site):
    noisy = {"networks.output_noise": 0.2}
    first = site(**noisy).look(2)
    torch.manual_seed(99)
    assert equal(first.weights, site(**noisy).look(2).weights)
    assert not equal(first.weights, site(**{"networks.output_noise": 0.3}).look(2).weights)


def test_f_b_and_the_optimizers_go_on_where_they_were(site):
    one = site(**{"warmup.lr_action": 0.004, "game.lr_action": 0.002})
    one.play(1)
    assert {name: steps(state) for name, state in one.state.optimizers.items()} == {
        "anonymizer": {2},
        "action": {2},
        "privacy": {2},
    }
    seats, _ = one.seats(2)
    assert equal(seats.privacy.network.state_dict(), one.state.privacy)
    for name in ("anonymizer", "action", "privacy"):
        ours, kept = getattr(seats, name).optimizer.state_dict()["state"], one.state.optimizers[name]["state"]
        assert ours.keys() == kept.keys()
        for key, entry in kept.items():
            assert all(torch.equal(ours[key][part], entry[part]) for part in ("exp_avg", "exp_avg_sq", "step"))
    assert seats.action.optimizer.param_groups[0]["lr"] == 0.002  # the phase's, not the stored one

    one.play(2)  # catch-up 1, then one cycle of 1 + 2
    assert {name: steps(state) for name, state in one.state.optimizers.items()} == {
        "anonymizer": {2 + 1},
        "action": {2 + 3},
        "privacy": {2 + 3},
    }
    without = site()
    without.weights, without.teacher = one.weights, one.teacher
    assert not equal(one.look(3).weights, without.look(3).weights)  # the state makes a difference


def test_a_round_changes_neither_the_state_it_begins_from_nor_the_one_it_left(site):
    """The networks serve the next round; what was kept must be a copy, the optimizers' moments included."""
    one = site(**{"networks.norm": "batch"})
    networks = build_networks(one.settings, CLASSES)
    first = local_round(one.task(1), one.settings, "s", networks, one.loader(1), LocalState())
    kept = copy.deepcopy(first)
    local_round(replace(one.task(1), server_round=2), one.settings, "s", networks, one.loader(1), first.state)
    assert equal(first.weights, kept.weights)
    assert equal(first.state.privacy, kept.state.privacy)
    assert equal(first.state.buffers, kept.state.buffers)
    for name, optimizer in kept.state.optimizers.items():
        for key, entry in optimizer["state"].items():
            assert equal(first.state.optimizers[name]["state"][key], entry)


def test_every_site_begins_with_an_f_b_of_its_own(site):
    ours, theirs = (site(name=name).seats(1)[0].privacy.network.state_dict() for name in ("site-1", "site-2"))
    assert not equal(ours, theirs)
    assert equal(ours, site(name="site-1").seats(1)[0].privacy.network.state_dict())


def test_a_restart_makes_f_b_and_its_optimizer_anew_and_nothing_else(site):
    one = site(**{"game.restart_privacy_rounds": 2, "rounds.minimax": 6})
    for number in (1, 2, 3):
        one.play(number)
    assert steps(one.state.optimizers["privacy"]) == {2 + 3 + 3}  # rounds 2 and 3 are the first two of the game
    seats, _ = one.seats(4)
    fresh = build_privacy_network(one.settings, one.name, 1).state_dict()
    assert equal(seats.privacy.network.state_dict(), fresh)
    assert not equal(fresh, build_privacy_network(one.settings, one.name, 0).state_dict())  # not the first one again
    assert seats.privacy.optimizer.state_dict()["state"] == {}
    assert steps(seats.action.optimizer.state_dict()) == {2 + 3 + 3}
    one.play(4)
    assert steps(one.state.optimizers["privacy"]) == {3}
    assert steps(one.state.optimizers["action"]) == {2 + 3 + 3 + 3}
    one.play(5)
    assert steps(one.state.optimizers["privacy"]) == {6}  # only every second round
    seats, _ = one.seats(6)
    assert equal(seats.privacy.network.state_dict(), build_privacy_network(one.settings, one.name, 2).state_dict())


def test_fedprox_pulls_towards_the_received_weights(site):
    longer = {"rounds.cycles": 3, "strategy.proximal_mu": 100.0}
    free, tied = site(**longer), site(**longer, **{"strategy.name": "fedprox"})
    seats, _ = tied.seats(2)
    for name in ("anonymizer", "action"):
        player = getattr(seats, name)
        assert player.proximal_mu == 100.0
        assert equal(player.anchor, {k.partition(".")[2]: v for k, v in tied.weights.items() if k.startswith(name)})
        assert player.anchor.keys() == dict(player.network.named_parameters()).keys()
    assert not seats.privacy.anchor
    assert not free.seats(2)[0].action.anchor
    for branch in ("anonymizer", "action"):
        moved = [
            distance(
                *({n: v for n, v in side.items() if n.startswith(branch)} for side in (s.look(2).weights, s.weights))
            )
            for s in (free, tied)
        ]
        assert moved[1] < 0.8 * moved[0]


def test_batch_norm_statistics_stay_and_come_back(site):
    one = site(**{"networks.norm": "batch"})
    first = one.play(1)
    statistics = [name for name in first.state.buffers if name.endswith(("running_mean", "running_var"))]
    assert {name.partition(".")[0] for name in statistics} == {"anonymizer", "action"}
    assert not [name for name in first.weights if "running" in name or "num_batches" in name]
    untouched = dict(build_networks(one.settings, CLASSES).action.named_buffers())
    assert any(
        not torch.equal(v, untouched[n.partition(".")[2]]) for n, v in first.state.buffers.items() if "action." in n
    )
    _, networks = one.seats(2)
    assert all(torch.equal(b, first.state.buffers["action." + n]) for n, b in networks.action.named_buffers())
    again = build_networks(one.settings, CLASSES)
    load_buffers(again, first.state.buffers)
    assert all(torch.equal(b, first.state.buffers["anonymizer." + n]) for n, b in again.anonymizer.named_buffers())


def test_the_teacher_is_f_t_after_warm_up_and_stays_it(site):
    """Also its BatchNorm statistics, which go on moving in f_T itself."""
    one = site(labelled=False, **{"networks.norm": "batch"})
    first = one.play(1)
    assert first.state.teacher == {}
    assert first.metrics["teacher_held"] == 0
    expected = {
        **{name.partition(".")[2]: value for name, value in first.weights.items() if name.startswith("action.")},
        **{name.partition(".")[2]: value for name, value in first.state.buffers.items() if name.startswith("action.")},
    }
    for number in (2, 3):
        result = one.play(number)
        assert equal(result.state.teacher, expected)
        assert result.metrics["teacher_held"] == 1
        one.teacher = None  # the server sends it once
    moving = {name: value for name, value in expected.items() if name.endswith("running_mean")}
    assert moving
    assert not any(torch.equal(result.state.buffers["action." + name], value) for name, value in moving.items())
    teacher = one.seats(4)[0].teacher
    assert equal(teacher.state_dict(), expected)
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_without_labels_warm_up_leaves_f_t_alone_and_the_game_teaches_it(site):
    one = site(labelled=False)
    start = one.weights
    warm = one.play(1)
    for name, value in warm.weights.items():
        assert torch.equal(value, start[name]) or not name.startswith("action.")
    assert any(not torch.equal(value, start[name]) for name, value in warm.weights.items() if name.startswith("anon"))
    assert (warm.metrics["examples.action"], warm.metrics["examples.anonymizer"]) == (0, 12)
    assert one.state.optimizers["action"]["state"] == {}
    one.teacher = {name: 1.5 * value for name, value in one.teacher.items()}
    game = one.play(2)
    assert any(
        not torch.equal(value, start[name]) for name, value in game.weights.items() if name.startswith("action.")
    )
    assert game.metrics["examples.action"] == 12


def test_a_round_is_whole_cycles(site):
    """One batch a step; as many as the progress bar of the whole run expects."""
    one = site(**{"rounds.cycles": 3, "game.critic_steps": 2, "game.catch_up_steps": 4, "warmup.steps": 5})
    drawn = []
    token = on_step.set(lambda: drawn.append(1))
    try:
        counts = []
        for number in (1, 2, 3):
            drawn.clear()
            one.play(number)
            counts.append(len(drawn))
    finally:
        on_step.reset(token)
    assert counts == [5, 4 + 3 * (1 + 2), 4 + 3 * (1 + 2)]
    assert sum(counts) == batches_of_run(one.settings, sites=1)
    assert 3 * sum(counts) == batches_of_run(one.settings, sites=3)


def test_networks_that_are_no_longer_finite_end_the_round(site):
    one = site(**{"warmup.lr_privacy": 1e30})
    with pytest.raises(UserError, match=r"round 1: .* hold NaN or infinity.*nothing of this round is kept or sent"):
        one.look(1)


def test_the_figures_of_a_round(site):
    metrics = site().look(2).metrics
    assert metrics["chance.privacy"] == pytest.approx(torch.log(torch.tensor(7.0)).item())  # ln(2 * 4 - 1)
    assert 0 < metrics["loss.action"] < 5
    assert 0 < metrics["loss.privacy"] < 30
    assert metrics["seconds"] > 0
    few = site(**{"batch.views": 50}).look(2).metrics  # 12 videos make 12 pairs
    assert few["chance.privacy"] == pytest.approx(torch.log(torch.tensor(23.0)).item())


def test_evaluation_is_the_plain_count(site):
    """A loop over videos says what f_T answers; the labels are then dealt such that it is right 11 times of 16."""
    one = site(**{"game.beta": 0.0, "networks.output_noise": 0.0})  # the twin could not draw the same noise
    networks = build_networks(one.settings, CLASSES)
    install(networks.anonymizer, networks.action, one.play(1).weights)
    networks.anonymizer.eval()
    networks.action.eval()
    rows = []
    for number, row in enumerate([*one.rows, *one.test_rows]):
        video = one.cache.frames(row.path)
        total = torch.zeros(2)
        for index in sampling.test_clips(len(video), 4, 1, 1, 3):
            clip = torch.from_numpy(video[index].astype("float32") / 255).permute(3, 0, 1, 2)[None]
            with torch.no_grad():
                total += networks.action(represent(networks.anonymizer, clip, 1))[0].softmax(0)
        answer = int(total.argmax())
        rows.append(replace(row, action=CLASSES[answer if number < 11 else 1 - answer]))
    unlabelled = replace(rows[0], action=None)
    assert evaluate(networks, one.loader(1), [unlabelled, *rows], 3) == {"examples": 16, "top1": 11 / 16}
    assert str(evaluate(networks, one.loader(1), [unlabelled], 3)["top1"]) == "nan"
    with pytest.raises(UserError, match="'dive'"):
        evaluate(networks, one.loader(1), [replace(rows[0], action="dive")], 3)


def test_two_crops_of_one_picture_or_two_frames_of_one_video(site):
    plain = {"augment.enabled": False, "networks.anonymizer": "frame"}
    for source in ("frames", "image"):
        one = site(**plain, **{"views.source": source})
        batches = prepared(one.loader(0).training(3), one.settings, torch.Generator(), torch.device("cpu"))
        same = [torch.equal(batch.first_NCTHW, batch.second_NCTHW) for batch in islice(batches, 3)]
        assert same == [source == "image"] * 3
    one = site(**{**plain, "augment.enabled": True, "views.source": "image"})
    batch = next(prepared(one.loader(0).training(3), one.settings, torch.Generator(), torch.device("cpu")))
    assert not torch.equal(batch.first_NCTHW, batch.second_NCTHW)  # two crops


def test_a_prepared_batch_knows_its_labels_without_asking_the_device(site):
    here = site()
    batch = next(prepared(here.loader(0).training(1), here.settings, torch.Generator(), torch.device("meta")))
    assert batch.labels_B.is_meta
    assert batch.labelled
    assert not batch.unlabelled


def test_training_crops_as_the_settings_say(site):
    def first_clips(**changes):
        one = site(**changes)
        draws = torch.Generator().manual_seed(1)
        return next(prepared(one.loader(0).training(3), one.settings, draws, torch.device("cpu"))).clips_BCTHW

    assert torch.equal(first_clips(), first_clips(**{"augment.crop_min_share": 0.8}))  # the preset's
    assert not torch.equal(first_clips(), first_clips(**{"augment.crop_min_share": 0.6}))


def tensors(tree):
    if isinstance(tree, torch.Tensor):
        return [tree]
    values = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list | tuple) else ()
    return [found for value in values for found in tensors(value)]


def test_what_leaves_training_lies_in_plain_memory(site, tmp_path):
    """Weights for the wire and the checkpoint, and the state: whichever way the networks lay while they learned."""
    one = site(**{"speed.channels_last": "on", "networks.norm": "batch"})
    one.play(1)
    result = one.look(2)
    kept = [result.weights, difference(result.weights, one.weights), *vars(result.state).values()]
    assert all(value.is_contiguous() for value in tensors(kept))
    assert result.state.optimizers["privacy"]["state"][0]["exp_avg"].dim() == 4
    folder = StateFolder(tmp_path, "f")
    folder.save(result.state)
    other = site(**{"speed.channels_last": "off", "networks.norm": "batch"})
    other.weights, other.state, other.teacher = result.weights, folder.before(3), one.teacher
    one.weights, one.state = result.weights, result.state
    ours, theirs = one.look(3), other.look(3)
    assert distance(ours.weights, theirs.weights) < 0.05 * distance(ours.weights, result.weights)


def test_a_round_within_a_memory_budget_is_the_same_round(site, caplog):
    """Round after round in the same networks, and with a teacher, which is a copy of an f_T that is computed again.

    Nothing is left wrapped behind a round: such a block knows its wrapper and would wait for the garbage collector.
    """
    caplog.set_level("INFO", "fedspact.memory")
    results = []
    seats = (plain := site()).seats(1)[0]
    teacher = 4 * sum(value.numel() for value in seats.action.network.parameters())
    most = max(path.held() for path in paths_of(seats, plain.settings))
    for budget in (0.0, (fixed_bytes(seats) + teacher + 0.7 * most) / GIB):
        one = site(labelled=False, **{"memory.budget_gib": budget})
        networks = build_networks(one.settings, CLASSES)
        for number in (1, 2, 3):
            result = local_round(one.task(number), one.settings, "s", networks, one.loader(1), one.state)
            if number == 1:
                one.teacher = {name: value for name, value in result.weights.items() if name.startswith("action.")}
            one.weights, one.state = result.weights, result.state
        results.append(result)
        assert bool(budget) == ("blocks computed again" in caplog.text)
        assert not any("forward" in vars(m) for m in [*networks.anonymizer.modules(), *networks.action.modules()])
    moved = distance(results[0].weights, plain.weights)  # Adam makes a step of a rounding where a gradient is 0
    assert distance(results[0].weights, results[1].weights) < 0.02 * moved


@pytest.fixture
def beside(monkeypatch):
    """Batches are made beside the step, as for a GPU, and the step has more threads than one."""
    monkeypatch.setattr("client.training.worth_a_thread", lambda _: True)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def prefetching():
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


@pytest.mark.parametrize("omega", [1.0, 0.0])
@pytest.mark.parametrize("number", [1, 2])
def test_batches_made_beside_the_step_leave_the_same_weights(site, number, omega, monkeypatch, beside):  # noqa: ARG001
    noisy = {"networks.output_noise": 0.2, "game.omega": omega}
    makers = set()
    real = ClipLoader.batch_of

    def seen(*args):
        makers.add(threading.current_thread().name)
        return real(*args)

    monkeypatch.setattr(ClipLoader, "batch_of", seen)
    ahead = site(**noisy).look(number)
    assert makers
    assert all(name.startswith("prefetch") for name in makers)
    assert torch.get_num_threads() == 2
    assert prefetching() == []
    makers.clear()
    monkeypatch.setattr("client.training.worth_a_thread", lambda _: False)
    within = site(**noisy).look(number)
    assert makers == {threading.current_thread().name}
    assert equal(ahead.weights, within.weights)
    assert equal(ahead.state.privacy, within.state.privacy)
    assert ahead.metrics["loss.privacy"] == within.metrics["loss.privacy"]


def test_no_batch_is_made_in_vain(site, monkeypatch, beside):  # noqa: ARG001
    made = []
    real = ClipLoader.batch_of
    monkeypatch.setattr(ClipLoader, "batch_of", lambda *args: made.append(1) or real(*args))
    one = site()
    for number in (1, 2):
        made.clear()
        one.play(number)
        assert len(made) == batches_of_round(one.settings, one.settings.phase(number))


def test_what_breaks_in_a_round_ends_it_and_leaves_no_thread(site, monkeypatch, beside):  # noqa: ARG001
    def broken(*_):
        raise UserError("the disk is full")

    def interrupted():
        raise KeyboardInterrupt

    token = on_step.set(interrupted)
    try:
        with pytest.raises(KeyboardInterrupt):
            site().look(2)
    finally:
        on_step.reset(token)
    assert prefetching() == []
    with monkeypatch.context() as patch:
        patch.setattr("client.training.play", lambda _, batches, *__: [next(batches), 1 / 0])  # the step itself
        with pytest.raises(ZeroDivisionError) as held:
            site().look(2)
    assert held.traceback  # as long as it is there, so is everything that the round held
    assert prefetching() == []
    monkeypatch.setattr(ClipLoader, "batch_of", broken)
    with pytest.raises(UserError, match="the disk is full") as caught:
        site().look(2)
    assert [entry.name for entry in caught.traceback][-1] == "broken"  # where it happened, in the other thread
    assert prefetching() == []


def test_one_item_is_made_ahead_and_no_more_in_a_thread_that_works_alone(beside):  # noqa: ARG001
    made, asked, threads = [], threading.Event(), set()

    def items():
        for number in range(4):
            torch.rand(200_000).add_(1)  # an operation large enough for several threads
            threads.add(torch.get_num_threads())
            made.append(number)
            if number == 2:
                asked.set()
            yield number

    with prefetched(items()) as coming:
        assert next(coming) == 0
        assert next(coming) == 1
        assert asked.wait(10)
        time.sleep(0.05)  # room for one too many
        assert made == [0, 1, 2]
        assert list(coming) == [2, 3]
    assert prefetching() == []
    assert threads == {1}
    assert torch.get_num_threads() == 2
    with prefetched(items()) as coming:
        next(coming)  # and left early
    assert prefetching() == []
