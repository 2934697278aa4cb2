import pytest
import torch
from torch import nn

from spact_models.exchange import branch, difference, expected_shapes, install, shared_parameters, snapshot


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


def test_branch_and_shapes():
    weights = snapshot(*networks())
    assert set(branch(weights, "action.")) == {"weight", "bias"}
    assert expected_shapes(weights)["anonymizer.0.weight"] == (2, 3, 1, 1)
