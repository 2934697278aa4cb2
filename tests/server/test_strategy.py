"""The federation's rounds over scripted sites that speak the real Message API: no site can end a run alone."""

import contextlib
import copy
import gc
import logging
import weakref
from functools import partial

import hypothesis
import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from hypothesis import given
from hypothesis import strategies as st

from server.app import quiet_flower
from server.grid import ArrivalGrid
from server.join import Roster, SiteCard, agree_classes, wait_for_nodes
from server.step import ServerStep
from server.strategy import FedSPAct
from server.wire import wire_bytes
from simulations.inprocess import become_task
from spact_models.errors import RunStopped, UserError
from spact_models.quantize import narrowed
from spact_models.round_settings import StrategyConfig
from spact_models.run_config import load_settings

become_task()
WEIGHTS = {"anonymizer.w": torch.tensor([[1.0, -2.0], [0.5, 3.0]]), "action.head": torch.tensor([0.25, -1.0, 2.0])}
BRANCH_NAMES = {"anonymizer": ["anonymizer.w"], "action": ["action.head"]}
CLASSES = ["jump", "walk"]


class Site:
    """A well-behaved site. ``behave(request, reply)`` may spoil its train replies: it returns what is sent instead."""

    def __init__(self, name, seed=0, classes=CLASSES, examples=(4, 4), behave=None):
        self.name, self.classes, self.examples, self.behave = name, classes, examples, behave
        self.rng = np.random.default_rng(seed)
        self.requests, self.updates, self.has_teacher = [], [], False

    def answer(self, request):
        kind, content = request.metadata.message_type, request.content
        self.requests.append((kind, content))
        site = {"name": self.name}
        if kind == "query":
            site.update(classes=list(self.classes), train_rows=8, test_rows=2)
            return [Message(RecordDict({"site": ConfigRecord(site)}), reply_to=request)]
        if kind == "evaluate":
            metrics = {"examples": self.examples[0], "top1": 0.5, "loss.privacy": float(self.examples[0])}
            reply = RecordDict({"metrics": MetricRecord(metrics), "site": ConfigRecord(site)})
        else:
            reply = self.train(content, site)
        message = Message(reply, reply_to=request)
        return self.behave(request, message) if self.behave else [message]

    def train(self, content, site):
        self.has_teacher |= "teacher" in content.array_records
        counts = dict(zip(BRANCH_NAMES, self.examples, strict=True))
        names = [name for branch, count in counts.items() if count for name in BRANCH_NAMES[branch]]
        update = {name: self.rng.normal(size=WEIGHTS[name].shape).astype(np.float32) for name in names}
        self.updates.append(update)
        metrics = {f"examples.{branch}": count for branch, count in counts.items()}
        metrics |= {"loss.action": 1.0, "loss.privacy": 2.0, "teacher_held": int(self.has_teacher)}
        arrays = ArrayRecord({name: Array(value) for name, value in update.items()})
        return RecordDict({"update": arrays, "metrics": MetricRecord(metrics), "site": ConfigRecord(site)})

    def asked(self, kind):
        return [content for each, content in self.requests if each == kind]


class ScriptedGrid(Grid):
    """Sites by node id; each answers when its message is pulled, with any number of replies."""

    def __init__(self, sites):
        self.sites = dict(enumerate(sites, start=11))
        self.inbox = {}
        self.count = 0

    def push_messages(self, messages):
        ids = []
        for message in messages:
            self.count += 1
            ids.append(f"m{self.count}")
            self.inbox[ids[-1]] = message
        return ids

    def pull_messages(self, message_ids):
        for name in list(message_ids):
            message = self.inbox.pop(name, None)
            if message is not None and message.metadata.dst_node_id in self.sites:
                yield from self.sites[message.metadata.dst_node_id].answer(message)

    def send_and_receive(self, messages, *, timeout=None):  # noqa: ARG002
        return self.pull_messages(self.push_messages(messages))

    def get_node_ids(self):
        return list(self.sites)

    def set_run(self, run): ...

    @property
    def run(self): ...

    def create_message(self, *args, **kwargs):
        raise NotImplementedError


def federate(sites, grid=None, weights=WEIGHTS, **overrides):
    """Run a federation; returns the strategy and its round records."""
    keys = {"rounds.warmup": 0, "rounds.minimax": 1, "rounds.timeout_seconds": 0.05}
    settings = load_settings({**keys, **{key.replace("__", "."): value for key, value in overrides.items()}})
    grid = grid or ScriptedGrid(sites)
    roster = Roster("f" * 32, settings.action_classes, 1.0)
    roster.meet(grid, grid.get_node_ids())
    roster.agree()
    records = []
    strategy = FedSPAct(settings, roster, weights, records.append, wait_poll_seconds=0.01)
    strategy.records = records  # so that a test can look at a run that was stopped
    federate.last = strategy
    with quiet_flower():
        result = strategy.start(
            grid, strategy.initial_arrays(), settings.total_rounds, timeout=settings.rounds.timeout_seconds
        )
    for name, array in result.arrays.items():  # what Flower hands on is what the strategy holds
        np.testing.assert_array_equal(array.numpy(), strategy.weights[name].numpy())
    return strategy, records


def unchanged(strategy):
    return all(torch.equal(strategy.weights[name], value) for name, value in WEIGHTS.items())


# ---- the plain round


def test_one_site_with_fedavg_gives_exactly_weights_plus_update():
    site = Site("a")
    strategy, records = federate([site])
    for name, value in WEIGHTS.items():
        np.testing.assert_array_equal(strategy.weights[name].numpy(), value.numpy() + site.updates[0][name])
    assert [(record.kind, record.round, record.phase) for record in records] == [
        ("train", 1, "minimax"),
        ("evaluate", 1, "minimax"),
    ]


def test_the_mean_is_weighted_branch_by_branch():
    sites = [Site("a", 1, examples=(1, 30)), Site("b", 2, examples=(3, 10)), Site("c", 3, examples=(4, 0))]
    strategy, records = federate(sites)
    a, b, c = (site.updates[0] for site in sites)
    mean = (a["anonymizer.w"] + 3 * b["anonymizer.w"] + 4 * c["anonymizer.w"]) / 8
    np.testing.assert_allclose(strategy.weights["anonymizer.w"], WEIGHTS["anonymizer.w"].numpy() + mean, atol=1e-6)
    mean = (30 * a["action.head"] + 10 * b["action.head"]) / 40
    np.testing.assert_allclose(strategy.weights["action.head"], WEIGHTS["action.head"].numpy() + mean, atol=1e-6)
    assert records[0].metrics["examples.anonymizer"] == 8


def test_a_branch_that_nobody_sends_stays_untouched_with_every_strategy():
    for name in ("fedavg", "fedprox", "fedavgm", "fedadam"):
        strategy, _ = federate([Site("a", examples=(4, 0))], strategy__name=name, rounds__minimax=2)
        assert torch.equal(strategy.weights["action.head"], WEIGHTS["action.head"])
        assert not torch.equal(strategy.weights["anonymizer.w"], WEIGHTS["anonymizer.w"])


def test_the_caller_s_weights_are_not_written_to():
    before = copy.deepcopy(WEIGHTS)
    federate([Site("a")])
    assert all(torch.equal(WEIGHTS[name], before[name]) for name in WEIGHTS)


def test_bytes_are_those_of_the_messages_content_as_it_is_serialised():
    replies = []

    def note(_request, reply):
        replies.append(reply.content)
        return [reply]

    sites = [Site("a", behave=note), Site("b", examples=(4, 0), behave=note)]
    _, (train, evaluate) = federate(sites)
    sent = [wire_bytes(content) for content in replies]
    assert [site.bytes_up for site in train.sites] == sent[:2]
    assert (train.bytes_up, evaluate.bytes_up) == (sum(sent[:2]), sum(sent[2:]))
    asked = [[wire_bytes(content) for content in site.asked("train")] for site in sites]
    assert [site.bytes_down for site in train.sites] == [size for (size,) in asked]
    assert train.bytes_down == sum(size for (size,) in asked) > evaluate.bytes_down > 0


def test_metrics_are_weighted_by_examples_and_spoilt_ones_are_left_out():
    def lie(request, reply):
        if request.metadata.message_type == "train":
            reply.content.metric_records["metrics"].update({"loss.privacy": float("nan"), "loss.action": 7.0})
        return [reply]

    _, (train, evaluate) = federate([Site("a", examples=(2, 6)), Site("b", examples=(8, 2), behave=lie)])
    assert train.metrics["loss.action"] == pytest.approx((6 * 1.0 + 2 * 7.0) / 8)
    assert train.metrics["loss.privacy"] == pytest.approx(2.0)
    assert evaluate.metrics["loss.privacy"] == pytest.approx((2 * 2.0 + 8 * 8.0) / 10)
    assert evaluate.metrics["examples"] == 10
    assert [site.name for site in train.sites] == ["a", "b"]
    assert train.sites[1].metrics["loss.action"] == 7.0


def test_int8_updates_are_read_with_their_scales_and_a_reply_without_them_is_left_out():
    def quantise(request, reply, with_scales=True):
        if request.metadata.message_type == "train":
            update = reply.content.array_records["update"]
            change = {name: torch.from_numpy(array.numpy().copy()) for name, array in update.items()}
            packed = narrowed(change, "int8", {})
            reply.content["update"] = ArrayRecord({name: Array(value.numpy()) for name, value in packed.values.items()})
            if with_scales:
                reply.content["scales"] = MetricRecord(packed.scales)
        return [reply]

    for more in ({}, {"strategy__norm_bound": 1e3}, {"strategy__aggregation": "median", "rounds__min_sites": 3}):
        sites = [Site(name, 1, behave=quantise) for name in ("a", "b", "c")]
        sites.append(Site("d", 2, behave=partial(quantise, with_scales=False)))
        strategy, (train, _) = federate(sites, **more)
        assert [site.name for site in train.sites] == ["a", "b", "c"]
        assert ["scales of the update: missing" in drop.reason for drop in train.dropped] == [True]
        for name, value in WEIGHTS.items():
            change = sites[0].updates[0][name]
            np.testing.assert_allclose(strategy.weights[name], value.numpy() + change, atol=np.abs(change).max() / 250)


def test_with_chosen_layers_exactly_those_come_and_the_others_never_move():
    chosen = {"wire__parameters": "anonymizer.w,action.h*"}
    strategy, (train, _) = federate([Site("a")], **chosen)
    assert len(train.sites) == 1
    more = {**WEIGHTS, "action.trunk": torch.ones(3)}
    strategy, (train, _) = federate([Site("a")], weights=more, **chosen)
    assert torch.equal(strategy.weights["action.trunk"], torch.ones(3))
    assert not torch.equal(strategy.weights["action.head"], WEIGHTS["action.head"])
    with pytest.raises(UserError, match=r"'action.fc.\*', matches no parameter of the run's networks. Near it are: a"):
        federate([Site("a")], wire__parameters="anonymizer.*,action.fc.*")


# ---- the server's step against its formulas


def twin(name, gradients, lr, momentum=0.9, beta1=0.9, beta2=0.99, tau=1e-3):
    """The server step in numpy, in double precision; a gradient is minus the mean difference."""
    w, first, second = 1.0, 0.0, 0.0
    for t, gradient in enumerate(gradients, start=1):
        if name == "fedavgm":
            first = momentum * first + gradient if t > 1 else gradient
            w -= lr * first
        elif name == "fedadam":
            first = beta1 * first + (1 - beta1) * gradient
            second = beta2 * second + (1 - beta2) * gradient**2
            w -= lr * (first / (1 - beta1**t)) / (np.sqrt(second / (1 - beta2**t)) + tau)
        else:
            w -= lr * gradient
    return w


@pytest.mark.parametrize("name", ["fedavg", "fedprox", "fedavgm", "fedadam"])
@pytest.mark.parametrize("lr", [1.0, 0.1])
def test_server_step_equals_its_formula_by_hand(name, lr):
    means = [0.5, -0.25, 0.125, 1.0]
    step = ServerStep(StrategyConfig(name=name, learning_rate=lr), {"action.w": torch.ones(1)})
    for mean in means:
        step.apply({"action.w": torch.tensor([mean])})
    expected = twin(name, [-mean for mean in means], lr)
    assert step.weights["action.w"].item() == pytest.approx(expected, rel=1e-5)


def test_moments_of_an_absent_branch_wait_for_it():
    def run(gaps):
        step = ServerStep(StrategyConfig(name="fedadam"), {"action.w": torch.ones(1), "anonymizer.w": torch.ones(1)})
        for mean in (0.5, -0.25, 0.125):
            step.apply({"action.w": torch.tensor([mean]), "anonymizer.w": torch.tensor([mean])})
            if gaps:
                step.apply({"anonymizer.w": torch.tensor([1.0])})
        return step.weights["action.w"].item()

    assert run(gaps=True) == run(gaps=False)


def test_server_step_refuses_names_it_does_not_know():
    with pytest.raises(KeyError, match=r"action\.v"):
        ServerStep(StrategyConfig(), {"action.w": torch.ones(1)}).apply({"action.v": torch.ones(1)})


# ---- a bad site of every kind


def spoil(change):
    """Behaviour: a train reply whose content ``change`` has edited."""

    def behave(request, reply):
        if request.metadata.message_type == "train":
            change(reply.content)
        return [reply]

    return behave


def put(name, value):
    def change(content):
        content.array_records["update"][name] = Array(value)

    return spoil(change)


def claim(**metrics):
    named = {name.replace("__", "."): value for name, value in metrics.items()}
    return spoil(lambda content: content.metric_records["metrics"].update(named))


def error(reason):
    return lambda request, _: [Message(Error(2, reason), reply_to=request)]


def stale(request, reply):
    if request.metadata.message_type == "train":
        reply.metadata.group_id = "0"
    return [reply]


def wrong_kind(request, reply):
    if request.metadata.message_type == "train":
        reply.metadata.message_type = "evaluate"
    return [reply]


def stranger(request, reply):
    if request.metadata.message_type == "train":
        reply.metadata.__dict__["_src_node_id"] = 99
    return [reply]


BAD = {
    "error": (error("Traceback\n  File x\nOutOfMemory: no room"), "error 2: OutOfMemory: no room"),
    "empty error": (error(""), "error 2: no reason given"),
    "refusal": (error("refused: too few sites"), "error 2: refused: too few sites"),
    "silent": (lambda *_: [], "no valid reply within"),
    "nan": (put("action.head", np.full(3, np.nan, np.float32)), "action.head holds nan"),
    "inf": (put("action.head", np.full(3, np.inf, np.float32)), "action.head holds inf"),
    "odd key": (put("privacy.w", np.zeros(3, np.float32)), "unexpected privacy.w"),
    "missing key": (spoil(lambda c: c.array_records["update"].pop("action.head")), "missing action.head"),
    "shape": (put("action.head", np.zeros(4, np.float32)), r"shape (4,), must be (3,)"),
    "integers": (put("action.head", np.zeros(3, np.int32)), "of type int32"),
    "oversize": (put("action.head", np.zeros(3_000_000, np.float32)), r"shape (3000000,), must be (3,)"),
    "flood": (claim(**{f"m{number}": 1.0 for number in range(100)}), "must be at most 64"),
    "long name": (claim(**{"m" * 65: 1.0}), "names of up to 65 characters"),
    "absurd weight": (claim(examples__action=10**12), "examples.action = 1000000000000"),
    "negative weight": (claim(examples__action=-1), "examples.action = -1"),
    "no weight": (claim(examples__action=0, examples__anonymizer=0), "no branch has examples"),
    "float weight": (claim(examples__action=2.0), "examples.action = 2.0"),
    "no update": (spoil(lambda c: c.pop("update")), "lacks the record 'update'"),
    "no metrics": (spoil(lambda c: c.pop("metrics")), "lacks the record 'update' or 'metrics'"),
    "nothing": (spoil(lambda c: c.clear()), "lacks the record"),
    "stale": (stale, "a stale reply of round '0', this is round 1"),
    "wrong kind": (wrong_kind, "a reply to 'evaluate', asked was 'train'"),
    "stranger": (stranger, "was not asked in this round"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_site_is_left_out_with_its_reason_and_changes_nothing(case, caplog):
    behave, reason = BAD[case]
    good = [Site("a", 1), Site("b", 2)]
    with caplog.at_level(logging.WARNING, logger="fedspact.server"):
        strategy, records = federate([good[0], Site("bad", 3, behave=behave), good[1]], rounds__min_sites=2)
    expected, _ = federate([Site("a", 1), Site("b", 2)])
    for name in WEIGHTS:
        assert torch.equal(strategy.weights[name], expected.weights[name])
    assert not records[0].void
    assert [site.name for site in records[0].sites] == ["a", "b"]
    assert any(reason in drop.reason for drop in records[0].dropped)
    assert reason in caplog.text


dtypes = st.sampled_from(["float32", "float16", "int8", "float64", "int32", "bool", "complex64", "U3", "object"])
odd_numbers = st.one_of(
    st.integers(-(2**63), 2**64 - 1), st.floats(), st.booleans(), st.text(max_size=5), st.binary(max_size=5),
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3), st.just(10**12),
)  # fmt: skip
names = st.sampled_from(["anonymizer.w", "action.head", "privacy.w", "examples.action", "examples.anonymizer"])
names |= st.text(max_size=70)


@st.composite
def odd_arrays(draw):
    """An array as a message brings it: any type, any shape, bytes that may be cut short, changed or somebody else's."""
    shape = draw(st.sampled_from([(3,), (2, 2), (), (0,), (3, 1), (1 << 12,)]))
    array = Array(np.zeros(shape, draw(dtypes.filter(lambda name: name != "object"))))
    data = draw(st.one_of(st.just(array.data), st.binary(max_size=300), st.just(array.data[:-1])))
    dtype = draw(st.just(array.dtype) | dtypes)
    stype = draw(st.just(array.stype) | st.text(max_size=8))
    told = draw(st.just(tuple(array.shape)) | st.sampled_from([(3,), (2, 2), (2**40,), (-1,), (1 << 31, 1 << 31)]))
    return Array(dtype=dtype, shape=told, stype=stype, data=data)


@hypothesis.settings(max_examples=60, deadline=None, database=None, phases=[hypothesis.Phase.generate])
@given(
    st.dictionaries(names, odd_arrays(), max_size=3),
    st.dictionaries(names, odd_numbers, max_size=3),
    st.dictionaries(names, odd_numbers, max_size=3),
    st.dictionaries(st.sampled_from(["name", "classes"]), odd_numbers, max_size=2),
)
def test_whatever_a_site_replies_it_changes_nothing_or_is_a_lawful_update(update, metrics, scales, site):
    def behave(request, reply):
        if request.metadata.message_type == "train":
            reply.content.array_records["update"].update(update)
            for record, odd in (("metrics", metrics), ("scales", scales), ("site", site)):
                put_lawfully(reply.content, record, odd)
        return [reply]

    strategy, (train, *_) = federate([Site("a", 1), Site("odd", 3, behave=behave)])
    assert not train.void
    assert sorted([site.name for site in train.sites if site.node == 12] + [drop.node for drop in train.dropped]) in (
        [12], ["odd"],
    )  # fmt: skip
    if train.dropped:
        alone, _ = federate([Site("a", 1)])
        assert all(torch.equal(strategy.weights[name], alone.weights[name]) for name in WEIGHTS)
    for name, value in strategy.weights.items():
        assert bool(value.isfinite().all())
        assert value.shape == WEIGHTS[name].shape


def put_lawfully(content, record, odd):
    """Flower's own records already refuse some values; what they take reaches the server."""
    kind = ConfigRecord if record == "site" else MetricRecord
    kept = content[record] if record in content else kind()
    for name, value in odd.items():
        with contextlib.suppress(TypeError, ValueError):
            kept[name] = value
    content[record] = kept


def test_a_reply_of_an_earlier_round_sent_again_is_dropped():
    kept = []

    def replay(request, reply):
        if request.metadata.message_type != "train":
            return [reply]
        kept.append(reply)
        return [kept[0]]  # from round 2 on instead of its own, so that nothing else comes from it

    strategy, records = federate([Site("a", 1), Site("b", 2, behave=replay)], rounds__minimax=2)
    twin, _ = federate([Site("a", 1), Site("b", 2)], rounds__minimax=1)
    second = [record for record in records if record.kind == "train"][1]
    assert second.dropped[0].reason == "a stale reply of round '1', this is round 2"
    assert [site.name for site in second.sites] == ["a"]
    assert not torch.equal(strategy.weights["action.head"], twin.weights["action.head"])  # round 2 went on with a


def test_of_two_sites_with_one_name_the_first_stays_until_it_is_gone():
    first, second = Site("north", 1), Site("north", 2)
    grid = ScriptedGrid([first, second, Site("south", 3)])

    def leave(request, reply):
        if request.metadata.message_type == "train" and request.metadata.group_id == "2":
            del grid.sites[11]  # its SuperNode ends; the other one was its restart
        return [reply]

    first.behave = leave
    _, records = federate([], grid=grid, rounds__minimax=3)
    train = [record for record in records if record.kind == "train"]
    assert [[site.node for site in record.sites] for record in train] == [[11, 13], [11, 13], [12, 13]]
    assert "node 11 is connected under the name north too, and names must differ" in train[0].dropped[0].reason
    assert not train[2].dropped


def test_what_the_superlink_says_for_a_node_that_is_gone_is_that_site_s_reason():
    """flwr 1.41 answers in its own name (node 1) when a node's heartbeat has failed."""

    def gone(request, reply):
        if request.metadata.message_type != "train":
            return [reply]
        request.metadata.__dict__["_message_id"] = "m-7"  # as Flower's Grid does when it pushes
        told = Message(Error(5, "Node Unavailable"), reply_to=request)
        told.metadata.__dict__["_src_node_id"] = 1
        return [told]

    _, records = federate([Site("a", 1), Site("b", 2, behave=gone)])
    assert [(drop.name, drop.node, drop.reason) for drop in records[0].dropped] == [
        ("b", 12, "error 5: Node Unavailable")
    ]


def test_a_second_reply_of_one_site_in_one_round_is_dropped():
    def twice(request, reply):
        second = Message(copy.deepcopy(reply.content), reply_to=request)
        return [reply, second]

    site = Site("a", 1, behave=twice)
    strategy, records = federate([], grid=ArrivalGrid(ScriptedGrid([site])))
    assert [drop.reason for drop in records[0].dropped] == ["a second reply in one round; the first one counts"]
    np.testing.assert_array_equal(
        strategy.weights["action.head"], WEIGHTS["action.head"].numpy() + site.updates[0]["action.head"]
    )


def test_the_first_reply_counts_even_when_it_is_bad():
    def bad_then_good(request, reply):
        bad = Message(RecordDict(), reply_to=request)
        return [bad, reply] if request.metadata.message_type == "train" else [reply]

    strategy, records = federate([Site("a", behave=bad_then_good)])
    assert records[0].void
    assert len(records[0].dropped) == 2
    assert unchanged(strategy)


def test_a_bad_evaluation_is_left_out():
    def lie(request, reply):
        if request.metadata.message_type == "evaluate":
            reply.content.metric_records["metrics"]["examples"] = 10**12
        return [reply]

    _, (_, evaluate) = federate([Site("a"), Site("bad", behave=lie)])
    assert [site.name for site in evaluate.sites] == ["a"]
    assert "examples = 1000000000000" in evaluate.dropped[0].reason


def test_one_reply_at_a_time_is_alive_good_or_bad():
    """Constant memory: whatever the number of sites, the one before is gone when the next one is made."""
    alive = []

    def watched(request, reply):
        if request.metadata.message_type == "train":
            gc.collect()
            assert [ref for ref in alive if ref() is not None] == []
            alive.extend([weakref.ref(reply), weakref.ref(reply.content.array_records["update"])])
            if len(alive) % 4 == 0:  # every other one is bad
                reply.content.metric_records["metrics"]["examples.action"] = -1
        return [reply]

    sites = [Site(f"s{number}", number, behave=watched) for number in range(6)]
    _, records = federate([], grid=ArrivalGrid(ScriptedGrid(sites)))
    assert len(alive) == 12
    assert (len(records[0].sites), len(records[0].dropped)) == (3, 3)


# ---- quorum and void rounds


def test_a_round_below_the_quorum_is_void_and_says_so(caplog):
    rounds = iter([error("ill")] * 2)  # its two train requests and no more

    def ill_at_first(request, reply):
        behave = next(rounds, None) if request.metadata.message_type == "train" else None
        return behave(request, reply) if behave else [reply]

    sites = [Site("a", 1), Site("b", 2, behave=ill_at_first)]
    with caplog.at_level(logging.WARNING, logger="fedspact.server"):
        strategy, records = federate(sites, rounds__min_sites=2, rounds__minimax=3, rounds__max_void_rounds=3)
    train = [record for record in records if record.kind == "train"]
    assert [record.void for record in train] == [True, True, False]
    assert train[0].reason == "1 valid replies, 2 needed"
    assert "train round 1 is void" in caplog.text
    sent = [content.array_records["arrays"]["action.head"].numpy() for content in sites[0].asked("train")]
    for received in sent:
        np.testing.assert_array_equal(received, WEIGHTS["action.head"])  # unchanged through the void rounds
    mean = (sites[0].updates[2]["action.head"] + sites[1].updates[2]["action.head"]) / 2
    np.testing.assert_allclose(strategy.weights["action.head"], WEIGHTS["action.head"].numpy() + mean, atol=1e-6)


def test_so_many_void_rounds_in_a_row_stop_the_run():
    with pytest.raises(RunStopped, match=r"2 void rounds in a row .*round 2: .*min_sites = 2.*b: error 2: ill"):
        federate(
            [Site("a"), Site("b", behave=error("ill"))],
            rounds__min_sites=2,
            rounds__minimax=5,
            rounds__max_void_rounds=2,
        )
    assert [record.void for record in federate.last.records if record.kind == "train"] == [True, True]
    assert unchanged(federate.last)


def test_a_valid_round_between_starts_the_count_anew():
    turn = iter([True, False] * 4)

    def every_other(request, reply):
        if request.metadata.message_type == "train" and next(turn):
            return error("ill")(request, reply)
        return [reply]

    _, records = federate([Site("a", behave=every_other)], rounds__minimax=6, rounds__max_void_rounds=2)
    assert [record.void for record in records if record.kind == "train"] == [True, False] * 3


def test_a_round_asks_some_of_the_sites_and_each_has_its_turn():
    sites = [Site(f"s{number}", number) for number in range(6)]
    keys = {"rounds__sites": 2, "rounds__min_sites": 2, "rounds__minimax": 12}
    _, records = federate(sites, **keys)
    train = [record for record in records if record.kind == "train"]
    drawn = [frozenset(site.name for site in record.sites) for record in train]
    assert {len(names) for names in drawn} == {2}
    assert not any(record.dropped for record in train)  # who is not asked is not left out
    assert frozenset().union(*drawn) == {site.name for site in sites}
    assert len(set(drawn)) > 4
    _, again = federate([Site(f"s{number}", number) for number in reversed(range(6))], **keys)  # other node ids
    assert [frozenset(site.name for site in record.sites) for record in again if record.kind == "train"] == drawn
    _, other = federate([Site(f"s{number}", number) for number in range(6)], seed=1, **keys)
    assert [frozenset(site.name for site in record.sites) for record in other if record.kind == "train"] != drawn


def test_fewer_sites_than_the_quorum_cannot_be_asked():
    with pytest.raises(UserError, match=r"rounds\.sites = 1, must be 0 \(all\) or at least rounds\.min_sites = 2"):
        load_settings({"rounds.sites": 1, "rounds.min_sites": 2})


def test_no_connected_site_is_a_void_round_and_not_a_crash():
    site = Site("a")
    grid = ScriptedGrid([site])

    def leave(request, reply):
        if request.metadata.message_type == "train":
            grid.sites.clear()
        return [reply]

    site.behave = leave
    with pytest.raises(RunStopped, match="no site was connected"):
        federate([], grid=grid, rounds__minimax=4, rounds__max_void_rounds=2)
    assert [record.void for record in federate.last.records if record.kind == "train"] == [False, True, True]


# ---- the schedule


def test_warm_up_then_minimax_and_what_a_request_holds():
    site = Site("a")
    federate([site], rounds__warmup=2, rounds__minimax=1)
    configs = [content.config_records["config"] for content in site.asked("train")]
    assert [(config["round"], config["phase"]) for config in configs] == [(1, "warmup"), (2, "warmup"), (3, "minimax")]
    assert {config["federation"] for config in configs} == {"f" * 32}
    assert all(config["classes"] == CLASSES for config in configs)
    assert all(set(content.array_records["arrays"]) == set(WEIGHTS) for content in site.asked("train"))


@pytest.mark.parametrize(("every", "expected"), [(0, [5]), (2, [2, 4, 5]), (1, [1, 2, 3, 4, 5]), (5, [5])])
def test_evaluation_every_k_rounds_and_after_the_last(every, expected):
    site = Site("a")
    _, records = federate([site], rounds__minimax=5, rounds__evaluate_every=every)
    assert [record.round for record in records if record.kind == "evaluate"] == expected
    assert [content.config_records["config"]["round"] for content in site.asked("evaluate")] == expected
    assert all("teacher" not in content.array_records for content in site.asked("evaluate"))


def test_the_teacher_goes_only_to_nodes_that_lack_it_and_is_the_last_warm_up_s_action():
    def forgets(request, reply):
        if request.metadata.message_type == "train" and request.content.config_records["config"]["round"] == 4:
            reply.content.metric_records["metrics"]["teacher_held"] = 0  # lost its state folder
        return [reply]

    steady, forgetful = Site("a", 1), Site("b", 2, behave=forgets)
    federate([steady, forgetful], rounds__warmup=2, rounds__minimax=4)
    sent = {
        site.name: ["teacher" in content.array_records for content in site.asked("train")]
        for site in (steady, forgetful)
    }
    assert sent == {"a": [False, False, True, False, False, False], "b": [False, False, True, False, True, False]}
    after_warm_up = steady.asked("train")[2].array_records["arrays"]["action.head"].numpy()
    for content in (steady.asked("train")[2], forgetful.asked("train")[4]):
        assert list(content.array_records["teacher"]) == ["action.head"]
        np.testing.assert_array_equal(content.array_records["teacher"]["action.head"].numpy(), after_warm_up)
    later = forgetful.asked("train")[4].array_records["arrays"]["action.head"].numpy()
    assert not np.array_equal(later, after_warm_up)  # the global f_T has moved on; the teacher has not


# ---- classes


def card(name, *classes):
    return SiteCard(hash(name) % 1000, name, tuple(classes), 1, 1)


def test_labelled_sites_agree_on_the_sorted_common_list_and_unlabelled_ones_join():
    assert agree_classes([card("a", "walk", "jump"), card("c"), card("b", "jump", "walk")], ()) == ("jump", "walk")


def test_a_mismatch_names_both_lists_both_sites_and_the_remedy():
    with pytest.raises(UserError) as raised:
        agree_classes([card("north", "walk", "jump"), card("south", "walk", "box")], ())
    for part in (
        "north",
        "south",
        "[box, walk]",
        "[jump, walk]",
        "adds box",
        "lacks jump",
        'action.classes = "box,jump,walk"',
    ):
        assert part in str(raised.value)


def test_a_fixed_list_may_hold_more_than_a_site_but_not_less():
    assert agree_classes([card("a", "walk"), card("b")], ("walk", "jump")) == ("walk", "jump")  # its own order
    assert agree_classes([card("b")], ("walk", "jump")) == ("walk", "jump")
    with pytest.raises(UserError, match=r"site a has \[box, walk\], the federation has \[jump, walk\]: it adds box"):
        agree_classes([card("a", "walk", "box")], ("walk", "jump"))


def test_nobody_with_labels_is_the_user_s_mistake():
    with pytest.raises(UserError, match=r"none of the 2 sites has action labels and action\.classes is empty"):
        agree_classes([card("a"), card("b")], ())


def test_a_mismatch_before_round_1_stops_and_asks_by_query():
    sites = [Site("a"), Site("b", classes=["walk", "box"])]
    with pytest.raises(UserError, match=r"site b has \[box, walk\]"):
        federate(sites)
    (query,) = sites[0].asked("query")
    assert dict(query.config_records["config"]) == {"federation": "f" * 32, "purpose": "join"}


def test_late_comers_join_if_their_classes_fit_and_are_left_out_if_not():
    first = Site("a")
    grid = ScriptedGrid([first])
    fits, unlabelled, misfit = Site("fits"), Site("unlabelled", classes=[]), Site("misfit", classes=["walk", "box"])

    def others_come(_, reply):
        grid.sites.update({50: fits, 51: unlabelled, 52: misfit})
        return [reply]

    first.behave = others_come
    _, records = federate([], grid=grid, rounds__minimax=3)
    train = [record for record in records if record.kind == "train"]
    assert [[site.name for site in record.sites] for record in train] == [["a"], *[["a", "fits", "unlabelled"]] * 2]
    assert [drop.name for drop in train[1].dropped] == ["misfit"]
    for part in ("site misfit", "[box, walk]", "[jump, walk]"):
        assert part in train[1].dropped[0].reason
    assert len(misfit.asked("query")) == 1  # told once, not asked every round
    assert not misfit.asked("train")
    assert len(fits.asked("query")) == 1


@pytest.mark.parametrize(
    "site", [{"classes": "walk"}, {"classes": ["walk", "walk"]}, {"classes": [1]}, {"train_rows": -1}, None]
)
def test_an_odd_introduction_is_left_out_and_asked_again(site):
    class Odd(Site):
        odd = True

        def answer(self, request):
            (reply,) = super().answer(request)
            if request.metadata.message_type == "query" and self.odd:
                self.odd = False
                if site is None:
                    reply.content.clear()
                else:
                    reply.content.config_records["site"].update(site)
            return [reply]

    late = Odd("odd")
    _, records = federate([Site("a"), late])
    assert len(late.asked("query")) == 2
    assert [each.name for each in records[0].sites] == ["a", "odd"]


# ---- around the rounds


def test_waiting_for_nodes_ends_with_enough_of_them_or_with_the_time():
    now = [0.0]
    grid = ScriptedGrid([Site("a")])

    def sleep(seconds):
        now[0] += seconds
        if now[0] >= 3:
            grid.sites[5] = Site("b")

    assert wait_for_nodes(grid, 2, 10.0, clock=lambda: now[0], sleep=sleep) == [5, 11]
    assert now[0] == 3.0
    assert wait_for_nodes(grid, 3, 10.0, clock=lambda: now[0], sleep=sleep) == [5, 11]
    assert now[0] == 13.0


def test_the_same_federation_through_the_arrival_grid():
    plain, _ = federate([Site("a", 1), Site("b", 2)], rounds__minimax=2)
    sites = [Site("a", 1), Site("b", 2)]
    arrivals, records = federate([], grid=ArrivalGrid(ScriptedGrid(sites), poll_seconds=0.01), rounds__minimax=2)
    for name in WEIGHTS:
        assert torch.equal(plain.weights[name], arrivals.weights[name])
    assert all(len(record.sites) == 2 for record in records)


def test_flower_is_quiet_inside_and_as_before_outside(caplog):
    logger = logging.getLogger("flwr")
    before = logger.level
    with caplog.at_level(logging.DEBUG), quiet_flower():
        logger.info("noise")
        logger.warning("signal")
    assert "noise" not in caplog.text
    assert "signal" in caplog.text
    assert logger.level == before
