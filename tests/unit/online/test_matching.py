"""Each answer of an upstream is that of its request, whatever else the upstream sends."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import orjson
import pytest
import uvloop

from aif_stream.domain.candidates import Candidates
from aif_stream.online.asking import Answer, AskingClient
from aif_stream.online.retrieval_client import RetrievalClient
from aif_stream.settings import Settings
from tests.certificates import certificates

Send = Callable[[asyncio.StreamWriter, bytes, bytes], Awaitable[None]]
USERS: Final = [b"user-%d" % number for number in range(8)]


def answer(body: bytes, *headers: bytes, status: bytes = b"200 OK") -> bytes:
    lines = [b"HTTP/1.1 " + status, *headers, b"content-length: %d" % len(body)]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


class Upstream:
    """Answers each request by ``send``: (writer, the request's body, its x-request-id)."""

    def __init__(self, send: Send, *, reads: bool = True) -> None:
        self._send = send
        self._reads = reads
        self._tasks: set[asyncio.Task[None] | None] = set()
        self.writers: list[asyncio.StreamWriter] = []
        self.requests: list[bytes] = []

    @property
    def connections(self) -> int:
        return len(self.writers)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.add(asyncio.current_task())
        self.writers.append(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
                found = dict(line.split(b": ", 1) for line in head[1:] if line)
                body = await reader.readexactly(int(found[b"content-length"])) if self._reads else b""
                self.requests.append(body)
                await self._send(writer, body, found.get(b"x-request-id", b""))
        writer.close()

    async def stop(self) -> None:
        for task in filter(None, self._tasks):
            task.cancel()
        await asyncio.gather(*filter(None, self._tasks), return_exceptions=True)


@asynccontextmanager
async def asking(
    send: Send, *, reads: bool = True, tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[AskingClient, Upstream]]:
    upstream = Upstream(send, reads=reads)
    server = await asyncio.start_server(upstream.handle, "127.0.0.1", 0, ssl=tls)
    url = f"{'https' if tls else 'http'}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        async with (
            AskingClient(url, path="/p", accept="a/b", limit_bytes=100_000, timeout_s=30) as client,
            asyncio.timeout(30),
        ):
            yield client, upstream
    finally:
        server.close()
        await upstream.stop()


class Surplus:
    """One answer too many: the user's own once more, at a moment of the test's choice; ``echo``: with its id."""

    def __init__(self, when: str, *, echo: bool, media_type: bytes = b"a/b") -> None:
        self._when, self._echo, self._media_type = when, echo, media_type
        self._kept: dict[asyncio.StreamWriter, bytes] = {}

    async def send(self, writer: asyncio.StreamWriter, user: bytes, request_id: bytes) -> None:
        echo = [b"x-request-id: " + request_id] if self._echo else []
        own = answer(user, b"content-type: " + self._media_type, *echo)
        kept = self._kept.get(writer, b"")
        self._kept[writer] = own
        match self._when:
            case "with its own":
                writer.write(own + own)
            case "while idle":
                writer.write(own)
                asyncio.get_running_loop().call_later(0.001, writer.write, own)
            case "with the next":
                writer.write(kept + own)
            case "before the next":
                writer.write(kept)
                await writer.drain()
                await asyncio.sleep(0.005)
                writer.write(own)


async def ask_each(client: AskingClient, users: list[bytes], *, pause_s: float = 0.0) -> list[Answer]:
    found = []
    for user in users:
        found.append(await client.ask(user, b"id-" + user))
        await asyncio.sleep(pause_s)
    return found


@pytest.mark.parametrize(
    ("when", "echo"),
    [(when, echo) for when in ("with its own", "while idle", "with the next") for echo in (False, True)]
    + [("before the next", True)],
)
async def test_one_answer_too_many_reaches_no_other_user(when: str, echo: bool) -> None:
    async with asking(Surplus(when, echo=echo).send) as (client, _):
        # Without an id, what arrives while a request is under way cannot be told from its answer: so pause for it.
        for pause_s in (0.0, 0.003) if echo or when != "while idle" else (0.003,):
            found = await ask_each(client, USERS, pause_s=pause_s)
            assert found == [Answer(200, user, "a/b") for user in USERS]


@pytest.mark.parametrize("when", ["with its own", "while idle", "with the next", "before the next"])
async def test_good_traffic_beside_surplus_answers_is_whole(when: str) -> None:
    """400 requests, 16 at a time, to an upstream that sends every seventh answer twice: all have their own answer."""
    surplus, count = Surplus(when, echo=True), 0

    async def send(writer: asyncio.StreamWriter, user: bytes, request_id: bytes) -> None:
        nonlocal count
        count += 1
        if count % 7 == 0:
            await surplus.send(writer, user, request_id)
        else:
            writer.write(answer(user, b"content-type: a/b", b"x-request-id: " + request_id))

    async with asking(send) as (client, _):
        users = [b"user-%d" % number for number in range(400)]
        lanes = await asyncio.gather(*(ask_each(client, users[lane::16]) for lane in range(16)))
    for lane, found in enumerate(lanes):
        assert found == [Answer(200, user, "a/b") for user in users[lane::16]]


async def test_unread_bytes_close_a_connection_before_it_is_used() -> None:
    async def send(writer: asyncio.StreamWriter, user: bytes, _: bytes) -> None:
        writer.write(answer(user))

    async with asking(send) as (client, upstream):
        assert (await client.ask(b"ann")).body == b"ann"
        upstream.writers[0].write(answer(b"ann"))  # in the kernel; the client's loop has not seen it
        assert (await client.ask(b"bob")).body == b"bob"
        assert (upstream.connections, upstream.requests) == (2, [b"ann", b"bob"])


async def test_upstream_caught_once_gets_fresh_connections() -> None:
    """What cannot be seen before the request goes out (no ids, two writes) can happen once, not again and again."""
    surplus = Surplus("before the next", echo=False)
    async with asking(surplus.send) as (client, upstream):
        found = [each.body for each in await ask_each(client, USERS * 2, pause_s=0.02)]
    wrong = [(user, body) for user, body in zip(USERS * 2, found, strict=True) if user != body]
    assert len(wrong) <= 1
    assert upstream.connections >= len(USERS)


@pytest.mark.parametrize("reset", [False, True])
async def test_closed_idle_connection_is_not_used(reset: bool) -> None:
    async def send(writer: asyncio.StreamWriter, user: bytes, _: bytes) -> None:
        writer.write(answer(user))

    async with asking(send) as (client, upstream):
        for user in USERS:
            assert (await client.ask(user)).body == user
            writer = upstream.writers[-1]
            writer.transport.abort() if reset else writer.write_eof()
        assert upstream.requests == USERS


async def test_answer_with_another_id_is_refused() -> None:
    async def send(writer: asyncio.StreamWriter, user: bytes, _: bytes) -> None:
        writer.write(answer(user, b"X-Request-Id: another"))

    async with asking(send) as (client, upstream):
        status, why, _ = await client.ask(b"ann", b"mine")
        assert (status, why) == (0, b"the answer has x-request-id another, the request mine")
        assert upstream.connections == 2  # tried once more, on a connection of its own
        assert (await client.ask(b"ann")).body == b"ann"  # without an id there is none to compare


async def test_answer_before_the_request_is_sent_ends_the_connection() -> None:
    async def send(writer: asyncio.StreamWriter, _: bytes, __: bytes) -> None:
        writer.write(answer(b"too large", status=b"413 Content Too Large"))
        await asyncio.Event().wait()

    async with asking(send, reads=False) as (client, upstream):
        for turn in (1, 2):
            assert (await client.ask(bytes(16_000_000)))[:2] == (413, b"too large")
            assert upstream.connections == turn


_OK: Final = answer(b"ok", b"content-type: a/b")


FORMS: Final[dict[str, tuple[bytes, tuple[int, bytes, str], int]]] = {
    "100": (b"HTTP/1.1 100 Continue\r\n\r\n" + _OK, (200, b"ok", "a/b"), 1),
    "103": (b"HTTP/1.1 103 Early Hints\r\ncontent-type: x/y\r\n\r\n" * 3 + answer(b"ok"), (200, b"ok", ""), 1),
    "101": (b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", (0, b"", ""), 2),
    "204": (b"HTTP/1.1 204 No Content\r\n\r\n", (204, b"", ""), 1),
    "304 with a length": (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n", (304, b"", ""), 1),
    "trailers": (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n"
        b"content-type: t/r\r\nx-request-id: no\r\n\r\n",
        (200, b"ok", ""),
        1,
    ),
    "close": (answer(b"ok", b"connection: close"), (200, b"ok", ""), 2),
    "close, then more": (answer(b"ok", b"connection: close") + _OK, (200, b"ok", ""), 2),
    "until the end": (b"HTTP/1.0 200 OK\r\n\r\nuntil the end", (200, b"until the end", ""), 2),
    "cut": (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nok", (0, b"", ""), 2),
    "cut chunk": (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nok", (0, b"", ""), 2),
    "two lengths": (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nokk", (0, b"", ""), 2),
    "no HTTP": (b"no HTTP at all", (0, b"", ""), 2),
    "endless head": (b"HTTP/1.1 200 OK\r\n" + b"x: " + b"y" * 600_000, (0, b"", ""), 2),
    "endless interim": (b"HTTP/1.1 100 Continue\r\n\r\n" * 30_000, (0, b"", ""), 2),
}


@pytest.mark.parametrize("form", FORMS)
async def test_form_of_an_answer(form: str) -> None:
    """Interim answers, answers without body, trailers, ends by closing, and what is no answer."""
    sent, expected, connections = FORMS[form]
    reused = connections == 1

    async def send(writer: asyncio.StreamWriter, _: bytes, __: bytes) -> None:
        writer.write(sent)
        if not reused:
            writer.close()

    async with asking(send) as (client, upstream):
        for _ in range(2):
            status, body, media_type = await client.ask(b"ann", b"mine")
            assert (status, body if status else b"", media_type) == expected
        assert upstream.connections == connections
        assert upstream.requests == [b"ann", b"ann"]  # none was sent twice


async def test_users_get_their_own_candidates() -> None:
    """The way of a request: eight users, three channels, an upstream that sends every answer twice."""
    surplus = Surplus("while idle", echo=False, media_type=b"application/json")

    async def send(writer: asyncio.StreamWriter, body: bytes, request_id: bytes) -> None:
        asked = orjson.loads(body)
        ids = [f"{asked['user_id']}-{asked['channel']}-{number}" for number in range(3)]
        await surplus.send(writer, orjson.dumps({"channel": asked["channel"], "ids": ids}), request_id)

    async def offload(work: Callable[[], Candidates], _: float) -> Candidates:
        return work()

    async with asking(send) as (client, _):
        settings = Settings(retrieval_urls=client.url, retrieval_channels="a,b,c")
        async with RetrievalClient(settings, offload) as retrieval:
            for user in map(bytes.decode, USERS):
                asks = (retrieval.ask(f"r-{user}", user, channel, 3, 20.0) for channel in retrieval.channels)
                for channel, found in zip(retrieval.channels, await asyncio.gather(*asks), strict=True):
                    assert sorted(found.names.values()) == [f"{user}-{channel}-{number}" for number in range(3)]
                await asyncio.sleep(0.003)


async def test_connections_under_tls_are_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await certificates(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")

    async def send(writer: asyncio.StreamWriter, user: bytes, _: bytes) -> None:
        writer.write(answer(user))

    async with asking(send, tls=tls) as (client, upstream):
        assert await ask_each(client, USERS) == [Answer(200, user, "") for user in USERS]
        assert upstream.connections == 1
        upstream.writers[0].write(answer(b"ann"))
        assert (await client.ask(b"bob")).body == b"bob"


async def test_servers_loop_sees_unread_bytes_too() -> None:
    """uvloop, which roles run on, has transports of its own."""

    def run() -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(test_unread_bytes_close_a_connection_before_it_is_used())
            runner.run(test_one_answer_too_many_reaches_no_other_user("while idle", echo=False))

    await asyncio.to_thread(run)
