"""Config of a version from a catalogue: which attributes there are, their vocabularies and scales. No labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from aif_stream.domain.events import Attribute
from aif_stream.errors import TrainingDataError
from aif_stream.model.config import Field, ModelConfig
from aif_stream.model.features import ItemEncoder
from aif_stream.model.net import Net
from aif_stream.model.signature import pack_signs
from aif_stream.training.codewords import fit_codewords
from aif_stream.training.dataset import Dataset

# Values seen once teach nothing; beyond two thousand a vocabulary grows and the mean count falls below a handful.
_LARGEST_VOCABULARY: Final = 2000
_FEWEST_SEEN: Final = 2
_LARGEST_ID_TABLE: Final = 1 << 16


def config_for(data: Dataset, **choices: Any) -> ModelConfig:
    """A config that can read the data set's items and users; ``choices`` override widths and kind."""
    widths = Counter(len(item.content_vector) for item in data.items if item.content_vector is not None)
    categories = sorted({str(item.category) for item in data.items})
    derived: dict[str, Any] = {
        "content_width": widths.most_common(1)[0][0] if widths else 0,
        "categories": tuple(categories),
        "item_fields": infer_fields(item.attributes for item in data.items),
        "user_fields": infer_fields(profile for profile in data.profiles if profile is not None),
        # Two hashes into a table twice the catalogue: both of an item's rows are shared by 1 in 6.
        "id_buckets": min(_LARGEST_ID_TABLE, 1 << max(10, (2 * len(data.items)).bit_length())),
    }
    return msgspec.structs.replace(ModelConfig(), **(derived | choices))


def infer_fields(rows: Iterable[Mapping[str, Attribute]]) -> tuple[Field, ...]:
    """Fields by the values' types: lists are ``labels``, numbers ``number``, else ``label`` (mixed ones too). Raises
    ``TrainingDataError`` for numbers without a finite mean and deviation."""
    labels: dict[str, Counter[str]] = {}
    numbers: dict[str, list[float]] = {}
    lists: set[str] = set()
    for row in rows:
        for name, value in row.items():
            if isinstance(value, list):
                lists.add(name)
                labels.setdefault(name, Counter()).update(set(value))
            elif isinstance(value, str):
                labels.setdefault(name, Counter())[value] += 1
            else:
                numbers.setdefault(name, []).append(float(value))
    fields = []
    for name in sorted(labels.keys() | numbers.keys()):
        if name in labels:
            seen = [value for value, count in labels[name].most_common(_LARGEST_VOCABULARY) if count >= _FEWEST_SEEN]
            fields.append(Field(name, "labels" if name in lists else "label", tuple(sorted(seen))))
        else:
            fields.append(_number_field(name, np.array(numbers[name], dtype=np.float64)))
    return tuple(fields)


def _number_field(name: str, values: NDArray[np.float64]) -> Field:
    """Raises ``TrainingDataError`` where the values are too large for a mean and a deviation."""
    with np.errstate(over="ignore", invalid="ignore"):
        mean, scale = float(values.mean()), float(values.std())
    if not (np.isfinite(mean) and np.isfinite(scale)):
        raise TrainingDataError(
            f"{name}: numbers up to {np.abs(values).max():.3g} have no deviation in 64 bits",
            mend=f"correct {name} in the catalogue, or leave it out",
        )
    return Field(name, "number", mean=mean, scale=scale or 1.0)


def fit_codes(net: Net, data: Dataset) -> None:
    """Set the codewords of coded tiers from the catalogue's signatures; after ``centre_content``."""
    if not net.config.codes:
        return
    items = ItemEncoder(net.config).encode(data.items)
    with torch.inference_mode():
        signatures = pack_signs(net.item_tower.project(items), items.has_content)[items.has_content]
    words = fit_codewords(signatures, net.config.codes, seed=0)
    net.item_tower.codewords.copy_(torch.from_numpy(words))


def centre_content(net: Net, data: Dataset) -> None:
    """Set the content mean and scale from the catalogue (uncentred, all signatures would agree in most bits)."""
    width = net.config.content_width
    vectors = np.array([v for item in data.items if (v := item.content_vector) is not None and len(v) == width])
    if not width or not len(vectors):
        return
    mean = vectors.mean(axis=0)
    net.item_tower.content_mean.copy_(torch.from_numpy(mean))
    net.item_tower.content_scale.fill_(float(np.sqrt(((vectors - mean) ** 2).mean())) or 1.0)
