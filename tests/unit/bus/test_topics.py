"""Topic contracts: what the files promise, and what a wrong file is told."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import jsonschema
import msgspec
import pytest
import yaml

from aif_stream.bus import schemas, topics
from aif_stream.bus.lines import KINDS, parse_line
from aif_stream.bus.topics import TopicSpec, contracts_dir, load_topics, topic_name
from aif_stream.domain.explanations import ExplanationResult, decode_task
from aif_stream.domain.versions import decode_version
from aif_stream.errors import TopicError
from aif_stream.online import openapi
from aif_stream.settings import Settings

TOPICS = Path(__file__).parents[3] / "topics"
SPECS = load_topics()
NAMES = {
    topics.ITEM_UPDATES,
    topics.USER_UPDATES,
    topics.BEHAVIORS,
    topics.MODEL_UPDATES,
    topics.REBUILD_TASKS,
    topics.N2O_ROWS,
    topics.REQUESTS,
    topics.DEAD_LETTERS,
    topics.EXPLANATIONS,
    *topics.EXPLANATION_REQUESTS.values(),
}


def test_there_is_a_contract_for_each_topic_in_use_and_for_no_other() -> None:
    assert set(SPECS) == NAMES
    assert {path.stem for path in TOPICS.glob("*.toml")} == NAMES


@pytest.mark.parametrize("spec", SPECS.values(), ids=lambda spec: spec.name)
def test_every_topic_uses_append_time_and_says_its_promise_and_fields(spec: TopicSpec) -> None:
    assert spec.config["message.timestamp.type"] == "LogAppendTime"
    assert spec.promise
    assert spec.fields
    assert spec.cleanup == "delete" or spec.key


def test_dead_letters_take_the_largest_source_record_and_64_kib_more() -> None:
    sources = [topics.ITEM_UPDATES, topics.USER_UPDATES, topics.BEHAVIORS]
    largest = max(SPECS[name].max_message_bytes for name in sources)
    assert SPECS[topics.DEAD_LETTERS].max_message_bytes == largest + 64 * 1024


def test_versions_have_one_order() -> None:
    assert SPECS[topics.MODEL_UPDATES].partitions == 1


def test_a_topic_may_lose_one_broker_and_still_be_written() -> None:
    spec = SPECS[topics.ITEM_UPDATES]
    assert spec.kafka_config(3)["min.insync.replicas"] == "2"
    assert spec.kafka_config(1)["min.insync.replicas"] == "1"


def test_the_prefix_stands_before_the_name() -> None:
    assert topic_name(Settings(topic_prefix="eu."), topics.BEHAVIORS) == "eu.aif.behaviors"


def test_the_setting_names_another_directory(tmp_path: Path) -> None:
    shutil.copy(TOPICS / "aif.behaviors.toml", tmp_path)
    assert list(load_topics(contracts_dir(Settings(topics_dir=tmp_path)))) == [topics.BEHAVIORS]


def test_without_a_checkout_the_contracts_are_the_installed_package_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An installed wheel: aif_stream/contracts/ is package data, and there is no topics/ beside the package.
    package = tmp_path / "aif_stream_installed"
    package.mkdir()
    shutil.copytree(TOPICS, package / "contracts")
    (package / "__init__.py").write_text("")
    (package / "contracts" / "__init__.py").write_text("")
    monkeypatch.setattr(topics, "__file__", str(package / "bus" / "topics.py"))
    monkeypatch.setattr(topics, "_PACKAGE", "aif_stream_installed.contracts")
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        assert set(load_topics(contracts_dir())) == NAMES
    finally:
        for name in [name for name in sys.modules if name.startswith("aif_stream_installed")]:
            del sys.modules[name]


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('key = "user_id"', "", "'key' is missing"),
        ("partitions = 8", "partitions = 0", "partitions must be a positive integer"),
        ('cleanup = "delete"', 'cleanup = "both"', "compact or delete"),
        ('key = "user_id"\n', 'key = ""\nsurprise = 1\n', "unknown entries"),
        ("LogAppendTime", "CreateTime", "LogAppendTime"),
        ('"604800000"', "604800000", "config values are strings"),
        ("[config]", "[config", "aif.behaviors.toml"),
    ],
)
def test_a_wrong_contract_names_the_file_and_the_problem(tmp_path: Path, old: str, new: str, problem: str) -> None:
    text = (TOPICS / "aif.behaviors.toml").read_text()
    (tmp_path / "aif.behaviors.toml").write_text(text.replace(old, new, 1))
    with pytest.raises(TopicError, match=r"aif\.behaviors\.toml") as caught:
        load_topics(tmp_path)
    assert problem in str(caught.value)


def test_a_directory_without_contracts_is_refused(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "missing"):
        with pytest.raises(TopicError, match="no topic contracts"):
            load_topics(directory)


def test_schemas_and_asyncapi_are_what_the_code_says() -> None:
    assert schemas.main(["--check"]) == 0, "run `python -m aif_stream.bus.schemas`"


def _descriptions(node: object) -> list[str]:
    if isinstance(node, dict):
        own = [node["description"]] if isinstance(node.get("description"), str) else []
        return own + [text for value in node.values() for text in _descriptions(value)]
    if isinstance(node, list):
        return [text for value in node for text in _descriptions(value)]
    return []


def test_schema_descriptions_hold_no_source_indentation() -> None:
    found = _descriptions([*map(schemas.json_schema, schemas.EVENT_TYPES), openapi.document()])
    assert any("\n" in text for text in found)
    assert [text for text in found if "\n " in text] == []


def test_drift_is_found_and_mended(tmp_path: Path) -> None:
    shutil.copytree(TOPICS, tmp_path / "topics")
    (tmp_path / "topics" / "schemas" / "Behavior.json").write_text("{}")
    (tmp_path / "topics" / "asyncapi.yaml").unlink()
    assert schemas.main(["--check"], tmp_path / "topics") == 3
    assert schemas.main([], tmp_path / "topics") == 0
    assert schemas.main(["--check"], tmp_path / "topics") == 0


def test_every_reference_of_the_asyncapi_document_leads_somewhere() -> None:
    document = yaml.safe_load((TOPICS / "asyncapi.yaml").read_text())
    assert document["asyncapi"].startswith("3.")
    assert {channel["address"] for channel in document["channels"].values()} == NAMES
    for reference in _references(document):
        if reference.startswith("#/"):
            node = document
            for part in reference[2:].split("/"):
                node = node[part]
        else:
            assert (TOPICS / reference).is_file()


def _references(node: object) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if "$ref" in node else []
        return own + [ref for value in node.values() for ref in _references(value)]
    if isinstance(node, list):
        return [ref for value in node for ref in _references(value)]
    return []


@pytest.mark.parametrize("spec", [spec for spec in SPECS.values() if spec.events], ids=lambda spec: spec.name)
def test_samples_fit_the_schema_and_the_decoder(spec: TopicSpec) -> None:
    lines = (TOPICS / "samples" / f"{spec.name}.jsonl").read_bytes().splitlines()
    schema = json.loads((TOPICS / "schemas" / f"{spec.events[0]}.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    kinds = {kind.topic: kind for kind in KINDS.values()}
    assert len(lines) >= 3
    for line in lines:
        jsonschema.validate(json.loads(line), schema, cls=jsonschema.Draft202012Validator)
        if spec.name in kinds:
            parse_line(kinds[spec.name], line, spec.max_record_bytes)
        elif spec.name == topics.MODEL_UPDATES:
            decode_version(line)
        elif spec.name == topics.EXPLANATIONS:
            msgspec.json.decode(line, type=ExplanationResult)
        else:
            assert decode_task(line).priority == spec.name.rpartition(".")[2]
