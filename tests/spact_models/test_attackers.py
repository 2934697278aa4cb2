"""Fresh attackers: what they are called, what they see, and that the transformer learns."""

import pytest
import torch

from spact_models.attackers import (
    ATTACKERS,
    CHEAPEST,
    DEFAULTS,
    NETWORKS,
    ONE_OF_EACH,
    TREES,
    FrameByFrame,
    SmallViT,
    check_attackers,
    embedder,
    networks_of,
    watches_motion,
)
from spact_models.errors import UserError
from spact_models.presets import PRESETS

SMALL = ("frame-convnet", "frame-vit", "video-tiny")


@pytest.mark.parametrize("name", NETWORKS)
def test_every_attacker_answers_for_every_class(name):
    network = NETWORKS[name](5, 32).eval()
    with torch.no_grad():
        logits = network(torch.rand(2, 3, 4, 32, 32))
    assert logits.shape == (2, 5)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("name", SMALL)
def test_frames_alone_cannot_tell_an_order_of_frames(name):
    """What "frame" and "video" in a name promise."""
    torch.manual_seed(0)
    network = NETWORKS[name](4, 32).eval()
    clip = torch.rand(1, 3, 6, 32, 32)
    with torch.no_grad():
        same = torch.allclose(network(clip), network(clip.flip(2)), atol=1e-5)
    assert same == (NETWORKS[name].reach == "frame")


def test_every_preset_has_attackers_of_all_three_kinds():
    assert DEFAULTS.keys() == ONE_OF_EACH.keys() == CHEAPEST.keys() == PRESETS.keys()
    for preset, names in DEFAULTS.items():
        assert len(check_attackers(names)) >= 3
        for asked in (names, ONE_OF_EACH[preset]):
            assert {NETWORKS[name].reach for name in networks_of(asked)} == {"frame", "video"}
            assert TREES in asked
        assert set(ONE_OF_EACH[preset]) <= set(names)
    assert (*NETWORKS, TREES) == ATTACKERS  # the names that the server checks, and what is built for them
    assert [name for name in ATTACKERS if watches_motion(name)] == ["video-tiny", "video-r3d18", "video-r2plus1d18"]


def test_unknown_and_doubled_names_are_told():
    with pytest.raises(UserError, match='attacker = "vit", must be one of frame-convnet'):
        check_attackers(["vit"])
    with pytest.raises(UserError, match="names one twice"):
        check_attackers(["video-tiny", "video-tiny"])
    with pytest.raises(UserError, match="attacker classes = 0"):
        NETWORKS["frame-convnet"](0, 32)


@pytest.mark.parametrize(
    ("size_px", "side_px", "patches"), [(16, 16, 4), (32, 32, 4), (44, 48, 6), (48, 48, 6), (112, 112, 7)]
)
def test_the_transformer_takes_any_size(size_px, side_px, patches):
    network = SmallViT(3, size_px)
    assert network.side_px == side_px
    assert network.vit.seq_length == patches**2 + 1
    assert network(torch.rand(2, 3, size_px, size_px)).shape == (2, 3)


def test_the_transformer_learns_where_it_is_given_a_little_time():
    """Which corner is bright: nothing that a mean colour could tell."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)

    def pictures(count):
        labels = torch.randint(4, (count,), generator=generator)
        frames = 0.4 * torch.rand(count, 3, 16, 16, generator=generator)
        for frame, label in zip(frames, labels.tolist(), strict=True):
            y, x = 10 * (label // 2), 10 * (label % 2)
            frame[:, y : y + 5, x : x + 5] += 0.3
        return frames, labels

    recipe = NETWORKS["frame-vit"]
    network = SmallViT(4, 16)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3 * recipe.lr_share, weight_decay=recipe.weight_decay)
    for _ in range(60):
        frames, labels = pictures(16)
        loss = torch.nn.functional.cross_entropy(network(frames), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    frames, labels = pictures(64)
    assert float((network(frames).argmax(1) == labels).float().mean()) > 0.9


def test_a_frame_attacker_is_the_mean_of_its_frames():
    """Of logits: under a softmax the same as the mean of log-probabilities."""
    torch.manual_seed(0)
    picture = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64, 5))
    network, clip = FrameByFrame(picture).eval(), torch.rand(2, 3, 6, 8, 8)
    each = torch.stack([picture(clip[:, :, t]) for t in range(6)])
    torch.testing.assert_close(network(clip), each.mean(0))
    torch.testing.assert_close(network(clip).softmax(1), each.log_softmax(2).mean(0).softmax(1))
    seen = []
    picture.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    network.train()(clip)
    assert seen == [2 * 2]  # two frames of each clip in a step


@pytest.mark.parametrize("name", SMALL)
def test_an_embedder_gives_points_of_the_sphere(name):
    torch.manual_seed(0)
    points = embedder(name, 32).eval()(torch.rand(3, 3, 2, 32, 32))
    assert points.shape == (3, 128)
    torch.testing.assert_close(points.norm(dim=1), torch.ones(3))
