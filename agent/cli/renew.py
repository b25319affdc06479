"""``atoll renew``: the site asks every issuer it knows, now."""

import argparse
from datetime import UTC, datetime

from agent.cli.output import clean, print_json
from agent.cli.site_files import admin_client


def renew(asked: argparse.Namespace) -> int:
    """Renew the certificate and say how long the new one is good."""
    answer = admin_client(asked).post("/1/renew")
    if asked.json:
        print_json(answer)
        return 0
    until = datetime.fromtimestamp(float(answer["expires_at"]), UTC)
    print(f"renewed by {clean(answer['renewed_by'])}: good until {until:%Y-%m-%d %H:%M} UTC")
    return 0
