"""Profiles and histories of users in Redis: one key each per user, in one cluster slot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from aif_stream.domain.events import Attribute, decode_user
from aif_stream.domain.history import ENTRY_BYTES, History, unpack_history
from aif_stream.domain.order import HEADER_BYTES, Order
from aif_stream.errors import BadEvent, IndexRefused
from aif_stream.index.connection import Redis
from aif_stream.index.item_codec import ORDER_LIMIT, WriteResult, WriteStatus
from aif_stream.index.keys import history_key, profile_key
from aif_stream.index.refusals import checked
from aif_stream.index.scripts import script
from aif_stream.index.wire import pack
from aif_stream.telemetry import HISTORY_DROPPED

# Cutting a full history back rewrites all of it (160 KB at 10,000 entries), in the AOF too. Done once per
# eighth of its length that is 128 bytes of AOF per entry; done at each entry it would be 160 KB.
_SLACK_SHARE: Final = 8
_MIN_SLACK: Final = 16


class ProfileWrite(NamedTuple):
    """One ``user.upserted`` (its JSON value as produced), or None for a removed user."""

    user_key: int
    order: Order
    payload: bytes | None


class StoredUser(NamedTuple):
    """What is known of a user; an unknown one has no attributes, no order and an empty history (L)."""

    attributes: Mapping[str, Attribute] | None
    order: Order | None
    history: History


class HistoryStore:
    """``long``: entries kept per user (``history_long``)."""

    def __init__(self, redis: Redis, long: int) -> None:
        self._redis = redis
        self._long = long
        slack = max(_MIN_SLACK, long // _SLACK_SHARE)
        self._bounds = (b"%d" % long, b"%d" % slack)

    async def append(self, entries: Mapping[int, bytes]) -> int:
        """Merge packed entries (``domain.history.entry_bytes``, any order, any number) by user key.

        Repeatable; whatever the order and repetition of calls, ``read`` gives the same bytes: the newest
        ``long`` of all entries ever seen. Returns (and counts) the entries that fell off the bound.
        """
        append = script("history_append")
        keys = [history_key(user) for user in entries]
        commands = [
            append.call([key], _canonical(packed), *self._bounds)
            for key, packed in zip(keys, entries.values(), strict=True)
        ]
        dropped = sum(checked(await self._redis.execute(commands, keys)))
        if dropped:
            HISTORY_DROPPED.inc(dropped)
        return int(dropped)

    async def write_profiles(self, profiles: Sequence[ProfileWrite]) -> list[WriteResult]:
        """Compare-and-set by order: WRITTEN, EQUAL or OLDER (with the stored order). Repeatable."""
        keys = [profile_key(profile.user_key) for profile in profiles]
        write = script("profile_write")
        commands = [
            write.call([key], profile.order.pack() + (profile.payload or b""))
            for key, profile in zip(keys, profiles, strict=True)
            if _checked_order(profile.order)
        ]
        replies: list[bytes] = checked(await self._redis.execute(commands, keys))
        return [
            WriteResult(WriteStatus(reply[0]), Order.unpack(reply[1:]) if len(reply) > 1 else profile.order)
            for reply, profile in zip(replies, profiles, strict=True)
        ]

    async def write_profile(self, user_key: int, order: Order, payload: bytes | None) -> WriteResult:
        """One of ``write_profiles``."""
        return (await self.write_profiles([ProfileWrite(user_key, order, payload)]))[0]

    async def read_many(self, user_keys: Sequence[int]) -> list[StoredUser]:
        """Profiles and histories in one round trip."""
        keys = [key for user in user_keys for key in (profile_key(user), history_key(user))]
        newest = -self._long * ENTRY_BYTES
        commands = [pack("GET", key) if i % 2 == 0 else pack("GETRANGE", key, newest, -1) for i, key in enumerate(keys)]
        replies = iter(checked(await self._redis.execute(commands, keys)))
        return [_stored_user(user, next(replies), next(replies)) for user in user_keys]

    async def read(self, user_key: int) -> StoredUser:
        """One of ``read_many``."""
        return (await self.read_many([user_key]))[0]


def _canonical(packed: bytes) -> bytes:
    """Entries sorted by (time_kind, key) as numbers, each once."""
    if len(packed) == ENTRY_BYTES:
        return packed
    found = {packed[at : at + ENTRY_BYTES] for at in range(0, len(packed), ENTRY_BYTES)}
    ordered: list[bytes] = sorted(found, key=_rank)
    return b"".join(ordered)


def _rank(entry: bytes) -> tuple[int, int]:
    return int.from_bytes(entry[:8], "little"), int.from_bytes(entry[8:], "little")


def _checked_order(order: Order) -> bool:
    if max(order) >= ORDER_LIMIT:
        raise BadEvent("invalid", f"order {order} passes 2**53", field="event_time_ms")
    return True


def _stored_user(user_key: int, profile: bytes | None, history: bytes) -> StoredUser:
    attributes: Mapping[str, Attribute] | None = None
    order = None
    try:
        if profile is not None:
            order = Order.unpack(profile)
            if len(profile) > HEADER_BYTES:
                attributes = decode_user(profile[HEADER_BYTES:]).attributes
        return StoredUser(attributes, order, unpack_history(history))
    except (ValueError, BadEvent) as error:
        raise IndexRefused(f"user {user_key} is stored in an unknown form: {error}") from None
