"""The count of a message's bytes against the objects that flwr really cuts it into."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from server.wire import CHUNK_BYTES, wire_bytes
from simulations.inprocess import become_task


def objects(parent, found=None):
    """Every object of a message by its hash, as flwr walks through them before it sends them."""
    found = {} if found is None else found
    for child in (parent.children or {}).values():
        objects(child, found)
    found[parent.object_id] = parent.deflate()
    return found


def arrays(*sizes, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    values = {f"action.layer{place}.weight": rng.normal(size=size) for place, size in enumerate(sizes)}
    return ArrayRecord({name: Array(value.astype(dtype)) for name, value in values.items()})


def content(update):
    told = {"examples.action": 12, "loss.action": 0.25}
    return RecordDict(
        {"update": update, "metrics": MetricRecord(told), "site": ConfigRecord({"name": "north", "rows": [1, 2]})}
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("sizes", [((3, 4),), ((2, 3), (7,), ()), ((CHUNK_BYTES // 4 + 5,), (2,))])
def test_the_count_is_the_bytes_of_flwr_s_objects(sizes, dtype):
    sent = content(arrays(*sizes, dtype=dtype))
    assert wire_bytes(sent) == sum(map(len, objects(sent).values()))


def test_an_array_in_two_records_crosses_once():
    weights = arrays((30, 40), (7,))
    teacher = ArrayRecord({name: weights[name] for name in list(weights)[:1]})
    both = RecordDict({"arrays": weights, "teacher": teacher})
    assert wire_bytes(both) == sum(map(len, objects(both).values()))
    assert wire_bytes(both) < wire_bytes(RecordDict({"arrays": weights})) + 500


def test_beside_the_arrays_there_is_little_and_beside_the_content_an_envelope():
    become_task()
    update = arrays((300, 400))
    message = Message(content(update), 7, "train", group_id="1")
    counted = wire_bytes(message.content)
    assert 480_000 < counted < 482_000
    assert 0 < sum(map(len, objects(message).values())) - counted < 400
