"""A run's figures as TensorBoard curves, grouped into the charts that belong together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from server.records import RoundRecord
from spact_models.errors import UserError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

JUDGED = "judged"  # the curves of fresh networks, and the ending of their own events files
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
    """Writes one events file for the training, and one for fresh networks' figures, each from its first figure on.

    Args:
        folder: TensorBoard's.
        first_round: of a resumed run; curves from there on that an earlier part drew are hidden. None: a new run.
    """

    def __init__(self, folder: Path, first_round: int | None = None) -> None:
        self._folder, self._first_round = folder, first_round
        self._writers: dict[str, SummaryWriter] = {}

    def round(self, record: RoundRecord) -> None:
        """Means, and each site's own figures under its name."""
        own = {"sites": len(record.sites), "bytes_up": record.bytes_up, "seconds": record.seconds}
        series = {f"{record.kind}/{name}": value for name, value in {**record.metrics, **own}.items()}
        names = [site.name for site in record.sites]
        for site in record.sites:
            own_name = site.name if names.count(site.name) == 1 else f"{site.name} (node {site.node})"
            series.update({f"{record.kind}/{own_name}/{name}": value for name, value in site.metrics.items()})
        writer = self._writer("", self._first_round)
        for tag, value in series.items():
            writer.add_scalar(tag, value, record.round)
        writer.flush()

    def evaluation(self, server_round: int, figures: Mapping[str, float]) -> None:
        """Fresh networks' figures, ``REPRESENTATION/TASK``."""
        writer = self._writer(f".{JUDGED}", None)
        for name, value in figures.items():
            if math.isfinite(value):
                writer.add_scalar(f"{JUDGED}/{name}", value, server_round)
        writer.flush()

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()

    def _writer(self, ending: str, purge_step: int | None) -> SummaryWriter:
        from torch.utils.tensorboard import SummaryWriter  # a second to import, and only runs need it

        if ending not in self._writers:
            self._writers[ending] = SummaryWriter(str(self._folder), purge_step=purge_step, filename_suffix=ending)
            self._writers[ending].add_custom_scalars(LAYOUT)
        return self._writers[ending]


def forget_judged(folder: Path) -> None:
    """Take away what earlier judgements drew: a round that is drawn again would stand twice on one curve.

    Raises:
        UserError: a file that cannot be removed.
    """
    for file in folder.glob(f"events.out.tfevents.*.{JUDGED}"):
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"{file}: cannot be removed ({error.strerror}); mend that folder's permissions") from None
