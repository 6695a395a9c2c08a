"""The tape: request lines made ready to be sent, in the order of their arrival, on disk.

Everything that costs time (decoding, checking, encoding the body) happens before the first request is due; while the
player runs, a body is one ``pread`` from the page cache.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Annotated, Any, Final, Self

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from aif_stream.domain.decoding import UNDECODABLE
from aif_stream.domain.events import Id, TimeMs
from aif_stream.domain.ids import canonical_id
from aif_stream.domain.request import RankedItem
from aif_stream.errors import BadInput

_DEFAULT_K: Final = 100  # as the server's own default
# Fields of an answer that fell short of which do not change the ranking of named candidates.
_HARMLESS: Final = ("freshness", "explain", "retrieval")


class _Item(msgspec.Struct):
    item_id: Id
    score: float


class _Line(msgspec.Struct):
    """A line of the contract; whatever else it carries is not needed."""

    user_id: Id
    received_ms: TimeMs
    k: Annotated[int, Meta(ge=1)] = _DEFAULT_K
    candidates: list[Id] | None = None
    named: bool = True
    items: list[_Item] | None = None
    model_version: str | None = None
    degraded: list[str] = []
    deadline_ms: Annotated[float, Meta(gt=0)] | None = None
    context: dict[str, Any] = {}


class Answer(msgspec.Struct):
    """What is compared of an answer, logged or replayed."""

    items: list[RankedItem]
    model_version: str = ""
    degraded: list[str] = []

    @property
    def whole(self) -> bool:
        """Whether nothing is missing from it that could change the ranking."""
        return all(reason.startswith(_HARMLESS) for reason in self.degraded)


_LINE: Final = msgspec.json.Decoder(_Line)
ANSWER: Final = msgspec.json.Decoder(Answer)
_ENCODER: Final = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True)
class Options:
    """How lines become requests. ``retrieve``: candidates that retrieval had named are left to retrieval again."""

    model_version: str | None = None
    retrieve: bool = False


class Tape:
    """``with Tape(lines) as tape``: n requests by arrival. ``received_ms`` i64 (n), ``k`` i64 (n).

    Raises ``BadInput`` naming line and field of a line that is no request, or when there is none.
    """

    def __init__(self, lines: Iterable[bytes]) -> None:
        self._file = tempfile.TemporaryFile(prefix="aif-tape-")  # noqa: SIM115  # closed by the context
        try:
            self._load(lines)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __len__(self) -> int:
        return int(self.received_ms.size)

    def line(self, i: int) -> _Line:
        return _LINE.decode(self._read(self._at[i], self._size[i]))

    def logged(self, i: int) -> Answer | None:
        """The answer that the line carries, if any."""
        line = self.line(i)
        if line.items is None:
            return None
        items = [RankedItem(canonical_id(item.item_id, "item_id"), item.score) for item in line.items]
        return Answer(items, line.model_version or "", line.degraded)

    def bodies(self, options: Options) -> Bodies:
        """Every request as the body of ``POST /v1/rank``."""
        return Bodies((_body(self.line(i), options) for i in range(len(self))), len(self))

    def _load(self, lines: Iterable[bytes]) -> None:
        at, sizes, received, ks, answered = [], [], [], [], 0
        end = 0
        for number, raw in enumerate(lines, 1):
            text = raw.strip()
            if not text:
                continue
            line = _decode(text, number)
            answered += line.items is not None
            at.append(end)
            sizes.append(len(text))
            received.append(line.received_ms)
            ks.append(line.k)
            self._file.write(text)
            end += len(text)
        if not at:
            raise BadInput("there is no request to replay", mend="aif requests export --since -1h FILE")
        self._file.flush()
        order = np.argsort(np.array(received), kind="stable")
        self._at, self._size = np.array(at)[order], np.array(sizes)[order]
        self.received_ms: NDArray[np.int64] = np.array(received, np.int64)[order]
        self.k: NDArray[np.int64] = np.array(ks, np.int64)[order]
        self.answered = answered  # lines that carry the answer given then

    def _read(self, at: int, size: int) -> bytes:
        return os.pread(self._file.fileno(), int(size), int(at))


class Bodies:
    """Byte strings on disk, read by number."""

    def __init__(self, bodies: Iterable[bytes], count: int) -> None:
        self._file = tempfile.TemporaryFile(prefix="aif-bodies-")  # noqa: SIM115  # closed by the context
        sizes = np.zeros(count, np.int64)
        for i, body in enumerate(bodies):
            sizes[i] = len(body)
            self._file.write(body)
        self._file.flush()
        self._size: list[int] = sizes.tolist()
        self._at: list[int] = (np.cumsum(sizes) - sizes).tolist()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __getitem__(self, i: int) -> bytes:
        return os.pread(self._file.fileno(), self._size[i], self._at[i])


def _decode(text: bytes, number: int) -> _Line:
    try:
        line = _LINE.decode(text)
        canonical_id(line.user_id, "user_id")
    except UNDECODABLE as error:
        raise BadInput(f"line {number} is no request: {error}", mend="contract: user_id and received_ms") from None
    return line


def _body(line: _Line, options: Options) -> bytes:
    body: dict[str, Any] = {"user_id": line.user_id, "k": line.k, "replay": True}
    if line.candidates is not None and (line.named or not options.retrieve):
        body["candidates"] = line.candidates
    if line.deadline_ms is not None:
        body["deadline_ms"] = line.deadline_ms
    if line.context:
        body["context"] = line.context
    if options.model_version is not None:
        body["model_version"] = options.model_version
    return _ENCODER.encode(body)
