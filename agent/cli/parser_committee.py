"""What can be typed about a job's committee and its rounds."""

from agent.cli.parser import Verbs, job, name
from agent.cli.parser import _verb as verb


def add(jobs: Verbs) -> None:
    """The verbs of this module, in the group of jobs."""
    audit = verb(
        jobs, "audit", "committee:audit",
        "Whether this site's updates were counted, checked from the bytes; 1 if a round is wrong.",
    )  # fmt: skip
    audit.add_argument("job", type=job, metavar="ID")
    replace = verb(
        jobs, "replace", "committee:replace",
        "Replace a member of a job's committee that does not come back (one that is revoked is replaced"
        " by itself).",
    )  # fmt: skip
    replace.add_argument("job", type=job, metavar="ID")
    replace.add_argument("gone", type=name, metavar="SITE")
    replace.add_argument(
        "--by",
        type=name,
        metavar="SITE",
        help="who takes its place (default: the best living site)",
    )
    recover = verb(
        jobs, "recover", "committee:recover",
        "Take a job over after a majority of its committee was lost for good and revoked; audited.",
    )  # fmt: skip
    recover.add_argument("job", type=job, metavar="ID")
    recover.add_argument(
        "members", type=name, nargs="+", metavar="SITE",
        help="the new committee: one, three or five sites, those that are left among them",
    )  # fmt: skip
