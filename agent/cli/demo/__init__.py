"""``atoll demo``: five sites on this machine meet, serve, train, lose their aggregator and go on.

Nothing in it is staged: the sites are ordinary daemons driven through their ordinary command line,
and every claim that is printed was checked; the first that does not hold ends the demo with code 1.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from agent.cli.demo.story import Failed, Story
from agent.foundation.errors import AtollError

INTERRUPTED = 130


def main(arguments: Sequence[str]) -> int:
    """Run the demo; 0 if everything it shows was true."""
    parser = argparse.ArgumentParser(
        prog="atoll demo", description="Run five sites on this machine and show what they do."
    )
    parser.add_argument(
        "--keep", action="store_true", help="leave the sites running and print commands to try"
    )
    parser.add_argument("--rounds", type=int, default=6, help="training rounds (default 6)")
    parser.add_argument(
        "--data", type=Path, help="folder with MNIST as IDX files (default .cache/mnist)"
    )
    parser.add_argument(
        "--folder", type=Path, help="where the sites keep their state (default: a new one in /tmp)"
    )
    parser.add_argument("--figures", type=Path, help="also write the measured figures as JSON")
    asked = parser.parse_args(list(arguments))
    if not 3 <= asked.rounds <= 50:  # noqa: PLR2004 - one before the kill, one with it, one after
        parser.error("--rounds: from 3 to 50")
    story = Story(asked.folder, asked.data, asked.rounds, keep=asked.keep)
    try:
        story.tell()
    except Failed as failure:
        story.screen.failed(str(failure), story.cluster.folder if story.cluster else None)
        return 1
    except AtollError as error:
        story.screen.failed(str(error), story.cluster.folder if story.cluster else None)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        story.end()
    if asked.figures is not None:
        asked.figures.write_text(story.figures_json())
    sys.stdout.flush()
    return 0
