"""Looking at a consumer group from outside: committed offsets and ends, without joining it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Self

from aiokafka import TopicPartition

from aif_stream.bus.connection import kafka_errors, require_topics
from aif_stream.bus.consumer import ConsumerBase, Partition
from aif_stream.bus.topics import topic_name
from aif_stream.settings import Settings


class Standing(NamedTuple):
    """Where a group stands in one partition; ``committed`` is None before its first commit."""

    committed: int | None
    beginning: int
    end: int

    @property
    def lag_records(self) -> int:
        """Records that are in the log and not behind the commit."""
        return self.end - max(self.committed or 0, self.beginning)


class GroupWatch(ConsumerBase):
    """``async with GroupWatch(settings, "aif.nearline", [ITEM_UPDATES]) as watch: await watch.standing()``.

    It assigns itself nothing and commits nothing, so the group does not notice. Raises ``BusUnavailable``.
    """

    def __init__(self, settings: Settings, group: str, topics: Iterable[str]) -> None:
        super().__init__(settings, on_lost=None)
        self._group = topic_name(settings, group)
        self._topics = tuple(topics)

    async def __aenter__(self) -> Self:
        await require_topics(self._settings, self._topics)
        self._open_inner = self._create(client_id="aif-watch", group_id=self._group)
        try:
            with kafka_errors(self._settings, "opening a watch"):
                await self._open_inner.start()
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def standing(self) -> dict[Partition, Standing]:
        """Every partition of the topics, now."""
        tps: list[TopicPartition] = []
        for topic in self._topics:
            name = topic_name(self._settings, topic)
            numbers = await self._ask("reading partitions", self._inner._client._wait_on_metadata(name))
            tps.extend(TopicPartition(name, number) for number in sorted(numbers))
        ends = await self._ask("reading ends", self._inner.end_offsets(tps))
        beginnings = await self._ask("reading beginnings", self._inner.beginning_offsets(tps))
        found: dict[Partition, Standing] = {}
        for tp in tps:
            committed = await self._ask("reading commits", self._inner.committed(tp))
            found[self._partition(tp)] = Standing(committed, beginnings[tp], ends[tp])
        return found
