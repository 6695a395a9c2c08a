"""The training loop: requests in batches, the joint form, BCE, AdamW, early stop by validation GAUC."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as fn

from aif_stream.clock import monotonic_s
from aif_stream.domain.versions import check_version_name
from aif_stream.model.net import Net
from aif_stream.model.version import ModelVersion
from aif_stream.training.batches import Tables
from aif_stream.training.dataset import Dataset, Split
from aif_stream.training.metrics import Metric, gauc
from aif_stream.training.schema import centre_content, config_for, fit_codes


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

    Repeatable for a seed on one machine and thread count. Raises ``VersionError`` for a bad name and
    ``TrainingDataError`` for data that no config can read, before any work.
    """

    def __init__(self, data: Dataset, name: str, recipe: Recipe = FULL, **choices: Any) -> None:
        """``choices`` override the derived config (``kind``, widths)."""
        self.name = check_version_name(name)
        self.data, self.recipe = data, recipe
        self.config = config_for(data, **choices)
        torch.manual_seed(recipe.seed)
        self.net = Net(self.config, recipe.seed)
        centre_content(self.net, data)
        fit_codes(self.net, data)
        self._tables = Tables.build(data, self.net, recipe.history)
        self._requests = _newest(data, recipe.impressions)
        self._optimizer = _optimizer(self.net, recipe)
        self._random = np.random.default_rng(recipe.seed)
        self.epochs: list[Epoch] = []

    def run(self, on_batch: OnBatch | None = None, on_epoch: Callable[[Epoch], None] | None = None) -> ModelVersion:
        """Train until the validation GAUC stops rising; the weights of the best epoch are the version's."""
        best, best_state, waited = -1.0, _copy(self.net), 0
        for number in range(1, self.recipe.epochs + 1):
            began = monotonic_s()
            loss = self._epoch(number, on_batch)
            epoch = Epoch(number, loss, self.gauc(self.data.requests.of(Split.VALID)).value, monotonic_s() - began)
            self.epochs.append(epoch)
            if on_epoch is not None:
                on_epoch(epoch)
            if epoch.valid_gauc > best:
                best, best_state, waited = epoch.valid_gauc, _copy(self.net), 0
            else:
                waited += 1
                if waited >= self.recipe.patience:
                    break
        self.net.load_state_dict(best_state)
        return ModelVersion(self.name, self.net, self._report(best))

    def gauc(self, requests: NDArray[np.int64]) -> Metric:
        """GAUC of some requests by the joint form."""
        table = self.data.requests
        users = np.repeat(table.user[requests], np.diff(table.first)[requests])
        self.net.eval()
        with torch.inference_mode():
            logits = []
            for at in range(0, len(requests), self.recipe.batch_requests):
                batch, _, weight = self._tables.batch(requests[at : at + self.recipe.batch_requests])
                logits.append(self.net(batch)[weight > 0].numpy())
        return gauc(users, np.concatenate(logits), table.clicked[table.shown(requests)])

    def _epoch(self, number: int, on_batch: OnBatch | None) -> float:
        self.net.train()
        requests = self._random.permutation(self._requests)
        size = self.recipe.batch_requests
        batches = -(-len(requests) // size)
        total = 0.0
        for at in range(batches):
            batch, labels, weight = self._tables.batch(requests[at * size : (at + 1) * size])
            losses = fn.binary_cross_entropy_with_logits(self.net(batch), labels, weight, reduction="sum")
            loss = losses / weight.sum()
            self._optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.net.parameters(), 5.0)
            self._optimizer.step()
            total += float(loss.detach())
            if on_batch is not None:
                on_batch(number, at + 1, batches, total / (at + 1))
        return total / max(batches, 1)

    def _report(self, best: float) -> dict[str, Any]:
        """What the manifest says about the training."""
        return {
            "data": self.data.name,
            "model": self.config.kind.value,
            "seed": self.recipe.seed,
            "train_impressions": len(self.data.requests.shown(self._requests)),
            "valid_gauc": round(best, 5),
            "test_gauc": self.gauc(self.data.requests.of(Split.TEST))._asdict(),
            "epochs": len(self.epochs),
            "seconds": round(sum(epoch.seconds for epoch in self.epochs), 1),
        }


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
