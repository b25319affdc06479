"""What the Flower server does: FedAvg, and a line for each round."""

import torch  # noqa: F401 - Flower looks whether it is there
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from training_log import now, say
from training_work import SITES, accuracy, model

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run all rounds."""

    def evaluate(number: int, arrays: ArrayRecord) -> MetricRecord:
        at = now()
        right = accuracy(arrays.to_torch_state_dict())
        say(round=number, accuracy=right, at=at)
        return MetricRecord({"accuracy": right})

    strategy = FedAvg(
        fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=SITES, min_available_nodes=SITES
    )
    strategy.start(
        grid=grid, initial_arrays=ArrayRecord(model().state_dict()),
        num_rounds=int(context.run_config["num-server-rounds"]), evaluate_fn=evaluate,
    )  # fmt: skip
