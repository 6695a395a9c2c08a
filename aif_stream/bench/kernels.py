"""The compiled kernels beside numpy and faiss on the same arrays: `python benchmarks/kernels.py`.

Each line is one candidate batch: time per call, median and p99. Queries are cold: a new random
batch of keys or slots per call, from a catalogue larger than the caches.
"""

import argparse
import itertools
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from aif_stream.bench.statement import beside, goal
from aif_stream.domain.events import BehaviorKind
from aif_stream.domain.history import ENTRY, KIND_BITS
from aif_stream.domain.row import HAS_CONTENT, VALID, Rows, empty_rows
from aif_stream.errors import AifError
from aif_stream.kernels.gather import gather_rows
from aif_stream.kernels.native import Level, best_level, has_bf16
from aif_stream.kernels.ranking import best_of
from aif_stream.kernels.score import PackedUser, Stored
from aif_stream.kernels.slots import SlotTable
from aif_stream.kernels.tiers import Floats, tier_edges, tiers
from aif_stream.model.config import ModelConfig
from aif_stream.model.split import score_rows
from aif_stream.model.version import ModelVersion

BOUNDS = (0.4, 0.45, 0.5, 0.55, 0.6, 0.7, 0.8)  # 8 tiers
BATCHES = 61  # cold query sets, used in turn
MOST_S = 25.0  # of a way: a thousand calls of faiss with its count
TIMES_FAISS = 3.0


@dataclass(frozen=True, slots=True)
class Timing:
    kernel: str
    way: str
    p50_ms: float
    p99_ms: float
    calls: int


def timed(kernel: str, way: str, call: Callable[[], object], repeats: int) -> Timing:
    """At most so many seconds, at least five calls: a way beside which ours is small needs no thousand."""
    call()
    taken: list[float] = []
    begin = time.perf_counter()
    while len(taken) < repeats and (len(taken) < 5 or time.perf_counter() - begin < MOST_S):
        start = time.perf_counter()
        call()
        taken.append((time.perf_counter() - start) * 1e3)
    p50, p99 = np.percentile(taken, [50, 99])
    return Timing(kernel, way, round(float(p50), 4), round(float(p99), 4), len(taken))


def tier_timings(args: argparse.Namespace, rng: np.random.Generator) -> list[Timing]:
    bits, n_tiers = args.bits, len(BOUNDS) + 1
    items = rng.integers(0, 256, (args.candidates, bits // 8), dtype=np.uint8)
    history = rng.integers(0, 256, (args.history, bits // 8), dtype=np.uint8)
    mask, edges = np.ones(args.history, np.bool_), tier_edges(BOUNDS, bits)
    distances = np.empty((args.candidates, args.history), np.int32)
    limits = [bits - int(np.searchsorted(edges, tier)) for tier in range(1, n_tiers)]

    def distances_by_faiss() -> None:
        pointers = [faiss.swig_ptr(array) for array in (items, history)]
        hammings: Any = faiss.hammings  # type: ignore[attr-defined]  # swig makes it at run time
        hammings(*pointers, len(items), len(history), bits // 8, faiss.swig_ptr(distances))

    def with_faiss() -> Floats:
        """The histogram by counting below each bound: bincount, torch and count_nonzero take
        longer (measured: 51, 258 and 40 ms against 14)."""
        distances_by_faiss()
        below = [np.add.reduce((distances <= limit).view(np.uint8), axis=1, dtype=np.uint32) for limit in limits]
        counts = np.array([np.full(len(items), args.history), *below, np.zeros(len(items))])
        return (-np.diff(counts, axis=0).T).astype(np.float32) / np.float32(args.history)

    if not (with_faiss() == tiers(items, history, mask, edges, n_tiers)).all():
        raise AifError("the kernel and faiss count differently")
    kernel = f"tiers B={args.candidates} L={args.history} W={bits} T={n_tiers}"
    ways: list[Timing] = []
    for level in sorted(level for level in Level if level <= best_level())[::-1]:
        call = partial(tiers, items, history, mask, edges, n_tiers, level=level)
        ways.append(timed(kernel, level.name.lower(), call, args.repeats))
    ways.append(timed(kernel, "faiss.hammings alone", distances_by_faiss, args.repeats))
    return [*ways, timed(kernel, "faiss.hammings + count", with_faiss, args.repeats)]


def lookup_timings(args: argparse.Namespace, rng: np.random.Generator) -> list[Timing]:
    keys = np.unique(rng.integers(0, 2**63, args.items, dtype=np.uint64))
    shuffled = rng.permutation(keys)
    slots = np.arange(keys.size, dtype=np.int32)
    batches = itertools.cycle([rng.choice(keys, args.candidates) for _ in range(BATCHES)])
    out = np.empty(args.candidates, np.int32)
    kernel = f"lookup B={args.candidates} N={keys.size}"
    one = shuffled[:1]
    ways: list[Timing] = []
    for level in {best_level(), Level.NUMPY}:
        table = SlotTable(keys.size, level=level)
        table.assign(shuffled, slots)
        name = "numpy" if level is Level.NUMPY else "C"
        ways.append(timed(kernel, name, partial(_looked_up, table, batches, out), args.repeats))
        ways.append(timed("lookup B=1", name, partial(table.lookup, one, out[:1]), args.repeats))

    def by_bisection() -> NDArray[np.int32]:
        asked = next(batches)
        at = np.searchsorted(keys, asked)
        return np.where(keys[at] == asked, slots[at], -1)

    return [*ways, timed(kernel, "np.searchsorted", by_bisection, args.repeats)]


def _looked_up(table: SlotTable, batches: Iterator[NDArray[np.uint64]], out: NDArray[np.int32]) -> object:
    return table.lookup(next(batches), out)


def assign_timings(args: argparse.Namespace, rng: np.random.Generator) -> list[Timing]:
    """New keys in batches of 512, as the mirror sees them; growth included (see p99)."""
    keys = rng.permutation(args.items).astype(np.uint64)
    slots = np.arange(keys.size, dtype=np.int32)
    ways = []
    for level in {best_level(), Level.NUMPY}:
        table, starts = SlotTable(level=level), itertools.count(0, 512)

        def call(table: SlotTable = table, starts: "itertools.count[int]" = starts) -> None:
            first = next(starts)
            table.assign(keys[first : first + 512], slots[first : first + 512])

        name = "numpy" if level is Level.NUMPY else "C"
        ways.append(timed("assign 512 new keys", name, call, min(args.repeats, keys.size // 512 - 1)))
    return ways


def gather_timings(args: argparse.Namespace, rng: np.random.Generator) -> list[Timing]:
    arena = rng.integers(0, 256, (args.items, args.row_bytes), dtype=np.uint8)
    batches = itertools.cycle([rng.integers(0, args.items, args.candidates, dtype=np.int32) for _ in range(BATCHES)])
    out = np.empty((args.candidates, args.row_bytes), np.uint8)
    kernel = f"gather B={args.candidates} R={args.row_bytes}"

    def call(level: Level) -> object:
        return gather_rows(arena, next(batches), out, level=level)

    ways = [
        timed(kernel, "numpy" if level is Level.NUMPY else "C", partial(call, level), args.repeats)
        for level in {best_level(), Level.NUMPY}
    ]
    take = timed(kernel, "np.take", lambda: np.take(arena, next(batches), axis=0, out=out, mode="clip"), args.repeats)
    return [*ways, take]


def score_timings(args: argparse.Namespace, rng: np.random.Generator) -> list[Timing]:
    """Rows -> scores of a version of the default size: exact tiers, then 256 codes at 256 bits."""
    return [
        *_score_ways(args, rng, args.bits, 0),
        *_score_ways(args, rng, 256, 256),
    ]


def _score_ways(args: argparse.Namespace, rng: np.random.Generator, bits: int, codes: int) -> list[Timing]:
    config = ModelConfig(
        signature_bits=bits,
        long=args.history,
        short=100,
        content_width=32,
        categories=tuple(f"c{i}" for i in range(100)),
        codes=codes,
    )
    version = ModelVersion.init(config, 1, "bench")
    history = np.zeros(args.history, ENTRY)
    history["time_kind"] = (np.arange(args.history, dtype=np.uint64) << KIND_BITS) + BehaviorKind.CLICK.code
    everything = np.ones(args.history, np.bool_)
    user = version.user_side(None, history, random_rows(version, args.history, rng), everything)
    kernel = version._kernel
    if kernel is None or user.packed is None:
        return []
    batches = itertools.cycle([random_rows(version, args.candidates, rng) for _ in range(7)])
    packed = user.packed
    name = f"score B={args.candidates} L={args.history} W={bits} codes={codes}"
    ways: list[Timing] = []

    def scored(level: Level) -> object:
        return kernel.score(packed, next(batches), level=level)

    for level in sorted(level for level in Level if Level.PORTABLE <= level <= best_level())[::-1]:
        ways.append(timed(name, level.name.lower(), partial(scored, level), args.repeats))
    if has_bf16():
        ways.append(timed(name, "bf16", lambda: kernel.score(packed, next(batches), bf16=True), args.repeats))

    def twin() -> object:
        with torch.inference_mode():
            return score_rows(version.net, version._tiers, user, next(batches))

    ways.append(timed(name, "twin (torch, numpy, tiers in C)", twin, args.repeats))
    return [*ways, *_joined_ways(args, rng, version, packed)]


def _joined_ways(
    args: argparse.Namespace, rng: np.random.Generator, version: ModelVersion, user: PackedUser
) -> list[Timing]:
    """Keys -> best 500: lookup, gather, score and rank as four calls, or where the rows lie."""
    kernel, count = version._kernel, min(args.items, 100_000)
    if kernel is None:
        return []
    rows = random_rows(version, count, rng)
    table = SlotTable(count)
    table.assign(rng.permutation(count).astype(np.uint64), np.arange(count, dtype=np.int32))
    stored = Stored(table, rows.view(np.uint8).reshape(count, rows.dtype.itemsize))
    size = min(args.candidates, count)
    batches = itertools.cycle([rng.permutation(count).astype(np.uint64)[:size] for _ in range(BATCHES)])

    def copied() -> object:
        keys = next(batches)
        some = gather_rows(stored.arena, table.lookup(keys)).view(version.layout.dtype)[:, 0]
        return best_of(kernel.score(user, some), keys, np.ascontiguousarray(some["computed_ms"]), 500)

    def in_place() -> object:
        keys = next(batches)
        found = kernel.score_keys(user, stored, keys, float("inf"), stop_if_unknown=True)
        return None if found is None else best_of(found.scores, keys, found.computed_ms, 500)

    name = f"keys -> best 500 B={size} L={args.history} W={version.config.signature_bits} codes={version.config.codes}"
    calls = ("rows copied, then scored", copied), ("scored where they lie", in_place)
    return [timed(name, way, call, args.repeats) for way, call in calls]


def random_rows(version: ModelVersion, count: int, rng: np.random.Generator) -> Rows:
    rows = empty_rows(version.layout, count)
    rows["flags"] = VALID | HAS_CONTENT
    for field in ("h", "t", "w"):
        rows[field] = rng.standard_normal(rows[field].shape)
    rows["sig"] = rng.integers(0, 256, rows["sig"].shape)
    rows["category"] = rng.integers(0, len(version.config.categories), count)
    if version.config.codes:
        rows["code"] = rng.integers(0, version.config.codes, count)
    return rows


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--candidates", type=int, default=10_000)
    parser.add_argument("--history", type=int, default=1_000)
    parser.add_argument("--bits", type=int, default=64)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--row-bytes", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--json", type=Path, help="also into this file")
    return parser


QUICK = ["--items", "100000", "--repeats", "50"]


def result_of(args: argparse.Namespace) -> dict[str, Any]:
    """The whole measurement: versions, timings."""
    around = beside()
    faiss.omp_set_num_threads(1)
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    parts = (tier_timings, lookup_timings, assign_timings, gather_timings, score_timings)
    timings = [timing for part in parts for timing in part(args, rng)]
    versions = {
        "machine": f"{platform.machine()} {best_level().name}",
        "python": sys.version.split()[0],
        "numpy": np.__version__,
        "faiss": faiss.__version__,
    }
    goals = [goal("tiers: times faiss.hammings + count", TIMES_FAISS, _times_faiss(timings), at_least=True)]
    return {"versions": versions, "beside": around, "goals": goals, "timings": [asdict(timing) for timing in timings]}


def _times_faiss(timings: Sequence[Timing]) -> float:
    """The tier kernel as this machine runs it (its best level, measured first) beside faiss, medians."""
    tiers_alone = [timing for timing in timings if timing.kernel.startswith("tiers ")]
    (faiss_counted,) = (timing for timing in tiers_alone if timing.way == "faiss.hammings + count")
    return faiss_counted.p50_ms / tiers_alone[0].p50_ms


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    found = result_of(args)
    print(" ".join(f"{name}={value}" for name, value in found["versions"].items()))
    print(f"{'kernel':48} {'way':32} {'p50 ms':>9} {'p99 ms':>9} {'calls':>6}")
    for line in found["timings"]:
        print(f"{line['kernel']:48} {line['way']:32} {line['p50_ms']:9.4f} {line['p99_ms']:9.4f} {line['calls']:6}")
    for line in found["goals"]:
        print(f"{line['goal']}: {line['seen']}, goal {line['bound']}: {'met' if line['met'] else 'MISSED'}")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
