"""The run's figures in Prometheus' text format, over HTTP, while the run lasts.

Nothing is counted twice: each request reads the run's status as it stands. Sites are labelled by name, metrics by
theirs; both are few. There is no password, hence the address of this machine alone by default.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from spact_models.errors import UserError

if TYPE_CHECKING:
    from server.status import RunStatus

STATES = ("working", "replied", "left out")


class Exporter:
    """Listens until it is closed.

    Args:
        status: the run.
        host: the address to listen on.
        port: 1 to 65535.

    Raises:
        UserError: nobody may listen there, or somebody already does.
    """

    def __init__(self, status: RunStatus, host: str, port: int) -> None:
        registry = CollectorRegistry()
        registry.register(_StatusCollector(status))
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(
                f"watch.metrics_port = {port}, cannot be listened on at watch.metrics_host = {host!r} ({reason}). "
                "Choose another port, or 0 for none."
            ) from error

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _StatusCollector(Collector):
    def __init__(self, status: RunStatus) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        status, totals = self._status, self._status.totals
        sites = dict(status.sites)  # the run goes on in another thread
        yield _gauge("round", "The open or last round.", status.round)
        yield _gauge("rounds_planned", "Rounds of the whole run.", status.settings.total_rounds)
        yield _gauge("round_opened_timestamp_seconds", "When the open round's requests left.", status.opened_at)
        yield _gauge("round_deadline_seconds", "How long the open round waits.", status.deadline_seconds)
        yield _counter("rounds", "Train rounds that are over.", totals.rounds)
        yield _counter("void_rounds", "Train rounds with too few valid replies.", totals.void_rounds)
        yield _counter("left_out", "Sites left out, counted once a round.", totals.left_out)
        yield _counter("rounds_seconds", "Seconds of all closed rounds.", totals.seconds)
        moved = CounterMetricFamily("fedspact_bytes", "Serialised bytes of requests and replies.", labels=["direction"])
        moved.add_metric(["up"], totals.bytes_up)
        moved.add_metric(["down"], totals.bytes_down)
        yield moved
        states = GaugeMetricFamily("fedspact_sites", "Sites of the open or last round by state.", labels=["state"])
        for state in STATES:
            states.add_metric([state.replace(" ", "_")], sum(site.state == state for site in sites.values()))
        yield states
        answered = GaugeMetricFamily("fedspact_site_reply_seconds", "From request to reply.", labels=["site"])
        for name, site in sites.items():
            if site.state == "replied":
                answered.add_metric([name], site.seconds)
        yield answered
        means = GaugeMetricFamily(
            "fedspact_metric", "A metric's mean over the sites, last valid round.", labels=["kind", "name"]
        )
        for kind, metrics in list(status.last.items()):
            for name, value in metrics.items():
                means.add_metric([kind, name], value)
        yield means


def _gauge(name: str, about: str, value: float) -> Metric:
    return GaugeMetricFamily(f"fedspact_{name}", about, value=value)


def _counter(name: str, about: str, value: float) -> Metric:
    return CounterMetricFamily(f"fedspact_{name}", about, value=value)
