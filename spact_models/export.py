"""f_A as a file that others can run: safetensors for this program, torch.export and ONNX for any.

A graph draws no noise. A generator inside it would begin from a number in the file, and whoever knows the file could
draw the same noise and take it away. So noise is a second input without a default: a runtime that does not feed it
gets an error and no picture, and frames that come with constant noise (zeros, say) come back black. That the noise is
fresh, from the operating system and never told, no graph can check: :class:`spact_models.deployed.Deployed` sees to it.

Every file is opened again and compared with f_A, on other sizes than it was traced with, before it gets its name.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spact_models.anonymizer import Anonymizer
from spact_models.checkpoint import save_checkpoint
from spact_models.errors import UserError
from spact_models.exchange import ANONYMIZER
from spact_models.files import write_atomically, writing
from spact_models.graph import Graph, noise_planes, rounded, unit_px
from spact_models.networks import BUFFERS, load_anonymizer
from spact_models.seeds import seed_for

SUFFIXES = {"safetensors": ".safetensors", "torch-export": ".pt2", "onnx": ".onnx"}
METADATA = "fedspact"  # the key of our own entry in each format
FORMAT, FORMAT_VERSION = "fedspact-anonymizer", 1
OPSET = 18  # the first in which everything f_A needs is an operator
TOLERANCE = 1e-4  # largest difference of a value in 0…1: a fortieth of an 8-bit step
INT8_TOLERANCE = 0.1  # of rounded weights; what it is stands in the file, and the judge has seen the float weights
FLIPPED_SHARE = 1e-3  # with output_levels a last bit may decide a whole level; of so few values it may
LEAST_NOISE_VALUES = 16  # a frame: with fewer, honest noise would look constant now and then
CHECKED = ((3, 5, 2, 3), (1, 1, 2, 2), (2, 4, 3, 2))  # clips, frames behind history, multiples of the unit
REMEDY = "free some space or name another file"
LEAST_UNITS = 2  # a side: with one, the lowest level is a single pixel, which torch.export takes for a special case


@dataclass(frozen=True)
class Exported:
    """A written file and how far it is from f_A: differences of values in 0…1 over all that was compared."""

    path: Path
    bytes: int
    max_difference: float
    mean_difference: float
    metadata: Mapping[str, Any]


def export(
    anonymizer: Anonymizer, path: Path, form: str, header: Mapping[str, Any], int8: bool = False, **more: object
) -> Exported:
    """Write f_A to ``path``, open it again, compare.

    Args:
        anonymizer: f_A in evaluation mode.
        path: the file; replaced only by a whole one that has passed.
        form: a key of ``SUFFIXES``.
        header: of the checkpoint that it comes from: a safetensors file keeps it but for ``run_dir``.
        int8: keep convolution weights as 8-bit whole numbers, a scale an output channel; the graph computes in float.
        more: further metadata, such as where it comes from.

    Raises:
        UserError: a format or a combination that cannot be, a file that answers otherwise than f_A, or one that cannot
            be written.
    """
    _check_asked(anonymizer, form, int8)
    told: dict[str, Any] = {**describe(anonymizer), "int8": int8, **more}
    if form == "safetensors":
        with writing(path, REMEDY):
            write_atomically(path, lambda temporary: _write_checkpoint(anonymizer, temporary, header, told))
        return Exported(path, path.stat().st_size, 0.0, _check_checkpoint(anonymizer, path), told)
    graph = _traced(Graph(rounded(anonymizer) if int8 else anonymizer), anonymizer)
    write = _write_onnx if form == "onnx" else _write_torch
    found: list[tuple[float, float]] = []

    def write_and_check(temporary: Path) -> None:
        write(graph, temporary, told, int8)
        found.append(compare(anonymizer, temporary, form, int8))
        told.update(max_difference=found[0][0], mean_difference=found[0][1])
        write(graph, temporary, told, int8)

    with writing(path, REMEDY):
        write_atomically(path, write_and_check)
    return Exported(path, path.stat().st_size, *found[0], told)


def describe(anonymizer: Anonymizer) -> dict[str, Any]:
    """What whoever feeds the graph must know; stands in every exported file."""
    config = anonymizer.config
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "input": "clip: float32 (batch, 3, history + frames, height, width), RGB in 0…1",
        "output": "float32 (batch, 3, frames, height, width), RGB in 0…1",
        "noise": noise_rule(anonymizer),
        "kind": config.kind,
        "history_frames": config.history,
        "stride_frames": config.stride_frames,
        "size_px": config.size_px,
        "size_multiple_px": unit_px(anonymizer),
        "least_size_px": LEAST_UNITS * unit_px(anonymizer),
        "output_noise": config.output_noise,
        "output_levels": config.output_levels,
        "output_cell_px": config.output_cell_px,
    }


def noise_rule(anonymizer: Anonymizer) -> str:
    """The contract of the second input, in words; empty where there is none."""
    if not anonymizer.config.output_noise:
        return ""
    planes, cell = noise_planes(anonymizer)
    return (
        f"noise: float32 (batch, {planes}, frames, height / {cell}, width / {cell}), standard normal, drawn anew from "
        "the operating system's randomness for every frame, never kept; frames with constant noise come back black"
    )


def sample(anonymizer: Anonymizer, case: tuple[int, int, int, int]) -> tuple[Tensor, ...]:
    """The inputs of one case of ``CHECKED``: random pictures that drift, and noise where the graph takes it."""
    batch, frames, rows, columns = case
    unit, history = unit_px(anonymizer), anonymizer.history
    height, width = rows * unit, columns * unit
    generator = torch.Generator().manual_seed(seed_for("export", *case))
    still = torch.rand(batch, 3, 1, height, width, generator=generator)
    drift = 0.3 * torch.randn(batch, 3, frames + history, height, width, generator=generator)
    clip_BCTHW = (still + drift).clamp(0.0, 1.0)
    if not anonymizer.config.output_noise:
        return (clip_BCTHW,)
    planes, cell = noise_planes(anonymizer)
    return clip_BCTHW, torch.randn(batch, planes, frames, height // cell, width // cell, generator=generator)


def compare(anonymizer: Anonymizer, path: Path, form: str, int8: bool = False) -> tuple[float, float]:
    """Largest and mean difference between the file's answers and f_A's over ``CHECKED``.

    Raises:
        UserError: above the tolerance.
    """
    from spact_models.deployed import open_graph

    run = open_graph(path, form)
    apart = []
    for case in CHECKED:
        inputs = sample(anonymizer, case)
        with torch.inference_mode():
            expected = Graph(anonymizer)(*inputs)
        apart.append((run(*inputs) - expected).abs().flatten())
    all_apart = torch.cat(apart)
    largest, mean = float(all_apart.max()), float(all_apart.double().mean())
    allowed = INT8_TOLERANCE if int8 else TOLERANCE
    levels = anonymizer.config.output_levels
    few = levels and float((all_apart > allowed).double().mean()) <= FLIPPED_SHARE
    if not (largest <= allowed or (few and largest <= 1 / (levels - 1) + allowed)):
        raise UserError(
            f"{form}{' with 8-bit weights' if int8 else ''}: answers differ from f_A's by {largest:.2g}, must be at "
            f"most {allowed:g}. Nothing is written; use another --format{', or leave out --int8' if int8 else ''}."
        )
    return largest, mean


def _check_asked(anonymizer: Anonymizer, form: str, int8: bool) -> None:
    if form not in SUFFIXES:
        raise UserError(f"--format {form}: no such format, must be one of: {', '.join(SUFFIXES)}")
    if int8 and form == "safetensors":
        raise UserError(
            "--int8 with --format safetensors: whoever reads that file (anonymize, evaluate) takes float weights; "
            "use --format onnx or torch-export."
        )
    config, values = anonymizer.config, math.prod(noise_planes(anonymizer)[:1])
    values *= (config.size_px // noise_planes(anonymizer)[1]) ** 2
    if form != "safetensors" and config.output_noise and values < LEAST_NOISE_VALUES:
        raise UserError(
            f"networks.output_cell_px = {config.output_cell_px} at {config.size_px} px: {values} noise values a frame, "
            f"a graph needs {LEAST_NOISE_VALUES} to tell noise from none. Use --format safetensors."
        )


def _traced(graph: Graph, anonymizer: Anonymizer) -> torch.export.ExportedProgram:
    """The graph, free in batch, length, height and width."""
    from torch.export import Dim
    from torch.fx.experimental import _config

    unit, history = unit_px(anonymizer), anonymizer.history
    batch, frames = Dim("batch", max=4096), Dim("frames", max=4096)
    rows, columns = (Dim(name, min=LEAST_UNITS, max=1024) for name in ("rows", "columns"))
    length = frames + history if history else frames
    shapes: list[dict[int, Any]] = [{0: batch, 2: length, 3: unit * rows, 4: unit * columns}]
    inputs = sample(anonymizer, CHECKED[0])
    if len(inputs) == 2:
        each = unit // noise_planes(anonymizer)[1]
        shapes.append({0: batch, 2: frames, 3: each * rows, 4: each * columns})
    # torch.export takes a size of 1 for a special case and would refuse one frame at a time, which a camera needs
    tracing: Any = _config
    with torch.no_grad(), tracing.patch(backed_size_oblivious=True):
        program = torch.export.export(graph.eval(), inputs, dynamic_shapes=(*shapes,), strict=False)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # would put this machine's paths into the file
    return program


def _write_checkpoint(anonymizer: Anonymizer, path: Path, header: Mapping[str, Any], told: Mapping[str, Any]) -> None:
    tensors: dict[str, Tensor] = {ANONYMIZER + name: value for name, value in anonymizer.named_parameters()}
    tensors |= {f"{BUFFERS}{ANONYMIZER}{name}": value for name, value in anonymizer.named_buffers()}
    settings = {**header["settings"], "run_dir": ""}  # a path of whoever trained it
    save_checkpoint(path, tensors, {**header, "settings": settings, "export": dict(told)})


def _check_checkpoint(anonymizer: Anonymizer, path: Path) -> float:
    """0.0: the file gives f_A back, bit by bit."""
    again = load_anonymizer(path)[0].state_dict()
    for name, value in anonymizer.state_dict().items():
        if not torch.equal(again[name], value.cpu()):
            raise UserError(f"{path}: {name} came back other than it was written. The disk may be bad; write it again.")
    return 0.0


def _write_torch(
    program: torch.export.ExportedProgram,
    path: Path,
    told: Mapping[str, Any],
    int8: bool,  # noqa: ARG001
) -> None:
    held = io.BytesIO()
    torch.export.save(program, held, extra_files={METADATA: json.dumps(told, sort_keys=True)})
    path.write_bytes(held.getbuffer())


def _write_onnx(program: torch.export.ExportedProgram, path: Path, told: Mapping[str, Any], int8: bool) -> None:
    try:
        import onnx
        import onnxscript  # noqa: F401 (torch's exporter needs it)
    except ImportError as error:
        raise UserError(f'--format onnx: {error.name} is not installed; pip install "fedspact[export]".') from None
    # its optimizer would fold 8-bit weights back into floats
    made = torch.onnx.export(program, dynamo=True, opset_version=OPSET, optimize=not int8, verbose=False)
    assert made is not None
    model = made.model_proto
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.initializer, *model.graph.input):
        del part.metadata_props[:]  # type: ignore[attr-defined]  # traces of the source: names of this machine's files, and a third of the bytes
    onnx.helper.set_model_props(model, {METADATA: json.dumps(told, sort_keys=True)})
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
