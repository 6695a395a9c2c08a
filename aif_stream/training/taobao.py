"""Taobao's ``UserBehavior.csv``: user, item, category, behavior, timestamp in seconds; no header.

``pv`` is a click, ``fav`` a favourite; there are no exposures, so negatives are drawn (interactions.py, rule 4).
Items have a category and no content vector: signatures and tiers are silent on this data, SIM and bridges are not.
The published file has some rows with impossible times (before 1970); they are left out and counted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from aif_stream.domain.events import BehaviorKind, ItemUpserted
from aif_stream.errors import TrainingDataError
from aif_stream.training.dataset import Dataset
from aif_stream.training.interactions import Ids, Interactions
from aif_stream.training.records import OnRead, read_chunks

_COLUMNS: Final = ("user", "item", "category", "behavior", "timestamp")
_KINDS: Final = {
    "pv": BehaviorKind.CLICK.code,
    "fav": BehaviorKind.FAVOURITE.code,
    "cart": BehaviorKind.CART.code,
    "buy": BehaviorKind.BUY.code,
}


def read_taobao(path: Path, on_read: OnRead | None = None) -> Dataset:
    """Stream the file. Raises ``TrainingDataError`` naming file and line. An item's last category counts."""
    users, items = Ids(), Ids()
    category: list[str] = []
    left_out = 0
    with Interactions(f"taobao:{path.name}") as log:
        for chunk in read_chunks(path, _COLUMNS, header=_COLUMNS, on_read=on_read):
            times = chunk.numbers("timestamp")
            kinds = [_KINDS.get(text, -1) for text in chunk.texts("behavior")]
            if -1 in kinds:
                at = kinds.index(-1)
                chunk.refuse(at, f"behavior {chunk.texts('behavior')[at]!r} is none of {', '.join(_KINDS)}")
            item = items.of(chunk.ids("item"))
            category += [""] * (len(items.known) - len(category))
            for at, name in zip(item.tolist(), chunk.ids("category"), strict=True):
                category[at] = name
            keep = times >= 0
            left_out += int((~keep).sum())
            user = users.of(chunk.ids("user"))
            times_ms = np.where(keep, times, 0.0).astype(np.int64) * 1000
            log.add(user[keep], item[keep], times_ms[keep], np.array(kinds)[keep])
        if not category:
            raise TrainingDataError(f"{path} is empty", mend="copy it again")
        catalogue = [ItemUpserted(item_id=name, category=c) for name, c in zip(items.known, category, strict=True)]
        notes = (f"{left_out} rows with times before 1970 left out",) if left_out else ()
        return log.dataset(catalogue, [None] * len(users.known), notes)
