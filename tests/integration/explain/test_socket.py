"""The WebSocket of an explanation: what clients send changes nothing, and every end has its close code."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from aif_stream.online.role import serve_role
from tests.integration.explain.conftest import IDS, Stack, open_pair, recorded, worker
from tests.online_builders import Client, running

# What a client may send of itself: keep-alives as text, empty frames, bytes, a message in pieces, the largest one.
MESSAGES: Final[dict[str, Any]] = {
    "text": '{"type":"ping"}',
    "empty text": "",
    "binary": b"\x00\xff",
    "empty binary": b"",
    "fragments": ["pi", "", "ng"],
    "large": "x" * 65_536,
}
# Frames that no client may send (masked with zeros), and the close code of RFC 6455, section 7.4.1.
WRONG: Final[dict[str, tuple[bytes, int]]] = {
    "too large": (b"\x81\xff" + struct.pack(">Q", 65_537) + bytes(4) + b"x" * 65_537, 1009),
    "claims 2^62 bytes": (b"\x82\xff" + struct.pack(">Q", 2**62) + bytes(4), 1009),
    "not UTF-8": (b"\x81\x82" + bytes(4) + b"\xff\xfe", 1007),
    "reserved opcode": (b"\x83\x80" + bytes(4), 1002),
    "not masked": (b"\x81\x01x", 1002),
    "long ping": (b"\x89\xfe\x00\x7e" + bytes(4 + 126), 1002),
}


async def started(stack: Stack) -> str:
    answer = await stack.client.rank("ann", candidates=IDS, k=5, explain=1)
    return str(answer["explanations"][0]["explanation_id"])


@asynccontextmanager
async def socket_of(client: Client, name: str, **more: Any) -> AsyncIterator[ClientConnection]:
    url = f"{client.url.replace('http', 'ws', 1)}/v1/explanations/{name}/ws"
    async with asyncio.timeout(60), connect(url, proxy=None, **more) as socket:
        yield socket


async def told_until_closed(socket: ClientConnection) -> list[dict[str, Any]]:
    """All messages, whatever the server closes with."""
    messages: list[dict[str, Any]] = []
    async with asyncio.timeout(60):
        with contextlib.suppress(ConnectionClosed):
            while True:
                messages.append(json.loads(await socket.recv()))
    return messages


@pytest.mark.parametrize("kind", MESSAGES)
async def test_message_of_a_client_is_ignored(stack: Stack, kind: str) -> None:
    async with socket_of(stack.client, await started(stack)) as socket:
        assert json.loads(await socket.recv())["state"] == "pending"
        for _ in range(3):
            await socket.send(MESSAGES[kind])
        await (await socket.ping())
        async with worker(stack.settings):
            events = await told_until_closed(socket)
        assert events[-1]["state"] == "complete"
        assert (socket.close_code, socket.close_reason) == (1000, "")


async def test_pings_are_answered_while_an_explanation_waits(stack: Stack) -> None:
    """The client's own keep-alive, twenty times a second: it closes with 1011 when no pong comes."""
    async with socket_of(stack.client, await started(stack), ping_interval=0.05, ping_timeout=20) as socket:
        assert json.loads(await socket.recv())["state"] == "pending"
        for payload in (b"", b"abc", b"x" * 125):
            await (await socket.ping(payload))
        await socket.pong(b"nobody asked")
        async with worker(stack.settings):
            assert (await told_until_closed(socket))[-1]["state"] == "complete"
        assert socket.close_code == 1000


@pytest.mark.parametrize("kind", WRONG)
async def test_wrong_frame_is_closed_with_its_code(stack: Stack, kind: str) -> None:
    frame, code = WRONG[kind]
    async with socket_of(stack.client, await started(stack)) as socket:
        assert json.loads(await socket.recv())["state"] == "pending"
        socket.transport.write(frame)
        await told_until_closed(socket)
        assert socket.close_code == code


async def test_message_that_inflates_beyond_the_limit_is_1009(stack: Stack) -> None:
    async with socket_of(stack.client, await started(stack), compression="deflate") as socket:
        await socket.send("x" * 65_537)
        await told_until_closed(socket)
        assert socket.close_code == 1009


async def test_close_of_a_client_is_answered(stack: Stack) -> None:
    async with socket_of(stack.client, await started(stack)) as socket:
        await socket.recv()
        await socket.close(1001, "page left")
        assert (socket.close_code, socket.protocol.close_rcvd is not None) == (1001, True)


async def test_wrong_question_is_1008_with_the_reason(stack: Stack) -> None:
    for name, reason in (
        ("xabsent", "no such explanation"),
        (f"{await started(stack)}/ws?last_event_id=nonsense&", "last_event_id is not the id of an event"),
    ):
        async with socket_of(stack.client, name) as socket:
            assert await told_until_closed(socket) == []
            assert (socket.close_code, socket.close_reason) == (1008, reason)


async def test_server_that_stops_closes_with_1001(stack: Stack) -> None:
    async with running(serve_role, stack.settings) as client:
        name = await started(dataclasses.replace(stack, client=client))
        url = f"{client.url.replace('http', 'ws', 1)}/v1/explanations/{name}/ws"
        socket = await connect(url, proxy=None)
        assert json.loads(await socket.recv())["state"] == "pending"
    assert await told_until_closed(socket) == []
    assert socket.close_code == 1001
    async with socket_of(stack.client, name) as socket:  # another server goes on
        assert json.loads(await socket.recv())["state"] == "pending"


async def test_redis_away_closes_with_1011(tmp_path: Path) -> None:
    async with open_pair(tmp_path, redis_timeout_s=1.0) as pair:
        name = await started(pair.first)
        await recorded(pair.second, name)
        await pair.redis.stop()
        async with socket_of(pair.second, name) as socket:
            assert await told_until_closed(socket) == []
            assert (socket.close_code, socket.close_reason) == (1011, "Redis does not answer: try again")
        await pair.redis.start()
