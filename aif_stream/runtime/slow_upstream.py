"""A retrieval upstream that takes as long as it is told: ``python -m aif_stream.runtime.slow_upstream PORT ITEMS``.

For ``aif experiment latency``. Answers keys of a catalogue 0 … ITEMS - 1, drawn anew for each request, after the time
that ``POST /pace`` named last (``{"ms": …, "candidates": …}``), counted from the request's arrival.
"""

from __future__ import annotations

import asyncio
import json
import sys

import numpy as np
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aif_stream.clock import elapsed_ms, monotonic_s
from aif_stream.domain.candidates import MEDIA_TYPE, Candidates, encode_candidates


def application(items: int) -> Starlette:
    """The upstream over so many items."""
    random = np.random.default_rng(2)
    shuffled = random.permutation(items).astype(np.uint64)
    pace = {"ms": 0.0, "candidates": items}

    async def retrieve(request: Request) -> Response:
        began = monotonic_s()
        asked = json.loads(await request.body())
        count = min(int(pace["candidates"]), int(asked["k"]), items)
        start = int(random.integers(0, items - count + 1))
        body = encode_candidates(Candidates(asked["channel"], shuffled[start : start + count]))
        await asyncio.sleep(max(0.0, pace["ms"] - elapsed_ms(began)) / 1000)
        return Response(body, media_type=MEDIA_TYPE)

    async def set_pace(request: Request) -> Response:
        pace.update(json.loads(await request.body()))
        return Response(status_code=204)

    return Starlette(
        routes=[Route("/v1/retrieve", retrieve, methods=["POST"]), Route("/pace", set_pace, methods=["POST"])]
    )


def main() -> None:
    """Serve on loopback until SIGTERM."""
    import uvicorn

    port, items = (int(text) for text in sys.argv[1:3])
    uvicorn.run(application(items), host="127.0.0.1", port=port, log_level="error", access_log=False)


if __name__ == "__main__":
    main()
