"""How late the event loop runs what is due: every answer waits at least that long, several times."""

from __future__ import annotations

import asyncio
from typing import Final

from aif_stream.clock import monotonic_s
from aif_stream.telemetry import LOOP_LAG

# Twenty looks a second see every stall of 50 ms and a fair sample of shorter ones, for 2 ms of CPU a second.
_EVERY_S: Final = 0.05


async def watch_loop() -> None:
    """Observe ``aif_loop_lag_seconds`` until cancelled: how much later than asked for the loop came back.

    A machine without a free core shows here too: what counts for the answers is when the loop runs, not why.
    """
    while True:
        due_s = monotonic_s() + _EVERY_S
        await asyncio.sleep(_EVERY_S)
        LOOP_LAG.observe(max(0.0, monotonic_s() - due_s))
