"""How far apart versions score the same requests: retrained ones, and broken ones. The gate's limits lie between.

    python experiments/gate_limits.py [--out experiments/results/gate_limits.json] [--models DIR]

Trains five models on one synthetic set (another seed, half the data, without tiers and bridges as `cold`, more
epochs; about four minutes on one core), breaks one of them, and compares all with each by the gate's own arithmetic on
60 test requests with 500 candidates each.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import click
import numpy as np
import orjson
import torch
from torch import Tensor

from aif_stream.model.artefact import load
from aif_stream.model.version import ModelVersion
from aif_stream.nearline.agreement import agree
from aif_stream.training.dataset import Split
from aif_stream.training.evaluate import Served
from aif_stream.training.sources import open_data

DATA = "synthetic:users=2000,items=5000,impressions={impressions},seed=7"
TRAINED = {
    "seed 0": ("60000", "--preset", "quick", "--seed", "0"),
    "seed 1": ("60000", "--preset", "quick", "--seed", "1"),
    "half the data": ("30000", "--preset", "quick", "--seed", "3"),
    "cold": ("60000", "--preset", "quick", "--seed", "2", "--model", "cold"),
    "more epochs": ("60000", "--seed", "0"),
}
REQUESTS, CANDIDATES = 60, 500


def trained(name: str, home: Path) -> ModelVersion:
    impressions, *words = TRAINED[name]
    directory = home / name.replace(" ", "-")
    if not directory.exists():
        aif = [sys.executable, "-m", "aif_stream", "train", DATA.format(impressions=impressions)]
        subprocess.run([*aif, "--out", str(directory), *words], check=True)
    return load(directory)


def changed(version: ModelVersion, name: str, change: Callable[[Tensor], Tensor]) -> ModelVersion:
    """The version with every floating-point weight replaced by what ``change`` makes of it."""
    net = deepcopy(version.net)
    for value in net.state_dict().values():
        if value.is_floating_point() and value.numel() > 1:
            value.copy_(change(value))
    return ModelVersion(name, net)


def broken(version: ModelVersion) -> dict[str, ModelVersion]:
    draw = torch.Generator().manual_seed(0)
    return {
        "untrained": ModelVersion.init(version.config, 3, name="untrained"),
        "rows shuffled": changed(version, "shuffled", lambda w: w[torch.randperm(len(w), generator=draw)]),
        "noise as large as the weights": changed(
            version, "noise", lambda w: w + w.std() * torch.randn(w.shape, generator=draw)
        ),
    }


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("experiments/results/gate_limits.json"))
@click.option("--models", type=click.Path(path_type=Path), help="keep the trained models here, and find them again")
def main(out: Path, models: Path | None) -> None:
    """Train, break, compare; print and write the table."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as home:
        versions = {name: trained(name, models or Path(home)) for name in TRAINED}
    data = open_data(DATA.format(impressions=TRAINED["seed 0"][0]))
    random, test = np.random.default_rng(0), data.requests.of(Split.TEST)
    asked = [(int(r), random.permutation(len(data.items))[:CANDIDATES]) for r in random.permutation(test)[:REQUESTS]]
    every = {**versions, **broken(versions["seed 1"])}
    scores = {name: [Served(version, data)(*each) for each in asked] for name, version in every.items()}
    scores["inverted"] = [-each for each in scores["seed 1"]]
    scores["equal scores"] = [np.zeros_like(each) for each in scores["seed 1"]]
    table = []
    for before in versions:
        for after, given in scores.items():
            if after != before:
                found = agree(list(zip(scores[before], given, strict=True)))
                row = {"running": before, "new": after, "broken": after not in versions, **found._asdict()}
                table.append({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()})
                print(table[-1])
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(orjson.dumps(table, option=orjson.OPT_INDENT_2) + b"\n")


if __name__ == "__main__":
    main()
