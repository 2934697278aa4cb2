"""A ClientApp whose nodes lie where their own configuration says so; the others are real sites.

Shipped as an app of its own by tests/server/test_faults.py. Liars do without torch: what they send is what anybody
with a registered key could send.
"""

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.query()
def join(message: Message, context: Context) -> Message:
    if "lies" not in context.node_config:
        return honest(message, context)
    site = {"name": context.node_config["name"], "classes": ["jump", "walk"], "train_rows": 8, "test_rows": 0}
    return Message(RecordDict({"site": ConfigRecord(site)}), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    if "lies" not in context.node_config:
        return honest(message, context)
    number = int(message.content.config_records["config"]["round"])
    lie = str(context.node_config["lies"]).split(",")[number - 1]
    update = {name: np.ones(array.shape, np.float32) for name, array in message.content.array_records["arrays"].items()}
    metrics = {"examples.anonymizer": 8, "examples.action": 8, "teacher_held": 1}
    first = next(iter(update))
    if lie in ("nan", "inf"):
        update[first].flat[0] = float(lie)
    elif lie == "odd key":
        update["privacy.w"] = np.ones(3, np.float32)
    elif lie == "shape":
        update[first] = np.ones(7, np.float32)
    elif lie == "oversize":
        update[first] = np.ones(10_000_000, np.float32)
    elif lie == "negative":
        metrics["examples.action"] = -1
    elif lie == "absurd":
        metrics["examples.action"] = 10**12
    arrays = ArrayRecord({name: Array(value) for name, value in update.items()})
    site = ConfigRecord({"name": context.node_config["name"]})
    reply = Message(RecordDict({"update": arrays, "metrics": MetricRecord(metrics), "site": site}), reply_to=message)
    if lie == "replayed":
        reply.metadata.group_id = str(number - 1)
    return reply


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    if "lies" not in context.node_config:
        return honest(message, context)
    metrics = MetricRecord({"examples": 0, "top1": float("nan")})
    site = ConfigRecord({"name": context.node_config["name"]})
    return Message(RecordDict({"metrics": metrics, "site": site}), reply_to=message)


def honest(message: Message, context: Context) -> Message:
    """What a site of this project answers."""
    from client.app import make_app

    return make_app()(message, context)
