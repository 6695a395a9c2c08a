"""What a gate looks at: some items with their rows, and requests with the scores that two versions give them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

import numpy as np

from aif_stream.bus.request_log import latest_requests
from aif_stream.domain.events import ItemUpserted, decode_item
from aif_stream.domain.ids import Keys, canonical_id, key_of
from aif_stream.domain.row import VALID, empty_rows
from aif_stream.errors import BadEvent, BusUnavailable, TopicError
from aif_stream.index.connection import Redis
from aif_stream.index.histories import HistoryStore, StoredUser
from aif_stream.index.item_codec import StoredItem
from aif_stream.index.sampling import sample_items, sample_users
from aif_stream.index.store import N2OStore
from aif_stream.model.version import ModelVersion
from aif_stream.nearline.agreement import Scores
from aif_stream.settings import Settings

# A live write between reading an item and reading its row makes them differ: those are looked at again.
_LOOKS: Final = 4
_PART: Final = 200  # items per round trip

Source = Literal["log", "sampled"]


class Parity(NamedTuple):
    """Of ``looked`` living items, those whose row is not what the version computes: ids (some of them) and how many."""

    looked: int
    wrong: int
    examples: tuple[str, ...]


class AskedRequest(NamedTuple):
    """A request to compare versions on: keys u64 (B) of its candidates."""

    user_key: int
    candidates: Keys


async def row_parity(redis: Redis, store: N2OStore, model: ModelVersion, most: int) -> Parity:
    """Compute the rows of sampled items anew and compare them with the stored ones, all bytes but ``computed_ms``.

    Raises ``IndexUnavailable``, ``IndexRefused``.
    """
    items = [item for item in await sample_items(redis, store.buckets, most) if not item.removed]
    wrong: list[str] = []
    for first in range(0, len(items), _PART):
        part = items[first : first + _PART]
        for _ in range(_LOOKS):
            part = await _differing(store, model, part)
            if not part:
                break
            part = [item for item in await store.read_items([i.key for i in part]) if item and not item.removed]
        wrong += [item.id_text for item in part]
    return Parity(len(items), len(wrong), tuple(wrong[:3]))


async def _differing(store: N2OStore, model: ModelVersion, items: Sequence[StoredItem]) -> list[StoredItem]:
    keys = np.array([item.key for item in items], np.uint64)
    stored, found = await store.read_rows(model.name, model.layout, keys)
    computed = await asyncio.to_thread(_computed, model, items)
    computed["computed_ms"] = stored["computed_ms"]
    width = model.layout.dtype.itemsize
    left, right = (rows.view(np.uint8).reshape(len(items), width) for rows in (stored, computed))
    same = found & (left == right).all(axis=1)
    return [item for item, equal in zip(items, same.tolist(), strict=True) if not equal]


def _computed(model: ModelVersion, items: Sequence[StoredItem]) -> np.ndarray[tuple[int], np.dtype[np.void]]:
    """Rows (N) as a rebuild would write them; zeros but for the order where features cannot be read."""
    rows = np.zeros(len(items), model.layout.dtype)
    orders = np.array([item.order for item in items], np.uint64).reshape(-1, 2)
    rows["event_time_ms"], rows["offset"] = orders[:, 0], orders[:, 1]
    places: list[int] = []
    events: list[ItemUpserted] = []
    for place, item in enumerate(items):
        try:
            events.append(decode_item(item.payload))
        except BadEvent:
            continue
        places.append(place)
    if places:
        rows[places] = model.item_rows(events, orders[places, 0], orders[places, 1], 0).rows
    return rows


async def sample_requests(settings: Settings, redis: Redis, store: N2OStore) -> tuple[Source, list[AskedRequest]]:
    """The last requests of the request log; where there are none, users from Redis with items of the index."""
    random = np.random.default_rng(0)
    asked: list[AskedRequest] = []
    try:
        logged = await latest_requests(settings, settings.gate_requests)
    except (BusUnavailable, TopicError):
        logged = []
    for request in logged:
        keys = np.unique(np.array([key_of(canonical_id(i, "")) for i in request.candidates or ()], np.uint64))
        asked.append(AskedRequest(key_of(request.user_id), random.permutation(keys)[: settings.gate_candidates]))
    asked = [each for each in asked if each.candidates.size > 1]
    if asked:
        return "log", asked
    users = await sample_users(redis, settings.gate_requests) or [0]
    items = await sample_items(redis, store.buckets, max(settings.gate_row_sample, settings.gate_candidates))
    keys = np.unique(np.array([item.key for item in items if not item.removed], np.uint64))
    chosen = [random.permutation(keys)[: settings.gate_candidates] for _ in users]
    return "sampled", [AskedRequest(user, some) for user, some in zip(users, chosen, strict=True) if some.size > 1]


async def score_both(
    store: N2OStore, histories: HistoryStore, old: ModelVersion, new: ModelVersion, asked: Sequence[AskedRequest]
) -> list[tuple[Scores, Scores]]:
    """Scores of each request's candidates under both versions, where both have a row that can be scored.

    A score that is no number stays in it. Raises ``IndexUnavailable``, ``IndexRefused``.
    """
    pairs = []
    for request in asked:
        user = await histories.read(request.user_key)
        left, usable = await _scores(store, old, user, request.candidates)
        right, others = await _scores(store, new, user, request.candidates)
        both = usable & others & np.isfinite(left)
        pairs.append((left[both], right[both]))
    return pairs


async def _scores(
    store: N2OStore, model: ModelVersion, user: StoredUser, candidates: Keys
) -> tuple[Scores, np.ndarray[tuple[int], np.dtype[np.bool_]]]:
    """Scores (B) and which rows (B) can be scored."""
    past = np.ascontiguousarray(user.history["key"])[-model.config.long :]
    history = user.history[-model.config.long :]
    history_rows, found = empty_rows(model.layout, 0), np.empty(0, np.bool_)
    if past.size:
        history_rows, found = await store.read_rows(model.name, model.layout, past)
    rows, there = await store.read_rows(model.name, model.layout, candidates)
    usable = there & (rows["flags"] & VALID != 0)

    def compute() -> Scores:
        side = model.user_side(user.attributes, history, history_rows, found)
        return model.score(side, rows)

    return await asyncio.to_thread(compute), usable
