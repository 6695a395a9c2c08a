"""Names of the consumer groups, for those who read in them and those who watch them."""

from __future__ import annotations

from typing import Final

from aif_stream.bus.topics import BEHAVIORS, EXPLANATION_REQUESTS, ITEM_UPDATES, REBUILD_TASKS, USER_UPDATES

ITEMS_GROUP: Final = "aif.nearline"
USERS_GROUP: Final = "aif.users"
BEHAVIORS_GROUP: Final = "aif.behaviors"
REBUILD_GROUP: Final = "aif.rebuild"

LIVE_GROUPS: Final = {ITEMS_GROUP: ITEM_UPDATES, USERS_GROUP: USER_UPDATES, BEHAVIORS_GROUP: BEHAVIORS}
"""Group -> topic of the lanes that carry updates: they make the watermark."""

ALL_GROUPS: Final = {**LIVE_GROUPS, REBUILD_GROUP: REBUILD_TASKS}

EXPLAIN_GROUPS: Final = {f"aif.explain.{priority}": topic for priority, topic in EXPLANATION_REQUESTS.items()}
"""One group per priority, so that a full queue of one holds up no other."""
