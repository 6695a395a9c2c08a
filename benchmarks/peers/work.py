"""What a peer's lane is told, how it tells how far it is, and the plain way: what people write first.

Plain is less than `aif nearline` does: JSON → one small product in place of the item tower → a plain SET, 512 rows in
one pipeline; no compare-and-set, no features kept. Needs numpy, orjson and redis-py alone. Other ways: pipeline.py.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

if TYPE_CHECKING:
    from pipeline import Pipeline

BATCH = 512
DONE, BEGAN = "peer:done", "peer:began"
ROW_BYTES = 248
COMMIT_EVERY, COMMIT_S = 16_384, 1.0
"""Events, or seconds, after which a peer commits what Redis acknowledged."""


@dataclass(frozen=True, slots=True)
class Task:
    """One run. ``way``: plain, same or lent; ``group``: new for each run. The rest is for pipeline.py: ``beside``,
    where aif_stream and its imports lie, behind the peer's own packages; ``artefact``, the model; buckets and batch.
    """

    way: str
    broker: str
    redis: str
    topic: str
    group: str
    directory: str
    beside: list[str]
    artefact: str
    buckets: int
    batch: int

    @classmethod
    def told(cls) -> Task:
        """From the command line, taken off it."""
        return cls(**json.loads(sys.argv.pop(1)))

    def pipeline(self) -> Pipeline | None:
        """None for the plain way."""
        if self.way == "plain":
            return None
        sys.path.extend(self.beside)
        from pipeline import Pipeline

        return Pipeline(self)


class Progress:
    """Commands that go with a batch's writes: how many events are done, and when the first was in hand."""

    def __init__(self) -> None:
        self._began: str | None = None
        self._told = False

    def begin(self) -> None:
        """An event is in hand. Wall time and CPU seconds of the process, all threads."""
        if self._began is None:
            self._began = f"{time.time()} {time.process_time()}"

    def commands(self, count: int) -> list[tuple[Any, ...]]:
        first = [] if self._told else [("SET", BEGAN, self._began)]
        self._told = True
        return [("INCRBY", DONE, count), *first]


class Rows:
    """Event bytes -> (Redis key, row)."""

    def __init__(self) -> None:
        self.progress = Progress()
        self._weights: dict[int, np.ndarray] = {}

    def row(self, value: bytes) -> tuple[str, bytes]:
        self.progress.begin()
        item = orjson.loads(value)
        vector = np.array(item["content_vector"], dtype=np.float32)
        weights = self._weights.get(len(vector))
        if weights is None:
            weights = np.random.default_rng(1).normal(size=(len(vector), ROW_BYTES // 2)).astype(np.float32)
            self._weights[len(vector)] = weights
        return f"row:{item['item_id']}", (vector @ weights).astype(np.float16).tobytes()

    def fill(self, pipeline: Any, rows: list[tuple[str, bytes]]) -> Any:
        """A redis-py pipeline, of either kind, with rows to be executed."""
        for key, row in rows:
            pipeline.set(key, row)
        for command in self.progress.commands(len(rows)):
            pipeline.execute_command(*command)
        return pipeline
