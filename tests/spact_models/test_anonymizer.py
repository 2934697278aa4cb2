"""f_A: time is folded in one place, the first frame is never raw, and the paper's network is the paper's."""

import pytest
import torch
from torch import Tensor

from spact_models.anonymizer import Anonymizer, AnonymizerConfig, ClipTransform, per_frame, represent
from spact_models.errors import UserError
from spact_models.unet import UNet

MOTION_INPUTS = ["onebit", "difference", "frames"]


def config(**changes: object) -> AnonymizerConfig:
    small: dict[str, object] = {"base_channels": 8, "depth": 2, "size_px": 16}
    return AnonymizerConfig(**{**small, **changes})  # type: ignore[arg-type]


def anonymizer(**changes: object) -> Anonymizer:
    torch.manual_seed(0)
    return Anonymizer(config(**changes)).eval()


def clip(frames: int = 4, size: int = 16, batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, frames, size, size, generator=torch.Generator().manual_seed(1))


def test_the_papers_network_has_the_papers_parameters() -> None:
    with torch.device("meta"):
        paper = Anonymizer(AnonymizerConfig(norm="batch"))
        tiny = Anonymizer(AnonymizerConfig(base_channels=12, depth=3, patch_px=2, input_skip=True))
        small = Anonymizer(AnonymizerConfig(base_channels=32, depth=3, patch_px=2, input_skip=True))
    count = {net: sum(p.numel() for p in net.parameters()) for net in (paper, tiny, small)}
    assert count[paper] == 17_267_523
    assert count[tiny] <= 300_000
    assert count[small] <= 1_500_000


def test_per_frame_hands_over_whole_frames_never_moments_of_one_colour() -> None:
    """Every plane is labelled by its own clip, channel and moment: plane (b, c, t) holds 100 b + 10 t + c."""
    batch, channels, frames = 2, 3, 4
    b, c, t = torch.meshgrid(torch.arange(batch), torch.arange(channels), torch.arange(frames), indexing="ij")
    labels = (100 * b + 10 * t + c).float()
    clip_BCTHW = labels[..., None, None].expand(-1, -1, -1, 2, 2)
    seen: list[Tensor] = []

    def network(frames_NCHW: Tensor) -> Tensor:
        seen.append(frames_NCHW)
        return torch.cat([frames_NCHW, -frames_NCHW[:, :1]], dim=1)

    out = per_frame(network, clip_BCTHW)
    for n, frame_CHW in enumerate(seen[0]):
        clip_index, moment = divmod(n, frames)
        assert frame_CHW[:, 0, 0].tolist() == [100 * clip_index + 10 * moment + colour for colour in range(3)]
    assert torch.equal(out[:, :3], clip_BCTHW)
    assert torch.equal(out[:, 3], -clip_BCTHW[:, 0])


@pytest.mark.parametrize("batch", [1, 3])
def test_per_frame_equals_a_loop_over_clips_and_frames(batch: int) -> None:
    unet = UNet(3, 8, 2, "group").eval()
    raw = clip(batch=batch)
    fast = per_frame(unet, raw)
    for b in range(batch):
        for t in range(raw.shape[2]):
            torch.testing.assert_close(fast[b, :, t], unet(raw[b : b + 1, :, t])[0])


@pytest.mark.parametrize("patch_px", [1, 2])
@pytest.mark.parametrize("size", [(16, 16), (18, 21), (5, 3), (1, 40)])
def test_unet_takes_any_size(size: tuple[int, int], patch_px: int) -> None:
    unet = UNet(3, 8, 2, "group", patch_px)
    out = unet(torch.rand(2, 3, *size))
    assert out.shape == (2, 3, *size)
    assert out.min() > 0
    assert out.max() < 1


def test_padding_leaves_a_size_that_fits_as_it_was_and_shows_nothing_of_itself() -> None:
    unet = UNet(3, 8, 1, "batch", 2).eval()  # eval: every pixel looks at its surroundings only
    picture = torch.rand(1, 3, 30, 32)
    padded_by_hand = torch.cat([picture, picture[:, :, -1:], picture[:, :, -1:]], dim=2)
    assert torch.equal(unet(picture), unet(padded_by_hand)[:, :, :30])


@pytest.mark.parametrize("back", [1, 3])
@pytest.mark.parametrize("motion_input", MOTION_INPUTS)
def test_motion_starts_black_and_never_raw(motion_input: str, back: int) -> None:
    network = anonymizer(kind="motion", motion_input=motion_input, motion_frames=back)
    raw = clip()
    out = network(raw)
    assert out.shape == raw.shape
    assert not out[:, :, :back].any()
    assert out[:, :, back:].min() > 0
    assert torch.equal(out[:, :, back:], network.transform(raw))
    lone = network(raw[:, :, :back])
    assert lone.shape == (2, 3, back, 16, 16)
    assert not lone.any()


def test_frame_kind_answers_for_every_frame_and_for_it_alone() -> None:
    network = anonymizer(kind="frame")
    raw = clip()
    assert network.history == 0
    assert network(raw).shape == raw.shape
    changed = raw.clone()
    changed[:, :, 1] = 0.5
    before, after = network(raw), network(changed)
    assert torch.equal(before[:, :, [0, 2, 3]], after[:, :, [0, 2, 3]])
    assert not torch.equal(before[:, :, 1], after[:, :, 1])


@pytest.mark.parametrize("back", [1, 3])
@pytest.mark.parametrize("motion_input", MOTION_INPUTS)
def test_a_long_clip_equals_a_stream_that_remembers_its_history(motion_input: str, back: int) -> None:
    network = anonymizer(kind="motion", motion_input=motion_input, motion_frames=back)
    assert network.history == back
    raw = clip(frames=6)
    whole = network(raw)
    for t in range(back, 6):
        torch.testing.assert_close(whole[:, :, t], network.transform(raw[:, :, t - back : t + 1])[:, :, 0])


@pytest.mark.parametrize("motion_input", ["onebit", "difference"])
def test_motion_is_blind_to_a_still_picture(motion_input: str) -> None:
    network = anonymizer(kind="motion", motion_input=motion_input)
    one_person = torch.rand(1, 3, 1, 16, 16).expand(-1, -1, 3, -1, -1)
    another = torch.rand(1, 3, 1, 16, 16).expand(-1, -1, 3, -1, -1)
    assert torch.equal(network(one_person), network(another))


def test_represent_drops_lead_in_that_is_not_needed() -> None:
    raw = clip(frames=5)
    frame, motion = anonymizer(kind="frame"), anonymizer(kind="motion")
    torch.testing.assert_close(represent(frame, raw, 1), frame.transform(raw)[:, :, 1:])
    assert torch.equal(represent(motion, raw, 1), motion.transform(raw))
    assert represent(frame, raw, 1).shape == represent(motion, raw, 1).shape == (2, 3, 4, 16, 16)
    with pytest.raises(ValueError, match="carry 0 lead-in frames"):
        represent(motion, raw, 0)
    assert isinstance(motion, ClipTransform)


def test_targets_are_what_warm_up_copies() -> None:
    raw = clip()
    assert torch.equal(anonymizer(kind="frame").target(raw), raw)
    change = (raw[:, :, 1:] - raw[:, :, :-1]).abs()
    onebit = anonymizer(kind="motion", threshold=0.3).target(raw)
    for channel in range(3):
        assert torch.equal(onebit[:, channel] == 1, change.amax(dim=1) > 0.3)
    weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1, 1)
    grey = (raw * weights).sum(dim=1)
    expected = (3 * (grey[:, 1:] - grey[:, :-1]).abs()).clamp(max=1)
    for motion_input in ("difference", "frames"):
        network = anonymizer(kind="motion", motion_input=motion_input)
        torch.testing.assert_close(network.target(raw)[:, 1], expected)
        assert network.target(raw).shape == network.transform(raw).shape


@pytest.mark.parametrize("motion_input", ["onebit", "difference"])
def test_earlier_differences_stand_before_the_newest(motion_input: str) -> None:
    raw = clip(frames=6)
    one, three = (anonymizer(kind="motion", motion_input=motion_input, motion_frames=back) for back in (1, 3))
    each, seen = one.picture(raw), three.picture(raw)
    assert seen.shape == (2, 3, 3, 16, 16)
    for moment in range(3):
        for place in range(3):
            assert torch.equal(seen[:, place, moment], each[:, 0, moment + place])
    assert torch.equal(three.target(raw), one.target(raw)[:, :, 2:])


def test_frames_input_stacks_previous_then_present() -> None:
    raw = clip()
    stacked = anonymizer(kind="motion", motion_input="frames").picture(raw)
    assert torch.equal(stacked[:, :3], raw[:, :, :-1])
    assert torch.equal(stacked[:, 3:], raw[:, :, 1:])


@pytest.mark.parametrize("size", [16, 15])
def test_cells_hold_one_grey_value_and_one_draw_of_noise(size: int) -> None:
    """Against the loop over cells; a size that the cells do not divide has smaller ones at its right and lower edge."""
    plain = anonymizer(kind="motion").eval()
    celled, noisy = (anonymizer(kind="motion", output_cell_px=4, output_noise=sigma).eval() for sigma in (0.0, 0.3))
    for network in (celled, noisy):
        network.load_state_dict(plain.state_dict())
    raw = clip(size=size)
    with torch.no_grad():
        fine, coarse = plain.transform(raw), celled.transform(raw)
        grainy = noisy.transform(raw)
    for top in range(0, size, 4):
        for left in range(0, size, 4):
            cell = (..., slice(top, top + 4), slice(left, left + 4))
            mean_BT = fine[cell].mean(dim=(1, 3, 4))
            assert torch.allclose(coarse[cell], mean_BT[:, None, :, None, None].expand_as(coarse[cell]), atol=1e-6)
            assert torch.equal(grainy[cell], grainy[:, :1, :, top : top + 1, left : left + 1].expand_as(grainy[cell]))
    assert coarse.shape == fine.shape
    assert 0.1 < float((grainy - coarse)[..., ::4, ::4].std()) < 0.35


def test_cells_must_divide_the_working_size() -> None:
    with pytest.raises(UserError, match="output_cell_px = 5"):
        AnonymizerConfig(size_px=16, output_cell_px=5)


def test_noise_in_use_cannot_be_drawn_again_and_noise_in_training_can() -> None:
    network = Anonymizer(AnonymizerConfig(base_channels=4, depth=1, size_px=16, output_noise=0.2)).eval()
    seen = clip(size=16)

    def outputs(call):
        answers = []
        for _ in range(2):
            torch.manual_seed(3)
            state = torch.get_rng_state()
            answers.append(call(seen))
            if call == network.at_any_size:
                assert torch.equal(torch.get_rng_state(), state)
        return answers

    assert torch.equal(*outputs(network.transform))
    first, second = outputs(network.at_any_size)
    assert 0.1 < float((first - second).std()) < 0.3  # two draws of 0.2, some of it cut at 0 and 1


@pytest.mark.parametrize("kind", ["frame", "motion"])
def test_at_any_size_works_at_its_own_size_and_brings_back(kind: str) -> None:
    network = anonymizer(kind=kind)
    assert torch.equal(network.at_any_size(clip(size=16)), network(clip(size=16)))
    large = torch.rand(1, 3, 3, 37, 50)
    out = network.at_any_size(large)
    assert out.shape == large.shape
    assert out.min() >= 0.0
    assert out.max() <= 1.0
    resize = torch.nn.functional.interpolate
    for t in range(network.history, 3):
        window = large[:, :, t - network.history : t + 1].unbind(2)
        working = [resize(f, (16, 16), mode="bilinear", antialias=True) for f in window]
        frame = network.transform(torch.stack(working, dim=2))[:, :, 0]
        torch.testing.assert_close(out[:, :, t], resize(frame, (37, 50), mode="bilinear", antialias=True))
    assert bool(out[:, :, 0].any()) == (kind == "frame")


def test_noise_is_there_in_use_as_in_training_and_of_the_stated_size() -> None:
    quiet, noisy = anonymizer(), anonymizer(output_noise=0.05)
    raw = clip(frames=8)
    for mode in (True, False):
        first, second = noisy.train(mode).transform(raw), noisy.transform(raw)
        assert not torch.equal(first, second)
        assert float((first - quiet.transform(raw)).detach().std()) == pytest.approx(0.05, rel=0.1)
    assert torch.equal(quiet.transform(raw), quiet.transform(raw))
    loud = anonymizer(output_noise=1.0).transform(raw)
    assert loud.min() >= 0.0
    assert loud.max() <= 1.0


def test_levels_quantise_and_let_the_gradient_through() -> None:
    plain, stepped = anonymizer(), anonymizer(output_levels=3)
    raw = clip()
    out = stepped.transform(raw)
    torch.testing.assert_close(out, torch.round(plain.transform(raw) * 2) / 2)
    assert {round(v, 5) for v in out.unique().tolist()} <= {0.0, 0.5, 1.0}
    out.sum().backward()
    plain.transform(raw).sum().backward()
    for through, straight in zip(stepped.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(through.grad, straight.grad)


@pytest.mark.parametrize("settings", [{"kind": "frame"}, {"kind": "motion", "threshold": 0.5}])
@pytest.mark.parametrize("patch_px", [1, 2])
def test_learns_its_target(settings: dict[str, object], patch_px: int) -> None:
    """Warm-up in miniature: the L1 distance to the target ends far below that of an even grey."""
    network = anonymizer(**settings, patch_px=patch_px, base_channels=12, input_skip=True).train()
    shapes = torch.nn.functional.interpolate(clip(frames=4, size=4, batch=4), size=(4, 16, 16), mode="trilinear")
    target = network.target(shapes)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(50):
        loss = (network.transform(shapes) - target).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3 * float((target - target.median()).abs().mean())


@pytest.mark.parametrize("patch_px", [1, 2])
@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "frame"},
        {"kind": "motion"},
        {"kind": "motion", "motion_frames": 3},
        {"kind": "motion", "motion_input": "frames"},
    ],
)
def test_input_skip_starts_near_the_target_plane_by_plane(settings: dict[str, object], patch_px: int) -> None:
    network = anonymizer(**settings, patch_px=patch_px, input_skip=True)
    raw = torch.rand(2, 3, 5, 18, 16, generator=torch.Generator().manual_seed(2))
    target, out = network.target(raw), network.transform(raw)
    assert out.shape == target.shape
    if settings.get("motion_input") == "frames":
        return  # a difference of two pictures is no copy of either: nothing to start from
    # The skip alone would be 0.12 off at black and white; the random features add a little.
    assert float((out - target).detach().abs().mean()) < 0.2
    for channel in range(3):
        correlation = torch.corrcoef(torch.stack([out[:, channel].flatten(), target[:, channel].flatten()]))
        assert float(correlation[0, 1].detach()) > 0.8


def test_channels_last_gives_the_same_frames() -> None:
    network, raw = anonymizer(kind="motion", motion_input="frames"), clip()
    plain = network(raw)
    fast = network.to(memory_format=torch.channels_last)(raw.to(memory_format=torch.channels_last_3d))
    torch.testing.assert_close(fast, plain, atol=1e-5, rtol=1e-5)


def test_without_gradients_the_frames_are_the_same() -> None:
    """The critics' move, the judge and use build no graph; the anonymizer's move does."""
    network, raw = anonymizer(kind="motion"), clip()
    with torch.no_grad():
        shown = network(raw)
    torch.testing.assert_close(network(raw).detach(), shown, atol=1e-5, rtol=1e-5)


def test_gradients_reach_every_weight_and_nothing_is_done_in_place() -> None:
    network = anonymizer(kind="motion", motion_input="frames", output_noise=0.1)
    raw = clip().requires_grad_()
    version = raw._version
    loss = network.transform(raw).square().mean()
    (gradient,) = torch.autograd.grad(loss, raw, create_graph=True)
    gradient.square().sum().backward()  # raises if a saved tensor was overwritten
    assert raw._version == version
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in network.parameters() if p.dim() > 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "both"},
        {"motion_input": "flow"},
        {"threshold": 0.0},
        {"output_noise": -0.1},
        {"output_levels": 1},
        {"base_channels": 0},
        {"depth": 0},
        {"patch_px": 0},
        {"size_px": 4},
        {"stride_frames": 0},
    ],
)
def test_wrong_settings_are_named(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match=rf"anonymizer\.{next(iter(wrong))} = .*must"):
        config(**wrong)
    with pytest.raises(UserError, match='norm = "layer"'):
        config(norm="layer")
