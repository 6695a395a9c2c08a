"""An HTTP client for one address: keep-alive connections, one request on each at a time, no queue that hides a wait.

Its own, for two users. The player of request logs: a request that is due is written in the same turn of the loop. The
server's upstream calls: three for each answer. With aiohttp's client a request costs 230 us of CPU, with this one a
third of it.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self, cast
from urllib.parse import urlsplit

import httptools

from aif_stream.clock import monotonic_s
from aif_stream.errors import BadInput, UpstreamError

# Fewer than the backlog of a stopped server (1,024): what finds none free waits here, and its latency says so.
CONNECTIONS: Final = 512
_SWEEP_S: Final = 0.25
# Closing and opening a connection takes 0.2 ms: requests that are due come between so many.
_SWEEP_TURN: Final = 8
_CONNECT_S: Final = 10.0
# An answer: (number of the request, HTTP status or 0, body or the reason why there is none, media type).
OnDone = Callable[[int, int, bytes, str], None]


class _Exchange:
    """One request under way."""

    __slots__ = ("body", "connection", "due_s", "headers", "number", "repeated")

    def __init__(self, number: int, body: bytes, due_s: float, headers: bytes) -> None:
        self.number, self.body, self.due_s, self.headers = number, body, due_s, headers
        self.connection: _Connection | None = None
        self.repeated = False


class _Connection(asyncio.Protocol):
    """Sends one exchange, tells the client its end, is idle again. httptools calls the ``on_`` methods."""

    def __init__(self, client: HttpClient) -> None:
        self._client = client
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._body = bytearray()
        self._media_type = b""
        self._used = False
        self._answering = False
        self.exchange: _Exchange | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own is none of its subclasses

    def send(self, exchange: _Exchange) -> None:
        self.exchange, exchange.connection = exchange, self
        if self._transport is None or self._transport.is_closing():
            self.connection_lost(None)
            return
        length = b"content-length: %d\r\n\r\n" % len(exchange.body)
        self._transport.write(self._client.head + exchange.headers + length + exchange.body)

    def close(self) -> None:
        self.exchange = None
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._lost(f"no HTTP answer: {error}")

    def on_message_begin(self) -> None:
        self._answering = True
        self._body.clear()
        self._media_type = b""

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"content-type":
            self._media_type = value.partition(b";")[0].strip().lower()

    def on_body(self, body: bytes) -> None:
        self._body += body
        if len(self._body) > self._client.limit_bytes:
            self._lost(f"an answer of more than {self._client.limit_bytes} bytes")

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:  # 100 Continue and the like: the answer is still to come
            return
        exchange, self.exchange = self.exchange, None
        self._answering, self._used = False, True
        keep = self._parser.should_keep_alive()
        if exchange is not None:
            self._client.ended(exchange, status, bytes(self._body), self._media_type.decode(errors="replace"))
        if keep:
            self._client.idle(self)
        else:
            self._client.gone(self)
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._lost(str(error) if error else "the server closed the connection")

    def _lost(self, why: str) -> None:
        exchange, self.exchange = self.exchange, None
        if self._transport is not None:
            self._transport.abort()
        self._client.gone(self)
        if exchange is None:
            return
        if self._used and not self._answering and not exchange.repeated:
            exchange.repeated = True  # the server had given this idle connection up: nobody has seen the request
            self._client.again(exchange)
        else:
            self._client.ended(exchange, 0, why.encode())


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
        self._open: set[_Connection] = set()
        self._connecting: set[asyncio.Task[None]] = set()
        self._idle: list[_Connection] = []
        self._waiting: deque[_Exchange] = deque()
        self._under_way: dict[int, _Exchange] = {}
        self._empty = asyncio.Event()
        self._sweeping: asyncio.Task[None] | None = None
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

    def submit(self, number: int, body: bytes, due_s: float, headers: bytes = b"") -> None:
        """Send a request that was due at ``due_s`` (monotonic); its time-out counts from there. ``headers``: whole
        lines, each with its end."""
        exchange = _Exchange(number, body, due_s, headers)
        self._under_way[number] = exchange
        self._empty.clear()
        self.again(exchange)

    async def finish(self) -> None:
        """Return when every request has ended."""
        if self._under_way:
            await self._empty.wait()

    def again(self, exchange: _Exchange) -> None:
        """Find a connection for a request."""
        if self._idle and not exchange.repeated:  # the others may have been given up as well
            self._idle.pop().send(exchange)
        elif len(self._open) + len(self._connecting) < self._limit:
            self._connect(exchange)
        else:
            self.waited += 1
            self._waiting.append(exchange)

    def ended(self, exchange: _Exchange, status: int, body: bytes, media_type: str = "") -> None:
        """An answer, or status 0 and why there is none."""
        if self._under_way.pop(exchange.number, None) is not None:
            self._on_done(exchange.number, status, body, media_type)
        if not self._under_way:
            self._empty.set()

    def idle(self, connection: _Connection) -> None:
        """A connection is free: the request that waits longest takes it."""
        while self._waiting:
            exchange = self._waiting.popleft()
            if exchange.number in self._under_way:  # not given up meanwhile
                connection.send(exchange)
                return
        self._idle.append(connection)

    def gone(self, connection: _Connection) -> None:
        """A connection is closed: a waiting request gets a new one."""
        if connection not in self._open:
            return
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if self._waiting:
            self._connect(self._waiting.popleft())

    def _connect(self, exchange: _Exchange) -> None:
        task = asyncio.get_running_loop().create_task(self._connect_and_send(exchange))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect_and_send(self, exchange: _Exchange) -> None:
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

    async def _connection(self) -> _Connection:
        name = self._host if self._tls else None
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            lambda: _Connection(self), self._address, self._port, ssl=self._tls, server_hostname=name
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

    def give_up(self, exchange: _Exchange, why: str) -> None:
        """End an exchange without its answer; its connection goes with it."""
        connection = exchange.connection
        self.ended(exchange, 0, why.encode())
        if connection is not None and connection.exchange is exchange:
            self.gone(connection)
            connection.close()
