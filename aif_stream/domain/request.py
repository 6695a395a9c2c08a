"""A rank request and its answer, as they cross the HTTP edge (contract: ``POST /v1/rank``)."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from aif_stream.domain.events import Id
from aif_stream.domain.explanations import StartedExplanation
from aif_stream.domain.freshness import PROBE_ITEM
from aif_stream.domain.ids import canonical_id
from aif_stream.errors import BadInput


class RankRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a client asks. Limits beyond the types are settings, checked by the server."""

    user_id: Id
    k: Annotated[int, Meta(ge=1)] = 100
    candidates: list[Id] | None = None
    deadline_ms: Annotated[float, Meta(gt=0)] | None = None
    explain: bool | int = False
    model_version: str | None = None
    context: dict[str, Any] = {}
    replay: bool = False
    """Whether it is asked again by ``aif replay``: answered like any other, counted apart and not logged again."""

    @property
    def user(self) -> str:
        return canonical_id(self.user_id, "user_id")

    @property
    def is_probe(self) -> bool:
        """Whether this is the watch's own request: answered like any other, counted and logged nowhere."""
        return self.candidates == [PROBE_ITEM]


class RankedItem(msgspec.Struct, frozen=True, gc=False):
    """Nothing in it can refer back to it, so the garbage collector need not know of each: 500 of an answer are made in
    a third of the time."""

    item_id: str
    score: float


class Coverage(msgspec.Struct, frozen=True):
    """Candidates named (distinct), scored, of those recomputed from features, and missing."""

    candidates: int
    scored: int
    recomputed: int
    missing: int


class AgeMs(msgspec.Struct, frozen=True):
    p50: float
    max: float


class Freshness(msgspec.Struct, frozen=True):
    """Ages of the rows used (now − compute time), how many the age policy marked stale, and the newest event among
    them (ms, 0 without rows)."""

    age_ms: AgeMs
    stale: int
    newest_event_ms: int


class Timings(msgspec.Struct, frozen=True):
    """Milliseconds by stage, each at most ``total`` (arrival to answer).

    ``user``, ``retrieval``: from the stage's first beginning to its last end, waits included. ``join``, ``score``: time
    in which rows were looked up, gathered or recomputed, and scored and ranked; waiting for a thread is in neither
    (only in ``total``), and what was done while another channel was still awaited is in both it and ``retrieval``.
    ``overlap_saved`` = user + retrieval − the time both took together.
    """

    user: float
    retrieval: float
    join: float
    score: float
    total: float
    overlap_saved: float


class RankAnswer(msgspec.Struct, frozen=True, kw_only=True):
    request_id: str
    model_version: str
    items: list[RankedItem]
    coverage: Coverage
    freshness: Freshness
    degraded: list[str]
    timings_ms: Timings
    explanations: list[StartedExplanation] | msgspec.UnsetType = msgspec.UNSET


_REQUEST = msgspec.json.Decoder(RankRequest)


T = TypeVar("T")


def decode_request(body: bytes) -> RankRequest:
    """Raises ``BadInput`` with the field's path."""
    return decode_as(_REQUEST, body)


def decode_as(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """A request's body by its type. Raises ``BadInput`` with the field's path."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        problem, _, path = str(error).partition(" - at `")
        field = path.removesuffix("`").removeprefix("$").removeprefix(".")
        if not field and "missing required field" in problem:
            field = problem.rsplit("`", 2)[1]
        raise BadInput(problem, field=field) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"the body is not JSON: {error}") from None
