"""The whole net in its joint form: what training runs and what the split form must equal."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aif_stream.model.config import ModelConfig
from aif_stream.model.features import Attributes, ItemFeatures
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
    tiers: Tensor  # f32 (R, B, T)
    history: Tensor  # i64 (R, L), right-aligned
    kind: Tensor  # i64 (R, L)
    age: Tensor  # i64 (R, L)


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
        category = torch.from_numpy(batch.items.category).long()  # (N)
        seen = batch.history.clamp(min=0)
        history = Histories(
            t=item.t[seen],  # (N, D) -> (R, L, D)
            sigma=batch.sigma[seen],
            mask=batch.history >= 0,
            kind=batch.kind,
            age=batch.age,
            category=category[seen],
        )
        user = self.user_tower(batch.profiles, history, self.item_tower.bridges, self.item_tower.sharpness)
        at = batch.candidates
        chosen = ItemNumbers(item.t[at], item.w[at], item.h[at])  # (N, …) -> (R, B, …)
        candidates = Candidates(chosen, batch.sigma[at], batch.tiers, category[at])
        logits: Tensor = self.scorer(user, history, candidates)
        return logits
