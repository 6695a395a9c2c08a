from __future__ import annotations

import logging

import pytest

from aif_stream.errors import IndexUnavailable
from aif_stream.nearline.backoff import Backoff


async def test_an_outage_is_said_once_and_its_end_with_its_length(caplog: pytest.LogCaptureFixture) -> None:
    backoff = Backoff("items write")
    with caplog.at_level(logging.INFO, logger="aif_stream.nearline.backoff"):
        for _ in range(3):
            await backoff.pause(IndexUnavailable("Redis is away"))
        backoff.done()
        backoff.done()
    said = [record.getMessage().split()[0] for record in caplog.records]
    assert said == ["waiting", "resumed"]
