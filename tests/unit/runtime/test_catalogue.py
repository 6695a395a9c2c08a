"""The synthetic catalogue of `aif up`."""

from __future__ import annotations

import aiohttp

from aif_stream.runtime.catalogue import Catalogue, seed
from aif_stream.settings import Settings


async def test_catalogue_without_items_publishes_nothing() -> None:
    """No broker is needed for it."""
    reports: list[str] = []
    async with aiohttp.ClientSession() as session:
        await seed(Settings(kafka_bootstrap="127.0.0.1:1"), session, Catalogue(0, 500), reports.append)
    assert reports == []
