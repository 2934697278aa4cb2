"""What a Prometheus may ask the service: streams, frames by outcome, how full batches are, how long frames wait."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from client.edge.batcher import Batch
from spact_models.errors import UserError

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Figures:
    """One service's counters, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        mine = self.registry
        self.streams = Gauge("fedspact_edge_streams", "Streams being served", registry=mine)
        self.refused = Counter(
            "fedspact_edge_streams_refused", "Streams turned away because of --max-streams", registry=mine
        )
        self.frames = Counter(
            "fedspact_edge_frames", "Frames answered: anonymized, or why they were black", ["outcome"], registry=mine
        )
        self.batch = Histogram(
            "fedspact_edge_batch_frames", "Frames a pass", buckets=(1, 2, 4, 8, 16, 32), registry=mine
        )
        self.seconds = Histogram("fedspact_edge_batch_seconds", "Duration of a pass", buckets=SECONDS, registry=mine)
        self.wait = Histogram("fedspact_edge_wait_seconds", "Longest wait in a pass", buckets=SECONDS, registry=mine)
        self.model = Gauge("fedspact_edge_model", "1 for the model that runs", ["sha256"], registry=mine)
        self.swaps = Counter("fedspact_edge_model_swaps", "Models taken while running", registry=mine)

    def saw(self, batch: Batch) -> None:
        """One pass of the batcher."""
        self.batch.observe(batch.frames)
        self.seconds.observe(batch.seconds)
        self.wait.observe(batch.longest_wait_seconds)

    def runs(self, sha256: str) -> None:
        """Which model runs now."""
        self.model.clear()
        self.model.labels(sha256).set(1)

    def publish(self, host: str, port: int) -> int:
        """Serve ``http://host:port/metrics``; returns the port (0 picks a free one).

        Raises:
            UserError: the port cannot be had.
        """
        try:
            server, _ = start_http_server(port, host, registry=self.registry)
        except OSError as error:
            raise UserError(f"--metrics {host}:{port}: cannot be opened ({error.strerror}); choose another") from error
        return int(server.server_port)
