"""Records and broker answers for the tests of bus/."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from aif_stream.bus.events import event_headers
from aif_stream.domain.events import EventType

NOW_MS = 1_700_000_000_000


@dataclass
class FakeRecord:
    """The shape of a consumer's record."""

    value: bytes | None = b'{"item_id":7,"category":"c"}'
    key: bytes | None = b"7"
    topic: str = "aif.item-updates"
    partition: int = 3
    offset: int = 41
    timestamp: int = NOW_MS + 10
    headers: Sequence[tuple[str, bytes]] = field(
        default_factory=lambda: event_headers(EventType.ITEM_UPSERTED, "e-1", "test", NOW_MS)
    )
