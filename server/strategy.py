"""The round, in its order: validate -> mean (or open the masked sum) -> noise -> server step.

A reply is never a reason to end a run. One that is late, stale, doubled, an error, non-finite, of odd names or shapes
or of absurd weight is left out with its reason, and the round goes on with the others if they are enough. If they are
not, the round is void: nothing changes. Only so many void rounds in a row end the run.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from server.aggregate import RejectedUpdate, checked_count
from server.budget import Budget
from server.collect import Collected, Collector, PlainCollector, SecureCollector
from server.deadline import Deadlines
from server.join import TTL_MARGIN_SECONDS, Roster, wait_for_nodes
from server.records import Dropped, RoundRecord, finite_metrics
from server.round import Observer, Round
from server.secure_sum import SecureSum, Void
from server.step import ServerStep
from server.wire import wire_bytes
from spact_models.errors import RunStopped
from spact_models.exchange import ACTION, expected_shapes, trained_names
from spact_models.settings import Settings

if TYPE_CHECKING:
    from server.resume import Standing

LOG = logging.getLogger("fedspact.server")


class FedSPAct(Strategy):
    """SPAct's federation as a Flower strategy: warm-up rounds, then minimax rounds, f_A and f_T averaged.

    Args:
        settings: the run's; ``rounds`` and ``strategy`` are read here.
        roster: sites met and classes agreed.
        weights: the first global weights by wire name.
        on_round: called after every train and evaluate round, void ones included.
        wait_poll_seconds: pause between two looks for nodes when there are too few.
        spool: an empty folder for the updates of one round, which the robust rules need; None: a temporary one.
        observer: told of each request's, reply's and round's fate as it happens.
        budget: of differential privacy; a run with ``dp.unit`` on cannot be built without it.
    """

    def __init__(
        self,
        settings: Settings,
        roster: Roster,
        weights: Mapping[str, Tensor],
        on_round: Callable[[RoundRecord], None] | None = None,
        wait_poll_seconds: float = 1.0,
        spool: Path | None = None,
        observer: Observer | None = None,
        budget: Budget | None = None,
    ) -> None:
        if settings.dp.on and budget is None:
            raise ValueError(f"dp.unit = {settings.dp.unit!r}, but nobody counts what is spent")
        self._settings = settings
        self._budget = budget
        self._roster = roster
        self._on_round = on_round
        self._wait_poll_seconds = wait_poll_seconds
        trained = trained_names(weights, settings.wire.patterns)
        self._shapes = expected_shapes({name: weights[name] for name in trained})
        self._step = ServerStep(settings.strategy, weights)
        self._teacher: ArrayRecord | None = None
        self._teacher_held: set[int] = set()
        self._void_rounds = 0
        self._spool = spool
        self._observer = observer
        self._deadlines = Deadlines(settings.rounds)
        self._done = 0  # rounds before Flower's first: those that a resumed run has behind it
        self._trained = 0  # rounds that are not trained again; the last of them may still lack its evaluation
        self._round = Round("train", 0)
        self._collector: Collector | None = None  # of the open training round; None: it never came to training
        self._void_reason = ""  # why it did not

    def go_on(self, standing: Standing) -> int:
        """Take over where an interrupted run stood (server/resume.py); returns how many rounds :meth:`start` gets."""
        self._step.load_state(standing.optimizer)
        self._teacher = None if standing.teacher is None else ArrayRecord(dict(standing.teacher))
        self._void_rounds = standing.void_rounds
        self._trained = standing.trained
        self._done = standing.trained - (1 if self._lacks_evaluation(standing) else 0)
        self._deadlines.relearn(standing.rounds)
        return self._settings.total_rounds - self._done

    def _lacks_evaluation(self, standing: Standing) -> bool:
        evaluated = any(record.kind == "evaluate" and record.round == standing.trained for record in standing.rounds)
        return standing.trained > 0 and self._is_evaluated(standing.trained) and not evaluated

    def server_state(self) -> dict[str, Tensor]:
        """The server optimizer's tensors: what a resumed run needs beside the weights."""
        return self._step.state()

    @property
    def teacher(self) -> ArrayRecord | None:
        """f_T as it was after warm-up; None before."""
        return self._teacher

    def deadline_seconds(self) -> float:
        """How long the open round waits for its replies."""
        return self._round.deadline_seconds or self._settings.rounds.timeout_seconds

    @property
    def weights(self) -> dict[str, Tensor]:
        """The global weights by wire name; they change in place with each round."""
        return self._step.weights

    def initial_arrays(self) -> ArrayRecord:
        """The global weights as they are now: what :meth:`start` takes."""
        return ArrayRecord(dict(self.weights))

    def summary(self) -> None:
        rounds, strategy = self._settings.rounds, self._settings.strategy
        weights = f"weighted by {strategy.weighting}" if strategy.aggregation == "mean" else "every site alike"
        LOG.info(
            "%s over the %s, %s: %d warm-up and %d minimax rounds, at least %d sites each",
            strategy.name, strategy.aggregation.replace("_", " "), weights,
            rounds.warmup, rounds.minimax, rounds.min_sites,
        )  # fmt: skip

    # ---- train: validate -> mean -> noise -> server step

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One request for each site; in minimax rounds with the teacher for those that do not hold it yet."""
        rounds, number = self._settings.rounds, server_round + self._done
        self._round = Round("train", number, self._settings.phase(number))
        if number <= self._trained:
            return []
        nodes = wait_for_nodes(grid, rounds.min_sites, rounds.timeout_seconds, self._wait_poll_seconds)
        self._round.dropped += self._roster.meet(grid, nodes)
        if self._teacher is None and self._round.phase == "minimax":
            self._teacher = ArrayRecord({name: array for name, array in arrays.items() if name.startswith(ACTION)})
        known = self._drawn(nodes)
        if self._budget is not None:
            self._budget.check_sites(len(known))
            self._budget.open_round(number)
        requests = self._collect(known, grid)
        self._open(list(requests))
        messages = []
        for node, further in requests.items():
            content = RecordDict({"arrays": arrays, "config": self._request(config), **further})
            if self._teacher is not None and node not in self._teacher_held:
                content["teacher"] = self._teacher
            messages.append(self._message(content, node, MessageType.TRAIN))
        return messages

    def _collect(self, nodes: list[int], grid: Grid) -> dict[int, dict[str, ConfigRecord]]:
        """Who plays the round, and what each needs for it beside the weights; how its replies are taken is fixed."""
        self._collector, self._void_reason = None, ""
        if not self._settings.secure.aggregation:
            self._collector = PlainCollector(
                self._settings, self._shapes, self._spool, self._roster.name, self._update_bound
            )
            return {node: {} for node in nodes}
        current = self._round
        secure = SecureSum(
            self._settings, self._roster.federation, current.number, self._shapes, self._roster.name, self._drop
        )
        current.secure = secure
        try:
            nodes = secure.begin(grid, nodes)
        except Void as void:
            self._void_reason = str(void)
            return {}
        self._collector = SecureCollector(secure, grid)
        return {node: {"secure": secure.request(node)} for node in nodes}

    def aggregate_train(
        self,
        server_round: int,  # noqa: ARG002 (Flower's; the round was opened by configure_train)
        replies: Iterable[Message],
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Take the replies as they arrive.

        Raises:
            RunStopped: this was the last of ``rounds.max_void_rounds`` void rounds in a row.
        """
        if self._round.number <= self._trained:
            return None, None
        for reply in replies:
            if self._collector is not None:
                self._take(reply, self._collector.add)
            del reply  # the next one must not be loaded while this one is alive
        collected, self._collector = self._collected(), None
        mean = collected.mean
        if mean and self._budget is not None:
            mean = self._budget.release(self._round.number, mean, collected.sites, collected.within)
        void = not mean
        if mean:
            self._step.apply(mean)  # which consumes it
        collected.mean = {}
        del mean  # one model less in memory while the new weights are packed
        record = self._finish(void, collected.reason)
        self._count_void(record)
        return (None if void else self.initial_arrays()), _metric_record(record)

    @property
    def _update_bound(self) -> float:
        """L2 of a site's update in the open round; 0: none."""
        if self._budget is not None and self._settings.dp.unit == "site":
            return self._budget.clip_norm  # the settings', or where an adaptive one has come to
        return self._settings.update_bound

    def _collected(self) -> Collected:
        """What the replies come to; nothing where they are too few."""
        if self._collector is None:
            return Collected({}, 0, reason=self._void_reason)
        count, needed = len(self._round.sites), self._settings.rounds.min_sites
        if count < needed:
            self._collector.discard()
            return Collected({}, count, reason=f"{count} valid replies, {needed} needed")
        return self._collector.close()

    def _count_void(self, record: RoundRecord) -> None:
        self._void_rounds = self._void_rounds + 1 if record.void else 0
        limit = self._settings.rounds.max_void_rounds
        if self._void_rounds >= limit:
            reasons = "; ".join(f"{drop.name}: {drop.reason}" for drop in record.dropped) or "no site was connected"
            raise RunStopped(
                f"{limit} void rounds in a row (rounds.max_void_rounds), the last one round {record.round}: "
                f"{record.reason} (rounds.min_sites = {self._settings.rounds.min_sites}). {reasons}. "
                "The weights are those of the last valid round."
            )

    # ---- evaluate

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One request for each connected site in every k-th round and after the last; none otherwise."""
        number = server_round + self._done
        self._round = Round("evaluate", number, self._settings.phase(number))
        if not self._is_evaluated(number):
            return []
        nodes = self._open(self._drawn(grid.get_node_ids()))
        request = self._request(config)
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
        void = not self._round.sites
        return _metric_record(self._finish(void, "0 valid replies, 1 needed" if void else ""))

    def _is_evaluated(self, number: int) -> bool:
        if self._settings.dp.on:
            return False  # what a site finds on its own videos is not covered by the noise
        every = self._settings.rounds.evaluate_every
        return number == self._settings.total_rounds or bool(every and number % every == 0)

    def _check_evaluation(self, content: RecordDict, node: int) -> dict[str, float]:  # noqa: ARG002
        metrics = content.metric_records.get("metrics")
        if metrics is None:
            raise RejectedUpdate("the reply lacks the record 'metrics'")
        checked_count("examples", metrics.get("examples"), self._settings.strategy.max_examples)
        return finite_metrics(metrics)

    # ---- both

    def _drawn(self, nodes: Iterable[int]) -> list[int]:
        current, settings = self._round, self._settings
        return self._roster.draw(nodes, settings.rounds.sites, "sites", settings.seed, current.kind, current.number)

    def _open(self, nodes: list[int]) -> list[int]:
        """The round's sites are known: choose its deadline."""
        current, names = self._round, [self._roster.name(node) for node in nodes]
        current.deadline_seconds = self._deadlines.seconds(current.kind, current.phase, names)
        if self._observer is not None:
            self._observer.opened(current, names)
        LOG.info(
            "%s round %d of %d (%s): %d sites, at most %g s",
            current.kind, current.number, self._settings.total_rounds, current.phase,
            len(nodes), current.deadline_seconds,
        )  # fmt: skip
        current.sent = time.monotonic()
        return nodes

    def _request(self, config: ConfigRecord) -> ConfigRecord:
        request = ConfigRecord(dict(config))
        request["round"] = self._round.number
        request["phase"] = self._round.phase
        request["federation"] = self._roster.federation
        request["classes"] = list(self._roster.classes)
        if self._settings.dp.adaptive_quantile > 0:
            request["clip_norm"] = self._update_bound
        return request

    def _message(self, content: RecordDict, node: int, kind: str) -> Message:
        self._round.asked[node] = wire_bytes(content)
        ttl = self._round.deadline_seconds + TTL_MARGIN_SECONDS
        message = Message(content, node, kind, ttl=ttl, group_id=str(self._round.number))
        self._round.requests[node] = message.metadata
        return message

    def _take(self, reply: Message, use: Callable[[RecordDict, int], dict[str, float]]) -> None:
        """Validate one reply and use its content; whatever is wrong with it, it is left out with the reason."""
        node = self._round.node_of(reply)
        name = self._roster.name(node)
        try:
            site = self._round.take(reply, node, name, use)
        except RejectedUpdate as rejection:
            self._drop(Dropped(node, name, str(rejection)))
            return
        self._note_teacher(reply.content, node)
        if self._observer is not None:
            self._observer.heard(site)

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
        if self._observer is not None:
            self._observer.dropped(drop)

    def _finish(self, void: bool, reason: str) -> RoundRecord:
        """Close the round: name the silent sites, weigh the metrics, tell the listeners."""
        current = self._round
        for node in current.silent():
            silence = f"no valid reply within {current.deadline_seconds:g} s"
            self._drop(Dropped(node, self._roster.name(node), silence, late=True))
        if void:
            LOG.warning("%s round %d is void, nothing changes: %s", current.kind, current.number, reason)
        elif reason:
            LOG.warning("%s round %d: %s", current.kind, current.number, reason)
        record = current.record(void, reason)
        replied = {site.name: site.seconds for site in record.sites}
        late = [drop.name for drop in record.dropped if drop.late]
        self._deadlines.learn(current.kind, current.phase, replied, late, current.deadline_seconds)
        if self._on_round is not None:
            self._on_round(record)
        if self._observer is not None:
            self._observer.closed(record)
        return record


def _metric_record(record: RoundRecord) -> MetricRecord:
    """The round in Flower's own history."""
    counts = {"sites": len(record.sites), "dropped": len(record.dropped), "void": int(record.void)}
    return MetricRecord({**record.metrics, **counts, "bytes_up": record.bytes_up, "bytes_down": record.bytes_down})
