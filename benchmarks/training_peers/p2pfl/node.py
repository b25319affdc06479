"""One p2pfl node: ``node.py SITE ROUNDS BASE_PORT FOLDER``. All nodes know all; site 0 begins the learning.

Its learner is ours in place of Lightning's, so that it does the very work of ``training_work``.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from p2pfl.settings import Settings

SITE, ROUNDS, BASE_PORT = map(int, sys.argv[1:4])
FOLDER = Path(sys.argv[4])
Settings.general.DISABLE_RAY = True  # it simulates nodes in one machine; these are real
Settings.general.LOG_DIR = str(FOLDER / f"logs-{SITE}")
Settings.ssl.USE_SSL = False  # it brings no certificates
# It comes with 5 s: eight nodes on two cores beside other work then took each other for dead, and no second
# round ended (3 of 3 runs). What follows a kill waits for the aggregation's timeout, which is as it comes.
Settings.heartbeat.TIMEOUT = 30.0

import numpy as np  # noqa: E402 - what p2pfl imports looks at the settings
import torch  # noqa: E402
from datasets import Dataset, DatasetDict  # noqa: E402
from p2pfl.learning.dataset.p2pfl_dataset import P2PFLDataset  # noqa: E402
from p2pfl.learning.frameworks.learner import Learner  # noqa: E402
from p2pfl.learning.frameworks.p2pfl_model import P2PFLModel  # noqa: E402
from p2pfl.node import Node  # noqa: E402
from training_log import now, say  # noqa: E402
from training_work import SITES, accuracy, local, model  # noqa: E402

MEET_S, RUN_S = 120.0, 600.0


class Parameters(P2PFLModel):
    """The model, as p2pfl moves it about: a list of arrays."""

    def get_parameters(self) -> list[Any]:
        return [value.numpy().copy() for value in self.model.state_dict().values()]

    def set_parameters(self, params: list[Any] | bytes) -> None:
        if isinstance(params, bytes):
            params, info = self.decode_parameters(params)
            self.additional_info.update(info)
        values = (torch.from_numpy(np.asarray(value, np.float32)) for value in params)
        self.model.load_state_dict(dict(zip(self.model.state_dict(), values, strict=True)))

    def get_framework(self) -> str:
        return "pytorch"


class Local(Learner):
    """One local epoch a round; a round has ended here when the mean of all takes the place of the own model."""

    fits = 0

    def fit(self) -> P2PFLModel:
        self.fits += 1
        say(site=SITE, trains=self.fits)
        mine = self.get_model()
        made, count = local((SITE, self.fits, mine.get_model().state_dict()))
        mine.get_model().load_state_dict(made)
        mine.set_contribution([self.addr], count)
        return mine

    def set_model(self, model: Any) -> None:
        super().set_model(model)
        if isinstance(model, P2PFLModel) and self.fits:
            at = now()
            # As with the other peers one of all measures.
            more = {} if SITE else {"accuracy": accuracy(model.get_model().state_dict())}
            say(site=SITE, round=self.fits, at=at, of=len(model.get_contributors()), **more)

    def interrupt_fit(self) -> None:
        pass

    def evaluate(self) -> dict[str, float]:
        return {}

    def get_framework(self) -> str:
        return "pytorch"


def until(is_true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + MEET_S
    while not is_true():
        if time.monotonic() > deadline:
            raise SystemExit(f"site {SITE}: {what}: not within {MEET_S:.0f} s")
        time.sleep(0.1)


def all_have(step: str) -> bool:
    return len([*FOLDER.glob(f"{step}-*")]) == SITES


def main() -> None:
    """Meet all, learn, and stay until this process is ended."""
    nothing = Dataset.from_dict({"x": [0] * 4})  # the learner has its own
    data = P2PFLDataset(DatasetDict({"train": nothing, "test": nothing}))
    node = Node(Parameters(model()), data, addr=f"127.0.0.1:{BASE_PORT + SITE}", learner=Local())
    node.start()
    (FOLDER / f"up-{SITE}").touch()
    until(lambda: all_have("up"), "all are up")
    for other in range(SITE):
        node.connect(f"127.0.0.1:{BASE_PORT + other}")
    until(lambda: len(node.get_neighbors(only_direct=True)) == SITES - 1, "all know all")
    (FOLDER / f"met-{SITE}").touch()
    if SITE == 0:
        until(lambda: all_have("met"), "all have met")
        node.set_start_learning(rounds=ROUNDS, epochs=1, trainset_size=SITES)
    time.sleep(RUN_S)


if __name__ == "__main__":
    main()
