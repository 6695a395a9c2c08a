"""Is the input pipeline the bottleneck? Grouped requests against a plain PyTorch DataLoader of single impressions.

    OMP_NUM_THREADS=1 python experiments/dataloader_baseline.py [--impressions 40000]

Same net, optimizer and impressions per step (1,280: 64 requests of 20). The baseline draws single impressions in random
order from a DataLoader (no workers); each brings its user and history as a request of one candidate. Encoding and
padding are the grouped pipeline's own, so the baseline is not starved. Times are CPU seconds of this process.
"""

from __future__ import annotations

import json
import resource
import time
from dataclasses import replace
from typing import Any

import click
import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from aif_stream.training.batches import Tables
from aif_stream.training.dataset import Dataset
from aif_stream.training.loop import FULL, Trainer
from aif_stream.training.sources import open_data


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


def measure(tables: Tables, trainer: Trainer, requests: Any, size: int, loader: bool) -> dict[str, float]:
    """CPU seconds of input and of steps over the given requests."""
    spent = {"input": 0.0, "step": 0.0}
    began = time.process_time()
    batches: Any = (requests[at : at + size] for at in range(0, len(requests), size))
    if loader:
        batches = DataLoader(Impressions(requests), batch_size=size, shuffle=True, collate_fn=np.array)
    for chosen in batches:
        batch, labels, weight = tables.batch(chosen)
        ready = time.process_time()
        spent["input"] += ready - began
        logits = trainer.net(batch)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, weight)
        trainer._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        trainer._optimizer.step()
        began = time.process_time()
        spent["step"] += began - ready
    return spent


@click.command()
@click.option("--impressions", default=40_000, show_default=True)
def main(impressions: int) -> None:
    torch.set_num_threads(1)
    data = open_data(f"synthetic:users=2000,items=20000,impressions={max(impressions, 2000) * 5 // 4},seed=0")
    for name, form, size, loader in (("grouped", data, 64, False), ("DataLoader", ungrouped(data), 1280, True)):
        trainer = Trainer(form, "v", FULL)
        trainer.net.train()
        requests = np.random.default_rng(0).permutation(trainer._requests)
        spent = measure(trainer._tables, trainer, requests, size, loader)
        count = int(np.diff(form.requests.first)[requests].sum())
        line: dict[str, Any] = {"form": name, "impressions": count}
        line |= {part: round(seconds, 2) for part, seconds in spent.items()}
        line["per_s"] = round(count / sum(spent.values()))
        line["input_share"] = round(spent["input"] / sum(spent.values()), 3)
        line["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
