"""The users and behaviors lanes on an embedded broker and Redis."""

from __future__ import annotations

from aif_stream.bus.topics import BEHAVIORS, DEAD_LETTERS, USER_UPDATES
from aif_stream.domain.history import kinds, times_ms
from aif_stream.domain.ids import key_of
from aif_stream.index.histories import HistoryStore, StoredUser
from tests.nearline_builders import T0_MS, Stack, worker
from tests.stack import eventually


async def _user(stack: Stack, name: str, entries: int = 0, time_ms: int | None = None) -> StoredUser:
    """Wait until the user has so many entries and a profile of this time."""
    store = HistoryStore(stack.redis, stack.settings.history_long)

    async def there() -> StoredUser | None:
        user = await store.read(key_of(name))
        profile_ms = user.order.event_time_ms if user.order else None
        return user if len(user.history) >= entries and time_ms in (None, profile_ms) else None

    return await eventually(there, what=f"user {name} has {entries} entries and the profile of {time_ms}")


async def test_clicks_and_stronger_enter_the_history_and_exposures_do_not(stack: Stack) -> None:
    async with worker(stack.settings):
        await stack.put.behavior("u", "1", T0_MS + 2, "buy")
        await stack.put.behavior("u", "2", T0_MS + 1, "exposure")
        await stack.put.behavior("u", "3", T0_MS, "click")
        user = await _user(stack, "u", entries=2)
    assert user.history["key"].tolist() == [3, 1]
    assert times_ms(user.history).tolist() == [T0_MS, T0_MS + 2]
    assert kinds(user.history).tolist() == [1, 4]


async def test_behaviors_that_come_again_change_nothing(stack: Stack) -> None:
    async with worker(stack.settings):
        for number in range(20):
            await stack.put.behavior("u", str(number), T0_MS + number)
        before = await _user(stack, "u", entries=20)
    for key in await stack.redis.call("KEYS", "aif:mark:*"):
        await stack.redis.call("DEL", key)
    async with worker(stack.settings) as again:
        lane = next(lane for lane in again.lanes if lane.topic == BEHAVIORS)

        async def replayed() -> bool:
            return lane.done_records >= 20

        await eventually(replayed, what="the behaviors were replayed")
        assert (await _user(stack, "u", entries=20)).history.tobytes() == before.history.tobytes()


async def test_an_older_profile_loses_and_the_winner_is_published_again(stack: Stack) -> None:
    async with worker(stack.settings):
        await stack.put.user("u", T0_MS + 10, {"city": "rome"})
        await _user(stack, "u", time_ms=T0_MS + 10)
        await stack.put.user("u", T0_MS, {"city": "oslo"})
        records = await stack.topic(USER_UPDATES, 3)
        assert records[-1].value == records[0].value
        user = await _user(stack, "u", time_ms=T0_MS + 10)
        assert user.attributes == {"city": "rome"}


async def test_a_behavior_that_cannot_be_read_becomes_a_dead_letter(stack: Stack) -> None:
    async with worker(stack.settings):
        await stack.put.behavior("u", "1", T0_MS, "stared-at")
        await stack.put.behavior("u", "2", T0_MS)
        await _user(stack, "u", entries=1)
        (letter,) = await stack.topic(DEAD_LETTERS, 1)
    headers = dict(letter.headers)
    assert headers["aif_topic"] == BEHAVIORS.encode()
    assert headers["aif_reason"] == b"invalid"
    assert b"kind" in headers["aif_problem"]
