from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import numpy as np
import orjson
import pytest

from aif_stream.domain.order import Order
from aif_stream.errors import ArtefactError
from aif_stream.nearline.row_process import RowProcess
from tests.model_builders import make_items, small_version
from tests.nearline_builders import artefact
from tests.processes import ended
from tests.stack import eventually


async def test_rows_of_the_rebuild_process_equal_those_of_the_live_lane_and_unreadable_items_are_invalid(
    tmp_path: Path,
) -> None:
    model = small_version()
    items = make_items(5)
    payloads = [
        orjson.dumps({f: getattr(i, f) for f in ("item_id", "category", "attributes", "content_vector")}) for i in items
    ]
    orders = [Order(100 + n, n) for n in range(6)]
    async with RowProcess() as process:
        rows, problems = await process.rows(artefact(tmp_path / "v"), [*payloads, b"{}"], orders)
    packed = np.array(orders[:5], dtype=np.uint64)
    expected, _ = model.item_rows(items, packed[:, 0], packed[:, 1], int(rows["computed_ms"][0]))
    assert rows[:5].tobytes() == expected.tobytes()
    assert problems["unreadable"] == 1
    assert rows["flags"][5] == 0
    assert rows["event_time_ms"].tolist() == [order.event_time_ms for order in orders]


async def test_a_rebuild_process_that_was_killed_is_started_again(tmp_path: Path) -> None:
    directory = artefact(tmp_path / "v")
    async with RowProcess() as process:
        await process.rows(directory, [], [])
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        rows, _ = await process.rows(directory, [b"{}"], [Order(1, 1)])
    assert len(rows) == 1


async def test_cancelled_call_ends_the_rebuild_process(tmp_path: Path) -> None:
    directory = artefact(tmp_path / "v")
    item = orjson.dumps({"item_id": 1, "category": "tea", "attributes": {}, "content_vector": [0.5] * 12})
    async with RowProcess() as process:
        with pytest.raises(ArtefactError, match="nowhere") as caught:
            await process.rows(tmp_path / "nowhere", [], [])
        assert caught.value.what
        await process.rows(directory, [], [])
        pid = process.pid
        assert pid is not None
        many = 300_000
        computing = asyncio.create_task(process.rows(directory, [item] * many, [Order(1, 1)] * many))
        await eventually(lambda: asyncio.to_thread(_computes, pid), what="the process computes")
        computing.cancel()
        await asyncio.wait([computing])
        assert process.pid is None
        assert ended(pid)


def _computes(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "R"
