"""The reference upstream without its network: loading N items × V numbers, building the index, asking the channels.

    python benchmarks/retrieval.py [--items 1000000] [--width 32] [--users 100000] [--json]

Records are decoded as they come from Kafka (CloudEvents headers, JSON with a content vector); the consumer's own cost
(about 3 µs per record, design §12) is not in it. Vectors lie in 1,000 clusters, as content vectors do.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import sys
import time
from dataclasses import dataclass

import faiss
import numpy as np

from aif_stream.bus.events import event_headers, item_from_record
from aif_stream.clock import now_ms
from aif_stream.domain.events import EventType
from aif_stream.retrieval.catalogue import Catalogue
from aif_stream.retrieval.channels import Channels, rank_by_popularity
from aif_stream.retrieval.neighbours import Neighbours, build_index
from aif_stream.retrieval.recent import RecentItems

BATCH = 2_000


@dataclass(slots=True)
class FakeRecord:
    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes
    value: bytes
    headers: list[tuple[str, bytes]]


def load(args: argparse.Namespace, catalogue: Catalogue) -> float:
    """Seconds of decoding and applying (making the records is not counted)."""
    random = np.random.default_rng(1)
    centres = random.standard_normal((1000, args.width))
    headers = event_headers(EventType.ITEM_UPSERTED, "bench-1", "bench", now_ms())
    taken = 0.0
    for first in range(0, args.items, BATCH):
        numbers = range(first, min(first + BATCH, args.items))
        noise = random.standard_normal((len(numbers), args.width)) * 0.4
        vectors = (centres[random.integers(0, 1000, len(numbers))] + noise).round(4)
        records = [
            FakeRecord(
                "aif.item-updates",
                0,
                n,
                now_ms(),
                b"%d" % n,
                b'{"item_id":"%d","category":"c%d","attributes":{"price":3.5,"brand":"b7"},"content_vector":%b}'
                % (n, n % 500, json.dumps(v.tolist()).encode()),
                headers,
            )
            for n, v in zip(numbers, vectors, strict=True)
        ]
        started = time.perf_counter()
        catalogue.apply_items([item_from_record(record) for record in records])
        taken += time.perf_counter() - started
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("items", 1_000_000), ("width", 32), ("users", 100_000), ("k", 5_000), ("queries", 200)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    faiss.omp_set_num_threads(1)
    catalogue, recent = Catalogue(), RecentItems()
    neighbours = Neighbours(catalogue)
    load_s = load(args, catalogue)
    random = np.random.default_rng(2)
    users = np.repeat(np.arange(args.users, dtype=np.uint64), 20)
    started = time.perf_counter()
    for first in range(0, users.size, BATCH):
        items = random.integers(0, args.items, min(BATCH, users.size - first)).astype(np.uint64)
        positions = catalogue.apply_popularity(items, np.ones(items.size, np.float32))
        recent.append(users[first : first + BATCH], positions)
    behaviors_s = time.perf_counter() - started
    started = time.perf_counter()
    generation, positions, vectors = catalogue.snapshot_vectors()
    neighbours.take(build_index(positions, vectors, generation))
    build_s = time.perf_counter() - started
    del vectors
    channels = Channels(catalogue, recent, neighbours)
    started = time.perf_counter()
    channels.ranking = rank_by_popularity(catalogue)
    ranking_s = time.perf_counter() - started
    asked: dict[str, dict[str, float]] = {}
    for channel in ("neighbours", "category", "popular"):
        taken, counts = [], []
        for user in random.integers(0, args.users, args.queries).tolist():
            started = time.perf_counter()
            found = channels.answer(channel, user, args.k)
            taken.append((time.perf_counter() - started) * 1000)
            counts.append(found.keys.size)
        p50, p99 = np.percentile(taken, (50, 99))
        asked[channel] = {"p50_ms": round(p50, 2), "p99_ms": round(p99, 2), "count_p50": float(np.median(counts))}
    result = {
        "benchmark": "retrieval",
        "command": " ".join(["python", *sys.argv]),
        "machine": {"python": platform.python_version(), "faiss": faiss.__version__},
        "sizes": {"items": args.items, "width": args.width, "users": args.users, "k": args.k},
        "items_per_s": round(args.items / load_s),
        "behaviors_per_s_after_decoding": round(users.size / behaviors_s),
        "index_build_s": round(build_s, 2),
        "popularity_order_s": round(ranking_s, 3),
        "catalogue_mb": round(catalogue.nbytes / 2**20, 1),
        "peak_resident_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "channels": asked,
    }
    print(json.dumps(result, indent=None if args.json else 1))


if __name__ == "__main__":
    main()
