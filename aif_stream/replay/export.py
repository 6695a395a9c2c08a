"""The request log of a time range → lines in the order of arrival, on disk while they are put in order."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np

from aif_stream.bus.request_log import read_requests
from aif_stream.domain.request_log import to_line
from aif_stream.replay.lines import write_lines
from aif_stream.settings import Settings


@asynccontextmanager
async def logged_lines(settings: Settings, since_ms: int, until_ms: int) -> AsyncIterator[Iterator[bytes]]:
    """Lines of the requests that arrived in [since, until), by arrival. Raises ``BusUnavailable``, ``TopicError``."""
    with tempfile.TemporaryFile(prefix="aif-requests-") as file:
        received, sizes = [], []
        async for logged in read_requests(settings, since_ms, until_ms):
            line = to_line(logged)
            file.write(line)
            received.append(logged.received_ms)
            sizes.append(len(line))
        file.flush()
        ends = np.cumsum(np.array(sizes, np.int64))
        order = np.argsort(np.array(received, np.int64), kind="stable").tolist()
        yield (os.pread(file.fileno(), sizes[i], int(ends[i]) - sizes[i]) for i in order)


async def export_requests(settings: Settings, since_ms: int, until_ms: int, path: Path) -> int:
    """Write them to a file; how many there were. Raises ``BadInput`` too, when the file cannot be written."""
    count = 0
    async with logged_lines(settings, since_ms, until_ms) as lines:
        with write_lines(path) as write:
            for line in lines:
                write(line)
                count += 1
    return count
