import pytest
import torch
from torch import nn

from spact_models.errors import UserError
from spact_models.exchange import (
    branch,
    clipped,
    difference,
    expected_shapes,
    install,
    shared_parameters,
    snapshot,
    trained_names,
)
from spact_models.networks import build_networks
from spact_models.run_config import load_settings


def networks():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)), nn.Linear(2, 2)


def test_buffers_never_travel():
    """BatchNorm's integer counter broke clipping (its norm was 894) and its statistics leak."""
    anonymizer, action = networks()
    names = set(shared_parameters(anonymizer, action))
    assert names == {
        "anonymizer.0.weight",
        "anonymizer.0.bias",
        "anonymizer.1.weight",
        "anonymizer.1.bias",
        "action.weight",
        "action.bias",
    }
    assert all(value.is_floating_point() for value in shared_parameters(anonymizer, action).values())


def test_difference_and_install_undo_each_other():
    anonymizer, action = networks()
    before = snapshot(anonymizer, action)
    with torch.no_grad():
        for parameter in [*anonymizer.parameters(), *action.parameters()]:
            parameter.add_(torch.randn_like(parameter))
    after = snapshot(anonymizer, action)
    change = difference(after, before)
    install(anonymizer, action, {name: before[name] + change[name] for name in before})
    for name, value in shared_parameters(anonymizer, action).items():
        torch.testing.assert_close(value, after[name])


def test_a_snapshot_does_not_follow_the_network():
    anonymizer, action = networks()
    before = snapshot(anonymizer, action)
    with torch.no_grad():
        action.weight.zero_()
    assert before["action.weight"].abs().sum() > 0


def test_odd_names_are_refused():
    anonymizer, action = networks()
    weights = snapshot(anonymizer, action)
    weights["privacy.weight"] = torch.zeros(1)
    with pytest.raises(KeyError, match=r"privacy\.weight"):
        install(anonymizer, action, weights)
    with pytest.raises(KeyError, match=r"privacy\.weight"):
        difference(weights, snapshot(anonymizer, action))


def test_a_whole_update_is_clipped_as_one_vector():
    update = {"a": torch.randn(5, 4), "b": torch.randn(7)}
    norm = torch.cat([value.flatten() for value in update.values()]).norm()
    for bound in (0.1, 1.0, 100.0):
        short = clipped(update, bound)
        joined = torch.cat([value.flatten() for value in short.values()])
        assert float(joined.norm()) <= bound * (1 + 1e-6)
        torch.testing.assert_close(joined, torch.cat([v.flatten() for v in update.values()]) * min(1.0, bound / norm))


def test_an_update_of_zeros_or_without_a_norm_does_not_crash():
    assert not any(value.any() for value in clipped({"a": torch.zeros(3)}, 1.0).values())
    for broken in (float("nan"), float("inf")):
        assert not clipped({"a": torch.tensor([1.0, broken])}, 1.0)["a"].any()
    large = clipped({"a": torch.full((4,), 3e38)}, 1.0)["a"]  # its square leaves float32
    assert float(large.norm()) == pytest.approx(1.0)


def test_branch_and_shapes():
    weights = snapshot(*networks())
    assert set(branch(weights, "action.")) == {"weight", "bias"}
    assert expected_shapes(weights)["anonymizer.0.weight"] == (2, 3, 1, 1)


NAMES = ["anonymizer.unet.entry.weight", "anonymizer.unet.exit.weight", "action.layer1.weight", "action.fc.weight"]


def test_patterns_choose_names_in_the_networks_order():
    assert trained_names(NAMES, ()) == NAMES
    assert trained_names(NAMES, ("action.fc.*", "*.exit.*")) == [NAMES[1], NAMES[3]]
    assert trained_names(NAMES, ("*.weight",)) == NAMES
    assert trained_names(NAMES, ("anonymizer.unet.e??t.*", "action.layer?.*")) == [NAMES[1], NAMES[2]]


def test_a_pattern_that_matches_nothing_is_named_with_what_is_near():
    with pytest.raises(
        UserError, match=r"wire.parameters: 'action.head.\*', matches no parameter .* action\.fc\.weight"
    ):
        trained_names(NAMES, ("*.exit.*", "action.head.*"))


def test_a_network_that_would_not_learn_at_all_is_an_error():
    with pytest.raises(UserError, match=r"names nothing of anonymizer\.\*: f_A and f_T must both learn"):
        trained_names(NAMES, ("action.*",))


@pytest.mark.parametrize(
    ("patterns", "share"), [("*.exit.*,action.fc.*", 0.002), ("*.exit.*,*.entry.*,action.fc.*", 0.003)]
)
def test_a_few_layers_of_the_papers_networks_are_less_than_a_hundredth(patterns, share):
    """Counted in values: every one takes the same bytes on the wire. HMDB51's 51 and UCF101's 101 actions."""
    settings = load_settings({"preset": "paper", "wire.parameters": patterns})
    for classes in (51, 101):
        with torch.device("meta"):
            networks = build_networks(settings, [f"action {number}" for number in range(classes)])
        sizes = {name: value.numel() for name, value in shared_parameters(*vars(networks).values()).items()}
        assert 50e6 < sum(sizes.values()) < 51e6
        sent = sum(sizes[name] for name in trained_names(sizes, settings.wire.patterns))
        assert sent / sum(sizes.values()) < share < 0.01
