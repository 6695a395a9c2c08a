"""What the model costs and what the split and 16-bit rows change: item side, user side, scoring, parity.

    OMP_NUM_THREADS=1 python experiments/model_cost.py [--artefact DIR] [--out experiments/results/model_cost.json]

Without an artefact a version is trained on ``DATA`` by the quick recipe. Items have
content vectors of 32 numbers and the generator's three attributes; the item side is also timed on 64 numbers and
four attributes (random weights). 50 runs, one thread: wall time (median and p99) and
the thread's CPU time (median), which neighbours on the machine disturb less.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import orjson
import torch

from aif_stream.clock import elapsed_ms, monotonic_s
from aif_stream.domain.events import ItemUpserted
from aif_stream.domain.history import ENTRY
from aif_stream.domain.ids import keys_of
from aif_stream.kernels.native import best_level
from aif_stream.model.artefact import load
from aif_stream.model.config import Field, ModelConfig
from aif_stream.model.rows import has_content
from aif_stream.model.tiers import TierReader
from aif_stream.model.version import ModelVersion
from aif_stream.training.loop import QUICK, Trainer
from aif_stream.training.sources import open_data
from aif_stream.training.synthetic import END_MS, Synthetic

DATA = "synthetic:users=2000,items=20000,impressions=80000,seed=0"
B, L, N = 10_000, 1_000, 512


def timed(work: Callable[[], object], runs: int = 50) -> dict[str, float]:
    for _ in range(5):
        work()
    wall, cpu = [], []
    for _ in range(runs):
        began, began_cpu = monotonic_s(), time.thread_time()
        work()
        wall.append(elapsed_ms(began))
        cpu.append((time.thread_time() - began_cpu) * 1000)
    return {
        "p50_ms": round(statistics.median(wall), 3),
        "p99_ms": round(float(np.quantile(wall, 0.99)), 3),
        "cpu_p50_ms": round(statistics.median(cpu), 3),
    }


def wide_items() -> tuple[ModelVersion, list[ItemUpserted]]:
    """Random items with 64 content numbers and four attributes, and a version for them."""
    random = np.random.default_rng(0)
    names = {field: tuple(f"{field}{n}" for n in range(1000)) for field in ("brand", "shop", "tags")}
    config = ModelConfig(
        content_width=64,
        categories=tuple(f"c{n}" for n in range(500)),
        item_fields=(
            Field("brand", "label", names["brand"]),
            Field("shop", "label", names["shop"]),
            Field("tags", "labels", names["tags"]),
            Field("price", "number", mean=10.0, scale=5.0),
        ),
    )
    items = [
        ItemUpserted(
            item_id=str(n),
            category=f"c{n % 500}",
            attributes={
                "brand": f"brand{n % 1100}",
                "shop": f"shop{n % 1000}",
                "tags": [f"tags{n % 7}", f"tags{n % 1300}"],
                "price": float(n % 30),
            },
            content_vector=random.standard_normal(64).tolist(),
        )
        for n in range(N)
    ]
    return ModelVersion.init(config, 0), items


@click.command()
@click.option("--artefact", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default=Path("experiments/results/model_cost.json"))
def main(artefact: Path | None, out: Path) -> None:
    torch.set_num_threads(1)
    world = Synthetic(2_000, 20_000, 0)
    version = load(artefact) if artefact else Trainer(open_data(DATA), "cost", QUICK).run()
    items = [ItemUpserted(**line) for line in world.items()][:B]
    rows = version.item_side(items, version.layout.dtype).rows
    random = np.random.default_rng(1)
    users = 20
    seen = random.integers(len(items), size=(users, L))
    history = np.zeros(L, dtype=ENTRY)
    times_ms = np.sort(END_MS - random.integers(30 * 86_400_000, size=L)).astype(np.uint64)
    history["time_kind"] = (times_ms << np.uint64(3)) | np.uint64(1)
    everything = np.ones(L, dtype=np.bool_)
    profiles = [line["attributes"] for line, _ in zip(world.profiles(), range(users), strict=False)]

    def parity(at: int) -> tuple[float, float, float]:
        history["key"] = keys_of(str(items[i].item_id) for i in seen[at])
        user = version.user_side(profiles[at], history, rows[seen[at]], everything)
        split = version.score(user, rows)
        joint = version.joint(profiles[at], history, [items[i] for i in seen[at]], items)
        top = np.intersect1d(np.argsort(-split)[:100], np.argsort(-joint)[:100])
        return float(np.abs(split - joint).max()), len(top) / 100, float(np.std(joint))

    errors, overlaps, spreads = zip(*(parity(at) for at in range(users)), strict=True)
    user = version.user_side(profiles[0], history, rows[seen[0]], everything)
    wide, others = wide_items()
    stamps = np.arange(N, dtype=np.uint64)
    content = has_content(rows)
    tiers = TierReader(version.config)
    result: dict[str, Any] = {
        "machine": {"torch": torch.__version__, "kernels": best_level().name, "load": round(os.getloadavg()[0], 1)},
        "sizes": {"B": B, "L": L, "N": N, "row_bytes": version.layout.dtype.itemsize},
        "item_rows_512": timed(lambda: version.item_rows(items[:N], stamps, stamps, 0)),
        "item_rows_512_wide": timed(lambda: wide.item_rows(others, stamps, stamps, 0)),
        "user_side": timed(lambda: version.user_side(profiles[0], history, rows[seen[0]], everything)),
        "score": timed(lambda: version.score(user, rows)),
        "of_which_tiers": timed(lambda: tiers.read(rows["sig"], content, user.signatures, user.kinds)),
        "parity_f16_rows": {
            "users": users,
            "score_error_max": max(errors),
            "score_deviation": statistics.mean(spreads),
            "top100_overlap_mean": statistics.mean(overlaps),
            "top100_overlap_min": min(overlaps),
        },
    }
    for name in ("item_rows_512", "item_rows_512_wide"):
        result[name]["cpu_us_per_item"] = round(result[name]["cpu_p50_ms"] * 1000 / N, 2)
    text = orjson.dumps(result, option=orjson.OPT_INDENT_2)
    out.write_bytes(text + b"\n")
    print(text.decode())


if __name__ == "__main__":
    main()
