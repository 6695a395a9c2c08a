"""Whether bridges say different things. Utilisation hides a collapse: all bridges are used alike when none differs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from aif_stream.model.config import Part
from aif_stream.model.net import Net
from aif_stream.training.batches import Tables
from aif_stream.training.dataset import Dataset, Split

# Beyond it the bridges of a user read the same: of eight with pairs at .9, seven say what the first one says.
COLLAPSED: Final = 0.9
_ITEMS: Final = 4096
_REQUESTS: Final = 256


def bridge_report(net: Net, tables: Tables, data: Dataset) -> dict[str, Any]:
    """Of up to 4,096 items and 256 test requests:

    - ``perplexity``: exp of the entropy of an item's weights, mean; K is uniform (nothing said), 1 is one bridge.
    - ``used``: perplexity of the mean weights; far below K, some bridges lie idle.
    - ``readout_cosine``: mean cosine between two read-outs of one user; near 1, they all say the same. None for K = 1.

    Empty for a model without bridges.
    """
    if not net.config.has(Part.BEA):
        return {}
    K = net.config.bridges
    net.eval()
    with torch.inference_mode():
        some = np.linspace(0, len(data.items) - 1, min(_ITEMS, len(data.items))).astype(np.int64)
        w = net.item_tower(tables.items.take(some)).w.double().cpu().numpy()  # (N, K)
        batch, _, _ = tables.batch(data.requests.of(Split.TEST)[:_REQUESTS])
        readouts = net.readouts(batch.to(net.item_tower.bridges.device)).double().cpu()  # (R, K, D)
        own = batch.history.ge(0).any(dim=1).cpu()
        unit = torch.nn.functional.normalize(readouts[own], dim=-1)
        cosines = (unit @ unit.transpose(1, 2)).sum(dim=(1, 2)) - K  # the diagonal is K ones
    return {
        "bridges": K,
        "perplexity": round(float(np.exp(_entropy(w)).mean()), 3),
        "used": round(float(np.exp(_entropy(w.mean(axis=0, keepdims=True)))[0]), 3),
        "readout_cosine": round(float(cosines.mean()) / (K * (K - 1)), 4) if K > 1 and len(cosines) else None,
    }


def collapse_warning(report: Mapping[str, Any]) -> str:
    """What is wrong with the bridges of a ``bridge_report``, and the mend; nothing where they differ."""
    cosine = report.get("readout_cosine")
    if cosine is None or cosine <= COLLAPSED:
        return ""
    return (
        f"the {report['bridges']} bridges have collapsed: the read-outs of a user have a mean cosine of {cosine}"
        f" (perplexity {report['perplexity']}); lower bridge_temperature, or switch the part bea off"
    )


def _entropy(w: NDArray[np.float64]) -> NDArray[np.float64]:
    entropy: NDArray[np.float64] = -(w * np.log(np.maximum(w, 1e-30))).sum(axis=-1)
    return entropy
