"""f_T: torchvision's networks without in-place steps, the reference's dilated last stage, a tiny one that learns."""

import pytest
import torch
import torchvision.models.video as published
from torch import Tensor, nn

from spact_models.action import KINETICS_MEAN, KINETICS_STD, VideoResNet, build_action
from spact_models.errors import UserError

FAMILY = {"r3d18": published.r3d_18, "r2plus1d18": published.r2plus1d_18, "mc318": published.mc3_18}


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_parameter_counts() -> None:
    with torch.device("meta"):
        assert parameters(build_action("r3d18", 101, "batch")) == 33_218_085  # the reference's 33.2 M
        assert parameters(build_action("tiny", 101, "group")) <= 500_000
        for name, twin in FAMILY.items():
            assert parameters(build_action(name, 400, "batch")) == parameters(twin(num_classes=400))


@pytest.mark.parametrize("name", FAMILY)
def test_batch_norm_twin_of_torchvision_gives_its_outputs(name: str) -> None:
    torch.manual_seed(0)
    twin = FAMILY[name](num_classes=5).eval()
    nn.init.normal_(twin.fc.weight)  # logits large enough for differences to show
    ours = build_action(name, 5, "batch", last_stage="strided").eval()
    ours.load_state_dict(twin.state_dict())
    clip_BCTHW = torch.rand(2, 3, 8, 32, 32)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1, 1) for v in (KINETICS_MEAN, KINETICS_STD))
    with torch.no_grad():
        torch.testing.assert_close(ours(clip_BCTHW), twin((clip_BCTHW - mean) / std), atol=1e-4, rtol=1e-4)


def test_the_last_stage_keeps_time_and_looks_twice_as_far() -> None:
    with torch.device("meta"):
        network = build_action("r3d18", 7, "group")
        assert isinstance(network, VideoResNet)
        third = network.layer3(network.layer2(network.layer1(network.stem(torch.rand(1, 3, 16, 112, 112)))))
        fourth = network.layer4(third)
    assert third.shape == (1, 256, 4, 14, 14)
    assert fourth.shape == (1, 512, 4, 7, 7)
    first = network.layer4.get_submodule("0.conv1.0")
    assert isinstance(first, nn.Conv3d)
    assert (first.stride, first.dilation, first.padding) == ((1, 2, 2), (2, 1, 1), (2, 1, 1))


@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize(("name", "frames", "size"), [("tiny", 8, 32), ("tiny", 5, 47), ("r3d18", 4, 16)])
def test_logits_have_one_row_a_clip_and_one_column_a_class(name: str, frames: int, size: int, norm: str) -> None:
    logits = build_action(name, 6, norm)(torch.rand(3, 3, frames, size, size))
    assert logits.shape == (3, 6)
    assert logits.isfinite().all()


def test_group_norm_treats_every_clip_by_itself() -> None:
    network = build_action("tiny", 4, "group")
    clip_BCTHW = torch.rand(3, 3, 8, 24, 24)
    together = network(clip_BCTHW)
    alone = torch.cat([network(clip_BCTHW[b : b + 1]) for b in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    assert not list(network.buffers())


def moving_squares(clips: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Squares of any colour that go left or right: no single frame tells the class, only motion does."""
    labels_B = torch.randint(0, 2, (clips,), generator=generator)
    clip_BCTHW = torch.zeros(clips, 3, 8, 24, 24)
    for b in range(clips):
        y, x = torch.randint(8, 12, (2,), generator=generator).tolist()
        colour = 0.3 + 0.7 * torch.rand(3, 1, 1, generator=generator)
        step = 1 if labels_B[b] else -1
        for t in range(8):
            left = x + step * (t - 4)
            clip_BCTHW[b, :, t, y : y + 5, left : left + 5] = colour
    return clip_BCTHW, labels_B


def test_tiny_learns_what_only_motion_tells() -> None:
    torch.manual_seed(0)
    draw = torch.Generator().manual_seed(0)
    network = build_action("tiny", 2, "group")
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    for _ in range(60):
        clip_BCTHW, labels_B = moving_squares(16, draw)
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(clip_BCTHW), labels_B).backward()
        optimizer.step()
    clip_BCTHW, labels_B = moving_squares(64, draw)
    with torch.no_grad():
        assert float((network(clip_BCTHW).argmax(dim=1) == labels_B).float().mean()) >= 0.95


def test_wrong_names_and_counts_are_named() -> None:
    with pytest.raises(UserError, match=r'"i3d".*r3d18, r2plus1d18, mc318, tiny'):
        build_action("i3d", 3, "group")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="classes = 0"):
        build_action("tiny", 0, "group")
    with pytest.raises(UserError, match='norm = "layer"'):
        build_action("tiny", 2, "layer")  # type: ignore[arg-type]
