"""What a version costs per request once the candidates are known: measured milliseconds and counted operations."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from aif_stream.clock import cpu_ms
from aif_stream.domain.history import ENTRY
from aif_stream.domain.row import Rows
from aif_stream.model.attention import DIN_HIDDEN
from aif_stream.model.config import Kind, ModelConfig, Part
from aif_stream.model.version import ModelVersion

COST_B: Final = 10_000
COST_L: Final = 1_000
_RUNS: Final = 21
_ENOUGH_S: Final = 4.0  # attention over 10⁷ pairs takes seconds: three runs of it must do


@contextmanager
def one_thread() -> Iterator[None]:
    """torch computes with one thread meanwhile: CPU time is then the wall time of a core that does nothing else."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def online_ms(version: ModelVersion, rows: Rows, units: NDArray[np.float32] | None) -> float:
    """Milliseconds from user side and candidate rows to scores, on rows drawn from ``rows`` (N) and, of a model that
    is judged only, ``units`` (N, V). CPU time of one thread, so that what else the machine does enters by its caches
    alone. Median of 21 runs, of fewer where they take long."""
    random = np.random.default_rng(0)
    shown, seen = (random.integers(len(rows), size=size) for size in (COST_B, COST_L))
    history = np.zeros(COST_L, dtype=ENTRY)
    times = np.sort(random.integers(1 << 40, size=COST_L)).astype(np.uint64)
    history["time_kind"] = times << np.uint64(3) | random.integers(1, 5, size=COST_L).astype(np.uint64)
    candidates, theirs = rows[shown], None if units is None else units[shown]
    own = None if units is None else units[seen]
    spent: list[float] = []
    with one_thread():
        user = version.user_side(None, history, rows[seen], np.ones(COST_L, dtype=np.bool_), own)
        version.score(user, candidates, theirs)  # pages, caches, the allocator
        while len(spent) < _RUNS and (len(spent) < 3 or sum(spent) < 1000 * _ENOUGH_S):
            began = cpu_ms()
            version.score(user, candidates, theirs)
            spent.append(cpu_ms() - began)
    return round(statistics.median(spent), 3)


def mflop(config: ModelConfig) -> float:
    """Floating-point operations (multiply and add count two) per 10,000 candidates; popcounts are none of them."""
    D, H, T = config.width, config.hidden, config.tier_columns
    each = 2 * D
    if config.kind is not Kind.TWOTOWER:
        each += 2 * D * H + 2 * H + 7 * H + 2 * H * config.head + 3 * config.head
    if config.has(Part.BEA):
        each += 2 * config.bridges * H
        each += (2 * config.bridges * D + D + 2 * D * H) if config.bridge_product else 0
    if config.has(Part.LSH):
        each += config.signature_bits // 8 * H
    if config.has(Part.TIERS):
        each += H if config.codes else 2 * T * H + 3 * T
    if config.has(Part.SIM) and config.second_key:
        each += H
    if config.offline:
        each += _attention(config)
    return round(each * COST_B / 1e6, 3)


def _attention(config: ModelConfig) -> int:
    """Operations per candidate over L entries; keys and values are the user's side."""
    D, L, A = config.width, COST_L, DIN_HIDDEN
    query = config.signature_bits if config.kind is Kind.HAMMING else D
    pair = D + 2 * D * A + 3 * A + 2 * A if config.kind is Kind.DIN else 2 * query + 3
    each = L * (pair + 2 * D) + 2 * D * D + 4 * D * config.hidden + D
    return each + L * (2 * config.content_width + config.tiers) if config.has(Part.TIERS) and config.cosines else each
