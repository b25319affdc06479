"""Identity folders of one small cluster, made at a time of the test's choice."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from agent.drivers.keystore import SiteKeys, complete_join, found_cluster, prepare_join
from agent.identity.certificates import issue_site

NOW = datetime.now(UTC)


def founded(directory: Path, now: datetime = NOW) -> SiteKeys:
    return found_cluster(
        directory, name="hub", region="north", tier="core", jurisdiction="DE", roles=(),
        passphrase="correct horse", now=now,
    ).keys  # fmt: skip


def joined(
    hub: SiteKeys, directory: Path, ago: timedelta = timedelta(0), life_s: int = 0
) -> SiteKeys:
    """A site certified ``ago``, for ``life_s``."""
    own = prepare_join(directory)
    gossip = own.gossip_private.public_key().public_bytes_raw()
    claims = replace(hub.identity.claims, name=directory.name, gossip_key=gossip, life_s=life_s)
    assert hub.issuer is not None
    leaf = issue_site(hub.issuer, own.site_private.public_key(), claims, datetime.now(UTC) - ago)
    chain = (leaf, hub.issuer.certificate)
    return complete_join(directory, chain=chain, root=hub.root, trust=hub.trust)


def recertified(hub: SiteKeys, keys: SiteKeys, now: datetime) -> tuple[bytes, ...]:
    """Another chain for the same keys."""
    assert hub.issuer is not None
    leaf = issue_site(hub.issuer, keys.identity.public_key, keys.identity.claims, now)
    return leaf, hub.issuer.certificate
