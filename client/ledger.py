"""The ledger read back: every line that the door wrote, and whether it still says what it must."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

LONGEST_LINE = 16 * 2**20  # characters; a line names every array of an update, some 100 bytes each
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Ledger:
    """One federation's ledger at this site."""

    file: Path
    entries: list[dict[str, Any]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)  # one a line that is not as the door writes it

    @property
    def federation(self) -> str:
        return self.file.parent.name


def read_ledgers(state: Path) -> list[Ledger]:
    """All ledgers below a site's state folder, by federation; an empty list when nothing has left yet."""
    return [read_ledger(file) for file in sorted(state.glob("*/ledger.jsonl"))]


def read_ledger(file: Path) -> Ledger:
    """Every line, and a fault for each that is cut off, changed by hand or does not add up."""
    ledger = Ledger(file)
    with file.open("rb") as lines:
        for number in range(1, 2**62):
            line = lines.readline(LONGEST_LINE)
            if not line:
                break
            entry, fault = _entry(line)
            if fault:
                ledger.faults.append(f"line {number}: {fault}")
            else:
                ledger.entries.append(entry)
    return ledger


def _entry(line: bytes) -> tuple[dict[str, Any], str]:
    if not line.endswith(b"\n"):
        return {}, "cut off"
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return {}, "not JSON"
    if not isinstance(entry, dict) or not isinstance(entry.get("time"), str):
        return {}, "holds no entry with a time"
    return entry, _fault(entry) if "arrays" in entry else ""


def _fault(entry: Mapping[str, Any]) -> str:
    """What is wrong with an entry about arrays; empty when it adds up."""
    arrays = entry["arrays"]
    if not isinstance(entry.get("sha256"), str) or SHA256.fullmatch(entry["sha256"]) is None:
        return "sha256 is no SHA-256"
    if not isinstance(entry.get("round"), int) or not isinstance(arrays, dict):
        return "round or arrays are missing"
    try:
        total = sum(np.dtype(kind).itemsize * math.prod(map(int, shape)) for kind, *shape in arrays.values())
    except (TypeError, ValueError):
        return "arrays are not name -> [type, *shape]"
    if total != entry.get("bytes"):
        return f"bytes = {entry.get('bytes')!r}, the shapes say {total}"
    return ""


def table(ledger: Ledger) -> list[str]:
    """One federation's entries for a terminal: a line each, newest last."""
    lines = [f"federation {ledger.federation}   {ledger.file}"]
    lines += [f"  {_described(entry)}" for entry in ledger.entries]
    sent = [entry for entry in ledger.entries if "arrays" in entry]
    total = sum(entry["bytes"] for entry in sent)
    lines.append(f"  {len(sent)} updates, {total:,} bytes; {len(ledger.entries) - len(sent)} other entries")
    names = sorted({name for entry in sent for name in entry["arrays"]})
    prefixes = sorted({name.partition(".")[0] for name in names})
    lines.append(f"  arrays: {len(names)} names, all of: {', '.join(prefixes) or 'none'} (--json lists them)")
    return lines + [f"  FAULT {fault}" for fault in ledger.faults]


def _described(entry: Mapping[str, Any]) -> str:
    when = f"{entry['time']!s:.20}"
    if "arrays" in entry:
        shown = f"round {entry['round']:>4}  {len(entry['arrays']):>4} arrays  {entry['bytes']:>12,} bytes"
        masked = "  masked" if entry.get("masked") else ""
        return f"{when}  {shown}  sha256 {entry['sha256'][:16]}…{masked}"
    figures = entry.get("figures")
    told = f"  figures: {', '.join(map(str, figures))}" if isinstance(figures, dict) else ""
    size = f"  {entry['bytes']:,} bytes" if isinstance(entry.get("bytes"), int) else ""
    number = f"round {entry['round']:>4}  " if isinstance(entry.get("round"), int) else ""
    return f"{when}  {number}{entry.get('kind', 'entry')!s:.40}{told}{size}"
