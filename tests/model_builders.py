"""A small model version with every kind of field, and items and users for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from aif_stream.domain.events import BehaviorKind, ItemUpserted
from aif_stream.domain.history import ENTRY, History, entry_bytes
from aif_stream.domain.ids import key_of
from aif_stream.model.config import Field, Kind, ModelConfig, Part
from aif_stream.model.version import ModelVersion

CONTENT_WIDTH = 12


# Each way to put an AIF together; "" is the plain one.
VARIANTS: dict[str, dict[str, Any]] = {
    "": {},
    "few bits": {"signature_bits": 24},
    "tiers by kind": {"tier_groups": ((1,), (3, 4))},
    "second key": {"second_key": "brand"},
    "coded": {"codes": 16},
    "all": {"codes": 8, "second_key": "brand", "tier_groups": ((1, 2), (4,)), "bridge_norm": True},
    "product": {"bridge_product": True, "second_key": "brand"},
    "no parts": {"parts": ()},
    "without tiers": {"parts": (Part.BEA, Part.LSH, Part.SIM)},
    "without lsh": {"parts": (Part.BEA, Part.TIERS, Part.SIM), "codes": 8},
    "without bea": {"parts": (Part.LSH, Part.TIERS)},
    "profile alone": {"user_history": False},
}


def small_config(kind: Kind = Kind.AIF, **choices: Any) -> ModelConfig:
    choices = {"hidden": 24} | choices
    return ModelConfig(
        **choices,
        kind=kind,
        width=16,
        head=8,
        bridges=4,
        tiers=6,
        long=40,
        short=10,
        id_buckets=512,
        content_width=CONTENT_WIDTH,
        categories=("tea", "books", "lamps"),
        item_fields=(
            Field("brand", "label", ("ada", "bob", "7")),
            Field("tags", "labels", ("new", "red", "big")),
            Field("price", "number", mean=20.0, scale=10.0),
        ),
        user_fields=(Field("city", "label", ("oslo", "rome")), Field("age", "number", mean=40.0, scale=15.0)),
    )


def small_version(kind: Kind = Kind.AIF, seed: int = 0, **choices: Any) -> ModelVersion:
    """Every weight random: an untrained head is zero and would hide what the test compares."""
    version = ModelVersion.init(small_config(kind, **choices), seed, name=f"small-{kind.value}")
    generator = torch.Generator().manual_seed(seed)
    state = version.net.state_dict()
    for name, value in state.items():
        if name.endswith(("weight", "bias", "bridges")):
            value.add_(0.3 * torch.randn(value.shape, generator=generator))
        if name.endswith("codewords"):
            value.copy_(torch.randint(0, 256, value.shape, generator=generator))
    return ModelVersion(version.name, version.net)


def make_items(count: int, seed: int = 0) -> list[ItemUpserted]:
    """Items 0 … count - 1; some without content, without category, with values that the version does not know."""
    random = np.random.default_rng(seed)
    items = []
    for number in range(count):
        vector = [float(x) for x in random.standard_normal(CONTENT_WIDTH).round(4)]
        items.append(
            ItemUpserted(
                item_id=str(number),
                category=str(random.choice(["tea", "books", "lamps", "other"])),
                attributes={
                    "brand": str(random.choice(["ada", "bob", "eve"])),
                    "tags": [str(tag) for tag in random.choice(["new", "red", "big", "odd"], size=random.integers(4))],
                    "price": float(random.uniform(1, 50)),
                },
                content_vector=vector if random.random() > 0.2 else None,
            )
        )
    return items


def make_history(items: Sequence[ItemUpserted], seed: int = 0) -> History:
    """One entry per item, oldest first, seconds to weeks apart."""
    random = np.random.default_rng(seed)
    time_ms = 1_700_000_000_000
    entries = b""
    for item in items:
        time_ms += int(1000 * 10 ** random.uniform(0, 6))
        kind = (BehaviorKind.CLICK, BehaviorKind.BUY)[int(random.integers(2))]
        entries += entry_bytes(key_of(str(item.item_id)), kind, time_ms)
    return np.frombuffer(entries, dtype=ENTRY)
