"""A site's rows, ready to be played: read, held out, decoded into the cache, the unreadable counted and named."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from client.site import Site
from client.video.cache import FrameCache, Unreadable, check_share
from client.video.folders import read_folders
from client.video.loader import ClipLoader
from client.video.rows import Row, class_names, hold_out, read_rows
from spact_models.errors import UserError
from spact_models.settings import Settings

log = logging.getLogger("fedspact.site")


@dataclass(frozen=True)
class Footage:
    """What a site can train and test on, and what it could not read."""

    train: list[Row]
    test: list[Row]
    views: list[Row] | None  # None: the training videos serve as views
    cache: FrameCache
    unreadable: list[Unreadable]

    def loader(self, settings: Settings, classes: Sequence[str], lead_in_frames: int) -> ClipLoader:
        """Batches of the training rows for these settings."""
        return ClipLoader(
            self.train,
            classes,
            self.cache,
            settings.clip,
            settings.batch,
            lead_in_frames,
            view_rows=self.views,
            view_frames=settings.views.frames,
        )


def declared_classes(site: Site) -> list[str]:
    """The site's action names: its own list, or those in its manifest. Empty: it has no labels."""
    return sorted(site.classes) or class_names(site_rows(site))


def site_rows(site: Site) -> list[Row]:
    """The rows of the manifest, or of the folder that stands in its place.

    Raises:
        UserError: the manifest is broken, or a path leaves the folders that the site allows.
    """
    if site.manifest is not None:
        return confined(site, read_rows(site.manifest, must_exist=False), site.manifest)
    assert site.videos is not None  # Site has one of the two
    return confined(site, read_folders(site.videos).rows, site.videos)


def confined(site: Site, rows: list[Row], origin: Path) -> list[Row]:
    """The rows, after a look that each lies where the site allows it, links followed.

    Raises:
        UserError: naming the first path that does not, and how many there are.
    """
    outside = [row.path for row in rows if not site.may_read(row.path)]
    if outside:
        raise UserError(
            f"{origin}: path = {str(outside[0])!r} ({len(outside)} of {len(rows)} rows) lies outside of the "
            "site's folder; move the videos, or name theirs in site.yaml, allow_outside: [/a/folder] (true: anywhere)"
        )
    return rows


def split_rows(site: Site) -> tuple[list[Row], list[Row]]:
    """Training and held-out rows of the manifest, without touching a video."""
    rows = hold_out(site_rows(site), site.test_share, seed=0)
    return [row for row in rows if row.split == "train"], [row for row in rows if row.split == "test"]


def view_rows(site: Site) -> list[Row] | None:
    """The rows that views are taken from where they are of another source; None: the training videos serve as views.

    Held-out pictures of that source stay out of training as well.

    Raises:
        UserError: ``views_manifest`` is broken, or a path leaves the folders that the site allows.
    """
    if site.views_manifest is None:
        return None
    rows = confined(site, read_rows(site.views_manifest, must_exist=False), site.views_manifest)
    return [row for row in rows if row.split != "test"]


def open_footage(site: Site, settings: Settings, with_test: bool = False) -> Footage:
    """Decode what is not in the cache yet and drop what cannot be read, each with its reason in the log.

    Raises:
        UserError: no training rows, or more than ``unreadable_share`` of the videos cannot be read (with a list).
    """
    train, test = split_rows(site)
    if not train:
        raise UserError(f"{site.manifest or site.videos}: no training rows; give it rows whose split is train or empty")
    views = view_rows(site)
    cache = FrameCache(site.cache, settings.clip.size_px, site.cache_gib)
    wanted = [*train, *(test if with_test else []), *(views or [])]
    unreadable = cache.prepare([row.path for row in wanted], workers=site.workers, progress=False)
    for bad in unreadable:
        log.warning("site %s: %s is not used: %s", site.name, bad.path, bad.reason)
    check_share(unreadable, len(wanted), site.unreadable_share)
    lost = {bad.path for bad in unreadable}
    return Footage(
        train=[row for row in train if row.path not in lost],
        test=[row for row in test if row.path not in lost],
        views=None if views is None else [row for row in views if row.path not in lost],
        cache=cache,
        unreadable=unreadable,
    )
