"""Submits FedAvg to a running NVFlare: ``submit.py KIT ROUNDS``, KIT the folder of the admin's keys."""

import sys

from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.recipe import ProdEnv
from server_rounds import Net, Rounds
from training_work import SITES


def main() -> None:
    """Submit, and do not wait for the end."""
    kit, rounds = sys.argv[1], int(sys.argv[2])
    recipe = FedAvgRecipe(
        name="mnist", min_clients=SITES, num_rounds=rounds, model=Net(),
        model_persistor=Rounds(), train_script="client.py",
    )  # fmt: skip
    recipe.execute(ProdEnv(startup_kit_location=kit, username="admin@bench.test"))


if __name__ == "__main__":
    main()
