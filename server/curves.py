"""A run's figures as TensorBoard curves, grouped into the charts that belong together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from server.records import RoundRecord

JUDGED = "judged"  # the curves of fresh networks
LAYOUT = {  # TensorBoard's Custom Scalars: what belongs together in one chart; the tags are regular expressions
    "The game": {
        "L_T, mean and sites": ["Multiline", [r"^train/(.+/)?loss\.action$"]],
        "L_B, mean and sites, with chance": ["Multiline", [r"^train/(.+/)?loss\.privacy$", r"^train/chance\.privacy$"]],
        "f_T top-1, mean and sites": ["Multiline", [r"^evaluate/(.+/)?top1$"]],
    },
    "Fresh networks": {
        "action": ["Multiline", [rf"^{JUDGED}/.+/action$"]],
        "private questions, with chance": ["Multiline", [rf"^{JUDGED}/.+/(?!action$)[^/]+$"]],
    },
    "The wire": {"bytes up": ["Multiline", [r"^train/bytes_up$"]]},
}


class Curves:
    """Writes one events file.

    Args:
        folder: TensorBoard's.
        first_round: of a resumed run; curves from there on that an earlier part drew are hidden. None: a new run.
    """

    def __init__(self, folder: Path, first_round: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter  # a second to import, and only runs need it

        self._writer = SummaryWriter(str(folder), purge_step=first_round)
        self._writer.add_custom_scalars(LAYOUT)

    def round(self, record: RoundRecord) -> None:
        """Means, and each site's own figures under its name."""
        own = {"sites": len(record.sites), "bytes_up": record.bytes_up, "seconds": record.seconds}
        series = {f"{record.kind}/{name}": value for name, value in {**record.metrics, **own}.items()}
        names = [site.name for site in record.sites]
        for site in record.sites:
            own_name = site.name if names.count(site.name) == 1 else f"{site.name} (node {site.node})"
            series.update({f"{record.kind}/{own_name}/{name}": value for name, value in site.metrics.items()})
        for tag, value in series.items():
            self._writer.add_scalar(tag, value, record.round)
        self._writer.flush()

    def evaluation(self, server_round: int, figures: Mapping[str, float]) -> None:
        """Fresh networks' figures, ``REPRESENTATION/TASK``."""
        for name, value in figures.items():
            if math.isfinite(value):
                self._writer.add_scalar(f"{JUDGED}/{name}", value, server_round)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
