"""``slow-link``: what crosses the links of a real federation with one slow uplink, and whether the others wait."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from simulations.benchmarks.measured import Row, Spread
from simulations.benchmarks.server_memory import SMALL
from simulations.benchmarks.slow_link import measure

LARGE = {"networks.anonymizer_channels": 64, "networks.anonymizer_depth": 4}  # f_A of the paper's size, the tiny f_T
OVER_SECONDS = 10.0  # target: a round's last look, which takes what lies whole at the SuperLink


def measure_slow_link(quick: bool, repeats: int, on_step: Callable[[], object]) -> Iterator[Row]:  # noqa: ARG001
    """Three sites, one of them with an uplink over which its update does not come in time."""
    sizes, megabits, deadline = (SMALL, 0.25, 75.0) if quick else (LARGE, 1.0, 150.0)
    settings: dict[str, Any] = {key.replace(".", "__"): value for key, value in sizes.items()}
    told = measure(megabits, 3, deadline, uplink_only=True, **settings)
    on_step()
    (line,) = told["rounds"]
    names = [f"site-{number}" for number in range(1, 4)]
    sent = {name: line["sites"][name]["bytes_up"] / 1e6 for name in names if name in line["sites"]}
    crossed = {name: link["up"] / 1e6 for name, link in zip(names, told["links"], strict=True) if name in sent}
    ours, twin = (Spread.of(list(each.values())) for each in (crossed, sent))
    ratio = Spread.of([crossed[name] / sent[name] for name in sent])
    target = 1.1 if quick else 1.05  # what does not grow with the update is half a MB
    what = "bytes that crossed a site's link upwards, counted at its socket, against the update's in the history"
    note = "joining, the evaluation's reply, polls and HTTP's lines included; ratio: counted over told"
    yield Row("slow-link", what, "MB", ours, twin, ratio, target, "at most", note)
    slowest = max((site["seconds"] for site in line["sites"].values()), default=0.0)
    dropped = ", ".join(line["dropped"]) or "nobody"
    what = f"seconds of a round over its deadline of {deadline:g} s, one of three uplinks at {megabits:g} Mbit/s"
    note = f"left out: {dropped}; the last of the others replied after {slowest:.0f} s"
    over = Spread.of([line["seconds"] - deadline])
    yield Row("slow-link-over", what, "s", over, None, None, OVER_SECONDS, "at most", note)
