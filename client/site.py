"""``site.yaml``: what a site says of itself to its own machine. It never travels."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from spact_models.errors import UserError
from spact_models.settings import require

LONGEST_NAME = 100  # the server takes no longer one
NODE_CONFIG_REMEDY = (
    "Start the SuperNode with --node-config \"site='/absolute/path/site.yaml'\" (see client/site.example.yaml)."
)


@dataclass(frozen=True)
class Site:
    """One site: where its videos lie, where its state lives, what it allows."""

    name: str  # shown to the server and in every report
    manifest: Path  # CSV with a column ``path`` (fedspact index writes one)
    state: Path  # f_B, optimizer states, ledger: never leaves this machine
    cache: Path  # decoded frames at working size; `fedspact cache clear` deletes them
    views_manifest: Path | None = None  # views from another source, such as VISPR's images; None: the same videos
    classes: tuple[str, ...] = field(default_factory=tuple)  # action names; empty: those in the manifest
    device: str = ""  # auto | cpu | cuda | cuda:N; empty: what the run asks for
    test_share: float = 0.2  # held out by whole sources, where the manifest has no split
    unreadable_share: float = 0.05  # more unreadable videos than this stop the site, with a list
    cache_gib: float = 20.0  # the least recently used videos leave the cache above it
    workers: int = 2  # decoding threads

    def __post_init__(self) -> None:
        require(
            0 < len(self.name.strip()) <= LONGEST_NAME, "name", self.name, f"must be 1 to {LONGEST_NAME} characters"
        )
        known = re.fullmatch(r"(auto|cpu|cuda(:\d+)?)?", self.device) is not None
        require(known, "device", self.device, "must be auto, cpu, cuda or cuda:N")
        require(all(self.classes), "classes", list(self.classes), "must not hold an empty name")
        require(len(set(self.classes)) == len(self.classes), "classes", list(self.classes), "names an action twice")
        require(0 < self.test_share < 1, "test_share", self.test_share, "must be between 0 and 1")
        require(0 <= self.unreadable_share <= 1, "unreadable_share", self.unreadable_share, "must be from 0 to 1")
        require(0 < self.cache_gib < math.inf, "cache_gib", self.cache_gib, "must be above 0")
        require(self.workers >= 1, "workers", self.workers, "must be at least 1")


def load_site(path: Path) -> Site:
    """Read and check a ``site.yaml``; paths in it are relative to its own folder.

    Raises:
        UserError: naming file, key, value, rule and remedy.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"site file {path}: {error.strerror or error}. {NODE_CONFIG_REMEDY}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"site file {path}: not valid YAML ({error}).") from None
    if not isinstance(tree, dict):
        raise UserError(f"site file {path}: must hold keys and values such as `name: clinic-north`")
    try:
        return Site(**_checked(tree, path.resolve().parent))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _checked(tree: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    known = [spec.name for spec in fields(Site)]
    for key in tree:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)[0]
            raise UserError(f"{key}: no such key. The nearest known one is {near!r}.")
    for key in ("name", "manifest"):
        if key not in tree:
            raise UserError(f"{key} is missing; see client/site.example.yaml")
    values = {"state": "site-state", "cache": "site-state/cache", **tree}
    return {key: _typed(key, value, folder) for key, value in values.items()}


def _typed(key: str, value: Any, folder: Path) -> Any:
    if key in ("manifest", "state", "cache", "views_manifest"):
        require(isinstance(value, str) and bool(value), key, value, "must be a path")
        try:
            return folder / Path(value).expanduser()
        except RuntimeError:  # `~name` of a user that this machine does not have
            raise UserError(f"{key} = {value!r}, must be a path; no such home folder") from None
    if key == "classes":
        fine = isinstance(value, list) and all(isinstance(name, str) for name in value)
        require(fine, key, value, "must be a list of action names, in quotes where YAML would read yes/no or a number")
        return tuple(value)
    if key in ("name", "device"):
        require(isinstance(value, str), key, value, "must be a text; put it in quotes")
        return value
    number = isinstance(value, int if key == "workers" else int | float) and not isinstance(value, bool)
    require(number, key, value, "must be a whole number" if key == "workers" else "must be a number")
    return value if key == "workers" else float(value)
