"""What a million impressions take, and whether input is the bottleneck: grouped requests against a PyTorch DataLoader.

    python experiments/dataloader_baseline.py [--impressions 1000000] [--baseline-impressions 200000] [--threads 2]

Same net, optimizer and impressions per step (1,280: 64 requests of 20), one epoch. The baseline draws single
impressions in random order from a DataLoader, in this process or in a worker beside it; each brings its user and
history as a request of one candidate. Encoding and padding are the grouped pipeline's own, so the baseline is not
starved. Each form is a process of its own: peak memory is its own, data included. About 5 minutes on two quiet cores.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from aif_stream.training.dataset import Dataset
from aif_stream.training.loop import FULL, Trainer
from aif_stream.training.report import about
from aif_stream.training.sources import open_data

# Form -> workers of its DataLoader; None: the trainer's own batches.
FORMS: Final[dict[str, int | None]] = {"grouped": None, "DataLoader": 0, "DataLoader, 1 worker": 1}
DATA: Final = "synthetic:users={users},items={items},impressions={impressions},seed=7"
STEP: Final = 1280


class Impressions(TorchDataset[int]):
    """One impression per index."""

    def __init__(self, requests: Any) -> None:
        self._requests = requests

    def __len__(self) -> int:
        return len(self._requests)

    def __getitem__(self, at: int) -> int:
        return int(self._requests[at])


def ungrouped(data: Dataset) -> Dataset:
    """Every impression a request of its own."""
    table = data.requests
    sizes = np.diff(table.first)

    def spread(values: Any) -> Any:
        return np.repeat(values, sizes)

    first = np.arange(len(table.item) + 1)
    columns = {name: spread(getattr(table, name)) for name in ("user", "time_ms", "split", "begin", "end")}
    return replace(data, requests=replace(table, first=first, **columns))


def epoch(trainer: Trainer, batches: Iterable[Any]) -> dict[str, float]:
    """Seconds of waiting for input and of steps."""
    spent = {"input_s": 0.0, "step_s": 0.0}
    began = time.perf_counter()
    for batch, labels, weight in batches:
        ready = time.perf_counter()
        spent["input_s"] += ready - began
        loss = torch.nn.functional.binary_cross_entropy_with_logits(trainer.net(batch), labels, weight)
        trainer._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        trainer._optimizer.step()
        began = time.perf_counter()
        spent["step_s"] += began - ready
    return spent


def measure(name: str, spec: str, most: int, threads: int) -> dict[str, Any]:
    """One epoch of a form over at most so many training impressions (0: all)."""
    torch.set_num_threads(threads)
    workers, began = FORMS[name], time.perf_counter()
    data = open_data(spec)
    if workers is not None:
        data = ungrouped(data)
    trainer = Trainer(data, "v", FULL)
    trainer.net.train()
    tables, prepared = trainer._tables, time.perf_counter()
    requests = np.random.default_rng(0).permutation(trainer._requests)
    sizes = np.diff(data.requests.first)[requests]
    if most:
        requests = requests[: int(np.searchsorted(np.cumsum(sizes), most, side="right"))]
    batches: Iterable[Any]
    if workers is None:
        batches = (tables.batch(requests[at : at + 64]) for at in range(0, len(requests), 64))
    else:
        batches = DataLoader(
            Impressions(requests),
            batch_size=STEP,
            shuffle=True,
            num_workers=workers,
            collate_fn=lambda chosen: tables.batch(np.array(chosen)),
            multiprocessing_context="fork" if workers else None,
        )
    own = time.process_time()
    spent = epoch(trainer, batches)
    count, seconds = int(np.diff(data.requests.first)[requests].sum()), sum(spent.values())
    return {
        "form": name,
        "impressions": count,
        "data_s": round(prepared - began, 1),
        **{part: round(value, 2) for part, value in spent.items()},
        "cpu_s": round(time.process_time() - own, 1),  # of this process alone
        "per_s": round(count / seconds),
        "minutes_per_800k": round(800_000 / count * seconds / 60, 2),
        "input_share": round(spent["input_s"] / seconds, 3),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


@click.command()
@click.option("--impressions", default=1_000_000, show_default=True, help="Of the data; 80 % of them train.")
@click.option("--baseline-impressions", default=200_000, show_default=True, help="That the baselines train on; 0: all.")
@click.option("--threads", default=2, show_default=True)
@click.option("--form", default="", help="Print one form's line instead.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("experiments/results/dataloader_baseline.json"))
def main(impressions: int, baseline_impressions: int, threads: int, form: str, out: Path) -> None:
    data = DATA.format(users=max(100, impressions // 100), items=max(500, impressions // 20), impressions=impressions)
    if form:
        most = 0 if FORMS[form] is None else baseline_impressions
        print(json.dumps(measure(form, data, most, threads)))
        return
    told, lines = about(), []
    for name in FORMS:
        command = [sys.executable, __file__, "--form", name, "--impressions", str(impressions)]
        command += ["--baseline-impressions", str(baseline_impressions), "--threads", str(threads)]
        lines.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))
        print(json.dumps(lines[-1]), flush=True)
    told = {name: value for name, value in told.items() if name != "command"} | {"threads": threads}
    out.write_text(json.dumps({"data": data, **told, "forms": lines}, indent=1) + "\n")


if __name__ == "__main__":
    main()
