"""Settings: layers, origins, masks, and errors that name the variable."""

from __future__ import annotations

from pathlib import Path

import pytest

from aif_stream.errors import SettingsError
from aif_stream.settings import load


def test_the_environment_wins_over_the_file_and_the_file_over_the_default(tmp_path: Path) -> None:
    file = tmp_path / "aif.toml"
    file.write_text('redis_url = "redis://file:1/0"\nindex_buckets = 64\n')
    settings, origins = load(file, {"AIF_REDIS_URL": "redis://env:1/0", "AIF_HOME": str(tmp_path)})
    assert (settings.redis_url, settings.index_buckets, settings.max_k) == ("redis://env:1/0", 64, 1000)
    by_name = {origin.name: origin.origin for origin in origins}
    assert by_name["redis_url"] == "environment"
    assert by_name["index_buckets"] == str(file)
    assert by_name["max_k"] == "default"


def test_a_running_stack_lends_its_addresses_unless_the_environment_says_otherwise(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('kafka_bootstrap = "127.0.0.1:5"\nserve_url = "http://127.0.0.1:6"\n')
    settings, _ = load(None, {"AIF_HOME": str(tmp_path), "AIF_KAFKA_BOOTSTRAP": "other:1"})
    assert (settings.kafka_bootstrap, settings.serve_url) == ("other:1", "http://127.0.0.1:6")


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"AIF_INDEX_BUCKETS": "many"}, "AIF_INDEX_BUCKETS"),
        ({"AIF_INDEX_BUCKETS": "0"}, "AIF_INDEX_BUCKETS"),
        ({"AIF_JOIN": "feast"}, "AIF_JOIN"),
        ({"AIF_REDIS_CLUSTER": "perhaps"}, "AIF_REDIS_CLUSTER"),
        ({"AIF_DEADLINE_MS": "-1"}, "AIF_DEADLINE_MS"),
    ],
)
def test_a_wrong_value_stops_the_start_naming_the_variable(environ: dict[str, str], named: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=named):
        load(None, {**environ, "AIF_HOME": str(tmp_path)})


def test_an_unknown_name_in_a_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "aif.toml"
    file.write_text("redis_uri = 'x'\n")
    with pytest.raises(SettingsError, match="redis_uri"):
        load(file, {"AIF_HOME": str(tmp_path)})


def test_secrets_are_masked_and_addresses_stay_readable(tmp_path: Path) -> None:
    environ = {
        "AIF_HOME": str(tmp_path),
        "AIF_REDIS_URL": "rediss://app:hunter2@db:6380/0",
        "AIF_KAFKA_PASSWORD": "hunter2",
    }
    _, origins = load(None, environ)
    shown = {origin.name: origin.value for origin in origins}
    assert shown["redis_url"] == "rediss://app:********@db:6380/0"
    assert "hunter2" not in str(origins)
