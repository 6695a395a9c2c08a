"""The whole net in its joint form: what training runs and what the split form must equal."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from aif_stream.model.attributes import Attributes
from aif_stream.model.config import ModelConfig
from aif_stream.model.features import ItemFeatures
from aif_stream.model.item_side import ItemNumbers, ItemTower
from aif_stream.model.scorer import Candidates, Scorer
from aif_stream.model.user_side import Histories, UserTower


@dataclass(frozen=True, slots=True)
class Batch:
    """R requests over N distinct items. Indices point into ``items``; -1 in ``history`` is no item."""

    items: ItemFeatures  # (N)
    sigma: Tensor  # f32 (N, W)
    profiles: Attributes  # (R)
    candidates: Tensor  # i64 (R, B)
    tiers: Tensor  # f32 (R, B, T·G)
    history: Tensor  # i64 (R, L), right-aligned
    kind: Tensor  # i64 (R, L)
    age: Tensor  # i64 (R, L)

    def to(self, device: torch.device) -> Batch:
        """The tensors on a device; arrays follow where they are read."""
        return replace(
            self,
            sigma=self.sigma.to(device),
            candidates=self.candidates.to(device),
            tiers=self.tiers.to(device),
            history=self.history.to(device),
            kind=self.kind.to(device),
            age=self.age.to(device),
        )


class Net(nn.Module):
    """Item side, user side and scorer on the same weights as the split form (version.py)."""

    def __init__(self, config: ModelConfig, seed: int) -> None:
        super().__init__()
        self.config = config
        self.item_tower = ItemTower(config, seed)
        self.user_tower = UserTower(config)
        self.scorer = Scorer(config)

    def forward(self, batch: Batch) -> Tensor:
        """Logits (R, B)."""
        item = self.item_tower(batch.items)
        history = self._history(batch, item)
        user = self.user_tower(batch.profiles, history, self.item_tower.bridge_rows, self.item_tower.sharpness)
        at = batch.candidates
        chosen = ItemNumbers(item.t[at], item.w[at], item.h[at])  # (N, …) -> (R, B, …)
        category, key2 = self._keys(batch, item.t.device)
        candidates = Candidates(chosen, batch.sigma[at], batch.tiers, category[at], key2[at])
        logits: Tensor = self.scorer(user, history, candidates)
        return logits

    def readouts(self, batch: Batch) -> Tensor:
        """Bridge read-outs (R, K, D)."""
        tower = self.item_tower
        history = self._history(batch, tower(batch.items))
        return self.user_tower.readouts(history, tower.bridge_rows, tower.sharpness)

    def _history(self, batch: Batch, item: ItemNumbers) -> Histories:
        seen = batch.history.clamp(min=0)
        category, key2 = self._keys(batch, item.t.device)
        return Histories(
            t=item.t[seen],  # (N, D) -> (R, L, D)
            sigma=batch.sigma[seen],
            mask=batch.history >= 0,
            kind=batch.kind,
            age=batch.age,
            category=category[seen],
            key2=key2[seen],
        )

    @staticmethod
    def _keys(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
        """Both SIM keys of the items, i64 (N)."""
        category, key2 = (torch.from_numpy(keys).to(device).long() for keys in (batch.items.category, batch.items.key2))
        return category, key2
