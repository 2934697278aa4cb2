"""f_B and the attacker: torchvision's trunks without in-place steps, points on the unit sphere."""

import pytest
import torch
import torchvision.models as published
from torch import nn

from spact_models.errors import UserError
from spact_models.norms import group_count, make_norm
from spact_models.privacy import IMAGENET_MEAN, IMAGENET_STD, PrivacyClassifier, build_privacy, build_trunk

TWINS = {"resnet18": published.resnet18, "resnet50": published.resnet50}


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_parameter_counts() -> None:
    with torch.device("meta"):
        paper = build_privacy("resnet50", "batch")
        assert parameters(paper) == 27_966_656  # the reference's 28 M: trunk 23.5 M, 2048 -> 2048 -> 128
        assert parameters(build_privacy("tiny", "group")) <= 500_000
        for name, twin in TWINS.items():
            published_network = twin()
            assert parameters(build_trunk(name, "batch")) == parameters(published_network) - parameters(
                published_network.fc
            )


@pytest.mark.parametrize("name", TWINS)
def test_batch_norm_twin_of_torchvision_gives_its_features(name: str) -> None:
    torch.manual_seed(0)
    twin = TWINS[name]()
    twin.fc = nn.Identity()
    trunk = build_trunk(name, "batch")
    trunk.load_state_dict(twin.state_dict())
    frames_NCHW = torch.rand(2, 3, 48, 48)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.no_grad():
        expected = twin.eval()((frames_NCHW - mean) / std)
        torch.testing.assert_close(trunk.eval()(frames_NCHW), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize("name", ["tiny", "resnet18"])
def test_points_lie_on_the_unit_sphere(name: str, norm: str) -> None:
    z_ND = build_privacy(name, norm, embedding=16)(torch.rand(4, 3, 33, 40))
    assert z_ND.shape == (4, 16)
    torch.testing.assert_close(z_ND.norm(dim=1), torch.ones(4))


def test_a_view_of_several_frames_is_the_mean_of_their_features() -> None:
    torch.manual_seed(0)
    network = build_privacy("tiny", "group")
    views_NCTHW = torch.rand(3, 3, 4, 24, 24)
    one_by_one = torch.stack(
        [torch.stack([network.trunk(view[:, t][None])[0] for t in range(4)]).mean(0) for view in views_NCTHW]
    )
    expected_ND = nn.functional.normalize(network.projection(one_by_one), dim=1)
    assert torch.allclose(network(views_NCTHW), expected_ND, atol=1e-5)
    assert torch.allclose(network(views_NCTHW[:, :, :1]), network(views_NCTHW[:, :, 0]), atol=1e-6)


def test_group_norm_treats_every_frame_by_itself() -> None:
    """One forward over both views equals two: with group norm nothing passes from frame to frame."""
    network = build_privacy("tiny", "group")
    first, second = torch.rand(3, 3, 32, 32), torch.rand(3, 3, 32, 32)
    together = network(torch.cat([first, second]))
    torch.testing.assert_close(together, torch.cat([network(first), network(second)]), atol=1e-5, rtol=1e-4)


def test_an_attacker_answers_for_each_class_and_learns() -> None:
    torch.manual_seed(0)
    attacker = PrivacyClassifier("tiny", 3, "group")
    labels_N = torch.arange(24) % 3
    frames_NCHW = 0.3 * torch.rand(24, 3, 32, 32)
    frames_NCHW[torch.arange(24), labels_N] += 0.4  # the class is the strongest colour
    assert attacker(frames_NCHW).shape == (24, 3)
    optimizer = torch.optim.Adam(attacker.parameters(), lr=1e-3)
    for _ in range(25):
        optimizer.zero_grad()
        nn.functional.cross_entropy(attacker(frames_NCHW), labels_N).backward()
        optimizer.step()
    assert bool((attacker(frames_NCHW).argmax(dim=1) == labels_N).all())


def test_wrong_names_and_counts_are_named() -> None:
    with pytest.raises(UserError, match=r'"vit".*resnet50, resnet18, tiny'):
        build_privacy("vit", "group")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="embedding = 1"):
        build_privacy("tiny", "group", embedding=1)
    with pytest.raises(UserError, match="classes = 0"):
        PrivacyClassifier("tiny", 0, "group")
    with pytest.raises(UserError, match='norm = "layer"'):
        build_privacy("tiny", "layer")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("channels", "groups"), [(1, 1), (3, 1), (12, 3), (16, 4), (45, 9), (64, 16), (512, 32), (921, 3)]
)
def test_groups_divide_the_channels_and_hold_at_least_four(channels: int, groups: int) -> None:
    assert group_count(channels) == groups
    assert make_norm("group", channels, 2)(torch.rand(2, channels, 3, 3)).shape == (2, channels, 3, 3)
    assert isinstance(make_norm("batch", channels, 3), nn.BatchNorm3d)
