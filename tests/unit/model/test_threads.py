"""One version serves several threads: no state between calls."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from tests.model_builders import make_history, make_items, small_version


def test_threads_that_share_a_version_get_what_one_thread_gets() -> None:
    version = small_version()
    items = make_items(400)
    rows = version.item_side(items, version.layout.dtype).rows

    def request(seed: int) -> bytes:
        some = np.random.default_rng(seed).integers(400, size=30)
        history = make_history([items[at] for at in some], seed)
        user = version.user_side({"age": 20 + seed}, history, rows[some], np.ones(30, dtype=bool))
        computed = version.item_side([items[at] for at in some], version.layout.dtype).rows
        assert computed.tobytes() == rows[some].tobytes()
        return version.score(user, rows).tobytes()

    alone = [request(seed) for seed in range(24)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(request, range(24)))
    assert together == alone
