"""One keep-alive connection of ``http_client``: sends one request at a time and matches the answer to it.

What the other side sends unasked must not be taken for an answer to the next request:

- A connection is used only while nothing has arrived since its last answer (``is_quiet`` asks the kernel too), and is
  closed when anything does.
- Bytes behind an answer close the connection. Without an id on a used connection it is open which of the two was the
  answer: the request is sent once more, on a new connection.
- A request that carries an ``x-request-id`` takes only an answer with the same one, or with none (a foreign upstream
  that does not repeat it). Surplus bytes that arrive between ``is_quiet`` and the answer are told by the id alone.
- An answer that came before its request was sent ends the connection: the rest of the request is no new request.
"""

from __future__ import annotations

import asyncio
import select
import socket
from typing import Final, NamedTuple, Protocol, cast

import httptools

# Of an answer's head, interim answers (1xx) included: nobody means more.
_HEAD_BYTES: Final = 256 * 1024


class Exchange:
    """One request under way. With a ``request_id`` its sender allows that it is sent once more (``repeated``)."""

    __slots__ = ("body", "connection", "due_s", "number", "repeated", "request_id")

    def __init__(self, number: int, body: bytes, due_s: float, request_id: bytes) -> None:
        self.number, self.body, self.due_s, self.request_id = number, body, due_s, request_id
        self.connection: Connection | None = None
        self.repeated = False


class Owner(Protocol):
    """The client. ``head``: every request's, up to what differs; ``limit_bytes``: of an answer's body."""

    head: bytes
    limit_bytes: int

    def ended(self, exchange: Exchange, status: int, body: bytes, media_type: str = "") -> None: ...
    def again(self, exchange: Exchange) -> None: ...
    def idle(self, connection: Connection) -> None: ...
    def gone(self, connection: Connection) -> None: ...
    def refused(self, connection: Connection, reason: str, problem: str) -> None: ...


class _Answer(NamedTuple):
    status: int
    body: bytes
    media_type: bytes
    request_id: bytes | None
    keep: bool


class Connection(asyncio.Protocol):
    """Sends one exchange, tells the owner its end, is idle again. httptools calls the ``on_`` methods."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._poll = select.poll()
        self._number = -1  # of the socket
        self._used = False
        self._begin()

    def _begin(self) -> None:
        """Forget the last answer."""
        self.exchange: Exchange | None = None
        self._answer: _Answer | None = None
        self._body = bytearray()
        self._media_type = b""
        self._request_id: bytes | None = None
        self._head_bytes = 0
        self._begun = self._in_body = self._has_length = self._surplus = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own is none of its subclasses
        self._number = transport.get_extra_info("socket").fileno()
        self._poll.register(self._number, select.POLLIN)

    def is_quiet(self) -> bool:
        """Whether nothing has arrived since the last answer, not even the other side's end."""
        return self._transport is not None and not self._transport.is_closing() and not self._poll.poll(0)

    def has_unread(self) -> bool:
        """Whether what ended the quiet is bytes. Under TLS the end of the stream is bytes, too."""
        if self._transport is None or self._transport.is_closing():
            return False
        if self._transport.get_extra_info("ssl_object") is not None:
            return False
        with socket.socket(fileno=socket.dup(self._number)) as same:
            try:
                return bool(same.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
            except OSError:
                return False

    def send(self, exchange: Exchange) -> None:
        self._begin()
        self.exchange, exchange.connection = exchange, self
        if self._transport is None or self._transport.is_closing():
            self._lost("the server closed the connection")
            return
        name = b"x-request-id: %s\r\n" % exchange.request_id if exchange.request_id else b""
        length = b"content-length: %d\r\n\r\n" % len(exchange.body)
        self._transport.write(self._owner.head + name + length + exchange.body)

    def close(self) -> None:
        self.exchange = None
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if self.exchange is None:
            self._owner.refused(self, "unasked", f"{len(data)} bytes that no request asked for")
            return
        if not self._in_body:
            self._head_bytes += len(data)
        problem = ""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            problem = f"no HTTP answer: {error}"
        if len(self._body) > self._owner.limit_bytes:
            self._lost(f"an answer of more than {self._owner.limit_bytes} bytes")
        elif self._answer is not None:
            self._finish(self.exchange, self._answer, surplus=self._surplus or bool(problem))
        elif not self._in_body and self._head_bytes > _HEAD_BYTES:
            self._lost(f"an answer with a head of more than {_HEAD_BYTES} bytes")
        elif problem:
            self._lost(problem)

    def on_message_begin(self) -> None:
        if self._answer is not None:
            self._surplus = True
            return
        self._begun = True
        self._in_body = self._has_length = False
        self._media_type, self._request_id = b"", None

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._answer is not None or self._in_body:  # surplus, or a trailer
            return
        match name.lower():
            case b"content-type":
                self._media_type = value.partition(b";")[0].strip().lower()
            case b"x-request-id":
                self._request_id = value.strip()
            case b"content-length" | b"transfer-encoding":
                self._has_length = True

    def on_headers_complete(self) -> None:
        if self._answer is None and self._parser.get_status_code() >= 200:
            self._in_body = True

    def on_body(self, body: bytes) -> None:
        if self._answer is None:
            self._body += body

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if self._answer is None and status >= 200:  # of 100 Continue and the like the answer is still to come
            self._answer = self._whole(keep=self._parser.should_keep_alive())

    def _whole(self, *, keep: bool) -> _Answer:
        status = self._parser.get_status_code()
        return _Answer(status, bytes(self._body), self._media_type, self._request_id, keep)

    def _finish(self, exchange: Exchange, answer: _Answer, *, surplus: bool) -> None:
        """The answer is whole, and everything that came with it has been looked at."""
        own, other = exchange.request_id, answer.request_id
        if own and other not in (None, own):
            shown = (other or b"")[:100].decode(errors="replace")
            problem = f"the answer has x-request-id {shown}, the request {own.decode(errors='replace')}"
            self._refuse(exchange, "another id", problem)
            return
        if surplus and self._used and not (own and other == own):
            self._refuse(exchange, "surplus", "the answer came with bytes of another one")
            return
        keep = answer.keep and self._transport is not None and not self._transport.get_write_buffer_size()
        self._used, self.exchange = True, None
        self._owner.ended(exchange, answer.status, answer.body, answer.media_type.decode(errors="replace"))
        if surplus:
            self._owner.refused(self, "surplus", "bytes behind the end of an answer")
        elif keep:
            self._owner.idle(self)
        else:
            self._owner.gone(self)
            self.close()

    def _refuse(self, exchange: Exchange, reason: str, problem: str) -> None:
        self._owner.refused(self, reason, problem)
        if exchange.request_id and not exchange.repeated:
            exchange.repeated = True
            self._owner.again(exchange)
        else:
            self._owner.ended(exchange, 0, problem.encode())

    def connection_lost(self, error: Exception | None) -> None:
        if error is None and self.exchange is not None and self._in_body and not self._has_length:
            # A body that ends with the connection.
            self._finish(self.exchange, self._whole(keep=False), surplus=False)
        else:
            self._lost(str(error) if error else "the server closed the connection")

    def _lost(self, why: str) -> None:
        exchange, self.exchange = self.exchange, None
        if self._transport is not None:
            self._transport.abort()
        self._owner.gone(self)
        if exchange is None:
            return
        if self._used and not self._begun and not exchange.repeated:
            exchange.repeated = True  # the server had given this idle connection up: nobody has seen the request
            self._owner.again(exchange)
        else:
            self._owner.ended(exchange, 0, why.encode())
