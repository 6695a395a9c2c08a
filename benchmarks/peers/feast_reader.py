"""Run by feast_join.py under the peers' Python: rows into Feast's online store, then timed reads; JSON on stdout."""

from __future__ import annotations

import json
import sys
import time
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
from feast import Entity, FeatureStore, FeatureView, Field, FileSource
from feast.types import Array, Bytes, Float32, Int64
from feast.value_type import ValueType

STEP = 5_000


def store_of(directory: Path, redis: str) -> FeatureStore:
    (directory / "feature_store.yaml").write_text(
        f"project: aif\nregistry: {directory}/registry.db\nprovider: local\n"
        f"online_store:\n  type: redis\n  connection_string: {redis}\n"
        "offline_store:\n  type: file\nentity_key_serialization_version: 3\n"
    )
    store = FeatureStore(repo_path=str(directory))
    item = Entity(name="item", join_keys=["item_id"], value_type=ValueType.INT64)
    views = []
    for name, fields in {
        "row": [Field(name="row", dtype=Bytes)],
        "numbers": [
            Field(name="h", dtype=Array(Float32)),
            Field(name="t", dtype=Array(Float32)),
            Field(name="category", dtype=Int64),
        ],
    }.items():
        source = FileSource(path=str(directory / f"{name}.parquet"), timestamp_field="at")
        frame(name, np.arange(1), 1).to_parquet(directory / f"{name}.parquet")
        views.append(FeatureView(name=name, entities=[item], ttl=timedelta(days=9), schema=fields, source=source))
    store.apply([item, *views])
    return store


def frame(name: str, ids: np.ndarray, row_bytes: int) -> pd.DataFrame:
    random = np.random.default_rng(1)
    at = datetime.now(UTC)
    frame = pd.DataFrame({"item_id": ids.astype(np.int64), "at": at})
    if name == "row":
        frame["row"] = [random.bytes(row_bytes) for _ in ids]
    else:
        frame["h"] = list(random.normal(size=(len(ids), 64)).astype(np.float32))
        frame["t"] = list(random.normal(size=(len(ids), 32)).astype(np.float32))
        frame["category"] = ids.astype(np.int64) % 100
    return frame


def main() -> None:
    directory, redis, items, candidates, requests, row_bytes = Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:])
    store = store_of(directory, redis)
    random = np.random.default_rng(5)
    ways = {}
    for name, features in {"row": ["row:row"], "numbers": ["numbers:h", "numbers:t", "numbers:category"]}.items():
        for first in range(0, items, STEP):
            ids = np.arange(first, min(first + STEP, items)) + 1
            store.write_to_online_store(name, frame(name, ids, row_bytes))
        took = []
        for _ in range(requests):
            wanted = random.choice(items, candidates, replace=False) + 1
            rows = [{"item_id": int(i)} for i in wanted]
            start = time.perf_counter()
            answer = store.get_online_features(features=features, entity_rows=rows)
            took.append((time.perf_counter() - start) * 1e3)
            first_feature = features[0].split(":")[1]
            got = answer.to_dict()[first_feature]
            if len(got) != candidates or any(value is None for value in got):
                sys.exit("Feast did not give every row")
        p50, p99 = np.percentile(took[len(took) // 20 :], [50, 99])
        ways[f"feast_{name}"] = {
            "p50_ms": round(float(p50), 1),
            "p99_ms": round(float(p99), 1),
            "requests": requests,
            "version": version("feast"),
        }
    print(json.dumps(ways))


if __name__ == "__main__":
    main()
