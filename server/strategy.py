"""The round, in its order: validate -> mean -> server step.

A reply is never a reason to end a run. One that is late, stale, doubled, an error, non-finite, of odd names or shapes
or of absurd weight is left out with its reason, and the round goes on with the others if they are enough. If they are
not, the round is void: nothing changes. Only so many void rounds in a row end the run.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from server.aggregate import RejectedUpdate, StreamingMean, checked_count, claimed_examples
from server.join import TTL_MARGIN_SECONDS, Roster, error_text, wait_for_nodes
from server.records import Dropped, RoundRecord, SiteRecord, array_bytes, finite_metrics, weighted_means
from server.step import ServerStep
from spact_models.errors import RunStopped
from spact_models.exchange import ACTION, expected_shapes
from spact_models.settings import Settings

LOG = logging.getLogger("fedspact.server")


@dataclass
class _Round:
    """One round while it lasts."""

    kind: str
    number: int
    started: float = field(default_factory=time.monotonic)
    asked: dict[int, int] = field(default_factory=dict)  # node -> array bytes sent to it
    sites: dict[int, SiteRecord] = field(default_factory=dict)
    dropped: list[Dropped] = field(default_factory=list)
    answered: set[int] = field(default_factory=set)
    bytes_up: int = 0


class FedSPAct(Strategy):
    """SPAct's federation as a Flower strategy: warm-up rounds, then minimax rounds, f_A and f_T averaged.

    Args:
        settings: the run's; ``rounds`` and ``strategy`` are read here.
        roster: sites met and classes agreed.
        weights: the first global weights by wire name.
        on_round: called after every train and evaluate round, void ones included.
        wait_poll_seconds: pause between two looks for nodes when there are too few.
    """

    def __init__(
        self,
        settings: Settings,
        roster: Roster,
        weights: Mapping[str, Tensor],
        on_round: Callable[[RoundRecord], None] | None = None,
        wait_poll_seconds: float = 1.0,
    ) -> None:
        self._settings = settings
        self._roster = roster
        self._on_round = on_round
        self._wait_poll_seconds = wait_poll_seconds
        self._shapes = expected_shapes(weights)
        self._step = ServerStep(settings.strategy, weights)
        self._teacher: ArrayRecord | None = None
        self._teacher_held: set[int] = set()
        self._void_rounds = 0
        self._round = _Round("train", 0)

    @property
    def weights(self) -> dict[str, Tensor]:
        """The global weights by wire name; they change in place with each round."""
        return self._step.weights

    def initial_arrays(self) -> ArrayRecord:
        """The global weights as they are now: what :meth:`start` takes."""
        return ArrayRecord(dict(self.weights))

    def summary(self) -> None:
        rounds, strategy = self._settings.rounds, self._settings.strategy
        LOG.info(
            "%s, weighted by %s: %d warm-up and %d minimax rounds, at least %d sites each",
            strategy.name, strategy.weighting, rounds.warmup, rounds.minimax, rounds.min_sites,
        )  # fmt: skip

    # ---- train: validate -> mean -> server step

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One request for each site; in minimax rounds with the teacher for those that do not hold it yet."""
        rounds = self._settings.rounds
        self._round = _Round("train", server_round)
        nodes = wait_for_nodes(grid, rounds.min_sites, rounds.timeout_seconds, self._wait_poll_seconds)
        self._round.dropped += self._roster.meet(grid, nodes)
        if self._teacher is None and self._settings.phase(server_round) == "minimax":
            self._teacher = ArrayRecord({name: array for name, array in arrays.items() if name.startswith(ACTION)})
        messages = []
        for node in (node for node in nodes if node in self._roster.cards):
            content = RecordDict({"arrays": arrays, "config": self._request(server_round, config)})
            if self._teacher is not None and node not in self._teacher_held:
                content["teacher"] = self._teacher
            messages.append(self._message(content, node, MessageType.TRAIN))
        return messages

    def aggregate_train(
        self,
        server_round: int,  # noqa: ARG002 (Flower's; the round was opened by configure_train)
        replies: Iterable[Message],
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Take the replies as they arrive.

        Raises:
            RunStopped: this was the last of ``rounds.max_void_rounds`` void rounds in a row.
        """
        strategy = self._settings.strategy
        updates = StreamingMean(self._shapes, strategy.max_examples, strategy.weighting)
        for reply in replies:
            self._take(reply, partial(self._add_update, updates))
            del reply  # the next one must not be loaded while this one is alive
        void = len(self._round.sites) < self._settings.rounds.min_sites
        if not void:
            self._step.apply(updates.mean())
        del updates  # one model less in memory while the new weights are packed
        record = self._finish(void)
        self._count_void(void)
        return (None if void else self.initial_arrays()), _metric_record(record)

    def _add_update(self, updates: StreamingMean, content: RecordDict) -> dict[str, float]:
        update, metrics = content.array_records.get("update"), content.metric_records.get("metrics")
        if update is None or metrics is None:
            raise RejectedUpdate("the reply lacks the record 'update' or 'metrics'")
        updates.add(update, claimed_examples(metrics))
        return finite_metrics(metrics)

    def _count_void(self, void: bool) -> None:
        self._void_rounds = self._void_rounds + 1 if void else 0
        limit = self._settings.rounds.max_void_rounds
        if self._void_rounds >= limit:
            reasons = (
                "; ".join(f"{drop.name}: {drop.reason}" for drop in self._round.dropped) or "no site was connected"
            )
            raise RunStopped(
                f"{limit} void rounds in a row (rounds.max_void_rounds), the last one round {self._round.number}: "
                f"fewer than rounds.min_sites = {self._settings.rounds.min_sites} valid replies. {reasons}. "
                "The weights are those of the last valid round."
            )

    # ---- evaluate

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One request for each connected site in every k-th round and after the last; none otherwise."""
        self._round = _Round("evaluate", server_round)
        every = self._settings.rounds.evaluate_every
        if server_round != self._settings.total_rounds and not (every and server_round % every == 0):
            return []
        nodes = [node for node in sorted(grid.get_node_ids()) if node in self._roster.cards]
        request = self._request(server_round, config)
        contents = {node: RecordDict({"arrays": arrays, "config": request}) for node in nodes}
        return [self._message(content, node, MessageType.EVALUATE) for node, content in contents.items()]

    def aggregate_evaluate(
        self,
        server_round: int,  # noqa: ARG002
        replies: Iterable[Message],
    ) -> MetricRecord | None:
        """Means over the sites, weighted by their test examples; None when this round was not evaluated."""
        for reply in replies:
            self._take(reply, self._check_evaluation)
            del reply
        if not self._round.asked:
            return None
        return _metric_record(self._finish(void=not self._round.sites))

    def _check_evaluation(self, content: RecordDict) -> dict[str, float]:
        metrics = content.metric_records.get("metrics")
        if metrics is None:
            raise RejectedUpdate("the reply lacks the record 'metrics'")
        checked_count("examples", metrics.get("examples"), self._settings.strategy.max_examples)
        return finite_metrics(metrics)

    # ---- both

    def _request(self, server_round: int, config: ConfigRecord) -> ConfigRecord:
        request = ConfigRecord(dict(config))
        request["round"] = server_round
        request["phase"] = self._settings.phase(server_round)
        request["federation"] = self._roster.federation
        request["classes"] = list(self._roster.classes)
        return request

    def _message(self, content: RecordDict, node: int, kind: str) -> Message:
        self._round.asked[node] = array_bytes(content)
        ttl = self._settings.rounds.timeout_seconds + TTL_MARGIN_SECONDS
        return Message(content, node, kind, ttl=ttl, group_id=str(self._round.number))

    def _take(self, reply: Message, use: Callable[[RecordDict], dict[str, float]]) -> None:
        """Validate one reply and use its content; whatever is wrong with it, it is left out with the reason."""
        current, node = self._round, reply.metadata.src_node_id
        name = self._roster.name(node)
        bytes_up = array_bytes(reply.content) if reply.has_content() else 0
        current.bytes_up += bytes_up
        try:
            self._check_provenance(reply)
            current.answered.add(node)
            if reply.has_error():
                raise RejectedUpdate(error_text(reply))
            self._note_teacher(reply.content, node)
            metrics = use(reply.content)
        except RejectedUpdate as rejection:
            self._drop(Dropped(node, name, str(rejection)))
        else:
            current.sites[node] = SiteRecord(node, name, metrics, current.asked[node], bytes_up)

    def _check_provenance(self, reply: Message) -> None:
        """A reply counts when its node was asked, in this round, for this, and has not replied before."""
        current, metadata = self._round, reply.metadata
        node = metadata.src_node_id
        if node not in current.asked:
            raise RejectedUpdate(error_text(reply) if reply.has_error() else "was not asked in this round")
        if node in current.answered:
            raise RejectedUpdate("a second reply in one round; the first one counts")
        if reply.has_error():
            return
        if metadata.group_id != str(current.number):
            raise RejectedUpdate(f"a stale reply of round {metadata.group_id!r:.20}, this is round {current.number}")
        if metadata.message_type != current.kind:
            raise RejectedUpdate(f"a reply to {metadata.message_type!r:.40}, asked was {current.kind!r}")

    def _note_teacher(self, content: RecordDict, node: int) -> None:
        if self._round.kind != "train":
            return
        metrics = content.metric_records.get("metrics")
        held = metrics is not None and metrics.get("teacher_held") == 1
        (self._teacher_held.add if held else self._teacher_held.discard)(node)

    def _drop(self, drop: Dropped) -> None:
        LOG.warning(
            "%s round %d: site %s (node %d) is left out: %s",
            self._round.kind, self._round.number, drop.name, drop.node, drop.reason,
        )  # fmt: skip
        self._round.dropped.append(drop)

    def _finish(self, void: bool) -> RoundRecord:
        """Close the round: name the silent sites, weigh the metrics, tell the listener."""
        current, rounds = self._round, self._settings.rounds
        for node in sorted(current.asked.keys() - current.answered):
            silence = f"no valid reply within {rounds.timeout_seconds:g} s"
            self._drop(Dropped(node, self._roster.name(node), silence))
        needed = rounds.min_sites if current.kind == "train" else 1
        reason = f"{len(current.sites)} valid replies, {needed} needed" if void else ""
        if void:
            LOG.warning("%s round %d is void, nothing changes: %s", current.kind, current.number, reason)
        sites = tuple(current.sites[node] for node in sorted(current.sites))
        record = RoundRecord(
            kind=current.kind,
            round=current.number,
            phase=self._settings.phase(current.number),
            void=void,
            reason=reason,
            metrics=weighted_means(site.metrics for site in sites),
            sites=sites,
            dropped=tuple(current.dropped),
            bytes_down=sum(current.asked.values()),
            bytes_up=current.bytes_up,
            seconds=time.monotonic() - current.started,
        )
        if self._on_round is not None:
            self._on_round(record)
        return record


def _metric_record(record: RoundRecord) -> MetricRecord:
    """The round in Flower's own history."""
    counts = {"sites": len(record.sites), "dropped": len(record.dropped), "void": int(record.void)}
    return MetricRecord({**record.metrics, **counts, "bytes_up": record.bytes_up, "bytes_down": record.bytes_down})
