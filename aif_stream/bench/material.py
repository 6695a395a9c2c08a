"""What the nearline benchmarks read: an untrained model of the usual shapes, and lines of some 350 bytes."""

from __future__ import annotations

import json
from typing import Final

import numpy as np

from aif_stream.model.config import Field, ModelConfig
from aif_stream.model.version import ModelVersion

CONTENT: Final = 16
"""Numbers of a content vector; with them a line has some 330 bytes, with 64 some 720."""
CATEGORIES: Final = 100


def model(content: int) -> ModelVersion:
    """Untrained, with the shapes of a trained one."""
    config = ModelConfig(
        content_width=content,
        categories=tuple(f"c{n}" for n in range(CATEGORIES)),
        item_fields=(
            Field("brand", "label", tuple(f"brand-{n}" for n in range(1000))),
            Field("tags", "labels", tuple(f"tag-{n}" for n in range(50))),
            Field("price", "number", mean=20.0, scale=10.0),
        ),
    )
    return ModelVersion.init(config, seed=1, name="bench")


def lines(items: int, content: int) -> list[tuple[bytes, bytes]]:
    """Key and value of one update per item."""
    random = np.random.default_rng(3)
    vectors = random.normal(size=(1000, content)).round(4).tolist()
    made = []
    for n in range(items):
        line = {
            "item_id": str(n),
            "category": f"c{n % CATEGORIES}",
            "attributes": {"brand": f"brand-{n % 1000}", "tags": ["tag-1", f"tag-{n % 50}"], "price": n % 97 + 0.5},
            "content_vector": vectors[n % 1000],
            "title": f"an item of the benchmark, number {n}, with a title that nobody reads",
        }
        made.append((b"%d" % n, json.dumps(line, separators=(",", ":")).encode()))
    return made
