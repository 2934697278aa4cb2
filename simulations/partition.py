"""One manifest dealt out to N simulated sites: ordinary ``site.yaml`` files and manifests, as real sites write them."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import yaml

from client.video.rows import Row, check_sides, class_names, hold_out, read_rows, write_rows
from server.keys import write_pair
from spact_models.errors import UserError
from spact_models.seeds import seed_for
from spact_models.settings import SimulationConfig

SITES = "sites"  # in a simulated run's folder: its sites' files


def load_rows(manifest: Path, config: SimulationConfig, seed: int) -> list[Row]:
    """The manifest with every row's split decided: whole sources are held out where it does not say.

    Raises:
        UserError: nothing to train on, or nothing to judge on.
    """
    rows = hold_out(read_rows(manifest, must_exist=False), config.test_share, seed)
    check_sides(manifest, rows)
    return rows


def partition(rows: Sequence[Row], config: SimulationConfig, seed: int) -> list[list[Row]]:
    """Deal rows out to ``config.sites`` sites; every row goes to exactly one.

    ``iid``: shuffled and dealt. ``site``: by the manifest's own column. ``action``: each site draws its action mix
    from Dirichlet(``config.alpha``). ``COLUMN:ALPHA``, such as ``action:0.3`` or ``identity:0.1``: the same with that
    column's values and that concentration. Any other column, such as ``source`` or ``identity``: whole groups, the
    largest first to the site with the fewest rows. Training and test rows are dealt by the same rule; groups stay
    whole in each.

    Raises:
        UserError: an unknown column, a concentration that is not above 0, more sites than groups, or a site without
            training rows.
    """
    rng = np.random.default_rng(seed_for("partition", seed))
    dealt: list[list[Row]] = [[] for _ in range(config.sites)]
    column, alpha = _dirichlet(config)
    if alpha is not None:
        _deal_by_dirichlet(rows, dealt, column, alpha, rng)
    elif config.partition_by == "iid":
        for split in ("train", "test"):
            chosen = [row for row in rows if row.split == split]
            for place, index in enumerate(rng.permutation(len(chosen))):
                dealt[place % config.sites].append(chosen[index])
    else:
        value_of = _value(rows, config.partition_by)
        _deal_groups(rows, dealt, lambda row: value_of(row) or str(row.path), config.partition_by)
    for number, share in enumerate(dealt, start=1):
        if not any(row.split == "train" for row in share):
            raise UserError(
                f"simulation.sites = {config.sites}: site {number} would have no training rows with partition_by = "
                f"{config.partition_by!r}; ask for fewer sites or another partition"
            )
    return dealt


def deal_views(views: Sequence[Row], sites: int, seed: int) -> list[list[Row]]:
    """Videos or images that serve as views only, shuffled and dealt out evenly.

    Raises:
        UserError: fewer than two for a site: a pair of views needs another pair to differ from.
    """
    if len(views) < 2 * sites:
        raise UserError(f"--views holds {len(views)} rows, simulation.sites = {sites} need at least {2 * sites}")
    order = np.random.default_rng(seed_for("views", seed)).permutation(len(views))
    return [[views[index] for index in order[site::sites]] for site in range(sites)]


def write_sites(
    folder: Path,
    shares: Sequence[Sequence[Row]],
    unlabelled_sites: int,
    cache: Path,
    views: Sequence[Sequence[Row]] | None = None,
    keys: bool = False,
) -> list[Path]:
    """Write ``site-1/site.yaml`` and its manifest for each share; the last ``unlabelled_sites`` lose their labels.

    All simulated sites share one decode cache: a video is decoded once, whoever holds its row. ``views`` are each
    site's rows for f_B where they are another source than the clips. With ``keys`` each site gets a key pair and
    everybody's public keys, which secure aggregation needs.

    Returns:
        The site files, in order.
    """
    classes = class_names([row for share in shares for row in share])
    files = []
    for number, share in enumerate(shares, start=1):
        labelled = number <= len(shares) - unlabelled_sites
        home = folder / f"site-{number}"
        home.mkdir(parents=True, exist_ok=True)
        rows = list(share) if labelled else [replace(row, action=None) for row in share]
        write_rows(rows, home / "manifest.csv")
        content: dict[str, object] = {"name": f"site-{number}", "manifest": "manifest.csv", "state": "state"}
        content["cache"] = str(cache.resolve())
        content["allow_outside"] = True  # the videos stay where the whole manifest has them
        if labelled and classes:
            content["classes"] = classes
        if views is not None:
            write_rows(views[number - 1], home / "views.csv")
            content["views_manifest"] = "views.csv"
        if keys:
            (folder / "members").mkdir(exist_ok=True)
            (folder / "members" / f"site-{number}.pub").write_bytes(write_pair(home / "site.key"))
            content["signing_key"], content["member_keys"] = "site.key", "../members"
        file = home / "site.yaml"
        file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        files.append(file.resolve())
    return files


def dealt_sites(run: Path) -> list[Path]:
    """The site files that :func:`write_sites` left in a run's folder, by number; empty: there are none."""
    numbered = {file.parent.name.removeprefix("site-"): file for file in (run / SITES).glob("site-*/site.yaml")}
    return [numbered[number] for number in sorted(filter(str.isdecimal, numbered), key=int)]


def _value(rows: Sequence[Row], name: str) -> Callable[[Row], str | None]:
    """How to read a column of a row; None or empty: not known."""
    if name in ("action", "source", "site"):
        return lambda row: getattr(row, name) or None
    known = sorted({key for row in rows for key in row.attributes})
    if name not in known:
        choices = ", ".join(["iid", "site", "source", "action", *known])
        raise UserError(f"simulation.partition_by = {name!r}, must be one of: {choices}")
    return lambda row: row.attributes.get(name)


def _deal_groups(rows: Sequence[Row], dealt: list[list[Row]], group_of: Callable[[Row], Hashable], column: str) -> None:
    groups: dict[Hashable, list[Row]] = {}
    for row in rows:
        groups.setdefault(group_of(row), []).append(row)
    if len(groups) < len(dealt):
        raise UserError(
            f"simulation.sites = {len(dealt)}: column {column!r} has only {len(groups)} different values; ask for fewer"
        )
    if column == "site":  # the manifest's own sites: by name, as evenly as their number allows
        for place, name in enumerate(sorted(groups, key=str)):
            dealt[place % len(dealt)].extend(groups[name])
        return
    train = {name: sum(row.split == "train" for row in group) for name, group in groups.items()}
    held: Mapping[int, list[int]] = {number: [0, 0] for number in range(len(dealt))}
    for name in sorted(groups, key=lambda key: (-len(groups[key]), str(key))):
        side = 0 if train[name] else 1  # test groups are balanced among themselves, as training groups are
        least = min(held, key=lambda number: held[number][side])
        held[least][side] += len(groups[name])
        dealt[least].extend(groups[name])


def _dirichlet(config: SimulationConfig) -> tuple[str, float | None]:
    """The column and, where each site draws its own mix of that column's values, the concentration.

    Raises:
        UserError: a concentration that is not above 0, or one where there is no column to mix.
    """
    asked = config.partition_by
    column, colon, text = asked.rpartition(":")
    try:
        alpha = float(text)
    except ValueError:
        colon = ""  # a column whose name holds a colon
    if not colon:
        return asked, config.alpha if asked == "action" else None
    if not (math.isfinite(alpha) and alpha > 0):
        raise UserError(f"simulation.partition_by = {asked!r}: the concentration after the colon must be above 0")
    if column in ("", "iid"):
        raise UserError(f"simulation.partition_by = {asked!r}: name the column to mix, for example 'action:{text}'")
    return column, alpha


def _deal_by_dirichlet(
    rows: Sequence[Row], dealt: list[list[Row]], column: str, alpha: float, rng: np.random.Generator
) -> None:
    value_of = _value(rows, column)
    names = sorted({value for row in rows if (value := value_of(row))})
    if not names:
        rule = f"but the manifest names no {column}; use iid or source"
        raise UserError(f"simulation.partition_by = {column!r}, {rule}")
    for name in names:
        mix = rng.dirichlet([alpha] * len(dealt))
        for split in ("train", "test"):
            chosen = [row for row in rows if value_of(row) == name and row.split == split]
            order = rng.permutation(len(chosen))
            cuts = np.floor(np.cumsum(mix)[:-1] * len(chosen)).astype(int)
            for site, part in zip(dealt, np.split(order, cuts), strict=True):
                site.extend(chosen[index] for index in part)
    unknown = [row for row in rows if not value_of(row)]
    for place, index in enumerate(rng.permutation(len(unknown))):
        dealt[place % len(dealt)].append(unknown[index])
