from __future__ import annotations

from aif_stream.online.cache import AgedCache


def test_it_never_holds_more_than_its_bytes_and_drops_the_least_used_first() -> None:
    cache: AgedCache[str, int] = AgedCache(100)
    cache.put("a", 1, 40)
    cache.put("b", 2, 40)
    assert cache.get("a") is not None
    cache.put("c", 3, 40)
    assert cache.get("b") is None
    assert cache.get("a") is not None
    assert cache.bytes == 80
    cache.put("a", 4, 10)
    assert cache.bytes == 50
    assert len(cache) == 2


def test_ages_are_told_and_older_values_than_asked_for_are_not_given() -> None:
    cache: AgedCache[str, int] = AgedCache(100)
    cache.put("a", 1, 1, age_s=5.0)
    found = cache.get("a")
    assert found is not None
    assert found[1] >= 5.0
    assert cache.get("a", max_age_s=4.0) is None
