"""What the first layer of the scorer shows by itself: the terms of its sum, and the attention over the short history.

The first layer is a sum (scorer.py), so each term of a candidate can be set against the same term of the mean candidate
of the same answer; the head's gradient at that candidate turns the difference into logits. That is exact for the dot
product and first order for the rest: the layer norm and the small MLP behind it are not linear.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aif_stream.domain.events import Attribute
from aif_stream.domain.history import History
from aif_stream.domain.row import Rows
from aif_stream.model.config import Kind, Part
from aif_stream.model.rows import has_content, tensor
from aif_stream.model.signature import nibbles
from aif_stream.model.split import UserSide
from aif_stream.model.tiers import TierReader
from aif_stream.model.version import ModelVersion

F32 = NDArray[np.float32]


class FirstLayer(NamedTuple):
    """Effects in logits of one candidate against the mean of B: by term; of ``bridges`` (K) and ``tiers`` (columns) by
    part. ``weights`` (K): the candidate's bridge weights. ``tier_features`` (columns): log(1 + 100·share)."""

    terms: dict[str, float]
    bridges: F32
    weights: F32
    tiers: F32
    tier_features: F32


def first_layer(version: ModelVersion, user: UserSide, rows: Rows, at: int) -> FirstLayer:
    """Effects of the candidate ``at`` among rows (B), all valid."""
    none = np.zeros(0, np.float32)
    t = tensor(rows["t"]).float().numpy()
    dots = t @ user.u.numpy()  # (B, D) @ (D) -> (B)
    effects = {"match": float(dots[at] - dots.mean())}
    if version.config.kind is Kind.TWOTOWER:
        return FirstLayer(effects, none, none, none, none)
    parts = _terms(version, user, rows)
    hidden = np.sum([term.sum(1) for term in parts.values()], axis=0)  # (B, P, H) -> (B, H)
    gradient = _head_gradient(version, hidden[at])  # (H)
    by_part = {name: (term[at] - term.mean(0)) @ gradient for name, term in parts.items()}  # (P, H) @ (H) -> (P)
    effects |= {name: float(values.sum()) for name, values in by_part.items()}
    return FirstLayer(
        effects,
        by_part.get("bridges", none).astype(np.float32),
        rows["w"][at].astype(np.float32) if "bridges" in by_part else none,
        by_part.get("tiers", none).astype(np.float32) if not version.config.codes else none,
        _tier_features(version, user, rows)[at] if version.config.has(Part.TIERS) else none,
    )


def _head_gradient(version: ModelVersion, hidden: F32) -> F32:
    """d head / d hidden at one candidate, (H)."""
    with torch.enable_grad():
        x = torch.from_numpy(hidden.copy()).requires_grad_(True)
        (gradient,) = torch.autograd.grad(version.net.scorer.head(x), x)
    found: F32 = gradient.numpy()
    return found


def _terms(version: ModelVersion, user: UserSide, rows: Rows) -> dict[str, F32]:
    """The sum that scoring makes, term by term: name -> (B, parts, H). What all candidates share is ``user``."""
    config, first = version.config, user.first.numpy()
    bag = user.bag.numpy()[:, : config.hidden]
    content = has_content(rows)
    t = tensor(rows["t"]).float().numpy()
    shared = bag[user.category_row[0]]  # the row of "no category" is h_u alone
    found = {
        "user": np.broadcast_to(shared, (len(rows), 1, config.hidden)),
        "item": rows["h"].astype(np.float32)[:, None],
        "product": (t @ first[-config.width :])[:, None],  # (B, D) @ (D, H)
    }
    at = 0
    if config.has(Part.BEA):
        found["bridges"] = rows["w"].astype(np.float32)[:, :, None] * first[: config.bridges]  # (B, K, H)
        at = config.bridges
        if version.net.scorer.bridge_product is not None and user.readouts is not None:
            read = rows["w"].astype(np.float32) @ user.readouts.numpy()  # (B, K) @ (K, D)
            found["bridge_product"] = ((read * t) @ version.net.scorer.bridge_product.weight.numpy().T)[:, None]
    if config.has(Part.TIERS) and not config.codes:
        columns = config.tier_columns
        found["tiers"] = _tier_features(version, user, rows)[:, :, None] * first[at : at + columns]  # (B, T·G, H)
    if user.code_row >= 0:
        found["tiers"] = (bag[user.code_row + rows["code"].astype(np.int64)] * content[:, None])[:, None]
    if user.nibble_row >= 0:
        own = nibbles(rows["sig"])
        parts = bag[user.nibble_row + 16 * np.arange(own.shape[1]) + own]  # (B, W/4, H)
        found["signature"] = (parts.sum(1) * content[:, None])[:, None]
    if config.has(Part.SIM):
        found["category"] = (bag[user.category_row[rows["category"] + 1]] - shared)[:, None]
        if len(user.key2_row):
            found["second_key"] = bag[user.key2_row[rows["key2"] + 1]][:, None]
    return found


def _tier_features(version: ModelVersion, user: UserSide, rows: Rows) -> F32:
    """(B, columns), by the rows' signatures or, with coded tiers, by their codewords'."""
    content = has_content(rows)
    own = rows["sig"]
    if version.config.codes:
        own = version.net.item_tower.codewords.numpy()[rows["code"].astype(np.int64)]
    return TierReader(version.config).read(np.ascontiguousarray(own), content, user.signatures, user.kinds)


def short_attention(
    version: ModelVersion, profile: Mapping[str, Attribute] | None, history: History, rows: Rows
) -> F32:
    """How the profile's attention is spread over the newest entries: f32 (S), in the history's order, sum 1.

    ``history`` and ``rows`` (L): entries that the version uses, oldest first. Empty where u reads no history.
    """
    if not len(history) or not version.config.user_history:
        return np.zeros(0, np.float32)
    with torch.inference_mode():
        tower = version.net.user_tower
        seen = version.histories(history, rows)
        p = tower.profile_vector(version.profile(profile))
        weights: Tensor = tower.attended(p, seen.newest(version.config.short))[1]
    found: F32 = weights[0].numpy()
    return found
