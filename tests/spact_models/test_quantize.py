"""int8 with a scale and error feedback against what it promises: half a step, nothing lost over the rounds."""

import numpy as np
import pytest
import torch

from spact_models.quantize import STEPS, NotRepresentable, dequantized, narrowed, quantized


def values(seed, *shape, scale=1.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e4])
def test_int8_is_off_by_half_a_step_at_most(scale):
    value = values(1, 40, 7, scale=scale)
    steps, step = quantized(value)
    assert steps.dtype == torch.int8
    assert step == pytest.approx(float(value.abs().max()) / STEPS, rel=1e-6)
    assert float((dequantized(steps, step) - value).abs().max()) <= step / 2 * (1 + 1e-5)
    assert int(steps.abs().max()) == STEPS  # the whole range is used


def test_the_slow_twin_rounds_each_value_by_itself():
    value = values(2, 50)
    steps, step = quantized(value)
    assert steps.tolist() == [round(number / np.float32(step)) for number in value.numpy()]


@pytest.mark.parametrize("value", [torch.zeros(3), torch.tensor([1e-40, 0.0]), torch.zeros(0, 4), torch.tensor(0.0)])
def test_what_has_no_size_becomes_zero_with_scale_1(value):
    steps, step = quantized(value)
    assert step == 1.0
    assert steps.shape == value.shape
    assert not steps.any()


def test_over_the_rounds_nothing_is_lost():
    """The sum of what arrived is the sum of the differences but for the last residual; without feedback it is not."""
    residual, arrived, alone, meant = {}, torch.zeros(30), torch.zeros(30), torch.zeros(30)
    for number in range(40):
        change = {"w": values(number, 30, scale=1e-3) + 2e-5}
        change["w"][0] = 1.0 if number % 2 else -1.0  # one large value makes the step coarse for the others
        packed = narrowed(change, "int8", residual)
        residual = packed.residual
        arrived += dequantized(packed.values["w"], packed.scales["w"])
        alone += dequantized(*quantized(change["w"]))
        meant += change["w"]
    step = 1.0 / STEPS
    assert float((arrived + residual["w"] - meant).abs().max()) < 1e-5
    assert float((arrived - meant)[1:].abs().max()) <= step
    assert float((alone - meant)[1:].norm()) > float((arrived - meant)[1:].norm())


def test_the_residual_changes_what_is_sent_and_the_same_residual_gives_the_same_bytes():
    change, left = {"w": values(1, 20)}, {"w": values(2, 20, scale=1e-1)}
    first, again = narrowed(change, "int8", left), narrowed(change, "int8", left)
    assert torch.equal(first.values["w"], again.values["w"])
    assert first.scales == again.scales
    assert not torch.equal(first.values["w"], narrowed(change, "int8", {}).values["w"])
    assert torch.equal(left["w"], values(2, 20, scale=1e-1))  # what came in is not written to


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_plain_types_need_no_scale_and_leave_nothing(dtype):
    packed = narrowed({"w": values(1, 20)}, dtype, {"w": values(2, 20)})
    assert (packed.scales, packed.residual) == ({}, {})
    assert packed.values["w"].dtype == getattr(torch, dtype)
    torch.testing.assert_close(packed.values["w"].float(), values(1, 20), rtol=2**-11, atol=0)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_what_is_not_finite_is_refused_in_every_type(dtype):
    for bad in (float("nan"), float("inf")):
        with pytest.raises(NotRepresentable, match="w: the difference holds NaN or infinity"):
            narrowed({"w": torch.tensor([1.0, bad])}, dtype, {})


def test_more_than_float16_holds_is_said_with_the_value_and_the_remedy():
    with pytest.raises(NotRepresentable, match=r"w: .* holds 70000, float16 ends at 65504; set wire.dtype = 'float32'"):
        narrowed({"w": torch.tensor([1.0, -7e4])}, "float16", {})
