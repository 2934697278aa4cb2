"""What each protocol needs, and what is said when the data lack it."""

from pathlib import Path

import pytest

from client.video.rows import Row
from simulations.protocols.plans import PROTOCOLS, Data, default_protocol, plan, working
from spact_models.errors import UserError

ACTIONS = ("run", "walk")


def rows(people=("ann", "bob"), actions=ACTIONS, suffix=".mp4", **look):
    """Each person does each action once in training and once in test; ``look`` alternates over rows."""
    made = []
    for split in ("train", "test"):
        for person in people:
            for action in actions:
                attributes = {"identity": person} if person else {}
                attributes |= {name: values[len(made) % len(values)] for name, values in look.items()}
                made.append(Row(Path(f"/v/{len(made)}{suffix}"), action, split=split, attributes=attributes))
    return made


def data(judged, trained=ACTIONS, history=1, attributed=None, columns=()):
    return Data(judged, judged if attributed is None else attributed, trained, history, columns)


def refused(protocol, given):
    with pytest.raises(UserError) as raised:
        plan(protocol, given)
    return str(raised.value)


def test_each_protocol_asks_its_questions():
    full = data(rows(face=("0", "1", "1", "0", "1")))
    known, identity, attributes, retrieval = (plan(n, full) for n in ("known", "identity", "attributes", "retrieval"))
    assert (known.tasks, known.attributes, known.columns, known.retrieval) == ((), True, ("face",), False)
    assert (identity.tasks, identity.attributes, identity.retrieval) == (("identity",), False, True)
    assert (attributes.tasks, attributes.attributes, attributes.columns) == ((), True, ("face",))
    assert (retrieval.tasks, retrieval.attributes, retrieval.retrieval) == ((), False, True)
    assert plan("novel", data(full.rows, trained=("jump", "run"))).protocol == "novel"
    assert plan("identity", data(full.rows, columns=("face",))).tasks == ("face",)
    assert plan("identity", full, seeds=(4, 5)).seeds == (4, 5)


def test_the_default_is_identity_where_somebody_can_be_named():
    assert default_protocol(data(rows())) == "identity"
    assert default_protocol(data(rows(people=("",)))) == "retrieval"
    assert default_protocol(data(rows(people=("ann",)))) == "retrieval"
    assert default_protocol(data(rows(people=("",), suffix=".jpg"))) == "attributes"
    assert default_protocol(data(rows(people=("",), face=("0", "1", "1")), columns=("face",))) == "identity"


def test_an_error_names_what_is_missing_and_what_would_work():
    nobody = data(rows(people=("", "")))
    told = refused("identity", nobody)
    assert "no label identity on training and test rows (the manifest has: none)" in told
    assert "--protocol retrieval would work" in told
    assert "\n" not in told
    assert "no attribute that some test rows have" in refused("attributes", nobody)
    assert "training rows name 0 actions" in refused("known", data(rows(actions=("",))))
    assert "test rows name no action" in refused(
        "known", data([*rows()[:4], *(Row(row.path, split="test") for row in rows()[4:])])
    )
    assert "no such protocol, must be one of known, novel" in refused("knwon", nobody)
    assert "no protocol works on these data" in refused("identity", data([]))


def test_known_and_novel_are_told_apart_by_the_training_actions():
    other = data(rows(face=("0", "1", "1")), trained=("jump", "run"))
    assert "action = 'walk' was none of the anonymizer's training actions: that is novel" in refused("known", other)
    assert "--protocol novel" in refused("known", other)
    same = data(rows(face=("0", "1", "1")))
    assert "every action is one that the anonymizer was trained with: that is known" in refused("novel", same)


def test_an_empty_split_and_a_class_with_one_clip_are_named():
    train = [row for row in rows() if row.split == "train"]
    assert "no video with split = test" in refused("identity", data(train))
    assert "0 test videos" in refused("retrieval", data(train))
    alone = [*rows(), Row(Path("/v/x.mp4"), "walk", split="train", attributes={"identity": "eve"})]
    told = refused("identity", data(alone))
    assert "identity = 'eve' has one clip, needs one in training and one in test" in told
    assert "retrieval" in told
    once = [*rows(face=("0", "1", "1")), Row(Path("/v/x.mp4"), "jump", split="train")]
    assert "action = 'jump' has one clip" in refused("known", data(once, trained=("jump", *ACTIONS)))
    unseen = [*rows(), *(Row(Path(f"/v/{n}.mp4"), "walk", split="test", attributes={"identity": "eve"}) for n in "yz")]
    assert "identity = 'eve' is asked for in test and never seen in training" in refused("identity", data(unseen))


def test_a_motion_anonymizer_makes_nothing_of_still_images():
    stills = rows(people=("",), suffix=".jpg", face=("0", "1", "1"))
    told = refused("known", data(rows(), attributed=stills))
    assert "attribute rows are still images, and a motion anonymizer makes nothing of one frame" in told
    assert plan("known", data(rows(), attributed=stills, history=0)).columns == ("face",)
    assert working(data(stills, history=0)) == ["attributes"]
    mixed = [*stills, *rows(face=("0", "1", "1"))]
    assert "mix images and videos" in refused("attributes", data(rows(), attributed=mixed, history=0))


def test_missing_attributes_are_named():
    full = rows(face=("0", "1", "1"))
    assert "no attribute shoes (the manifest has: face, identity)" in refused(
        "attributes", data(full, columns=("shoes",))
    )
    constant = [Row(row.path, row.action, split=row.split, attributes={"face": "1"}) for row in full]
    assert "no attribute that some test rows have and others have not" in refused("attributes", data(constant))


def test_every_protocol_says_what_it_is_about():
    assert list(PROTOCOLS) == ["known", "novel", "identity", "attributes", "retrieval"]
    assert all(protocol.about for protocol in PROTOCOLS.values())
