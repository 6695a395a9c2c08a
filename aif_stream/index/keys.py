"""Every Redis key of aif_stream, with the reason of its lifetime.

    {n2o:<b>}:items          hash  key (8 bytes) -> item value (item_codec.py)
    {n2o:<b>}:versions       set   names of the versions that a live write of this bucket must carry
    {n2o:<b>}:retired        set   names of the versions that are never listed here again, whoever asks
    {n2o:<b>}:rows:<v>       hash  key (8 bytes) -> row (domain/row.py), 32 bytes when removed
    {u:<user key, hex>}:h    string  packed history entries (domain/history.py), oldest first
    {u:<user key, hex>}:p    string  order header (16 bytes) + the producer's JSON
    aif:mark:<c>:<t>:<p>     string  next offset of a topic's partition whose effects are in this Redis
    aif:layout               string  bucket count and format of this deployment
    aif:rebuild:<v>          hash  finished bucket -> its items, of a version's last rebuild
    aif:rebuilding:<v>       string, there while a worker is at the rebuild of a version
    aif:lease:<r>:<id>       string  a process of role <r> was alive; expires some beats after its last one
    aif:leases:<r>           hash  process -> what it said last; the reader forgets those silent for an hour
    {x:<explanation id>}:s   hash  state of an explanation and its stages; kept AIF_EXPLAIN_KEEP_S after its last change
    {x:<explanation id>}:e   stream  what happened to it, in order: what subscribers are told; lives as long
    {xf:<request id>}:f      string  facts of an answer (domain/facts.py); AIF_EXPLAIN_FACTS_S or less (bound in bytes)
    {xfu:<name>}:f           string  the user's part of facts, once for many answers of one server; as long as they
    {xf:<request id>}:k      string  "1": facts were kept once; outlives them, so that "expired" is told from "unknown"
    aif:explain:key          string  32 random bytes: the seal of explanations' ids (domain/explanations.py)
    aif:explain:wake         stream  ids of explanations that changed, a hint for servers; only the newest few thousand
    aif:explain:cache:<h>    string  stages of an explanation by the hash of all that they follow from
    aif:explain:near:<v>:<h>     string  its refined stage by item row and quantised user, for like users
    aif:explain:near-window:<v>  list    how far such stages were off when they were computed all the same
    aif:explain:near-off:<v>     string  "1": that was too far; until it expires nothing of them is used

None of the others expires. Items, rows and profiles are the projection of compacted topics: they live until a removal
(whose tombstone is purged after ``tombstone_keep_h``) or the retirement of a version. Histories are bounded
by length instead. A mark or a layout that vanished would look like an emptied Redis: a needless full replay.

What stands between braces decides the Redis Cluster slot: all keys that one script touches share it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aif_stream.domain.ids import Keys

LAYOUT_KEY: Final = b"aif:layout"

# splitmix64's finaliser: consecutive ids spread evenly, whatever the bucket count.
_MIX_1: Final = 0xBF58476D1CE4E5B9
_MIX_2: Final = 0x94D049BB133111EB
_MASK: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Buckets:
    """The buckets of the index, 0 … ``count`` − 1; fixed for the life of a deployment."""

    count: int

    def of(self, key: int) -> int:
        """The bucket of one key."""
        x = ((key ^ (key >> 30)) * _MIX_1) & _MASK
        x = ((x ^ (x >> 27)) * _MIX_2) & _MASK
        return (x ^ (x >> 31)) % self.count

    def of_many(self, keys: Keys) -> NDArray[np.int64]:
        """The buckets of keys u64 (B) -> i64 (B); agrees with ``of``."""
        x = (keys ^ (keys >> np.uint64(30))) * np.uint64(_MIX_1)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(_MIX_2)
        buckets: NDArray[np.int64] = ((x ^ (x >> np.uint64(31))) % np.uint64(self.count)).astype(np.int64)
        return buckets


def items_key(bucket: int) -> bytes:
    return b"{n2o:%d}:items" % bucket


def versions_key(bucket: int) -> bytes:
    return b"{n2o:%d}:versions" % bucket


def retired_key(bucket: int) -> bytes:
    return b"{n2o:%d}:retired" % bucket


def rows_key(bucket: int, version: str) -> bytes:
    return b"{n2o:%d}:rows:%s" % (bucket, version.encode())


def history_key(user_key: int) -> bytes:
    return b"{u:%016x}:h" % user_key


def profile_key(user_key: int) -> bytes:
    return b"{u:%016x}:p" % user_key


def mark_key(cluster: str, topic_id: str, partition: int) -> bytes:
    return b"aif:mark:%s:%s:%d" % (cluster.encode(), topic_id.encode(), partition)


def rebuild_key(version: str) -> bytes:
    return b"aif:rebuild:%s" % version.encode()


def rebuild_busy_key(version: str) -> bytes:
    """There while a worker rebuilds; it ends by itself when nobody renews it."""
    return b"aif:rebuilding:%s" % version.encode()


def lease_key(role: str, name: str) -> bytes:
    return b"aif:lease:%s:%s" % (role.encode(), name.encode())


def leases_key(role: str) -> bytes:
    return b"aif:leases:%s" % role.encode()


def explanation_key(name: str) -> bytes:
    return b"{x:%s}:s" % name.encode()


def explanation_events_key(name: str) -> bytes:
    return b"{x:%s}:e" % name.encode()


def facts_key(request_id: str) -> bytes:
    return b"{xf:%s}:f" % request_id.encode("utf-8", "surrogatepass")


def facts_user_key(name: str) -> bytes:
    return b"{xfu:%s}:f" % name.encode()


def facts_known_key(request_id: str) -> bytes:
    return b"{xf:%s}:k" % request_id.encode("utf-8", "surrogatepass")


def explanation_cache_key(digest: str) -> bytes:
    return b"aif:explain:cache:%s" % digest.encode()


def near_stage_key(version: str, digest: str) -> bytes:
    return b"aif:explain:near:%s:%s" % (version.encode(), digest.encode())


def near_window_key(version: str) -> bytes:
    return b"aif:explain:near-window:%s" % version.encode()


def near_off_key(version: str) -> bytes:
    return b"aif:explain:near-off:%s" % version.encode()


EXPLANATION_ID_KEY: Final = b"aif:explain:key"
EXPLANATION_WAKE_KEY: Final = b"aif:explain:wake"
