from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Histogram

from aif_stream.nearline.freshness import seen_in_redis
from aif_stream.telemetry import FRESHNESS_LAG

_BOUNDS = tuple(bound for bound in FRESHNESS_LAG.labels("redis")._upper_bounds if bound != float("inf"))


@given(st.lists(st.integers(min_value=-5_000, max_value=200_000_000), max_size=50))
def test_a_batch_is_counted_as_if_each_lag_had_been_observed(lags_ms: list[int]) -> None:
    one_by_one = Histogram("one_by_one", "…", buckets=_BOUNDS, registry=None)
    for lag_ms in lags_ms:
        one_by_one.observe(max(0, lag_ms) / 1000)
    before = _counts(FRESHNESS_LAG.labels("redis"))
    seen_in_redis([1_700_000_000_000 - lag_ms for lag_ms in lags_ms], 1_700_000_000_000)
    after = _counts(FRESHNESS_LAG.labels("redis"))
    expected = _counts(one_by_one)
    assert [a - b for a, b in zip(after[:-1], before[:-1], strict=True)] == expected[:-1]
    assert abs(after[-1] - before[-1] - expected[-1]) < 1e-6 * (1 + after[-1])


def _counts(histogram: Histogram) -> list[float]:
    return [*(bucket.get() for bucket in histogram._buckets), histogram._sum.get()]
