"""``fedspact export``: a run's anonymizer as a file that others can run, compared with the original, with its card."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

from server.provenance import anonymizer_tensors, described, evidence, now, source, training_summary
from spact_models.errors import UserError
from spact_models.export import SUFFIXES, export, noise_rule
from spact_models.model_card import UNSTATED, Card, weights_sha256, write_card
from spact_models.signing import signature_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``fedspact export``."""
    parser.add_argument("model", type=Path, metavar="RUN_OR_FILE", help="a run folder, or a .safetensors file")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="OUT", help="a file, or a folder to put it in")
    parser.add_argument("--format", choices=SUFFIXES, default="onnx", help="default: %(default)s")
    parser.add_argument("--int8", action="store_true", help="keep weights in 8 bits (onnx and torch-export)")
    parser.add_argument("--licence", default=UNSTATED, metavar="TEXT", help="of the weights, for the model card")
    parser.add_argument("--force", action="store_true", help="replace a file that is there")


def run(args: argparse.Namespace) -> int:
    """Write the file and its card; say how far its answers are from f_A's."""
    path, folder = source(args.model)
    anonymizer, checkpoint = described(path)
    suffix = SUFFIXES[args.format]
    out = args.out / f"anonymizer{suffix}" if args.out.is_dir() else args.out
    _check_out(out, suffix, args.force)
    origin = hashlib.sha256(path.read_bytes()).hexdigest()
    made = export(anonymizer, out, args.format, checkpoint.header, args.int8, source_sha256=origin)
    signature_path(out).unlink(missing_ok=True)  # of the file that was replaced
    found, unjudged = evidence(path, folder)
    told = {"max_difference": made.max_difference, "mean_difference": made.mean_difference, **made.metadata}
    card = Card(
        told,
        weights_sha256(anonymizer_tensors(checkpoint)),
        training_summary(checkpoint.header, folder),
        found,
        unjudged,
        licence=args.licence,
    )
    written = write_card(card, out, now())
    print(f"{out}: {made.bytes:,} bytes; answers differ from the original's by at most {made.max_difference:.2g}")
    print(
        f"(on average {made.mean_difference:.2g}, of values in 0…1); card: {written}, {written.with_suffix('.md').name}"
    )
    if noise_rule(anonymizer) and args.format != "safetensors":
        print(f"This anonymizer needs fresh noise, which whoever runs the graph must feed: {noise_rule(anonymizer)}.")
    return 0


def _check_out(out: Path, suffix: str, force: bool) -> None:
    if out.suffix != suffix:
        raise UserError(f"--out {out}: must end in {suffix} for this --format (or be a folder that is there)")
    if out.exists() and not force:
        raise UserError(f"--out {out}: exists; choose another name, or --force to replace it")
