"""Upload the local files of a batch before its orders are stored: each once, also across restarts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from flora_async import Flora
from flora_async.durable._store.database import Database, execute, select
from flora_async.models import AnyOrder

MAX_CONCURRENT_FILES = 8
"""Orders whose files are uploaded at the same time."""


class StoredFiles:
    """The URLs of uploaded files, in the database of the batches."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find_url(self, workspace_id: str, digest: str) -> str | None:
        """Return the URL of a file; ``None`` if it was not uploaded."""
        sql = "SELECT url FROM flora_files WHERE workspace = :workspace AND digest = :digest"
        rows = await self._database.read(lambda c: select(c, sql, workspace=workspace_id, digest=digest))
        return rows[0].url if rows else None

    async def record_url(self, workspace_id: str, digest: str, url: str) -> None:
        """Record the URL of a file."""
        sql = (
            "INSERT INTO flora_files (workspace, digest, url) VALUES (:workspace, :digest, :url) "
            "ON CONFLICT (workspace, digest) DO NOTHING"
        )
        await self._database.write(lambda c: execute(c, sql, workspace=workspace_id, digest=digest, url=url))


async def upload_files(flora: Flora, database: Database, orders: Sequence[AnyOrder]) -> list[AnyOrder]:
    """Return the orders with URLs in the place of files. An error cancels the other uploads."""
    places, stored = asyncio.Semaphore(MAX_CONCURRENT_FILES), StoredFiles(database)

    async def upload(order: AnyOrder) -> AnyOrder:
        async with places:
            return await flora.assets.replace_files(order, memory=stored)

    tasks = [asyncio.create_task(upload(order)) for order in orders]
    try:
        return [await task for task in tasks]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
