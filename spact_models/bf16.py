"""Where torch's bf16 autocast is not what a network needs: 3D convolutions on a CPU, group norms on a GPU.

torch's bf16 weight gradients of 3D convolutions come from memory that nobody wrote, at some shapes, on CPUs: NaN, 3e38
or, worse, plain wrong numbers (torch 2.14 and 2.15; forward passes and gradients of inputs were sound in all tries).

CUDA's autocast takes group norm in float32, a CPU's does not. All that follows a norm up to the next convolution is
then float32 too and each convolution keeps a bf16 copy besides: by shapes and types the paper's networks keep 28 GiB
a move so, more than in float32 (26), and 14 with norms in bf16.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.grad import conv3d_input, conv3d_weight
from torch.overrides import TorchFunctionMode


def fast_bf16() -> bool:
    """Whether a CPU is not known to be slow in bf16: torch emulates it on x86 without AVX-512."""
    on_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return not on_x86 or torch.backends.cpu.get_cpu_capability().upper().startswith(("AVX512", "AMX"))


@contextmanager
def autocast(device: torch.device, precision: str, *, three_dimensional: bool = False) -> Iterator[None]:
    """The context of a forward pass in ``precision``: float32, or bf16 where torch's autocast takes it.

    Args:
        three_dimensional: the network has 3D convolutions. On a CPU they are done as :class:`SoundBf16` does them where
            bf16 is fast, and in float32 where it is not.
    """
    delicate = three_dimensional and device.type == "cpu"
    enabled = precision == "bf16" and (fast_bf16() or not delicate)
    sound = SoundBf16() if enabled and (delicate or device.type == "cuda") else nullcontext()
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled), sound:
        yield


class SoundBf16(TorchFunctionMode):
    """Within it, under bf16 autocast, a CPU's 3D convolution takes its weights' gradients in float32, and a GPU's group
    norm stays in its input's type.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is functional.conv3d and torch.is_autocast_enabled("cpu"):
            return _conv3d(*args, **(kwargs or {}))
        if func is functional.group_norm and torch.is_autocast_enabled("cuda"):
            return group_norm_as_given(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def group_norm_as_given(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """torch.nn.functional.group_norm's own arguments; the answer has the input's type.

    CUDA's kernel takes one type for all and adds up means and spreads in float32 itself.
    """
    with torch.autocast(input.device.type, enabled=False):
        weight, bias = (value if value is None else value.to(input.dtype) for value in (weight, bias))
        return functional.group_norm(input, num_groups, weight, bias, eps)


def _conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    """torch.nn.functional.conv3d's own arguments, by place and by name."""
    return _Conv3d.apply(input, weight, bias, stride, padding, dilation, groups)


class _Conv3d(torch.autograd.Function):
    """bf16 forward and towards the input, float32 towards weights and bias."""

    @staticmethod
    def forward(ctx: Any, clip: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any) -> Tensor:
        half = clip.bfloat16()
        ctx.save_for_backward(half, weight)
        ctx.geometry, ctx.taken, ctx.biased = geometry, clip.dtype, bias is not None
        with torch.autocast("cpu", enabled=False):
            return functional.conv3d(half, weight.bfloat16(), None if bias is None else bias.bfloat16(), *geometry)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (grad,) = grads
        half, weight = ctx.saved_tensors
        to_clip = to_weight = to_bias = None
        if ctx.needs_input_grad[0]:
            to_clip = conv3d_input(half.shape, weight.bfloat16(), grad.bfloat16(), *ctx.geometry)  # type: ignore[no-untyped-call]
            to_clip = to_clip.to(ctx.taken)
        if ctx.needs_input_grad[1]:
            to_weight = conv3d_weight(half.float(), weight.shape, grad.float(), *ctx.geometry)  # type: ignore[no-untyped-call]
        if ctx.biased and ctx.needs_input_grad[2]:
            to_bias = grad.float().sum(dim=(0, 2, 3, 4))
        return to_clip, to_weight, to_bias, None, None, None, None
