"""Where a training run stands: one safetensors file, replaced whole, so that kill -9 leaves the last one or the new.

It holds weights, the best weights so far, the optimizer's moments, the place in the epoch and the state of the random
generator at the epoch's beginning: a resumed run ends with the same bits as one that was never stopped.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor

from aif_stream.errors import ArtefactError
from aif_stream.training.dataset import Dataset

_SCHEMA: Final = 1


@dataclass(slots=True)
class Standing:
    """The place of a run: ``batch`` batches of epoch ``epoch`` are done, ``total`` is the sum of their losses."""

    epoch: int = 1
    batch: int = 0
    total: float = 0.0
    random: dict[str, Any] = field(default_factory=dict)  # numpy's generator at the beginning of the epoch
    best: float = -1.0
    waited: int = 0
    seconds: float = 0.0  # of the epoch, before a resume
    epochs: list[dict[str, float]] = field(default_factory=list)


def write_checkpoint(
    path: Path,
    run: str,
    standing: Standing,
    weights: Mapping[str, Tensor],
    best: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Replace the checkpoint of a run (its fingerprint). Raises ``ArtefactError`` when the disk refuses."""
    tensors = {f"now.{name}": value for name, value in weights.items()}
    tensors |= {f"best.{name}": value for name, value in best.items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": value for name, value in state.items()}
    about = {"schema": str(_SCHEMA), "run": run, "standing": json.dumps(asdict(standing))}
    data = save_tensors({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, about)
    draft = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        raise ArtefactError(f"cannot write {path}: {error.strerror}", mend="give --out a disk with room") from None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What was read back."""

    standing: Standing
    weights: dict[str, Tensor]
    best: dict[str, Tensor]
    optimizer: dict[int, dict[str, Tensor]]


def read_checkpoint(path: Path, run: str) -> Checkpoint | None:
    """The checkpoint at ``path``, None where there is none. Raises ``ArtefactError`` when it is damaged, of another run
    (other data, settings or schema), or of a run that diverged."""
    if not path.exists():
        return None
    mend = "train with --restart, or to another --out"
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        if about.get("schema") != str(_SCHEMA) or about["run"] != run:
            raise ArtefactError(f"{path} is of another run: its data or settings differ", mend=mend)
        standing = Standing(**json.loads(about["standing"]))
    except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ArtefactError(f"{path} is no checkpoint: {error}", mend=mend) from None
    losses = [standing.total, *(epoch["loss"] for epoch in standing.epochs)]
    if not all(map(math.isfinite, losses)):
        raise ArtefactError(f"{path} is of a run that diverged: a loss in it is not finite", mend=mend)
    parts: dict[str, dict[str, Tensor]] = {"now": {}, "best": {}}
    optimizer: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        part, _, rest = name.partition(".")
        if part == "optimizer":
            number, _, what = rest.partition(".")
            optimizer.setdefault(int(number), {})[what] = value
        else:
            parts[part][rest] = value
    return Checkpoint(standing, parts["now"], parts["best"], optimizer)


def data_fingerprint(data: Dataset) -> str:
    """SHA-256 of catalogue, profiles, histories and labels."""
    digest = hashlib.sha256()
    encoder = msgspec.msgpack.Encoder(order="sorted")
    for row in (*data.states, *data.profiles):
        digest.update(encoder.encode(row))
    behaviors, requests = data.behaviors, data.requests
    for table in (behaviors, requests):
        for name in table.__slots__:
            digest.update(np.ascontiguousarray(getattr(table, name)).data)
    return digest.hexdigest()


def run_fingerprint(*parts: Any) -> str:
    """SHA-256 of what a run depends on."""
    return hashlib.sha256(msgspec.json.encode(parts, order="sorted")).hexdigest()
