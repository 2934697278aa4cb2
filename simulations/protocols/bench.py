"""What all representations of one judgement share: the raw sets, what can be asked of them, and what cannot."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from client.held import (
    Read,
    attackable,
    attribute_labels,
    attributes_of,
    build_set,
    labels_of,
    lead_in_of,
    value_of,
)
from client.video.cache import FrameCache
from client.video.rows import Row, class_names
from simulations.protocols.evaluation import ACTION
from spact_models.attackers import networks_of, watches_motion
from spact_models.judge import JudgeSet
from spact_models.settings import Settings

if TYPE_CHECKING:
    from simulations.protocols.suite import Suite

BLACKENED, ANONYMIZED = "blackened", "anonymized"
CROPS = {"person only": True, "background only": False}
IDENTITY = "identity"
Pair = tuple[JudgeSet, JudgeSet]  # train, test


@dataclass
class Bench:
    """What all representations share: the raw sets, what can be asked of them, and what cannot."""

    train: list[Row]
    test: list[Row]
    actions: list[str] = field(default_factory=list)  # empty: utility cannot be measured
    tasks: dict[str, list[str]] = field(default_factory=dict)
    labels: list[str] = field(default_factory=list)  # yes-or-no attributes
    videos: Pair | None = None
    blackened: Pair | None = None
    delivered: dict[str, Callable[[], Pair]] = field(default_factory=dict)  # read when their turn comes
    attributed: Pair | None = None  # where the attributes are; the videos themselves, or other rows
    retrieval: bool = False
    crops: bool = False
    not_measured: list[str] = field(default_factory=list)

    def source(self, name: str) -> Pair | None:
        """What a representation is made from: the raw videos, those with people blackened, or delivered files."""
        if name in self.delivered:
            return self.delivered[name]()
        return self.blackened if name == BLACKENED else self.videos

    def other_files(self, name: str) -> bool:
        """Whether it is made from something that exists of the videos alone, and not of still images."""
        return name == BLACKENED or name in self.delivered


def set_up(
    suite: Suite,
    settings: Settings,
    rows: Sequence[Row],
    attribute_rows: Sequence[Row] | None,
    cache: FrameCache,
    delivered: Mapping[str, Sequence[Row]] | None = None,
) -> Bench:
    """Find out what can be asked, and read the raw sets."""
    videos = [row for row in rows if not row.is_image]
    bench = Bench([row for row in videos if row.split == "train"], [row for row in videos if row.split == "test"])
    if len(videos) < len(rows) and videos:
        bench.not_measured.append(f"{len(rows) - len(videos)} still images of the manifest: they hold no clip")
    if bench.train and bench.test:
        _ask_videos(suite, bench)
        boxes = all(row.boxes is not None for row in (*bench.train, *bench.test))
        bench.crops = suite.crops and boxes
        if not boxes and (suite.crops or BLACKENED in suite.representations):
            for what in [*(CROPS if suite.crops else ()), *([BLACKENED] if BLACKENED in suite.representations else [])]:
                bench.not_measured.append(f"{what}: the manifest gives no boxes for some of the videos")
        bench.videos = _read(suite, settings, bench, cache, (bench.train, bench.test))
        if boxes and BLACKENED in suite.representations:
            bench.blackened = _read(suite, settings, bench, cache, (bench.train, bench.test), blackened=True)
        for name, files in (delivered or {}).items():
            sides = tuple([row for row in files if row.split == split] for split in ("train", "test"))
            bench.delivered[name] = partial(_read, suite, settings, bench, cache, sides)
    else:
        bench.not_measured.append("action, identity, retrieval: no videos in training or in test")
        if suite.inversion:
            bench.not_measured.append("reconstruction: still images alone hold no clip to restore")
    if suite.attributes:
        _ask_attributes(suite, settings, bench, rows if attribute_rows is None else attribute_rows, cache)
    if BLACKENED in suite.representations and bench.blackened is None and not bench.not_measured:
        bench.not_measured.append(f"{BLACKENED}: needs videos")
    return bench


def _ask_videos(suite: Suite, bench: Bench) -> None:
    actions = class_names(bench.train)
    if suite.action and len(actions) >= 2 and any(row.action in actions for row in bench.test):
        bench.actions = actions
    elif suite.action:
        bench.not_measured.append("action: needs two labelled actions in training and a labelled test video")
    for task in suite.tasks:
        names = attackable(bench.train, bench.test, task)
        if names:
            bench.tasks[task] = names
        else:
            bench.not_measured.append(
                f"{task}: needs two values or more in training rows, and test rows with none but those"
            )
    enough = len(bench.train) >= 2 and len(bench.test) >= 2
    bench.retrieval = suite.retrieval and enough and bool(matchers(suite))
    if suite.retrieval and not enough:
        bench.not_measured.append("retrieval: needs two videos in training and in test")
    elif suite.retrieval and not bench.retrieval:
        bench.not_measured.append(f"retrieval: {', '.join(suite.attackers)} alone matches nothing; it takes a network")


def _read(
    suite: Suite,
    settings: Settings,
    bench: Bench,
    cache: FrameCache,
    sides: Sequence[Sequence[Row]],
    blackened: bool = False,
) -> Pair:
    halves = bench.retrieval and any(map(watches_motion, matchers(suite)))
    asked = {**({ACTION: bench.actions} if bench.actions else {}), **bench.tasks}

    def read(rows: Sequence[Row], clips: int) -> JudgeSet:
        labels = {task: labels_of(rows, task, names) for task, names in asked.items()}
        wanted = Read(clips, lead_in_of(settings), halves=halves, masks=bench.crops, blackened=blackened)
        return build_set(rows, cache, settings.clip, wanted, labels)

    train, test = sides
    return read(train, settings.judge.train_clips), read(test, settings.judge.test_clips)


def _ask_attributes(suite: Suite, settings: Settings, bench: Bench, rows: Sequence[Row], cache: FrameCache) -> None:
    train, test = ([row for row in rows if row.split == split] for split in ("train", "test"))
    columns = suite.columns or tuple(dict.fromkeys(n for row in rows for n in row.attributes if n != IDENTITY))
    bench.labels = attribute_labels(train, columns)
    if not (bench.labels and test):
        bench.not_measured.append("attributes: no labelled attribute in training, or no test rows")
        bench.labels = []
        return
    if bench.videos is not None and train == bench.train and test == bench.test:
        pair = bench.videos
    else:
        pair = tuple(
            build_set(part, cache, settings.clip, Read(clips, lead_in_of(settings)), {})
            for part, clips in ((train, settings.judge.train_clips), (test, settings.judge.test_clips))
        )  # type: ignore[assignment]
    bench.attributed = tuple(
        replace(held, attributes_VA=attributes_of(part, bench.labels))
        for held, part in zip(pair, (train, test), strict=True)
    )  # type: ignore[assignment]


def task_columns(rows: Sequence[Row]) -> list[str]:
    """The columns that rows say something in and that may be private: all but the action."""
    shared = [name for name in ("source", "site") if any(value_of(row, name) for row in rows)]
    return [*sorted({name for row in rows for name in row.attributes}), *shared]


def matchers(suite: Suite) -> list[str]:
    """Who is asked to match videos: it takes a network."""
    return networks_of(suite.retrieval_attackers or suite.attackers)
