"""What can be typed about the blobs of a site."""

from agent.cli.parser import Verbs
from agent.cli.parser import _group as group
from agent.cli.parser import _verb as verb


def add(verbs: Verbs) -> None:
    """The verbs of this module."""
    blobs = group(verbs, "blobs", "Models, parameters and updates on this site's disk.")
    verb(
        blobs, "list", "blobs:show", "Every blob here, why it is kept, and how much room there is."
    )
    verb(
        blobs, "collect", "blobs:collect",
        "Remove what neither the catalog nor a job names, without waiting for its time.",
    )  # fmt: skip
