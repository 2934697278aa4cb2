"""An exported f_A at work, without the code that trained it: what feeds a graph its noise, and never twice the same."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spact_models.errors import UserError
from spact_models.export import FORMAT, FORMAT_VERSION, METADATA, SUFFIXES, describe
from spact_models.networks import load_anonymizer
from spact_models.seeds import noise_like, unknown_noise

Run = Callable[..., Tensor]


class Deployed:
    """Any exported file behind one call: clip_BCTHW with ``history`` frames in front -> (B,3,T-history,H,W).

    Noise, where f_A adds it, is drawn here from the operating system's randomness, anew for every call.

    Raises:
        UserError: no exported anonymizer, one of a newer format, or its runtime is not installed.
    """

    def __init__(self, path: Path) -> None:
        form = next((name for name, suffix in SUFFIXES.items() if path.suffix == suffix), None)
        if form is None or not path.is_file():
            raise UserError(f"{path}: no exported anonymizer; fedspact export writes {', '.join(SUFFIXES.values())}")
        self._run = open_graph(path, form)
        self.told = read_metadata(path, form)

    @property
    def history(self) -> int:
        return int(self.told["history_frames"])

    def __call__(self, clip_BCTHW: Tensor) -> Tensor:
        unit = int(self.told["size_multiple_px"])
        batch, _, frames, height, width = clip_BCTHW.shape
        if height % unit or width % unit:
            raise UserError(f"height, width = {height}, {width}, must be multiples of {unit}; bring frames to a size")
        if not self.told["output_noise"]:
            return self._run(clip_BCTHW)
        planes, cell = (1, self.told["output_cell_px"]) if self.told["output_cell_px"] else (3, 1)
        shape = (batch, planes, frames - self.history, height // cell, width // cell)
        with unknown_noise(torch.device("cpu")):
            return self._run(clip_BCTHW, noise_like(torch.empty(shape)))


def open_graph(path: Path, form: str) -> Run:
    """The file's bare graph: (clip) or (clip, noise) -> frames, tensors on the CPU."""
    if form == "onnx":
        return _open_onnx(path)
    if form == "torch-export":
        module = torch.export.load(io.BytesIO(path.read_bytes())).module()

        def run(*inputs: Tensor) -> Tensor:
            with torch.inference_mode():
                frames: Tensor = module(*inputs)
            return frames

        return run
    anonymizer = load_anonymizer(path)[0]

    def call(clip_BCTHW: Tensor, noise: Tensor | None = None) -> Tensor:
        with torch.inference_mode():
            return anonymizer.transform(clip_BCTHW) if noise is None else anonymizer.with_noise(clip_BCTHW, noise)

    return call


def read_metadata(path: Path, form: str) -> dict[str, Any]:
    """Our own entry in the file: see :func:`spact_models.export.describe`."""
    if form == "safetensors":
        return describe(load_anonymizer(path)[0])
    if form == "onnx":
        session = _session(path)
        text = session.get_modelmeta().custom_metadata_map.get(METADATA, "{}")
    else:
        extra = {METADATA: ""}
        torch.export.load(io.BytesIO(path.read_bytes()), extra_files=extra)
        text = extra[METADATA] or "{}"
    told: dict[str, Any] = json.loads(text)
    if told.get("format") != FORMAT:
        raise UserError(f"{path}: not an anonymizer that fedspact exported")
    if told["format_version"] > FORMAT_VERSION:
        raise UserError(f"{path}: format {told['format_version']}, this fedspact reads {FORMAT_VERSION}; upgrade it.")
    return told


def _open_onnx(path: Path) -> Run:
    session = _session(path)
    names = [one.name for one in session.get_inputs()]

    def run(*inputs: Tensor) -> Tensor:
        fed = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        return torch.from_numpy(session.run(None, fed)[0])

    return run


def _session(path: Path) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise UserError(f'{path}: onnxruntime is not installed; pip install "fedspact[export]".') from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(str(path), options, providers=onnxruntime.get_available_providers())
