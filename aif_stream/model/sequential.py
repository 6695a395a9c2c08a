"""COLD as it is served without AIF: every tower at request time, after the candidates are known.

At its best, so that what is measured against it flatters nobody: features were encoded beforehand and lie in memory (no
reading, no decoding), all in 32 bits, and neither signatures nor bridges of the request's items are computed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from aif_stream.domain.events import ItemUpserted
from aif_stream.domain.history import History
from aif_stream.errors import VersionError
from aif_stream.model.config import Kind
from aif_stream.model.features import ItemEncoder
from aif_stream.model.item_side import ItemNumbers
from aif_stream.model.scorer import Candidates
from aif_stream.model.user_side import Histories
from aif_stream.model.version import ModelVersion, kind_and_age


class Sequential:
    """Scores of a COLD version over a fixed catalogue of N items; a place is an item's number in it. No state besides:
    safe from several threads."""

    def __init__(self, version: ModelVersion, items: Sequence[ItemUpserted]) -> None:
        if version.config.kind is not Kind.COLD:
            raise VersionError(f"{version.name} is a {version.config.kind.value} model, not cold")
        self._version = version
        self._features = ItemEncoder(version.config).encode(items)
        tower = version.net.item_tower
        with torch.inference_mode():
            self._content = tower.content_of(self._features)

    def scores(self, history: History, seen: NDArray[np.int64], shown: NDArray[np.int64]) -> NDArray[np.float32]:
        """Logits f32 (B) of the items at places ``shown`` i64 (B), for the profile-less user whose history (L), at
        least one entry, is of the items at places ``seen`` i64 (L)."""
        version, net = self._version, self._version.net
        used = np.arange(len(history))[-version.config.long :]
        seen, L = seen[used], len(used)
        with torch.inference_mode():
            item = self._item_side(np.concatenate([seen, shown]))
            t, h = item.t[None], item.h[None]
            entries = _entries(history, used, t[:, :L])
            user = net.user_tower(version.profile(None), entries, net.item_tower.bridge_rows, 1.0)
            none = torch.zeros(1, 1, 0)
            absent = torch.zeros(1, 0, dtype=torch.int64)
            rest = ItemNumbers(t[:, L:], none, h[:, L:])
            logits = net.scorer(user, entries, Candidates(rest, none, none, absent, absent))
        scores: NDArray[np.float32] = logits[0].numpy()
        return scores

    def _item_side(self, places: NDArray[np.int64]) -> ItemNumbers:
        content = None if self._content is None else self._content[torch.from_numpy(places)]
        features = self._features
        numbers: ItemNumbers = self._version.net.item_tower.numbers(
            features.ids[places], features.attributes.take(places), content, bridges=False
        )
        return numbers


def _entries(history: History, used: NDArray[np.int64], t: torch.Tensor) -> Histories:
    kind, age = kind_and_age(history, used)
    none, all_of_them = torch.full_like(kind, -1), torch.ones_like(kind, dtype=torch.bool)
    return Histories(t, torch.zeros(1, t.shape[1], 0), all_of_them, kind, age, none, none, full=True)
