"""The training loop: requests in batches, the joint form, BCE, AdamW, early stop by validation GAUC, checkpoints."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as fn

from aif_stream.clock import monotonic_s
from aif_stream.domain.versions import check_version_name
from aif_stream.errors import TrainingDataError
from aif_stream.model.net import Net
from aif_stream.model.version import ModelVersion
from aif_stream.training.batches import Tables
from aif_stream.training.bridges import bridge_report, collapse_warning
from aif_stream.training.checkpoint import (
    Standing,
    data_fingerprint,
    read_checkpoint,
    run_fingerprint,
    write_checkpoint,
)
from aif_stream.training.dataset import Dataset, Split
from aif_stream.training.divergence import Watch
from aif_stream.training.losses import diversity, rank_loss
from aif_stream.training.metrics import Metric, gauc
from aif_stream.training.schema import centre_content, config_for, fit_codes

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train. The defaults were chosen on the validation part of MovieLens 100K and one synthetic seed."""

    seed: int = 0
    epochs: int = 12
    patience: int = 2  # epochs without a better validation GAUC
    impressions: int = 0  # newest ones of the training part at most; 0: all
    batch_requests: int = 64
    learning_rate: float = 2e-3
    decay: float = 0.05
    # Ids learn their items by heart after one epoch; decay pulls the seldom seen ones back to "unknown".
    id_decay: float = 1.0
    history: int = 256  # newest entries in training; serving reads config.long
    rank_weight: float = 0.0  # of the pairwise loss within a request, beside BCE
    diversity: float = 0.0  # of the penalty on bridges that point alike
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "f32", "bf16"] = "auto"  # auto: bf16 products where the device is a GPU that has them

    def __post_init__(self) -> None:
        """Raises ``ValueError`` for a number that no step can use."""
        for name in ("learning_rate", "decay", "id_decay", "rank_weight", "diversity"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} is {value:g}: it must be a finite number, 0 or more")


QUICK: Final = Recipe(epochs=2, impressions=60_000)
FULL: Final = Recipe()

OnBatch = Callable[[int, int, int, float], None]
"""Called with (epoch, batch, batches, loss)."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """What an epoch brought."""

    number: int
    loss: float
    valid_gauc: float
    seconds: float


class Trainer:
    """One training run over a data set.

    Repeatable for a seed on one machine and thread count, stopped and resumed or not. Raises ``VersionError`` for a
    bad name, ``TrainingDataError`` for data that no config can read, before any work; ``run`` raises
    ``NonFiniteError`` when the run diverges.
    """

    def __init__(self, data: Dataset, name: str, recipe: Recipe = FULL, **choices: Any) -> None:
        """``choices`` override the derived config (``kind``, ``parts``, widths)."""
        self.name = check_version_name(name)
        self.data, self.recipe = data, recipe
        _check_judgeable(data)
        self.config = config_for(data, **choices)
        self.device = _device(recipe)
        torch.manual_seed(recipe.seed)
        self.net = Net(self.config, recipe.seed)
        centre_content(self.net, data)
        fit_codes(self.net, data)
        self._tables = Tables.build(data, self.net, recipe.history)
        self.net.to(self.device)
        self._requests = _newest(data, recipe.impressions)
        self._optimizer = _optimizer(self.net, recipe)
        self._random = np.random.default_rng(recipe.seed)
        self._standing = Standing()
        self._best = _copy(self.net)
        self._checkpoint: tuple[Path, float] | None = None
        self._fingerprint = data_fingerprint(data)
        self._watch = Watch(self.name)
        self.epochs: list[Epoch] = []

    def keep(self, path: Path, every_s: float = 60.0) -> Standing | None:
        """Write a checkpoint to ``path`` after each epoch and every so often; go on from the one that is there.

        Returns where that one stood, or None. Raises ``ArtefactError`` when it is damaged, of another run, or of one
        that diverged.
        """
        self._checkpoint = (path, every_s)
        found = read_checkpoint(path, self._run())
        if found is None:
            return None
        self.net.load_state_dict(found.weights)
        self._best = {name: value.to(self.device) for name, value in found.best.items()}
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": found.optimizer, "param_groups": groups})
        self._standing = found.standing
        self.epochs = [Epoch(int(e["number"]), e["loss"], e["valid_gauc"], e["seconds"]) for e in found.standing.epochs]
        if found.standing.random:
            self._random.bit_generator.state = found.standing.random
        return found.standing

    def run(self, on_batch: OnBatch | None = None, on_epoch: Callable[[Epoch], None] | None = None) -> ModelVersion:
        """Train until the validation GAUC stops rising; the weights of the best epoch are the version's. Raises
        ``NonFiniteError`` as soon as a number is not finite."""
        at = self._standing
        while at.epoch <= self.recipe.epochs and at.waited < self.recipe.patience:
            began = monotonic_s() - at.seconds
            loss = self._epoch(at, began, on_batch)
            self._watch.weights(self.net)
            valid = self.gauc(self.data.requests.of(Split.VALID)).value
            epoch = Epoch(at.epoch, loss, valid, monotonic_s() - began)
            self.epochs.append(epoch)
            if epoch.valid_gauc > at.best:
                at.best, at.waited, self._best = epoch.valid_gauc, 0, _copy(self.net)
            else:
                at.waited += 1
            at.epoch, at.batch, at.total, at.seconds = at.epoch + 1, 0, 0.0, 0.0
            at.epochs.append(asdict(epoch))
            at.random = dict(self._random.bit_generator.state)
            self._write()
            if on_epoch is not None:
                on_epoch(epoch)
        self.net.load_state_dict(self._best)
        report = self._report()
        for warning in report["warnings"]:
            log.warning("%s: %s", self.name, warning)
        version = ModelVersion(self.name, self.net.to("cpu"), report)
        self._watch.served(version, self.data)
        return version

    def gauc(self, requests: NDArray[np.int64]) -> Metric:
        """GAUC of some requests by the joint form. Raises ``NonFiniteError`` when a score is not finite."""
        table = self.data.requests
        users = np.repeat(table.user[requests], np.diff(table.first)[requests])
        self.net.eval()
        with torch.inference_mode(), self._precision():
            logits = []
            for at in range(0, len(requests), self.recipe.batch_requests):
                batch, _, weight = self._tables.batch(requests[at : at + self.recipe.batch_requests])
                logits.append(self.net(batch.to(self.device)).float().cpu()[weight > 0].numpy())
        scores = np.concatenate(logits)
        self._watch.scores(scores, "scores of judged impressions")
        return gauc(users, scores, table.clicked[table.shown(requests)])

    def _epoch(self, at: Standing, began: float, on_batch: OnBatch | None) -> float:
        """The rest of an epoch; the mean loss of all of it."""
        self.net.train()
        at.random = dict(self._random.bit_generator.state)
        requests = self._random.permutation(self._requests)
        size = self.recipe.batch_requests
        batches = -(-len(requests) // size)
        written = monotonic_s()
        for number in range(at.batch, batches):
            loss, norm = self._gradients(requests[number * size : (number + 1) * size])
            with self._watch.step(at.epoch, number + 1, batches, loss, norm):
                self._optimizer.step()
            at.total += loss
            at.batch = number + 1
            if on_batch is not None:
                on_batch(at.epoch, at.batch, batches, at.total / at.batch)
            if self._checkpoint is not None and monotonic_s() - written >= self._checkpoint[1]:
                at.seconds = monotonic_s() - began
                self._write()
                written = monotonic_s()
        return at.total / max(batches, 1)

    def _gradients(self, requests: NDArray[np.int64]) -> tuple[float, float]:
        """Clipped gradients of a batch, for the optimizer: its loss, and their norm before clipping."""
        batch, labels, weight = self._tables.batch(requests)
        labels, weight = labels.to(self.device), weight.to(self.device)
        with self._precision():
            logits = self.net(batch.to(self.device)).float()
        losses = fn.binary_cross_entropy_with_logits(logits, labels, weight, reduction="sum")
        loss = losses / weight.sum()
        if self.recipe.rank_weight:
            loss = loss + self.recipe.rank_weight * rank_loss(logits, labels, weight)
        if self.recipe.diversity:
            loss = loss + self.recipe.diversity * diversity(self.net.item_tower.bridge_rows)
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.net.parameters(), 5.0)
        return float(loss.detach()), float(norm)

    def _precision(self) -> torch.autocast:
        precision = self.recipe.precision
        if precision == "auto":
            precision = "bf16" if self.device.type == "cuda" and torch.cuda.is_bf16_supported() else "f32"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=precision == "bf16")

    def _run(self) -> str:
        """What a checkpoint must agree with; where it computes does not belong to it."""
        recipe = {name: value for name, value in asdict(self.recipe).items() if name != "device"}
        return run_fingerprint(self._fingerprint, recipe, self.config, self.name)

    def _write(self) -> None:
        if self._checkpoint is not None:
            state = self.net.state_dict()
            write_checkpoint(self._checkpoint[0], self._run(), self._standing, state, self._best, self._optimizer)

    def _report(self) -> dict[str, Any]:
        """What the manifest says about the training."""
        bridges = bridge_report(self.net, self._tables, self.data)
        collapse = collapse_warning(bridges)
        return {
            "data": self.data.name,
            "data_sha256": self._fingerprint,
            "model": self.config.kind.value,
            "seed": self.recipe.seed,
            "recipe": asdict(self.recipe),
            "device": self.device.type,
            "train_impressions": int(np.diff(self.data.requests.first)[self._requests].sum()),
            "valid_gauc": round(self._standing.best, 5),
            "test_gauc": self.gauc(self.data.requests.of(Split.TEST))._asdict(),
            "bridges": bridges,
            "warnings": [collapse] if collapse else [],
            "epochs": len(self.epochs),
            "seconds": round(sum(epoch.seconds for epoch in self.epochs), 1),
        }


def _device(recipe: Recipe) -> torch.device:
    if recipe.device == "cuda" and not torch.cuda.is_available():
        raise TrainingDataError("there is no CUDA device here", mend="train with --device cpu or auto")
    name = recipe.device if recipe.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def _check_judgeable(data: Dataset) -> None:
    """Early stop and report are GAUC: some user of each judging part must have both classes."""
    table = data.requests
    for part in (Split.VALID, Split.TEST):
        requests = table.of(part)
        users = np.repeat(table.user[requests], np.diff(table.first)[requests])
        clicked = table.clicked[table.shown(requests)]
        if not len(np.intersect1d(users[clicked], users[~clicked])):
            raise TrainingDataError(
                f"{data.name}: no user of the {part.name.lower()} part has both a click and an impression without one",
                mend="GAUC is not defined then: give a longer time span or more users",
            )


def _optimizer(net: Net, recipe: Recipe) -> torch.optim.Optimizer:
    """Matrices decay, vectors (norms, biases) do not, ids decay most."""
    ids = net.item_tower.ids.weight
    others = [parameter for parameter in net.parameters() if parameter is not ids]
    groups = [
        {"params": [ids], "weight_decay": recipe.id_decay},
        {"params": [p for p in others if p.ndim > 1], "weight_decay": recipe.decay},
        {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate)


def _newest(data: Dataset, impressions: int) -> NDArray[np.int64]:
    """Training requests, the newest with so many impressions; 0: all."""
    requests = data.requests.of(Split.TRAIN)
    requests = requests[np.argsort(data.requests.time_ms[requests], kind="stable")]
    if not impressions:
        return requests
    sizes = np.diff(data.requests.first)[requests][::-1]
    keep = max(1, int(np.searchsorted(np.cumsum(sizes), impressions, side="right")))
    return requests[-keep:]


def _copy(net: Net) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}
