"""From settings to networks and back from a checkpoint: what was trained is what a user gets."""

from pathlib import Path

import pytest
import torch

from spact_models.checkpoint import load_checkpoint, save_checkpoint
from spact_models.errors import UserError
from spact_models.exchange import snapshot
from spact_models.networks import (
    buffers_of,
    build_networks,
    build_privacy_network,
    checkpoint_header,
    load_anonymizer,
    networks_from_checkpoint,
)
from spact_models.presets import BEFORE
from spact_models.run_config import load_settings

CLASSES = ["fall", "jump", "walk"]


@pytest.fixture
def settings_of(fast):
    return lambda **changes: load_settings({**fast, **changes})


def trained(settings, seed=7):
    """Networks far from their start, BatchNorm statistics included."""
    networks = build_networks(settings, CLASSES)
    generator = torch.Generator().manual_seed(seed)
    for network in (networks.anonymizer, networks.action):
        for value in [*network.parameters(), *network.buffers()]:
            if value.is_floating_point():
                value.data += 0.3 * torch.rand(value.shape, generator=generator)
        network.eval()
    return networks


def save(path, networks, settings, buffers=True):
    held = {**snapshot(networks.anonymizer, networks.action), **(buffers_of(networks) if buffers else {})}
    save_checkpoint(path, held, checkpoint_header(settings, CLASSES, round=3))
    return path


def clip(frames=5, size=16):
    return torch.rand(2, 3, frames, size, size, generator=torch.Generator().manual_seed(1))


VARIANTS = [
    {},
    {"networks.anonymizer": "frame", "networks.anonymizer_input_skip": False},
    {"networks.motion_input": "frames", "networks.anonymizer_patch_px": 1},
    {"networks.motion_threshold": 0.4, "networks.output_levels": 4},
    {"networks.motion_frames": 3},
    {"networks.norm": "batch"},
]


@pytest.mark.parametrize("changes", VARIANTS)
def test_networks_come_back_from_a_checkpoint_bit_for_bit(settings_of, tmp_path, changes):
    settings = settings_of(**{"networks.output_noise": 0.0, "game.beta": 0.0, **changes})  # noise would differ
    networks = trained(settings)
    path = save(tmp_path / "round.safetensors", networks, settings)
    back, read, classes = networks_from_checkpoint(load_checkpoint(path))
    alone, alone_settings, alone_classes = load_anonymizer(path)
    assert classes == alone_classes == CLASSES
    assert read == alone_settings == settings
    for network in (back.anonymizer, back.action, alone):
        assert not network.training
    with torch.inference_mode():
        expected = networks.anonymizer(clip())
        assert torch.equal(back.anonymizer(clip()), expected)
        assert torch.equal(alone(clip()), expected)
        assert torch.equal(alone.at_any_size(clip(size=24)), networks.anonymizer.at_any_size(clip(size=24)))
        assert torch.equal(back.action(clip()), networks.action(clip()))
        untrained = build_networks(settings, CLASSES)
        assert not torch.equal(untrained.anonymizer.eval()(clip()), expected)


def test_every_setting_of_f_a_reaches_it(settings_of):
    chosen = {
        "anonymizer": ("kind", "motion"),
        "motion_input": ("motion_input", "difference"),
        "motion_frames": ("motion_frames", 3),
        "anonymizer_channels": ("base_channels", 6),
        "anonymizer_depth": ("depth", 2),
        "anonymizer_patch_px": ("patch_px", 4),
        "anonymizer_input_skip": ("input_skip", False),
        "motion_threshold": ("threshold", 0.3),
        "norm": ("norm", "batch"),
        "output_noise": ("output_noise", 0.1),
        "output_levels": ("output_levels", 5),
        "output_cell_px": ("output_cell_px", 4),
    }
    changes = {f"networks.{key}": value for key, (_, value) in chosen.items()}
    settings = settings_of(**changes, **{"clip.size_px": 24, "clip.stride_frames": 3})
    config = vars(build_networks(settings, CLASSES).anonymizer.config)
    assert config == {**dict(chosen.values()), "size_px": 24, "stride_frames": 3}


def test_a_checkpoint_from_before_the_newest_settings_means_what_it_meant(settings_of, tmp_path):
    """Its header lacks their keys: no price, no cells, views of one frame, whatever the preset says today."""
    settings = settings_of(**{"networks.output_noise": 0.0, "game.beta": 0.0, **BEFORE})
    networks = trained(settings)
    path = save(tmp_path / "round.safetensors", networks, settings)
    checkpoint = load_checkpoint(path)
    told = {key: value for key, value in checkpoint.header["settings"].items() if key not in BEFORE}
    save_checkpoint(path, checkpoint.tensors, {**checkpoint.header, "settings": told})
    anonymizer, read, _ = load_anonymizer(path)
    assert networks_from_checkpoint(load_checkpoint(path))[1] == read
    assert (read.game.beta, read.views.frames, read.networks.output_cell_px) == (0.0, 1, 0)
    assert (read.game.beta_rise, read.game.lr_fall, read.networks.motion_frames) == (0.0, 0.0, 1)
    with torch.inference_mode():
        assert torch.equal(anonymizer(clip()), networks.anonymizer.eval()(clip()))


def test_a_federated_batch_norm_checkpoint_is_refused_with_the_reason(settings_of, tmp_path):
    settings = settings_of(**{"networks.norm": "batch"})
    path = save(tmp_path / "round.safetensors", trained(settings), settings, buffers=False)
    for read in (lambda: load_anonymizer(path), lambda: networks_from_checkpoint(load_checkpoint(path))):
        with pytest.raises(UserError, match=r"no BatchNorm statistics for anonymizer: .*stay at the sites.*'group'"):
            read()


def test_a_checkpoint_that_does_not_fit_its_settings_is_refused(settings_of, tmp_path):
    settings = settings_of()
    networks = trained(settings)
    held = snapshot(networks.anonymizer, networks.action)
    lost = next(name for name in held if name.startswith("anonymizer."))
    for name, tensors in {
        lost.removeprefix("anonymizer."): {key: value for key, value in held.items() if key != lost},
        "unet.more": {**held, "anonymizer.unet.more": torch.zeros(1)},
    }.items():
        save_checkpoint(tmp_path / "odd.safetensors", tensors, checkpoint_header(settings, CLASSES))
        with pytest.raises(UserError, match=rf"odd\.safetensors: checkpoint and settings disagree.*{name}.*run folder"):
            load_anonymizer(tmp_path / "odd.safetensors")


def test_weights_of_another_shape_are_refused_by_name(settings_of, tmp_path):
    settings = settings_of()
    networks = trained(settings)
    held = snapshot(networks.anonymizer, networks.action)
    path = tmp_path / "odd.safetensors"
    odd = next(name for name, value in held.items() if name.startswith("anonymizer.") and value.ndim > 1)
    save_checkpoint(path, {**held, odd: held[odd][:, :0]}, checkpoint_header(settings, CLASSES))
    short = odd.removeprefix("anonymizer.")
    for read in (load_anonymizer, lambda file: networks_from_checkpoint(load_checkpoint(file))):
        with pytest.raises(UserError, match=rf"{path}: .*of another shape {short} \(.*\) instead of \(.*run folder"):
            read(path)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"settings": None}, "its header holds no settings"),
        ({"settings": {}}, "its header holds no settings"),
        (
            {"settings": {"networks.newer": 1}},
            r"not those of this fedspact \(networks\.newer: no such .*upgrade fedspact",
        ),
        ({"settings": {"networks.anonymizer": "odd"}}, r"not those of this fedspact \(networks\.anonymizer = 'odd'"),
        ({"settings": {"preset": ["tiny"]}}, "not those of this fedspact"),
        ({"classes": None}, "its header holds no list of action classes"),
        ({"classes": [1]}, "its header holds no list of action classes"),
    ],
)
def test_a_header_that_tells_too_little_is_refused_by_name(settings_of, tmp_path, changes, told):
    settings = settings_of()
    path = save(tmp_path / "odd.safetensors", trained(settings), settings)
    checkpoint = load_checkpoint(path)
    header = {name: value for name, value in {**checkpoint.header, **changes}.items() if value is not None}
    save_checkpoint(path, checkpoint.tensors, header)
    for read in (load_anonymizer, lambda file: networks_from_checkpoint(load_checkpoint(file))):
        with pytest.raises(UserError, match=rf"{path}: .*{told}.*name a run folder"):
            read(path)


def test_group_norm_has_no_buffers_to_keep(settings_of):
    assert buffers_of(build_networks(settings_of(), CLASSES)) == {}
    named = buffers_of(build_networks(settings_of(**{"networks.norm": "batch"}), CLASSES))
    assert {name.split(".")[1] for name in named} == {"anonymizer", "action"}
    assert all(name.startswith("buffers.") for name in named)


def same(one, two):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_every_party_builds_the_same_networks_from_the_seed(settings_of):
    one = build_networks(settings_of(), CLASSES)
    torch.manual_seed(12345)
    state = torch.get_rng_state()
    two = build_networks(settings_of(), CLASSES)
    assert torch.equal(torch.get_rng_state(), state)  # nobody else's randomness is touched
    assert same(one.anonymizer, two.anonymizer)
    assert same(one.action, two.action)
    other = build_networks(settings_of(seed=1), CLASSES)
    assert not same(one.anonymizer, other.anonymizer)
    assert not same(one.action, other.action)
    assert one.action(clip()).shape == (2, 3)


def test_f_b_depends_on_the_site_and_on_how_often_it_began(settings_of):
    settings = settings_of()
    made = {words: build_privacy_network(settings, *words) for words in (("a", 0), ("b", 0), ("a", 1))}
    assert same(made["a", 0], build_privacy_network(settings, "a", 0))
    assert not same(made["a", 0], made["b", 0])
    assert not same(made["a", 0], made["a", 1])


def weights_file(path, network):
    torch.save({name: torch.full_like(value, 0.25) for name, value in network.state_dict().items()}, path)
    return path


def test_what_was_loaded_and_what_was_not_is_said_once(settings_of, tmp_path, caplog):
    state = dict(build_networks(settings_of(), CLASSES).action.state_dict())
    state["fc.weight"] = torch.zeros(99, 3)
    torch.save(state, tmp_path / "other_head.pth")
    settings = settings_of(**{"networks.action_weights": str(tmp_path / "other_head.pth")})
    with caplog.at_level("INFO", logger="fedspact.networks"):
        build_networks(settings, CLASSES)
        build_networks(settings, CLASSES)
    (said,) = [record.getMessage() for record in caplog.records]
    assert f"{len(state) - 1} tensors loaded, 1 not" in said
    assert "fc.weight" in said


def test_the_action_weights_file_is_used_and_not_needed_to_open_the_result(settings_of, tmp_path):
    fresh = build_networks(settings_of(), CLASSES).action
    file = weights_file(tmp_path / "kinetics.pth", fresh)
    settings = settings_of(**{"networks.action_weights": str(file)})
    networks = build_networks(settings, CLASSES)
    assert all(torch.equal(value, torch.full_like(value, 0.25)) for value in networks.action.parameters())
    assert same(networks.anonymizer, build_networks(settings_of(), CLASSES).anonymizer)
    path = save(tmp_path / "round.safetensors", trained(settings), settings)
    file.unlink()
    back, read, _ = networks_from_checkpoint(load_checkpoint(path))
    assert read.networks.action_weights == ""
    assert same(back.action, trained_like(path, back))
    assert load_anonymizer(path)[0].config == networks.anonymizer.config
    with pytest.raises(UserError, match=r"kinetics\.pth.*no such file"):
        build_networks(settings, CLASSES)


def trained_like(path, networks):
    """The action network of ``networks``' kind with the checkpoint's tensors, put in by hand."""
    tensors = load_checkpoint(path).tensors
    for name, parameter in networks.action.named_parameters():
        parameter.data = tensors["action." + name]
    return networks.action


def test_the_privacy_weights_file_is_used_for_the_trunk(settings_of, tmp_path):
    fresh = build_privacy_network(settings_of(), "a", 0)
    file = weights_file(tmp_path / "imagenet.pth", fresh.trunk)
    network = build_privacy_network(settings_of(**{"networks.privacy_weights": str(file)}), "a", 0)
    assert all(torch.equal(value, torch.full_like(value, 0.25)) for value in network.trunk.parameters())
    heads = [name for name, _ in network.named_parameters() if not name.startswith("trunk.")]
    assert heads
    assert all(torch.equal(network.get_parameter(name), fresh.get_parameter(name)) for name in heads)
    missing = settings_of(**{"networks.privacy_weights": str(Path("~") / "no-such.pth")})
    with pytest.raises(UserError, match=r"no-such\.pth"):
        build_privacy_network(missing, "a", 0)


def test_the_header_says_what_wrote_it(settings_of, tmp_path):
    settings = settings_of()
    header = load_checkpoint(save(tmp_path / "c.safetensors", trained(settings), settings)).header
    assert header["settings"] == settings.flat()
    assert header["classes"] == CLASSES
    assert header["round"] == 3
    assert header["versions"]["torch"] == torch.__version__
