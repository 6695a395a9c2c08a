"""What coded tiers cost, by bits and codewords: item side, user side, scoring. CPU time of one thread, random weights.

OMP_NUM_THREADS=1 python experiments/coded_cost.py [--out experiments/results/coded_cost.json]
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from aif_stream.domain.events import ItemUpserted
from aif_stream.domain.history import ENTRY
from aif_stream.model.config import ModelConfig
from aif_stream.model.version import ModelVersion
from aif_stream.training.synthetic import CONTENT_WIDTH, Synthetic

B, L, N = 10_000, 1_000, 512


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("experiments/results/coded_cost.json"))
def main(out: Path) -> None:
    torch.set_num_threads(1)
    items = [ItemUpserted(**line) for line in Synthetic(1, 2000, 0).items()]
    lines = []
    for bits in (64, 256):
        for codes in (0, 256, 1024, 4096, 65_536):
            lines.append(measure(items, bits, codes))
            print(lines[-1], flush=True)
    out.write_text(json.dumps({"B": B, "L": L, "torch": torch.__version__, "lines": lines}, indent=1) + "\n")


def measure(items: list[ItemUpserted], bits: int, codes: int) -> dict[str, Any]:
    categories = tuple(f"c{n}" for n in range(32))
    config = ModelConfig(content_width=CONTENT_WIDTH, signature_bits=bits, codes=codes, categories=categories)
    version = ModelVersion.init(config, 0)
    if codes:
        version.net.item_tower.codewords.copy_(torch.randint(0, 256, (codes, bits // 8), dtype=torch.uint8))
    stamps, random = np.zeros(N, dtype=np.uint64), np.random.default_rng(0)
    rows = version.item_side(items, version.layout.dtype).rows
    seen, shown = rows[random.integers(len(items), size=L)], rows[random.integers(len(items), size=B)]
    history = np.zeros(L, dtype=ENTRY)
    history["time_kind"] = (np.arange(L, dtype=np.uint64) * np.uint64(60_000)) << np.uint64(3) | np.uint64(1)
    everything = np.ones(L, dtype=np.bool_)
    user = version.user_side(None, history, seen, everything)
    return {
        "bits": bits,
        "codes": codes,
        "item_us": round(cpu_ms(lambda: version.item_rows(items[:N], stamps, stamps, 0)) * 1000 / N, 1),
        "user_ms": round(cpu_ms(lambda: version.user_side(None, history, seen, everything)), 2),
        "user_mib": round((user.first.nbytes + user.bag.nbytes) / 2**20, 2),
        "score_ms": round(cpu_ms(lambda: version.score(user, shown)), 2),
    }


def cpu_ms(work: Callable[[], object], runs: int = 7) -> float:
    """Median CPU milliseconds."""
    work()
    spent = []
    for _ in range(runs):
        began = time.process_time()
        work()
        spent.append((time.process_time() - began) * 1000)
    return float(np.median(spent))


if __name__ == "__main__":
    main()
