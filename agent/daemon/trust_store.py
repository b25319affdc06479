"""The trust log as the database holds it, whatever has happened to the disk.

Rule: a revocation this site once knew is not forgotten quietly. The copy of founding or joining only
adds to what the table has; and when rows may be missing, the site says so until a member has shown
that it holds no more.
"""

import logging

from agent.daemon.restore import BOOT_EPOCH
from agent.drivers.keystore import SiteKeys
from agent.drivers.sqlite_library import Database
from agent.drivers.store import Store
from agent.foundation.writes import Put
from agent.identity.trust import TrustLog
from agent.site.exchange import TRUST_DOUBTED

_log = logging.getLogger("atoll.trust")


async def open_trust(store: Store, keys: SiteKeys) -> TrustLog:
    """All that is known and proves itself, durable; ``trouble`` says whether some may be missing.

    To be called before the boot epoch is raised: that ends the report of a damaged database.
    """

    def stored(database: Database) -> tuple[list[tuple[int, bytes]], dict[str, str]]:
        rows = [(int(row["height"]), bytes(row["entry"])) for row in database["trust"].rows]
        query = "SELECT key, value FROM meta WHERE key IN (?, ?)"
        found = database.query(query, [BOOT_EPOCH, TRUST_DOUBTED])
        return rows, {str(row["key"]): str(row["value"]) for row in found}

    rows, meta = await store.read(stored)
    log = TrustLog.salvaged(keys.cluster, rows, keys.trust)
    doubts = [log.trouble, meta.get(TRUST_DOUBTED, "")]
    if store.findings:
        doubts.append("the database was damaged and is older than what was committed")
    if not rows and BOOT_EPOCH in meta:
        doubts.append("the table was empty although this site has run before")
    log.trouble = next((doubt for doubt in doubts if doubt), "")
    writes = [*log.unwritten()]
    if log.trouble:
        _log.warning(
            "the trust log may be older than it was: %s; %d entries are kept, and every revocation"
            " that still proves itself; members are asked for the rest",
            log.trouble, len(log.entries()),
        )  # fmt: skip
        writes.append(Put("meta", {"key": TRUST_DOUBTED, "value": log.trouble}))
    await store.commit(writes)
    return log
