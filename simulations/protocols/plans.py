"""The five protocols: what each asks, what it needs of the data, and what would work where something is missing.

| protocol | asks |
|---|---|
| known | the action, and yes-or-no attributes, on the actions that the anonymizer was trained with |
| novel | the same on other actions, without training the anonymizer again |
| identity | the action, and who is seen: one of many; and retrieval |
| attributes | yes-or-no attributes, and the action where it is known |
| retrieval | matching the start of a video to its end, without any label; and the action where it is known |
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from client.held import attackable, attribute_labels, attributes_of, single_clips, value_of
from client.video.rows import Row, class_names
from simulations.protocols.bench import IDENTITY, task_columns
from simulations.protocols.evaluation import ACTION
from simulations.protocols.suite import Suite
from spact_models.attackers import NETWORKS, networks_of
from spact_models.errors import UserError
from spact_models.metrics import askable


@dataclass(frozen=True)
class Data:
    """What is judged on, and what the anonymizer was trained with."""

    rows: Sequence[Row]  # their splits decided
    attribute_rows: Sequence[Row]  # those that carry the yes-or-no attributes; often the same
    trained_actions: Sequence[str]
    history: int  # of the anonymizer; 1 cannot make anything of a still image
    columns: tuple[str, ...] = ()  # asked for with --task; empty: the protocol's own

    def side(self, split: str) -> list[Row]:
        """Videos only: a still image has no action and no clip."""
        return [row for row in self.rows if row.split == split and not row.is_image]


@dataclass(frozen=True)
class Protocol:
    """``missing`` says in words what the data lack (nothing: it can be judged); ``suite`` is what is then asked."""

    about: str
    missing: Callable[[Data], list[str]]
    suite: Callable[[Data], Mapping[str, object]]


def plan(protocol: str, data: Data, **how: object) -> Suite:
    """The protocol's questions on these data; ``how`` fills the rest of the :class:`Suite`.

    Raises:
        UserError: an unknown protocol, or what the data lack and which protocol would work.
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"--protocol {protocol}: no such protocol, must be one of {', '.join(PROTOCOLS)}")
    lacking = PROTOCOLS[protocol].missing(data)
    if lacking:
        works = working(data)
        remedy = f"; --protocol {' or '.join(works)} would work" if works else "; no protocol works on these data"
        raise UserError(f"--protocol {protocol}: {'; '.join(lacking)}{remedy}")
    chosen: dict[str, object] = {"protocol": protocol, **PROTOCOLS[protocol].suite(data), **how}
    return Suite(**chosen)  # type: ignore[arg-type]  # the fields' types are those of the table below


def working(data: Data) -> list[str]:
    """The protocols that lack nothing on these data."""
    return [name for name, protocol in PROTOCOLS.items() if not protocol.missing(data)]


def default_protocol(data: Data) -> str:
    """Attributes for images; identity where somebody can be named, else retrieval.

    Columns that were asked for ask for identity: retrieval would pass over them in silence.
    """
    if all(row.is_image for row in data.rows):
        return "attributes"
    known = attackable(data.side("train"), data.side("test"), IDENTITY)
    return IDENTITY if data.columns or known else "retrieval"


def check_columns(asked: Sequence[str], data: Data) -> None:
    """Raises UserError where ``--task`` names the action, or a column that there is not."""
    there = task_columns([*data.rows, *data.attribute_rows])
    if ACTION in asked:
        raise action_is_kept([name for name in there if attackable(data.side("train"), data.side("test"), name)])
    for name in asked:
        if name not in there:
            works = working(replace(data, columns=()))
            remedy = f"--protocol {' or '.join(works)} would work" if works else "no protocol works on these data"
            raise UserError(
                f"--task {name}: no such column, or an empty one; these data have: {', '.join(there) or 'none'}; "
                f"without --task, {remedy}"
            )


def action_is_kept(allowed: Sequence[str]) -> UserError:
    """The refusal of ``--task action``; ``allowed``: the columns that can be attacked."""
    return UserError(
        f"--task {ACTION}: the action is what the anonymizer is to keep, judged without being asked for, and "
        f"nothing to attack; these data allow: {', '.join(allowed) or 'none'}"
    )


def check_matchers(protocol: str, attackers: Sequence[str]) -> None:
    """Raises UserError where retrieval is asked of attackers that match nothing."""
    if protocol == "retrieval" and attackers and not networks_of(attackers):
        raise UserError(
            f"--attackers {','.join(attackers)}: none of them can match videos, and --protocol retrieval asks for "
            f"nothing else that is private; name a network: {', '.join(NETWORKS)}"
        )


def _splits(data: Data) -> list[str]:
    return [f"no video with split = {split}" for split in ("train", "test") if not data.side(split)]


def _action(data: Data) -> list[str]:
    train, test = data.side("train"), data.side("test")
    actions = class_names(train)
    if len(actions) < 2:
        return [f"training rows name {len(actions)} actions, must be at least 2 (column action)"]
    if not any(row.action for row in test):
        return ["test rows name no action (column action)"]
    return _one_sided(train, test, "action")


def _one_sided(train: Sequence[Row], test: Sequence[Row], column: str) -> list[str]:
    """A class that cannot be both learned and asked for."""
    learned, asked = (Counter(value_of(row, column) for row in rows if value_of(row, column)) for rows in (train, test))
    if told := single_clips(train, test, column):
        return [told]
    unseen = sorted(str(name) for name in asked if name not in learned)
    return [f"{column} = {unseen[0]!r} is asked for in test and never seen in training"] if unseen else []


def _known(data: Data) -> list[str]:
    others = sorted(set(class_names(data.rows)) - set(data.trained_actions))
    found = [f"action = {others[0]!r} was none of the anonymizer's training actions: that is novel"] if others else []
    return _splits(data) or [*_action(data), *_attributes(data), *found]


def _novel(data: Data) -> list[str]:
    others = set(class_names(data.rows)) - set(data.trained_actions)
    found = [] if others else ["every action is one that the anonymizer was trained with: that is known"]
    return _splits(data) or [*_action(data), *_attributes(data), *found]


def _identity(data: Data) -> list[str]:
    if empty := _splits(data):
        return empty
    train, test = data.side("train"), data.side("test")
    found = []
    for column in data.columns or (IDENTITY,):
        values = {value_of(row, column) for row in train} - {None}
        if not values or not any(value_of(row, column) for row in test):
            names = sorted({name for row in data.rows for name in row.attributes})
            found.append(
                f"no label {column} on training and test rows (the manifest has: {', '.join(names) or 'none'})"
            )
        elif len(values) < 2:
            found.append(f"{column} has one value in training, must have at least 2")
        else:
            found += _one_sided(train, test, column)
    return found


def _attributes(data: Data) -> list[str]:
    rows = data.attribute_rows
    if len({row.is_image for row in rows}) > 1:
        return ["attribute rows mix images and videos, must be all of one kind"]
    if data.history and any(row.is_image for row in rows):
        return ["attribute rows are still images, and a motion anonymizer makes nothing of one frame"]
    empty = [f"no attribute row with split = {side}" for side in ("train", "test") if not _attribute_side(data, side)]
    if empty:
        return empty
    columns = attribute_columns(data)
    known = {name for row in rows for name in row.attributes}
    if absent := [name for name in columns if name not in known]:
        return [f"no attribute {absent[0]} (the manifest has: {', '.join(sorted(known)) or 'none'})"]
    labels = attribute_labels(rows, columns)
    if not labels or not askable(attributes_of(_attribute_side(data, "test"), labels)):
        return ["no attribute that some test rows have and others have not (columns of 0 and 1, or of values)"]
    return []


def _attribute_side(data: Data, split: str) -> list[Row]:
    return [row for row in data.attribute_rows if row.split == split]


def attribute_columns(data: Data) -> tuple[str, ...]:
    """Those asked for, else all private columns but the identity."""
    if data.columns:
        return data.columns
    return tuple(dict.fromkeys(n for row in data.attribute_rows for n in row.attributes if n != IDENTITY))


def _retrieval(data: Data) -> list[str]:
    held = {split: len(data.side(split)) for split in ("train", "test")}
    return [f"{count} {split} videos, must be at least 2" for split, count in held.items() if count < 2]


def _ask_attributes(data: Data) -> Mapping[str, object]:
    return {"tasks": (), "attributes": True, "columns": attribute_columns(data), "retrieval": False}


PROTOCOLS = {
    "known": Protocol("action and attributes, the actions of training", _known, _ask_attributes),
    "novel": Protocol("action and attributes, other actions than in training", _novel, _ask_attributes),
    "identity": Protocol("who is seen, and retrieval", _identity, lambda data: {"tasks": data.columns or (IDENTITY,)}),
    "attributes": Protocol("yes-or-no attributes", _attributes, _ask_attributes),
    "retrieval": Protocol("matching videos without labels", _retrieval, lambda _: {"tasks": ()}),
}
