"""The check behind the ready line of ``aif up``: the next request is answered in full."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import aiohttp

from aif_stream.errors import AifError
from aif_stream.settings import Settings

_PATIENCE_S: Final = 120.0
_AGAIN_S: Final = 0.5


async def answered_in_full(
    settings: Settings, session: aiohttp.ClientSession, report: Callable[[str], None], *, items: bool, insist: bool
) -> None:
    """Wait until a rank request is answered without a ``degraded`` reason and, if the index has ``items``, with items.

    The request is excluded from metrics and from the request log. After two minutes it raises ``AifError`` if
    ``insist``. Otherwise it reports the problem and returns, so that a team can reach its own data and fix it.
    """
    end_s = asyncio.get_running_loop().time() + _PATIENCE_S
    answer: Any = None
    while asyncio.get_running_loop().time() < end_s:
        try:
            body = {"user_id": "1", "k": 10, "replay": True}
            async with session.post(f"{settings.serve_url}/v1/rank", json=body) as reply:
                answer = await reply.json(content_type=None)
                if reply.status == 200 and not answer["degraded"] and bool(answer["items"]) >= items:
                    return
        except (aiohttp.ClientError, TimeoutError) as error:
            answer = repr(error)
        report("first request not answered in full yet")
        await asyncio.sleep(_AGAIN_S)
    problem = f"the first request is not answered in full: {str(answer)[:300]}"
    if insist:
        raise AifError(problem, mend="read the log of serve")
    report(f"{problem} → read the log of serve; aif model rollback activates the previous version")
