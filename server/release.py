"""The release gate: every site judges the very file that would be signed, the policy decides, a pass is signed.

The same over any Grid: simulated sites on one machine, or a deployment (``flwr run`` with ``task = "release"``).
Whoever cannot be asked, or answers about another file, counts as silent; what nobody measured does not pass.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from server.grid import ArrivalGrid
from server.join import TTL_MARGIN_SECONDS, error_text, site_name, wait_for_nodes
from server.policy import Decision, Policy, SiteJudgement, decide, load_policy
from server.provenance import anonymizer_file, anonymizer_tensors, described, evidence, now, training_summary
from server.records import Dropped
from server.runs import RunFolder
from spact_models.checkpoint import load_checkpoint
from spact_models.errors import RunStopped, UserError
from spact_models.export import describe
from spact_models.files import write_file, writing
from spact_models.gate import ACTION, PURPOSE, read_judgement, refuse_under_dp
from spact_models.model_card import UNSTATED, Card, weights_sha256, write_card
from spact_models.settings import Settings
from spact_models.signing import card_path, fingerprint, read_private_key, sign, signature_path

LOG = logging.getLogger("fedspact.server")
RESULT = "release.json"  # in the run folder: the last decision, passed or not
FORMAT, FORMAT_VERSION = "fedspact-release", 1
DISK_REMEDY = "free that disk, then release again"


@dataclass(frozen=True)
class Outcome:
    """What a release came to."""

    decision: Decision
    model: Path
    sites: tuple[SiteJudgement, ...]
    silent: tuple[Dropped, ...]
    key: str = ""  # fingerprint of the key that signed; empty without a pass


def release_from_settings(grid: Grid, settings: Settings) -> None:
    """What the ServerApp does with ``task = "release"``.

    Raises:
        UserError: no run folder, policy or key is named, or one of them cannot be used.
        RunStopped: no pass; the reasons.
    """
    for name, value in (
        ("run_dir", settings.run_dir),
        ("release.policy", settings.release.policy),
        ("release.key", settings.release.key),
    ):
        if not value:
            raise UserError(
                f'{name} is empty; task = "release" needs its absolute path on the server (docs/release.md)'
            )
    run = RunFolder.open(Path(settings.run_dir).expanduser())
    policy, key = (
        load_policy(Path(settings.release.policy).expanduser()),
        read_private_key(Path(settings.release.key).expanduser()),
    )
    outcome = release(grid, settings, run, policy, key, settings.release.licence)
    for note in outcome.decision.notes:
        LOG.info("%s", note)
    if not outcome.decision.passed:
        raise RunStopped(f"not released, nothing is signed: {'; '.join(outcome.decision.reasons)}")
    LOG.info("released: %s, signed by key %s", outcome.model, outcome.key)


def release(
    grid: Grid, settings: Settings, run: RunFolder, policy: Policy, key: Ed25519PrivateKey, licence: str = ""
) -> Outcome:
    """Ask the sites, decide, and sign on a pass; an earlier decision and its signature are taken away first.

    Args:
        grid: where the sites are.
        settings: this run's: the judge's budget, the seed and the time that a site may take.
        run: the run folder whose anonymizer is to be released.
        policy: what must be found.
        key: signs on a pass.
        licence: of the weights, for the card.

    Raises:
        UserError: the run has no anonymizer, anything of it stands under differential privacy, or a file cannot be
            written.
    """
    for flat in (settings.flat(), run.settings()):
        refuse_under_dp(flat)
    model = anonymizer_file(run)
    content, header = model.read_bytes(), load_checkpoint(model).header
    refuse_under_dp(header["settings"])
    # Whatever they were given for, it is being decided again. The decision first: an interrupted release must not leave
    # one that says "passed" beside a file without a signature.
    for earlier in (run.path / RESULT, signature_path(model)):
        with writing(earlier, DISK_REMEDY):
            earlier.unlink(missing_ok=True)
    sites, silent = ask(ArrivalGrid(grid), content, settings, run.federation, policy)
    decision = decide(policy, sites, silent)
    if model.read_bytes() != content:
        raise UserError(f"{model}: changed while the sites judged it; nothing is signed. Release it again.")
    signer = _signed(model, run, policy, sites, key, licence) if decision.passed else ""
    outcome = Outcome(decision, model, tuple(sites), tuple(silent), signer)
    tree = as_json(outcome, policy, hashlib.sha256(content).hexdigest())
    text = json.dumps(tree, indent=2, allow_nan=False) + "\n"
    write_file(run.path / RESULT, text, DISK_REMEDY)
    return outcome


def ask(
    grid: Grid, model: bytes, settings: Settings, federation: str, policy: Policy
) -> tuple[list[SiteJudgement], list[Dropped]]:
    """Send the file to every connected site; each ends in one of the two lists, in order of their names."""
    patience = settings.rounds.timeout_seconds
    nodes = wait_for_nodes(grid, policy.sites, patience)
    file = ArrayRecord({"file": Array(np.frombuffer(model, np.uint8))})
    asked = ConfigRecord(
        {"purpose": PURPOSE, "federation": federation, "seed": settings.seed, "attackers": list(policy.attackers)}
    )
    content = RecordDict({"config": asked, "model": file})
    ttl = patience + TTL_MARGIN_SECONDS
    messages = [Message(content, node, MessageType.QUERY, ttl=ttl, group_id=PURPOSE) for node in nodes]
    sha256 = hashlib.sha256(model).hexdigest()
    answers: dict[int, SiteJudgement | Dropped] = {}
    for reply in grid.send_and_receive(messages, timeout=patience):
        node = reply.metadata.src_node_id
        if node in nodes and node not in answers:  # of two replies the first one counts
            answers[node] = read_answer(node, reply, sha256)
    for node in nodes:
        answers.setdefault(node, Dropped(node, f"node {node}", f"no judgement within {patience:g} s"))
    answers |= _doubled(answers)
    judged = [one for one in answers.values() if isinstance(one, SiteJudgement)]
    silent = [one for one in answers.values() if isinstance(one, Dropped)]
    for one in silent:
        LOG.warning("site %s (node %d) did not judge: %s", one.name, one.node, one.reason)
    return sorted(judged, key=lambda one: one.name), sorted(silent, key=lambda one: (one.name, one.node))


def read_answer(node: int, reply: Message, sha256: str) -> SiteJudgement | Dropped:
    """One site's judgement, checked: the reply comes from outside."""
    if reply.has_error():
        return Dropped(node, f"node {node}", error_text(reply))
    name = site_name(reply, node)
    site, metrics = reply.content.config_records.get("site"), reply.content.metric_records.get("metrics")
    if site is None or metrics is None:
        return Dropped(node, name, "its judgement lacks the record 'site' or 'metrics'")
    if site.get("model_sha256") != sha256:
        return Dropped(node, name, f"judged another file: {site.get('model_sha256')!r:.80}")
    try:
        return SiteJudgement(node, name, read_judgement(metrics))
    except ValueError as error:
        return Dropped(node, name, f"its judgement cannot be: {error}")


def as_json(outcome: Outcome, policy: Policy, sha256: str) -> dict[str, Any]:
    """``release.json``: everything that the decision rests on."""
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "created": now(),
        "passed": outcome.decision.passed,
        "reasons": list(outcome.decision.reasons),
        "notes": list(outcome.decision.notes),
        "policy": policy.to_json(),
        "model": {"file": outcome.model.name, "sha256": sha256},
        "key": outcome.key or None,
        "sites": site_figures(outcome.sites),
        "silent": [{"node": str(one.node), "name": one.name, "reason": one.reason} for one in outcome.silent],
    }


def site_figures(sites: Sequence[SiteJudgement]) -> list[dict[str, Any]]:
    """Each site's questions with their leakage on the common scale; utility has none."""
    told = []
    for site in sites:
        said = site.judgement
        counts = {"train_videos": said.train_videos, "test_videos": said.test_videos, "attackers": said.attackers}
        questions = [
            {**vars(one), "leakage": None if one.task == ACTION else round(one.leakage, 4)} for one in said.questions
        ]
        told.append({"name": site.name, **counts, "questions": questions})
    return told


def _signed(
    model: Path, run: RunFolder, policy: Policy, sites: Sequence[SiteJudgement], key: Ed25519PrivateKey, licence: str
) -> str:
    """Write the card with what the sites found, sign both, and say by which key."""
    anonymizer, checkpoint = described(model)
    found, unjudged = evidence(model, run)
    card = Card(
        describe(anonymizer),
        weights_sha256(anonymizer_tensors(checkpoint)),
        training_summary(checkpoint.header, run),
        found,
        unjudged,
        {"policy": policy.to_json(), "sites": site_figures(sites), "federation": run.federation},
        licence or UNSTATED,
    )
    write_card(card, model, now())
    sign(model, key)
    LOG.info("%s and %s are signed", model.name, card_path(model).name)
    return fingerprint(key.public_key())


def _doubled(answers: Mapping[int, SiteJudgement | Dropped]) -> dict[int, SiteJudgement | Dropped]:
    """Nodes that judged under one name: one site must not count as two, and which of them it is nobody can tell."""
    judged = {node: one.name for node, one in answers.items() if isinstance(one, SiteJudgement)}
    names = list(judged.values())
    reason: Callable[[str], str] = lambda name: f"several nodes judged as {name}; names must differ"  # noqa: E731
    return {node: Dropped(node, name, reason(name)) for node, name in judged.items() if names.count(name) > 1}
