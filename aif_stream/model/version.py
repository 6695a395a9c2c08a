"""A model version as the roles use it: item rows, user side, scoring; numpy in and out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from aif_stream.domain.events import Attribute, ItemUpserted
from aif_stream.domain.history import History, kinds, times_ms
from aif_stream.domain.ids import Keys
from aif_stream.domain.row import RowLayout, Rows
from aif_stream.domain.versions import check_version_name
from aif_stream.errors import VersionError
from aif_stream.kernels.items import ItemColumns
from aif_stream.kernels.score import Scored, Stored
from aif_stream.model.attributes import AttributeEncoder, Attributes, Verdict
from aif_stream.model.compiled import kernel_of, packed
from aif_stream.model.config import ModelConfig
from aif_stream.model.features import ItemEncoder, ItemFeatures
from aif_stream.model.net import Batch, Net
from aif_stream.model.rows import ItemRows, at_places, fill, has_content, tensor, valid
from aif_stream.model.signature import Signatures, pack_signs, signs
from aif_stream.model.split import Seen, UserSide, fold, score_rows
from aif_stream.model.tiers import TierReader
from aif_stream.model.user_side import Histories, age_buckets

Bools = NDArray[np.bool_]

# Matrix-vector products sum the last rows of a batch in another order when their number is odd to the kernel: in 10,000
# scores cut three ways, 2 or 3 differed in their last bit. Whole blocks of rows never did (tests/unit/model/
# test_score_alone.py); 16 is four times what the kernels of an AVX-512 CPU needed.
_BLOCK_ROWS = 16


class ModelVersion:
    """One trained net under a name. Every method is repeatable, keeps no state and is safe from several threads."""

    def __init__(self, name: str, net: Net, metrics: Mapping[str, Any] | None = None) -> None:
        self.name = check_version_name(name)
        self.net = net.eval().requires_grad_(False)
        self.config: ModelConfig = net.config
        self.layout: RowLayout = net.config.layout
        self.metrics: dict[str, Any] = dict(metrics or {})
        # Rows are computed in 64 bits and rounded once: in 32, a row would differ in a last bit with the size of
        # the batch that it was computed in, and "rebuilt = live" could not be checked byte by byte.
        self._item_tower = deepcopy(self.net.item_tower).double()
        self._items = ItemEncoder(self.config)
        self._profiles = AttributeEncoder(self.config.user_fields)
        self._tiers = TierReader(self.config)
        self._kernel = kernel_of(self.name, self.net, self._tiers)
        self.bf16 = False  # products of the compiled scorer in bfloat16; set before requests are scored

    @classmethod
    def init(cls, config: ModelConfig, seed: int, name: str = "untrained") -> ModelVersion:
        """Random weights (and a random content projection) by ``seed``."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(name, Net(config, seed))

    def item_rows(
        self,
        items: Sequence[ItemUpserted],
        event_time_ms: NDArray[Any],
        offset: NDArray[Any],
        computed_ms: int,
        keys: Keys | None = None,
    ) -> ItemRows:
        """Item side of N items with their order u64 (N): rows (N) of ``layout`` and counted problems.

        A row whose features this version cannot use has flags 0. Category: index in ``config.categories``, or
        NO_CATEGORY. A row depends on its item alone, not on the batch. ``keys`` u64 (N): of the items' ids, if known.
        """
        rows, problems = self.item_side(items, self.layout.dtype, keys)
        rows["event_time_ms"], rows["offset"], rows["computed_ms"] = event_time_ms, offset, computed_ms
        return ItemRows(rows, problems)

    def item_side(self, items: Sequence[ItemUpserted], dtype: np.dtype[np.void], keys: Keys | None = None) -> ItemRows:
        """``item_rows`` without stamps, in any float width (``dtype``: the layout's, or its float32 likeness)."""
        return self._rows_of(self._items.encode(items, keys), dtype)

    def item_rows_of(
        self,
        items: ItemColumns,
        chosen: NDArray[np.int64],
        event_time_ms: NDArray[np.uint64],
        offset: NDArray[np.uint64],
        computed_ms: int,
    ) -> tuple[ItemRows, Bools]:
        """``item_rows`` of the items at the places ``chosen`` (N) of ``items``: rows of those where the second array
        (N) is True; the others are to be computed from their values."""
        features, done = self._items.encode_columns(items, chosen)
        rows, problems = self._rows_of(features, self.layout.dtype)
        rows["event_time_ms"], rows["offset"] = event_time_ms[done], offset[done]
        rows["computed_ms"] = computed_ms
        return ItemRows(rows, problems), done

    def _rows_of(self, features: ItemFeatures, dtype: np.dtype[np.void]) -> ItemRows:
        with torch.inference_mode():
            numbers = self._item_tower(features)
            signatures = pack_signs(self._item_tower.project(features), features.has_content)
            codes = self.net.item_tower.codes(signatures) if self.config.codes else None
        return fill(dtype, features, numbers, signatures, codes)

    def units(self, items: Sequence[ItemUpserted]) -> NDArray[np.float32]:
        """Unit content vectors f32 (N, V), which ``din`` and ``exact`` read beside the rows."""
        with torch.inference_mode():
            return self.net.item_tower.units(self._items.encode(items))

    def user_side(
        self,
        profile: Mapping[str, Attribute] | None,
        history: History,
        history_rows: Rows,
        found: Bools,
        units: NDArray[np.float32] | None = None,
    ) -> UserSide:
        """The user's part of scoring.

        history (L), oldest first, with the rows (L) of its items and which were found (L). Entries without a valid
        row are left out; of the others the newest ``config.long`` count. A profile attribute of a wrong type counts
        as unknown. None: no profile. Ages count from the newest stored behavior, so no wall clock enters.
        ``units`` (L, V) are of the history's items; models that read cosines raise ``VersionError`` without them.
        """
        used = self.used_entries(history_rows, found)
        return self.user_side_of(
            profile, history, used, at_places(history_rows, used), None if units is None else at_places(units, used)
        )

    def user_side_of(
        self,
        profile: Mapping[str, Attribute] | None,
        history: History,
        used: NDArray[np.intp],
        rows: Rows,
        units: NDArray[np.float32] | None = None,
    ) -> UserSide:
        """``user_side`` of the entries ``used`` (L') alone, with their rows (L') and unit vectors (L', V)."""
        self._check_units(units)
        content = has_content(rows)
        with torch.inference_mode():
            seen = _histories(self, history, used, rows, content)
            tower = self.net.item_tower
            user = self.net.user_tower(self.profile(profile), seen, tower.bridge_rows, tower.sharpness)
            signed = Seen(
                np.ascontiguousarray(rows["sig"][content]),
                kinds(history)[used][content],
                units[content] if self.config.cosines and units is not None else None,
            )
            side = fold(self.net, self._tiers, user, seen, signed, len(history))
        if self._kernel is None:
            return side
        return replace(side, packed=packed(self._kernel, self.config, self._tiers, side))

    @property
    def compiled(self) -> bool:
        """Whether the compiled scorer scores this version."""
        return self._kernel is not None

    def histories(self, history: History, history_rows: Rows) -> Histories:
        """Entries (L) with usable rows (L), as the user tower reads them; R = 1."""
        used = np.arange(len(history))
        return _histories(self, history, used, history_rows, has_content(history_rows))

    def used_entries(self, history_rows: Rows, found: Bools) -> NDArray[np.intp]:
        """Places of the entries that ``user_side`` reads: found, valid, of these the newest ``config.long``."""
        return np.flatnonzero(found & valid(history_rows))[-self.config.long :]

    def score(self, user: UserSide, rows: Rows, units: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Logits f32 (B) of candidates by their rows; higher is better; -inf where a row is not valid.

        A score depends on user and row alone, not on the batch: a replayed request gives the same bits.
        ``units`` (B, V) as in ``user_side``.
        """
        if (
            self._kernel is not None
            and user.packed is not None
            and user.units is None
            and rows.dtype == self.layout.dtype
        ):
            return self._kernel.score(user.packed, rows, bf16=self.bf16)
        self._check_units(units)
        count = len(rows)
        if count % _BLOCK_ROWS:
            blocks = np.zeros(count + -count % _BLOCK_ROWS, rows.dtype)  # a zeroed row is not valid
            blocks[:count] = rows
            rows = blocks
            units = (
                None if units is None else np.concatenate([units, np.zeros((len(rows) - count, units.shape[1]), "f4")])
            )
        with torch.inference_mode():
            return score_rows(self.net, self._tiers, user, rows, units)[:count]

    def score_stored(
        self, user: UserSide, stored: Stored, keys: Keys, due_s: float, *, stop_if_unknown: bool
    ) -> Scored | None:
        """Join and score keys u64 (B) of rows that lie in memory, the same bits as ``score`` of gathered rows; None
        where that is not to be had (``ScoreKernel.score_keys``, or a version that has no kernel)."""
        if self._kernel is None or user.packed is None or user.units is not None:
            return None
        return self._kernel.score_keys(
            user.packed, stored, keys, due_s, stop_if_unknown=stop_if_unknown, bf16=self.bf16
        )

    def _check_units(self, units: NDArray[np.float32] | None) -> None:
        if self.config.cosines and units is None:
            raise VersionError(
                f"{self.name} is a {self.config.kind.value} model: it reads content vectors that rows do not carry",
                mend="aif evaluate judges it; serve an aif model",
            )

    def joint(
        self,
        profile: Mapping[str, Attribute] | None,
        history: History,
        history_items: Sequence[ItemUpserted | None],
        items: Sequence[ItemUpserted],
    ) -> NDArray[np.float32]:
        """The same logits by the plain joint forward from features, f32 (B); None: an item that is not known."""
        known = [item for item in history_items if item is not None]
        features = self._items.encode([*items, *known])
        at = np.full(len(history), -1, dtype=np.int64)
        at[[item is not None for item in history_items]] = len(items) + np.arange(len(known))
        used = np.flatnonzero((at >= 0) & features.usable[at])[-self.config.long :]
        with torch.inference_mode():
            batch = self._batch(features, len(items), history, used, at[used])
            logits = self.net(replace(batch, profiles=self.profile(profile)))
        scores: NDArray[np.float32] = logits[0].numpy()
        scores[~features.usable[: len(items)]] = -np.inf
        return scores

    def _batch(
        self, features: ItemFeatures, count: int, history: History, used: NDArray[np.int64], at: NDArray[np.int64]
    ) -> Batch:
        """One request: the first ``count`` items are candidates, ``at`` the items of the history entries ``used``."""
        tower = self.net.item_tower
        signatures = pack_signs(tower.project(features), features.has_content)
        tiers = self._joint_tiers(features, signatures, count, at, kinds(history)[used])
        kind, age = kind_and_age(history, used)
        empty = len(used) == 0
        return Batch(
            items=features,
            sigma=torch.from_numpy(signs(signatures, features.has_content)),
            profiles=self.profile(None),
            candidates=torch.arange(count)[None],
            tiers=torch.from_numpy(tiers)[None],
            history=torch.full((1, 1), -1) if empty else torch.from_numpy(at)[None],
            kind=torch.zeros(1, 1, dtype=torch.int64) if empty else kind,
            age=torch.zeros(1, 1, dtype=torch.int64) if empty else age,
        )

    def _joint_tiers(
        self,
        features: ItemFeatures,
        signatures: Signatures,
        count: int,
        at: NDArray[np.int64],
        kind: NDArray[np.uint8],
    ) -> NDArray[np.float32]:
        """Tier features (count, columns) of the first items against the entries ``at`` of kinds ``kind``."""
        tower, content = self.net.item_tower, features.has_content
        seen, kind = at[content[at]], kind[content[at]]
        if self.config.cosines:
            units = tower.units(features)
            return self._tiers.read_cosines(units[:count], content[:count], units[seen], kind)
        own = signatures[:count]
        if self.config.codes:
            own = tower.codewords.numpy()[tower.codes(own)]
        return self._tiers.read(own, content[:count], signatures[seen], kind)

    def profile(self, profile: Mapping[str, Attribute] | None) -> Attributes:
        """Encoded, R = 1."""
        # A wrong type is counted for items, whose publisher is told; here it falls back to the unknown value.
        return self._profiles.encode([profile or {}], Verdict.all_usable(1))


def kind_and_age(history: History, used: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
    """Kinds and age buckets of the entries ``used``, each i64 (1, L')."""
    times = times_ms(history)
    newest = times[-1] if len(times) else 0
    age = age_buckets((newest - times[used]) / 1000.0)
    return torch.from_numpy(kinds(history)[used].astype(np.int64))[None], torch.from_numpy(age)[None]


def _keys(rows: Rows, field: str) -> torch.Tensor:
    """A key of the rows, i64 (1, L'); -1 where there is no such field."""
    keys = rows[field].astype(np.int64) if field else np.full(len(rows), -1, dtype=np.int64)
    return torch.from_numpy(keys)[None]


def _histories(
    version: ModelVersion, history: History, used: NDArray[np.int64], rows: Rows, content: Bools
) -> Histories:
    """Entries ``used`` as the user tower reads them, R = 1; an empty history is one masked entry."""
    if len(used) == 0:
        zero = torch.zeros(1, 1, dtype=torch.int64)
        D, W = version.config.width, version.config.signature_bits
        return Histories(torch.zeros(1, 1, D), torch.zeros(1, 1, W), zero > 0, zero, zero, zero - 1, zero - 1)
    kind, age = kind_and_age(history, used)
    return Histories(
        t=tensor(rows["t"]).float()[None],
        sigma=torch.from_numpy(signs(rows["sig"], content))[None],
        mask=torch.ones(1, len(used), dtype=torch.bool),
        kind=kind,
        age=age,
        category=_keys(rows, "category"),
        key2=_keys(rows, "key2" if version.config.second_key else ""),
        full=True,
    )
