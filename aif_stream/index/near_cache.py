"""The near cache of explanations in Redis: stages by (version, item, quantised user), and how far they were off.

Workers share both: what one of them measured counts for all. Keys of one version have its name in them and go with
their lifetimes; nothing has to be cleaned up when a version retires.
"""

from __future__ import annotations

from typing import NamedTuple

from aif_stream.index.connection import Redis
from aif_stream.index.keys import near_off_key, near_stage_key, near_window_key
from aif_stream.index.refusals import checked
from aif_stream.index.wire import pack


class NearFound(NamedTuple):
    """``stage``: of a like user, or None. ``window``: disagreements that were measured, the newest first. ``off``:
    switched off."""

    stage: bytes | None
    window: list[float]
    off: bool


class NearStore:
    """Every method raises ``IndexUnavailable`` or ``IndexRefused`` and may be repeated."""

    def __init__(self, redis: Redis, *, keep_s: float, off_s: float, window: int) -> None:
        self._redis = redis
        self._keep_ms, self._off_ms, self._window = int(keep_s * 1000), int(off_s * 1000), window

    async def look(self, version: str, digest: str) -> NearFound:
        """What is known under this key, and whether it may be believed."""
        keys = [near_stage_key(version, digest), near_window_key(version), near_off_key(version)]
        commands = [pack("GET", keys[0]), pack("LRANGE", keys[1], 0, -1), pack("EXISTS", keys[2])]
        stage, window, off = checked(await self._redis.execute(commands, keys))
        return NearFound(None if stage is None else bytes(stage), [float(value) for value in window], bool(off))

    async def keep(self, version: str, digest: str, stage: bytes) -> None:
        """Remember a stage."""
        await self._redis.call("SET", near_stage_key(version, digest), stage, "PX", self._keep_ms)

    async def measured(self, version: str, disagreement: float) -> list[float]:
        """Note one; all that are noted, the newest first. Repeated, it counts twice."""
        key = near_window_key(version)
        commands = [
            pack("LPUSH", key, repr(disagreement)),
            pack("LTRIM", key, 0, self._window - 1),
            pack("PEXPIRE", key, max(self._keep_ms, self._off_ms)),
            pack("LRANGE", key, 0, -1),
        ]
        return [float(value) for value in checked(await self._redis.execute(commands, [key] * 4))[3]]

    async def switch_off(self, version: str) -> None:
        """For a while; then it is measured anew before anything of it is told."""
        off, window = near_off_key(version), near_window_key(version)
        commands = [pack("SET", off, b"1", "PX", self._off_ms), pack("UNLINK", window)]
        checked(await self._redis.execute(commands, [off, window]))
