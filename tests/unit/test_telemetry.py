"""What the log may say."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
import pytest

from aif_stream.telemetry import _Still, configure_logging, observe_each


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


def test_where_nothing_is_counted_a_batch_is_counted_nowhere() -> None:
    """``AIF_METRICS=false`` puts something that is no histogram in its place."""
    still = _Still()
    observe_each(still.labels("redis"), np.array([0.1, 5.0]))
    assert still.collect() == []
