"""``--as-of``: the index as it was, on real Kafka (with 100,000 later updates: ``python -m drills.as_of``)."""

from __future__ import annotations

from pathlib import Path

import pytest

from aif_stream.clock import now_ms
from aif_stream.embedded.kafka import KafkaCluster
from aif_stream.errors import BadInput, VersionError
from aif_stream.nearline import rollout
from aif_stream.runtime.as_of import as_of_server
from drills.as_of import prove, wrong
from tests.model_builders import small_version
from tests.nearline_builders import artefact, kafka_settings, worker


async def test_the_index_as_of_a_time_is_the_one_that_was_there_row_by_row(
    kafka_cluster: KafkaCluster, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    settings = await kafka_settings(kafka_cluster, redis_url, tmp_path, topic_prefix)
    before_ms = now_ms()
    model = small_version()
    async with worker(settings):
        await rollout.publish_version(settings, artefact(tmp_path / "artefact", model), activate=True)
        result = await prove(settings, model, before=600, updates=600, items=150)
    assert not wrong(result), result
    assert result["ranked"] == 10
    for at_ms, error, says in (
        (now_ms() + 60_000, BadInput, "future"),
        (now_ms() - 25 * 3_600_000, BadInput, "aif.user-updates keeps"),
        (before_ms - 1000, VersionError, "no model version was active then"),
    ):
        with pytest.raises(error, match=says):
            async with as_of_server(settings, at_ms, lambda _: None):
                pass
