from __future__ import annotations

import numpy as np
import pytest

from aif_stream.errors import IndexRefused
from aif_stream.index.mirror import Mirror
from aif_stream.index.store import N2OStore
from tests.index_builders import LAYOUT, item, removal, rows_for


async def test_a_load_brings_every_row_and_the_tombstones(store: N2OStore) -> None:
    await store.add_version("v1")
    batch = [item(str(n), 100, n) for n in range(3_000)]
    await store.write_live(batch, {"v1": rows_for(batch)})
    gone = [removal("5", 101)]
    await store.write_live(gone, {"v1": rows_for(gone)})
    mirror = Mirror(LAYOUT, "v1", memory_mb=1)
    await mirror.load(store)
    with mirror.reading() as view:
        rows, found = view.join(np.arange(3_000, dtype=np.uint64))
    assert np.flatnonzero(~found).tolist() == [5]
    assert np.array_equal(rows[found], rows_for(batch)[found])
    assert (len(mirror), mirror.apply(np.array([5], np.uint64), rows_for([item("5", 100)])).any()) == (3_000, False)


async def test_a_catalogue_that_does_not_fit_is_refused_with_the_figure_and_the_other_road(store: N2OStore) -> None:
    await store.add_version("v1")
    batch = [item(str(n), 100, n) for n in range(10_000)]
    await store.write_live(batch, {"v1": rows_for(batch)})
    mirror = Mirror(LAYOUT, "v1", memory_mb=1)
    with pytest.raises(IndexRefused, match=r"10000 rows.*AIF_JOIN=redis"):
        await mirror.load(store)
    assert len(mirror) == 0
