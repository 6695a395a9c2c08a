"""The checks behind the ready line of ``aif up``: the next request is answered in full, its explanation is computed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import aiohttp

from aif_stream.domain.explanations import FINAL, State
from aif_stream.errors import AifError
from aif_stream.settings import Settings

_PATIENCE_S: Final = 120.0
# It takes 1 to 4 s where the CPU is free. On a busy machine the worker only gets what others leave (AIF_EXPLAIN_NICE).
_EXPLAIN_PATIENCE_S: Final = 30.0
_AGAIN_S: Final = 0.5
_LOOK_S: Final = 0.05


async def answered_in_full(
    settings: Settings, session: aiohttp.ClientSession, report: Callable[[str], None], *, items: bool, insist: bool
) -> list[dict[str, str]]:
    """Wait until a rank request is answered without a ``degraded`` reason and, if the index has ``items``, with items.
    Returns the explanations that it has started.

    The request is excluded from metrics and from the request log. After two minutes it raises ``AifError`` if
    ``insist``. Otherwise it reports the problem and returns, so that a team can reach its own data and fix it.
    """
    end_s = asyncio.get_running_loop().time() + _PATIENCE_S
    body = {"user_id": "1", "k": 10, "explain": 1, "replay": True}
    answer: Any = None
    while asyncio.get_running_loop().time() < end_s:
        try:
            async with session.post(f"{settings.serve_url}/v1/rank", json=body) as reply:
                answer = await reply.json(content_type=None)
                if reply.status == 200 and not answer["degraded"] and bool(answer["items"]) >= items:
                    return list(answer.get("explanations", ()))
        except (aiohttp.ClientError, TimeoutError) as error:
            answer = repr(error)
        report("first request not answered in full yet")
        await asyncio.sleep(_AGAIN_S)
    problem = f"the first request is not answered in full: {str(answer)[:300]}"
    if insist:
        raise AifError(problem, mend="read the log of serve")
    report(f"{problem} → read the log of serve; aif model rollback activates the previous version")
    return []


async def explained(
    settings: Settings, session: aiohttp.ClientSession, report: Callable[[str], None], names: list[dict[str, str]]
) -> None:
    """Wait until these explanations have ended. The worker's first one takes seconds, the next a fraction of one.

    Reports an explanation that fails or takes more than 30 s; answers do not depend on it.
    """
    end_s = asyncio.get_running_loop().time() + _EXPLAIN_PATIENCE_S
    for name in (each["explanation_id"] for each in names):
        found: Any = {}
        while found.get("state") not in FINAL and asyncio.get_running_loop().time() < end_s:
            await asyncio.sleep(_LOOK_S)
            try:
                async with session.get(f"{settings.serve_url}/v1/explanations/{name}") as reply:
                    found = await reply.json(content_type=None)
            except (aiohttp.ClientError, TimeoutError) as error:
                found = {"problem": repr(error)}
        if found.get("state") != State.COMPLETE:
            what = found.get("reason") or found.get("state") or str(found)[:300]
            report(f"the first explanation is not complete: {what} → read the log of explain")
