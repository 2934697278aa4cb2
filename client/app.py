"""The ClientApp: Flower's handlers, wiring only. ``client.app:app`` is what a SuperNode runs."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor

from client.dp import Groups
from client.dp_ledger import SiteLedger, site_key
from client.egress import Door, Masked, Packed, Refused, introduction, signature
from client.footage import Footage, declared_classes, open_footage, split_rows
from client.gate import judge, receive
from client.masking import LONGEST_GROWTH, SecureSite, Vault
from client.membership import open_membership
from client.site import Site, load_site
from client.state import StateFolder
from client.training import RoundResult, RoundTask, evaluate, has_buffers, load_buffers, local_round
from client.video.decode import UnreadableVideo
from client.video.loader import ClipLoader
from spact_models.accounting import steps_of
from spact_models.agreement import BrokenProtocol
from spact_models.errors import UserError
from spact_models.exchange import BRANCHES, clipped, difference, install, length, shared_parameters, trained_names
from spact_models.files import UnwritableFile
from spact_models.gate import FIGURES
from spact_models.gate import PURPOSE as RELEASE
from spact_models.networks import Networks, build_networks
from spact_models.resident import peak_rss_mb
from spact_models.ring import TAUGHT
from spact_models.run_config import load_settings
from spact_models.seeds import pick_device, seed_for
from spact_models.settings import Settings

log = logging.getLogger("fedspact.site")
SITE_CANNOT = 400  # error code of a reply in which the site says why it cannot, or will not, take part
ASKED = ("keys", "shares", "confirm", "unmask")  # the short messages of secure aggregation
SITE_FAILED = 500  # and of one that names no more than the kind of a fault that nobody foresaw
GPU_TOO_SMALL = (
    "this site's GPU memory is too small for the run: lower batch.clips, batch.views or memory.budget_gib (0 = no "
    "limit) there, or limits.batch_clips or limits.batch_views here; or raise the site's limits.gpu_memory_share"
)


class OwnFilesFault(UserError):
    """Something is wrong with the site's own files. Their names and what they hold stay in the site's log."""

    @property
    def told(self) -> str:
        """What the server may read: the message's first line if no path is in it."""
        line = str(self).partition("\n")[0]
        return "the site's own files cannot be used; its log says why" if {"/", "\\"} & set(line) else line


def make_app(run_config: Mapping[str, Any] | None = None, site_files: list[str] | None = None) -> ClientApp:
    """The ClientApp; simulations bind the run's configuration and the simulated nodes' site files to it.

    A real SuperNode needs neither: Flower hands it the run configuration, and ``--node-config`` names its site file.
    """
    app = ClientApp()

    def serve(handler: Callable[[Site, Settings, Message], RecordDict], message: Message, context: Context) -> Message:
        try:
            file = _site_file(context, site_files)
            with _own_files():
                site = load_site(file)
            settings = load_settings(run_config if run_config is not None else context.run_config)
            site.refuse.check_run(settings, _round_of(message))
            settings = site.limits.bounded(settings)
            return Message(handler(site, settings, message), reply_to=message)
        except (UserError, Refused, BrokenProtocol) as error:
            log.error("%s", error)
            if isinstance(error, UnwritableFile):  # wherever it was written: its path is the site's own matter
                error = OwnFilesFault(str(error))
            told = error.told if isinstance(error, OwnFilesFault) else str(error)
            return Message(Error(SITE_CANNOT, told), reply_to=message)
        except torch.OutOfMemoryError as error:  # a GPU's; its text names nothing of the site's but says no remedy
            log.error("%s: %s", GPU_TOO_SMALL, error, exc_info=True)
            return Message(Error(SITE_CANNOT, GPU_TOO_SMALL), reply_to=message)
        except Exception as error:  # Flower would put its text, which may name a file, into the reply
            log.error("%s: %s", type(error).__name__, error, exc_info=True)
            return Message(Error(SITE_FAILED, f"{type(error).__name__}; the site's log says more"), reply_to=message)

    @app.query()
    def query(message: Message, context: Context) -> Message:
        return serve(answer_query, message, context)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return serve(answer_train, message, context)

    @app.evaluate()
    def evaluate_(message: Message, context: Context) -> Message:
        return serve(answer_evaluate, message, context)

    return app


def answer_query(site: Site, settings: Settings, message: Message) -> RecordDict:
    """Who the site is, or what its own judgement of an anonymizer is, by the request's purpose."""
    config = message.content.config_records.get("config", ConfigRecord())
    answers = {"join": answer_join, RELEASE: answer_release, **{f"secure.{stage}": answer_secure for stage in ASKED}}
    purpose = str(config.get("purpose", "join"))
    if purpose not in answers:
        raise UserError(f"purpose = {purpose!r:.40}, this site answers to: {', '.join(answers)}")
    return answers[purpose](site, settings, message)


def answer_release(site: Site, settings: Settings, message: Message) -> RecordDict:
    """Fresh attackers on the site's own videos, behind the anonymizer that came; only their figures leave."""
    config = message.content.config_records["config"]
    site.limits.check_hours(datetime.now())
    site.refuse.check_judgement(FIGURES)
    attackers = [str(name) for name in config["attackers"]]  # type: ignore[union-attr]
    states = StateFolder(site.state, str(config["federation"]))
    content = message.content.array_records["model"]["file"].numpy().tobytes()
    received = receive(content, settings)
    device = _device(site, settings)
    with _own_files():
        footage = open_footage(site, received.settings, with_test=True)
        judgement = judge(received, footage, attackers, int(str(config["seed"])), device)
    door = Door(site.name, states.folder / "ledger.jsonl", frozenset())
    return door.judgement(judgement.figures(), received.sha256)


def answer_secure(site: Site, settings: Settings, message: Message) -> RecordDict:
    """One of the four short messages of secure aggregation (client/masking.py)."""
    config, asked = message.content.config_records["config"], message.content.config_records["secure"]
    stage = str(config["purpose"]).removeprefix("secure.")
    states = StateFolder(site.state, str(config["federation"]))
    answer = getattr(_secure_site(site, settings, states), stage)(asked)
    door = Door(site.name, states.folder / "ledger.jsonl", frozenset())
    return door.agreed(stage, answer, int(str(asked["round"])))


def answer_join(site: Site, settings: Settings, message: Message) -> RecordDict:  # noqa: ARG001
    """Who the site is: its name, its action names, how many videos it counts on. No file is opened but the manifest."""
    with _own_files():
        train, test = split_rows(site)
        classes = declared_classes(site)
    return RecordDict(
        {"site": introduction(site.name, classes, *((0, 0) if settings.dp.on else (len(train), len(test))))}
    )


def answer_train(site: Site, settings: Settings, message: Message) -> RecordDict:
    """One local round: restore the site's own state, play, save it, send the differences through the door."""
    site.limits.check_hours(datetime.now())
    config = message.content.config_records["config"]
    server_round = int(str(config["round"]))
    classes = _agreed_classes(site, message)
    networks, weights = _networks(site, settings, classes, message)
    teacher = message.content.array_records.get("teacher")
    task = RoundTask(server_round, str(config["phase"]), weights, None if teacher is None else _tensors(teacher))
    states = StateFolder(site.state, str(config["federation"]))
    secure = _secure_site(site, settings, states) if settings.secure.aggregation else None
    if secure is not None:
        secure.receive(message.content.config_records.get("secure", ConfigRecord()))
    with _own_files():
        footage = open_footage(site, settings)
        loader = footage.loader(settings, classes, networks.anonymizer.history)
        earlier = states.before(server_round)
        groups = _groups(site, settings, states, loader, task) if settings.dp.unit == "videos" else None
        result = local_round(task, settings, site.name, networks, loader, earlier, groups)
    door = _door(site, settings, networks, states)
    bound = _update_bound(settings, config)
    leaving, within = _leaving(result, weights, earlier.residual, door, settings, secure, bound)
    with _own_files():
        states.save(replace(result.state, residual={**earlier.residual, **leaving.residual}))
    told = withheld(result.metrics) if settings.dp.on else {**result.metrics, **_vital_signs(footage)}
    if settings.dp.adaptive_quantile > 0:
        told["within_clip"] = int(within)
    update = door.update(leaving, server_round)
    return RecordDict({**update, "metrics": door.metrics(site.refuse.told(_whole(told))), "site": signature(site.name)})


def _leaving(
    result: RoundResult,
    before: Mapping[str, Tensor],
    residual: Mapping[str, Tensor],
    door: Door,
    settings: Settings,
    secure: SecureSite | None,
    bound: float,
) -> tuple[Packed | Masked, bool]:
    """The round's update as it may leave: plain, private or masked; and whether it was within the bound as it was."""
    taught = [result.metrics[f"examples.{prefix[:-1]}"] > 0 for prefix in BRANCHES]
    if secure is None and not settings.dp.on:
        sent = tuple(prefix for prefix, some in zip(BRANCHES, taught, strict=True) if some)
        names = [name for name in result.weights if name in door.allowed and name.startswith(sent)]
        return door.pack(_chosen(result.weights, names), _chosen(before, names), residual), True
    # Whom a site's labels let learn shows neither here: both networks are sent, unmoved ones as zeros.
    moved = difference(_chosen(result.weights, door.allowed), _chosen(before, door.allowed))
    within = True
    if bound and (secure is not None or settings.dp.unit == "site"):
        within = length(moved) <= bound
        moved = clipped(moved, bound)
    if secure is None:
        return door.pack(moved, {name: torch.zeros_like(value) for name, value in moved.items()}, {}), within
    counts = torch.tensor([1] * len(BRANCHES) if settings.dp.on else [int(some) for some in taught])
    vectors = secure.masked(moved, counts, bound * LONGEST_GROWTH if bound else None)
    return Masked({name: words for name, words in vectors.items() if name != TAUGHT}, vectors[TAUGHT]), within


def _update_bound(settings: Settings, config: ConfigRecord) -> float:
    """L2 that the round's update is clipped to: the settings', or an adaptive one's present value.

    Raises:
        UserError: the server names none, or one that is no length.
    """
    if settings.dp.adaptive_quantile == 0:
        return settings.update_bound
    value = config.get("clip_norm")
    if not isinstance(value, float) or not 0 < value < math.inf:
        raise UserError(f"clip_norm = {value!r:.40} in the request, must be above 0: dp.adaptive_quantile is on")
    return value


def _chosen(tensors: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    return {name: value for name, value in tensors.items() if name in names}


def answer_evaluate(site: Site, settings: Settings, message: Message) -> RecordDict:
    """The global f_A and f_T on the site's held-out videos."""
    if settings.dp.on:
        raise Refused(f"dp.unit = {settings.dp.unit!r}: figures of private videos leave with noise or not at all")
    site.limits.check_hours(datetime.now())
    config = message.content.config_records["config"]
    classes = _agreed_classes(site, message)
    networks, weights = _networks(site, settings, classes, message)
    states = StateFolder(site.state, str(config["federation"]))
    install(networks.anonymizer, networks.action, weights)
    if has_buffers(networks):  # the whole state is read for them
        load_buffers(networks, states.before(int(str(config["round"])) + 1).buffers)
    with _own_files():
        footage = open_footage(site, settings, with_test=True)
        loader = footage.loader(settings, classes, networks.anonymizer.history)
        figures = evaluate(networks, loader, footage.test, settings.judge.test_clips)
    door = _door(site, settings, networks, states)
    return RecordDict({"metrics": door.metrics(site.refuse.told(_whole(figures))), "site": signature(site.name)})


def withheld(figures: Mapping[str, float]) -> dict[str, float]:
    """What a site tells of a round under differential privacy: nothing that its videos decide.

    Losses, counts, seconds and memory stay. The counts of examples, which the server needs, are 1 for every site.
    """
    return {"examples.anonymizer": 1, "examples.action": 1, "teacher_held": figures["teacher_held"]}


def _secure_site(site: Site, settings: Settings, states: StateFolder) -> SecureSite:
    if not settings.secure.aggregation:
        raise UserError("secure.aggregation = false in this run: the site takes part in no masked sum")
    with _own_files():
        membership = open_membership(site)
    return SecureSite(membership, Vault(states.folder), settings, states.folder.name, site.refuse.min_sites)


def _groups(site: Site, settings: Settings, states: StateFolder, loader: ClipLoader, task: RoundTask) -> Groups:
    """The site's videos by group, and the round charged to its ledger before a step of it is taken."""
    ledger = SiteLedger(states.folder)
    count = ledger.fix_groups(len(loader.rows), settings.dp)
    ledger.charge(settings.dp, len(steps_of(settings, task.phase)))
    seed = seed_for("private", settings.seed, task.server_round, site.name)
    device = pick_device(site.device or settings.device)
    root = site.videos if site.manifest is None else site.manifest.parent
    assert root is not None  # Site has one of the two
    return Groups(loader, site_key(site.state), count, root, settings, seed, device)


@contextmanager
def _own_files() -> Iterator[None]:
    try:
        yield
    except (UserError, UnreadableVideo) as error:
        raise OwnFilesFault(str(error)) from error


def _site_file(context: Context, site_files: list[str] | None) -> Path:
    if "site" in context.node_config:
        return Path(str(context.node_config["site"]))
    if site_files is not None and "partition-id" in context.node_config:  # Flower's simulation runtime counts its nodes
        return Path(site_files[int(context.node_config["partition-id"])])
    raise UserError(
        "this node has no site file; start its SuperNode with --node-config \"site='FILE'\", FILE being the absolute "
        "path of its site.yaml"
    )


def _agreed_classes(site: Site, message: Message) -> list[str]:
    """The run's class list; a label that is not on it stops the site, naming both lists."""
    agreed = [str(name) for name in message.content.config_records["config"]["classes"]]  # type: ignore[union-attr]
    with _own_files():
        own = declared_classes(site)
    if not set(own) <= set(agreed):
        raise UserError(
            f"site {site.name!r} labels actions {own}, the run agreed on {agreed}; "
            "set action.classes for the run, or `classes` and the manifest of the site"
        )
    return agreed


def _networks(
    site: Site, settings: Settings, classes: Sequence[str], message: Message
) -> tuple[Networks, dict[str, Tensor]]:
    """f_A and f_T on the site's device, and the weights that the server sent for them."""
    device = _device(site, settings)
    networks = build_networks(settings, classes)
    networks.anonymizer.to(device)
    networks.action.to(device)
    return networks, _tensors(message.content.array_records["arrays"])


def _tensors(record: ArrayRecord) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array.numpy().copy()) for name, array in record.items()}


def _device(site: Site, settings: Settings) -> torch.device:
    device = pick_device(site.device or settings.device)
    site.limits.apply_to(device)
    return device


def _round_of(message: Message) -> int:
    """The round that a request is for; 0 where it is for none."""
    config = message.content.config_records.get("config", ConfigRecord())
    return int(str(config.get("round", 0)))


def _door(site: Site, settings: Settings, networks: Networks, states: StateFolder) -> Door:
    allowed = frozenset(trained_names(shared_parameters(networks.anonymizer, networks.action), settings.wire.patterns))
    site.refuse.check_names(allowed)
    return Door(site.name, states.folder / "ledger.jsonl", allowed, settings.wire.dtype)


def _vital_signs(footage: Footage) -> dict[str, float]:
    return {"unreadable": len(footage.unreadable), "peak_rss_mb": round(peak_rss_mb(), 1)}


def _whole(figures: Mapping[str, float]) -> dict[str, float]:
    """Counts leave as whole numbers, the rest as it is."""
    counted = ("examples", "examples.anonymizer", "examples.action", "teacher_held", "within_clip", "unreadable")
    return {name: int(value) if name in counted else value for name, value in figures.items()}


app = make_app()
