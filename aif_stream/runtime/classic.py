"""COLD the classic way behind HTTP: ``python -m aif_stream.runtime.classic PORT ITEMS ARTEFACT``.

What ``aif experiment latency`` compares CPU with: retrieval first, then the history from Redis, then item tower, user
side and scores of everything in one go (model/sequential.py). Less than a server needs: no deadline, no request log, no
metrics, no versions, ages or admission. Its answers have the fields that the experiment reads.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aif_stream.clock import elapsed_ms, monotonic_s
from aif_stream.domain.events import decode_item
from aif_stream.domain.request import Timings
from aif_stream.index.connection import open_redis
from aif_stream.index.histories import HistoryStore
from aif_stream.index.keys import Buckets
from aif_stream.index.store import N2OStore
from aif_stream.kernels.ranking import best_of
from aif_stream.model.artefact import load as load_artefact
from aif_stream.model.sequential import Sequential
from aif_stream.online.executor import ComputeThreads
from aif_stream.online.retrieval_client import RetrievalClient
from aif_stream.settings import Settings, load

_BUDGET_S: Final = 2.0


class Classic:
    """Answers one model over one catalogue whose items are numbered 0 … N - 1."""

    def __init__(
        self, model: Sequential, histories: HistoryStore, retrieval: RetrievalClient, threads: ComputeThreads, most: int
    ) -> None:
        self._model = model
        self._histories = histories
        self._retrieval = retrieval
        self._threads = threads
        self._most = most

    async def rank(self, request: Request) -> Response:
        began_s = monotonic_s()
        asked = orjson.loads(await request.body())
        channel = self._retrieval.channels[0]
        found = await self._retrieval.ask("classic", str(asked["user_id"]), channel, self._most, _BUDGET_S)
        retrieval_ms, joins_s = elapsed_ms(began_s), monotonic_s()
        history = (await self._histories.read(int(asked["user_id"]))).history
        join_ms = elapsed_ms(joins_s)

        def scored() -> tuple[list[dict[str, object]], float]:
            begin_s = monotonic_s()
            scores = self._model.scores(history, history["key"].astype(np.int64), found.keys.astype(np.int64))
            order = best_of(scores, found.keys, np.zeros(len(scores), np.uint64), int(asked["k"])).order
            pairs = zip(found.keys[order].tolist(), scores[order].tolist(), strict=True)
            return [{"item_id": str(key), "score": score} for key, score in pairs], elapsed_ms(begin_s)

        items, score_ms = await self._threads.run(scored, began_s)
        timings = Timings(0.0, retrieval_ms, join_ms, score_ms, elapsed_ms(began_s), 0.0)
        answer = {"items": items, "degraded": [], "timings_ms": msgspec.to_builtins(timings)}
        return Response(orjson.dumps(answer), media_type="application/json")


def application(settings: Settings, items: int, artefact: Path) -> Starlette:
    """The server; it is ready when it answers."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        with ComputeThreads(settings.executor_threads) as threads:
            async with open_redis(settings) as redis, RetrievalClient(settings, threads.run) as retrieval:
                stored = await N2OStore(redis, Buckets(settings.index_buckets)).read_items(range(items))
                known = [decode_item(item.payload) for item in stored if item is not None]
                model = Sequential(load_artefact(artefact), known)
                histories = HistoryStore(redis, settings.history_long)
                app.state.classic = Classic(model, histories, retrieval, threads, settings.retrieval_k)
                yield

    async def rank(request: Request) -> Response:
        classic: Classic = request.app.state.classic
        return await classic.rank(request)

    async def ready(_: Request) -> Response:
        return Response(status_code=200)

    routes = [Route("/v1/rank", rank, methods=["POST"]), Route("/readyz", ready)]
    return Starlette(routes=routes, lifespan=lifespan)


def main() -> None:
    """Serve on loopback until SIGTERM; settings from the environment."""
    import uvicorn

    settings, _ = load()
    app = application(settings, int(sys.argv[2]), Path(sys.argv[3]))
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="error", access_log=False)


if __name__ == "__main__":
    main()
