"""The game: who moves, who holds still, and that no graph is built through a network that holds still."""

import copy
import itertools
from dataclasses import replace
from functools import partial

import pytest
import torch

from spact_models.action import build_action
from spact_models.anonymizer import Anonymizer, AnonymizerConfig
from spact_models.game_settings import GameConfig
from spact_models.losses import chance_level, nt_xent
from spact_models.minimax import Player, Players, adversary_move, anonymizer_move, critics_move, has_lesson, play
from spact_models.privacy import build_privacy
from spact_models.views import Batch
from spact_models.warmup import warmup_step


def game_config(**changes):
    chosen = {
        "beta": 0.0,
        "beta_rise": 0.0,
        "lr_fall": 0.0,
        "critic_steps": 2,
        "catch_up_steps": 1,
        "lr_anonymizer": 1e-3,
        "lr_action": 1e-3,
        "lr_privacy": 1e-3,
    }
    return GameConfig(**{**chosen, **changes})


def make_players(kind="frame", norm="group", seed=0, noise=0.0):
    torch.manual_seed(seed)
    anonymizer = Anonymizer(
        AnonymizerConfig(
            kind=kind, base_channels=4, depth=1, norm=norm, size_px=16, stride_frames=1, output_noise=noise
        )
    )
    networks = (anonymizer, build_action("tiny", 3, norm), build_privacy("tiny", norm))
    return Players(*(Player(network, torch.optim.Adam(network.parameters(), lr=1e-3)) for network in networks))


def make_batch(players, clips=4, views=6, seed=1):
    generator = torch.Generator().manual_seed(seed)
    history = players.f_A.history
    draw = lambda *shape: torch.rand(*shape, generator=generator)  # noqa: E731
    labels = torch.arange(clips) % 3
    first, second = draw(views, 3, 1 + history, 16, 16), draw(views, 3, 1 + history, 16, 16)
    return Batch(draw(clips, 3, 4 + history, 16, 16), labels, first, second)


def weights(player):
    return {name: value.clone() for name, value in player.network.state_dict().items()}


def moved(player, before):
    return any(not torch.equal(value, before[name]) for name, value in player.network.named_parameters())


@pytest.mark.parametrize("kind", ["frame", "motion"])
def test_only_the_mover_moves(kind):
    players = make_players(kind)
    batch = make_batch(players)
    seats = (players.anonymizer, players.action, players.privacy)
    for move, movers in ((critics_move, (False, True, True)), (anonymizer_move, (True, False, False))):
        before = [weights(seat) for seat in seats]
        move(players, batch, game_config())
        assert tuple(moved(seat, old) for seat, old in zip(seats, before, strict=True)) == movers


def test_with_a_joint_step_the_action_network_moves_with_the_anonymizer_and_the_adversary_alone():
    players, config = make_players("motion"), game_config(joint_step=True)
    seats = (players.anonymizer, players.action, players.privacy)
    for move, movers in ((anonymizer_move, (True, True, False)), (adversary_move, (False, False, True))):
        before = [weights(seat) for seat in seats]
        move(players, make_batch(players), config)
        assert tuple(moved(seat, old) for seat, old in zip(seats, before, strict=True)) == movers


def test_the_adversarys_move_is_its_share_of_the_critics():
    both, alone = make_players(), make_players()
    batch, config = make_batch(both), game_config()
    losses = critics_move(both, batch, config)
    torch.testing.assert_close(adversary_move(alone, batch, config), losses.privacy)
    for ours, theirs in zip(alone.privacy.network.parameters(), both.privacy.network.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_joint_step_gives_each_its_own_gradient():
    """f_A's is that of its move; f_T's is that of L_T alone, without price and reward."""
    joint, apart = make_players("motion", noise=0.3), make_players("motion", noise=0.3)
    batch, chosen = make_batch(joint), {"beta": 2.0, "omega": 0.7, "cap_reward": False}
    torch.manual_seed(5)
    losses = anonymizer_move(joint, batch, game_config(joint_step=True, **chosen))
    torch.manual_seed(5)
    torch.testing.assert_close(anonymizer_move(apart, batch, game_config(**chosen)).action, losses.action)
    for ours, theirs in zip(joint.f_A.parameters(), apart.f_A.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    twin = make_players("motion", noise=0.3)
    torch.manual_seed(5)
    clips = twin.f_A.transform(batch.clips_BCTHW).detach()
    torch.nn.functional.cross_entropy(twin.action.network(clips), batch.labels_B).backward()
    for ours, theirs in zip(joint.action.network.parameters(), twin.action.network.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_a_joint_step_without_a_lesson_leaves_the_action_network_alone():
    players, config = make_players(), game_config(joint_step=True)
    anonymizer_move(players, make_batch(players), config)  # Adam has a momentum now
    batch = make_batch(players)
    blind = Batch(batch.clips_BCTHW, torch.full_like(batch.labels_B, -1), batch.first_NCTHW, batch.second_NCTHW)
    before = weights(players.action)
    anonymizer_move(players, blind, config)
    assert not moved(players.action, before)


@pytest.mark.parametrize("labels", [(0, 1), (-1, 1), (-1, -1)])
@pytest.mark.parametrize("taught", [False, True])
def test_nobody_asks_the_device_which_clips_have_labels(labels, taught):
    """Labels on the meta device answer no question, as those on a GPU answer only when it has caught up."""
    players = make_players()
    clip, host = torch.rand(2, 3, 4, 16, 16), torch.tensor(labels)
    there = Batch(clip, host.to("meta"), clip, clip, host)
    players.teacher = players.action.network if taught else None
    plain = Batch(clip, host, clip, clip)
    assert has_lesson(players, there) == has_lesson(players, plain) == (taught or max(labels) >= 0)
    assert there.unlabelled == plain.unlabelled == (min(labels) < 0)


def test_no_graph_through_the_anonymizer_in_the_critics_move():
    players = make_players()
    outputs = []
    players.f_A.register_forward_hook(lambda *_: pytest.fail("the game calls transform"))
    inner = players.f_A.transform
    players.f_A.transform = lambda clip: outputs.append(inner(clip)) or outputs[-1]
    critics_move(players, make_batch(players), game_config())
    assert outputs
    assert all(output.grad_fn is None and not output.requires_grad for output in outputs)
    assert all(parameter.grad is None for parameter in players.f_A.parameters())


def test_held_critics_get_no_weight_gradients_and_are_in_evaluation_mode():
    players = make_players()
    critics_move(players, make_batch(players), game_config())
    for seat in (players.action, players.privacy):
        seat.optimizer.zero_grad(set_to_none=True)
    anonymizer_move(players, make_batch(players), game_config())
    for seat in (players.action, players.privacy):
        assert all(parameter.grad is None for parameter in seat.network.parameters())
        assert not seat.network.training
    assert all(parameter.grad is not None for parameter in players.f_A.parameters())


def test_the_anonymizers_gradient_is_that_of_the_formula():
    """grad of L_T - omega L_B, by autograd over the plain expression with everything attached."""
    players, config = make_players(), game_config(omega=0.7, cap_reward=False)
    twin, batch = copy.deepcopy(players), make_batch(players)
    f_A, f_T, f_B = (seat.network.eval() for seat in (twin.anonymizer, twin.action, twin.privacy))
    loss_T = torch.nn.functional.cross_entropy(f_T(f_A.transform(batch.clips_BCTHW)), batch.labels_B)
    views = [f_B(f_A.transform(view)[:, :, 0]) for view in (batch.first_NCTHW, batch.second_NCTHW)]
    (loss_T - 0.7 * nt_xent(*views, config.temperature)).backward()
    losses = anonymizer_move(players, batch, config)
    torch.testing.assert_close(losses.action, loss_T.detach())
    for ours, theirs in zip(players.f_A.parameters(), f_A.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_the_reward_stops_at_chance():
    """With f_B already beaten, the capped game has no privacy gradient left: it is the utility game (omega = 0)."""

    class Beaten(torch.nn.Module):
        """Tells partners apart and strangers alike: NT-Xent far above chance, with a gradient."""

        def forward(self, frames_NCHW):
            count = len(frames_NCHW) // 2
            sign = torch.cat([torch.ones(count), -torch.ones(count)])[:, None]
            noise = frames_NCHW.flatten(1)[:, :8]
            return torch.nn.functional.normalize(sign + 0.1 * noise, dim=1)

    gradients = []
    for config in (game_config(omega=5.0), game_config(omega=0.0), game_config(omega=5.0, cap_reward=False)):
        players = make_players()
        players.privacy.network = Beaten()
        losses = anonymizer_move(players, make_batch(players), config)
        assert losses.privacy is None if config.omega == 0 else float(losses.privacy) > chance_level(6)
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in players.f_A.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1])
    assert not torch.allclose(gradients[1], gradients[2])


@pytest.mark.parametrize("price_of", ["shown", "drawn"])
def test_the_price_of_the_output_enters_the_anonymizers_gradient_and_no_other(price_of):
    """Against the formula, with the noise drawn again or without, and: with a high price the picture goes dark."""
    players = make_players(noise=0.3)
    batch = make_batch(players)
    twin = copy.deepcopy(players)
    grads = {}
    for name, beta in (("without", 0.0), ("with", 0.5)):
        tested = copy.deepcopy(twin)
        torch.manual_seed(9)
        tested.anonymizer.optimizer.step = lambda: None
        anonymizer_move(tested, batch, game_config(beta=beta, price_of=price_of))
        grads[name] = [parameter.grad.clone() for parameter in tested.f_A.parameters()]
    torch.manual_seed(9)
    if price_of == "drawn":
        twin.f_A.config = replace(twin.f_A.config, output_noise=0.0)
    out = twin.f_A.train().transform(batch.clips_BCTHW)
    price = 0.5 * sum(value**2 for value in out.flatten()) / out.numel() / (2 * 0.3 * 0.3)
    expected = torch.autograd.grad(price, list(twin.f_A.parameters()))
    for without, with_price, alone in zip(grads["without"], grads["with"], expected, strict=True):
        assert torch.allclose(with_price - without, alone, atol=1e-5)
    before = float(players.f_A.transform(batch.clips_BCTHW).detach().mean())
    for _ in range(30):
        anonymizer_move(players, batch, game_config(beta=20.0, price_of=price_of))
    assert float(players.f_A.transform(batch.clips_BCTHW).detach().mean()) < 0.85 * before


@pytest.mark.parametrize(("joint", "cycle"), [(False, "ACCC"), (True, "ABBB")])
def test_play_is_catch_up_then_whole_cycles(monkeypatch, joint, cycle):
    players, order = make_players(), []
    import spact_models.minimax as game

    real = {"A": game.anonymizer_move, "B": game.adversary_move, "C": game.critics_move}
    monkeypatch.setattr(game, "anonymizer_move", lambda *a: (order.append("A"), real["A"](*a))[1])
    monkeypatch.setattr(game, "adversary_move", lambda *a: (order.append("B"), real["B"](*a))[1])
    monkeypatch.setattr(game, "critics_move", lambda *a: (order.append("C"), real["C"](*a))[1])
    batches = (make_batch(players, seed=seed) for seed in itertools.count())
    seen = play(players, batches, game_config(critic_steps=3, catch_up_steps=2, joint_step=joint), cycles=2)
    assert "".join(order) == "CC" + cycle * 2
    assert len(seen) == 8
    assert float(next(batches).clips_BCTHW[0, 0, 0, 0, 0]) == float(
        make_batch(players, seed=10).clips_BCTHW[0, 0, 0, 0, 0]
    )


def test_without_a_reward_and_critics_moves_f_B_stands_by():
    """omega = 0 and joint steps alone: f_B moves when the critics catch up and never after, and no view is drawn."""
    players, config = make_players(), game_config(critic_steps=0, catch_up_steps=2, joint_step=True, omega=0.0)
    twin = copy.deepcopy(players)
    seen = play(players, (make_batch(players, seed=seed) for seed in itertools.count()), config, cycles=3)
    for seed in range(2):
        critics_move(twin, make_batch(twin, seed=seed), config)
    assert not moved(players.privacy, weights(twin.privacy))
    assert [losses.privacy is None for losses in seen] == [False, False, True, True, True]
    for seed in range(2, 5):
        batch = make_batch(twin, seed=seed)
        unseen = partial(pytest.fail, "a view was looked at")
        batch = Batch(batch.clips_BCTHW, batch.labels_B, unseen, unseen)
        torch.testing.assert_close(anonymizer_move(twin, batch, config).action, seen[seed].action)
    assert not moved(players.anonymizer, weights(twin.anonymizer))


def test_one_pass_for_both_views_is_two_passes_with_group_norm():
    players = make_players()
    twin = copy.deepcopy(players)
    batch, config = make_batch(players), game_config()
    critics_move(players, batch, config)
    twin.privacy.network.train()
    with torch.no_grad():
        first, second = (twin.f_A.transform(view)[:, :, -1] for view in (batch.first_NCTHW, batch.second_NCTHW))
    twin.privacy.descend(nt_xent(twin.privacy.network(first), twin.privacy.network(second), config.temperature))
    ours, theirs = (
        torch.cat([value.detach().flatten() for value in seats.privacy.network.parameters()])
        for seats in (players, twin)
    )
    # Of all weights together: where a gradient is almost 0, Adam makes a step of its rounding.
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-5


def test_batch_norm_statistics_move_only_in_the_movers():
    players = make_players(norm="batch")
    batch = make_batch(players)
    running = lambda seat: {n: b.clone() for n, b in seat.network.named_buffers() if n.endswith("running_mean")}  # noqa: E731
    before = [running(seat) for seat in (players.anonymizer, players.action, players.privacy)]
    assert all(before)
    critics_move(players, batch, game_config())
    after = [running(seat) for seat in (players.anonymizer, players.action, players.privacy)]
    changed = [any(not torch.equal(old[n], new[n]) for n in old) for old, new in zip(before, after, strict=True)]
    assert changed == [False, True, True]


def test_the_teacher_teaches_unlabelled_clips_from_the_raw_picture():
    players = make_players()
    batch = make_batch(players)
    blind = Batch(batch.clips_BCTHW, torch.full_like(batch.labels_B, -1), batch.first_NCTHW, batch.second_NCTHW)
    critics_move(players, batch, game_config())  # Adam has a momentum now
    before = weights(players.action)
    critics_move(players, blind, game_config())
    still = all(torch.equal(value, before[name]) for name, value in players.action.network.named_parameters())
    assert still  # nothing to learn from: the loss is 0 and its gradient too
    players.teacher = copy.deepcopy(players.action.network).eval().requires_grad_(False)
    with torch.no_grad():
        for parameter in players.teacher.parameters():
            parameter.mul_(1.5)
    with torch.no_grad():
        student = torch.log_softmax(players.action.network(players.f_A.transform(batch.clips_BCTHW)), 1)
        teacher = torch.log_softmax(players.teacher(batch.clips_BCTHW), 1)
    expected = (teacher.exp() * (teacher - student)).sum(1).mean()
    losses = critics_move(players, blind, game_config())
    torch.testing.assert_close(losses.action, expected, rtol=1e-3, atol=1e-5)


def test_fedprox_pulls_towards_the_anchor():
    """With a zero loss the proximal step is gradient mu (theta - anchor), by hand."""
    network = torch.nn.Linear(2, 1)
    player = Player(network, torch.optim.SGD(network.parameters(), lr=0.5), 0.2, {"weight": torch.zeros(1, 2)})
    before = network.weight.detach().clone()
    player.descend(network.weight.sum() * 0 + network.bias.sum() * 0)
    torch.testing.assert_close(network.weight.detach(), before - 0.5 * 0.2 * before)


@pytest.mark.parametrize("kind", ["frame", "motion"])
def test_warmup_brings_every_loss_down(kind):
    players, config = make_players(kind), game_config()
    batch = make_batch(players)

    @torch.no_grad()
    def distance():
        clips_BCTHW = batch.clips_BCTHW
        return float((players.f_A.transform(clips_BCTHW) - players.f_A.target(clips_BCTHW)).abs().mean())

    before = distance()
    losses = [warmup_step(players, batch, config) for _ in range(60)]
    assert distance() < 0.9 * before
    assert losses[-1].action < losses[0].action
    assert losses[-1].privacy < losses[0].privacy


def test_bf16_stays_close_and_keeps_float32_weights():
    plain, half = make_players(), make_players()
    half.precision = "bf16"
    batch = make_batch(plain)
    expected, got = critics_move(plain, batch, game_config()), critics_move(half, batch, game_config())
    torch.testing.assert_close(got.privacy, expected.privacy, rtol=0.05, atol=0.05)
    assert got.privacy.dtype == torch.float32
    assert all(parameter.dtype == torch.float32 for parameter in half.privacy.network.parameters())
