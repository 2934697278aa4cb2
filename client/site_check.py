"""``fedspact site check``: what a site would meet in a run, found out before there is one.

Videos are read by the reader that training uses, and the time is that of the moves of the game, really played at the
run's settings. The decoded frames go into the site's own cache, where the first round finds them.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from client.connection import Connection
from client.footage import declared_classes, split_rows, view_rows
from client.membership import open_membership
from client.site import Site
from client.state import KEPT_ROUNDS, LocalState
from client.training import RoundTask, prepared, seat_players
from client.video.cache import GIB, FrameCache
from client.video.decode import UnreadableVideo, VideoInfo, probe
from client.video.loader import ClipLoader
from client.video.rows import Row
from spact_models.errors import UserError
from spact_models.exchange import snapshot
from spact_models.game_settings import GameConfig
from spact_models.minimax import Players, adversary_move, anonymizer_move, critics_move
from spact_models.networks import build_networks
from spact_models.resident import peak_rss_mb
from spact_models.seeds import pick_device
from spact_models.settings import Settings
from spact_models.views import Batch

STAND_IN_CLASSES = ("first", "second")  # for a site without labels: the networks need a list to be built at all
SHOWN = 5


@dataclass
class Report:
    """What was found. ``problems`` keep the site out of a run, or out of a good one; ``remarks`` do not."""

    site: str
    rows: dict[str, int] = field(default_factory=dict)
    actions: dict[str, int] = field(default_factory=dict)  # "" counts the rows without a label
    sample: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)  # path -> reason
    sizes: dict[str, int] = field(default_factory=dict)  # "640x480" -> videos of the sample
    rates: dict[str, int] = field(default_factory=dict)  # frames a second -> videos of the sample
    seconds_of_video: float = 0.0  # of the sample
    decode_seconds: float = 0.0  # of the sample; what lay in the cache already takes none
    cache_gib_needed: float = 0.0
    disk_gib_free: float = 0.0
    state_gib_needed: float = 0.0
    peak_memory_gib: float = 0.0
    round_seconds: float | None = None
    connection: dict[str, Any] | None = None
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def check_site(site: Site, settings: Settings, sample: int, timing: bool) -> Report:
    """Look at everything but the connection.

    Args:
        sample: so many videos are read, spread over the rows; as many again of a views_manifest.
        timing: play two moves of the game; its batches may enlarge the sample.

    Raises:
        UserError: a manifest is broken, or holds paths that the site does not allow.
    """
    report = Report(site.name)
    train, test = split_rows(site)
    views = view_rows(site)
    report.rows = {"train": len(train), "test": len(test), **({} if views is None else {"views": len(views)})}
    report.actions = dict(sorted(Counter(row.action or "" for row in [*train, *test]).items()))
    if not train:
        report.problems.append("no training rows; give the table rows whose split is train or empty")
        return report
    _ask_refusals(site, settings, report)
    _check_labels(site, settings, report)
    settings = site.limits.bounded(settings)
    wanted = max(sample, settings.batch.clips, settings.batch.views) if timing else sample
    clips, pictures = _spread(train, wanted), _spread(views or [], wanted)
    cache = FrameCache(site.cache, settings.clip.size_px, site.cache_gib)
    lost = _read(list({row.path: row for row in [*clips, *pictures]}.values()), site, cache, report)
    clips, pictures = ([row for row in rows if row.path not in lost] for rows in (clips, pictures))
    _weigh([(clips, len(train) + len(test)), (pictures, len(views or []))], site, settings, cache, report)
    if timing and clips:
        _time_moves(clips, None if views is None else pictures, site, settings, cache, report)
    report.peak_memory_gib = peak_rss_mb() * 2**20 / GIB
    return report


def add_connection(report: Report, found: Connection) -> None:
    """The way to the server as a part of the report."""
    report.connection = asdict(found)
    if not found.fine:
        report.problems.append(f"connection: {found.said}")


def _ask_refusals(site: Site, settings: Settings, report: Report) -> None:
    try:
        site.refuse.check_run(settings)
    except UserError as error:
        report.problems.append(str(error))
    if settings.secure.aggregation:
        try:
            membership = open_membership(site)
            report.remarks.append(f"secure aggregation: trusts {', '.join(sorted(membership.members))}")
        except UserError as error:
            report.problems.append(str(error))
    if site.limits.hours:
        report.remarks.append(f"takes part only in its hours, {site.limits.hours} local time")
    for name in ("clips", "views"):
        asked, given = getattr(settings.batch, name), getattr(site.limits.bounded(settings).batch, name)
        if given < asked:
            report.remarks.append(f"batch.{name} = {asked} in the run, {given} here (limits.batch_{name})")


def _check_labels(site: Site, settings: Settings, report: Report) -> None:
    """A run with a list of its own plays with no site that has a label beyond it."""
    own = {*declared_classes(site), *(name for name in report.actions if name)}
    odd = sorted(own - set(settings.action_classes))
    if settings.action_classes and odd:
        report.problems.append(
            f"action = {', '.join(map(repr, odd))}, not among the run's action.classes = "
            f"{','.join(settings.action_classes)}: this site would be left out; rename its labels in the manifest and "
            "in `classes`, or ask for another list"
        )


def _spread(rows: Sequence[Row], count: int) -> list[Row]:
    """``count`` rows, evenly spaced in the table's order, or all."""
    count = min(count, len(rows))
    return [rows[number * len(rows) // count] for number in range(count)]


def _read(rows: Sequence[Row], site: Site, cache: FrameCache, report: Report) -> set[Path]:
    """Decode the sample as training would; sizes and rates are what the files say. Returns what cannot be read."""
    started = time.monotonic()
    bad = {item.path: item.reason for item in cache.prepare([row.path for row in rows], site.workers, progress=False)}
    report.decode_seconds = time.monotonic() - started
    infos: list[VideoInfo] = []
    for row in rows:
        if row.path not in bad and not row.is_image:
            try:
                infos.append(probe(row.path))
            except UnreadableVideo as error:  # it turned so meanwhile
                bad[row.path] = error.reason
    report.sample, report.unreadable = len(rows), {str(path): reason for path, reason in bad.items()}
    report.sizes = dict(Counter(f"{info.width}x{info.height}" for info in infos).most_common())
    report.rates = dict(Counter(f"{info.fps:.4g}" for info in infos).most_common())
    report.seconds_of_video = sum(info.seconds for info in infos)
    if len(bad) > site.unreadable_share * len(rows):
        report.problems.append(
            f"{len(bad)} of {len(rows)} videos of the sample cannot be read, unreadable_share = "
            f"{site.unreadable_share}: such a site stops; mend them or take them out of the table"
        )
    return set(bad)


def _weigh(
    tables: Sequence[tuple[Sequence[Row], int]], site: Site, settings: Settings, cache: FrameCache, report: Report
) -> None:
    """Disk that the whole tables take, each a readable sample and its rows' count, if the rest is like the sample."""
    for readable, total in tables:
        if readable:
            mean = sum(cache.frames(row.path).nbytes for row in readable) / len(readable)
            report.cache_gib_needed += mean * total / GIB
    networks = build_networks(settings, _classes(site))
    values = sum(value.numel() for value in snapshot(networks.anonymizer, networks.action).values())
    report.state_gib_needed = 4 * 4 * values * KEPT_ROUNDS / GIB  # float32: f_B and teacher, Adam's two moments each
    existing = next(folder for folder in (site.cache, *site.cache.parents) if folder.is_dir())
    report.disk_gib_free = shutil.disk_usage(existing).free / GIB
    cached = cache.size_bytes() / GIB
    wanted = min(report.cache_gib_needed, site.cache_gib) - cached + report.state_gib_needed
    if wanted > report.disk_gib_free:
        report.problems.append(
            f"disk: {wanted:.2f} GiB more are needed at {existing}, {report.disk_gib_free:.2f} are free"
        )
    if report.cache_gib_needed > site.cache_gib:
        report.remarks.append(
            f"cache_gib = {site.cache_gib:g} is less than the {report.cache_gib_needed:.2f} that all videos take: some "
            "are decoded again in every round"
        )


def _classes(site: Site) -> list[str]:
    return declared_classes(site) or list(STAND_IN_CLASSES)


def _time_moves(
    rows: Sequence[Row],
    views: Sequence[Row] | None,
    site: Site,
    settings: Settings,
    cache: FrameCache,
    report: Report,
) -> None:
    """Each move once to warm up and once timed; a minimax round is so many of each."""
    device = pick_device(site.device or settings.device)
    site.limits.apply_to(device)
    networks = build_networks(settings, _classes(site))
    networks.anonymizer.to(device)
    networks.action.to(device)
    first = settings.rounds.warmup + 1
    task = RoundTask(first, "minimax", snapshot(networks.anonymizer, networks.action))
    players = seat_players(task, settings, site.name, networks, LocalState())
    history = networks.anonymizer.history
    try:
        loader = ClipLoader(
            rows,
            _classes(site),
            cache,
            settings.clip,
            settings.batch,
            history,
            view_rows=views,
            view_frames=settings.views.frames,
        )
    except UserError as error:
        report.problems.append(f"no round can be played with the sample: {error}")
        return
    batches = prepared(loader.training(settings.seed), settings, torch.Generator().manual_seed(settings.seed), device)
    game, cycles = settings.game, settings.rounds.cycles
    answers = adversary_move if game.joint_step else critics_move  # what follows the anonymizer's move in a cycle
    moves = [anonymizer_move, answers, critics_move]
    _seconds_of(moves, players, batches, settings, device)
    anonymizer, answer, catch_up = _seconds_of(moves, players, batches, settings, device)
    report.round_seconds = cycles * (anonymizer + game.critic_steps * answer) + game.catch_up_steps * catch_up
    limit = settings.rounds.timeout_seconds
    if report.round_seconds > limit:
        report.problems.append(
            f"a round takes about {report.round_seconds:.0f} s here, rounds.timeout_seconds = {limit:g}: this site "
            "would be left out; ask for a longer deadline, fewer cycles or a smaller preset"
        )
    if len(rows) < settings.batch.clips or len(loader.view_rows) < settings.batch.views:
        report.remarks.append("fewer videos than a batch holds: batches are smaller here")


def _seconds_of(
    moves: Sequence[Callable[[Players, Batch, GameConfig], object]],
    players: Players,
    batches: Iterator[Batch],
    settings: Settings,
    device: torch.device,
) -> list[float]:
    """Seconds of each move, one after the other, loading and augmentation included."""
    seconds = []
    for move in moves:
        started = time.monotonic()
        move(players, next(batches), settings.game)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.monotonic() - started)
    return seconds


def lines(report: Report) -> list[str]:
    """The report for a terminal."""
    labels = ", ".join(f"{name or '(no label)'} {count}" for name, count in report.actions.items())
    out = [
        f"site {report.site}",
        f"  rows         {', '.join(f'{name} {count}' for name, count in report.rows.items())}",
        f"  labels       {labels or 'none'}",
        f"  sample       {report.sample} videos, {report.seconds_of_video:.0f} s of video, read in "
        f"{report.decode_seconds:.1f} s, {len(report.unreadable)} unreadable",
        f"  sizes        {_counted(report.sizes)}",
        f"  frames/s     {_counted(report.rates)}",
        f"  disk         cache {report.cache_gib_needed:.2f} GiB for all videos, state {report.state_gib_needed:.2f} "
        f"GiB a federation; {report.disk_gib_free:.1f} GiB free",
        f"  memory       {report.peak_memory_gib:.2f} GiB at most in this check",
    ]
    if report.round_seconds is not None:
        out.append(f"  a round      about {report.round_seconds:.1f} s of training, and some seconds to start")
    if report.connection is not None:
        out.append(f"  connection   {report.connection['address']}: {report.connection['said']}")
    shown = list(report.unreadable.items())[:SHOWN]
    out += [f"  unreadable   {Path(path)}: {reason}" for path, reason in shown]
    if len(report.unreadable) > SHOWN:
        out.append(f"  unreadable   and {len(report.unreadable) - SHOWN} more (--json names all)")
    out += [f"  remark       {remark}" for remark in report.remarks]
    return out + [f"  PROBLEM      {problem}" for problem in report.problems]


def _counted(counts: dict[str, int]) -> str:
    shown = [f"{name} ({count})" for name, count in list(counts.items())[:SHOWN]]
    return ", ".join(shown) + (f", and {len(counts) - SHOWN} others" if len(counts) > SHOWN else "") or "none"
