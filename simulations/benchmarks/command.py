"""``fedspact bench``: measure, print, keep, compare with what was kept."""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from simulations.benchmarks.measured import Record, Row, Spread
from spact_models.errors import RunStopped, UserError
from spact_models.files import BY_UMASK, check_writable, write_file
from spact_models.nearest import nearest

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
    "federation-serial": ("federation.measure_serial", "4 sites one after the other against pooled training"),
    "sites-at-once": ("federation.measure_at_once", "sites side by side on the cores"),
    "federation-ray": ("federation.measure_ray", "4 sites on Flower's Ray runtime against in one process"),
    "sites-100": ("federation.measure_100", "memory of 100 sites"),
    "aggregation": ("wire.measure_aggregation_speed", "the server's mean against a bare addition"),
    "aggregation-memory": ("wire.measure_aggregation_memory", "64 sites against 4"),
    "wire": ("wire.measure_wire", "bytes of an update"),
    "slow-link": ("link_rows.measure_slow_link", "bytes counted on the links, one of them slow"),
    "anonymise": ("product.measure_anonymise", "a file, against real time"),
    "serve": ("product.measure_serve", "cameras held, and their latency"),
    "start-up": ("product.measure_start_up", "fedspact --help"),
    "demo": ("product.measure_demo", "fedspact demo; only when named"),
}
ONLY_WHEN_NAMED = ("demo",)
ROWS = {  # rows of another name than their benchmark's: these names are understood too
    "step-memory": "step-fp32",
    "step-24gb": "step-fp32",
    "feed-ahead": "feed",
    "aggregation-float32": "aggregation",
    "aggregation-float16": "aggregation",
    "aggregation-int8": "aggregation",
    "wire-float16": "wire",
    "wire-int8": "wire",
    "wire-subset": "wire",
    "slow-link-over": "slow-link",
    "anonymise-720p": "anonymise",
}
PROFILED = {"step-fp32": "fp32", "step-bf16": "bf16"}  # what --profile can look into, and its precision
BEGIN, END = "<!-- fedspact bench --table: begins -->\n", "<!-- fedspact bench --table: ends -->\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``fedspact bench``."""
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="which, by its own or a row's name (default: all but the demo)")
    add("--list", action="store_true", help="name the benchmarks and leave")
    add("--quick", action="store_true", help="small sizes: whether it runs, not how fast it is")
    add("--repeats", type=int, default=5, help="pairs of timings (%(default)s)")
    add("--json", type=Path, metavar="FILE", help="write the rows there (these alone, in place of what it held)")
    add("--markdown", action="store_true", help="print the rows as a Markdown table, too")
    add("--against", type=Path, metavar="FILE", help="status 1 when a row fell behind one kept with --json")
    add("--profile", action="store_true", help="print where a step's time goes instead (step-fp32, step-bf16)")
    add("--table", type=Path, metavar="FILE", help="print the table of the rows kept there instead")
    add("--into", type=Path, metavar="PAGE", help="with --table: write it into this page, between its two marks")


def run(args: argparse.Namespace) -> int:
    """Status 1 when ``--against`` finds a regression; a missed target is told and is no error."""
    if args.list:
        width = max(map(len, BENCHMARKS))
        print("\n".join(f"{name:<{width}}  {about}" for name, (_, about) in BENCHMARKS.items()))
        return 0
    names = checked_names(args.names)
    if args.repeats < 1:
        raise UserError(f"--repeats {args.repeats}: must be at least 1")
    if args.table is not None:
        return _show_table(args)
    if args.into is not None:
        raise UserError(f"--into {args.into}: goes with --table FILE, which names the kept rows")
    if args.profile:
        return _show_profile(args)
    kept = None if args.against is None else read_rows(args.against, args.quick)
    if args.json is not None:
        check_writable(args.json, "--json", "bench.json")
    records: list[Record] = []
    failed = []
    with tqdm(names, desc="bench", unit="benchmark", disable=None) as bar:
        for name in bar:
            bar.set_postfix_str(name)
            try:
                for row in _benchmark(name)(args.quick, args.repeats, bar.refresh):
                    records.append(Record.taken(row))
                    tqdm.write(line_of(row))
                    if args.json is not None:  # what an interruption leaves is whole
                        write_rows(args.json, records, args.quick)
            except (RunStopped, torch.OutOfMemoryError) as error:  # the others have their say
                failed.append(name)
                tqdm.write(f"{name}: failed: {str(error).splitlines()[0]}")
    if args.markdown:
        print("\n" + markdown(records))
    worse = 0 if kept is None else _compare(records, kept, args.against)
    return 1 if failed else worse


def _show_table(args: argparse.Namespace) -> int:
    """The table of a kept file, printed or written into a page; nothing is measured."""
    _refuse_beside("--table", args, ("names", "quick", "json", "markdown", "against", "profile"))
    table = markdown(list(read_rows(args.table, None, "--table").values()))
    if args.into is None:
        print(table)
        return 0
    try:
        page = args.into.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--into {args.into}: cannot be read ({error}); name a Markdown page") from None
    before, began, rest = page.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not began or not ended:
        marks = f"{BEGIN.strip()} and {END.strip()}"
        raise UserError(f"--into {args.into}: lacks the table's two marks; put the lines {marks} where it belongs")
    write_file(args.into, f"{before}{began}\n{table}\n\n{ended}{after}", "name another page", "--into", BY_UMASK)
    return 0


def _show_profile(args: argparse.Namespace) -> int:
    """Where a step's time goes, in each precision that was named; nothing is measured beside it."""
    _refuse_beside("--profile", args, ("json", "markdown", "against"))
    others = [name for name in args.names if name not in PROFILED]
    if others:
        raise UserError(f"--profile {others[0]}: looks into a step alone; name {' or '.join(PROFILED)}")
    from simulations.benchmarks.profile import profiled

    for name in checked_names(args.names) if args.names else ["step-fp32"]:
        print(f"{name}\n\n{profiled(args.quick, PROFILED[name])}")
    return 0


def _refuse_beside(flag: str, args: argparse.Namespace, others: Sequence[str]) -> None:
    for name in others:
        if getattr(args, name):
            said = args.names[0] if name == "names" else f"--{name}"
            raise UserError(f"{flag}: measures no row, {said} would be ignored; leave one of the two out")


def checked_names(names: Sequence[str]) -> list[str]:
    """Those asked for, in the table's order; none asked for: all but those that must be named.

    A row's name stands for the benchmark that gives the row.

    Raises:
        UserError: an unknown one; the nearest is named.
    """
    asked = {ROWS.get(name, name) for name in names}
    for name in names:
        if ROWS.get(name, name) not in BENCHMARKS:
            near = nearest(name, [*BENCHMARKS, *ROWS])
            said = f"The nearest is {near}; " if near else ""
            raise UserError(f"{name}: no such benchmark. {said}--list names them all")
    return [name for name in BENCHMARKS if name in asked or (not asked and name not in ONLY_WHEN_NAMED)]


def _benchmark(name: str) -> Benchmark:
    module, _, function = BENCHMARKS[name][0].partition(".")
    found: Benchmark = getattr(importlib.import_module(f"simulations.benchmarks.{module}"), function)
    return found


def line_of(row: Row) -> str:
    """For the terminal."""
    twin = "" if row.twin is None else f", twin {_spread(row.twin)} {row.unit}"
    twin += "" if row.ratio is None else f", ratio {_spread(row.ratio)}"
    note = f"  ({row.note})" if row.note else ""
    return f"{row.name}: {_spread(row.ours)} {row.unit}{twin}; {_verdict(row)}{note}"


def _verdict(row: Row) -> str:
    if row.target is None:
        return "no target"
    return f"target {row.rule} {row.target:.3g}: {'met' if row.met else 'missed'}"


def markdown(records: Sequence[Record]) -> str:
    """The table of docs/performance.md, and below it how often each row was measured and on what."""
    lines = ["| benchmark | ours | twin | ratio | target | |", "|---|---|---|---|---|---|"]
    for row in (record.row for record in records):
        twin = "–" if row.twin is None else f"{_spread(row.twin)} {row.unit}"
        ratio = "–" if row.ratio is None else _spread(row.ratio)
        target = "–" if row.target is None else f"{'≥' if row.rule == 'at least' else '≤'} {row.target:.3g}"
        what = f"**{row.name}**: {row.what}" + (f" ({row.note})" if row.note else "")
        verdict = "–" if row.met is None else "met" if row.met else "missed"
        lines.append(f"| {what} | {_spread(row.ours)} {row.unit} | {twin} | {ratio} | {target} | {verdict} |")
    return "\n".join([*lines, "", *_below(records)])


def _below(records: Sequence[Record]) -> list[str]:
    """One line on the repeats, and one for each machine; a load is the range of what the rows found."""
    names: dict[int, list[str]] = {}
    machines: dict[str, list[Record]] = {}
    for record in records:
        names.setdefault(record.row.ours.repeats, []).append(record.row.name)
        machines.setdefault(_machine_line(record.machine), []).append(record)
    usual = max(names, key=lambda count: len(names[count]), default=0)
    others = [f"{count} for {', '.join(names[count])}" for count in sorted(names, reverse=True) if count != usual]
    lines = [f"Repeats: {usual}{'; ' if others else ''}{'; '.join(others)}."]
    for told, of in machines.items():
        loads = [record.machine["load"] for record in of if record.machine.get("load") is not None]
        load = "; load " + " to ".join(dict.fromkeys((f"{min(loads):g}", f"{max(loads):g}"))) if loads else ""
        rows = "" if len(machines) == 1 else f" ({', '.join(record.row.name for record in of)})"
        lines.append(f"{told}{load}{rows}.")
    return lines


def _machine_line(here: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in here["versions"].items())
    gpu = f", {here['gpu']}" if here.get("gpu") else ""
    cpu = f"{here.get('cores')} cores {here.get('cpu')} ({here.get('capability')})"
    return f"{cpu}, {here.get('threads')} threads{gpu}; {versions}"


def write_rows(path: Path, records: Sequence[Record], quick: bool) -> None:
    """Keep the rows, each with its machine.

    Raises:
        UserError: it cannot be written.
    """
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "quick": quick,
        "rows": [record.to_json() for record in records],
    }
    text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    write_file(path, text, "free some space or name another file", flag="--json")


def read_rows(path: Path, quick: bool | None, flag: str = "--against") -> dict[str, Record]:
    """Kept rows by name.

    Args:
        path: what --json has written.
        quick: whether it must be measured with --quick; None: it does not matter.
        flag: the option that names it, for the messages.

    Raises:
        UserError: no such file, not one of ours or of another version, of other sizes (``quick``), without rows or with
            a row that lacks something or holds what is no number.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{flag} {path}: cannot be read ({error.strerror}); name a file that --json wrote") from None
    except ValueError:
        content = None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{flag} {path}: not written by `fedspact bench --json`; name such a file")
    if content.get("format_version") != FORMAT_VERSION:
        found = content.get("format_version")
        raise UserError(f"{flag} {path}: format_version = {found}, must be {FORMAT_VERSION}; measure anew")
    if quick is not None and bool(content.get("quick")) != quick:
        how = "with" if content.get("quick") else "without"
        raise UserError(f"{flag} {path}: was measured {how} --quick; measure the same way")
    rows = content.get("rows")
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{flag} {path}: holds no rows, there is nothing to compare or to show; measure anew")
    try:
        return {row["name"]: Record.from_json(row) for row in rows}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{flag} {path}: a row is incomplete or wrong ({error}); measure anew") from None


def _compare(records: Sequence[Record], kept: Mapping[str, Record], path: Path) -> int:
    """Say which rows fell behind; status 1 when one did, or when there was none to compare."""
    told = [record for record in records if record.row.name in kept and record.row.compared_by is None]
    fit = [record for record in records if record.row.name in kept and record.row.compared_by is not None]
    worse = [record for record in fit if record.row.worse_than(kept[record.row.name].row)]
    missing = [record.row.name for record in records if record.row.name not in kept]
    for record in worse:
        row, before = record.row, kept[record.row.name]
        other = "" if _kind(before.machine) == _kind(record.machine) else f", on {before.machine.get('cpu')}"
        print(f"regression: {row.name}: {row.judged:.3g}, kept was {before.row.judged:.3g}{other}; {_verdict(row)}")
    if missing:
        print(f"not in {path}: {', '.join(missing)}")
    if told:
        print(f"without a ratio or a target, not compared: {', '.join(record.row.name for record in told)}")
    if not fit:
        print(f"nothing to compare with {path}: it holds none of these rows")
    elif not worse:
        print(f"no regression against {path} in {len(fit)} rows")
    return 1 if worse or not fit else 0


def _kind(here: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(here.get(name) for name in ("cpu", "cores", "capability", "gpu"))


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return "–"
    if spread.low == spread.high:
        return f"{spread.median:.3g}"
    return f"{spread.median:.3g} [{spread.low:.3g}, {spread.high:.3g}]"
