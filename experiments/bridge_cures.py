"""Which cure keeps bridges apart: start, layer norm, diversity, temperature; perplexity and read-out cosine of each.

    OMP_NUM_THREADS=1 python experiments/bridge_cures.py [--seeds 0,1] [--out experiments/results/bridge_cures.json]

BEA alone beside COLD, on data in which bridges have something to say (``bea=2``). 5 minutes on one quiet core; goes on
where it was stopped.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import torch

from aif_stream.model.config import Kind, Part
from aif_stream.training.evaluate import Served, judge
from aif_stream.training.loop import FULL, Trainer
from aif_stream.training.sources import open_data

DATA: Final = "synthetic:users=500,items=3000,impressions=40000,seed={seed},bea=2"
CURES: Final[dict[str, dict[str, Any]]] = {
    "τ .3": {"bridge_temperature": 0.3},
    "τ .3, normal start": {"bridge_temperature": 0.3, "bridge_start": "normal"},
    "τ .3, layer norm": {"bridge_temperature": 0.3, "bridge_norm": True},
    "τ .3, diversity 1": {"bridge_temperature": 0.3, "diversity": 1.0},
    "τ .1": {"bridge_temperature": 0.1},
    "τ .03": {"bridge_temperature": 0.03},
    "τ .03, normal start": {"bridge_temperature": 0.03, "bridge_start": "normal"},
    "τ .03, product": {"bridge_temperature": 0.03, "bridge_product": True},
    "τ .01": {"bridge_temperature": 0.01},
}


@click.command()
@click.option("--seeds", default="0,1")
@click.option("--counts", default="8,32")
@click.option("--out", type=click.Path(path_type=Path), default=Path("experiments/results/bridge_cures.json"))
def main(seeds: str, counts: str, out: Path) -> None:
    torch.set_num_threads(1)
    records: list[dict[str, Any]] = json.loads(out.read_text())["records"] if out.exists() else []
    done = {(record["cure"], record["K"], record["seed"]) for record in records}
    for seed in map(int, seeds.split(",")):
        data = open_data(DATA.format(seed=seed))
        recipe = replace(FULL, seed=seed, epochs=3)
        wanted: list[tuple[str, int, dict[str, Any]]] = [("cold", 0, {"kind": Kind.COLD})]
        wanted += [
            (name, K, {"parts": (Part.BEA,), "bridges": K, **CURES[name]}) for K in _numbers(counts) for name in CURES
        ]
        for name, K, choices in wanted:
            if (name, K, seed) in done:
                continue
            diversity = choices.pop("diversity", 0.0)
            version = Trainer(data, "cures", replace(recipe, diversity=diversity), **choices).run()
            found = judge(Served(version, data), data, top=False).found["gauc"].metric()
            line = {
                "cure": name,
                "K": K,
                "seed": seed,
                "gauc": [round(x, 4) for x in found],
                **version.metrics["bridges"],
            }
            records.append(line)
            click.echo(json.dumps(line, ensure_ascii=False))
            write(out, records)


def write(out: Path, records: list[dict[str, Any]]) -> None:
    found = {"data": DATA, "epochs": 3, "means": means(records), "records": records}
    draft = out.with_suffix(".draft")
    draft.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    draft.replace(out)


def means(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each cure and count over the seeds; the gain is to COLD of the same seed."""
    cold = {r["seed"]: r["gauc"][0] for r in records if r["cure"] == "cold"}
    lines = []
    for name, K in dict.fromkeys((r["cure"], r["K"]) for r in records):
        mine = [r for r in records if (r["cure"], r["K"]) == (name, K)]
        line = {"cure": name, "K": K, "gain": round(float(np.mean([r["gauc"][0] - cold[r["seed"]] for r in mine])), 4)}
        for key in ("perplexity", "readout_cosine") if K else ():
            line[key] = round(float(np.mean([r[key] for r in mine])), 3)
        lines.append(line)
    return lines


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    main()
