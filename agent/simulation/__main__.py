"""``python -m agent.simulation membership|register|job|chaos|routing|rollout``: run one world from a seed and judge it."""

import sys
from argparse import ArgumentParser
from importlib import import_module

WORLDS = {
    "membership": ("agent.simulation.membership_scenarios", "join, kill, cut, heal"),
    "register": ("agent.simulation.register_world", "one CASPaxos register under faults"),
    "job": ("agent.simulation.job_world", "one federated job under faults"),
    "chaos": ("agent.simulation.job_chaos", "many federated jobs, each with troubles of its own"),
    "routing": ("agent.simulation.routing_world", "a skewed load beside an oracle"),
    "rollout": ("agent.simulation.rollout_world", "a new version in waves under faults"),
}


def main(arguments: list[str]) -> int:
    """The exit status: 0 if every rule held; only the chosen world is imported."""
    parser = ArgumentParser(prog="python -m agent.simulation", description=__doc__)
    commands = parser.add_subparsers(dest="world", required=True)
    chosen = arguments[0] if arguments else ""
    for name, (module, summary) in WORLDS.items():
        command = commands.add_parser(name, help=summary)
        if name == chosen:
            import_module(module).add_arguments(command)
    args = parser.parse_args(arguments)
    return int(import_module(WORLDS[args.world][0]).run(args))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
