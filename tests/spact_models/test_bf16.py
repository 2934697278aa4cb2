"""bf16 on a CPU: 3D convolutions against float32, at the shapes where torch's own weight gradients were wrong too."""

import itertools
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from spact_models import bf16
from spact_models.action import build_action
from spact_models.bf16 import SoundBf16, autocast, group_norm_as_given
from spact_models.constants import constant
from spact_models.privacy import build_privacy
from spact_models.unet import UNet

CPU = torch.device("cpu")
KERNELS = {3: 1, (1, 3, 3): (0, 1, 1), (3, 1, 1): (1, 0, 0), (3, 7, 7): (1, 3, 3), 1: 0}


def gradients(clip, weight, bias, half, **geometry):
    leaves = [value.clone().requires_grad_() for value in (clip, weight, bias)]
    with torch.autocast("cpu", torch.bfloat16, enabled=half), SoundBf16():
        out = functional.conv3d(*leaves, **geometry)
    (out.float() * torch.linspace(-1, 1, out.numel()).reshape(out.shape)).sum().backward()
    return [out.float().detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
@pytest.mark.parametrize(("channels", "frames", "side"), [((3, 16), 8, 16), ((80, 6), 2, 7), ((12, 32), 2, 7)])
def test_all_gradients_are_those_of_float32_but_for_rounding(kernel, channels, frames, side):
    torch.manual_seed(0)
    sides = (kernel,) * 3 if isinstance(kernel, int) else kernel
    for number, stride in itertools.product(range(2), (1, (1, 2, 2))):
        clip = torch.randn(1 + number, channels[0], frames, side, side)
        weight, bias = torch.randn(channels[1], channels[0], *sides) / 8, torch.randn(channels[1])
        geometry = {"stride": stride, "padding": KERNELS[kernel]}
        expected = gradients(clip, weight, bias, False, **geometry)
        got = gradients(clip, weight, bias, True, **geometry)
        for name, mine, theirs in zip(("out", "clip", "weight", "bias"), got, expected, strict=True):
            assert mine.dtype == torch.float32
            assert float((mine - theirs).norm() / theirs.norm()) < 0.02, name


def test_the_weights_gradient_has_no_other_error_than_that_of_what_came_in():
    """In float32 from bf16 inputs it is the float32 gradient of the rounded values, exactly."""
    torch.manual_seed(0)
    clip, weight = torch.randn(2, 5, 4, 9, 9).bfloat16().float(), torch.randn(7, 5, 3, 3, 3)
    bias, geometry = torch.zeros(7), {"padding": 1, "dilation": (2, 1, 1)}
    expected, got = (gradients(clip, weight, bias, half, **geometry)[2] for half in (False, True))
    ramp = torch.linspace(-1, 1, 2 * 7 * 2 * 81).reshape(2, 7, 2, 9, 9)
    half = clip.clone(), weight.clone().requires_grad_()
    (functional.conv3d(*half, **geometry) * ramp.bfloat16().float()).sum().backward()
    torch.testing.assert_close(got, half[1].grad)
    assert not torch.equal(got, expected)  # so bf16 it was


def test_without_autocast_nothing_is_changed():
    torch.manual_seed(0)
    convolution, clip = nn.Conv3d(3, 4, 3, padding=1), torch.randn(2, 3, 4, 8, 8)
    plain = convolution(clip)
    with SoundBf16():
        assert torch.equal(convolution(clip), plain)


def test_a_group_norm_as_given_is_torchs_in_the_inputs_type():
    torch.manual_seed(0)
    picture, norm = torch.randn(2, 8, 5, 5), nn.GroupNorm(2, 8)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2.0)
        norm.bias.uniform_(-1.0, 1.0)
    arguments = (norm.num_groups, norm.weight, norm.bias, norm.eps)
    torch.testing.assert_close(group_norm_as_given(picture, *arguments), norm(picture))
    half = group_norm_as_given(picture.bfloat16(), *arguments)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), norm(picture), atol=0.05, rtol=0.02)
    assert group_norm_as_given(picture.bfloat16(), 2).dtype == torch.bfloat16  # without weights


@pytest.fixture
def pretended_gpu():
    """Shapes, types and autocast's rules of a CUDA device, where there need be none."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda", 0):
        before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        torch.set_autocast_enabled("cuda", True)
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        yield
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])
    constant.cache_clear()  # it holds pretended tensors


def types_of_norms(network, example):
    seen = set()
    for module in network.modules():
        if isinstance(module, nn.GroupNorm):
            module.register_forward_hook(lambda _, __, out: seen.add(out.dtype))
    network(example)
    return seen


@pytest.mark.usefixtures("pretended_gpu")
@pytest.mark.parametrize(("mode", "inside"), [(nullcontext, torch.float32), (SoundBf16, torch.bfloat16)])
def test_on_a_gpu_norms_stay_in_bf16_only_within_the_mode(mode, inside):
    """Without it autocast makes all that follows a norm float32: f_A, 2D and 3D networks alike."""
    networks = [
        (UNet(3, 8, 2, "group"), torch.rand(2, 3, 16, 16)),
        (build_action("r3d18", 3, "group"), torch.rand(1, 3, 8, 16, 16)),
        (build_privacy("resnet18", "group", 16), torch.rand(2, 3, 1, 16, 16)),
    ]
    with mode():
        for network, example in networks:
            assert types_of_norms(network, example) == {inside}


@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
def test_a_cpu_that_is_slow_in_bf16_computes_f_T_in_float32(capability, monkeypatch):
    monkeypatch.setattr(bf16, "fast_bf16", lambda: capability == "AVX512")
    network, clip = build_action("tiny", 3, "group").eval(), torch.rand(2, 3, 8, 16, 16)
    plain = network(clip)
    with autocast(CPU, "bf16", three_dimensional=True):
        shown = network(clip)
    assert torch.equal(shown, plain) == (capability == "AVX2")
    torch.testing.assert_close(shown.float(), plain, atol=0.05, rtol=0.05)
    with autocast(CPU, "fp32", three_dimensional=True):
        assert torch.equal(network(clip), plain)
    with autocast(CPU, "bf16"):  # two dimensions: bf16 on every CPU
        assert functional.conv2d(torch.rand(1, 1, 4, 4), torch.rand(1, 1, 3, 3)).dtype == torch.bfloat16
