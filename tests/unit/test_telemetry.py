"""What the log may say."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from aif_stream.telemetry import configure_logging


@pytest.fixture
def logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    before, handlers = {"": root.level}, root.handlers[:]
    before |= {name: logging.getLogger(name).level for name in root.manager.loggerDict}
    yield
    root.handlers[:] = handlers
    for name, logger in [("", root), *((name, logging.getLogger(name)) for name in root.manager.loggerDict)]:
        logger.setLevel(before.get(name, logging.NOTSET))


@pytest.mark.usefixtures("logging_as_it_was")
def test_at_debug_the_kafka_client_stays_silent_because_it_would_write_passwords() -> None:
    configure_logging("DEBUG")
    assert logging.getLogger("aif_stream.bus").isEnabledFor(logging.DEBUG)
    assert not logging.getLogger("aiokafka.conn").isEnabledFor(logging.DEBUG)
