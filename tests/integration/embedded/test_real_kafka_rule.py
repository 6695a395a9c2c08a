"""Without Java or Maven the real-Kafka tests are skipped with the reason, or fail when that is forbidden."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.stack import kafka_jars_or_skip


@pytest.fixture
def bare_machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("AIF_REQUIRE_KAFKA", raising=False)
    monkeypatch.delenv("AIF_TEST_KAFKA_HOME", raising=False)
    return monkeypatch


@pytest.mark.usefixtures("bare_machine")
async def test_a_machine_without_java_skips_and_says_why() -> None:
    with pytest.raises(pytest.skip.Exception, match="no working `java` on PATH"):
        await kafka_jars_or_skip()


async def test_a_required_kafka_fails_instead_of_skipping(bare_machine: pytest.MonkeyPatch) -> None:
    bare_machine.setenv("AIF_REQUIRE_KAFKA", "1")
    with pytest.raises(pytest.fail.Exception, match="no working `java` on PATH"):
        await kafka_jars_or_skip()


@pytest.mark.parametrize(("version", "reason"), [("1.8.0_402", "version 8, 17"), ("11.0.2", "version 11, 17")])
async def test_an_old_java_is_not_enough(
    bare_machine: pytest.MonkeyPatch, tmp_path: Path, version: str, reason: str
) -> None:
    java = tmp_path / "java"
    java.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\"' >&2\n")
    java.chmod(0o755)
    bare_machine.setenv("PATH", f"{tmp_path}:/bin")
    with pytest.raises(pytest.skip.Exception, match=reason):
        await kafka_jars_or_skip()
