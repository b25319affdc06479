"""p2pfl on the work of ``training_work``: eight nodes as processes, each connected with each, all on loopback.

It has no server. Ray, whose statistics of use it would send, is not installed; nothing is asked of Hugging Face.
"""

import json
from pathlib import Path
from typing import Any

from training_peer import LOST, ROOT, Peer, environment, kill_tree, running
from training_work import SITES

PACKAGE = "p2pfl==0.4.4"
NEEDS = (
    "numpy<2", "datasets==2.15.0", "huggingface_hub<0.24", "pyarrow<20", "pandas<3", "grpcio<2",
    "grpcio-tools<2", "protobuf<6", "psutil<6", "pyyaml<7", "tqdm<5", "opendp<0.15",
)  # fmt: skip
"""What its nodes import. Left out are Ray, the command line's, and Lightning with a torchvision of an older PyTorch."""
APP = ROOT / "benchmarks" / "training_peers" / "p2pfl"
PORT = 18_400


def set_up() -> Path:
    """The environment's folder of commands (a minute, 400 MB beside PyTorch)."""
    return environment("p2pfl", NEEDS, without_needs=[PACKAGE])


def p2pfl(rounds: int, *, kill: str = "") -> dict[str, Any]:
    """Run it; ``kill``: SIGKILL of a ``node`` in the second round.

    Keys: as of ``flower``; a round has ended when the last node that is left has its parameters.
    """
    commands = set_up()
    off = {
        "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1", "RAY_USAGE_STATS_ENABLED": "0", "WANDB_MODE": "disabled",
    }  # fmt: skip
    with running("p2pfl", commands, says=SITES - bool(kill), **off) as run:
        nodes = [
            run.start(
                f"node-{n}", "python", str(APP / "node.py"), str(n), str(rounds), str(PORT), str(run.work)
            )
            for n in range(SITES)
        ]  # fmt: skip

        def killed() -> None:
            kill_tree(nodes[LOST])

        return run.measured(rounds, None, nodes, killed if kill else None)


PEER = Peer(
    PACKAGE, f"{SITES} nodes", "node", p2pfl, ("node",),
    reason="its aggregation timeout is 300 s",
)  # fmt: skip

if __name__ == "__main__":
    print(json.dumps(p2pfl(2)))
