"""What may be typed as a name or a label; imports nothing, so that the command line stays quick.

The authority is ``agent.identity.claims``, which judges what is signed; a test compares the two.
"""

import re

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
"""Names of sites, models, versions, regions, datasets and jobs: never a path."""
LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""Jurisdictions: as names, capitals allowed."""
