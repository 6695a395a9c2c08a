"""What a server counts of its answers: kept a while, and never missing where somebody looks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from msgspec.structs import replace
from prometheus_client import REGISTRY

from aif_stream.domain.request import Coverage, RankAnswer
from aif_stream.online.status import RequestLog, Window
from aif_stream.telemetry import SERVED_AGE
from tests.request_log_builders import answered

ANSWER = answered(["7"]).answer


def sampled() -> dict[tuple[str, ...], float]:
    """Every sample of the series of answers, by name and labels."""
    names = ("aif_rank_seconds", "aif_rank_version_seconds", "aif_overlap_saved_seconds", "aif_served_age_seconds")
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in REGISTRY.collect()
        if family.name in (*names, "aif_rank_requests")
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def grown(work: Callable[[], None]) -> dict[tuple[str, ...], float]:
    """By how much samples have grown; without those that have not."""
    before = sampled()
    work()
    found = {name: value - before.get(name, 0.0) for name, value in sampled().items()}
    return {name: value for name, value in found.items() if value}


def some_answers(count: int) -> list[RankAnswer]:
    answers = [replace(ANSWER, timings_ms=replace(ANSWER.timings_ms, total=1.0 + n)) for n in range(count)]
    answers[1::2] = [replace(each, model_version="v2") for each in answers[1::2]]
    answers[0] = replace(answers[0], coverage=Coverage(0, 0, 0, 0))
    return answers


@pytest.mark.parametrize("count", [1, 5, 600])
def test_a_scrape_sees_every_answer_and_all_of_it_is_what_each_would_have_added(count: int) -> None:
    SERVED_AGE._sum.set(
        0.0
    )  # other tests have rows of years ago: seconds added to their sum would be lost in its digits
    log = RequestLog()
    answers = some_answers(count)

    def all_at_once() -> None:
        for each in answers:
            log.answer(each)

    def one_by_one() -> None:
        for each in answers:
            log.answer(each)
            log.flush()

    found = grown(all_at_once)
    assert found == pytest.approx(grown(one_by_one))
    assert found["aif_rank_requests_total", "200"] == count
    assert found["aif_rank_seconds_count", "total"] == count
    assert found["aif_rank_version_seconds_count", "v1"] == (count + 1) // 2
    assert found.get(("aif_served_age_seconds_count",), 0) == count - 1


def test_the_status_page_sees_every_answer() -> None:
    log = RequestLog()
    for each in some_answers(5):
        log.answer(each)
    view = log.view()
    assert view["total_ms"] == {"p50": 3.0, "p99": pytest.approx(4.96), "max": 5.0}
    assert (view["total"], view["by_status"], view["per_s"]) == (5, {"200": 5}, 0.5)


@pytest.mark.parametrize("steps", [[3], [7], [8], [9], [20], [5, 5], [7, 1, 1, 12]])
def test_a_window_keeps_the_last_values_however_they_come(steps: list[int]) -> None:
    window, expected = Window(8), Window(8)
    values = iter(np.arange(100.0))
    for step in steps:
        block = np.array([next(values) for _ in range(step)])
        window.extend(block)
        expected.add(*block)
    assert window.count == expected.count
    assert window.values().tolist() == expected.values().tolist()
