"""What a Flower client does: one local epoch."""

import torch  # noqa: F401 - Flower looks whether it is there
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from training_log import say
from training_work import local

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train from the parameters of the message."""
    site = int(context.node_config["partition-id"])
    number = int(message.content["config"]["server-round"])
    state = message.content["arrays"].to_torch_state_dict()
    say(site=site, trains=number)
    made, count = local((site, number, state))
    content = RecordDict(
        {"arrays": ArrayRecord(made), "metrics": MetricRecord({"num-examples": count})}
    )
    return Message(content=content, reply_to=message)
