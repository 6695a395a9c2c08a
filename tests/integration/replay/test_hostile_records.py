"""Hostile records of the request log between good ones: an export, a replay and the gate read every good one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import orjson
import pytest

from aif_stream.bus.producer import Producer
from aif_stream.bus.request_log import latest_requests
from aif_stream.bus.topics import REQUESTS
from aif_stream.clock import now_ms
from aif_stream.domain.request_log import encode_logged
from aif_stream.replay.export import export_requests
from aif_stream.replay.lines import read_lines
from aif_stream.replay.tape import Options, Tape
from tests.conftest import BrokerFactory
from tests.hostile_builders import DEEP
from tests.online_builders import online_settings
from tests.request_log_builders import answered
from tests.stack import topics


def framed(head: bytes, body: bytes = b"") -> bytes:
    return len(head).to_bytes(4, "little") + head + body


def hostile(received_ms: int) -> list[bytes | None]:
    whole = encode_logged(answered(["1", "2"], received_ms=received_ms), frozenset(), 1 << 20)
    size = 4 + int.from_bytes(whole[:4], "little")
    head: dict[str, Any] = json.loads(whole[4:size])

    def changed(name: str, value: bytes, body: bytes = whole[size:]) -> bytes:
        return framed(json.dumps({**head, name: "~"}).encode().replace(b'"~"', value), body)

    numbers = (b"-1", b"1" + b"0" * 30, b"-1" + b"0" * 400, b"9" * 5_000, b"1e400", b"NaN", b"true", b"null", DEEP)
    fields = ("received_ms", "k", "packed", "block", "user_id", "request_id", "context", "coverage", "candidates")
    wrong = [changed(name, value) for name in fields for value in numbers]
    wrong += [changed("context", b'{"n":%s}' % value) for value in numbers]
    wrong += [changed("context", b'{"n":' * deep + b"1" + b"}" * deep) for deep in range(900, 1_000, 5)]
    wrong += [changed(name, b'""') for name in ("user_id", "request_id")]
    wrong += [changed("packed", b"1", body) for body in (b"", b"\xff", b"\xff" * 8, whole[size:-1])]
    wrong += [changed("block", b'"none"'), changed("items", b'[{"item_id":"","score":1}]')]
    wrong += [changed("candidates", b'["",""]'), changed("deadline_ms", b"-1"), changed("k", b"0")]
    return [*wrong, None, b"", b"\xff" * 4, b"\0\0\0\0", framed(DEEP), framed(b"[]"), whole[:-1], whole[:size]]


async def test_good_requests_between_hostile_ones_are_all_read(
    embedded_broker: BrokerFactory, redis_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broker = await embedded_broker(topics())
    settings = online_settings(broker.bootstrap, redis_url, tmp_path)
    t0 = now_ms()
    wrong = hostile(t0)
    async with Producer(settings, "test") as producer:
        for number, value in enumerate(wrong):
            await (await producer.send(REQUESTS, b"u", value, []))
            good = answered(["1", "2"], request_id=f"good-{number}", received_ms=t0 + number)
            await (await producer.send(REQUESTS, b"u", encode_logged(good, frozenset(), 1 << 20), []))
    names = {f"good-{number}" for number in range(len(wrong))}
    assert names <= {request.request_id for request in await latest_requests(settings, 10 * len(wrong))}
    file = tmp_path / "log.jsonl"
    await export_requests(settings, 0, t0 + 1_000_000, file)
    with read_lines(file) as found:
        lines = list(found)
    assert names <= {orjson.loads(line)["request_id"] for line in lines}
    with Tape(lines) as tape, tape.bodies(Options()) as bodies:  # what is exported can be replayed
        assert len([bodies[i] for i in range(len(tape))]) == len(lines)
        assert [tape.logged(i) for i in range(len(tape))]
    assert sum("request_log.unreadable" in entry.getMessage() for entry in caplog.records) > len(wrong) / 2
