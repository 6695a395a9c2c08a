"""Hostile records of ``aif.n2o-rows`` between good ones: a server counts them, applies every good row and stays up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from prometheus_client import REGISTRY

from aif_stream.bus.producer import Producer
from aif_stream.bus.topics import N2O_ROWS
from aif_stream.clock import now_ms
from aif_stream.index.changelog import SUPERSEDED, Stamps, encode_rows
from aif_stream.online.role import serve_role
from tests.conftest import BrokerFactory
from tests.hostile_builders import Headers, bad_headers, with_header
from tests.model_builders import make_items, small_version
from tests.online_builders import Written, activate, online_settings, open_index, running, tell_mirrors
from tests.stack import eventually, topics

ITEMS = make_items(40)
IDS = [str(i) for i in range(40)]
HEADERS = (
    "ce_specversion",
    "ce_type",
    "ce_time",
    "ce_modelversion",
    "ce_layout",
    "ce_lane",
    "ce_appendedms",
    SUPERSEDED,
)


def hostile(written: Written) -> Iterator[tuple[str, Headers, bytes | None]]:
    """(what is wrong, headers, value); each is of the version that is served."""
    model = written.model
    headers, value = encode_rows(model.name, model.layout, written.keys, written.rows, Stamps(now_ms(), now_ms()))
    for kind, wrong in bad_headers(headers, *HEADERS):
        yield kind, wrong, value
    yield "cut", headers, value[:-1]
    yield "empty", headers, b""
    yield "null", headers, None
    yield "no headers", [], value
    yield "not rows", headers, b"{" * 1_000
    # Rows of another time and item, so that what is taken of them does not pass for good ones.
    noise = np.random.default_rng(1).integers(0, 256, 50 * model.layout.record.itemsize, np.uint8)
    yield "random rows", headers, noise.tobytes()
    yield "a row beyond the record", with_header(headers, SUPERSEDED, b"\xff" * 12), value


async def test_a_server_passes_hostile_rows_and_applies_all_good_ones(
    embedded_broker: BrokerFactory, redis_url: str, tmp_path: Path
) -> None:
    broker = await embedded_broker(topics())
    settings = online_settings(broker.bootstrap, redis_url, tmp_path)
    model = small_version()
    async with open_index(settings, [model.name]) as index:
        await index.put(model, ITEMS)
        await activate(settings, model, 1)
        async with running(serve_role, settings) as client, Producer(settings, "test") as producer:
            wrong = list(hostile(await index.put(model, [_strange(999)])))
            before = _skipped()
            good: list[int] = []
            for number, (_, headers, value) in enumerate(wrong):
                await (await producer.send(N2O_ROWS, b"bad", value, headers))
                good.append(10_000 + number)
                await tell_mirrors(settings, await index.put(model, [_strange(good[-1])]))
            names = [str(number) for number in good]

            async def applied() -> bool:
                answer = await client.rank("nobody", k=len(names), candidates=names)
                return bool(answer["coverage"]["scored"] == len(names) and answer["coverage"]["recomputed"] == 0)

            await eventually(applied, what="every good row is in the mirror")
            assert _skipped() > before
            await client.ready()


def _strange(number: int) -> Any:
    return msgspec.structs.replace(ITEMS[0], item_id=number)


def _skipped() -> float:
    """Records of the change log that were passed over, for any reason."""
    reasons = ("envelope", "unreadable", "layout", "unforeseen")
    found = [REGISTRY.get_sample_value("aif_events_skipped_total", {"lane": "mirror", "reason": r}) for r in reasons]
    return sum(value or 0.0 for value in found)
