"""Batches of requests: encoded catalogue, tiers, padded histories.

Histories stay flat arrays with a begin and an end per request; only a batch is padded. Grouping the impressions of a
request is what makes training quick: its user side is computed once (a first lab: nine times one row per impression).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aif_stream.errors import TrainingDataError
from aif_stream.model.attributes import AttributeEncoder, Attributes, Verdict
from aif_stream.model.config import Part
from aif_stream.model.features import ItemEncoder, ItemFeatures
from aif_stream.model.net import Batch, Net
from aif_stream.model.signature import pack_signs, signs
from aif_stream.model.tiers import TierReader
from aif_stream.model.user_side import age_buckets
from aif_stream.training.dataset import Dataset

I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Tables:
    """All that batches are cut from; memory grows with the catalogue, not with the impressions.

    Of items that change, a request sees the states that held at its time, of its history's items too: what an index
    without delay would have answered. Signatures are fixed before training. Tiers are read for each batch anew: kept,
    they would be as large as the log.
    """

    data: Dataset
    items: ItemFeatures  # the catalogue, every state of it
    signatures: NDArray[np.uint8]  # (states, W/8)
    looks: NDArray[Any]  # (states, …) what tiers read of a candidate: signature, codeword, or unit vector
    profiles: Attributes  # (users)
    reader: TierReader
    history: int  # newest entries of a batch
    long: int  # newest entries that tiers read, as served
    reads_tiers: bool
    cosines: bool

    @classmethod
    def build(cls, data: Dataset, net: Net, history: int) -> Tables:
        """Encode everything. Raises ``TrainingDataError`` when the config cannot read some of the items."""
        items = ItemEncoder(net.config).encode(data.states)
        if items.problems:
            at = int(np.flatnonzero(~items.usable)[0])
            problems = ", ".join(f"{reason} ×{count}" for reason, count in items.problems.items())
            raise TrainingDataError(
                f"{data.name}: unusable items: {problems}; the first is {data.states[at].item_id} (number {at + 1})",
                mend="mend their features, or leave them out",
            )
        with torch.inference_mode():
            tower = net.item_tower
            signatures = pack_signs(tower.project(items), items.has_content)
            looks: NDArray[Any] = tower.units(items) if net.config.cosines else signatures
            if net.config.codes:
                looks = tower.codewords.numpy()[tower.codes(signatures)]
        encoder = AttributeEncoder(net.config.user_fields)
        profiles = encoder.encode([p or {} for p in data.profiles], Verdict.all_usable(len(data.profiles)))
        config = net.config
        return cls(
            data,
            items,
            signatures,
            looks,
            profiles,
            TierReader(config),
            history,
            config.long,
            reads_tiers=config.has(Part.TIERS),
            cosines=config.cosines,
        )

    def batch(self, requests: I64) -> tuple[Batch, Tensor, Tensor]:
        """R requests -> batch, labels f32 (R, B) and weights f32 (R, B), 0 where a request has fewer candidates."""
        table, behaviors = self.data.requests, self.data.behaviors
        first, sizes = table.first[requests], np.diff(table.first)[requests]
        here = np.arange(sizes.max()) < sizes[:, None]  # (R, B)
        shown = np.where(here, first[:, None] + np.arange(sizes.max()), 0)
        end, begin = table.end[requests], table.begin[requests]
        length = max(1, int(np.minimum(end - begin, self.history).max()))
        at = end[:, None] + np.arange(-length, 0)  # (R, L), right-aligned
        seen = at >= begin[:, None]
        at = np.where(seen, at, 0)
        candidates = np.where(here, table.item[shown], table.item[first][:, None])
        entries = behaviors.item[at] if len(behaviors.item) else np.zeros_like(at)
        time_ms = table.time_ms[requests][:, None]
        candidates, entries = self.data.states_at(candidates, time_ms), self.data.states_at(entries, time_ms)
        distinct, index = np.unique(np.concatenate([candidates.ravel(), entries[seen]]), return_inverse=True)
        history = np.full(at.shape, -1, dtype=np.int64)
        history[seen] = index[candidates.size :]
        kind, age = np.zeros_like(at), np.zeros_like(at)
        if seen.any():
            times = behaviors.time_ms[at]
            age = np.where(seen, age_buckets((times[:, -1:] - times) / 1000.0), 0)
            kind = np.where(seen, behaviors.kind[at], 0)
        items = self.items.take(distinct)
        batch = Batch(
            items=items,
            sigma=torch.from_numpy(signs(self.signatures[distinct], items.has_content)),
            profiles=self.profiles.take(table.user[requests]),
            candidates=torch.from_numpy(index[: candidates.size].reshape(candidates.shape)),
            tiers=torch.from_numpy(self._tiers(requests, here)),
            history=torch.from_numpy(history),
            kind=torch.from_numpy(kind),
            age=torch.from_numpy(age),
        )
        labels = torch.from_numpy((table.clicked[shown] & here).astype(np.float32))
        return batch, labels, torch.from_numpy(here.astype(np.float32))

    def _tiers(self, requests: I64, here: NDArray[np.bool_]) -> NDArray[np.float32]:
        """SimTier of the requests' impressions against their histories (as served: newest ``long``), f32 (R, B, T)."""
        tiers = np.zeros((*here.shape, self.reader.columns), dtype=np.float32)
        if not self.reads_tiers:
            return tiers
        table, behaviors, content = self.data.requests, self.data.behaviors, self.items.has_content
        known: NDArray[Any] = self.looks if self.cosines else self.signatures
        read = self.reader.read_cosines if self.cosines else self.reader.read
        for at, request in enumerate(requests.tolist()):
            time_ms = int(table.time_ms[request])
            chosen = self.data.states_at(table.item[table.first[request] : table.first[request + 1]], time_ms)
            span = slice(max(table.begin[request], table.end[request] - self.long), table.end[request])
            seen, kind = self.data.states_at(behaviors.item[span], time_ms), behaviors.kind[span]
            kind, seen = kind[content[seen]], seen[content[seen]]
            tiers[at, : len(chosen)] = read(self.looks[chosen], content[chosen], known[seen], kind)
        return tiers
