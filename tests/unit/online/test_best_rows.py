"""The rows that are kept of a part scored in place are those that gave the scores, or the part is done otherwise."""

from __future__ import annotations

import numpy as np
import pytest

from aif_stream.domain.ids import Keys
from aif_stream.domain.row import Rows
from aif_stream.index.mirror import Mirror
from aif_stream.kernels.score import Scored
from aif_stream.online.executor import ComputeThreads
from aif_stream.online.facts_keeper import _item_rows
from aif_stream.online.join import MirrorJoin
from aif_stream.online.progress import with_best_rows
from aif_stream.online.scoring import Part, part_in_place, rank
from aif_stream.online.serving import unknown_user
from tests.model_builders import make_items, small_version

MODEL = small_version()
USER = unknown_user(MODEL)
COUNT, K = 40, 7


def _scored() -> tuple[Mirror, Part, Rows]:
    stamps = np.ones(COUNT, np.uint64)
    rows = MODEL.item_rows(make_items(COUNT), stamps, stamps, 1).rows
    keys: Keys = np.arange(1, COUNT + 1, dtype=np.uint64)
    mirror = Mirror(MODEL.layout, MODEL.name, memory_mb=1)
    mirror.apply(keys, rows)
    scores = MODEL.score(USER, rows)
    scored = Scored(scores, rows["computed_ms"].astype(np.uint64), COUNT, 1, 0.0)
    return mirror, part_in_place(keys, scored, MODEL.layout), rows


def test_the_answers_rows_and_the_cuts_are_the_ones_that_were_scored() -> None:
    mirror, part, rows = _scored()
    with ComputeThreads(1) as threads:
        assert with_best_rows(part, K, MODEL, USER, MirrorJoin(mirror, threads))
    ranked = rank([part], K, 1)
    kept, cut = _item_rows([part], ranked.keys)
    order = np.argsort(-part.scores, kind="stable")[: K + 1]
    assert kept.tobytes() == rows[order].tobytes()
    assert cut == (int(part.keys[order[K]]), float(part.scores[order[K]]))


@pytest.mark.parametrize("place", [0, K])
def test_a_row_that_was_replaced_since_is_noticed(place: int) -> None:
    mirror, part, rows = _scored()
    at = int(np.argsort(-part.scores, kind="stable")[place])
    newer = rows[at : at + 1].copy()
    newer["event_time_ms"] += 1
    newer["t"] += 1
    mirror.apply(part.keys[at : at + 1], newer)
    with ComputeThreads(1) as threads:
        assert not with_best_rows(part, K, MODEL, USER, MirrorJoin(mirror, threads))
