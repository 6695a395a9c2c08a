"""JSON Schemas and the AsyncAPI 3 document of the topics, generated from the event types and ``topics/*.toml``.

``python -m aif_stream.bus.schemas`` writes ``topics/schemas/*.json`` and ``topics/asyncapi.yaml``; ``--check`` writes
nothing and exits 3 when a file differs. PyYAML comes with the ``dev`` extra.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import msgspec

from aif_stream import __version__
from aif_stream.bus.topics import TopicSpec, load_topics
from aif_stream.domain.envelope import BINARY, JSON
from aif_stream.domain.events import Behavior, EventType, ItemUpserted, UserUpserted
from aif_stream.domain.explanations import (
    EXPLANATION_RESULT_EVENT,
    EXPLANATION_TASK_EVENT,
    ExplanationResult,
    ExplanationTask,
)
from aif_stream.domain.versions import VERSION_EVENT, VersionRecord
from aif_stream.errors import AifError, SettingsError

# Struct of the value -> its ce_type.
EVENT_TYPES: Final[dict[type[msgspec.Struct], str]] = {
    ItemUpserted: EventType.ITEM_UPSERTED.value,
    UserUpserted: EventType.USER_UPSERTED.value,
    Behavior: EventType.BEHAVIOR.value,
    VersionRecord: VERSION_EVENT,
    ExplanationTask: EXPLANATION_TASK_EVENT,
    ExplanationResult: EXPLANATION_RESULT_EVENT,
}
_DRAFT: Final = "https://json-schema.org/draft/2020-12/schema"
_BY_NAME: Final = {struct.__name__: struct for struct in EVENT_TYPES}


def documents(directory: Path) -> dict[str, str]:
    """Path below ``directory`` (a ``topics/``) -> text of every generated file. Raises ``TopicError``."""
    specs = load_topics(directory)
    found = {f"schemas/{struct.__name__}.json": _json(json_schema(struct)) for struct in EVENT_TYPES}
    found["asyncapi.yaml"] = _yaml(asyncapi(specs))
    return found


def json_schema(struct: type[msgspec.Struct]) -> dict[str, Any]:
    """The schema of one event's value; fields that it does not name are allowed and kept."""
    (top,), components = schema_components([struct], "#/$defs/{name}")
    own = components.pop(struct.__name__)
    schema = {"$schema": _DRAFT, "$id": f"{struct.__name__}.json", **own}
    if components:
        schema["$defs"] = components
    assert top == {"$ref": f"#/$defs/{struct.__name__}"}  # noqa: S101  # msgspec gives a struct a component of its own
    return schema


def schema_components(
    types: Iterable[Any], ref_template: str
) -> tuple[tuple[dict[str, Any], ...], dict[str, dict[str, Any]]]:
    """``msgspec.json.schema_components`` with every description as ``inspect.cleandoc`` leaves it. A description is a
    docstring; whether it keeps the indentation of the source depends on the versions of msgspec and Python."""
    tops, components = msgspec.json.schema_components(types, ref_template=ref_template)
    return tops, {name: _without_indentation(schema) for name, schema in components.items()}


def _without_indentation(node: Any) -> Any:
    if isinstance(node, list):
        return [_without_indentation(value) for value in node]
    if not isinstance(node, dict):
        return node
    return {
        name: inspect.cleandoc(value)
        if name == "description" and isinstance(value, str)
        else _without_indentation(value)
        for name, value in node.items()
    }


def asyncapi(specs: dict[str, TopicSpec]) -> dict[str, Any]:
    """The AsyncAPI 3.0 document: a channel per topic, its messages, its Kafka settings and its promise."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "aif_stream",
            "version": __version__,
            "description": "CloudEvents 1.0 over Kafka, binary mode: ce_* headers, the value is the data.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": JSON,
        "channels": {_channel_name(spec): _channel(spec) for spec in specs.values()},
        "operations": {f"read.{_channel_name(spec)}": _operation(spec) for spec in specs.values()},
        "components": {"schemas": {"CloudEventHeaders": _HEADERS}},
    }


_HEADERS: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["ce_specversion", "ce_type", "ce_id", "ce_source", "ce_time"],
    "properties": {
        "ce_specversion": {"const": "1.0"},
        "ce_type": {"type": "string"},
        "ce_id": {"type": "string", "description": "unique per source"},
        "ce_source": {"type": "string"},
        "ce_time": {"type": "string", "format": "date-time", "description": "event time, UTC, milliseconds"},
        "content-type": {"type": "string"},
    },
}


def _channel_name(spec: TopicSpec) -> str:
    return spec.name.replace(".", "-")


def _channel(spec: TopicSpec) -> dict[str, Any]:
    return {
        "address": spec.name,
        "description": spec.promise,
        "messages": _messages(spec),
        "bindings": {
            "kafka": {
                "topic": spec.name,
                "partitions": spec.partitions,
                "replicas": spec.replication,
                "topicConfiguration": {"cleanup.policy": [spec.cleanup]},
                "bindingVersion": "0.5.0",
            }
        },
        "x-kafka-config": dict(spec.config),
        "x-fields": dict(spec.fields),
    }


def _messages(spec: TopicSpec) -> dict[str, Any]:
    messages: dict[str, Any] = {}
    for name in spec.events:
        messages[name] = _message(spec, EVENT_TYPES[_BY_NAME[name]], JSON, {"$ref": f"./schemas/{name}.json"})
    if spec.removal:
        removal = _message(spec, spec.removal, JSON, {"type": "null"})
        messages["Removed"] = {**removal, "summary": "a null value (tombstone)"}
    if not messages:
        messages["Record"] = {
            "name": spec.name,
            "contentType": BINARY if spec.encoding == "binary" else JSON,
            "payload": _payload(spec),
            **_key(spec),
        }
    return messages


def _payload(spec: TopicSpec) -> dict[str, Any]:
    if spec.encoding == "binary":
        return {"type": "string", "format": "binary", "description": spec.fields["value"]}
    return {"type": "object", "properties": {name: {"description": text} for name, text in spec.fields.items()}}


def _message(spec: TopicSpec, ce_type: str, content_type: str, payload: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": ce_type,
        "contentType": content_type,
        "headers": {"$ref": "#/components/schemas/CloudEventHeaders"},
        "payload": payload,
        **_key(spec),
    }


def _key(spec: TopicSpec) -> dict[str, Any]:
    if not spec.key:
        return {}
    return {"bindings": {"kafka": {"key": {"type": "string", "description": spec.key}, "bindingVersion": "0.5.0"}}}


def _operation(spec: TopicSpec) -> dict[str, Any]:
    return {"action": "receive", "channel": {"$ref": f"#/channels/{_channel_name(spec)}"}}


def _json(schema: dict[str, Any]) -> str:
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _yaml(document: dict[str, Any]) -> str:
    try:
        import yaml
    except ModuleNotFoundError:
        raise SettingsError("asyncapi.yaml is written by PyYAML", mend="in a checkout: pip install '.[dev]'") from None
    text = yaml.safe_dump(document, sort_keys=False, width=110, allow_unicode=True)
    return f"# Generated by `python -m aif_stream.bus.schemas`; do not edit.\n{text}"


def main(arguments: list[str], directory: Path | None = None) -> int:
    """Write the files, or with ``--check`` compare them. Exit code: 0 done, 1 failed, 3 they differ."""
    target = directory or Path(__file__).parents[2] / "topics"
    try:
        wanted = documents(target)
    except AifError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    drifted = [name for name, text in wanted.items() if _read(target / name) != text]
    if "--check" in arguments:
        for name in drifted:
            sys.stderr.write(f"{name} is not what the code says → python -m aif_stream.bus.schemas\n")
        return 3 if drifted else 0
    for name in drifted:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_text(wanted[name], encoding="utf-8")
        sys.stdout.write(f"wrote {name}\n")
    return 0


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
