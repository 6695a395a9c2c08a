"""An HTTP client for one address: keep-alive connections, one request on each at a time, no queue that hides a wait.

Its own, for two users. The player of request logs: a request that is due is written in the same turn of the loop. The
server's upstream calls: three for each answer. With aiohttp's client a request costs 230 us of CPU, with this one a
third of it.

How answers are matched to requests: ``http_connection``. An upstream that was caught sending what no request asked for
gets a new connection for each request for a minute: what it sends next cannot stand in for another user's answer.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self
from urllib.parse import urlsplit

from aif_stream.clock import monotonic_s
from aif_stream.errors import BadInput, UpstreamError
from aif_stream.http_connection import Connection, Exchange
from aif_stream.telemetry import UPSTREAM_REFUSED, kv

log = logging.getLogger(__name__)

# Fewer than the backlog of a stopped server (1,024): what finds none free waits here, and its latency says so.
CONNECTIONS: Final = 512
_SWEEP_S: Final = 0.25
# Closing and opening a connection takes 0.2 ms: requests that are due come between so many.
_SWEEP_TURN: Final = 8
_CONNECT_S: Final = 10.0
_DISTRUST_S: Final = 60.0
# An answer: (number of the request, HTTP status or 0, body or the reason why there is none, media type).
OnDone = Callable[[int, int, bytes, str], None]


class HttpClient:
    """``async with HttpClient(url, on_done) as client: client.submit(number, body, due_s)``.

    ``submit`` never waits: a request goes out on an idle connection at once, else on a new one, else (all of
    ``connections`` are busy) as soon as one is free. ``on_done`` hears of each request exactly once.
    """

    def __init__(
        self,
        url: str,
        on_done: OnDone,
        *,
        timeout_s: float,
        connections: int = CONNECTIONS,
        path: str = "/v1/rank",
        accept: str = "application/json",
        limit_bytes: int = 2**63,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise BadInput(f"{url!r} is no address", mend="http://127.0.0.1:8080")
        self.url = url
        self._host = parts.hostname
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls else 80)
        target = parts.path.rstrip("/") + path
        lines = f"POST {target} HTTP/1.1", f"host: {parts.netloc.rpartition('@')[2]}", "content-type: application/json"
        self.head = "\r\n".join((*lines, f"accept: {accept}", "")).encode()
        self.limit_bytes = limit_bytes
        self._on_done = on_done
        self._timeout_s = timeout_s
        self._limit = connections
        self._address = self._host
        self._open: set[Connection] = set()
        self._connecting: set[asyncio.Task[None]] = set()
        self._idle: list[Connection] = []
        self._waiting: deque[Exchange] = deque()
        self._under_way: dict[int, Exchange] = {}
        self._empty = asyncio.Event()
        self._sweeping: asyncio.Task[None] | None = None
        self._reuse_from_s = 0.0
        self.waited = 0  # requests that found every connection busy

    async def __aenter__(self) -> Self:
        """Raises ``UpstreamError`` when the server cannot be reached."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_CONNECT_S):
                found = await loop.getaddrinfo(self._host, self._port, type=1)
                self._address = str(found[0][4][0])
                self.idle(await self._connection())
        except (OSError, TimeoutError) as error:
            raise UpstreamError(f"{self.url} does not answer: {error}", mend="start `aif up` or `aif serve`") from None
        self._sweeping = asyncio.create_task(self._sweep(), name="http-sweep")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        tasks = [task for task in (self._sweeping, *self._connecting) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for connection in list(self._open):
            connection.close()

    def submit(self, number: int, body: bytes, due_s: float, request_id: bytes = b"") -> None:
        """Send a request that was due at ``due_s`` (monotonic); its time-out counts from there.

        ``request_id`` travels as ``x-request-id``; no other request under way has the same. A request with one may be
        sent once more, when what came back was not its answer.
        """
        exchange = Exchange(number, body, due_s, request_id)
        self._under_way[number] = exchange
        self._empty.clear()
        self.again(exchange)

    async def finish(self) -> None:
        """Return when every request has ended."""
        if self._under_way:
            await self._empty.wait()

    def again(self, exchange: Exchange) -> None:
        """Find a connection for a request."""
        while self._idle and not exchange.repeated:  # the others may have been given up as well
            connection = self._idle.pop()
            if connection.is_quiet():
                connection.send(exchange)
                return
            if connection.has_unread():
                self.refused(connection, "unasked", "bytes that no request asked for")
            else:
                self._drop(connection)
        if len(self._open) + len(self._connecting) < self._limit:
            self._connect(exchange)
        else:
            self.waited += 1
            self._waiting.append(exchange)

    def ended(self, exchange: Exchange, status: int, body: bytes, media_type: str = "") -> None:
        """An answer, or status 0 and why there is none."""
        if self._under_way.pop(exchange.number, None) is not None:
            self._on_done(exchange.number, status, body, media_type)
        if not self._under_way:
            self._empty.set()

    def idle(self, connection: Connection) -> None:
        """A connection is free: the request that waits longest takes it."""
        if monotonic_s() < self._reuse_from_s:
            self._drop(connection)
            return
        self._idle.append(connection)
        while self._waiting:
            exchange = self._waiting.popleft()
            if exchange.number not in self._under_way:  # given up meanwhile
                continue
            if exchange.repeated:  # it wants a new one, and there is room for it when this one goes
                self._waiting.appendleft(exchange)
                self._drop(connection)
            else:
                self.again(exchange)
            return

    def refused(self, connection: Connection, reason: str, problem: str) -> None:
        """The other side sent what no request asked for: close this connection, and use none twice for a while."""
        UPSTREAM_REFUSED.labels(reason=reason).inc()
        now_s = monotonic_s()
        if now_s >= self._reuse_from_s:
            log.warning(kv("upstream.unasked", upstream=self.url, reason=reason, problem=problem, s=_DISTRUST_S))
        self._reuse_from_s = now_s + _DISTRUST_S
        for each in (connection, *self._idle):
            self._drop(each)

    def _drop(self, connection: Connection) -> None:
        self.gone(connection)
        connection.close()

    def gone(self, connection: Connection) -> None:
        """A connection is closed: a waiting request gets a new one."""
        if connection not in self._open:
            return
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if self._waiting:
            self._connect(self._waiting.popleft())

    def _connect(self, exchange: Exchange) -> None:
        task = asyncio.get_running_loop().create_task(self._connect_and_send(exchange))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect_and_send(self, exchange: Exchange) -> None:
        try:
            connection = await self._connection()
        except OSError as error:
            self.ended(exchange, 0, f"cannot connect: {error.strerror or error}".encode())
            if self._waiting:
                self._connect(self._waiting.popleft())
            return
        if exchange.number in self._under_way:
            connection.send(exchange)
        else:
            self.idle(connection)

    async def _connection(self) -> Connection:
        name = self._host if self._tls else None
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            lambda: Connection(self), self._address, self._port, ssl=self._tls, server_hostname=name
        )
        self._open.add(connection)
        return connection

    async def _sweep(self) -> None:
        """End what has waited too long; requests are under way in the order in which they were due."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            late_s = monotonic_s() - self._timeout_s
            for count, exchange in enumerate(list(self._under_way.values())):
                if exchange.due_s > late_s:
                    break
                if count % _SWEEP_TURN == 0:
                    await asyncio.sleep(0)  # what is answered meanwhile is no longer anybody's exchange
                self.give_up(exchange, f"no answer within {self._timeout_s:g} s")

    def give_up(self, exchange: Exchange, why: str) -> None:
        """End an exchange without its answer; its connection goes with it."""
        connection = exchange.connection
        self.ended(exchange, 0, why.encode())
        if connection is not None and connection.exchange is exchange:
            self._drop(connection)
