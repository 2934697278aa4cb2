"""``fedspact bench``: measure, print, keep, compare with what was kept."""

from __future__ import annotations

import argparse
import difflib
import importlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from simulations.benchmarks.measured import Row, Spread, machine
from spact_models.checkpoint import write_atomically
from spact_models.errors import RunStopped, UserError

FORMAT, FORMAT_VERSION = "fedspact-bench", 1
Benchmark = Callable[[bool, int, Callable[[], object]], Iterator[Row]]
BENCHMARKS = {  # name: where, and what it is about; modules are imported when they are asked for
    "step-fp32": ("step.measure_fp32", "both moves of the game, float32"),
    "step-bf16": ("step.measure_bf16", "both moves, bf16 autocast"),
    "decode": ("input.measure_decode", "the first epoch against decoding alone"),
    "loader": ("input.measure_loader", "later epochs against decoding anew"),
    "feed": ("input.measure_feed", "steps with the loader against steps without"),
    "federation-4": ("federation.measure_4", "4 sites in one process against pooled training"),
    "federation-16": ("federation.measure_16", "16 sites"),
    "sites-at-once": ("federation.measure_at_once", "sites side by side on the cores"),
    "federation-ray": ("federation.measure_ray", "4 sites on Flower's Ray runtime against in one process"),
    "sites-100": ("federation.measure_100", "memory of 100 sites"),
    "aggregation": ("wire.measure_aggregation_speed", "the server's mean against a bare addition"),
    "aggregation-memory": ("wire.measure_aggregation_memory", "64 sites against 4"),
    "wire": ("wire.measure_wire", "bytes of an update"),
    "anonymise": ("product.measure_anonymise", "a file, against real time"),
    "serve": ("product.measure_serve", "cameras held, and their latency"),
    "start-up": ("product.measure_start_up", "fedspact --help"),
    "demo": ("product.measure_demo", "fedspact demo; only when named"),
}
ONLY_WHEN_NAMED = ("demo",)
SIZES = ("MB", "GiB", "models", "% of float32")  # units that say the same on every machine


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``fedspact bench``."""
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="which (default: all but the demo); --list names them")
    add("--list", action="store_true", help="name the benchmarks and leave")
    add("--quick", action="store_true", help="small sizes: whether it runs, not how fast it is")
    add("--repeats", type=int, default=5, help="pairs of timings (%(default)s)")
    add("--json", type=Path, metavar="FILE", help="write the rows there (these alone, in place of what it held)")
    add("--markdown", action="store_true", help="print the table as Markdown, for docs/results.md")
    add("--against", type=Path, metavar="FILE", help="status 1 when a ratio fell behind one kept with --json")
    add("--profile", action="store_true", help="print where the step's time goes instead")


def run(args: argparse.Namespace) -> int:
    """Status 1 when ``--against`` finds a regression; a missed target is told and is no error."""
    if args.list:
        width = max(map(len, BENCHMARKS))
        print("\n".join(f"{name:<{width}}  {about}" for name, (_, about) in BENCHMARKS.items()))
        return 0
    names = checked_names(args.names)
    if args.repeats < 1:
        raise UserError(f"--repeats {args.repeats}: must be at least 1")
    kept = None if args.against is None else read_rows(args.against, args.quick)
    if args.json is not None and not os.access(args.json.absolute().parent, os.W_OK):
        raise UserError(f"--json {args.json}: cannot be written there; name a file in a folder that exists")
    if args.profile:
        from simulations.benchmarks.profile import profiled

        print(profiled(args.quick))
        return 0
    rows, failed = [], []
    with tqdm(names, desc="bench", unit="benchmark", disable=None) as bar:
        for name in bar:
            bar.set_postfix_str(name)
            try:
                for row in _benchmark(name)(args.quick, args.repeats, bar.refresh):
                    rows.append(row)
                    tqdm.write(line_of(row))
                    if args.json is not None:  # what an interruption leaves is whole
                        write_rows(args.json, rows, args)
            except (RunStopped, torch.OutOfMemoryError) as error:  # the others have their say
                failed.append(name)
                tqdm.write(f"{name}: failed: {str(error).splitlines()[0]}")
    if args.markdown:
        print("\n" + markdown(rows))
    worse = 0 if kept is None else _compare(rows, kept, args.against)
    return 1 if failed else worse


def checked_names(names: Sequence[str]) -> list[str]:
    """Those asked for, in the table's order; none asked for: all but those that must be named.

    Raises:
        UserError: an unknown one; the nearest is named.
    """
    for name in names:
        if name not in BENCHMARKS:
            near = difflib.get_close_matches(name, BENCHMARKS, n=1, cutoff=0.0)[0]
            raise UserError(f"{name}: no such benchmark. The nearest is {near}; --list names them all")
    return [name for name in BENCHMARKS if name in names or (not names and name not in ONLY_WHEN_NAMED)]


def _benchmark(name: str) -> Benchmark:
    module, _, function = BENCHMARKS[name][0].partition(".")
    found: Benchmark = getattr(importlib.import_module(f"simulations.benchmarks.{module}"), function)
    return found


def line_of(row: Row) -> str:
    """For the terminal."""
    twin = "" if row.twin is None else f", twin {_spread(row.twin)} {row.unit}, ratio {_spread(row.ratio)}"
    note = f"  ({row.note})" if row.note else ""
    return f"{row.name}: {_spread(row.ours)} {row.unit}{twin}; {_verdict(row)}{note}"


def _verdict(row: Row) -> str:
    if row.target is None:
        return "no target"
    return f"target {row.rule} {row.target:.3g}: {'met' if row.met else 'missed'}"


def markdown(rows: Sequence[Row]) -> str:
    """The table for docs/results.md, and the machine below it."""
    lines = ["| benchmark | ours | twin | ratio | target | |", "|---|---|---|---|---|---|"]
    for row in rows:
        twin = "–" if row.twin is None else f"{_spread(row.twin)} {row.unit}"
        ratio = "–" if row.ratio is None else _spread(row.ratio)
        target = "–" if row.target is None else f"{'≥' if row.rule == 'at least' else '≤'} {row.target:.3g}"
        what = f"**{row.name}**: {row.what}" + (f" ({row.note})" if row.note else "")
        verdict = "–" if row.met is None else "met" if row.met else "missed"
        lines.append(f"| {what} | {_spread(row.ours)} {row.unit} | {twin} | {ratio} | {target} | {verdict} |")
    here = machine()
    versions = ", ".join(f"{name} {version}" for name, version in here["versions"].items())
    lines += ["", f"{here['cores']} cores {here['cpu']} ({here['capability']}), {here['threads']} threads; {versions}."]
    return "\n".join(lines)


def write_rows(path: Path, rows: Sequence[Row], args: argparse.Namespace) -> None:
    """Keep the rows with the machine beside each.

    Raises:
        UserError: it cannot be written.
    """
    here = machine()
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "quick": args.quick,
        "repeats": args.repeats,
        "rows": [{**row.to_json(), "machine": here} for row in rows],
    }
    text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    try:
        write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--json {path}: cannot be written ({error.strerror}); name another file") from error


def read_rows(path: Path, quick: bool) -> Mapping[str, Any]:
    """Kept rows by name.

    Raises:
        UserError: no such file, not one of ours or of another version, or of other sizes (``quick``).
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--against {path}: cannot be read ({error.strerror})") from None
    except ValueError:
        content = None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"--against {path}: not written by `fedspact bench --json`; name such a file")
    if content.get("format_version") != FORMAT_VERSION:
        found = content.get("format_version")
        raise UserError(f"--against {path}: format_version = {found}, must be {FORMAT_VERSION}; measure anew")
    if bool(content.get("quick")) != quick:
        how = "with" if content.get("quick") else "without"
        raise UserError(f"--against {path}: was measured {how} --quick; measure the same way")
    try:
        return {row["name"]: {"judged": float(row["judged"]), "machine": row["machine"]} for row in content["rows"]}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"--against {path}: a row is incomplete ({error}); measure anew") from None


def _compare(rows: Sequence[Row], kept: Mapping[str, Any], path: Path) -> int:
    """Ratios, and sizes. Times and speeds without a ratio are compared on one kind of machine alone."""
    here = _kind(machine())
    elsewhere = [
        row.name
        for row in rows
        if row.name in kept and row.ratio is None and row.unit not in SIZES and _kind(kept[row.name]["machine"]) != here
    ]
    fit = [row for row in rows if row.name in kept and row.name not in elsewhere]
    worse = [row for row in fit if row.worse_than(kept[row.name]["judged"])]
    missing = [row.name for row in rows if row.name not in kept]
    for row in worse:
        print(f"regression: {row.name}: {row.judged:.3g}, kept was {kept[row.name]['judged']:.3g}")
    if missing:
        print(f"not in {path}: {', '.join(missing)}")
    if elsewhere:
        print(f"of another machine, without a ratio: {', '.join(elsewhere)}")
    if not worse:
        print(f"no regression against {path} in {len(fit)} rows")
    return 1 if worse else 0


def _kind(here: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(here.get(name) for name in ("cpu", "cores", "capability", "gpu"))


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return "–"
    if spread.low == spread.high:
        return f"{spread.median:.3g}"
    return f"{spread.median:.3g} [{spread.low:.3g}, {spread.high:.3g}]"
