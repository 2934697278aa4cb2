"""``site.yaml``: what a site says of itself to its own machine. It never travels."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from client.limits import Limits, Refusals, read_section
from spact_models.errors import UserError
from spact_models.nearest import known_names
from spact_models.plain_yaml import read_plain_yaml
from spact_models.rules import require

LONGEST_NAME = 100  # the server takes no longer one
LARGEST_FILE = 64 * 1024  # bytes of a site file; the example has 3,000
PATHS = ("manifest", "videos", "state", "cache", "views_manifest", "signing_key", "member_keys")
NODE_CONFIG_REMEDY = (
    "Start the SuperNode with --node-config \"site='/absolute/path/site.yaml'\" (see client/site.example.yaml)."
)


@dataclass(frozen=True)
class Site:
    """One site: where its videos lie, where its state lives, what it allows."""

    name: str  # shown to the server and in every report
    manifest: Path | None  # CSV with a column ``path`` (fedspact index writes one); None: ``videos`` is given
    state: Path  # f_B, optimizer states, ledger: never leaves this machine
    cache: Path  # decoded frames at working size; `fedspact cache clear` deletes them
    videos: Path | None = None  # a folder instead of a manifest: one folder an action, or files without labels
    views_manifest: Path | None = None  # views from another source, such as VISPR's images; None: the same videos
    classes: tuple[str, ...] = field(default_factory=tuple)  # action names; empty: those in the manifest
    device: str = ""  # auto | cpu | cuda | cuda:N; empty: what the run asks for
    test_share: float = 0.2  # held out by whole sources, where the manifest has no split
    unreadable_share: float = 0.05  # more unreadable videos than this stop the site, with a list
    cache_gib: float = 20.0  # the least recently used videos leave the cache above it
    workers: int = 2  # decoding threads
    allow_outside: bool | tuple[Path, ...] = False  # further folders that videos may lie in; True: anywhere
    signing_key: Path | None = None  # this site's registered key; secure aggregation signs with it
    member_keys: Path | None = None  # a folder with every site's public key, NAME.pub: whom secure aggregation trusts
    root: Path | None = None  # videos lie in it; the site file's own folder, None: the manifest's
    limits: Limits = field(default_factory=Limits)
    refuse: Refusals = field(default_factory=Refusals)

    def __post_init__(self) -> None:
        one = (self.manifest is None) != (self.videos is None)
        require(one, "videos", str(self.videos), "must be given where manifest is not, and only there")
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
        require(1 <= self.workers <= 256, "workers", self.workers, "must be at least 1 and at most 256")

    def may_read(self, path: Path) -> bool:
        """Whether a video lies where this site allows it, links followed."""
        if self.allow_outside is True:
            return True
        home = self.root or (self.manifest or self.videos or self.state).parent
        further = self.allow_outside or ()
        real = Path(os.path.realpath(path))
        return any(real.is_relative_to(os.path.realpath(root)) for root in (home, *further))


def load_site(path: Path) -> Site:
    """Read and check a ``site.yaml``; paths in it are relative to its own folder.

    Raises:
        UserError: naming file, key, value, rule and remedy.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            raise UserError(f"site file {path}: larger than {LARGEST_FILE} bytes; is it a site file at all?")
    except OSError as error:
        raise UserError(f"site file {path}: {error.strerror or error}. {NODE_CONFIG_REMEDY}") from None
    try:
        tree = read_plain_yaml(content)
    except UserError as error:
        raise UserError(f"site file {path}: {error}") from None
    if not isinstance(tree, dict):
        raise UserError(f"site file {path}: must hold keys and values such as `name: clinic-north`")
    try:
        return Site(**_checked(tree, path.resolve().parent))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _checked(tree: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    known = [spec.name for spec in fields(Site) if spec.name != "root"]
    for key in tree:
        if key not in known:
            _unknown(str(key), known)
    if "name" not in tree:
        raise UserError("name is missing; see client/site.example.yaml")
    if ("manifest" in tree) == ("videos" in tree):
        state = "both stand here: keep one" if "videos" in tree else "is missing"
        raise UserError(
            f"manifest (a table of videos) or videos (a folder of them): {state}; see client/site.example.yaml"
        )
    values = {"state": "site-state", "cache": "site-state/cache", **tree}
    return {"root": folder, "manifest": None, **{key: _typed(key, value, folder) for key, value in values.items()}}


def _unknown(key: str, known: Sequence[str]) -> None:
    raise UserError(f"{key}: no such key. {known_names(key, known)}")


def _path(key: str, value: Any, folder: Path) -> Path:
    require(isinstance(value, str) and bool(value) and "\0" not in value, key, value, "must be a path")
    try:
        return folder / Path(value).expanduser()
    except RuntimeError:  # `~name` of a user that this machine does not have
        raise UserError(f"{key} = {value!r}, must be a path; no such home folder") from None


def _typed(key: str, value: Any, folder: Path) -> Any:
    if key in PATHS:
        return _path(key, value, folder)
    if key in ("limits", "refuse"):
        return read_section(Limits if key == "limits" else Refusals, key, value, _unknown)
    if key == "allow_outside":
        require(isinstance(value, bool | list), key, value, "must be true, false or a list of folders")
        return value if isinstance(value, bool) else tuple(_path(key, entry, folder) for entry in value)
    if key == "classes":
        fine = isinstance(value, list) and all(isinstance(name, str) for name in value)
        require(fine, key, value, "must be a list of action names, in quotes where YAML would read yes/no or a number")
        return tuple(value)
    if key in ("name", "device"):
        require(isinstance(value, str), key, value, "must be a text; put it in quotes")
        return value
    number = isinstance(value, int if key == "workers" else int | float) and not isinstance(value, bool)
    require(
        number and not (isinstance(value, int) and abs(value) > 2**53),
        key,
        value,
        "must be a whole number" if key == "workers" else "must be a number",
    )
    return value if key == "workers" else float(value)
