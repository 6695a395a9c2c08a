"""``aif retrieval``: the channels over HTTP."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aif_stream.clock import elapsed_ms, monotonic_s
from aif_stream.domain.candidates import MEDIA_TYPE, encode_candidates, id_of
from aif_stream.domain.events import Id
from aif_stream.domain.ids import canonical_id, key_of
from aif_stream.errors import BadInput
from aif_stream.listening import address_of, bind, first_of_group, serve_http
from aif_stream.retrieval.channels import CHANNELS
from aif_stream.retrieval.feeds import Feeds
from aif_stream.settings import Settings
from aif_stream.telemetry import RETRIEVAL_SECONDS, kv
from aif_stream.web import Health, application, json_response, read_body, repeating_request_id

log = logging.getLogger(__name__)

# A request names one user, one channel and a number.
_MAX_BODY_BYTES: Final = 16 * 1024


class RetrieveRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``POST /v1/retrieve``: at most k candidates of one channel for one user."""

    user_id: Id
    channel: str
    k: Annotated[int, Meta(ge=1)] = 1000


_REQUEST: Final = msgspec.json.Decoder(RetrieveRequest)


class RetrievalServer:
    """Routes over one ``Feeds``; searches run in a thread of their own."""

    def __init__(self, settings: Settings, feeds: Feeds, searcher: ThreadPoolExecutor) -> None:
        self._settings = settings
        self._feeds = feeds
        self._searcher = searcher
        self._health = Health(self._reasons, self._facts)
        routes = [Route("/v1/retrieve", self._retrieve, methods=["POST"]), *self._health.routes()]
        self.app = repeating_request_id(application(routes))

    async def _retrieve(self, request: Request) -> Response:
        started_s = monotonic_s()
        asked = _decode(await read_body(request, _MAX_BODY_BYTES))
        if asked.k > self._settings.max_candidates:
            raise BadInput(f"at most {self._settings.max_candidates} (AIF_MAX_CANDIDATES)", field="k")
        user_key = key_of(canonical_id(asked.user_id, "user_id"))
        answer = self._feeds.channels.answer
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._searcher, answer, asked.channel, user_key, asked.k)
        RETRIEVAL_SECONDS.labels(channel=found.channel).observe(elapsed_ms(started_s) / 1000.0)
        await asyncio.sleep(max(0.0, self._settings.retrieval_latency_ms - elapsed_ms(started_s)) / 1000.0)
        request_id = request.headers.get("x-request-id")
        log.debug(
            kv(
                "retrieve",
                request=request_id or "-",
                channel=found.channel,
                keys=found.keys.size,
                ms=elapsed_ms(started_s),
            )
        )
        accept = request.headers.get("accept", MEDIA_TYPE)
        if "application/json" in accept and MEDIA_TYPE not in accept:
            ids = [id_of(key, found.names) for key in found.keys.tolist()]
            return json_response({"channel": found.channel, "ids": ids})
        return Response(encode_candidates(found), media_type=MEDIA_TYPE)

    def _reasons(self) -> list[str]:
        self._health.started = self._feeds.ready.is_set()
        if self._health.started:
            return []
        behind = sorted(self._feeds.behind)
        return [f"reading {topic}" for topic in behind] or ["building the neighbour index"]

    def _facts(self) -> dict[str, Any]:
        catalogue = self._feeds.catalogue
        return {
            "channels": CHANNELS,
            "items": catalogue.alive,
            "users": self._feeds.recent.users,
            "indexed_vectors": self._feeds.neighbours.indexed,
            "vector_width": catalogue.width,
            "vectors_of_other_width": catalogue.width_mismatches,
            "memory_mb": round(catalogue.nbytes / 2**20, 1),
        }


def _decode(body: bytes) -> RetrieveRequest:
    try:
        return _REQUEST.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        problem, _, path = str(error).partition(" - at `")
        field = path.removesuffix("`").removeprefix("$").removeprefix(".")
        if not field and "missing required field" in problem:
            field = problem.rsplit("`", 2)[1]
        raise BadInput(problem, field=field) from None


@asynccontextmanager
async def retrieval_role(settings: Settings, stop: asyncio.Event) -> AsyncIterator[str]:
    """The role as a context: yields its address once it listens (it is ready when ``/readyz`` says so).

    Leaving the context stops it. A feed that fails for good (no such topic) ends the context with its error.
    """
    bound = bind(settings.host, settings.retrieval_port)
    searcher = ThreadPoolExecutor(1, "retrieval-search")
    ended = asyncio.Event()
    try:
        async with Feeds(settings) as feeds, asyncio.TaskGroup() as tasks:
            server = RetrievalServer(settings, feeds, searcher)
            reading = tasks.create_task(feeds.run(), name="feeds")
            serving = tasks.create_task(serve_http(server.app, bound, ended), name="http")
            relay = tasks.create_task(_relay(stop, ended), name="stop")
            log.info(kv("retrieval.listening", address=address_of(bound)))
            try:
                yield address_of(bound)
            finally:
                ended.set()
                relay.cancel()
                await asyncio.wait([serving])
                reading.cancel()
    finally:
        bound.close()
        searcher.shutdown(wait=False, cancel_futures=True)


async def _relay(stop: asyncio.Event, ended: asyncio.Event) -> None:
    await stop.wait()
    ended.set()


async def run_retrieval(settings: Settings, stop: asyncio.Event) -> None:
    """Serve until ``stop``."""
    with first_of_group():
        async with retrieval_role(settings, stop):
            await stop.wait()
