"""Published weights: every tensor that fits arrives, every other is accounted for, wrong files are named.

The "published" files are torchvision's own networks with random weights, saved as torchvision publishes them.
"""

from collections.abc import Mapping
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision.models
import torchvision.models.video
from torch import Tensor, nn

from spact_models.action import KINETICS_MEAN, KINETICS_STD, build_action
from spact_models.errors import UserError
from spact_models.pretrained import LoadReport, load_pretrained
from spact_models.privacy import PrivacyClassifier, build_privacy


@pytest.fixture(scope="module")
def r3d18() -> nn.Module:
    torch.manual_seed(0)
    network = torchvision.models.video.r3d_18(num_classes=400)
    nn.init.normal_(network.fc.weight)
    return with_lived_in_norms(network)


@pytest.fixture(scope="module")
def resnet50() -> nn.Module:
    torch.manual_seed(0)
    return with_lived_in_norms(torchvision.models.resnet50())


def with_lived_in_norms(network: nn.Module) -> nn.Module:
    """Norms as after training: neither 0 nor 1, so that one left behind shows."""
    for name, tensor in network.state_dict().items():
        if name.endswith(("running_mean", "running_var")) or "bn" in name:
            if tensor.is_floating_point():
                tensor.uniform_(0.8, 1.2)
            else:
                tensor.fill_(7)
    return network.eval()


@pytest.fixture(scope="module")
def r3d18_file(r3d18: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "r3d_18.pth"
    torch.save(r3d18.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def resnet50_file(resnet50: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "resnet50.safetensors"
    safetensors.torch.save_file(resnet50.state_dict(), path)
    return path


def assert_everything_that_fits_arrived(
    network: nn.Module, published: Mapping[str, Tensor], report: LoadReport, prefix: str = ""
) -> None:
    own = network.state_dict()
    fitting = {
        prefix + name
        for name, tensor in published.items()
        if prefix + name in own and own[prefix + name].shape == tensor.shape
    }
    assert set(report.loaded) == fitting
    for name in fitting:
        assert torch.equal(own[name], published[name.removeprefix(prefix)]), name
    named = set(report.loaded) | set(report.skipped)
    assert named == set(own) | {prefix + name for name in published}
    assert not set(report.loaded) & set(report.skipped)


def test_batch_norm_twin_loaded_from_a_file_gives_the_published_outputs(r3d18: nn.Module, r3d18_file: Path) -> None:
    ours = build_action("r3d18", 400, "batch", last_stage="strided").eval()
    report = load_pretrained(ours, "r3d18", r3d18_file)
    assert not report.skipped
    clip_BCTHW = torch.rand(1, 3, 8, 32, 32)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1, 1) for v in (KINETICS_MEAN, KINETICS_STD))
    with torch.no_grad():
        torch.testing.assert_close(ours(clip_BCTHW), r3d18((clip_BCTHW - mean) / std), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_action_takes_what_fits_and_reports_another_head(r3d18: nn.Module, r3d18_file: Path, norm: str) -> None:
    ours = build_action("r3d18", 101, norm)
    report = load_pretrained(ours, "r3d18", r3d18_file)
    assert_everything_that_fits_arrived(ours, r3d18.state_dict(), report)
    assert "400×512 in the weights, 101×512 in the network, another set of classes" in report.skipped["fc.weight"]
    statistics = [name for name in report.skipped if "running" in name]
    assert len(statistics) == (0 if norm == "batch" else 40)
    assert "layer4.0.conv1.0.weight" in report.loaded  # dilated, of the same shape
    assert "layer1.0.conv1.1.weight" in report.loaded  # the affine of either norm


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_privacy_takes_the_trunk_and_keeps_its_projection(resnet50: nn.Module, resnet50_file: Path, norm: str) -> None:
    ours = build_privacy("resnet50", norm)
    report = load_pretrained(ours, "resnet50", resnet50_file)
    assert_everything_that_fits_arrived(ours, resnet50.state_dict(), report, prefix="trunk.")
    assert "no such head" in report.skipped["trunk.fc.weight"]
    assert "keeps its start" in report.skipped["projection.0.weight"]
    text = str(report)
    assert f"{len(report.loaded)} tensors loaded" in text
    assert "projection.0.weight" in text
    assert len(text.splitlines()) <= 5
    assert ("group norm does not keep" in text) == (norm == "group")


def test_an_attacker_loads_a_trunk_too(tmp_path: Path) -> None:
    published = torchvision.models.resnet18()
    torch.save(published.state_dict(), tmp_path / "resnet18.pth")
    attacker = PrivacyClassifier("resnet18", 5, "group")
    report = load_pretrained(attacker, "resnet18", tmp_path / "resnet18.pth")
    assert torch.equal(attacker.trunk.get_parameter("layer4.1.conv2.weight"), published.layer4[1].conv2.weight)
    assert "fc.weight" in report.skipped


def test_common_wrappings_are_opened(tmp_path: Path) -> None:
    tiny = build_action("tiny", 3, "group")
    state = {f"module.{name}": tensor for name, tensor in tiny.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "wrapped.pth")
    other = build_action("tiny", 3, "group")
    report = load_pretrained(other, "tiny", tmp_path / "wrapped.pth")
    assert not report.skipped
    assert all(torch.equal(a, b) for a, b in zip(tiny.parameters(), other.parameters(), strict=True))


def test_files_that_hold_no_weights_are_named_with_the_remedy(tmp_path: Path) -> None:
    network = build_action("tiny", 3, "group")
    before = [p.clone() for p in network.parameters()]
    (tmp_path / "text.pth").write_text("not a picture of weights\n")
    (tmp_path / "empty.pth").touch()
    (tmp_path / "text.safetensors").write_text("not weights either, but long enough to look at\n")
    torch.save([1, 2, 3], tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "counter.pth")
    torch.save(network, tmp_path / "whole.pth")  # a pickled object: could run code, must not be opened
    for name in ("text.pth", "empty.pth", "text.safetensors", "list.pth", "counter.pth", "whole.pth", "missing.pth"):
        with pytest.raises(UserError, match=rf"{name}.*state dict"):
            load_pretrained(network, "tiny", tmp_path / name)
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_a_truncated_file_is_named(r3d18_file: Path, tmp_path: Path) -> None:
    (tmp_path / "half.pth").write_bytes(r3d18_file.read_bytes()[:100_000])
    with pytest.raises(UserError, match=r"half\.pth"):
        load_pretrained(build_action("tiny", 3, "group"), "tiny", tmp_path / "half.pth")


def test_weights_of_another_network_are_refused_and_change_nothing(resnet50_file: Path) -> None:
    network = build_action("tiny", 3, "group")
    before = [p.clone() for p in network.parameters()]
    with pytest.raises(UserError, match=r"resnet50\.safetensors.*hold"):
        load_pretrained(network, "tiny", resnet50_file)
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_the_hub_has_nothing_for_tiny() -> None:
    with pytest.raises(UserError, match=r"tiny.*r3d18"):
        load_pretrained(build_action("tiny", 3, "group"), "tiny", "hub")


def test_an_unreachable_hub_names_the_file_to_bring(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for proxy in ("http_proxy", "https_proxy", "HTTPS_PROXY", "HTTP_PROXY"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")  # the discard port: refuses at once
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with torch.device("meta"):
        network = build_privacy("resnet18", "group")
    with pytest.raises(UserError, match=r"resnet18-.*\.pth could not be fetched.*local file"):
        load_pretrained(network, "resnet18", "hub")


def test_the_hub_is_read_from_its_cache(resnet50: nn.Module, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """torchvision looks into its cache first: a file there stands for a download."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights = torchvision.models.ResNet50_Weights.IMAGENET1K_V2
    cached = tmp_path / "hub" / "checkpoints" / weights.url.rsplit("/", 1)[-1]
    cached.parent.mkdir(parents=True)
    torch.save(resnet50.state_dict(), cached)
    ours = build_privacy("resnet50", "group")
    report = load_pretrained(ours, "resnet50", "hub")
    assert_everything_that_fits_arrived(ours, resnet50.state_dict(), report, prefix="trunk.")
