"""The OpenAPI 3.1 document, generated from the types that decode requests and encode answers."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec

from aif_stream import __version__
from aif_stream.bus.schemas import schema_components
from aif_stream.domain.events import ItemUpserted
from aif_stream.domain.explanations import ExplanationRequest, State
from aif_stream.domain.request import RankAnswer, RankRequest


class FieldError(msgspec.Struct, frozen=True):
    """One wrong field."""

    field: str
    problem: str


class Problem(msgspec.Struct, frozen=True):
    """RFC 9457 (``application/problem+json``)."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[FieldError]


class Reject(msgspec.Struct, frozen=True):
    """One event that was not accepted; ``line`` counts from 1."""

    line: int
    problem: str


class PublishReport(msgspec.Struct, frozen=True):
    """What became of the events of one request."""

    sent: int
    acknowledged: int
    rejected: int
    rejects: list[Reject]


class ExplanationAccepted(msgspec.Struct, frozen=True):
    """The answer to ``POST /v1/explanations``; ``joined``: somebody had asked already."""

    explanation_id: str
    state: State
    joined: bool


_TYPES = (RankRequest, RankAnswer, Problem, PublishReport, ItemUpserted, ExplanationRequest, ExplanationAccepted)
_TEXT = {"text/plain": {"schema": {"type": "string"}}}
_EVENTS = {"text/event-stream": {"schema": {"type": "string"}}}
_OBJECT = {"application/json": {"schema": {"type": "object"}}}


@cache
def document() -> dict[str, Any]:
    """The whole document."""
    _, components = schema_components(_TYPES, "#/components/schemas/{name}")
    item = _ref("ItemUpserted")
    return {
        "openapi": "3.1.0",
        "info": {"title": "aif_stream serve", "version": __version__, "license": {"name": "Apache-2.0"}},
        "paths": {
            "/v1/rank": {
                "post": {
                    "operationId": "rank",
                    "summary": "Rank candidates for a user",
                    "requestBody": {"required": True, "content": _json(_ref("RankRequest"))},
                    "responses": {
                        "200": {
                            "description": "the best k, and what was missing",
                            "content": _json(_ref("RankAnswer")),
                        },
                        **_problems(
                            {
                                "400": "the body is not JSON",
                                "409": "another model version is served",
                                "413": "the body is too large",
                                "422": "a field is wrong; errors names it",
                                "503": "not ready, or nothing to rank; Retry-After says when to try again",
                            }
                        ),
                    },
                }
            },
            "/v1/events/items": {
                "post": {
                    "operationId": "publishItems",
                    "summary": "Publish one item, an array of items, or JSON lines",
                    "requestBody": {
                        "required": True,
                        "content": {
                            **_json({"oneOf": [item, {"type": "array", "items": item}]}),
                            "application/x-ndjson": {"schema": {"type": "string"}},
                        },
                    },
                    "responses": {
                        "202": {"description": "acknowledged by Kafka", "content": _json(_ref("PublishReport"))},
                        **_problems(
                            {
                                "400": "the body is not JSON",
                                "413": "the body is too large",
                                "422": "the one item of the body is wrong",
                                "503": "Kafka does not answer",
                            }
                        ),
                    },
                }
            },
            **_explanations(),
            "/v1/status": _get("status", "Versions, mirror, freshness and requests of this server", _OBJECT),
            "/livez": _get("livez", "The process runs", _OBJECT),
            "/startupz": _get("startupz", "The start is over", _OBJECT, "503"),
            "/readyz": _get("readyz", "Requests can be answered", _OBJECT, "503"),
            "/metrics": _get("metrics", "Prometheus metrics", _TEXT),
        },
        "components": {"schemas": components},
    }


def _explanations() -> dict[str, Any]:
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
    unknown = _problems(
        {"404": "no such explanation", "503": "Redis does not answer, or has no record yet to cancel; try again"}
    )
    stream = {
        "200": {"description": "server-sent events; ids resume", "content": _EVENTS},
        "204": {"description": "over"},
    }
    one = {"200": {"description": "ok", "content": _OBJECT}, **unknown}
    return {
        "/v1/explanations": {
            "post": {
                "operationId": "explain",
                "summary": "Ask why an item of an answer has its score; asking twice joins the running work",
                "requestBody": {"required": True, "content": _json(_ref("ExplanationRequest"))},
                "responses": {
                    "202": {
                        "description": "acknowledged by Kafka; Location names it",
                        "content": _json(_ref("ExplanationAccepted")),
                    },
                    **_problems(
                        {
                            "400": "the body is not JSON",
                            "404": "no facts of such a request",
                            "409": "the version that answered is retired",
                            "410": "the facts have expired",
                            "422": "a field is wrong, or the item is not in the answer",
                            "429": "too many from this address; Retry-After says when to come back",
                            "503": "Kafka or Redis does not answer",
                        }
                    ),
                },
            }
        },
        "/v1/explanations/{name}": {
            "parameters": [name],
            "get": {"operationId": "explanation", "summary": "State and stages so far", "responses": one},
            "delete": {"operationId": "cancelExplanation", "summary": "Cancel the work itself", "responses": one},
        },
        "/v1/explanations/{name}/events": {
            "parameters": [name],
            "get": {
                "operationId": "explanationEvents",
                "summary": "What happens, from Last-Event-ID on",
                "responses": {**stream, **unknown},
            },
        },
    }


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _problems(texts: dict[str, str]) -> dict[str, Any]:
    content = {"application/problem+json": {"schema": _ref("Problem")}}
    return {status: {"description": text, "content": content} for status, text in texts.items()}


def _get(name: str, summary: str, content: dict[str, Any], *also: str) -> dict[str, Any]:
    responses = {status: {"description": "not now", "content": content} for status in also}
    return {
        "get": {
            "operationId": name,
            "summary": summary,
            "responses": {"200": {"description": "ok", "content": content}, **responses},
        }
    }
