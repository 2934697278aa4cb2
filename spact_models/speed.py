"""Faster ways to the same numbers up to rounding: fused Adam, channels-last weights, what a GPU and a compiler offer.

Networks know nothing of it: it is applied where they are seated for training. What leaves training (weights on the
wire, checkpoints, a site's state) lies in plain contiguous memory, so that no file depends on how fast it was made.

The paths for GPUs are written for CUDA and were not run: no machine of the project has one.
"""

from __future__ import annotations

import ctypes
import logging
import sys
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from spact_models.anonymizer import Anonymizer
from spact_models.bf16 import fast_bf16
from spact_models.minimax import Players
from spact_models.settings import Settings
from spact_models.views import Batch, FrameBatch, augmentation, prepare

log = logging.getLogger("fedspact.speed")
FUSED_DEVICES = ("cpu", "cuda")  # where torch has one Adam kernel for all arithmetic of a tensor
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # by dimensions of a convolution's weight
# Forward and backward pass, one thread, AVX2, group norm, torch 2.14: f_T tiny .145 -> .125 s (16 clips of 8x32x32),
# f_B resnet50 .86 -> .73 s (8 views of 56 px). The others lose (r3d18 1.54 -> 1.77 s, resnet18 .20 -> .27 s) or gain
# nothing: what f_A's convolutions win, its group norm loses.
FASTER_ON_CPU = {"action": ("tiny",), "privacy": ("resnet50",)}
# f_A's passes without gradients (16 and 32 frames, AVX-512, one and two threads) take 9 to 34 % less time channels-last
# in float32, at all presets' sizes; in bf16 22 to 28 % less at the paper's width and 16 to 86 % more below it.
BF16_CHANNELS = 64
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
_warned: set[str] = set()


def make_adam(parameters: Iterable[nn.Parameter], lr: float, kept: Mapping[str, Any] | None = None) -> torch.optim.Adam:
    """Adam, fused where torch offers it for the parameters' device, going on from the ``kept`` state if there is one.

    The kept state may come from another device or another memory layout. torch would take over its ``fused`` and its
    strides, and the fused kernel walks through memory without looking at strides: both are made those of today.
    """
    moved = list(parameters)
    fused = all(value.device.type in FUSED_DEVICES and value.is_floating_point() for value in moved)
    optimizer = torch.optim.Adam(moved, lr=lr, fused=fused)
    if kept is not None:
        groups = [{**group, "lr": lr, "fused": fused, "foreach": None} for group in kept["param_groups"]]
        optimizer.load_state_dict({"state": kept["state"], "param_groups": groups})
        for parameter in moved:
            state = optimizer.state.get(parameter, {})
            for name, value in state.items():  # a copy: torch would go on in the very tensors of the kept state
                state[name] = torch.empty_like(parameter if value.dim() else value, dtype=value.dtype).copy_(value)
    return optimizer


def seat_in_memory(role: str, network: nn.Module, settings: Settings, device: torch.device) -> None:
    """Lay the convolutions' weights of the network ``role`` channels-last or plain, in place; outputs follow weights.

    f_A's stay as they are: only its passes without gradients gain (:func:`lay_passes`). Nothing is laid so under
    differential privacy: Opacus takes wrong gradients of single examples from channels-last memory.
    """
    chosen = settings.speed.channels_last if not settings.dp.on else "off"
    helps = device.type == "cpu" and getattr(settings.networks, role) in FASTER_ON_CPU.get(role, ())
    for parameter in network.parameters():
        wanted = torch.contiguous_format
        if parameter.dim() in CHANNELS_LAST and (chosen == "on" or (chosen == "auto" and helps)):
            wanted = CHANNELS_LAST[parameter.dim()]
        parameter.data = parameter.data.contiguous(memory_format=wanted)
    if isinstance(network, Anonymizer):
        lay_passes(network, channels_last=chosen != "off")


def lay_passes(f_A: Anonymizer, channels_last: bool = True) -> None:
    """Let f_A's passes without gradients run channels-last on a CPU with AVX-512; the same values up to rounding.

    What follows its first layer keeps that layer's memory order. Other devices, compiled and exported graphs and passes
    with gradients stay as they are.
    """
    entry = f_A.unet.entry
    earlier: RemovableHandle | None = vars(entry).pop("laid_by", None)
    if earlier is not None:
        earlier.remove()
    if channels_last and torch.backends.cpu.get_cpu_capability().upper().startswith("AVX512"):
        narrow = f_A.config.base_channels < BF16_CHANNELS
        vars(entry)["laid_by"] = entry.register_forward_pre_hook(partial(_laid_out, narrow))


def _laid_out(narrow: bool, _: nn.Module, given: tuple[Tensor]) -> tuple[Tensor] | None:
    loses = torch.is_grad_enabled() or (narrow and torch.is_autocast_enabled("cpu"))
    if loses or given[0].device.type != "cpu" or torch.compiler.is_compiling():
        return None
    return (given[0].contiguous(memory_format=torch.channels_last),)


def plain_copy(value: Tensor) -> Tensor:
    """A detached copy on the CPU in contiguous memory: how tensors leave training."""
    return value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def compile_networks(players: Players, backend: str = "inductor") -> None:
    """Compile the three networks in place (names and weights stay); each shape of batch costs one compilation."""
    for network in (players.f_A.unet, players.action.network, players.privacy.network):
        network.compile(backend=backend)


def prepare_device(settings: Settings, device: torch.device) -> None:
    """What the process sets once: TF32 and cuDNN's search for a GPU; for a CPU its memory, and a word on bf16."""
    if device.type == "cpu" and settings.speed.keep_memory:
        keep_freed_memory()
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = settings.speed.tf32
        search_kernels(device)
    elif device.type == "cpu" and settings.precision == "bf16" and not fast_bf16():
        _warn_once(
            "precision = 'bf16': this CPU has neither AVX-512 nor AMX and was measured to be 4 to 9 times slower with "
            "it than with precision = 'fp32'"
        )


def search_kernels(device: torch.device) -> None:
    """Let cuDNN try its convolutions once for each shape; batches keep theirs for a whole run."""
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, where its C library is glibc.

    glibc hands tensors of more than 32 MiB back to the system at once, and the next one's pages are made and cleared
    again: at paper size a third of a step's time. What is kept is used again; the peak rises by a few per cent
    (docs/performance.md).

    Returns:
        Whether the library could be told; one without ``mallopt`` is left as it is.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def onto(device: torch.device, frames: FrameBatch) -> FrameBatch:
    """The batch on the device (:func:`moved`): bytes travel, floats are made there."""
    return FrameBatch(*(moved(value, device) for value in vars(frames).values()))


def batch_on(device: torch.device, frames: FrameBatch, settings: Settings, generator: torch.Generator) -> Batch:
    """What the loader has read, on the device and augmented there by draws of ``generator``.

    ``views.source = image`` crops one picture twice.
    """
    sent = onto(device, frames)
    if settings.views.source == "image":
        sent = FrameBatch(sent.clips_BTHWC, sent.labels_B, sent.first_NTHWC, sent.first_NTHWC)
    return prepare(sent, augmentation(settings.augment), generator, frames.labels_B)


def moved(value: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device; to a GPU from pinned memory, so that the process need not wait for the copy."""
    return value.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else value.to(device)


def _warn_once(words: str) -> None:
    if words not in _warned:
        _warned.add(words)
        log.warning(words)
