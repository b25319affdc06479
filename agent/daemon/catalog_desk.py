"""The catalog's documents, present and former (implements ``agent.api.catalog``)."""

import base64

from agent.api.bodies import Json
from agent.catalog.catalog import Catalog
from agent.catalog.history import TABLE
from agent.drivers.sqlite_library import Database
from agent.drivers.store import Store
from agent.foundation.errors import NotFound
from agent.wire.documents import Document, Key, key_of
from agent.wire.schema import unpack


class CatalogDesk:
    """Reads one site's catalog."""

    def __init__(self, catalog: Catalog, store: Store) -> None:
        self._catalog, self._store = catalog, store

    def documents(self, kind: str, name: str) -> list[Json]:
        """See ``CatalogOperations.documents``."""
        keyed = ((key_of(entry.body), entry.document) for entry in self._catalog)
        return [
            _row(key, document)
            for key, document in keyed
            if kind in ("", key.kind) and name in ("", key.name)
        ]

    async def history(self, key: Key) -> list[Json]:
        """See ``CatalogOperations.history``."""
        present = self._catalog.get(key)
        if present is None:
            raise NotFound(f"there is no {key.kind} {key.name!r}", mend="atoll get shows all")

        def former(database: Database) -> list[bytes]:
            query = f"SELECT document FROM {TABLE} WHERE kind = ? AND name = ?"  # noqa: S608 - constant
            return [row["document"] for row in database.query(query, [key.kind, key.name])]

        documents = [unpack(Document, data) for data in await self._store.read(former)]
        documents.sort(key=lambda one: one.stamp, reverse=True)
        return [_row(key, one) for one in (present.document, *documents)]


def _row(key: Key, document: Document) -> Json:
    return {
        "kind": key.kind, "name": key.name, "wall_ms": document.stamp.wall_ms,
        "count": document.stamp.count, "author": document.author.hex(),
        "body": base64.b64encode(document.body).decode(),
    }  # fmt: skip
