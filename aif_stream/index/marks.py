"""Marks: what this Redis proves about a topic's partition.

After each batch the worker writes, last, the next offset of the partition. Redis acknowledges in order and its
AOF is in order, so a mark that is there proves that the rows before it are. A Redis that was killed (up to a
second of AOF lost), restored from an old snapshot, or emptied shows an older mark or none: the worker then
goes back to it (no mark: to the beginning of the compacted topic) instead of trusting Kafka's commit.

One gap remains: Redis dies after a batch's rows and before its mark, loses those rows, and starts with the mark of
the batch before, from which the worker would advance. So a mark advances only on the server (``run_id``, new with
each start and another on a replica) on which it was read: whatever was written since was written there.
What Redis forgot may include the layout and the list of versions: before it writes again, the worker calls
``N2OStore.ensure_layout`` and ``add_version`` for every live version (both repeatable).

In a Redis Cluster a mark proves its own node alone. A node that loses its last second without the mark's
node losing it too is not seen; run replicas with WAIT-like guarantees (min-replicas-to-write) there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from aif_stream.errors import IndexRefused
from aif_stream.index.connection import Redis
from aif_stream.index.keys import mark_key
from aif_stream.index.refusals import checked
from aif_stream.index.scripts import script
from aif_stream.index.wire import pack


class MarkBook:
    """The marks of one topic. ``identity``: (cluster id, topic id), so that a recreated topic starts anew."""

    def __init__(self, redis: Redis, identity: tuple[str, str]) -> None:
        self._redis = redis
        self._cluster, self._topic = identity
        self._servers: dict[int, bytes] = {}  # run id of the server that answered ``read``, by partition

    async def read(self, partition: int) -> int | None:
        """The next offset that Redis knows of; None when it knows nothing."""
        key = mark_key(self._cluster, self._topic, partition)
        commands = [pack("GET", key), pack("INFO", "server")]
        value, info = checked(await self._redis.execute(commands, [key, key]))
        self._servers[partition] = _run_id(info)
        if value is None:
            return None
        try:
            return int(value)
        except ValueError:
            raise IndexRefused(f"{key.decode()} holds {value!r:.40}", mend="delete the key: it is replayed") from None

    def server(self, partition: int) -> bytes:
        """Run id of the server that answered the last ``read``; b"" before the first."""
        return self._servers.get(partition, b"")

    async def advance(self, partition: int, expected: int | None, next_offset: int) -> bool:
        """Set the mark if it still is ``expected`` (None: absent), what this worker wrote or read last.

        False: Redis forgot or was started again since ``read``, or another worker has the partition. Then nothing
        may be committed; read the mark and seek. Raises ``IndexUnavailable``; a mark that may have been written
        before is seen as False.
        """
        key = mark_key(self._cluster, self._topic, partition)
        before = b"" if expected is None else b"%d" % expected
        command = script("mark_advance").call([key], before, b"%d" % next_offset, self._servers.get(partition, b""))
        return bool(checked(await self._redis.execute([command], [key]))[0] == 1)

    async def put(self, offsets: Mapping[int, int]) -> None:
        """Set marks without a comparison: the same log got a new identity. Call it only while no worker runs."""
        for partition, offset in offsets.items():
            await self._redis.call("SET", mark_key(self._cluster, self._topic, partition), b"%d" % offset)

    async def remove(self, partitions: Iterable[int]) -> None:
        """Delete the marks of an identity that is no longer used."""
        for partition in partitions:
            await self._redis.call("DEL", mark_key(self._cluster, self._topic, partition))


def _run_id(info: bytes) -> bytes:
    for line in bytes(info).splitlines():
        if line.startswith(b"run_id:"):
            return line.removeprefix(b"run_id:").strip()
    raise IndexRefused("Redis does not tell its run_id", mend="allow this user INFO")
