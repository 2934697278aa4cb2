"""Both halves of secure aggregation against each other without training: for its tests and its benchmark."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor

from client.masking import SecureSite, Vault
from client.membership import Membership
from server.records import Dropped
from server.secure_sum import SecureSum
from simulations.inprocess import InProcessGrid
from spact_models.agreement import BrokenProtocol
from spact_models.errors import UserError
from spact_models.ring import TAUGHT
from spact_models.settings import Settings

FEDERATION = "f" * 32
Bend = Callable[[str, str, Any], Any]  # (site, stage, message) -> the message that passes in its place


class SecurePlay:
    """Sites with the real site half behind a real ClientApp, the real server half, and the in-process Grid.

    Args:
        folder: where the sites keep their secrets.
        settings: of the run, with secure aggregation on.
        keys: the sites' registered keys by name; the names are sorted as node 1, 2, ...
        update: of a site, float32 by name; called when it is needed.
        shapes: of an update.
        least: ``refuse.min_sites`` of every site.
    """

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        keys: Mapping[str, ec.EllipticCurvePrivateKey],
        update: Callable[[str], Mapping[str, Tensor]],
        shapes: Mapping[str, tuple[int, ...]],
        least: int = 1,
    ) -> None:
        self.settings = settings
        self.names = sorted(keys)
        self.shapes = shapes
        self.members = {name: key.public_key() for name, key in keys.items()}
        self.sites = {
            name: SecureSite(
                Membership(name, keys[name], self.members), Vault(folder / name), settings, FEDERATION, least
            )
            for name in self.names
        }
        self.update = update
        self.taught = dict.fromkeys(self.names, (1, 1))
        self.lost_at: Mapping[str, str] = {}  # name -> the stage that it does not answer
        self.bend: Bend = lambda *about: about[-1]  # a site's answer on its way to the server
        self.show: Bend = lambda *about: about[-1]  # the server's request on its way to a site
        self.drops: list[Dropped] = []
        self.refused: list[str] = []  # reasons of sites that did not mask an update
        self.sent: dict[str, dict[str, Any]] = {}  # what left each site, masked; kept where ``keep`` is set
        self.keep = True
        self.grid = InProcessGrid(self._app(), [{}] * len(self.names), {})
        self.begin(1)

    def begin(self, server_round: int) -> None:
        """Another execution, for this round."""
        self.sum = SecureSum(self.settings, FEDERATION, server_round, self.shapes, self.name, self.drops.append)

    def name(self, node: int) -> str:
        return self.names[node - 1]

    def play(self) -> tuple[dict[str, Tensor], int]:
        """One whole execution: the mean, and how many updates are in it.

        Raises:
            Void: it was not opened.
        """
        self.collect()
        return self.sum.open(self.grid)

    def collect(self) -> None:
        """Up to the masked updates' sum."""
        nodes = self.sum.begin(self.grid, range(1, len(self.names) + 1))
        for node in nodes:  # one after the other, so that one update is in memory
            content = RecordDict({"secure": self.sum.request(node)})
            (reply,) = self.grid.send_and_receive([Message(content, node, "train", group_id="1")])
            if reply.has_error():
                self.refused.append(str(reply.error.reason))
            else:
                records = reply.content.array_records
                self.sum.add(records["update"], records[TAUGHT], node)

    def _app(self) -> ClientApp:
        app = ClientApp()

        def answer(message: Message, context: Context, stage: str, reply: Callable[..., RecordDict]) -> Message:
            name = self.name(context.node_id)
            if self.lost_at.get(name) == stage:
                return Message(Error(1, "gone"), reply_to=message)
            try:
                asked = self.show(name, stage, message.content.config_records["secure"])
                return Message(reply(name, stage, asked), reply_to=message)
            except (UserError, BrokenProtocol) as error:
                return Message(Error(400, str(error)), reply_to=message)

        @app.query()
        def query(message: Message, context: Context) -> Message:
            stage = str(message.content.config_records["config"]["purpose"]).removeprefix("secure.")
            return answer(message, context, stage, self._short)

        @app.train()
        def train(message: Message, context: Context) -> Message:
            return answer(message, context, "training", self._masked)

        return app

    def _short(self, name: str, stage: str, asked: ConfigRecord) -> RecordDict:
        told = self.bend(name, stage, getattr(self.sites[name], stage)(asked))
        return RecordDict({"secure": ConfigRecord(told)})

    def _masked(self, name: str, stage: str, asked: ConfigRecord) -> RecordDict:
        self.sites[name].receive(asked)
        vectors = self.sites[name].masked(self.update(name), torch.tensor(self.taught[name]), None)
        if self.keep:
            self.sent[name] = {key: value.copy() for key, value in vectors.items()}
        vectors = self.bend(name, stage, vectors)
        taught = ArrayRecord({TAUGHT: Array(vectors.pop(TAUGHT))})
        return RecordDict(
            {"update": ArrayRecord({key: Array(vectors.pop(key)) for key in list(vectors)}), TAUGHT: taught}
        )
