"""Some items, some users: drawn in Redis in bounded steps, without reading everything."""

from __future__ import annotations

from typing import Final

import numpy as np

from aif_stream.index.connection import Redis
from aif_stream.index.item_codec import StoredItem, unpack_item
from aif_stream.index.keys import Buckets, items_key
from aif_stream.index.refusals import checked
from aif_stream.index.wire import pack

_PER_BUCKET: Final = 50
_SCAN_STEP: Final = 1_000  # keys per SCAN step: under a millisecond of Redis
_SCANS: Final = 2_000  # at most: beyond two million keys without enough users, those found do


async def sample_items(redis: Redis, buckets: Buckets, most: int) -> list[StoredItem]:
    """At most ``most`` items, removed ones too, at random over buckets and within each; each once.

    Raises ``IndexUnavailable``, ``IndexRefused``.
    """
    order = np.random.default_rng().permutation(buckets.count).tolist()
    found: dict[int, StoredItem] = {}
    share = max(_PER_BUCKET, -(-most // buckets.count))
    for bucket in order:
        place = items_key(bucket)
        command = pack("HRANDFIELD", place, min(share, most - len(found)), "WITHVALUES")
        (flat,) = checked(await redis.execute([command], [place]))
        for field, value in zip(flat[0::2], flat[1::2], strict=True):
            key = int.from_bytes(field, "little")
            found[key] = unpack_item(key, value)
        if len(found) >= most:
            break
    return list(found.values())


async def sample_users(redis: Redis, most: int) -> list[int]:
    """Keys of at most ``most`` users with a history, where a scan of the keys meets them first (their order is that
    of a hash). Raises ``IndexUnavailable``, ``IndexRefused``."""
    found: dict[int, None] = {}
    for wire in await redis.wires():
        cursor = b"0"
        for _ in range(_SCANS):
            command = pack("SCAN", cursor, "MATCH", "{u:*}:h", "COUNT", _SCAN_STEP)
            ((cursor, keys),) = checked(await wire.execute([command]))
            found.update((int(bytes(key)[3:19], 16), None) for key in keys)
            if cursor == b"0" or len(found) >= most:
                break
    return list(found)[:most]
